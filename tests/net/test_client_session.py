from __future__ import annotations

import threading

import anyio
import anyio.abc
import pytest
from backends import both_backends, run
from fake_server import FakeServer

from trioline.client.item import Raw, Reject
from trioline.client.lease import Lease
from trioline.client.pipeline import Pending, decoder
from trioline.client.session import connect
from trioline.errors import (
    ConnectionLost,
    ErrorCode,
    LocalProtocolError,
    RequestRefused,
    UsageError,
)
from trioline.wire.codec import encode_reply
from trioline.wire.messages import Complete, DoneLines, Okay, Ping, Refusal, Retry

LINES = [b'{"n": 0}', b"[1,  2]", b"3"]


@both_backends
def test_a_job_by_hand_in_items_form(backend: str) -> None:
    async def main() -> None:
        async with connect(server.address, worker="me") as session:
            assert session.hello.job == "fake"
            lease = await session.get(2)
            assert isinstance(lease, Lease)
            assert [(item.id, item.raw, item.attempt) for item in lease.items] == [
                (0, LINES[0], 1),
                (1, LINES[1], 1),
            ]
            reply = await session.done([(0, {"ok": True}), (1, Reject("never"))])
            assert (reply.accepted, reply.failed) == (1, 1)
            assert isinstance(await session.get(), Lease)
            await session.done([(2, Raw(b'"raw"'))])
            assert isinstance(await session.get(), Complete)
            await session.bye()

    with FakeServer(LINES) as server:
        run(backend, main)
        assert server.results == {0: [b'{"ok":true}'], 1: ["Reject: never (final)"], 2: [b'"raw"']}


@both_backends
def test_lines_form_keeps_the_block_and_makes_items_of_it(backend: str) -> None:
    async def main() -> None:
        async with connect(server.address) as session:
            lease = await session.get(10, form="lines")
            assert isinstance(lease, Lease)
            assert (lease.first, lease.count, lease.attempt) == (0, 3, 1)
            assert lease.block == b'{"n": 0}\n[1,  2]\n3\n'
            assert [item.raw for item in lease] == LINES
            await session.done_lines(0, [b"1", b"2", b"3"])
            with pytest.raises(LocalProtocolError, match="newline"):
                await session.done_lines(0, [b"1\n2"])

    with FakeServer(LINES) as server:
        run(backend, main)
        assert server.results == {0: [b"1"], 1: [b"2"], 2: [b"3"]}


@both_backends
def test_requests_of_many_tasks_get_their_own_replies(backend: str) -> None:
    async def main() -> None:
        got: list[int] = []

        async def one(number: int) -> None:
            reply = await session.done([(number, number)])
            refused = False
            try:
                await session.fail(number)
            except RequestRefused:
                refused = True
            got.append(number)
            assert reply.accepted == 1
            assert not refused

        async with connect(server.address) as session, anyio.create_task_group() as tasks:
            for number in range(200):
                tasks.start_soon(one, number)
        assert sorted(got) == list(range(200))

    with FakeServer([b"1"] * 200) as server:
        run(backend, main)


@both_backends
def test_requests_are_pipelined(backend: str) -> None:
    async def main() -> None:
        async with connect(server.address) as session, anyio.create_task_group() as tasks:
            for number in range(3):
                tasks.start_soon(session.done, [(number, 1)])
            # The first reply is held back; only if the others do not wait for it do they come.
            await anyio.to_thread.run_sync(server.wait_for, lambda: server.count("done") == 1)
            await anyio.wait_all_tasks_blocked()
            assert session.request_count == 4
            gate.set()

    with FakeServer(LINES) as server:
        gate = server.gates["done"] = threading.Event()
        run(backend, main)


@both_backends
def test_everyone_who_waits_hears_of_the_end(backend: str) -> None:
    async def main() -> None:
        errors: list[str] = []

        async def wait() -> None:
            try:
                await session.get(wait=60)
            except ConnectionLost as error:
                errors.append(str(error))

        async with connect(server.address) as session:
            async with anyio.create_task_group() as tasks:
                for _ in range(5):
                    tasks.start_soon(wait)
                await anyio.to_thread.run_sync(server.wait_for, lambda: server.count("get") >= 1)
                server.hang_up()
            assert len(errors) == 5
            assert session.is_broken
            assert "closed the connection" in await session.wait_broken()
            with pytest.raises(ConnectionLost, match="closed the connection"):
                await session.ping()

    with FakeServer(LINES) as server:
        server.gates["get"] = threading.Event()
        run(backend, main)


@both_backends
def test_a_cancelled_request_leaves_the_session_usable(backend: str) -> None:
    async def main() -> None:
        async with connect(server.address) as session:
            with anyio.CancelScope() as scope:
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(session.done, [(0, 1)])
                    await anyio.to_thread.run_sync(
                        server.wait_for, lambda: server.count("done") == 1
                    )
                    scope.cancel()
            assert scope.cancelled_caught
            gate.set()
            reply = await session.done([(0, 1), (1, 1)])  # and gets its own reply
            assert (reply.accepted, reply.duplicate) == (1, 1)

    with FakeServer(LINES) as server:
        gate = server.gates["done"] = threading.Event()
        run(backend, main)


