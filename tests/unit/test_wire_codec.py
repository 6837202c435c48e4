"""Messages to bytes and back: what one side writes the other reads, and nothing else passes."""

from __future__ import annotations

import json
import math
import re
import tracemalloc
from typing import Any

import attrs
import msgspec
import pytest
from msgspec import UNSET, Raw

from trioline.config import MAX_PLAIN_BYTES
from trioline.errors import ErrorCode, LocalProtocolError, RemoteProtocolError, RequestRefused
from trioline.snapshot import Head, Snapshot, WorkerRow
from trioline.wire import codec, envelope, messages
from trioline.wire.messages import (
    MAX_ID,
    Bye,
    Complete,
    Done,
    DoneLines,
    DoneReply,
    Drain,
    DrainReply,
    Extend,
    ExtendReply,
    Fail,
    FailReply,
    Form,
    Get,
    Hello,
    HelloReply,
    Note,
    Okay,
    Ping,
    Refusal,
    Release,
    ReleaseReply,
    Request,
    Result,
    Retry,
    Set,
    SetReply,
    Status,
    Work,
    WorkItem,
    WorkLines,
)

REQUESTS: list[Request] = [
    Hello(),
    Hello(worker="gpu-07", token="tö", detach=True, session="s", deadline=1.7e9, protocol=2),
    Get(),
    Get(max=8, wait=30.5, form=Form.LINES, stage="main"),
    Done(results=[]),
    Done(
        results=[
            Result(7, result=Raw(b'{"a": [1,\t2.50]}')),
            Result(8, line='text "\n\u2028'),
            Result(9, error="OOM", retry=False),
        ]
    ),
    DoneLines(first=0, count=1),
    DoneLines(first=MAX_ID - 1, count=MAX_ID - 1, bytes=57),
    Fail(id=9),
    Fail(id=9, error="CUDA OOM", retry=False, delay=5.0, lease=12),
    Release(),
    Release(ids=[]),
    Release(ids=[8, 9]),
    Extend(),
    Extend(lease=12),
    Note(text="120 / 400"),
    Note(text="", id=7),
    Status(),
    Set(),
    Set(lease_timeout=1600.0, max_attempts=4, paused=False, hedge=2.5),
    Set(hedge=True),
    Drain(worker="gpu-07"),
    Ping(),
    Bye(),
]

SNAPSHOT = Snapshot(
    job="j",
    state="running",
    total=None,
    written=1,
    ahead=2,
    leased=3,
    queued=4,
    rejected=5,
    rate=6.5,
    eta=None,
    progress=0.25,
    elapsed=9.0,
    head=Head(id=1, state="leased", attempt=2, worker="gpu-07", held_seconds=3.5),
    workers=(
        WorkerRow(name="a", leased=1, done=2, failed=3, connected_seconds=4.5, note=None),
        WorkerRow(name="b", leased=0, done=0, failed=0, connected_seconds=0.0, note="hi"),
        WorkerRow(
            name="c",
            leased=0,
            done=0,
            failed=9,
            connected_seconds=0.0,
            note=None,
            draining=True,
            aside_seconds=1.5,
            deadline_seconds=-2.0,
        ),
    ),
    connections=2,
    lease_timeout=900.0,
    max_attempts=3,
    paused=False,
)

REPLIES: list[object] = [
    HelloReply(
        protocol=1,
        server="trioline/0.1.0",
        session="s",
        job="j",
        lease_timeout=900.0,
        max_batch=10_000,
        max_line=1,
        stages=["main"],
    ),
    DoneReply(accepted=2, duplicate=0, failed=1),
    FailReply(state="queued", attempt=1, max_attempts=3),
    FailReply(state="rejected", attempt=3, max_attempts=3),
    ReleaseReply(released=2),
    ExtendReply(lease_timeout=900.0, lost=[7, 8]),
    SetReply(lease_timeout=1600.0, max_attempts=3, paused=True, hedge=2.0),
    DrainReply(connections=1),
    Okay(),
    SNAPSHOT,
    attrs.evolve(SNAPSHOT, total=10, eta=1.5, head=None, workers=()),
    attrs.evolve(SNAPSHOT, state="halted", halt="9 of 10 lines failed", hedged=2, hedge=2.0),
]

