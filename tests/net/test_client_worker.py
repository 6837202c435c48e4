from __future__ import annotations

import asyncio
import functools
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from backends import both_backends, run
from fake_server import DEADLINE_SECONDS, FINAL, FakeServer

from trioline.client import pace
from trioline.client.item import GiveBack, Item, Raw, Reject
from trioline.client.pace import renewal_seconds
from trioline.client.worker import WorkerSummary, run_worker
from trioline.errors import ConnectionLost, ErrorCode, RequestRefused, UsageError
from trioline.snapshot import Snapshot
from trioline.wire.codec import encode_reply
from trioline.wire.messages import Extend, Get, Hello, Refusal, Release, Retry


def numbers(count: int) -> list[bytes]:
    return [b"%d" % number for number in range(count)]


async def square(item: Item) -> Any:  # noqa: ANN401 - whatever the line holds
    return item.data**2


def square_in_thread(item: Item) -> Any:  # noqa: ANN401
    return item.data**2


async def square_many(items: list[Item]) -> list[int]:
    return [item.data**2 for item in items]


def square_many_in_thread(items: list[Item]) -> list[int]:
    return [item.data**2 for item in items]


def all_squares(server: FakeServer) -> bool:
    return server.results == {n: [b"%d" % n**2] for n in range(len(server.lines))}


async def wait_for(server: FakeServer, condition: Any) -> None:  # noqa: ANN401
    await anyio.to_thread.run_sync(server.wait_for, condition)


# --- functions -----------------------------------------------------------------------------------


@both_backends
@pytest.mark.parametrize("concurrency", [1, 5])
@pytest.mark.parametrize(
    ("function", "many"),
    [
        (square, False),
        (square_in_thread, False),
        (square_many, True),
        (square_many_in_thread, True),
    ],
)
def test_every_kind_of_function_does_the_job(
    backend: str, function: Callable[..., Any], many: bool, concurrency: int
) -> None:
    async def main() -> WorkerSummary:
        return await run_worker(function, server.address, many=many, concurrency=concurrency)

    with FakeServer(numbers(500)) as server:
        summary = run(backend, main)
        assert all_squares(server)
        assert (summary.complete, summary.done, summary.failed) == (True, 500, 0)
        assert server.holder == {}


@both_backends
@pytest.mark.parametrize("threads", [False, True])
def test_an_exception_is_a_failed_attempt_and_nothing_more(backend: str, threads: bool) -> None:
    def answer(item: Item) -> Any:  # noqa: ANN401
        match item.id:
            case 1:
                raise KeyError("prompt")
            case 2:
                raise Reject("too long")
            case 3:
                return float("nan")
            case 4 if item.attempt < 3:
                raise RuntimeError(f"attempt {item.attempt}")
        return "fine"

    async def answer_async(item: Item) -> Any:  # noqa: ANN401
        return answer(item)

    async def main() -> WorkerSummary:
        return await run_worker(answer if threads else answer_async, server.address)

    with FakeServer(numbers(6)) as server:
        summary = run(backend, main)
        nan = "The result cannot be written: ValueError: the result holds nan, which JSON lacks"
        assert server.results == {
            0: [b'"fine"'],
            1: ["KeyError: 'prompt'"] * 3,
            2: ["Reject: too long" + FINAL],
            3: [nan] * 3,
            4: ["RuntimeError: attempt 1", "RuntimeError: attempt 2", b'"fine"'],
            5: [b'"fine"'],
        }
        assert (summary.done, summary.failed) == (3, 9)


@both_backends
def test_many_answers_for_each_line_or_fails_them_all(backend: str) -> None:
    async def answer(items: list[Item]) -> Any:  # noqa: ANN401
        if items[0].attempt == 1:
            return ["too", "many", "results"] + ["x"] * len(items)
        if items[0].attempt == 2:
            return "no list"
        return [ValueError("odd") if item.id % 2 else item.id for item in items]

    async def main() -> WorkerSummary:
        return await run_worker(answer, server.address, many=True, batch=2)

    with FakeServer(numbers(2)) as server:
        run(backend, main)
        assert server.results == {
            0: [
                "ValueError: the function returned 5 results for 2 lines",
                "TypeError: the function returned str, not a list",
                b"0",
            ],
            1: [
                "ValueError: the function returned 5 results for 2 lines",
                "TypeError: the function returned str, not a list",
                "ValueError: odd",
            ],
        }


class OwnError(BaseException):
    """No Exception, as some libraries have them."""


