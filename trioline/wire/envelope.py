"""Requests as they come in: opened in two steps, so that raw lines and refusals stay in step.

Nearly all are ``get`` and ``done``, and right: these are read at once. Whatever else there is goes
``open_with_care``'s way, which alone refuses; of what is read at once it makes the same.
"""

from __future__ import annotations

import json

import attrs
import msgspec
from msgspec import UNSET, Raw, UnsetType

from trioline.config import MAX_PLAIN_BYTES, MAX_RESULTS
from trioline.errors import ErrorCode, RemoteProtocolError
from trioline.wire.codec import BAD_JSON_ERRORS, Ref, open_as, read_as
from trioline.wire.messages import (
    Bye,
    Count,
    Done,
    DoneLines,
    Drain,
    Extend,
    Fail,
    Form,
    Get,
    Hello,
    Id,
    Note,
    Ping,
    Release,
    Request,
    Result,
    Seconds,
    Set,
    Status,
)

REQUESTS: dict[str, type[Request]] = {
    kind.op: kind
    for kind in (Hello, Get, Done, Fail, Release, Extend, Note, Status, Set, Drain, Ping, Bye)
}
"""What each ``op`` is; ``done`` with ``count`` is ``DoneLines`` instead."""

_int = msgspec.json.Decoder(int)
_str = msgspec.json.Decoder(str)


class _Opening(msgspec.Struct):
    """What is looked at first in a message: what else is in it may be anything."""

    op: Raw = Raw(b"null")
    ref: Raw | UnsetType = UNSET
    results: Raw | UnsetType = UNSET
    first: Raw | UnsetType = UNSET
    count: Raw | UnsetType = UNSET
    bytes: Raw | UnsetType = UNSET


class _Get(msgspec.Struct, tag_field="op", tag=Get.op, gc=False):
    """All of a ``get``."""

    max: Count = 1
    wait: Seconds = 0
    form: Form = Form.ITEMS
    stage: str | None = None
    ref: Raw | UnsetType = UNSET


class _Done(msgspec.Struct, tag_field="op", tag=Done.op):
    """All of a ``done`` in either form, or in both."""

    results: list[Result] | UnsetType = UNSET
    first: Id | UnsetType = UNSET
    count: Count | UnsetType = UNSET
    bytes: Id | None = None
    ref: Raw | UnsetType = UNSET


_common = msgspec.json.Decoder(_Get | _Done)


@attrs.define
class Envelope:
    """A message whose JSON holds; its fields may not. Nobody changes one: it is not frozen, as
    that takes four times as long, for every message."""

    op: str
    ref: Ref
    """Goes into the reply unchanged."""
    line: bytes
    """All of it."""
    known_request: Request | None = None
    """What ``request`` gives, where it was found at once."""
    raw_count: int = 0
    """How many raw lines follow the message, as far as it can be told; 0 where none do."""
    bytes_hint: int | None = None
    """How long those lines are said to be, with their newlines."""
    is_lines: bool = False
    """A ``done`` in lines form."""
    refusal: RemoteProtocolError | None = None
    """Why ``request`` will not have it, whatever the fields."""

    def request(self) -> Request:
        """Check the fields.

        Raises:
            RemoteProtocolError: With ``UNKNOWN_OP`` or ``BAD_REQUEST`` and the field's name.
        """
        if self.known_request is not None:
            return self.known_request
        if self.refusal is not None:
            raise self.refusal
        kind: type[Request] | None = DoneLines if self.is_lines else REQUESTS.get(self.op)
        if kind is None:
            raise RemoteProtocolError(
                ErrorCode.UNKNOWN_OP,
                f"There is no op {self.op[:40]!r}; see protocol.md for those there are.",
            )
        return read_as(kind, self.line)


def open_envelope(line: bytes) -> Envelope:
    """Read one message as far as its ``op`` and ``ref``.

    What is wrong with these is told by ``request``: raw lines that follow the message are to be
    read all the same.

    Raises:
        RemoteProtocolError: With ``BAD_JSON`` where it is not a JSON object in UTF-8.
    """
    # In ASCII also what is skipped, or left as it came, is UTF-8.
    if len(line) <= MAX_PLAIN_BYTES and line.isascii():
        envelope = _open_common(line)
        if envelope is not None:
            return envelope
    return open_with_care(line)