GET_REPLIES: list[object] = [
    Work(
        lease=12,
        lease_timeout=900.0,
        items=[
            WorkItem(7, data=Raw(b'{"a": 1.50}'), attempt=1),
            WorkItem(8, line="text", attempt=1),
            WorkItem(9, base64="/w==", attempt=1),
        ],
    ),
    Work(lease=12, lease_timeout=900.0, items=[]),
    WorkLines(lease=12, lease_timeout=900.0, first=7, count=3, bytes=57, attempt=1),
    Retry(retry_in=1.0),
    Complete(),
    Complete(reason="drain"),
]


def read(line: bytes) -> Request:
    """Read a request as the server does."""
    return envelope.open_envelope(line).request()


def refusal(line: bytes) -> RemoteProtocolError:
    """Read a request that must be refused."""
    with pytest.raises(RemoteProtocolError) as caught:
        read(line)
    return caught.value


def name_of(value: object) -> str:
    """Name a test's case."""
    return type(value).__name__


# --- round trips ---------------------------------------------------------------------------------


@pytest.mark.parametrize("request_", REQUESTS, ids=name_of)
def test_a_request_comes_out_as_it_went_in(request_: Request) -> None:
    line = codec.encode_request(request_)
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    assert json.loads(line)["op"] == request_.op
    assert read(line) == request_


@pytest.mark.parametrize("reply", REPLIES, ids=name_of)
def test_a_reply_comes_out_as_it_went_in(reply: object) -> None:
    line = codec.encode_reply(reply)
    assert line.count(b"\n") == 1
    assert line.startswith(b'{"ok":true')
    assert codec.decode_reply(line, type(reply)) == reply


@pytest.mark.parametrize("reply", GET_REPLIES, ids=name_of)
def test_a_reply_to_get_comes_out_as_it_went_in(reply: object) -> None:
    assert codec.decode_get_reply(codec.encode_reply(reply)) == reply


def test_every_message_has_a_round_trip_above() -> None:
    classes = {kind for kind in vars(messages).values() if attrs.has(kind)}
    tried = {type(it) for it in (*REQUESTS, *REPLIES, *GET_REPLIES)} | {Refusal}
    assert classes == tried - {Snapshot}
    assert {kind.op for kind in classes if hasattr(kind, "op")} == set(envelope.REQUESTS)


def test_a_status_reply_is_a_snapshot() -> None:
    assert codec.decode_status(codec.encode_reply(SNAPSHOT)) == SNAPSHOT


def test_what_is_left_out_is_not_sent() -> None:
    assert codec.encode_request(Release()) == b'{"op":"release"}\n'
    assert codec.encode_request(Get()) == b'{"op":"get","max":1,"wait":0,"form":"items"}\n'
    assert json.loads(codec.encode_reply(SNAPSHOT))["total"] is None, "but null is, where it tells"


def test_a_plain_complete_has_no_reason() -> None:
    assert codec.encode_reply(Complete()) == b'{"ok":true,"status":"complete"}\n'
    assert codec.encode_reply(Complete(reason="drain")).endswith(b',"reason":"drain"}\n')


def test_hedge_is_a_number_or_a_switch() -> None:
    for text, hedge in ((b"2", 2.0), (b"0", 0.0), (b"1e6", 1e6), (b"true", True), (b"null", None)):
        request = read(b'{"op":"set","hedge":' + text + b"}")
        assert isinstance(request, Set)
        assert request.hedge == hedge
        assert type(request.hedge) is type(hedge)


def test_raw_lines_follow_their_message() -> None:
    body = b'1\n{"a" :\xff}\n'
    sent = codec.encode_request(DoneLines(first=7, count=2, bytes=len(body)), body)
    assert sent == b'{"op":"done","first":7,"count":2,"bytes":11}\n' + body
    work = WorkLines(lease=1, lease_timeout=9.0, first=7, count=2, bytes=len(body), attempt=1)
    assert codec.encode_reply(work, None, body).endswith(b"}\n" + body)


def test_what_cannot_be_sent_is_our_mistake() -> None:
    with pytest.raises(LocalProtocolError, match="cannot be sent"):
        codec.encode_request(Note(text="\ud800"))
    with pytest.raises(LocalProtocolError, match="cannot be sent"):
        codec.encode_request(Note(text=object()))  # type: ignore[arg-type]


