"""The wire against whatever bytes there are."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from typing import TypeVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import UNSET, Raw

from trioline.config import MAX_PLAIN_BYTES
from trioline.errors import ErrorCode, RemoteProtocolError, RequestRefused
from trioline.wire import codec, envelope
from trioline.wire.framing import Framer
from trioline.wire.messages import (
    MAX_ID,
    Done,
    DoneLines,
    Drain,
    Fail,
    Form,
    Get,
    Hello,
    Note,
    Okay,
    Release,
    Request,
    Result,
    Set,
    Work,
)

T = TypeVar("T")

QUICK = settings(max_examples=60, deadline=None)
"""Enough to find what is plainly wrong, quick enough for each run."""

WHITESPACE = b" \t\r\n"
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
IDS = st.integers(0, MAX_ID - 1)
SECONDS = st.floats(0, 1e12)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=8,
)
JSON_LINES = st.builds(
    lambda value, ascii_, indent: json.dumps(
        value, ensure_ascii=ascii_, allow_nan=False, separators=(", ", ":") if indent else None
    ).encode(),
    JSON.filter(lambda value: "Infinity" not in json.dumps(value)),
    st.booleans(),
    st.booleans(),
)
"""What some serialiser may write."""

RAW_LINES = st.one_of(
    JSON_LINES,
    st.binary(max_size=12).map(lambda line: line.replace(b"\n", b"")),
    st.sampled_from(
        [
            b"",
            b"NaN",
            b"1\r",
            b'"\xff"',
            b'"\\ud800"',
            b'"\\ud83d\\ude00"',
            b"1e999",
            b"{",
            b'{"a":1,}',
        ]
    ),
)


def cut(data: bytes, places: list[int]) -> list[bytes]:
    """Cut ``data`` at the given places."""
    edges = sorted({place % (len(data) + 1) for place in places} | {0, len(data)})
    return [data[left:right] for left, right in itertools.pairwise(edges)]


def attempt(act: Callable[[], T]) -> T | RemoteProtocolError:
    """Do it; a refusal is an answer like another, any other exception is not."""
    try:
        return act()
    except RemoteProtocolError as error:
        return error


def is_strict_json(line: bytes) -> bool:
    """Say what the standard library's parser says, made strict."""

    def refuse(word: str) -> None:
        raise ValueError(word)

    try:
        value = json.loads(line.decode(), parse_constant=refuse)
        json.dumps(value, ensure_ascii=False).encode()  # a lone surrogate cannot be written
    except (ValueError, RecursionError):
        return False
    return True


# --- framing -------------------------------------------------------------------------------------

STREAMS = st.lists(
    st.one_of(
        st.tuples(
            st.just(0),
            st.binary(max_size=30).map(lambda line: b"{" + line.replace(b"\n", b"") + b"}"),
            st.sampled_from([b"\n", b"\r\n"]),
        ),
        st.tuples(
            st.integers(1, 5),
            st.lists(RAW_LINES, min_size=5, max_size=5),
            st.sampled_from(["none", "right", "wrong"]),
        ),
    ),
    max_size=8,
)


@given(parts=STREAMS, places=st.lists(st.integers(0, 10_000), max_size=40), each=st.booleans())
@QUICK
def test_a_stream_comes_out_as_it_went_in_however_it_is_cut(
    parts: list[tuple[int, bytes | list[bytes], object]], places: list[int], each: bool
) -> None:
    stream = b""
    expected: list[bytes] = []
    asks: list[tuple[int, int | None]] = []
    for count, content, extra in parts:
        if isinstance(content, bytes):
            assert isinstance(extra, bytes)
            stream += content + extra
            expected.append(content)
            asks.append((0, None))
            continue
        block = b"".join(line + b"\n" for line in content[:count])
        stream += block
        expected.append(block)
        hints = {"none": None, "right": len(block), "wrong": len(block) + 3}
        asks.append((count, hints[str(extra)]))
    framer = Framer()
    found: list[bytes] = []
    for piece in cut(stream, list(range(len(stream))) if each else places):
        framer.feed(piece)
        while len(found) < len(asks):
            count, hint = asks[len(found)]
            got = framer.next_block(count, hint) if count else framer.next_message()
            if got is None:
                break
            found.append(got)
    assert found == expected
    assert framer.is_between_messages


