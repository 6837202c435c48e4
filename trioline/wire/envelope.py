"""Requests as they come in: opened in two steps, so that raw lines and refusals stay in step."""

from __future__ import annotations

import json

import attrs
import msgspec
from msgspec import UNSET, Raw, UnsetType

from trioline.config import MAX_PLAIN_BYTES, MAX_RESULTS
from trioline.errors import ErrorCode, RemoteProtocolError
from trioline.wire.codec import BAD_JSON_ERRORS, Ref, bad_json, open_fields, structure
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

_int = msgspec.json.Decoder(int)
_str = msgspec.json.Decoder(str)


@attrs.define
class Envelope:
    """A message whose JSON holds, before its fields are looked at. Nobody changes one: it is not
    frozen, as that takes four times as long, for every message."""

    op: str
    ref: Ref
    """Goes into the reply unchanged."""
    fields: dict[str, Raw]
    raw_count: int = 0
    """How many raw lines follow the message, as far as it can be told; 0 where none do."""
    bytes_hint: int | None = None
    """How long those lines are said to be, with their newlines."""
    refusal: RemoteProtocolError | None = None
    """Why ``request`` will not have it, whatever the fields."""

    def request(self) -> Request:
        """Check the fields.

        Raises:
            RemoteProtocolError: With ``UNKNOWN_OP`` or ``BAD_REQUEST`` and the field's name.
        """
        if self.refusal is not None:
            raise self.refusal
        if "ref" in self.fields:
            raise RemoteProtocolError(
                ErrorCode.BAD_REQUEST, "ref must be a scalar: it is an object or an array."
            )
        if "op" in self.fields:
            raise RemoteProtocolError(
                ErrorCode.BAD_REQUEST,
                'A request names what it wants in op, a string, as in {"op":"ping"}.',
            )
        kind = REQUESTS.get(self.op)
        if kind is None:
            raise RemoteProtocolError(
                ErrorCode.UNKNOWN_OP,
                f"There is no op {self.op[:40]!r}; see protocol.md for those there are.",
            )
        if kind is Done and ("count" in self.fields or "first" in self.fields):
            if "results" in self.fields:
                raise RemoteProtocolError(
                    ErrorCode.BAD_REQUEST, "done has either results, or first and count: not both."
                )
            kind = DoneLines
        return structure(self.fields, kind)


def open_envelope(line: bytes) -> Envelope:
    """Read one message as far as its ``op`` and ``ref``.

    An ``op`` that is no string and a ``ref`` that is no scalar stay among the fields, and
    ``request`` refuses them: raw lines that follow the message are to be read all the same.

    Raises:
        RemoteProtocolError: With ``BAD_JSON`` where it is not a JSON object in UTF-8.
    """
    if len(line) > MAX_PLAIN_BYTES:
        return _open_large(line)
    try:
        return _envelope_of(open_fields(line))
    except RemoteProtocolError:
        envelope = _open_with_surrogates(line)
        if envelope is None:
            raise
        return envelope


class _Opening(msgspec.Struct):
    """What is looked at first in a large message: what else is in it may be anything."""

    op: Raw = Raw(b"null")
    ref: Raw | UnsetType = UNSET
    results: Raw | UnsetType = UNSET
    count: Raw | UnsetType = UNSET
    bytes: Raw | UnsetType = UNSET


_opening = msgspec.json.Decoder(_Opening)


def _open_large(line: bytes) -> Envelope:
    """Read a message of more than ``MAX_PLAIN_BYTES``: only a ``done`` has reason to be one."""
    try:
        line.decode()
        opening = _opening.decode(line)
    except BAD_JSON_ERRORS as error:
        envelope = _open_with_surrogates(line)
        if envelope is None:
            raise bad_json(error) from error
        return envelope
    found = msgspec.structs.asdict(opening)
    fields = {name: raw for name, raw in found.items() if raw is not UNSET}
    envelope = _envelope_of(fields)
    results = bytes(fields.get("results", b""))
    if envelope.op != "done" or not results:
        problem = f"Only a done with results may be longer than {MAX_PLAIN_BYTES} bytes."
    elif "count" in fields:
        problem = "A done has either results, or first and count: not both."
    elif results.count(b'"id"') > 4 * MAX_RESULTS:  # results may have an id, too
        problem = f"One done takes at most {MAX_RESULTS} results."
    else:
        return envelope
    return attrs.evolve(envelope, refusal=RemoteProtocolError(ErrorCode.TOO_LARGE, problem))


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
    # What says that raw lines follow must not be lost: they are to be read and dropped.
    fields = {
        name: Raw(json.dumps(message[name]).encode())
        for name in ("count", "bytes")
        if isinstance(message.get(name), int)
    }
    plain_ref = Raw(json.dumps(ref).encode()) if is_plain else None
    return attrs.evolve(_envelope(message["op"], plain_ref, fields), refusal=refusal)


def _has_surrogates(value: object) -> bool:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return True
    return False


def _envelope_of(fields: dict[str, Raw]) -> Envelope:
    ref = fields.get("ref")
    # A scalar is not decoded: a number beyond any machine's reach goes back as it came, too.
    if ref is not None and bytes(ref).startswith((b"{", b"[")):
        ref = None
    else:
        fields.pop("ref", None)
    try:
        op = _str.decode(fields["op"])
        del fields["op"]
    except (KeyError, *BAD_JSON_ERRORS):
        op, fields["op"] = "", fields.get("op", Raw(b"null"))
    return _envelope(op, ref, fields)


def _envelope(op: str, ref: Ref, fields: dict[str, Raw]) -> Envelope:
    if op != "done" or "count" not in fields:
        return Envelope(op, ref, fields)
    return Envelope(op, ref, fields, _number(fields["count"]) or 0, _number(fields.get("bytes")))


def _number(raw: Raw | None) -> int | None:
    try:
        return None if raw is None else max(0, _int.decode(raw))
    except BAD_JSON_ERRORS:
        return None
