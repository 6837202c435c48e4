"""Results as they come in: checked whole before any of them is taken."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import attrs
from msgspec import UNSET

from trioline.config import MAX_TEXT_CHARS
from trioline.errors import ErrorCode, RemoteProtocolError
from trioline.storage.job import Results
from trioline.wire.codec import find_bad_json, is_json
from trioline.wire.messages import Result

NumberOf = Callable[[int], int]
"""A line's number on the wire."""


@attrs.frozen
class Failed:
    """A row that says an attempt failed."""

    text: str
    retry: bool


@attrs.define(kw_only=True)
class CheckedResults:
    """The results of one ``done``, all of them fit to be written. Nobody changes it from here on;
    to freeze it would take four times as long."""

    runs: Sequence[range]
    """Lines with a result, in order."""
    entry: Callable[[range], Results]
    """Makes the entry for any part of a run."""
    errors: dict[int, Failed]
    """Lines whose attempt failed."""
    row_count: int
    size_bytes: int


def check_block(
    lines: range, block: bytes, number_of: NumberOf = int, *, text: bool
) -> CheckedResults:
    """Check raw result lines.

    Raises:
        RemoteProtocolError: ``BAD_RESULT`` with the first line that is not fit.
    """
    bad = _find_bad_text(block) if text else find_bad_json(block)
    if bad is not None:
        raise _bad_result(number_of(lines[bad]), text=text)

    count = len(lines)

    def entry(part: range) -> Results:
        if part == lines:
            return Results(lines.start, count, block)
        rows = block.split(b"\n")[part.start - lines.start : part.stop - lines.start]
        return Results(part.start, len(part), b"\n".join(rows) + b"\n")

    return CheckedResults(
        runs=(lines,), entry=entry, errors={}, row_count=count, size_bytes=len(block)
    )


def check_rows(rows: Sequence[Result], number_of: NumberOf = int, *, text: bool) -> CheckedResults:
    """Check results that came as JSON objects; of several with one id the first counts.

    Raises:
        RemoteProtocolError: ``BAD_RESULT`` with the id that is not fit, ``BAD_REQUEST`` where a
            row does not have exactly one of result, line and error.
    """
    payloads: dict[int, bytes] = {}
    errors: dict[int, Failed] = {}
    for row in rows:
        if row.id in payloads or row.id in errors:
            continue
        if row.result is not UNSET and row.line is None and row.error is None:
            payloads[row.id] = bytes(row.result)
        elif row.line is not None and row.result is UNSET and row.error is None:
            payloads[row.id] = _line_payload(number_of(row.id), row.line, text=text)
        elif row.error is not None and row.result is UNSET and row.line is None:
            errors[row.id] = Failed(row.error[:MAX_TEXT_CHARS], row.retry)
        else:
            line = number_of(row.id)
            raise RemoteProtocolError(
                ErrorCode.BAD_REQUEST,
                f"The result for line {line} needs exactly one of result, line and error.",
            )

    def entry(part: range) -> Results:
        return Results(part.start, len(part), b"\n".join([*map(payloads.__getitem__, part), b""]))

    return CheckedResults(
        runs=tuple(_runs(sorted(payloads))),
        entry=entry,
        errors=errors,
        row_count=len(rows),
        size_bytes=sum(map(len, payloads.values())) + len(payloads),
    )


def _line_payload(line: int, result: str, *, text: bool) -> bytes:
    payload = result.encode()
    if b"\n" in payload or not (text or is_json(payload)):
        raise _bad_result(line, text=text)
    return payload


def _find_bad_text(block: bytes) -> int | None:
    try:
        block.decode()
    except UnicodeDecodeError as error:
        return block.count(b"\n", 0, error.start)
    return None


def _bad_result(line: int, *, text: bool) -> RemoteProtocolError:
    wanted = "one line of UTF-8 text" if text else "one line of valid JSON in UTF-8"
    return RemoteProtocolError(
        ErrorCode.BAD_RESULT,
        f"The result for line {line} is not {wanted}; nothing of this message was taken.",
    )


def _runs(lines: Sequence[int]) -> Iterator[range]:
    if lines and lines[-1] - lines[0] + 1 == len(lines):
        yield range(lines[0], lines[-1] + 1)
        return
    start = 0
    for place in range(1, len(lines) + 1):
        if place == len(lines) or lines[place] != lines[place - 1] + 1:
            yield range(lines[start], lines[place - 1] + 1)
            start = place