# --- payloads ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "payload",
    [
        b'{"a" : 1, "a":2}',
        b"1.50",
        b"1e999",
        b"-0",
        b"123456789012345678901234567890",
        b'"\\u00e4\\/"',
        b'"\xc3\xa4"',
        b"[ ]",
        b"null",
        b'{"a":\r1}',
        b"[" * 500 + b"]" * 500,
    ],
)
def test_a_payload_keeps_its_bytes(payload: bytes) -> None:
    done = read(b'{"op":"done","results":[ {"id":7, "result": ' + payload + b" } ]}")
    assert isinstance(done, Done)
    (row,) = done.results
    assert row.result is not UNSET
    assert bytes(row.result) == payload
    work = Work(lease=1, lease_timeout=1.0, items=[WorkItem(7, data=Raw(payload))])
    got = codec.decode_get_reply(codec.encode_reply(work))
    assert isinstance(got, Work)
    assert codec.item_bytes(got.items[0]) == payload


@pytest.mark.parametrize("text", [False, True])
@pytest.mark.parametrize(
    "line", [b"", b'{"a": 1}', b"NaN", b"plain", "ä".encode(), b"\xff\x00", b'"\\ud800"', b" 1 "]
)
def test_an_item_gives_its_line_back(line: bytes, text: bool) -> None:
    (item,) = codec.work_items([7], [line], 1, text=text)
    assert codec.item_bytes(item) == line


def test_an_item_is_data_text_or_base64() -> None:
    def keys(line: bytes, *, text: bool = False) -> set[str]:
        items = codec.work_items([7], [line], 2, text=text)
        work = Work(lease=1, lease_timeout=1.0, items=items)
        return set(json.loads(codec.encode_reply(work))["items"][0]) - {"id", "attempt"}

    assert keys(b'{"a":1}') == {"data"}
    assert keys(b'{"a":1}', text=True) == {"line"}
    assert keys(b"plain") == keys(b"NaN") == keys(b"") == keys(b'"\\ud800"') == {"line"}
    assert keys(b"\xff") == keys(b"\xff", text=True) == {"base64"}


@pytest.mark.parametrize("item", [WorkItem(7), WorkItem(7, base64="!"), WorkItem(7, base64="ä")])
def test_an_item_without_a_line_is_refused(item: WorkItem) -> None:
    with pytest.raises(RemoteProtocolError, match="Item 7"):
        codec.item_bytes(item)


# --- ref -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "ref",
    [
        b"1",
        b"-0",
        b"1.50",
        b"1E5",
        b"1e999",
        b"9" * 5_000,
        b"true",
        b"null",
        b'""',
        b'"a\\u0062"',
        '"ä"'.encode(),
        b'"[{"',
    ],
)
def test_a_ref_goes_back_byte_for_byte(ref: bytes) -> None:
    opened = envelope.open_envelope(b'{"op":"ping" , "ref" :  ' + ref + b" }")
    assert opened.ref is not None
    assert bytes(opened.ref) == ref
    for reply in (Okay(), Refusal(error="internal", message="x")):
        assert codec.encode_reply(reply, opened.ref).endswith(b'"ref":' + ref + b"}\n")
    assert opened.request() == Ping()


@pytest.mark.parametrize("ref", [b"{}", b"[]", b' {"a":1}', b"[1]"])
def test_a_ref_that_is_no_scalar_is_refused(ref: bytes) -> None:
    error = refusal(b'{"op":"ping","ref":' + ref + b"}")
    assert error.code is ErrorCode.BAD_REQUEST
    assert "ref" in str(error)


def test_without_ref_none_goes_back() -> None:
    assert envelope.open_envelope(b'{"op":"ping"}').ref is None
    assert codec.encode_reply(Okay()) == b'{"ok":true}\n'