@both_backends
@pytest.mark.parametrize("many", [False, True])
@pytest.mark.parametrize("threads", [False, True])
@pytest.mark.parametrize(
    "error", [OwnError, SystemExit, KeyboardInterrupt, GeneratorExit, asyncio.CancelledError]
)
def test_whatever_the_function_raises_is_a_failed_attempt(
    backend: str, many: bool, threads: bool, error: type[BaseException]
) -> None:
    def answer(_: object) -> None:
        raise error

    async def answer_async(_: object) -> None:
        raise error

    async def main() -> WorkerSummary:
        return await run_worker(answer if threads else answer_async, server.address, many=many)

    with FakeServer(numbers(3), max_attempts=1) as server:
        summary = run(backend, main)
        assert server.results == {n: [error.__name__] for n in range(3)}
        assert (summary.complete, summary.failed) == (True, 3)


@pytest.mark.parametrize("many", [False, True])
@pytest.mark.parametrize("waits", [False, True])
def test_a_function_that_cancels_its_own_task_does_not_stop_the_worker(
    many: bool, waits: bool
) -> None:
    async def answer(_: object) -> list[int]:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        if waits:
            await asyncio.sleep(60)
        return [1]

    async def main() -> WorkerSummary:
        return await run_worker(answer, server.address, many=many, batch=1)

    with FakeServer(numbers(3), max_attempts=1) as server:
        summary = run("asyncio", main)
        assert summary.complete
        result: str | bytes = b"[1]" if not many else b"1"
        assert server.results == {n: ["CancelledError" if waits else result] for n in range(3)}


def test_a_real_interrupt_is_not_taken_for_the_functions_own() -> None:
    """Trio raises it in whatever code runs: as a failed attempt it would be swallowed."""

    async def answer(item: Item) -> int:
        signal.raise_signal(signal.SIGINT)
        return item.id

    async def main() -> WorkerSummary:
        return await run_worker(answer, server.address)

    with FakeServer(numbers(3)) as server:
        with pytest.raises(BaseException) as caught:
            run("trio", main)
        error: BaseException = caught.value
        while isinstance(error, BaseExceptionGroup):
            (error,) = error.exceptions
        assert isinstance(error, KeyboardInterrupt)
        assert server.results == {}


@both_backends
def test_a_group_with_the_cancellation_in_it_gives_the_line_back(backend: str) -> None:
    began = threading.Event()

    async def answer(_: Item) -> None:
        async with anyio.create_task_group():
            began.set()
            try:
                await anyio.sleep(60)
            finally:
                raise OwnError

    async def main() -> WorkerSummary:
        stop = anyio.Event()

        async def stop_when_begun() -> None:
            await anyio.to_thread.run_sync(began.wait)
            stop.set()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(stop_when_begun)
            summary = await run_worker(answer, server.address, stop=stop, drain_seconds=0.0)
        return summary  # noqa: RET504 - not from inside the task group

    with FakeServer(numbers(1)) as server:
        summary = run(backend, main)
        assert not summary.complete
        assert server.holder == {}
        assert server.results == {}


def test_a_cancelled_task_of_the_functions_own_is_a_failed_attempt() -> None:
    async def answer(item: Item) -> None:
        task = asyncio.ensure_future(asyncio.sleep(60))
        await asyncio.sleep(0)
        task.cancel()
        await task

    async def main() -> WorkerSummary:
        return await run_worker(answer, server.address)

    with FakeServer(numbers(1), max_attempts=1) as server:
        run("asyncio", main)
        assert server.results == {0: ["CancelledError"]}


@both_backends
def test_text_results_are_lines_as_they_are(backend: str) -> None:
    async def main() -> WorkerSummary:
        async def answer(item: Item) -> str:
            return f"[{item.line}]"

        return await run_worker(answer, server.address, text=True)

    with FakeServer(numbers(2)) as server:
        run(backend, main)
        assert server.results == {0: [b"[0]"], 1: [b"[1]"]}


@both_backends
def test_a_line_given_back_costs_no_attempt(backend: str) -> None:
    calls = []

    async def answer(item: Item) -> int:
        calls.append(item.attempt)
        if len(calls) == 1:
            raise GiveBack
        return 1

    async def main() -> WorkerSummary:
        return await run_worker(answer, server.address)

    with FakeServer(numbers(1)) as server:
        run(backend, main)
        assert calls == [1, 1]
        assert server.results == {0: [b"1"]}


