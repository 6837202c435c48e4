"""One line of work, and what a function returned for it as one line of output."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import attrs
import msgspec

from trioline.config import MAX_LINE_BYTES, MAX_TEXT_CHARS
from trioline.errors import LocalProtocolError

_UNREAD: Any = object()
_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder().decode
_PLAIN = frozenset({str, int, float, bool, type(None)})
"""Types with nothing in them that JSON lacks."""


class Item(msgspec.Struct, eq=False, gc=False):
    """One input line that is leased to this worker.

    A msgspec struct, because one is made for every line: a third of the cost of a plain class.
    """

    id: int
    """The line's number in the input, from 0."""
    attempt: int
    """Which attempt at the line this is, from 1."""
    raw: bytes
    """The input line byte for byte, without its newline."""
    notes: dict[int, str] | None = None
    """Where ``note`` leaves its text; None where nobody would send it."""
    _data: Any = _UNREAD

    @property
    def line(self) -> str:
        """The line as text.

        Bytes that are not UTF-8 become lone surrogates (``surrogateescape``): a result that is
        sent as text gets the same bytes back from them.
        """
        return self.raw.decode("utf-8", "surrogateescape")

    @property
    def data(self) -> Any:  # noqa: ANN401 - whatever the line holds
        """The line as parsed JSON; parsed once, the same object each time.

        Raises:
            ValueError: It is not JSON.
        """
        if self._data is _UNREAD:
            self._data = _parse(self.raw)
        return self._data

    def note(self, text: str) -> None:
        """Leave a text for whoever watches the job. Never blocks; of several the last one counts.

        Raises:
            LocalProtocolError: The item was not given out by a worker or a ``Client``.
        """
        if self.notes is None:
            raise LocalProtocolError("Nobody would send this item's note: use Session.note.")
        self.notes[self.id] = text


def _parse(raw: bytes) -> Any:  # noqa: ANN401 - whatever the line holds
    try:
        return _decode(raw)
    except msgspec.DecodeError:
        return json.loads(raw)  # knows lone surrogate escapes, NaN and deeper nesting


class Raw(bytes):
    """A result that is written to the output byte for byte, instead of being encoded."""

    __slots__ = ()


class Reject(Exception):
    """Raised by a worker's function: this line can't be done, not by anyone: don't retry it."""


class GiveBack(Exception):
    """Raised or returned for a line that was not worked on: it costs no attempt."""


class GiveUp(GiveBack):
    """Raised where no line can be worked on at all: the worker ends, and its text says why."""


@attrs.frozen
class Failure:
    """A failed attempt, as it is told to the server."""

    error: str
    retry: bool = True


Outcome = bytes | Failure
"""What becomes of a line: its output line without newline (JSON, or ``Raw``), or a failure."""


def encode_result(value: object, *, text: bool = False) -> bytes:
    """Write what a function returned as one output line, without its newline.

    Args:
        value: ``Raw`` for bytes as they are, else anything that JSON can hold. Also what has one
            plain form in it: tuples are arrays; dataclasses, attrs classes and msgspec structs are
            objects; dates and times are ISO 8601 text; UUIDs and Decimals are text; enums are
            their values. Sets and bytes have none, and are refused, however deep they lie.
        text: ``str`` and ``bytes`` are the line itself (for jobs with ``--text``).

    Returns:
        JSON as ``bytes``, anything else as ``Raw``.

    Raises:
        ValueError: JSON cannot hold it (NaN, infinity, lone surrogates, too deep) or it has a
            newline.
        TypeError: It has a type that JSON does not know, sets and bytes among them.
    """
    if isinstance(value, Raw):
        return _one_line(value)
    if text and isinstance(value, str):
        return _one_line(Raw(value.encode("utf-8", "surrogateescape")))
    if text and isinstance(value, (bytes, bytearray)):
        return _one_line(Raw(value))
    try:
        line = _encode(value)
    except UnicodeEncodeError as error:
        raise ValueError(f"the result has a lone surrogate, which UTF-8 lacks: {error}") from error
    except RecursionError as error:
        raise ValueError("the result is nested too deeply, or holds itself") from error
    except TypeError:
        _refuse_sets_and_bytes(value)
        return json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    if type(value) not in _PLAIN:
        _refuse_sets_and_bytes(value)
    if b"null" in line:  # msgspec writes NaN and the infinities as null
        _refuse_nan(msgspec.to_builtins(value))
    return line


