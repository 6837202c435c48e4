"""Requests as they come in: opened in two steps, so that raw lines and refusals stay in step."""

from __future__ import annotations

import contextlib
import functools
import json

import attrs
import msgspec
from msgspec import UNSET, Raw, UnsetType

from trioline.config import MAX_PLAIN_BYTES, MAX_RESULTS
from trioline.errors import ErrorCode, RemoteProtocolError
from trioline.wire.codec import BAD_JSON_ERRORS, Ref, open_as, read_as
from trioline.wire.messages import (
    Bye,
    Done,
    DoneLines,
    Drain,
    Extend,
    Fail,
    Get,
    Hello,
    Note,
    Ping,
    Release,
    Request,
    Set,
    Status,
)

REQUESTS: dict[str, type[Request]] = {
    kind.op: kind
    for kind in (Hello, Get, Done, Fail, Release, Extend, Note, Status, Set, Drain, Ping, Bye)
}
"""What each ``op`` is; ``done`` with ``count`` is ``DoneLines`` instead."""

ALIKE = b'{"op":"get"'
MAX_ALIKE_BYTES = 256
MAX_ALIKE = 256
"""The last messages that begin so, and are no longer, are remembered: each ``get`` of a client
is like the one before."""

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


@attrs.define
class Envelope:
    """A message whose JSON holds, before its fields are looked at. Nobody changes one: it is not
    frozen, as that takes four times as long, for every message."""

    op: str
    ref: Ref
    """Goes into the reply unchanged."""
    line: bytes
    """All of it."""
    is_lines: bool = False
    """A ``done`` in lines form."""
    raw_count: int = 0
    """How many raw lines follow the message, as far as it can be told; 0 where none do."""
    bytes_hint: int | None = None
    """How long those lines are said to be, with their newlines."""
    refusal: RemoteProtocolError | None = None
    """Why ``request`` will not have it, whatever the fields."""
    known_request: Request | None = None
    """What ``request`` would make of it once more."""

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
    is_alike = len(line) <= MAX_ALIKE_BYTES and line.startswith(ALIKE)
    return _open_alike(line) if is_alike else _open(line)


@functools.lru_cache(MAX_ALIKE)
def _open_alike(line: bytes) -> Envelope:
    envelope = _open(line)
    if envelope.refusal is None:
        with contextlib.suppress(RemoteProtocolError):
            envelope.known_request = envelope.request()
    return envelope


def _open(line: bytes) -> Envelope:
    try:
        opening = open_as(_Opening, line)
    except RemoteProtocolError:
        envelope = _open_with_surrogates(line)
        if envelope is None:
            raise
        return envelope
    envelope = Envelope(_op_of(opening), None, line)
    # A scalar is not decoded: a number beyond any machine's reach goes back as it came, too.
    if opening.ref is not UNSET and not bytes(opening.ref).startswith((b"{", b"[")):
        envelope.ref = opening.ref
    if envelope.op == "done":
        envelope.is_lines = opening.count is not UNSET or opening.first is not UNSET
        if opening.count is not UNSET:
            envelope.raw_count = _number(opening.count) or 0
            envelope.bytes_hint = _number(opening.bytes)
    envelope.refusal = _refusal_of(envelope, opening)
    return envelope


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
