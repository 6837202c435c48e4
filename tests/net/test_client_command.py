from __future__ import annotations

import functools
import os
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path

import anyio
import pytest
from backends import both_backends, run
from fake_server import FakeServer
from processes import wait_until

from trioline.client import filter as filter_module
from trioline.client.blocks import Block, BlockFunction
from trioline.client.child import Child
from trioline.client.command import CommandFailed, CommandOutOfStep
from trioline.client.each import each_function
from trioline.client.item import Item
from trioline.client.pool import exec_function
from trioline.client.worker import WorkerSummary, run_worker
from trioline.errors import TriolineError


async def answers(function: BlockFunction, *lines: bytes) -> list[bytes | str]:
    """Answer lines: results, the texts of failures, and for those behind them nothing."""
    block = Block(0, len(lines), b"".join(line + b"\n" for line in lines))
    found = await function(block)
    return [*found.body.split(b"\n")[:-1], *(failure.error for failure in found.failures)]


async def exec_work(server: FakeServer, command: str, concurrency: int = 1) -> WorkerSummary:
    async with exec_function(command) as function:
        return await run_worker(function, server.address, concurrency=concurrency)


async def each_work(server: FakeServer, command: str, concurrency: int = 1) -> WorkerSummary:
    async with each_function(command) as function:
        return await run_worker(function, server.address, concurrency=concurrency)


# --- exec ----------------------------------------------------------------------------------------


@both_backends
@pytest.mark.parametrize("concurrency", [1, 3])
def test_exec_answers_a_whole_job(backend: str, concurrency: int) -> None:
    with FakeServer([b"%d" % number for number in range(2_000)]) as server:
        run(backend, functools.partial(exec_work, server, "cat", concurrency))
        assert server.results == {n: [b"%d" % n] for n in range(2_000)}


@both_backends
def test_exec_starts_one_process_for_all_lines(backend: str, tmp_path: Path) -> None:
    command = f"echo $$ >> {tmp_path}/pids; exec cat"
    with FakeServer([b"%d" % number for number in range(300)]) as server:
        run(backend, functools.partial(exec_work, server, command))
    assert len((tmp_path / "pids").read_text().split()) == 1


@both_backends
def test_exec_does_not_stop_at_full_pipes(backend: str) -> None:
    """Far more than pipes hold, through a child that answers while it is still being fed."""

    async def main() -> None:
        async with exec_function("cat") as function:
            lines = [b"x" * 100_000] * 100
            assert await answers(function, *lines) == lines

    run(backend, main)


@both_backends
def test_exec_child_dying_in_a_batch_costs_one_line(backend: str) -> None:
    dying = "while read line; do [ $line = 2 ] && exit 3; echo $line; done"

    async def main() -> None:
        async with exec_function(dying) as function:
            assert await answers(function, b"0", b"1", b"2", b"3", b"4") == [
                b"0",
                b"1",
                "CommandFailed: the command ended (exit status 3)",
            ]
            assert await answers(function, b"5") == [b"5"]  # another one

    run(backend, main)


@both_backends
def test_exec_child_that_is_killed_is_named_with_its_signal(backend: str) -> None:
    async def main() -> None:
        async with exec_function("read line; kill -9 $$") as function:
            (result,) = await answers(function, b"0")
            assert result == "CommandFailed: the command ended (signal 9 (SIGKILL))"

    run(backend, main)


@both_backends
def test_exec_job_with_a_poisonous_line(backend: str) -> None:
    dying = "while read line; do [ $line = 7 ] && exit 3; echo $line; done"
    with FakeServer([b"%d" % number for number in range(20)]) as server:
        summary = run(backend, functools.partial(exec_work, server, dying))
        assert server.results.pop(7) == ["CommandFailed: the command ended (exit status 3)"] * 3
        assert server.results == {n: [b"%d" % n] for n in range(20) if n != 7}
        assert (summary.done, summary.failed) == (19, 3)