@given(
    line=st.integers(0, 24),
    ending=st.sampled_from([b"\n", b"\r\n", b""]),
    places=st.lists(st.integers(0, 30), max_size=30),
    limit=st.integers(2, 20),
)
@QUICK
def test_the_limit_does_not_depend_on_the_cuts(
    line: int, ending: bytes, places: list[int], limit: int
) -> None:
    message = b"{" + b"x" * line
    framer = Framer(max_line_bytes=limit)

    def take_all() -> list[bytes | None]:
        found = []
        for piece in cut(message + ending, places):
            framer.feed(piece)
            found.append(framer.next_message())
        return found

    found = attempt(take_all)
    if isinstance(found, RemoteProtocolError):
        assert found.code is ErrorCode.LINE_TOO_LONG
        assert len(message) > limit
        return
    assert len(message) <= limit
    assert [it for it in found if it is not None] == ([message] if ending else [])


@given(
    lengths=st.lists(st.integers(0, 12), min_size=1, max_size=6),
    places=st.lists(st.integers(0, 80), max_size=40),
    limit=st.integers(1, 12),
    block_limit=st.integers(1, 50),
    is_hinted=st.booleans(),
)
@QUICK
def test_the_limits_of_a_block_do_not_depend_on_the_cuts(
    lengths: list[int], places: list[int], limit: int, block_limit: int, is_hinted: bool
) -> None:
    block = b"".join(b"x" * length + b"\n" for length in lengths)
    framer = Framer(limit, block_limit)

    def take_all() -> list[bytes | None]:
        found = []
        for piece in cut(block, places):
            framer.feed(piece)
            found.append(framer.next_block(len(lengths), len(block) if is_hinted else None))
        return found

    found = attempt(take_all)
    if isinstance(found, RemoteProtocolError):
        over = {ErrorCode.LINE_TOO_LONG: max(lengths) > limit}
        over[ErrorCode.TOO_LARGE] = len(block) > block_limit
        assert over[found.code]
        return
    assert max(lengths) <= limit
    assert len(block) <= block_limit
    assert found[-1] == block


@given(data=st.binary(max_size=200), places=st.lists(st.integers(0, 200), max_size=20))
@QUICK
def test_hostile_bytes_raise_nothing_else(data: bytes, places: list[int]) -> None:
    framer = Framer(max_line_bytes=50)

    def take_all() -> None:
        for piece in cut(data, places):
            framer.feed(piece)
            while (message := framer.next_message()) is not None:
                assert message.startswith(b"{")

    error = attempt(take_all)
    assert error is None or error.code in (ErrorCode.BAD_JSON, ErrorCode.LINE_TOO_LONG)


# --- the codec -----------------------------------------------------------------------------------

REQUESTS: st.SearchStrategy[Request] = st.one_of(
    st.builds(
        Hello,
        protocol=st.integers(-(2**70), 2**70),
        worker=st.none() | TEXTS,
        token=st.none() | TEXTS,
        detach=st.booleans(),
        session=st.none() | TEXTS,
        deadline=st.none() | SECONDS,
    ),
    st.builds(
        Get,
        max=st.integers(1, MAX_ID - 1),
        wait=SECONDS,
        form=st.sampled_from(Form),
        stage=st.none() | TEXTS,
    ),
    st.builds(
        Done,
        results=st.lists(
            st.builds(Result, id=IDS, result=JSON_LINES.map(Raw))
            | st.builds(Result, id=IDS, line=TEXTS)
            | st.builds(Result, id=IDS, error=TEXTS, retry=st.booleans()),
            max_size=4,
        ),
    ),
    st.builds(DoneLines, first=IDS, count=st.integers(1, MAX_ID - 1), bytes=st.none() | IDS),
    st.builds(
        Fail,
        id=IDS,
        error=TEXTS,
        retry=st.booleans(),
        delay=st.none() | SECONDS,
        lease=st.none() | IDS,
    ),
    st.builds(Release, ids=st.none() | st.lists(IDS, max_size=5)),
    st.builds(Drain, worker=TEXTS),
    st.builds(Note, text=TEXTS, id=st.none() | IDS),
    st.builds(
        Set,
        lease_timeout=st.none() | st.floats(0.001, 1e9),
        max_attempts=st.none() | st.integers(1, 1_000_000),
        paused=st.none() | st.booleans(),
        hedge=st.none() | st.booleans() | st.floats(0, 1e6),
    ),
)


@given(request=REQUESTS)
@QUICK
def test_any_request_comes_out_as_it_went_in(request: Request) -> None:
    line = codec.encode_request(request)
    assert line.find(b"\n") == len(line) - 1
    assert envelope.open_envelope(line[:-1]).request() == request


@given(line=st.binary(max_size=60) | JSON_LINES)
@QUICK
def test_any_bytes_are_a_request_or_refused(line: bytes) -> None:
    got = attempt(lambda: envelope.open_envelope(line).request())
    is_object = is_strict_json(line) and isinstance(json.loads(line), dict)
    is_bad_json = isinstance(got, RemoteProtocolError) and got.code is ErrorCode.BAD_JSON
    assert is_bad_json == (not is_object)


