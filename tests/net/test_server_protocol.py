"""What protocol.md promises without an example: a real server against odd and hostile peers."""

from __future__ import annotations

import json
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from protocol_examples import END, Served, Wire, served

from trioline.config import (
    MAX_BATCH,
    MAX_HELD_LEASES,
    MAX_HELLO_BYTES,
    MAX_PIPELINED,
    MAX_RESULTS,
    MAX_SEND_SECONDS,
    JobSettings,
    LeaseSettings,
    ServerSettings,
)
from trioline.server import connection as connection_module
from trioline.server.app import Server
from trioline.server.outbox import SEND_BYTES, Outbox
from trioline.server.transport import Transport
from trioline.storage.job import Job

Serve = Callable[..., Served]
TAKEN = {"ok": True, "accepted": 1, "duplicate": 0, "failed": 0}
RETRY = {"ok": True, "status": "retry", "retry_in": 1.0}
PONG = b'{"ok":true}'


@contextmanager
def starting(folder: Path) -> Iterator[Serve]:
    """Start ``trioline serve`` on so many lines; a second call is the same job again."""
    with ExitStack() as stack:

        def start(lines: int = 3, options: str = "", fsync: str = "never") -> Served:
            (folder / "in").write_text("".join(f"{n}\n" for n in range(lines)), encoding="ascii")
            (folder / "token").write_text("secret", encoding="ascii")
            command = f"trioline serve in out --port 0 --linger 60 --fsync {fsync} {options}"
            return stack.enter_context(served(folder, command))

        yield start


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    """``starting`` in a folder of the test's own."""
    with starting(tmp_path) as start:
        yield start


@pytest.fixture
def wire(serve: Serve) -> Iterator[Wire]:
    """A connection to a server of three lines."""
    with serve().connect() as wire:
        yield wire