@both_backends
@pytest.mark.parametrize("work", [exec_work, each_work])
@pytest.mark.parametrize("command", ["no-such-command-here", "/", "/dev/null"])
def test_a_misspelt_command_gives_everything_back_and_ends_the_worker(
    backend: str, work: Callable[..., Awaitable[WorkerSummary]], command: str
) -> None:
    with FakeServer([b"1", b"2"]) as server:
        with pytest.raises(TriolineError, match=r"cannot be run \(exit status 12[67].*start the w"):
            run(backend, functools.partial(work, server, command, 2))
        assert server.results == {}
        assert (server.holder, server.log[-1].op) == ({}, "bye")


@both_backends
@pytest.mark.parametrize("work", [exec_work, each_work])
def test_without_a_folder_to_run_in_everything_is_given_back(
    backend: str, work: Callable[..., Awaitable[WorkerSummary]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise FileNotFoundError("no /bin/sh")

    monkeypatch.setattr(subprocess, "Popen", refuse)
    with FakeServer([b"1"]) as server:
        with pytest.raises(TriolineError, match=r"cannot be run \(no /bin/sh"):
            run(backend, functools.partial(work, server, "cat"))
        assert (server.results, server.holder) == ({}, {})


@both_backends
@pytest.mark.parametrize("work", [exec_work, each_work])
def test_a_command_that_answered_once_is_not_misspelt(
    backend: str, work: Callable[..., Awaitable[WorkerSummary]]
) -> None:
    command = "while read line; do [ $line = 2 ] && exit 127; echo $line; done"
    with FakeServer([b"1", b"2", b"3"], max_attempts=1) as server:
        run(backend, functools.partial(work, server, command))
        assert server.results[0] == [b"1"]
        assert "exit status 127" in str(server.results[1])
        assert server.results[2] == [b"3"]


@both_backends
def test_exec_output_that_nobody_asked_for_is_found(backend: str) -> None:
    """Two lines for one: which of them is the answer cannot be told."""

    async def main() -> None:
        script = "import os, sys\nfor line in sys.stdin: os.write(1, 2 * line.encode())"
        doubling = f"{sys.executable} -c '{script}'"
        async with exec_function(doubling) as function:
            (result,) = await answers(function, b"0")
            assert str(result).startswith("CommandFailed: ")
            assert "printed also '0\\n'" in str(result)

    run(backend, main)


@both_backends
def test_exec_output_between_batches_is_found(backend: str, tmp_path: Path) -> None:
    go, printed = tmp_path / "go", tmp_path / "printed"
    os.mkfifo(go)  # opening a pipe waits for the other end: no polling on either side
    os.mkfifo(printed)
    command = f"read line; echo $line; cat {go} >/dev/null; echo more; echo >{printed}; cat"

    async def main() -> None:
        async with exec_function(command) as function:
            assert await answers(function, b"0") == [b"0"]
            await anyio.Path(go).write_text("go")
            await anyio.Path(printed).read_text()
            for result in await answers(function, b"1", b"2"):
                assert str(result).startswith("CommandFailed: ")
                assert "printed also 'more\\n'" in str(result)

    with pytest.raises(CommandOutOfStep, match="at least 1 of them"):
        run(backend, main)


@both_backends
@pytest.mark.parametrize("surplus", ["echo more; echo and more", "echo more; printf more"])
def test_exec_output_that_comes_too_late_is_found_at_the_end(backend: str, surplus: str) -> None:
    """An answer that was a surplus line leaves one behind, until nothing is asked any more."""
    command = f"while read line; do echo $line; done; {surplus}"

    async def main() -> None:
        async with exec_function(command) as function:
            assert await answers(function, b"0", b"1") == [b"0", b"1"]

    with pytest.raises(CommandOutOfStep, match="at least 2 of them") as caught:
        run(backend, main)
    assert repr(command) in str(caught.value)
    assert "exactly one line for each line it reads" in str(caught.value)


@both_backends
def test_exec_output_at_the_end_of_a_command_that_answered_nothing_is_no_matter(
    backend: str,
) -> None:
    async def main() -> None:
        async with exec_function("read line; exit 1; echo more") as function:
            (result,) = await answers(function, b"0")
            assert str(result).startswith("CommandFailed: ")

    run(backend, main)


@both_backends
def test_exec_surplus_output_is_only_logged_where_something_else_went_wrong(
    backend: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        async with exec_function("cat; echo more") as function:
            await answers(function, b"0")
            raise LookupError

    with pytest.raises(LookupError):
        run(backend, main)
    assert "printed lines that nobody had asked for" in caplog.text


@both_backends
def test_exec_surplus_output_without_end_is_bounded(
    backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = "read line; echo $line; cat; while :; do echo y; done"

    async def main() -> None:
        async with exec_function(command) as function:
            await answers(function, b"0")

    monkeypatch.setattr(filter_module, "EXIT_SECONDS", 0.1)
    with pytest.raises(CommandOutOfStep):
        run(backend, main)


@both_backends
def test_exec_silence_is_bounded_where_asked_for(backend: str) -> None:
    async def main() -> None:
        async with exec_function("read line; echo $line; sleep 60", answer_seconds=0.2) as function:
            assert await answers(function, b"0", b"1", b"2") == [
                b"0",
                "CommandFailed: the command printed nothing for 0.2 seconds (signal 9 (SIGKILL))",
            ]

    run(backend, main)


@both_backends
def test_exec_lines_that_are_lost_may_be_first_but_fail_for_nobody(
    backend: str, tmp_path: Path
) -> None:
    """Of 200 lines in one block the last 100 are another's by the time that the command dies."""
    go = tmp_path / "go"
    os.mkfifo(go)
    command = f"head -n 150; cat {go} >/dev/null; exit 3"

    async def main() -> None:
        async with exec_function(command) as function, anyio.create_task_group() as tasks:
            worker = functools.partial(run_worker, function, server.address, batch=200)
            tasks.start_soon(worker)
            await anyio.to_thread.run_sync(server.wait_for, lambda: server.count("extend") == 1)
            for number in range(100, 200):
                server.lose(number)
            await anyio.to_thread.run_sync(server.wait_for, lambda: server.count("extend") == 3)
            await anyio.Path(go).write_text("go")
            await anyio.to_thread.run_sync(server.wait_for, lambda: len(server.results) == 150)
            tasks.cancel_scope.cancel()

    with FakeServer([b"%d" % number for number in range(200)], lease_timeout=0.6) as server:
        run(backend, main)
        assert server.results == {n: [b"%d" % n] for n in range(150)}
        assert server.count("release") == 0


@both_backends
def test_exec_warns_of_a_child_that_buffers(
    backend: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        async with exec_function("cat > /dev/null") as function:
            with anyio.move_on_after(0.3):
                await answers(function, b"0")

    monkeypatch.setattr(filter_module, "FIRST_ANSWER_SECONDS", 0.1)
    run(backend, main)
    assert "python -u" in caplog.text


@both_backends
def test_exec_children_end_with_the_block_and_with_a_cancelled_call(
    backend: str, tmp_path: Path
) -> None:
    async def main() -> None:
        async with exec_function(f"echo $$ >> {tmp_path}/pids; exec cat") as function:
            await answers(function, b"0")
        async with exec_function(f"echo $$ >> {tmp_path}/pids; sleep 60") as function:
            with anyio.move_on_after(0.3):
                await answers(function, b"0")

    run(backend, main)
    for pid in (tmp_path / "pids").read_text().split():
        with pytest.raises(ProcessLookupError):
            os.kill(int(pid), 0)


@both_backends
def test_a_child_that_was_reaped_is_not_signalled(
    backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its number may be another's by then."""
    signalled: list[tuple[int, bool]] = []

    def note(group: int, number: int) -> None:
        signalled.append((group, Path(f"/proc/{group}/stat").exists()))
        real_killpg(group, number)

    async def main() -> None:
        child = Child("true")
        assert await child.aclose() == "exit status 0"
        assert await child.aclose() == "exit status 0"
        assert child.kill() == "exit status 0"

    real_killpg = os.killpg
    monkeypatch.setattr(os, "killpg", note)
    run(backend, main)
    assert [is_there for _, is_there in signalled] == [True]


@both_backends
def test_what_a_child_leaves_behind_is_ended_with_it(backend: str, tmp_path: Path) -> None:
    left = tmp_path / "left"

    async def main() -> None:
        child = Child(f"sleep 60 >/dev/null & echo $! > {left}; exit 7")
        assert await child.aclose() == "exit status 7"

    run(backend, main)
    wait_until(lambda: is_gone(int(left.read_text())), "the end of what was left behind")


def is_gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


# --- each ----------------------------------------------------------------------------------------


@both_backends
def test_each_answers_a_whole_job(backend: str) -> None:
    with FakeServer([b"%d" % number for number in range(20)]) as server:
        run(backend, functools.partial(each_work, server, "read n; echo $((n * 2))", 4))
        assert server.results == {n: [b"%d" % (2 * n)] for n in range(20)}


async def each_once(command: str, line: bytes = b"line") -> bytes:
    async with each_function(command) as function:
        return bytes(await function(Item(7, 2, line)))


@both_backends
@pytest.mark.parametrize(
    ("command", "result"),
    [
        ("cat", b"line"),
        ("printf '[1]'", b"[1]"),
        ("echo", b""),
        ("printf 'a\\r\\n'", b"a\r"),
        ("echo $TRIOLINE_ID $TRIOLINE_ATTEMPT", b"7 2"),
        ("echo fine; echo noise >&2", b"fine"),
    ],
)
def test_each_takes_one_line(backend: str, command: str, result: bytes) -> None:
    assert run(backend, functools.partial(each_once, command)) == result


@both_backends
@pytest.mark.parametrize(
    ("command", "text"),
    [
        ("echo out; echo wrong here >&2; exit 3", "exit status 3: wrong here"),
        ("exit 1", "exit status 1"),
        ("kill -15 $$", "signal 15 (SIGTERM)"),
        ("true", "the command printed nothing; one line is expected"),
        ("printf 'a\\nb\\n'", "the command printed 2 lines; one is expected"),
    ],
)
def test_each_fails_with_a_sentence(backend: str, command: str, text: str) -> None:
    async def main() -> None:
        with pytest.raises(CommandFailed) as caught:
            await each_once(command)
        assert str(caught.value) == text

    run(backend, main)


@both_backends
def test_each_moves_large_lines_through_full_pipes(backend: str) -> None:
    line = b"x" * 5_000_000
    assert run(backend, functools.partial(each_once, "cat", line)) == line


@both_backends
def test_each_kills_what_is_cancelled(backend: str, tmp_path: Path) -> None:
    async def main() -> None:
        with anyio.move_on_after(0.3):
            await each_once(f"echo $$ > {tmp_path}/pid; sleep 60")

    run(backend, main)
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


@both_backends
def test_each_process_of_a_lost_line_is_ended(backend: str, tmp_path: Path) -> None:
    begun = tmp_path / "begun"
    command = f"[ $TRIOLINE_ID = 0 ] && echo $$ >{begun}.new && mv {begun}.new {begun} && sleep 60"

    def lose_line() -> None:
        wait_until(begun.exists, "the process")
        server.settle([(0, b'"theirs"')])
        server.lost.add(0)

    loser = threading.Thread(target=lose_line)
    with FakeServer([b"0", b"1"], lease_timeout=0.3) as server:
        loser.start()
        summary = run(backend, functools.partial(each_work, server, command + "; cat"))
        loser.join()
        assert server.results == {0: [b'"theirs"'], 1: [b"1"]}
        assert (summary.done, summary.failed) == (1, 0)
        assert is_gone(int(begun.read_text()))