def _one_line(raw: Raw) -> Raw:
    if raw.find(b"\n") >= 0:
        raise ValueError("the result has a newline in it; it must be one line")
    return raw


def _refuse_sets_and_bytes(value: object) -> None:
    """Find what msgspec would write as an array in any order, or as base64."""
    rest = [value]
    while rest:
        each = rest.pop()
        if type(each) is dict:
            parts: Sequence[object] = [*each, *each.values()]
        elif type(each) is list:
            parts = each
        else:
            parts = _parts(each)
        if not _PLAIN.issuperset(map(type, parts)):  # in C, since nearly all results are plain
            rest += [part for part in parts if type(part) not in _PLAIN]


def _parts(value: object) -> Sequence[object]:
    if isinstance(value, (bytes, bytearray, memoryview)):
        raise TypeError(
            f"the result holds {type(value).__name__}, which JSON lacks: decode them, or return "
            "trioline.Raw for a line as it is"
        )
    if isinstance(value, (set, frozenset)):
        raise TypeError(
            f"the result holds a {type(value).__name__}, which JSON lacks: make it a list, "
            "sorted perhaps"
        )
    if isinstance(value, (list, tuple)):
        return value
    if isinstance(value, Mapping):
        return [*value, *value.values()]
    return _fields(value)


def _fields(value: object) -> list[object]:
    kind = type(value)
    names = [
        *getattr(kind, "__struct_fields__", ()),
        *getattr(kind, "__dataclass_fields__", ()),
        *(field.name for field in getattr(kind, "__attrs_attrs__", ())),
    ]
    return [getattr(value, name, None) for name in names]


def _refuse_nan(value: object) -> None:
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"the result holds {value}, which JSON lacks")
    if isinstance(value, Mapping):
        for inner in value.values():
            _refuse_nan(inner)
    elif isinstance(value, (list, tuple)):
        for inner in value:
            _refuse_nan(inner)


def outcome_of(value: object, *, text: bool = False, max_bytes: int = MAX_LINE_BYTES) -> Outcome:
    """Turn what a function returned into the line's outcome; never raises.

    Args:
        value: The result; an exception stands for a failed attempt.
        text: As in ``encode_result``.
        max_bytes: The longest result the server takes.
    """
    if type(value) is Raw and value.find(b"\n") < 0 and len(value) <= max_bytes:
        return value  # nothing more is to be looked at
    if isinstance(value, Exception):
        return failure_of(value)
    try:
        line = encode_result(value, text=text)
    except Exception as error:  # noqa: BLE001 - foreign classes may raise anything here
        return Failure(_cut(f"The result cannot be written: {_describe(error)}"))
    if len(line) > max_bytes:
        return Failure(f"The result is {len(line)} bytes long; the server takes {max_bytes}.")
    return line


def failure_of(error: BaseException) -> Failure:
    """Turn an exception of a worker's function into a failed attempt."""
    return Failure(_cut(_describe(error)), retry=not isinstance(error, Reject))


def _describe(error: BaseException) -> str:
    try:
        text = str(error)
    except Exception:  # noqa: BLE001 - a broken __str__ must not end the worker
        text = "(its text cannot be had)"
    name = type(error).__name__
    return f"{name}: {text}" if text else name


def _cut(text: str) -> str:
    return text[:MAX_TEXT_CHARS].encode("utf-8", "replace").decode()