def _open_common(line: bytes) -> Envelope | None:
    try:
        seen: _Get | _Done = _common.decode(line)
    except BAD_JSON_ERRORS:
        return None
    ref = None
    if seen.ref is not UNSET:
        if not _is_scalar(seen.ref):
            return None
        ref = seen.ref
    if isinstance(seen, _Get):
        get = Get(max=seen.max, wait=seen.wait, form=seen.form, stage=seen.stage)
        return Envelope(Get.op, ref, line, get)
    results, first, count = seen.results, seen.first, seen.count
    if first is not UNSET and count is not UNSET and results is UNSET:
        lines = DoneLines(first=first, count=count, bytes=seen.bytes)
        return Envelope(Done.op, ref, line, lines, count, seen.bytes)
    if results is not UNSET and first is UNSET and count is UNSET:
        return Envelope(Done.op, ref, line, Done(results=results))
    return None  # neither form, or both


def open_with_care(line: bytes) -> Envelope:
    """Do what ``open_envelope`` does, for any message there may be."""
    try:
        opening = open_as(_Opening, line)
    except RemoteProtocolError:
        envelope = _open_with_surrogates(line)
        if envelope is None:
            raise
        return envelope
    envelope = Envelope(_op_of(opening), None, line)
    # A scalar is not decoded: a number beyond any machine's reach goes back as it came, too.
    if opening.ref is not UNSET and _is_scalar(opening.ref):
        envelope.ref = opening.ref
    if envelope.op == "done":
        envelope.is_lines = opening.count is not UNSET or opening.first is not UNSET
        if opening.count is not UNSET:
            envelope.raw_count = _number(opening.count) or 0
            envelope.bytes_hint = _number(opening.bytes)
    envelope.refusal = _refusal_of(envelope, opening)
    return envelope


def _is_scalar(value: Raw) -> bool:
    return not bytes(value).startswith((b"{", b"["))


def _op_of(opening: _Opening) -> str:
    try:
        return _str.decode(opening.op)
    except BAD_JSON_ERRORS:
        return ""


def _refusal_of(envelope: Envelope, opening: _Opening) -> RemoteProtocolError | None:
    results = opening.results if envelope.op == "done" else UNSET
    code, problem = ErrorCode.BAD_REQUEST, None
    if envelope.ref is None and opening.ref is not UNSET:
        problem = "ref must be a scalar: it is an object or an array."
    elif not envelope.op and bytes(opening.op) != b'""':
        problem = 'A request names what it wants in op, a string, as in {"op":"ping"}.'
    elif envelope.is_lines and results is not UNSET:
        problem = "done has either results, or first and count: not both."
    elif len(envelope.line) > MAX_PLAIN_BYTES:
        # Only a done has reason to be one.
        code = ErrorCode.TOO_LARGE
        if results is UNSET:
            problem = f"Only a done with results may be longer than {MAX_PLAIN_BYTES} bytes."
        elif _most_rows(envelope.line) > 4 * MAX_RESULTS:  # results may have an id, too
            problem = f"One done takes at most {MAX_RESULTS} results."
    return None if problem is None else RemoteProtocolError(code, problem)


def _most_rows(line: bytes) -> int:
    """At least as many as there are rows, also where their ``results`` stand there twice."""
    return line.count(b'"id"') + line.count(b"\\u006")  # an escaped i or d


def _open_with_surrogates(line: bytes) -> Envelope | None:
    """Read a message that has lone surrogate escapes, as far as to refuse it by name.

    Such escapes are JSON, but no text: there is no UTF-8 for them, and msgspec does not read on.
    """
    if len(line) > MAX_PLAIN_BYTES or b"\\ud" not in line.lower():
        return None
    try:
        message = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(message, dict) or not isinstance(message.get("op"), str):
        return None
    results = message.get("results")
    rows = [row for row in results if isinstance(row, dict)] if isinstance(results, list) else []
    culprit = next((row.get("id") for row in rows if _has_surrogates(row)), None)
    if message["op"] == "done" and culprit is not None:
        code, where = ErrorCode.BAD_RESULT, f"The result for line {culprit}"
    else:
        code, where = ErrorCode.BAD_REQUEST, "This message"
    refusal = RemoteProtocolError(
        code, f"{where} has a lone surrogate escape, which is no text; nothing of it was taken."
    )
    ref = message.get("ref")
    is_plain = ref is not None and not isinstance(ref, dict | list) and not _has_surrogates(ref)
    lines = message if message["op"] == "done" else {}
    return Envelope(
        message["op"],
        Raw(json.dumps(ref).encode()) if is_plain else None,
        line,
        # What says that raw lines follow must not be lost: they are to be read and dropped.
        raw_count=_count_of(lines.get("count")) or 0,
        bytes_hint=_count_of(lines.get("bytes")),
        refusal=refusal,
    )


def _has_surrogates(value: object) -> bool:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return True
    return False


def _number(raw: Raw | UnsetType) -> int | None:
    try:
        return None if raw is UNSET else _count_of(_int.decode(raw))
    except BAD_JSON_ERRORS:
        return None


def _count_of(value: object) -> int | None:
    return max(0, value) if isinstance(value, int) and not isinstance(value, bool) else None