@given(
    op=st.sampled_from(sorted(envelope.REQUESTS)),
    fields=st.dictionaries(
        st.sampled_from(
            ["protocol", "worker", "detach", "deadline", "max", "wait", "form", "results", "first",
             "count", "bytes", "id", "error", "retry", "delay", "lease", "ids", "text", "paused",
             "hedge"]
        ),
        JSON,
        max_size=5,
    ).filter(lambda fields: "Infinity" not in json.dumps(fields)),
)  # fmt: skip
@QUICK
def test_any_fields_are_structured_exactly_or_refused(op: str, fields: dict[str, object]) -> None:
    line = json.dumps({"op": op, **fields}).encode()
    request = attempt(lambda: envelope.open_envelope(line).request())
    if isinstance(request, RemoteProtocolError):
        assert request.code is ErrorCode.BAD_REQUEST
        return
    assert request.op == op
    for name, value in fields.items():
        got = getattr(request, name, value)
        if name not in ("results", "form") and value is not None:
            assert got == value
            assert isinstance(got, bool) == isinstance(value, bool)


HEADS = [
    b'"op":"get"',
    b'"op":"done","first":7,"count":2',
    b'"op":"done","first":7,"count":2,"bytes":9',
    b'"op":"done","results":[{"id":1,"result":2}]',
]
"""What makes a message, each alone."""
MEMBERS = [
    b'"op":"get"', b'"op":"done"', b'"op":"ping"', b'"op":null', b'"o\\u0070":"get"',
    b'"op":"g\\u0065t"', b'"max":3', b'"max":0', b'"max":"3"', b'"max":3.0', b'"m\\u0061x":4',
    b'"wait":1e3', b'"wait":-1', b'"wait":null', b'"form":"lines"', b'"form":"l\\u0069nes"',
    b'"form":"Lines"', b'"stage":null', b'"stage":"main"', b'"stage":"\xc3\xa4"', b'"stage":"\xff"',
    b'"stage":"\\ud800"', b'"first":7', b'"first":-1', b'"first":"x"', b'"fir\\u0073t":8',
    b'"first":null', b'"count":2', b'"count":0', b'"count":-2', b'"count":true', b'"count":2.0',
    b'"count":"2"', b'"count":null', b'"count":9007199254740992', b'"count":' + b"9" * 5_000,
    b'"c\\u006funt":1', b'"bytes":9', b'"bytes":null', b'"bytes":-9', b'"bytes":9.5', b'"bytes":{}',
    b'"bytes":18446744073709551616', b'"results":[]', b'"results":null',
    b'"results":[{"id":1,"result":"\xff"}]', b'"results":[{}]',
    b'"results":[{"id":1,"result":"\\ud800"}]', b'"results":[{"id":1,"result":NaN}]',
    b'"results":[{"id":1,"result":{"a":[1.50]}},{"id":2,"line":"\xc3\xa4"}]', b'"res\\u0075lts":[]',
    b'"results":[{"id":1,"line":"x","id":2}]', b'"results":[{"id":1,"error":"e","retry":0}]',
    b'"ref":7', b'"ref":-0', b'"ref":null', b'"ref":"r"', b'"ref":"\xff"', b'"ref":"\xc3\xa4"',
    b'"ref":"\\ud800"', b'"ref":[1]', b'"ref":{}', b'"r\\u0065f":8', b'"ref": [ ]',
    b'"ref" : \t1.50', b'"x":NaN', b'"x":01', b'"x":"\xff"', b'"\xff":1', b'"x":"\\udfff"',
    b'"x":[{"op":"done"}]', b'"x":', b'"x":' + b"[" * 2_000 + b"]" * 2_000, b"7", b"",
]  # fmt: skip
"""What else may stand in a message, right or not."""
LONG = b'"x":' + b" " * MAX_PLAIN_BYTES + b"1"


def seen_in(opened: envelope.Envelope) -> tuple[object, ...]:
    """All that whoever opened a message goes by."""
    got = attempt(opened.request)
    if isinstance(got, RemoteProtocolError):
        request: object = (got.code, got.is_fatal, str(got))
    else:
        request = got
    ref = None if opened.ref is None else bytes(opened.ref)
    return opened.op, ref, opened.raw_count, opened.bytes_hint, request


