"""Results on their way to the server: waiting, sent, answered. No I/O.

Rows wait until they are packed into parcels (one ``done`` message each); a parcel is kept until
the server has answered it, and goes back to the waiting rows when the connection ends before:
repeating a ``done`` is always safe. A parcel that the server refuses, whole as ever, is cut in
halves until the one bad row stands alone.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from operator import itemgetter
from typing import Any

import attrs
import msgspec

from trioline.client.item import Failure, Outcome, Raw
from trioline.errors import ErrorCode, RequestRefused
from trioline.wire.messages import Done, DoneLines, DoneReply, Result

Row = tuple[int, Outcome]
"""A line's number and what becomes of it."""

MAX_PARCEL_ROWS = 10_000
"""Rows in one ``done``: as many as a lease can hold."""
MAX_PARCEL_BYTES = 8 * 1024 * 1024
"""Payload of one ``done``, unless one row alone is longer; JSON makes six times that of it at
the worst, which still is below the server's limit for a line."""
MIN_RUN_ROWS = 8
"""Results of so many lines that follow each other go in lines form, the others together in items
form: a message of its own costs as much as some rows in another."""


@attrs.frozen(eq=False, kw_only=True)
class Parcel:
    """Rows that go in one message."""

    request: Done | DoneLines
    body: bytes = b""
    count: int
    size_bytes: int
    """Their payload."""
    _scattered: list[Row] = attrs.Factory(list)

    @classmethod
    def of_lines(cls, first: int, count: int, body: bytes) -> Parcel:
        """Results of lines that follow each other, each with its newline."""
        request = DoneLines(first=first, count=count, bytes=len(body))
        return cls(request=request, body=body, count=count, size_bytes=len(body))

    @classmethod
    def of_rows(cls, rows: list[Row]) -> Parcel:
        """Results of any lines, and failures; the bytes of each must be UTF-8."""
        size_bytes = sum(map(_row_bytes, rows))
        request = Done(results=[result_row(*row) for row in rows])
        return cls(request=request, count=len(rows), size_bytes=size_bytes, scattered=rows)

    @property
    def rows(self) -> list[Row]:
        """Its rows; in lines form they are made anew each time."""
        if isinstance(self.request, Done):
            return self._scattered
        return list(enumerate(self.body[:-1].split(b"\n"), self.request.first))


def pack(rows: list[Row]) -> list[Parcel]:
    """Put rows into as few and as cheap messages as can be."""
    rows = sorted(rows, key=itemgetter(0))
    parcels: list[Parcel] = []
    for begin in range(0, len(rows), MAX_PARCEL_ROWS):
        part = rows[begin : begin + MAX_PARCEL_ROWS]
        whole = _one_run(part)
        parcels += _pack_apart(part) if whole is None else [whole]
    return parcels


def _one_run(rows: list[Row]) -> Parcel | None:
    """Pack results of lines that follow each other, as they mostly are, without a look at each."""
    first, count = rows[0][0], len(rows)
    if [number for number, _ in rows] != list(range(first, first + count)):
        return None
    lines: list[Any] = [outcome for _, outcome in rows]
    lines.append(b"")
    try:
        body = b"\n".join(lines)
    except TypeError:  # a failure is among them
        return None
    return Parcel.of_lines(first, count, body) if len(body) <= MAX_PARCEL_BYTES else None


def _pack_apart(rows: list[Row]) -> list[Parcel]:
    parcels: list[Parcel] = []
    scattered: list[Row] = []
    for run in _runs(rows):
        if len(run) >= MIN_RUN_ROWS or len(run) == len(rows) or not _fits_items_form(run):
            parcels += [_run_parcel(part) for part in _cut(run)]
        else:
            scattered += run
    return parcels + [Parcel.of_rows(part) for part in _cut(scattered)]


def _runs(rows: list[Row]) -> list[list[Row]]:
    """Split into results that follow each other, and failures one by one."""
    runs: list[list[Row]] = []
    following = -1
    for row in rows:
        number, outcome = row
        if isinstance(outcome, Failure):
            runs.append([row])
            following = -1
        else:
            if number == following:
                runs[-1].append(row)
            else:
                runs.append([row])
            following = number + 1
    return runs


def _fits_items_form(run: list[Row]) -> bool:
    return all(_is_utf8(outcome) for _, outcome in run if isinstance(outcome, Raw))


def _is_utf8(line: bytes) -> bool:
    try:
        line.decode()
    except UnicodeDecodeError:
        return False
    return True


def _cut(rows: list[Row]) -> list[list[Row]]:
    """Keep to the payload of one message."""
    parts: list[list[Row]] = []
    size = 0
    for row in rows:
        length = _row_bytes(row)
        if not parts or size + length > MAX_PARCEL_BYTES:
            parts.append([])
            size = 0
        parts[-1].append(row)
        size += length
    return parts


def _row_bytes(row: Row) -> int:
    outcome = row[1]
    return len(outcome.error) if isinstance(outcome, Failure) else len(outcome) + 1