# --- refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"{",
        b"[]",
        b'"ping"',
        b"null",
        b"{}{}",
        b'{"op":"ping",}',
        b"{'op':'ping'}",
        b'{"op":"ping","x":NaN}',
        b'{"op":"ping","x":Infinity}',
        b'{"op":"ping","x":-Infinity}',
        b'{"op":"ping","x":01}',
        b'{"op":"ping","x":"\xff"}',
        b'{"op":"p\xffng"}',
        b'{"op":"ping","x":"\t"}',
        b'{"op":"ping","x":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"op":"ping","x":' + b"[" * 100_000,
        b'{"op":"ping","x":' + b'{"a":' * 100_000,
        b'{"op":"done","results":[{"id":1,"result":NaN}]}',
        b'{"op":"done","results":[{"id":1,"result":' + b"[" * 100_000 + b"]" * 100_000 + b"}]}",
    ],
    ids=lambda line: repr(line[:45]),
)
def test_what_is_no_json_object_closes_the_connection(line: bytes) -> None:
    error = refusal(line)
    assert error.code is ErrorCode.BAD_JSON
    assert error.code.closes


@pytest.mark.parametrize("line", [b"{}", b'{"op":null}', b'{"op":7}', b'{"op":["ping"]}'])
def test_a_request_without_op_is_refused(line: bytes) -> None:
    error = refusal(line)
    assert error.code is ErrorCode.BAD_REQUEST
    assert "op" in str(error)


@pytest.mark.parametrize(
    "op", ["put", "close", "flag", "claim", "confirm", "abandon", "PING", "", "x" * 100_000]
)
def test_an_unknown_op_is_named_and_keeps_the_connection(op: str) -> None:
    error = refusal(json.dumps({"op": op}).encode())
    assert error.code is ErrorCode.UNKNOWN_OP
    assert not error.code.closes
    assert op[:40] in str(error)
    assert len(str(error)) < 200


def test_unknown_fields_are_ignored() -> None:
    assert read(b'{"op":"ping","new":{"a":[1e999]},"max":"x"}') == Ping()
    assert read(b'{"op":"get","max":2,"stagee":7}') == Get(max=2)
    done = read(b'{"op":"done","results":[{"id":1,"result":2,"new":[3]}]}')
    assert done == Done(results=[Result(1, result=Raw(b"2"))])
    reply = b'{"ok":true,"released":2,"new":[{}]}'
    assert codec.decode_reply(reply, ReleaseReply) == ReleaseReply(released=2)


def test_null_is_the_same_as_left_out_where_it_may_be_left_out() -> None:
    assert read(b'{"op":"release","ids":null}') == Release()
    assert read(b'{"op":"get","stage":null}') == Get()


NUMBERS = [b"1.0", b"1.5", b"1e2", b"true", b'"1"', b"[1]", b"{}", b"9" * 5_000]
INTS = [*NUMBERS, b"-1", b"9007199254740992", b"9" * 30]
FLOATS = [b'"1"', b"true", b"[1]", b"{}", b"-1", b"-0.5", b"1e999", b"1e13", b"9" * 5_000]
TEXTS = [b"1", b"1.5", b"true", b"[]", b"{}"]
BOOLS = [b"0", b"1", b'"true"', b"1.0", b"[]"]
OPTIONAL_FIELDS: dict[str, dict[str, list[bytes]]] = {
    '"op":"hello"': {
        "protocol": [*NUMBERS, b"null"],
        "worker": TEXTS,
        "token": TEXTS,
        "detach": [*BOOLS, b"null"],
        "session": TEXTS,
        "deadline": FLOATS,
    },
    '"op":"get"': {
        "max": [*INTS, b"0", b"null"],
        "wait": [*FLOATS, b"null"],
        "form": [*TEXTS, b'"line"', b'"ITEMS"', b"null"],
        "stage": TEXTS,
    },
    '"op":"done"': {
        "results": [
            b"null",
            b"{}",
            b"7",
            b"[7]",
            b"[null]",
            b"[{}]",
            b'[{"result":1}]',
            *(b'[{"id":' + bad + b',"result":1}]' for bad in [*INTS, b"null"]),
            *(b'[{"id":1,"line":' + bad + b"}]" for bad in TEXTS),
            *(b'[{"id":1,"error":' + bad + b"}]" for bad in TEXTS),
            *(b'[{"id":1,"error":"","retry":' + bad + b"}]" for bad in [*BOOLS, b"null"]),
        ]
    },
    '"op":"done","count":1': {"first": [*INTS, b"null"]},
    '"op":"done","first":1': {"count": [*INTS, b"0", b"null"]},
    '"op":"done","first":1,"count":1': {"bytes": INTS},
    '"op":"fail","id":1': {
        "error": [*TEXTS, b"null"],
        "retry": [*BOOLS, b"null"],
        "delay": FLOATS,
        "lease": INTS,
    },
    '"op":"fail"': {"id": [*INTS, b"null"]},
    '"op":"release"': {"ids": [b"7", b"{}", b'"1"', *(b"[0," + bad + b"]" for bad in INTS)]},
    '"op":"extend"': {"lease": INTS},
    '"op":"note"': {"text": [*TEXTS, b"null"]},
    '"op":"note","text":""': {"id": INTS},
    '"op":"set"': {
        "lease_timeout": [*FLOATS, b"0", b"0.0009", b"1e10"],
        "max_attempts": [*INTS, b"0", b"1000001"],
        "paused": BOOLS,
        "hedge": [b"-0.5", b"1000001", b'"2"', b"[]", b"{}"],
    },
    '"op":"drain"': {"worker": [*TEXTS, b"null"]},
}