@both_backends
def test_a_result_the_server_refuses_is_a_failed_attempt_of_that_line_only(backend: str) -> None:
    async def answer(item: Item) -> Raw:
        return Raw(b"{no json" if item.id == 37 else item.raw)

    async def main() -> WorkerSummary:
        return await run_worker(answer, server.address, batch=100)

    with FakeServer(numbers(100), max_attempts=1) as server:
        run(backend, main)
        (text,) = server.results.pop(37)
        assert str(text).startswith("The server refused the result: Line 37: not JSON.")
        assert server.results == {n: [b"%d" % n] for n in range(100) if n != 37}


@both_backends
def test_as_many_calls_at_a_time_as_asked_for(backend: str) -> None:
    """Seven calls wait for each other; an eighth would find more than seven inside."""
    inside: set[int] = set()
    most = 0

    async def main() -> WorkerSummary:
        all_in = anyio.Event()

        async def answer(item: Item) -> None:
            nonlocal most
            inside.add(item.id)
            most = max(most, len(inside))
            if len(inside) == 7:
                all_in.set()
            await all_in.wait()
            await anyio.lowlevel.checkpoint()
            inside.discard(item.id)

        return await run_worker(answer, server.address, concurrency=7)

    with FakeServer(numbers(30)) as server:
        run(backend, main)
        assert most == 7


@both_backends
def test_batches_grow_with_quick_lines_and_keep_to_the_servers_limit(backend: str) -> None:
    async def main() -> WorkerSummary:
        return await run_worker(square, server.address)

    with FakeServer(numbers(3_000), max_batch=500) as server:
        run(backend, main)
        asked = [each.request.max for each in server.log if isinstance(each.request, Get)]
        assert asked[0] == 1
        assert max(asked) == 500
        assert server.count("get") < 60
        assert server.count("done") < 60
        assert all_squares(server)


@both_backends
def test_slow_lines_are_not_hoarded(backend: str) -> None:
    """With a call running and nothing known of its length, only what can be begun is leased."""

    async def main() -> None:
        release = anyio.Event()

        async def answer(item: Item) -> int:
            await release.wait()
            return 1

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(functools.partial(run_worker, answer, server.address, concurrency=3))
            await wait_for(server, lambda: len(server.holder) == 3)
            await anyio.wait_all_tasks_blocked()
            assert len(server.holder) == 3
            release.set()

    with FakeServer(numbers(10)) as server:
        run(backend, main)


# --- leases --------------------------------------------------------------------------------------


@both_backends
def test_leases_are_renewed_while_a_thread_is_busy(backend: str) -> None:
    def answer(item: Item) -> int:
        server.wait_for(lambda: server.count("extend") >= 4)
        return 1

    async def main() -> WorkerSummary:
        return await run_worker(answer, server.address)

    with FakeServer(numbers(1), lease_timeout=0.3) as server:
        began = time.monotonic()
        summary = run(backend, main)
        assert time.monotonic() - began > 0.3  # longer than the lease
        assert summary.done == 1
        assert all(e.request.lease is None for e in server.log if isinstance(e.request, Extend))


@both_backends
def test_lost_lines_are_not_begun(backend: str) -> None:
    begun = []

    async def main() -> WorkerSummary:
        async def answer(item: Item) -> int:
            begun.append(item.id)
            if item.id == 0:
                server.lose(2)
                extended = server.count("extend")
                await wait_for(server, lambda: server.count("extend") >= extended + 2)
            if item.id == 4:
                server.settle([(2, b'"theirs"')])
            return item.id

        return await run_worker(answer, server.address, batch=5)

    with FakeServer(numbers(5), lease_timeout=0.3) as server:
        summary = run(backend, main)
        assert begun == [0, 1, 3, 4]
        assert server.results[2] == [b'"theirs"']
        assert (summary.done, summary.duplicate) == (4, 0)


@both_backends
def test_notes_reach_the_server(backend: str) -> None:
    async def main() -> WorkerSummary:
        async def answer(item: Item) -> int:
            item.note("early")
            item.note("late")
            await wait_for(server, lambda: server.count("note") >= 1)
            return 1

        return await run_worker(answer, server.address)

    with FakeServer(numbers(1)) as server:
        run(backend, main)
        (note,) = [each.request for each in server.log if each.op == "note"]
        assert (note.text, note.id) == ("late", 0)  # type: ignore[union-attr]  # a Note


# --- cuts ----------------------------------------------------------------------------------------