def _run_parcel(rows: list[Row]) -> Parcel:
    lines = [outcome for _, outcome in rows if not isinstance(outcome, Failure)]
    if not lines:
        return Parcel.of_rows(rows)
    return Parcel.of_lines(rows[0][0], len(rows), b"\n".join([*lines, b""]))


def result_row(number: int, outcome: Outcome) -> Result:
    """Make the row of a ``done`` in items form.

    Raises:
        UnicodeDecodeError: A ``Raw`` is not UTF-8: only the lines form can carry it.
    """
    if isinstance(outcome, Failure):
        return Result(number, error=outcome.error, retry=outcome.retry)
    if isinstance(outcome, Raw):
        return Result(number, line=outcome.decode())  # may be no JSON: the server looks
    return Result(number, result=msgspec.Raw(outcome))


class Outbox:
    """All results of a worker that the server has not answered yet.

    ``add``, ``add_quickly`` and ``count_bytes`` may be called from any thread; everything else by
    one thread at a time.
    """

    def __init__(self) -> None:
        self._waiting: list[Row] = []
        self._packed: deque[Parcel] = deque()
        self._sent: dict[int, Parcel] = {}
        self.waiting_bytes = 0
        """About the payload of the rows that were never sent."""
        self._parcel_bytes = 0
        self.add_quickly: Callable[[Row], None] = self._waiting.append
        """Put a line's outcome in, without a Python call; ``count_bytes`` afterwards."""
        self.accepted = 0
        """Results that count."""
        self.duplicate = 0
        """Results that came too late to count: another worker was first."""
        self.failed = 0
        """Failed attempts."""
        self.refused: list[tuple[int, RequestRefused]] = []
        """Rows the server will never take, and why; whoever reads them empties the list."""

    def __len__(self) -> int:
        return self.waiting + sum(parcel.count for parcel in self._sent.values())

    @property
    def waiting(self) -> int:
        """Rows that are to be sent."""
        return len(self._waiting) + sum(parcel.count for parcel in self._packed)

    @property
    def has_parcels(self) -> bool:
        """Whether there are messages to be sent that were sent before, or blocks."""
        return bool(self._packed)

    @property
    def in_flight(self) -> int:
        """Parcels without an answer."""
        return len(self._sent)

    @property
    def size_bytes(self) -> int:
        """About the payload of all that is not answered."""
        return self.waiting_bytes + self._parcel_bytes

    def add(self, number: int, outcome: Outcome) -> None:
        """Put a line's outcome in."""
        self._waiting.append((number, outcome))
        self.waiting_bytes += len(outcome.error if isinstance(outcome, Failure) else outcome)

    def add_block(self, first: int, count: int, body: bytes) -> None:
        """Put in results of lines that follow each other, each with its newline, as one message."""
        parcel = Parcel.of_lines(first, count, body)
        self._packed.append(parcel)
        self._parcel_bytes += parcel.size_bytes

    def count_bytes(self, count: int) -> None:
        """Take note of the payload that was put in with ``add_quickly``."""
        # Threads may lose one count to another: it is for bounds, and begins anew with each take.
        self.waiting_bytes += count

    def take(self) -> list[Parcel]:
        """Pack all that waits; each parcel must be answered by one of the methods below."""
        count = len(self._waiting)
        rows = self._waiting[:count]
        del self._waiting[:count]  # threads may have put more in
        self.waiting_bytes = 0
        self._pack(rows)
        parcels = list(self._packed)
        self._packed.clear()
        self._sent.update((id(parcel), parcel) for parcel in parcels)
        return parcels

    def acknowledge(self, parcel: Parcel, reply: DoneReply) -> None:
        """The server has it, for good."""
        del self._sent[id(parcel)]
        self._parcel_bytes -= parcel.size_bytes
        self.accepted += reply.accepted
        self.duplicate += reply.duplicate
        self.failed += reply.failed

    def put_back(self, parcel: Parcel) -> None:
        """Nobody knows whether the server has it: it is sent again."""
        del self._sent[id(parcel)]
        self._packed.appendleft(parcel)

    def refuse(self, parcel: Parcel, refusal: RequestRefused) -> None:
        """The server took nothing of it: the halves are sent, or one row is given up.

        A single result that is no valid result becomes a failed attempt, with the server's words.
        """
        del self._sent[id(parcel)]
        self._parcel_bytes -= parcel.size_bytes
        rows = parcel.rows
        if len(rows) > 1:
            middle = len(rows) // 2
            self._pack(rows[:middle])
            self._pack(rows[middle:])
            return
        number, outcome = rows[0]
        if refusal.code in RESULT_CODES and not isinstance(outcome, Failure):
            self._pack([(number, Failure(f"The server refused the result: {refusal}"))])
        else:
            self.refused.append((number, refusal))

    def _pack(self, rows: list[Row]) -> None:
        parcels = pack(rows)
        self._parcel_bytes += sum(parcel.size_bytes for parcel in parcels)
        self._packed.extend(parcels)


RESULT_CODES = frozenset({ErrorCode.BAD_RESULT, ErrorCode.TOO_LARGE, ErrorCode.BAD_REQUEST})
"""Refusals that say that the result itself is at fault."""