def bad_fields() -> list[Any]:
    """List every field with every value that is not its own."""
    return [
        pytest.param(
            b"{" + head.encode() + b',"' + field.encode() + b'":' + bad + b"}",
            field,
            id=f"{head} {field} {bad[:24]!r}",
        )
        for head, fields in OPTIONAL_FIELDS.items()
        for field, values in fields.items()
        for bad in values
    ]


@pytest.mark.parametrize(("line", "field"), bad_fields())
def test_a_field_of_another_type_or_range_is_refused_by_name(line: bytes, field: str) -> None:
    error = refusal(line)
    assert error.code is ErrorCode.BAD_REQUEST
    assert re.search(rf"the field '{field}(\[.*)?'", str(error))


def test_every_field_of_every_request_was_tried() -> None:
    for kind in {type(request) for request in REQUESTS}:
        for field in attrs.fields(kind):
            assert any(
                f'"op":"{kind.op}"' in head and field.name in fields
                for head, fields in OPTIONAL_FIELDS.items()
            ), f"{kind.__name__}.{field.name}"


@pytest.mark.parametrize(
    ("line", "field"),
    [
        (b'{"op":"done"}', "results"),
        (b'{"op":"done","first":1}', "count"),
        (b'{"op":"done","count":1}', "first"),
        (b'{"op":"fail"}', "id"),
        (b'{"op":"note"}', "text"),
    ],
)
def test_a_missing_field_is_named(line: bytes, field: str) -> None:
    error = refusal(line)
    assert error.code is ErrorCode.BAD_REQUEST
    assert f"the field {field!r} is missing" in str(error)


@pytest.mark.parametrize("extra", [b'"first":1', b'"count":1', b'"first":1,"count":1'])
def test_done_has_one_form_only(extra: bytes) -> None:
    error = refusal(b'{"op":"done","results":[],' + extra + b"}")
    assert error.code is ErrorCode.BAD_REQUEST
    assert "not both" in str(error)


@pytest.mark.parametrize(
    ("line", "count"),
    [
        (b'{"op":"done","first":1,"count":3}', 3),
        (b'{"op":"done","first":"x","count":3}', 3),
        (b'{"op":"done","results":[],"count":3}', 3),
        (b'{"op":"done","first":1,"count":0}', 0),
        (b'{"op":"done","first":1,"count":-3}', 0),
        (b'{"op":"done","first":1,"count":"3"}', 0),
        (b'{"op":"done","first":1,"count":3.0}', 0),
        (b'{"op":"done","first":1,"count":true}', 0),
        (b'{"op":"done","first":1,"count":' + b"9" * 5_000 + b"}", 0),
        (b'{"op":"done","results":[]}', 0),
        (b'{"op":"get","count":3}', 0),
        (b'{"op":"done","first":1,"count":3,"x":"\\ud800"}', 3),
        (b'{"op":"done","first":1,"count":true,"x":"\\ud800"}', 0),
        (b'{"op":"done","first":1,"count":-3,"x":"\\ud800"}', 0),
        (b'{"op":"note","count":3,"text":"\\ud800"}', 0),
    ],
)
def test_how_many_raw_lines_follow(line: bytes, count: int) -> None:
    assert envelope.open_envelope(line).raw_count == count