@both_backends
def test_a_request_that_was_sent_in_part_ends_the_session(backend: str) -> None:
    async def main() -> None:
        outcomes: list[Pending[Okay]] = []
        lost: list[ConnectionLost] = []

        async def ping() -> None:
            try:
                await session.ping()
            except ConnectionLost as error:
                lost.append(error)

        async with connect(server.address) as session:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(ping)
                await anyio.to_thread.run_sync(server.wait_for, lambda: server.count("ping") == 1)
                # The server reads nothing while it holds the ping: this cannot be sent whole.
                body = b"x" * 50_000_000 + b"\n"
                request = DoneLines(first=0, count=1, bytes=len(body))
                with anyio.move_on_after(0.2) as scope:
                    await session.post(request, decoder(Okay), outcomes.append, body)
            assert scope.cancelled_caught
            assert session.is_broken
            assert len(lost) == 1
            assert isinstance(outcomes[0].error, ConnectionLost)
            with pytest.raises(ConnectionLost, match="half-way"):
                await session.ping()

    with FakeServer(LINES) as server:
        server.gates["ping"] = threading.Event()
        run(backend, main)


@both_backends
def test_a_refusal_is_an_exception_with_its_code(backend: str) -> None:
    async def main() -> None:
        async with connect(server.address) as session:
            with pytest.raises(RequestRefused, match="not yours") as caught:
                await session.fail(0)
            assert caught.value.code == "not-held"
            await session.ping()  # the session goes on

    with FakeServer(LINES) as server:
        server.refuse["fail"].append(Refusal(error=ErrorCode.NOT_HELD, message="not yours"))
        run(backend, main)


@both_backends
@pytest.mark.parametrize(
    "answer",
    [b"HTTP/1.1 400\r\n", b"{}\n", b'{"ok":true,"status":"what"}\n', encode_reply(Okay()) * 2],
)
def test_a_server_out_of_step_is_left(backend: str, answer: bytes) -> None:
    async def main() -> None:
        async with connect(server.address) as session:
            if answer == encode_reply(Okay()) * 2:
                await session.ping()
                await session.wait_broken()
            with pytest.raises(ConnectionLost, match="does not speak the protocol"):
                await session.get()

    with FakeServer(LINES) as server:
        server.answer["get"] = server.answer["ping"] = lambda _: answer
        run(backend, main)


@both_backends
def test_exceptions_of_the_body_come_out_as_they_are(backend: str) -> None:
    async def main() -> None:
        with pytest.raises(KeyError, match="mine"):
            async with connect(server.address):
                raise KeyError("mine")

    with FakeServer(LINES) as server:
        run(backend, main)


@both_backends
def test_no_server_is_one_clear_sentence(backend: str) -> None:
    async def main() -> None:
        with pytest.raises(ConnectionLost) as caught:
            async with connect(address):
                pass
        assert str(caught.value).startswith(f"No connection to tcp://{address}: ")
        assert "refused" in str(caught.value)

    with FakeServer([]) as server:
        address = server.address
    run(backend, main)


@both_backends
def test_no_address_says_what_to_do(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        with pytest.raises(UsageError, match="TRIOLINE_ADDRESS"):
            async with connect():
                pass

    monkeypatch.delenv("TRIOLINE_ADDRESS", raising=False)
    run(backend, main)


@both_backends
def test_a_session_is_taken_up_again_with_its_leases(backend: str) -> None:
    async def main() -> None:
        async with connect(server.address) as session:
            await session.get(3)
            name = session.hello.session
        assert server.holder == {0: name, 1: name, 2: name}
        async with connect(server.address, session=name) as session:
            assert session.hello.session == name
            assert (await session.extend()).lost == []
            assert await session.release([0]) == 1
            assert await session.release() == 2

    with FakeServer(LINES) as server:
        run(backend, main)


@both_backends
def test_a_further_request_ends_a_wait(backend: str) -> None:
    async def main() -> None:
        answers: list[object] = []

        async def wait() -> None:
            answers.append(await session.get(wait=60))

        async with connect(server.address) as session, anyio.create_task_group() as tasks:
            tasks.start_soon(wait)
            await anyio.to_thread.run_sync(server.wait_for, lambda: server.count("get") == 1)
            await session.ping()
        assert len(answers) == 1
        assert isinstance(answers[0], Retry)

    with FakeServer([]) as server:
        server.is_open = True
        run(backend, main)


@both_backends
def test_the_token_comes_from_the_file_in_the_environment(
    backend: str, monkeypatch: pytest.MonkeyPatch, tmp_path: object
) -> None:
    async def main() -> None:
        async with connect() as session:
            await session.ping()
        with pytest.raises(RequestRefused) as caught:
            async with connect(token="wrong"):
                pass
        assert caught.value.code == ErrorCode.AUTH_FAILED

    with FakeServer([], token="secret") as server:
        file = f"{tmp_path}/token"
        with open(file, "w", encoding="utf-8") as stream:
            stream.write("secret\n")
        monkeypatch.setenv("TRIOLINE_TOKEN_FILE", file)
        monkeypatch.setenv("TRIOLINE_ADDRESS", server.address)
        run(backend, main)


@both_backends
def test_a_post_is_settled_once_although_nothing_could_be_sent(backend: str) -> None:
    async def main() -> None:
        outcomes: list[object] = []
        async with connect(server.address) as session:
            server.hang_up()
            await session.wait_broken()
            with pytest.raises(ConnectionLost):
                await session.post(Ping(), decoder(Okay), lambda p: outcomes.append(p.error))
        assert len(outcomes) == 1
        assert isinstance(outcomes[0], ConnectionLost)

    with FakeServer([]) as server:
        run(backend, main)


@both_backends
def test_bad_results_never_leave(backend: str) -> None:
    async def main() -> None:
        async with connect(server.address) as session:
            with pytest.raises(ValueError, match="nan"):
                await session.done([(0, float("nan"))])
            assert session.request_count == 1  # hello

    with FakeServer(LINES) as server:
        run(backend, main)
