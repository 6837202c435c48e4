"""Messages to bytes and back.

A message is read by msgspec as what ``op`` (or the request) says that it is, each field strictly
by its type. So nothing untyped is ever built from hostile input (it costs 30 times its size),
payloads keep their bytes, and 2.9 or "7" never passes for a whole number. cattrs writes them: it
leaves out what is not set.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import attrs
import cattrs
import msgspec
from cattrs.fns import identity
from cattrs.gen import make_dict_unstructure_fn
from msgspec import UNSET, Raw, UnsetType

from trioline.errors import ErrorCode, LocalProtocolError, RemoteProtocolError, RequestRefused
from trioline.snapshot import Snapshot
from trioline.wire.messages import (
    Complete,
    Refusal,
    Request,
    Retry,
    Work,
    WorkItem,
    WorkLines,
)

T = TypeVar("T")

Ref = Raw | None
"""A request's ``ref``, for its reply; None where it has none."""

_raw = msgspec.json.Decoder(Raw)
_raws = msgspec.json.Decoder(list[Raw])
_encoder = msgspec.json.Encoder()

SECONDS_FIELDS = frozenset({"lease_timeout", "retry_in"})
"""Written as whole numbers where they are whole: shells take replies apart by their text."""

BAD_JSON_ERRORS = (msgspec.DecodeError, RecursionError, ValueError)
"""All that msgspec raises on bytes that are not JSON (a UnicodeDecodeError is a ValueError)."""

_PIECE_BYTES = 64 * 1024
"""Of result lines, checked at a time."""

_converter = cattrs.Converter()

_MISSING = re.compile("Object missing required field `(.*)`")


def _whole_seconds(seconds: float) -> float:
    return int(seconds) if seconds % 1 == 0 else seconds


def _field_by_field(kind: type) -> Callable[[object], dict[str, object]]:
    ways = {
        field.name: cattrs.override(
            omit_if_default=field.default is None,
            unstruct_hook=_whole_seconds if field.name in SECONDS_FIELDS else None,
        )
        for field in attrs.fields(kind)
    }
    return make_dict_unstructure_fn(kind, _converter, **ways)  # type: ignore[arg-type]


_converter.register_unstructure_hook_factory(attrs.has, _field_by_field)
_converter.register_unstructure_hook(Snapshot, attrs.asdict)  # nested, and in order
_converter.register_unstructure_hook_func(
    lambda kind: not attrs.has(kind), identity
)  # msgspec encodes the rest itself


class _Writers(dict[type, Callable[[Any], dict[str, object]]]):
    """What cattrs made for each class: to ask it each time takes longer than to write a reply."""

    def __missing__(self, kind: type) -> Callable[[Any], dict[str, object]]:
        writer = self[kind] = _converter.get_unstructure_hook(kind)
        return writer


_writers = _Writers()


class _Decoders(dict[type, msgspec.json.Decoder[Any]]):
    def __missing__(self, kind: type) -> msgspec.json.Decoder[Any]:
        decoder = self[kind] = msgspec.json.Decoder(kind)
        return decoder


_decoders = _Decoders()


def read_as(kind: type[T], line: bytes) -> T:
    """Read a message that was opened as what it has to be.

    Raises:
        RemoteProtocolError: ``BAD_REQUEST`` with the name of the field that does not fit.
    """
    try:
        message: T = _decoders[kind].decode(line)
    except BAD_JSON_ERRORS as error:
        op = getattr(kind, "op", kind.__name__)
        text = f"In {op}, {_problem(error)}."
        raise RemoteProtocolError(ErrorCode.BAD_REQUEST, text) from error
    return message


def _problem(error: Exception) -> str:
    """Say what msgspec found, by the name of the field."""
    text, _, place = str(error).partition(" - at `$")
    place = place.removeprefix(".").removesuffix("`")
    missing = _MISSING.fullmatch(text)
    if missing is not None:
        return f"the field {'.'.join(filter(None, (place, missing[1])))!r} is missing"
    return f"the field {place!r} does not fit: {text}"


def open_as(kind: type[T], line: bytes) -> T:
    """Look at some fields of a message that may be anything.

    Raises:
        RemoteProtocolError: ``BAD_JSON``.
    """
    try:
        if not line.isascii():
            line.decode()
        opening: T = _decoders[kind].decode(line)
    except BAD_JSON_ERRORS as error:
        raise bad_json(error) from error
    return opening


def bad_json(error: Exception) -> RemoteProtocolError:
    """The refusal of bytes that are no message."""
    return RemoteProtocolError(
        ErrorCode.BAD_JSON, f"A message is one JSON object on one line; this is not: {error}."
    )


def encode_request(request: Request, body: bytes = b"") -> bytes:
    """Write a request as its line, with the raw result lines of a ``DoneLines`` behind it.

    Raises:
        LocalProtocolError: JSON has nothing for what is in it.
    """
    fields = {"op": request.op, **_writers[type(request)](request)}
    try:
        line = _encoder.encode(fields)
    except (TypeError, ValueError) as error:  # lone surrogates, foreign objects
        raise LocalProtocolError(f"This cannot be sent as JSON: {error}.") from error
    return line + b"\n" + body


def encode_reply(reply: object, ref: Ref = None, block: bytes = b"") -> bytes:
    """Write a reply as its line, with the raw lines of a ``WorkLines`` behind it.

    Args:
        reply: One of the reply classes of ``messages``, or a ``Snapshot``.
        ref: What the request had as ``ref``.
        block: Raw lines, with their newlines.
    """
    kind = type(reply)
    fields = {"ok": kind is not Refusal, **_writers[kind](reply)}
    if ref is not None:
        fields["ref"] = ref
    return b"%b\n%b" % (_encoder.encode(fields), block)