@pytest.mark.parametrize(
    "line",
    [
        b'{"op":"get"}',
        b'{"op": "get", "max": 100, "wait": 30, "form": "lines", "stage": "main", "ref": 7}',
        b'{"op":"done","first":7,"count":2,"bytes":9}',
        b'{"ref": "a", "count": 2, "first": 7, "lease": 3, "op": "done"}',
        b'{"op": "done", "results": [{"id": 7, "result": {"a": 1}}], "ref": null}',
    ],
)
def test_what_is_common_is_read_at_once(line: bytes) -> None:
    opened = envelope.open_envelope(line)
    assert opened.known_request is not None
    assert opened.request() is opened.known_request


@pytest.mark.slow
def test_sixteen_megabytes_of_nothing_are_refused() -> None:
    nothing = b"{}," * (16 * 1024 * 1024 // 3) + b"{}"
    assert refusal(b'{"op":"done","results":[' + nothing + b"]}").code is ErrorCode.BAD_REQUEST
    assert refusal(b'{"op":"release","ids":[' + nothing + b"]}").code is ErrorCode.TOO_LARGE
    assert refusal(b"[" + nothing + b"]").code is ErrorCode.BAD_JSON
    assert refusal(b'{"op":"ping","x":[' + nothing + b"]}").code is ErrorCode.TOO_LARGE


@pytest.mark.parametrize("name", [b"id", b"\\u0069d", b"i\\u0064"])
@pytest.mark.parametrize("end", [b"]}", b'],"results":[]}'])
def test_very_many_rows_are_refused_before_they_are_built(name: bytes, end: bytes) -> None:
    rows = b",".join([b'{"%b":1,"result":1}' % name] * 401_000)
    assert refusal(b'{"op":"done","results":[' + rows + end).code is ErrorCode.TOO_LARGE


def test_a_large_done_is_read_like_a_small_one() -> None:
    result = b'"' + b"x" * MAX_PLAIN_BYTES + b'"'
    sent = b'{"op":"done","x":{"y":1},"ref":7,"results":[{"id":3,"result":' + result + b"}]}"
    opened = envelope.open_envelope(sent)
    request = opened.request()
    assert isinstance(request, Done)
    assert opened.ref is not None
    assert bytes(opened.ref) == b"7"
    assert bytes(request.results[0].result) == result  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("message", "code", "named"),
    [
        (
            b'{"op":"done","ref":5,"results":[{"id":8,"result":1},{"id":9,"result":["\\ud800"]}]}',
            ErrorCode.BAD_RESULT,
            "line 9",
        ),
        (b'{"op":"note","ref":5,"text":"\\uDFFF"}', ErrorCode.BAD_REQUEST, "surrogate"),
    ],
)
def test_lone_surrogates_are_refused_by_name(message: bytes, code: ErrorCode, named: str) -> None:
    opened = envelope.open_envelope(message)
    assert opened.ref is not None
    assert bytes(opened.ref) == b"5"
    with pytest.raises(RemoteProtocolError, match=named) as caught:
        opened.request()
    assert (caught.value.code, caught.value.is_fatal) == (code, False)


# --- what a client reads -------------------------------------------------------------------------


def test_a_refusal_is_raised_with_its_code() -> None:
    line = codec.encode_reply(Refusal(error=ErrorCode.NOT_HELD, message="Line 7 is not yours."))
    assert line == b'{"ok":false,"error":"not-held","message":"Line 7 is not yours."}\n'
    for ask in (lambda: codec.decode_reply(line, Okay), lambda: codec.decode_get_reply(line)):
        with pytest.raises(RequestRefused, match="not yours") as caught:
            ask()
        assert caught.value.code == "not-held"