def assert_read_at_once_as_with_care(line: bytes) -> None:
    opened = attempt(lambda: envelope.open_envelope(line))
    expected = attempt(lambda: envelope.open_with_care(line))
    if isinstance(opened, RemoteProtocolError) or isinstance(expected, RemoteProtocolError):
        assert (type(opened), str(opened)) == (type(expected), str(expected))
        return
    assert seen_in(opened) == seen_in(expected)


@pytest.mark.parametrize("head", HEADS)
def test_any_member_is_read_at_once_as_with_care(head: bytes) -> None:
    for member in [*MEMBERS, LONG]:
        assert_read_at_once_as_with_care(b"{%b,%b}" % (head, member))
        assert_read_at_once_as_with_care(b"{%b,%b}" % (member, head))


@given(
    members=st.lists(st.sampled_from(HEADS + MEMBERS), min_size=1, max_size=5),
    comma=st.sampled_from([b",", b" , ", b"\r,\t"]),
    flaw=st.none() | st.tuples(st.integers(0, 99), st.sampled_from([b"", b"}", b'"', b"\xff"])),
)
@QUICK
def test_any_message_is_read_at_once_as_with_care(
    members: list[bytes], comma: bytes, flaw: tuple[int, bytes] | None
) -> None:
    line = b"{" + comma.join(members) + b"}"
    if flaw is not None:
        at, instead = flaw
        line = line[:at] + instead + line[at + 1 :]
    assert_read_at_once_as_with_care(line)


@given(line=st.binary(max_size=60) | JSON_LINES)
@QUICK
def test_any_bytes_are_a_reply_or_refused(line: bytes) -> None:
    for read in (lambda: codec.decode_reply(line, Okay), lambda: codec.decode_get_reply(line)):
        try:
            read()
        except (RemoteProtocolError, RequestRefused):
            continue


@given(ref=st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXTS)
@QUICK
def test_any_scalar_ref_goes_back_as_it_came(ref: object) -> None:
    sent = json.dumps(ref).encode()
    if b"Infinity" in sent:
        return
    opened = envelope.open_envelope(b'{"op":"ping","ref":' + sent + b"}")
    assert codec.encode_reply(Okay(), opened.ref) == b'{"ok":true,"ref":' + sent + b"}\n"


# --- payloads ------------------------------------------------------------------------------------


@given(line=st.binary(max_size=40) | RAW_LINES, text=st.booleans())
@QUICK
def test_an_item_gives_any_line_back(line: bytes, text: bool) -> None:
    (item,) = codec.work_items([7], [line], 1, text=text)
    assert codec.item_bytes(item) == line


@given(line=RAW_LINES, text=st.booleans())
@QUICK
def test_a_line_survives_the_wire(line: bytes, text: bool) -> None:
    (item,) = codec.work_items([7], [line], 1, text=text)
    sent = codec.encode_reply(Work(lease=1, lease_timeout=1.0, items=[item]))
    assert sent.find(b"\n") == len(sent) - 1
    if item.data is not UNSET:
        assert b'"data":' + line in sent, "byte for byte"
    got = codec.decode_get_reply(sent[:-1])
    assert isinstance(got, Work)
    # JSON parsers take no notice of whitespace around a value.
    expected = line if item.data is UNSET else line.strip(WHITESPACE)
    assert codec.item_bytes(got.items[0]) == expected


@given(line=JSON_LINES)
@QUICK
def test_a_result_keeps_its_bytes(line: bytes) -> None:
    done = envelope.open_envelope(b'{"op":"done","results":[{"id":1,"result":' + line + b"}]}")
    request = done.request()
    assert isinstance(request, Done)
    result = request.results[0].result
    assert result is not UNSET
    assert bytes(result) == line


@given(line=RAW_LINES)
@QUICK
def test_json_is_what_the_standard_library_says(line: bytes) -> None:
    assert codec.is_json(line) == is_strict_json(line)


PARTS = st.sampled_from([b"1", b",", b"[", b"]", b'"', b" ", b"{", b'"a":1', b"}", b"\r", b""])


@given(lines=st.lists(st.lists(PARTS, max_size=4).map(b"".join), min_size=1, max_size=5))
@QUICK
def test_no_line_is_json_by_what_is_beside_it(lines: list[bytes]) -> None:
    expected = next((at for at, line in enumerate(lines) if not is_strict_json(line)), None)
    assert codec.find_bad_json(b"".join(line + b"\n" for line in lines)) == expected


@given(lines=st.lists(RAW_LINES, min_size=1, max_size=8))
@QUICK
def test_the_first_bad_line_is_found(lines: list[bytes]) -> None:
    expected = next((at for at, line in enumerate(lines) if not is_strict_json(line)), None)
    assert codec.find_bad_json(b"".join(line + b"\n" for line in lines)) == expected