def encode_refusal(error: RemoteProtocolError, ref: Ref = None) -> bytes:
    """Write the reply to a request that was not carried out."""
    return encode_reply(Refusal(error=error.code, message=str(error)), ref)


class _Opening(msgspec.Struct):
    """What is looked at first in a reply."""

    ok: Raw | UnsetType = UNSET
    status: Raw = Raw(b"")
    items: Raw | UnsetType = UNSET


def _open_reply(line: bytes) -> _Opening:
    opening = open_as(_Opening, line)
    if opening.ok is UNSET:
        raise RemoteProtocolError(ErrorCode.BAD_JSON, "The server's reply has no ok.")
    if bytes(opening.ok) != b"true":
        refusal = read_as(Refusal, line)
        raise RequestRefused(refusal.error, refusal.message)
    return opening


def decode_reply(line: bytes, kind: type[T]) -> T:
    """Read the reply to any request but ``get``.

    Raises:
        RequestRefused: The server said no.
        RemoteProtocolError: It is no such reply.
    """
    _open_reply(line)
    return read_as(kind, line)


def decode_get_reply(line: bytes) -> Work | WorkLines | Retry | Complete:
    """Read the reply to a ``get``; the raw lines of a ``WorkLines`` follow it on the stream.

    Raises:
        RequestRefused: The server said no.
        RemoteProtocolError: It is no such reply.
    """
    opening = _open_reply(line)
    match bytes(opening.status):
        case b'"work"':
            if opening.items is UNSET:
                return read_as(WorkLines, line)
            return read_as(Work, line)
        case b'"retry"':
            return read_as(Retry, line)
        case b'"complete"':
            return read_as(Complete, line)
        case other:
            raise RemoteProtocolError(ErrorCode.BAD_JSON, f"The server's get has status {other!r}.")


def decode_status(line: bytes) -> Snapshot:
    """Read the reply to ``status``; raises as ``decode_reply``."""
    return decode_reply(line, Snapshot)


def is_json(line: bytes) -> bool:
    """Whether ``line`` is one JSON value (RFC 8259) in UTF-8 that this parser follows.

    It does not follow values deeper than its recursion limit (about 1,000 levels) and lone
    surrogate escapes.
    """
    try:
        if not line.isascii():
            line.decode()
        _raw.decode(line)
    except BAD_JSON_ERRORS:
        return False
    return True


def find_bad_json(block: bytes) -> int | None:
    """Look for the first line that is not JSON.

    Args:
        block: One line or more, each ended by a newline.

    Returns:
        Its place, from 0; None where all are JSON.
    """
    if block.find(b"\n") == len(block) - 1:  # one line: its newline is but space to JSON
        return None if is_json(block) else 0
    for piece, begin in _pieces(block):
        if not _is_plainly_json(piece):
            lines = piece.split(b"\n")
            lines.pop()  # behind the last newline
            bad = next((place for place, line in enumerate(lines) if not is_json(line)), None)
            if bad is not None:
                return block.count(b"\n", 0, begin) + bad
    return None


def _pieces(block: bytes) -> Iterator[tuple[bytes, int]]:
    """Cut a block into whole lines, and say where each piece begins."""
    begin = 0
    while begin < len(block):
        end = block.rfind(b"\n", begin, begin + _PIECE_BYTES) + 1 or block.find(b"\n", begin) + 1
        yield block[begin:end], begin
        begin = end


def _is_plainly_json(piece: bytes) -> bool:
    """Whether all lines are JSON; False also where that takes a closer look at each.

    All of them in one array take half the time. Put together again, its values are the lines they
    came from, or else a line has two of them, or a part of one, or space around it.
    """
    if len(piece) > _PIECE_BYTES:
        return False  # each value of the array takes room, and a long line may be a million values
    try:
        if not piece.isascii():
            piece.decode()
        values = _raws.decode(b"[%b]" % piece[:-1].replace(b"\n", b","))
    except BAD_JSON_ERRORS:
        return False
    values.append(Raw(b""))
    return b"\n".join(values) == piece


def work_items(
    numbers: Iterable[int], lines: Iterable[bytes], attempt: int, *, text: bool
) -> list[WorkItem]:
    """Make the rows for input lines: ``data`` for JSON, else ``line``, else ``base64``."""
    return [
        WorkItem(number, data=Raw(line), attempt=attempt)
        if not text and is_json(line)
        else _text_item(number, line, attempt)
        for number, line in zip(numbers, lines, strict=True)
    ]


def _text_item(line_number: int, line: bytes, attempt: int) -> WorkItem:
    try:
        return WorkItem(line_number, line=line.decode(), attempt=attempt)
    except UnicodeDecodeError:
        return WorkItem(line_number, base64=base64.b64encode(line).decode(), attempt=attempt)


def item_bytes(item: WorkItem) -> bytes:
    """Give the input line behind a row back, byte for byte.

    Raises:
        RemoteProtocolError: The row has none, or its base64 does not hold.
    """
    if item.data is not UNSET:
        return bytes(item.data)
    if item.line is not UNSET:
        return item.line.encode()
    try:
        return base64.b64decode(item.base64 if item.base64 is not UNSET else "!", validate=True)
    except ValueError as error:
        raise RemoteProtocolError(ErrorCode.BAD_JSON, f"Item {item.id} has no line.") from error