@pytest.fixture(scope="module")
def refusing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server of three lines for many tests: each leaves no result and no lease behind."""
    with starting(tmp_path_factory.mktemp("refusing")) as start:
        yield start()


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """The same with a token."""
    with starting(tmp_path_factory.mktemp("guarded")) as start:
        yield start(options="--token-file token")


@pytest.fixture
def refused(refusing: Served) -> Iterator[Wire]:
    """A new connection to the server of many tests."""
    with refusing.connect() as wire:
        yield wire


def ids(reply: dict[str, Any]) -> list[int]:
    """The lines in a reply to ``get``."""
    return [item["id"] for item in reply["items"]]


def assert_refused(wire: Wire, code: str, *, closes: bool) -> None:
    """The next reply is a refusal; the connection goes on, or not."""
    reply = wire.reply()
    assert (reply["ok"], reply["error"]) == (False, code)
    assert reply["message"]
    if closes:
        assert wire.receive() == END
    else:
        assert wire.ask(op="ping") == {"ok": True}


# --- the stream ----------------------------------------------------------------------------------


def test_requests_by_the_thousand_are_answered_in_order(wire: Wire) -> None:
    count = 2 * MAX_PIPELINED
    wire.send_raw(b"".join(b'{"op":"ping","ref":%d}\n' % n for n in range(count)))
    wire.half_close()
    assert [wire.reply()["ref"] for _ in range(count)] == list(range(count))
    assert wire.receive() == END


def test_results_by_the_thousand_one_by_one_are_answered_in_order(serve: Serve) -> None:
    count = 2 * MAX_PIPELINED
    with serve(count, fsync="always").connect() as wire:
        wire.ask(op="get", max=count)
        wire.send_raw(
            b"".join(
                b'{"op":"done","results":[{"id":%d,"result":%d}],"ref":%d}\n' % (n, n, n)
                for n in reversed(range(count))
            )
        )
        replies = [wire.reply() for _ in range(count)]
        assert replies == [{**TAKEN, "ref": n} for n in reversed(range(count))]
        assert wire.ask(op="get", wait=20)["status"] == "complete"


def test_bytes_may_come_one_by_one(wire: Wire) -> None:
    for byte in b'{"op":"get","max":2}\r\n{"op":"done","first":0,"count":2}\n"a"\n"b"\n':
        wire.send_raw(bytes([byte]))
    assert ids(wire.reply()) == [0, 1]
    assert wire.reply()["accepted"] == 2


def test_a_half_message_at_the_end_is_dropped(wire: Wire) -> None:
    wire.send_raw(b'{"op":"ping"}\n{"op":"ping"}')
    wire.half_close()
    assert wire.receive() == PONG
    assert wire.receive() == END


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # TLS
        b"*1\r\n$4\r\nPING\r\n",  # Redis
        b"\n",
        b' {"op":"ping"}\n',
        b'\xef\xbb\xbf{"op":"ping"}\n',
        b"[]\n",
        b"\0",
        b"{}{}\n",
        b'{"op":"ping",}\n',
        b'{"op":"\xff"}\n',
    ],
)
def test_what_is_no_message_is_refused_and_closed(refused: Wire, data: bytes) -> None:
    refused.send_raw(data + b"x" * 100_000)
    assert_refused(refused, "bad-json", closes=True)


def test_a_strange_peer_harms_nobody_else(serve: Serve) -> None:
    server = serve()
    with server.connect() as wire:
        for _ in range(20):
            with server.connect() as stranger:
                stranger.send_raw(b"GET /")
        assert wire.ask(op="ping") == {"ok": True}


@pytest.mark.parametrize("head", ['{"ref":7}', '{"op":5,"ref":7}', '{"op":"","ref":7}'])
def test_a_request_without_op_gets_its_ref_back(refused: Wire, head: str) -> None:
    refused.send(head.encode())
    reply = refused.reply()
    assert (reply["ok"], reply["ref"]) == (False, 7)
    assert refused.ask(op="ping") == {"ok": True}


# --- raw lines behind a refused request ----------------------------------------------------------


@pytest.mark.parametrize(
    ("head", "code"),
    [
        ('{"op":"done","first":0,"count":2,"bytes":4}', "bad-request"),
        ('{"op":"done","first":0,"count":2,"bytes":400}', "bad-request"),
        ('{"op":"done","first":0,"count":2,"bytes":"x"}', "bad-request"),
        ('{"op":"done","first":-1,"count":2}', "bad-request"),
        ('{"op":"done","first":"0","count":2}', "bad-request"),
        ('{"op":"done","count":2}', "bad-request"),
        ('{"op":"done","first":0,"count":2,"results":[]}', "bad-request"),
        ('{"op":"done","first":0,"count":2,"ref":{}}', "bad-request"),
        ('{"op":"done","first":2,"count":2}', "unknown-id"),
        ('{"op":"done","first":9007199254740990,"count":2}', "unknown-id"),
        ('{"op":"done","first":0,"count":2}', "bad-result"),
    ],
)
def test_raw_lines_of_a_refused_done_are_dropped(refused: Wire, head: str, code: str) -> None:
    assert ids(refused.ask(op="get", max=3)) == [0, 1, 2]
    refused.send_raw(head.encode() + b'\n{"op":"bye"}\nNaN\n')
    assert_refused(refused, code, closes=False)
    assert refused.ask(op="status")["leased"] == 3
    assert refused.ask(op="release")["released"] == 3


@pytest.mark.parametrize("count", ['"2"', "2.0", "true"])
def test_a_count_that_is_no_whole_number_cannot_be_followed(refused: Wire, count: str) -> None:
    refused.send_raw(b'{"op":"done","first":0,"count":%s}\n1\n2\n' % count.encode())
    assert refused.reply()["error"] == "bad-request"
    assert_refused(refused, "bad-json", closes=True)


# --- waiting -------------------------------------------------------------------------------------


def test_a_done_is_answered_before_the_get_behind_it_has_work(serve: Serve) -> None:
    server = serve(2)
    with server.connect() as one, server.connect() as other:
        assert ids(one.ask(op="get")) == [0]
        assert ids(other.ask(op="get")) == [1]
        one.send(b'{"op":"done","first":0,"count":1}\n0\n{"op":"get","wait":60}')
        assert one.reply() == TAKEN
        assert other.ask(op="release") == {"ok": True, "released": 1}
        assert ids(one.reply()) == [1]


def test_a_whole_request_ends_the_wait_and_half_a_one_does_not(serve: Serve) -> None:
    server = serve(2)
    with server.connect() as one, server.connect() as other:
        assert ids(other.ask(op="get", max=2)) == [0, 1]
        one.send_raw(b'{"op":"get","wait":60}\n{"op":"pi')
        assert other.ask(op="release", ids=[1]) == {"ok": True, "released": 1}
        assert ids(one.reply()) == [1]
        one.send_raw(b'ng"}\n{"op":"get","wait":60}\n')
        assert one.receive() == PONG
        one.send(b'{"op":"ping"}')
        assert one.reply() == RETRY
        assert one.receive() == PONG


def test_a_wait_survives_a_half_close(serve: Serve) -> None:
    server = serve(1)
    with server.connect() as one, server.connect() as other:
        assert ids(other.ask(op="get")) == [0]
        one.send(b'{"op":"get","wait":60}')
        one.half_close()
        assert other.ask(op="release") == {"ok": True, "released": 1}
        assert ids(one.reply()) == [0]
        assert one.receive() == END


def test_a_wait_ends_with_its_time(serve: Serve) -> None:
    server = serve(1)
    with server.connect() as one, server.connect() as other:
        other.ask(op="get")
        assert one.ask(op="get", wait=0.05) == RETRY


# --- tokens --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("first", "code"),
    [
        (b'{"op":"ping"}', "auth-required"),
        (b'{"op":"done","first":0,"count":1}', "auth-required"),
        (b'{"op":"done","first":0,"count":1000000}', "auth-required"),
        (b'{"op":"hello"}', "auth-failed"),
        (b'{"op":"hello","token":"Secret"}', "auth-failed"),
        (b'{"op":"hello","token":"secret "}', "auth-failed"),
        (b'{"op":"hello","token":"s\xc3\xa9cret"}', "auth-failed"),
        (b'{"op":"hello","worker":"%s"}' % (b"x" * MAX_HELLO_BYTES), "line-too-long"),
        (b'{"op":"hello","protocol":2,"token":"secret"}', "version"),
        (b"hello", "bad-json"),
    ],
)
def test_without_the_token_nobody_comes_in(guarded: Served, first: bytes, code: str) -> None:
    with guarded.connect() as wire:
        wire.send(first)
        wire.send(b'{"op":"get"}')
        assert_refused(wire, code, closes=True)


def test_a_hello_that_does_not_fit_may_be_said_again(serve: Serve) -> None:
    with serve(options="--token-file token").connect() as wire:
        assert wire.ask(op="hello", token=5)["error"] == "bad-request"
        assert wire.ask(op="hello", token="secret")["ok"]
        assert wire.ask(op="hello", token="secret")["error"] == "bad-request"
        assert wire.ask(op="hello", token="wrong")["error"] == "auth-failed"
        assert wire.receive() == END


def test_what_comes_right_behind_the_token_may_be_long(serve: Serve) -> None:
    """The limit for strangers once held for all that came in the same packet as the hello."""
    with serve(options="--token-file token").connect() as wire:
        result = json.dumps("x" * 2 * MAX_HELLO_BYTES)
        wire.send_raw(
            b'{"op":"hello","token":"secret"}\n{"op":"get"}\n'
            b'{"op":"done","results":[{"id":0,"result":%s}]}\n' % result.encode()
        )
        assert wire.reply()["session"]
        assert ids(wire.reply()) == [0]
        assert wire.reply() == TAKEN


# --- sessions ------------------------------------------------------------------------------------


def test_without_hello_lines_are_back_at_once(serve: Serve) -> None:
    server = serve(1, "--grace 3600")
    with server.connect() as one, server.connect() as other:
        assert ids(one.ask(op="get")) == [0]
        other.send(b'{"op":"get","wait":60}')
        one.close()
        (item,) = other.reply()["items"]
        assert item["attempt"] == 1


def test_with_hello_lines_are_back_after_the_grace(serve: Serve) -> None:
    server = serve(1, "--grace 0.1")
    with server.connect() as one, server.connect() as other:
        session = one.ask(op="hello")["session"]
        assert ids(one.ask(op="get")) == [0]
        one.close()
        (item,) = other.ask(op="get", wait=60)["items"]
        assert item["attempt"] == 1
        assert other.ask(op="hello", session=session)["session"] != session


def test_a_second_connection_takes_the_session_over(serve: Serve) -> None:
    server = serve(3, "--grace 3600")
    with server.connect() as old, server.connect() as new:
        session = old.ask(op="hello")["session"]
        lease = old.ask(op="get")["lease"]
        assert ids(new.ask(op="get")) == [1]
        assert new.ask(op="hello", session=session)["session"] == session
        assert old.ask(op="fail", id=0)["error"] == "not-held"
        assert old.ask(op="extend", lease=lease)["error"] == "not-held"
        assert old.ask(op="release") == {"ok": True, "released": 0}
        assert new.ask(op="extend", lease=lease)["ok"]
        assert ids(old.ask(op="get")) == [1]  # what the new one held before went back
        old.close()
        assert new.ask(op="fail", id=0)["state"] == "queued"


def test_a_detached_client_comes_back_any_time_or_not_at_all(serve: Serve) -> None:
    server = serve(2, "--grace 0")
    with server.connect() as shot:
        session = shot.ask(op="hello", detach=True)["session"]
        assert ids(shot.ask(op="get", max=2)) == [0, 1]
    with server.connect() as stranger:
        assert stranger.ask(op="get", wait=0.1) == RETRY
        assert stranger.ask(op="fail", id=0)["error"] == "not-held"
        assert stranger.ask(op="done", results=[{"id": 0, "result": 1}]) == TAKEN
        with server.connect() as shot:
            assert shot.ask(op="hello", session=session, detach=True)["session"] == session
            assert shot.ask(op="extend")["lost"] == [0]
            assert shot.ask(op="bye") == {"ok": True}
            assert shot.receive() == END
        assert ids(stranger.ask(op="get")) == [1]


def test_a_session_of_another_life_is_a_new_one(wire: Wire) -> None:
    reply = wire.ask(op="hello", session="of another life")
    assert reply["ok"]
    assert reply["session"] != "of another life"


def test_nothing_behind_bye_is_read(serve: Serve) -> None:
    server = serve(1)
    with server.connect() as wire:
        wire.ask(op="get")
        wire.send(b'{"op":"bye"}\n{"op":"done","first":0,"count":1}\n0')
        assert wire.receive() == PONG
        assert wire.receive() == END
    with server.connect() as wire:
        assert wire.ask(op="status")["queued"] == 1


# --- limits --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [
        b'{"op":"ping","x":"%s"}\n' % (b"x" * 1024),
        b'{"op":"ping","x":"' + b"x" * 1024,
        b'{"op":"done","first":0,"count":2}\n1\n"%s"\n' % (b"x" * 1024),
        b'{"op":"done","first":0,"count":2}\n1\n"' + b"x" * 1024,
    ],
)
def test_a_line_over_the_limit_is_refused_before_it_ends(serve: Serve, data: bytes) -> None:
    with serve(options="--max-line 1024").connect() as wire:
        wire.ask(op="get", max=3)
        wire.send_raw(data)
        assert_refused(wire, "line-too-long", closes=True)


def test_a_line_at_the_limit_is_fine(serve: Serve) -> None:
    with serve(options="--max-line 1024").connect() as wire:
        wire.ask(op="get", max=3)
        wire.send(b'{"op":"done","first":0,"count":1}\n"%s"' % (b"x" * 1022))
        assert wire.reply() == TAKEN
        wire.send(b'{"op":"ping"%s}' % (b" " * 1011))
        assert wire.receive() == PONG


def test_too_many_results_in_lines_form_close(wire: Wire) -> None:
    wire.send(b'{"op":"done","first":0,"count":%d,"ref":1}' % (MAX_RESULTS + 1))
    reply = wire.reply()
    assert (reply["error"], reply["ref"]) == ("too-large", 1)
    assert wire.receive() == END


def test_too_many_results_in_items_form_are_refused(wire: Wire) -> None:
    wire.ask(op="get")
    row = b'{"id":0,"result":0}'
    wire.send(b'{"op":"done","results":[' + b",".join([row] * (MAX_RESULTS + 1)) + b"]}")
    assert_refused(wire, "too-large", closes=False)
    wire.send(b'{"op":"done","results":[' + b",".join([row] * MAX_RESULTS) + b"]}")
    assert wire.reply() == {**TAKEN, "duplicate": MAX_RESULTS - 1}


def test_a_get_over_max_batch_is_capped(serve: Serve) -> None:
    with serve(MAX_BATCH + 5).connect() as wire:
        reply = wire.ask(op="get", max=10 * MAX_BATCH, form="lines")
        assert (reply["first"], reply["count"]) == (0, MAX_BATCH)
        body = wire.receive_raw(reply["bytes"])
        assert body == b"".join(b"%d\n" % n for n in range(MAX_BATCH))
        assert wire.ask(op="get", max=MAX_BATCH, form="lines")["count"] == 5


def test_a_connection_holds_only_so_many_leases(serve: Serve) -> None:
    with serve(MAX_HELD_LEASES + 1).connect() as wire:
        wire.send_raw(b'{"op":"get","form":"lines"}\n' * (MAX_HELD_LEASES + 1))
        for number in range(MAX_HELD_LEASES):
            assert wire.reply()["first"] == number
            assert wire.receive() == b"%d" % number
        assert wire.reply()["error"] == "too-many"
        assert wire.ask(op="release", ids=[5])["released"] == 1
        assert ids(wire.ask(op="get")) == [5]


# --- results -------------------------------------------------------------------------------------


def test_an_id_that_was_never_given_out_is_unknown_and_nothing_is_taken(wire: Wire) -> None:
    wire.ask(op="get", max=2)
    for stranger in (2, 3, 2**53 - 1):
        rows = [{"id": 0, "result": 0}, {"id": stranger, "result": 1}]
        assert wire.ask(op="done", results=rows)["error"] == "unknown-id"
    for misfit in (-1, 2**53, 1.0, "0", None):
        misfits = [{"id": 0, "result": 0}, {"id": misfit, "result": 1}]
        assert wire.ask(op="done", results=misfits)["error"] == "bad-request"
    assert wire.ask(op="status")["leased"] == 2


def test_of_several_results_in_one_message_the_first_counts(serve: Serve) -> None:
    server = serve(2)
    with server.connect() as wire:
        wire.ask(op="get", max=2)
        rows: list[dict[str, object]] = [
            {"id": 0, "result": "first"},
            {"id": 0, "error": "second"},
            {"id": 1, "error": "first"},
            {"id": 1, "result": "second"},
        ]
        reply = wire.ask(op="done", results=rows)
        assert reply == {"ok": True, "accepted": 1, "duplicate": 2, "failed": 1}
        (item,) = wire.ask(op="get")["items"]
        assert (item["id"], item["attempt"]) == (1, 2)
        wire.ask(op="done", results=[{"id": 1, "result": 1}])
        assert wire.ask(op="get", wait=20)["status"] == "complete"
    assert (server.folder / "out").read_text() == '"first"\n1\n'


def test_null_is_a_result_and_no_line_nor_error(serve: Serve) -> None:
    server = serve(3)
    with server.connect() as wire:
        wire.ask(op="get", max=3)
        rows: list[dict[str, object]] = [
            {"id": 0, "result": None, "line": None, "error": None},
            {"id": 1, "line": "1", "error": None},
            {"id": 2, "error": "no", "retry": False, "line": None},
        ]
        reply = wire.ask(op="done", results=rows)
        assert reply == {"ok": True, "accepted": 2, "duplicate": 0, "failed": 1}
        assert wire.ask(op="get", wait=20)["status"] == "complete"
    assert (server.folder / "out").read_text() == "null\n1\nnull\n"


@pytest.mark.parametrize(
    ("message", "code"),
    [
        (b'{"op":"done","results":[{"id":0,"result":null,"line":"1"}]}', "bad-request"),
        (b'{"op":"get","wait":1e999}', "bad-request"),
        (b'{"op":"get","wait":-1}', "bad-request"),
        (b'{"op":"get","max":0}', "bad-request"),
        (b'{"op":"get","max":1.5}', "bad-request"),
        (b'{"op":"get","form":"xml"}', "bad-request"),
        (b'{"op":"get","stage":"second"}', "bad-request"),
        (b'{"op":"done","results":[{"id":0,"line":"NaN"}]}', "bad-result"),
        (b'{"op":"done","results":[{"id":0,"line":"1\\n2"}]}', "bad-result"),
        (b'{"op":"done","results":[{"id":0,"line":""}]}', "bad-result"),
        (b'{"op":"done","results":[{"id":0}]}', "bad-request"),
        (b'{"op":"done","results":[{"id":0,"result":1,"line":"1"}]}', "bad-request"),
        (b'{"op":"done","results":[{"id":0,"result":"\\ud800"}]}', "bad-result"),
        (b'{"op":"done","results":[{"id":0,"line":"\\"\\\\ud800\\""}]}', "bad-result"),
        (b'{"op":"done","first":0,"count":1}\n"\\ud800"', "bad-result"),
        (b'{"op":"done","first":0,"count":1}\nNaN', "bad-result"),
        (b'{"op":"done","first":0,"count":1}\n', "bad-result"),
        (b'{"op":"done","first":0,"count":1}\n"\xff"', "bad-result"),
        (b'{"op":"done","first":0,"count":1}\n' + b"[" * 100_000, "bad-result"),
        (b'{"op":"done","first":0,"count":1}\n' + b"[" * 100_000 + b"]" * 100_000, "bad-result"),
        (b'{"op":"note","text":"\\udfff"}', "bad-request"),
        (b'{"op":"note","text":1}', "bad-request"),
        (b'{"op":"set","lease_timeout":0}', "bad-request"),
    ],
)
def test_odd_values_are_refused_and_nothing_is_taken(
    refused: Wire, message: bytes, code: str
) -> None:
    refused.ask(op="get")
    refused.send(message)
    assert_refused(refused, code, closes=False)
    status = refused.ask(op="status")
    assert (status["leased"], status["written"], status["ahead"]) == (1, 0, 0)
    assert refused.ask(op="release")["released"] == 1


@pytest.mark.parametrize(
    "message",
    [
        b'{"op":"get","wait":NaN}',
        b'{"op":"get","wait":Infinity}',
        b'{"op":"done","results":[{"id":0,"result":NaN}]}',
        b'{"op":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"op":"ping","x":' + b'{"a":' * 100_000,
    ],
)
def test_what_is_no_json_closes_also_who_holds_a_line(wire: Wire, message: bytes) -> None:
    wire.ask(op="get")
    wire.send(message)
    assert_refused(wire, "bad-json", closes=True)


def test_with_text_any_utf8_is_a_result(serve: Serve) -> None:
    server = serve(3, "--text")
    with server.connect() as wire:
        assert [item["line"] for item in wire.ask(op="get", max=3)["items"]] == ["0", "1", "2"]
        wire.send(b'{"op":"done","first":0,"count":1}\ncaf\xe9')
        assert_refused(wire, "bad-result", closes=False)
        wire.send(b'{"op":"done","first":0,"count":2}\nna NaN\0\r\n\n{"op":"get","wait":0}')
        assert wire.reply()["accepted"] == 2
        assert wire.reply() == RETRY
        wire.ask(op="done", results=[{"id": 2, "line": "\u2028é"}])
        assert wire.ask(op="get", wait=20)["status"] == "complete"
    assert (server.folder / "out").read_bytes() == "na NaN\0\r\n\n\u2028é\n".encode()


# --- the server's end ----------------------------------------------------------------------------


def test_a_drain_tells_those_who_wait_and_takes_what_is_under_way(serve: Serve) -> None:
    server = serve(2)
    with server.connect() as worker, server.connect() as other:
        assert ids(worker.ask(op="get", max=2)) == [0, 1]
        other.send(b'{"op":"get","wait":60}')
        server.process.send_signal(signal.SIGTERM)
        assert other.reply() == RETRY
        assert worker.ask(op="status")["state"] == "draining"
        with pytest.raises(ConnectionRefusedError):
            server.connect()
        assert worker.ask(op="get", wait=60) == RETRY
        assert worker.ask(op="release", ids=[1])["released"] == 1
        assert worker.ask(op="done", results=[{"id": 0, "result": 1}]) == TAKEN
        assert worker.receive() == END
    assert server.wait() == 4


def test_after_a_kill_the_same_results_are_duplicates(serve: Serve) -> None:
    server = serve(3, fsync="always")
    with server.connect() as wire:
        job = wire.ask(op="hello")["job"]
        wire.ask(op="get", max=3)
        assert wire.ask(op="done", results=[{"id": 1, "result": 1}]) == TAKEN
        server.process.kill()
        assert wire.receive() == END
    with serve(3, fsync="always").connect() as wire:
        assert wire.ask(op="hello")["job"] == job
        rows = [{"id": n, "result": "again"} for n in (1, 2)]
        assert wire.ask(op="done", results=rows) == {**TAKEN, "duplicate": 1}
        assert wire.ask(op="done", results=[{"id": 3, "result": 1}])["error"] == "unknown-id"
        assert ids(wire.ask(op="get", max=3)) == [0]
        assert wire.ask(op="done", results=[{"id": 0, "result": 0}]) == TAKEN
        assert wire.ask(op="get", wait=20)["status"] == "complete"
    assert (server.folder / "out").read_text() == '0\n1\n"again"\n'


# --- with other limits, in this process ----------------------------------------------------------


async def _talk(tmp_path: Path, settings: ServerSettings, *sends: bytes) -> list[bytes]:
    """What each of several connections, opened one after the other, gets until its end."""
    (tmp_path / "in").write_text("1\n")
    paths = JobSettings(
        input=tmp_path / "in", output=tmp_path / "out", rejected=tmp_path / "rejected"
    )
    got = []
    job = Job.open(paths)
    try:
        with trio.fail_after(20):
            async with trio.open_nursery() as nursery:
                server = Server(job, LeaseSettings(), settings)
                (address,) = await nursery.start(server.run)
                streams = [await trio.open_tcp_stream("127.0.0.1", address.port) for _ in sends]
                for stream, data in reversed(list(zip(streams, sends, strict=True))):
                    async with stream:
                        await stream.send_all(data)
                        got.append(b"".join([part async for part in stream]))
                nursery.cancel_scope.cancel()
    finally:
        job.close()
    return got


async def test_who_says_no_hello_is_closed_without_a_word(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection_module, "MAX_HELLO_SECONDS", 0.05)
    settings = ServerSettings(port=0, token="secret")
    assert await _talk(tmp_path, settings, b'{"op":"hello","tok') == [b""]


async def test_one_connection_too_many_is_told_so(tmp_path: Path) -> None:
    settings = ServerSettings(port=0, max_connections=1)
    turned_away, served_one = await _talk(tmp_path, settings, b'{"op":"bye"}\n', b"")
    assert json.loads(turned_away)["error"] == "too-many"
    assert served_one == PONG + b"\n"


async def _take_slowly(pieces: int, pause_seconds: float) -> int:
    """How many bytes of a long reply a peer gets that pauses before each piece of it."""
    ours, theirs = (
        trio.SocketStream(trio.socket.from_stdlib_socket(end)) for end in socket.socketpair()
    )
    got = 0
    async with ours, theirs, trio.open_nursery() as nursery:
        outbox = Outbox(Transport(ours), nursery)
        outbox.reserve().fill(b"x" * pieces * SEND_BYTES)
        for piece in range(pieces):
            await trio.sleep(pause_seconds)
            while got < (piece + 1) * SEND_BYTES:
                got += len(await theirs.receive_some((piece + 1) * SEND_BYTES - got))
    return got


async def test_a_slow_peer_is_not_cut_off(autojump_clock: trio.testing.MockClock) -> None:
    assert await _take_slowly(5, MAX_SEND_SECONDS * 0.45) == 5 * SEND_BYTES


async def test_a_silent_peer_is_cut_off(autojump_clock: trio.testing.MockClock) -> None:
    with pytest.RaisesGroup(trio.BrokenResourceError):
        await _take_slowly(2, MAX_SEND_SECONDS * 1.1)