@both_backends
@pytest.mark.parametrize("drop", ["done", "done!", "get", "get!", "hello", "hello!"])
def test_a_lost_connection_costs_nothing(backend: str, drop: str) -> None:
    async def main() -> WorkerSummary:
        return await run_worker(square, server.address, batch=10)

    with FakeServer(numbers(100)) as server:
        server.drop += [drop] * 2
        summary = run(backend, main)
        assert all_squares(server)
        assert summary.done + summary.duplicate == 100
        assert summary.failed == 0
        assert server.connections == 3
        # The session was taken up again, so nothing went to anyone else in between.
        sessions = [each.request.session for each in server.log if isinstance(each.request, Hello)]
        assert sessions[0] is None
        assert drop.startswith("hello") or sessions[1] == sessions[2] == "session-1"


@both_backends
def test_an_answer_that_was_lost_makes_a_duplicate(backend: str) -> None:
    async def main() -> WorkerSummary:
        return await run_worker(square, server.address)

    with FakeServer(numbers(1)) as server:
        server.drop += ["done!"]
        summary = run(backend, main)
        assert (summary.done, summary.duplicate) == (0, 1)
        assert server.results == {0: [b"0"]}


@both_backends
def test_work_goes_on_while_the_server_is_away(backend: str) -> None:
    async def main() -> WorkerSummary:
        async def answer(item: Item) -> int:
            if item.id == 0:
                server.hang_up(listen=False)
            if item.id == 9:
                server.listen()  # only now: the nine before were done without it
            return item.id**2

        return await run_worker(answer, server.address, batch=10)

    with FakeServer(numbers(10)) as server:
        summary = run(backend, main)
        assert all_squares(server)
        assert summary.done == 10


@both_backends
def test_what_was_not_begun_is_left_to_others_when_the_session_is_unknown(backend: str) -> None:
    begun = []

    async def main() -> WorkerSummary:
        async def answer(item: Item) -> int:
            begun.append(item.id)
            if item.id == 0 and len(begun) == 1:
                server.known_sessions.clear()  # as after a restart
                server.holder.clear()
                server.hang_up()
                await wait_for(server, lambda: server.count("hello") == 2)
                await wait_for(
                    server, lambda: server.count("done") == 1 or server.count("get") == 2
                )
            return item.id

        return await run_worker(answer, server.address, batch=3)

    with FakeServer(numbers(3)) as server:
        summary = run(backend, main)
        assert summary.done + summary.duplicate >= 3
        assert sorted(set(begun)) == [0, 1, 2]
        assert begun.count(1) == begun.count(2) == 1


@both_backends
def test_a_worker_waits_for_its_server_to_start(backend: str) -> None:
    async def main() -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(run_worker, square, server.address)
            await anyio.sleep(0.2)  # refused a few times
            server.listen()

    with FakeServer(numbers(3)) as server:
        server.hang_up(listen=False)
        run(backend, main)
        assert all_squares(server)


@both_backends
@pytest.mark.parametrize("seconds", [0.0, 0.3])
def test_without_a_server_it_gives_up_in_time(backend: str, seconds: float) -> None:
    async def main() -> None:
        with pytest.raises(ConnectionLost, match=f"Gave up after {seconds:g} seconds"):
            await run_worker(square, address, reconnect_seconds=seconds)

    with FakeServer([]) as server:
        address = server.address
    began = time.monotonic()
    run(backend, main)
    assert seconds <= time.monotonic() - began < seconds + 5


@both_backends
def test_the_wrong_token_is_final(backend: str) -> None:
    async def main() -> None:
        with pytest.raises(RequestRefused) as caught:
            await run_worker(square, server.address, token="wrong")
        assert caught.value.code == ErrorCode.AUTH_FAILED

    with FakeServer(numbers(1), token="right") as server:
        run(backend, main)
        assert server.connections == 1


@both_backends
def test_a_refusal_for_now_is_tried_again(backend: str) -> None:
    async def main() -> WorkerSummary:
        return await run_worker(square, server.address)

    with FakeServer(numbers(1)) as server:
        server.refuse["hello"].append(Refusal(error=ErrorCode.TOO_MANY, message="full"))
        assert run(backend, main).done == 1


@both_backends
def test_a_refused_get_ends_it_with_the_servers_words(backend: str) -> None:
    async def main() -> None:
        with pytest.raises(RequestRefused, match="no such stage"):
            await run_worker(square, server.address, stage="what")

    with FakeServer(numbers(1)) as server:
        server.refuse["get"].append(Refusal(error=ErrorCode.BAD_REQUEST, message="no such stage"))
        run(backend, main)


@both_backends
def test_a_server_that_says_retry_is_not_hammered(backend: str) -> None:
    async def main() -> None:
        with anyio.move_on_after(0.5):
            await run_worker(square, server.address)

    with FakeServer(numbers(1)) as server:
        server.answer["get"] = lambda _: encode_reply(Retry(retry_in=0.1))
        run(backend, main)
        assert 2 <= server.count("get") <= 6