def test_a_newer_servers_code_is_kept() -> None:
    with pytest.raises(RequestRefused) as caught:
        codec.decode_reply(b'{"ok":false,"error":"too-warm","message":"x"}', Okay)
    assert caught.value.code == "too-warm"


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"[]",
        b"{}",
        b'{"ok":false}',
        b'{"ok":null}',
        b'{"ok":true}',
        b'{"ok":true,"released":"2"}',
        b'{"ok":true,"released":2.0}',
        b'{"ok":true,"released":true}',
        b'{"ok":true,"released":NaN}',
        b'{"ok":false,"error":7,"message":"x"}',
        b'{"ok":true,"released":' + b"[" * 100_000 + b"}",
    ],
    ids=lambda line: repr(line[:40]),
)
def test_a_broken_reply_is_the_servers_mistake(line: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        codec.decode_reply(line, ReleaseReply)


@pytest.mark.parametrize(
    "line",
    [
        b'{"ok":true}',
        b'{"ok":true,"status":null}',
        b'{"ok":true,"status":"wrok"}',
        b'{"ok":true,"status":"work"}',
        b'{"ok":true,"status":"retry"}',
        b'{"ok":true,"status":"work","lease":1,"lease_timeout":1,"items":[{}]}',
        b'{"ok":true,"status":"work","lease":1,"lease_timeout":1,"items":{}}',
        b'{"ok":true,"status":"work","lease":1,"lease_timeout":1,"first":1,"count":1.0,"bytes":1}',
    ],
)
def test_a_broken_reply_to_get_is_the_servers_mistake(line: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        codec.decode_get_reply(line)


# --- results -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "line",
    [
        b"1",
        b'"a"',
        b"null",
        b'{"a":[1,2]}',
        b" 1 ",
        b"1\r",
        b"-1.5e+10",
        "ä".encode().join([b'"'] * 2),
    ],
)
def test_json_is_json(line: bytes) -> None:
    assert codec.is_json(line)


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b" ",
        b"NaN",
        b"-Infinity",
        b"{",
        b"1 2",
        b"'a'",
        b'"\xff"',
        b"\xef\xbb\xbf1",
        b"01",
        b"1.",
        b'"\x01"',
        b'"\\ud800"',
        b"[" * 100_000 + b"]" * 100_000,
    ],
    ids=lambda line: repr(line[:20]),
)
def test_other_things_are_not(line: bytes) -> None:
    assert not codec.is_json(line)


@pytest.mark.parametrize("bad", [b"", b"NaN", b'"\xff"', b"{", b"1 2", b"[" * 100_000, b"\r"])
@pytest.mark.parametrize("place", [0, 1, 4])
def test_the_first_bad_line_is_found(bad: bytes, place: int) -> None:
    lines = [b'{"a":1}'] * 5
    lines[place] = lines[4] = bad
    assert codec.find_bad_json(b"\n".join(lines) + b"\n") == place


@pytest.mark.parametrize(
    "lines",
    [
        [b"1,2", b"[3", b"4]"],
        [b"1", b"[2", b"3]"],
        [b'{"a":1', b'"b":2}', b"3,4"],
        [b"1],[2", b"3"],
        [b'"a', b'b"', b'"c","d"'],
        [b"", b"1,2"],
        [b"1,2", b""],
    ],
    ids=repr,
)
def test_lines_that_are_json_only_together_are_not(lines: list[bytes]) -> None:
    expected = next(place for place, line in enumerate(lines) if not codec.is_json(line))
    assert codec.find_bad_json(b"".join(line + b"\n" for line in lines)) == expected


@pytest.mark.parametrize("length", [40_000, 65_535, 65_536, 65_537, 200_000])
@pytest.mark.parametrize("bad", [None, 0, 1, 3, 5])
def test_a_bad_line_is_found_among_long_ones(length: int, bad: int | None) -> None:
    lines = [b'["' + b"x" * (length - 5) + b'"]\n'] * 6
    if bad is not None:
        lines[bad] = lines[bad][:-2] + b"\n"
    assert codec.find_bad_json(b"".join(lines)) == bad


def test_a_line_of_many_values_takes_no_room() -> None:
    block = b"1\n" + b"1," * 2_000_000 + b"1\n"
    tracemalloc.start()
    try:
        assert codec.find_bad_json(block) == 1
        assert tracemalloc.get_traced_memory()[1] < 3 * len(block)
    finally:
        tracemalloc.stop()


def test_a_block_of_good_lines_has_no_bad_one() -> None:
    assert codec.find_bad_json(b'1\n"\xc3\xa4"\n{"a":1}\r\n') is None
    assert codec.find_bad_json(b"1\n") is None


def test_times_are_numbers_a_peer_can_read() -> None:
    for wait in (0, 0.5, 1e12):
        got = read(codec.encode_request(Get(wait=wait)))
        assert isinstance(got, Get)
        assert math.isclose(got.wait, wait)
    assert msgspec.json.decode(codec.encode_reply(Retry(retry_in=0.5)))["retry_in"] == 0.5
