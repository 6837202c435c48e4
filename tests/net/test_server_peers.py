"""Peers that leave, come back, fail by the thousand or say odd things: the others never suffer."""

from __future__ import annotations

import json
import resource
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from protocol_examples import Served, served

Serve = Callable[..., Served]


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    """Start ``trioline serve`` on a text of lines."""
    with ExitStack() as stack:

        def start(text: str, options: str = "") -> Served:
            (tmp_path / "in").write_text(text, encoding="utf-8")
            command = f"trioline serve in out --port 0 --linger 60 --fsync never {options}"
            return stack.enter_context(served(tmp_path, command))

        yield start


@pytest.mark.slow
def test_very_many_leases_that_run_out_together_all_come_back(serve: Serve) -> None:
    count = 6_000  # more than the writer's queue has places
    server = serve("1\n" * count, "--max-attempts 1")
    with server.connect() as wire, server.connect() as other:
        for _ in range(count // 100):
            wire.send_raw(b'{"op":"get"}\n' * 100)
            for _ in range(100):
                assert wire.reply()["status"] == "work"
        wire.ask(op="set", lease_timeout=1)
        wire.ask(op="extend")
        assert other.ask(op="get", wait=30)["items"][0] == {"id": 0, "data": 1, "attempt": 1}
        status = other.ask(op="status")
        assert (status["leased"], status["queued"], status["rejected"]) == (1, count - 1, 0)


def test_lines_that_cannot_be_given_out_hold_nobody_up(serve: Serve) -> None:
    """Each is rejected when its turn comes, which calls for the next: others are served between."""
    count = 5_000
    server = serve(f'"{"x" * 1024}"\n' * count + "1\n", "--max-line 1024")
    with server.connect() as wire, server.connect() as other:
        wire.send(b'{"op":"get","wait":60}')
        while not (rejected := other.ask(op="status")["rejected"]):
            pass
        assert rejected < count
        assert wire.reply()["items"] == [{"id": count, "data": 1, "attempt": 1}]


@pytest.mark.slow
def test_records_of_long_lines_are_not_all_in_memory_at_once(serve: Serve, tmp_path: Path) -> None:
    line, count = "x" * 1_000_000, 200
    server = serve(f'"{line}"\n' * count, "--max-attempts 1")
    with server.connect() as wire:
        held: list[int] = []
        while len(held) < count:
            held += [item["id"] for item in wire.ask(op="get", max=count)["items"]]
        results = [{"id": number, "error": "no"} for number in held]
        before = peak_bytes(server)
        reply = wire.ask(op="done", results=results)
        assert (reply["accepted"], reply["failed"]) == (0, count)
        assert peak_bytes(server) - before < 80_000_000, "the records are 200 MB"
    assert (tmp_path / "out.rejected").read_bytes().count(b"\n") == count


def peak_bytes(server: Served) -> int:
    """The most memory that a server has had."""
    status = Path(f"/proc/{server.process.pid}/status").read_text(encoding="ascii")
    (peak,) = (text for text in status.splitlines() if text.startswith("VmHWM"))
    return int(peak.split()[1]) * 1024


def test_a_connection_that_ended_while_it_waited_loses_its_lines_after_the_grace(
    serve: Serve,
) -> None:
    server = serve("1\n2\n", "--grace 0.3 --window 2")
    with server.connect() as dead, server.connect() as live:
        dead.ask(op="hello", worker="dead")
        assert dead.ask(op="get", max=2)["items"][0]["id"] == 0
        dead.send(b'{"op":"get","wait":30}')
        dead.half_close()
        got = live.ask(op="get", max=2, wait=20)
        assert [item["id"] for item in got["items"]] == [0], "lines lost together are on probation"
        assert got["items"][0]["attempt"] == 1, "a loss is no failed attempt"


def test_the_former_connection_of_a_session_waits_no_more(serve: Serve) -> None:
    server = serve("1\n")
    with server.connect() as old, server.connect() as new, server.connect() as holder:
        session = old.ask(op="hello")["session"]
        assert holder.ask(op="get")["status"] == "work"
        old.send(b'{"op":"get","wait":30}')
        wire_is_waiting(server)
        assert new.ask(op="hello", session=session)["session"] == session
        assert old.reply()["status"] == "retry"
        new.send(b'{"op":"get","wait":30}')
        assert holder.ask(op="release")["released"] == 1
        assert new.reply()["status"] == "work"


def test_who_waits_longest_is_served_first_whatever_the_wait(serve: Serve) -> None:
    server = serve("1\n2\n3\n")
    with ExitStack() as stack:
        holder = stack.enter_context(server.connect())
        assert len(holder.ask(op="get", max=3)["items"]) == 3
        waiting = [stack.enter_context(server.connect()) for _ in range(3)]
        for wire, seconds in zip(waiting, (30, 29, 30), strict=True):
            wire.send(b'{"op":"get","wait":%d}' % seconds)
            wire_is_waiting(server)
        for expected, wire in enumerate(waiting):
            holder.ask(op="release", ids=[expected])
            assert wire.reply()["items"][0]["id"] == expected


def wire_is_waiting(server: Served) -> None:
    """Let requests that were sent before this be read: the server answers in between."""
    with server.connect() as other:
        other.ask(op="ping")


@pytest.mark.parametrize(
    "header",
    [
        b'{"op":"done","first":0,"count":2,"ref":"\\udfff"}',
        b'{"op":"done","first":0,"count":2,"x":"' + b"x" * 4_200_000 + b'"}',
        b'{"op":"done","first":"0","count":2}',
    ],
)
def test_raw_lines_behind_a_refused_header_are_never_carried_out(
    serve: Serve, header: bytes
) -> None:
    with serve("1\n2\n").connect() as wire:
        assert wire.ask(op="get", max=2)["status"] == "work"
        wire.send(header + b'\n{"op":"set","paused":true}\n{"op":"bye"}')
        assert wire.reply()["ok"] is False
        assert wire.ask(op="status")["paused"] is False


def test_a_job_that_completes_while_it_drains_is_complete(serve: Serve, tmp_path: Path) -> None:
    server = serve("1\n2\n")
    with server.connect() as wire:
        assert wire.ask(op="get", max=2)["status"] == "work"
        server.process.send_signal(signal.SIGTERM)
        while wire.ask(op="status")["state"] != "draining":
            pass
        wire.ask(op="done", results=[{"id": 0, "result": 1}, {"id": 1, "result": 2}])
    assert server.wait() == 0
    assert (tmp_path / "out").read_bytes() == b"1\n2\n"


def test_a_drain_ends_at_once_when_the_last_line_is_given_back(serve: Serve) -> None:
    server = serve("1\n", "--drain 60")
    with server.connect() as wire:
        assert wire.ask(op="get")["status"] == "work"
        server.process.send_signal(signal.SIGTERM)
        while wire.ask(op="status")["state"] != "draining":
            pass
        assert wire.ask(op="release")["released"] == 1
    assert server.wait() == 4


def test_names_and_notes_cannot_write_on_a_terminal(serve: Serve) -> None:
    with serve("1\n").connect() as wire:
        wire.ask(op="hello", worker="\x1b[2Jevil\nline")
        wire.ask(op="get")
        wire.ask(op="note", text="\x1b]0;title\x07")
        (worker,) = wire.ask(op="status")["workers"]
    assert (worker["name"], worker["note"]) == ("\ufffd[2Jevil\ufffdline", "\ufffd]0;title\ufffd")


def test_silent_connections_leave_the_job_its_own_files(tmp_path: Path) -> None:
    script = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_NOFILE, (80, 80)); "
        "from trioline.cli.main import main; main()"
    )
    (tmp_path / "in").write_text("1\n2\n", encoding="ascii")
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] > 200
    command = [sys.executable, "-c", script]
    with ExitStack() as stack:
        server = stack.enter_context(
            served(tmp_path, "trioline serve in out --port 0 --linger 60", command)
        )
        worker = stack.enter_context(server.connect())
        assert len(worker.ask(op="get", max=2)["items"]) == 2
        silent = [stack.enter_context(server.connect()) for _ in range(100)]
        refused = json.loads(silent[-1].receive())
        assert refused["error"] == "too-many"
        assert worker.ask(op="done", results=[{"id": 1, "result": 2}])["accepted"] == 1
        assert worker.ask(op="done", results=[{"id": 0, "result": 1}])["accepted"] == 1
        assert worker.ask(op="get", wait=20)["status"] == "complete"


def test_a_get_right_behind_the_last_done_hears_that_it_is_complete(serve: Serve) -> None:
    with serve("1\n2\n").connect() as wire:
        assert wire.ask(op="get", max=2)["status"] == "work"
        wire.send(
            b'{"op":"done","results":[{"id":0,"result":1},{"id":1,"result":2}]}\n{"op":"get"}'
        )
        assert wire.reply()["accepted"] == 2
        assert wire.reply() == {"ok": True, "status": "complete"}


def test_whatever_comes_before_the_token_is_told_so(serve: Serve, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("secret", encoding="ascii")
    server = serve("1\n", "--token-file token")
    for message in (b'{"op":"nonsense"}', b'{"op":"get","max":-1}', b'{"x":1}'):
        with server.connect() as wire:
            wire.send(message)
            assert wire.reply()["error"] == "auth-required"
            assert wire.receive() == b""