@both_backends
def test_it_goes_home_although_the_server_does_not_answer_any_more(backend: str) -> None:
    """The job is complete, so every result without an answer is a duplicate."""

    async def main() -> WorkerSummary:
        async def answer(item: Item) -> int:
            await wait_for(server, lambda: server.count("get") == 2)  # the other call's
            server.stop_listening()
            server.drop.append("done")
            server.settle([(0, b'"theirs"')])
            return 1

        return await run_worker(answer, server.address, concurrency=2)

    with FakeServer(numbers(1)) as server:
        assert run(backend, main).complete


# --- the end -------------------------------------------------------------------------------------


@both_backends
def test_it_waits_for_lines_that_others_hold(backend: str) -> None:
    async def main() -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(run_worker, square, server.address)
            await wait_for(server, lambda: server.count("get") == 1)
            server.settle([(0, b"0")])

    with FakeServer(numbers(1)) as server:
        server.holder[0] = "someone else"
        run(backend, main)
        assert server.count("bye") == 1


@both_backends
def test_what_still_runs_at_the_end_is_of_no_use(backend: str) -> None:
    async def main() -> WorkerSummary:
        async def answer(item: Item) -> None:
            server.settle([(0, b'"theirs"')])
            await anyio.sleep_forever()

        return await run_worker(answer, server.address, concurrency=2)

    with FakeServer(numbers(1)) as server:
        assert run(backend, main).complete


@both_backends
def test_a_stop_gives_back_at_once_and_ends_what_was_begun(backend: str) -> None:
    async def main() -> WorkerSummary:
        stop = anyio.Event()

        async def answer(item: Item) -> int:
            stop.set()
            await wait_for(server, lambda: server.count("release") == 1)
            assert sorted(server.holder) == [0]
            return item.id

        return await run_worker(answer, server.address, batch=5, stop=stop)

    with FakeServer(numbers(5)) as server:
        summary = run(backend, main)
        (release,) = [each.request for each in server.log if isinstance(each.request, Release)]
        assert release.ids == [1, 2, 3, 4]
        assert server.results == {0: [b"0"]}
        assert (summary.complete, summary.done) == (False, 1)
        assert (server.holder, server.log[-1].op) == ({}, "bye")


@both_backends
@pytest.mark.parametrize("threads", [False, True])
def test_a_stop_does_not_wait_for_ever(backend: str, threads: bool) -> None:
    finish = threading.Event()

    async def main() -> WorkerSummary:
        stop = anyio.Event()

        async def answer(item: Item) -> int:
            if item.id != 0:
                stop.set()
                await anyio.sleep_forever()
            return 0

        def answer_in_thread(item: Item) -> int:
            if item.id == 0:
                return 0
            anyio.from_thread.run_sync(stop.set)
            finish.wait(DEADLINE_SECONDS)
            return 0

        function = answer_in_thread if threads else answer
        return await run_worker(function, server.address, batch=2, stop=stop, drain_seconds=0.1)

    with FakeServer(numbers(2)) as server:
        threading.Timer(1.5, finish.set).start()  # asyncio itself waits for threads at its end
        summary = run(backend, main)
        assert (summary.complete, summary.done) == (False, 1)
        assert server.results == {0: [b"0"]}
        assert (server.holder, server.log[-1].op) == ({}, "bye")


@both_backends
def test_a_stop_without_a_server_ends_it(backend: str) -> None:
    async def main() -> WorkerSummary:
        stop = anyio.Event()
        stop.set()
        return await run_worker(square, address, stop=stop)

    with FakeServer([]) as server:
        address = server.address
    assert not run(backend, main).complete


@both_backends
def test_cancelled_from_outside_it_hands_in_and_gives_back(backend: str) -> None:
    async def main() -> None:
        with anyio.CancelScope() as scope:

            async def answer(item: Item) -> int:
                if item.id == 1:
                    scope.cancel()
                    await anyio.sleep_forever()
                return item.id

            await run_worker(answer, server.address, batch=3)

    with FakeServer(numbers(3)) as server:
        run(backend, main)
        server.wait_for(lambda: server.log[-1].op == "bye")
        server.wait_for(lambda: server.holder == {})
        assert server.results == {0: [b"0"]}


@both_backends
def test_nothing_outlives_it(backend: str) -> None:
    async def main() -> None:
        async with anyio.create_task_group():
            before = len(_tasks())
            await run_worker(square, server.address, concurrency=9)
            await anyio.wait_all_tasks_blocked()
            assert len(_tasks()) == before

    def _tasks() -> list[object]:
        return [task for task in anyio.get_running_tasks() if "trioline" in str(task.name)]

    with FakeServer(numbers(20)) as server:
        run(backend, main)


@both_backends
def test_wrong_arguments_are_said_at_once(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        with pytest.raises(UsageError, match="concurrency"):
            await run_worker(square, "localhost", concurrency=0)
        with pytest.raises(UsageError, match="no address"):
            await run_worker(square, "http://localhost")
        with pytest.raises(UsageError, match="TRIOLINE_ADDRESS"):
            await run_worker(square)

    monkeypatch.delenv("TRIOLINE_ADDRESS", raising=False)
    run(backend, main)


# --- sent home -----------------------------------------------------------------------------------


@both_backends
@pytest.mark.parametrize("reason", ["drain", "deadline"])
@pytest.mark.parametrize("threads", [False, True])
def test_sent_home_it_ends_what_was_begun_and_gives_the_rest_back(
    backend: str, reason: str, threads: bool
) -> None:
    def answer(item: Item) -> int:
        if item.id == 1:  # asks for more when it begins line 2
            server.send_home = reason
        if item.id == 2:
            server.wait_for(lambda: server.count("release") == 1)
            assert {3, 4}.isdisjoint(server.holder)
        return item.id

    async def answer_async(item: Item) -> int:
        return await anyio.to_thread.run_sync(answer, item)

    async def main() -> WorkerSummary:
        function = answer if threads else answer_async
        return await run_worker(function, server.address, batch=5, drain_seconds=0)

    with FakeServer(numbers(8), lease_timeout=0.3) as server:
        server.holder[7] = "someone else"
        summary = run(backend, main)
        (release,) = [each.request for each in server.log if isinstance(each.request, Release)]
        assert release.ids == [3, 4]
        assert server.results == {0: [b"0"], 1: [b"1"], 2: [b"2"]}
        assert (summary.complete, summary.reason, summary.done) == (False, reason, 3)
        assert (server.holder, server.log[-1].op) == ({7: "someone else"}, "bye")


@both_backends
def test_sent_home_it_hands_everything_in_also_to_a_server_that_was_away(backend: str) -> None:
    async def main() -> WorkerSummary:
        async def answer(item: Item) -> int:
            server.send_home = "drain"
            server.drop.append("done")
            return 7

        return await run_worker(answer, server.address)

    with FakeServer(numbers(2)) as server:
        summary = run(backend, main)
        assert server.results == {0: [b"7"]}
        assert (summary.reason, summary.done) == ("drain", 1)
        assert server.connections == 2


@both_backends
def test_a_stop_cuts_a_drain_short(backend: str) -> None:
    async def main() -> WorkerSummary:
        stop = anyio.Event()

        async def answer(item: Item) -> None:
            server.send_home = "drain"
            await wait_for(server, lambda: server.count("get") >= 2)
            stop.set()
            await anyio.sleep_forever()

        return await run_worker(answer, server.address, batch=2, stop=stop, drain_seconds=0.05)

    with FakeServer(numbers(3)) as server:
        summary = run(backend, main)
        assert (summary.complete, summary.reason, summary.done) == (False, "stop", 0)
        assert (server.holder, server.log[-1].op) == ({}, "bye")


@both_backends
@pytest.mark.parametrize(
    ("deadline", "environment", "said"),
    [
        (None, "1893456000", 1893456000.0),
        (1900000000.5, "1893456000", 1900000000.5),
        (float("inf"), "1893456000", None),
        (None, "tomorrow", None),
        (None, "0", None),
        (None, "-5", None),
        (None, "1e300", None),
        (None, "", None),
    ],
)
def test_hello_says_when_the_worker_will_be_killed(
    backend: str,
    deadline: float | None,
    environment: str,
    said: float | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SLURM_JOB_END_TIME", environment)
    with FakeServer([]) as server:
        run(backend, functools.partial(run_worker, square, server.address, deadline=deadline))
        (hello,) = [each.request for each in server.log if isinstance(each.request, Hello)]
        assert hello.deadline == said


def test_a_deadline_that_no_server_takes_is_said_at_once() -> None:
    for deadline in (-1.0, 0.0, 1e13, float("nan")):
        with pytest.raises(UsageError, match="deadline is"):
            run("trio", functools.partial(run_worker, square, "127.0.0.1:1", deadline=deadline))


@both_backends
def test_a_hello_that_the_server_cannot_read_is_final(backend: str) -> None:
    with FakeServer([]) as server:
        server.refuse["hello"].append(Refusal(error=ErrorCode.BAD_REQUEST, message="No."))
        with pytest.raises(RequestRefused, match=r"No\."):
            run(backend, functools.partial(run_worker, square, server.address))


# --- lines that another worker answered ----------------------------------------------------------


def answered_by_another(server: FakeServer, number: int) -> None:
    """Another worker answers a line, as a hedged copy does: its holder hears of it as lost."""
    server.settle([(number, b'"theirs"')])
    server.lost.add(number)


@both_backends
@pytest.mark.parametrize("swallows", [False, True])
def test_a_call_for_a_lost_line_is_cancelled_and_reports_nothing(
    backend: str, swallows: bool
) -> None:
    cancelled: list[int] = []

    async def main() -> WorkerSummary:
        async def answer(item: Item) -> int:
            if item.id == 1:
                answered_by_another(server, 1)
                try:
                    await anyio.sleep_forever()
                except BaseException:
                    cancelled.append(item.id)
                    if swallows:
                        raise RuntimeError("not as planned") from None  # noqa: ASYNC104 - odd on purpose
                    raise
            if item.id == 0:
                await wait_for(server, lambda: 1 in server.settled and not server.lost)
            return item.id

        return await run_worker(answer, server.address, concurrency=2)

    with FakeServer(numbers(4), lease_timeout=0.3) as server:
        summary = run(backend, main)
        assert cancelled == [1]
        assert server.results == {0: [b"0"], 1: [b'"theirs"'], 2: [b"2"], 3: [b"3"]}
        assert (summary.done, summary.failed, summary.duplicate) == (3, 0, 0)


@both_backends
@pytest.mark.parametrize("fails", [False, True])
def test_a_thread_with_a_lost_line_goes_on_and_its_failure_does_not_count(
    backend: str, fails: bool
) -> None:
    def answer(item: Item) -> int:
        if item.id == 0:
            answered_by_another(server, 0)
            server.wait_for(lambda: not server.lost)
            extended = server.count("extend")
            server.wait_for(lambda: server.count("extend") > extended)
            if fails:
                raise RuntimeError("too late")
        return item.id

    async def main() -> WorkerSummary:
        return await run_worker(answer, server.address, batch=2)

    with FakeServer(numbers(2), lease_timeout=0.3) as server:
        summary = run(backend, main)
        assert server.results == {0: [b'"theirs"'], 1: [b"1"]}
        assert (summary.done, summary.failed, summary.duplicate) == (1, 0, 0 if fails else 1)


@both_backends
def test_who_works_in_vain_on_the_last_line_hears_that_the_job_is_complete(backend: str) -> None:
    over = threading.Event()
    snapshot = Snapshot(
        job="fake", state="complete", total=3, written=3, ahead=0, leased=0, queued=0, rejected=0,
        rate=0.0, eta=None, progress=1.0, elapsed=1.0, head=None, workers=(), connections=1,
        lease_timeout=900.0, max_attempts=3, paused=False,
    )  # fmt: skip

    def answer(item: Item) -> int:
        if item.id == 2:
            answered_by_another(server, 2)
            over.wait(20)
        return item.id

    async def main() -> WorkerSummary:
        with anyio.fail_after(8):
            return await run_worker(answer, server.address, batch=1)

    with FakeServer(numbers(3)) as server:
        server.answer["status"] = lambda _: encode_reply(snapshot)
        began_at = time.monotonic()
        try:
            assert run(backend, main).complete
        finally:
            over.set()
        assert time.monotonic() - began_at < 4, "the server lingers for two seconds only"


def test_a_long_lease_is_asked_about_every_ten_seconds() -> None:
    assert renewal_seconds(900.0) == renewal_seconds(1e9) == 10.0
    assert renewal_seconds(3.0) == 1.0


# --- functions that hang -------------------------------------------------------------------------


@both_backends
@pytest.mark.parametrize("many", [False, True])
def test_an_async_call_that_takes_too_long_is_a_failed_attempt(backend: str, many: bool) -> None:
    async def answer(item: Item) -> int:
        if item.id == 1 and item.attempt == 1:
            await anyio.sleep_forever()
        return item.id

    async def answer_many(items: list[Item]) -> list[int]:
        return [await answer(item) for item in items]

    async def main() -> WorkerSummary:
        function = answer_many if many else answer
        return await run_worker(function, server.address, many=many, batch=1, timeout=0.2)

    with FakeServer(numbers(4)) as server:
        summary = run(backend, main)
        text = "no result within 0.2 seconds"
        assert server.results == {0: [b"0"], 1: [text, b"1"], 2: [b"2"], 3: [b"3"]}
        assert (summary.complete, summary.done, summary.failed) == (True, 4, 1)


@both_backends
def test_an_async_call_that_hides_its_timeout_failed_all_the_same(backend: str) -> None:
    async def answer(item: Item) -> int:
        try:
            await anyio.sleep_forever()
        finally:
            if item.id == 0:
                raise KeyError("hidden")
            return 1  # noqa: B012 - it did answer

    async def main() -> WorkerSummary:
        return await run_worker(answer, server.address, timeout=0.05)

    with FakeServer(numbers(2), max_attempts=1) as server:
        run(backend, main)
        assert server.results == {0: ["no result within 0.05 seconds"], 1: [b"1"]}


@both_backends
@pytest.mark.parametrize("many", [False, True])
def test_a_thread_that_hangs_is_a_failed_attempt_and_left_behind(backend: str, many: bool) -> None:
    finish = threading.Event()

    def answer(item: Item) -> int:
        if item.id == 1 and item.attempt < 3:
            finish.wait(DEADLINE_SECONDS)
        return item.id

    def answer_many(items: list[Item]) -> list[int]:
        return [answer(item) for item in items]

    async def main() -> WorkerSummary:
        function = answer_many if many else answer
        try:
            return await run_worker(function, server.address, many=many, batch=1, timeout=0.1)
        finally:
            finish.set()  # asyncio itself waits for threads at its end

    with FakeServer(numbers(4)) as server:
        summary = run(backend, main)
        text = "no result within 0.1 seconds"
        assert server.results == {0: [b"0"], 1: [text, text, b"1"], 2: [b"2"], 3: [b"3"]}
        assert (summary.complete, summary.done, summary.failed) == (True, 4, 2)


def test_a_timeout_is_more_than_nothing() -> None:
    with pytest.raises(UsageError, match="timeout is 0"):
        anyio.run(functools.partial(run_worker, square, "localhost:1", timeout=0.0))


# --- no hoarding ---------------------------------------------------------------------------------


@both_backends
@pytest.mark.parametrize("threads", [False, True])
def test_a_slow_line_does_not_hold_those_behind_it(
    backend: str, threads: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pace, "STALL_SECONDS", 0.3)
    monkeypatch.setattr(pace, "MAX_HAND_SECONDS", 1.0)
    held = 0

    def answer(item: Item) -> int:
        nonlocal held
        if item.id == 1_500:
            held = len(server.holder)
            server.wait_for(lambda: set(server.holder) <= {1_500})
        return item.id

    async def answer_async(item: Item) -> int:
        return answer(item) if item.id != 1_500 else await anyio.to_thread.run_sync(answer, item)

    async def main() -> WorkerSummary:
        return await run_worker(answer if threads else answer_async, server.address)

    with FakeServer(numbers(3_000), lease_timeout=0.6, max_batch=200) as server:
        summary = run(backend, main)
        assert held > 50, "it had leased lines behind it"
        assert (summary.complete, summary.done, summary.duplicate) == (True, 3_000, 0)
        assert max(server.attempts.values(), default=0) == 0


@both_backends
def test_nothing_is_leased_while_all_that_is_at_work_hangs(
    backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pace, "STALL_SECONDS", 0.3)
    held: set[int] = set()

    def wait_renewed(count: int) -> None:
        renewed = server.count("extend") + count
        server.wait_for(lambda: server.count("extend") >= renewed)

    def answer(item: Item) -> int:
        if item.id == 0:
            wait_renewed(3)  # a renewal ends the wait of a get that was under way
            server.add_lines(numbers(2))
            wait_renewed(3)
            held.update(server.holder)
            server.is_open = False
        return item.id

    async def main() -> WorkerSummary:
        return await run_worker(answer, server.address, batch=4)

    with FakeServer(numbers(2), lease_timeout=0.6) as server:
        server.is_open = True
        summary = run(backend, main)
    assert held == {0, 1}, "what it held before it hung"
    assert (summary.complete, summary.done) == (True, 4)


@both_backends
def test_leases_are_renewed_from_their_receipt(backend: str) -> None:
    async def main() -> None:
        async def answer(item: Item) -> int:
            await wait_for(server, lambda: server.count("extend") >= 1)
            return 1

        await run_worker(answer, server.address)

    with FakeServer(numbers(1)) as server:
        began = time.monotonic()
        run(backend, main)
        assert time.monotonic() - began < 5  # the lease would hold for minutes yet
