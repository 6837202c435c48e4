"""Results on their way to the server: waiting, sent, answered. No I/O.

Rows wait until they are packed into parcels (one ``done`` message each); a parcel is kept until
the server has answered it, and goes back to the waiting rows when the connection ends before:
repeating a ``done`` is always safe. A parcel that the server refuses, whole as ever, is cut in
halves until the one bad row stands alone.
"""

from __future__ import annotations

import threading
from collections import deque

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


@attrs.frozen(eq=False)
class Parcel:
    """Rows that go in one message."""

    rows: list[Row]
    request: Done | DoneLines
    body: bytes = b""


def pack(rows: list[Row]) -> list[Parcel]:
    """Put rows into as few and as cheap messages as can be."""
    rows = sorted(rows, key=_row_id)
    if _is_one_run(rows):
        return [_lines_parcel(part) for part in _cut(rows)]
    parcels: list[Parcel] = []
    scattered: list[Row] = []
    for run in _runs(rows):
        if len(run) >= MIN_RUN_ROWS or len(run) == len(rows) or not _fits_items_form(run):
            parcels += [_lines_parcel(part) for part in _cut(run)]
        else:
            scattered += run
    return parcels + [_items_parcel(part) for part in _cut(scattered)]


def _row_id(row: Row) -> int:
    return row[0]


def _is_one_run(rows: list[Row]) -> bool:
    """Whether these are results of lines that follow each other, as they mostly are."""
    first = rows[0][0] if rows else 0
    follow = [row[0] for row in rows] == list(range(first, first + len(rows)))
    return follow and Failure not in {type(row[1]) for row in rows}


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
    """Keep to the limits of one message."""
    if len(rows) <= MAX_PARCEL_ROWS and sum(map(_row_bytes, rows)) <= MAX_PARCEL_BYTES:
        return [rows] if rows else []
    parts: list[list[Row]] = []
    size = 0
    for row in rows:
        length = _row_bytes(row)
        if not parts or size + length > MAX_PARCEL_BYTES or len(parts[-1]) == MAX_PARCEL_ROWS:
            parts.append([])
            size = 0
        parts[-1].append(row)
        size += length
    return parts


def _row_bytes(row: Row) -> int:
    outcome = row[1]
    return len(outcome.error) if isinstance(outcome, Failure) else len(outcome) + 1


def _lines_parcel(rows: list[Row]) -> Parcel:
    if isinstance(rows[0][1], Failure):
        return _items_parcel(rows)
    lines = [outcome for _, outcome in rows if not isinstance(outcome, Failure)]
    lines.append(b"")
    body = b"\n".join(lines)
    return Parcel(rows, DoneLines(first=rows[0][0], count=len(rows), bytes=len(body)), body)


def _items_parcel(rows: list[Row]) -> Parcel:
    return Parcel(rows, Done(results=[result_row(*row) for row in rows]))


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

    ``add`` may be called from any thread; everything else by one thread at a time.
    """

    def __init__(self) -> None:
        self._waiting: deque[Row] = deque()
        self._again: deque[list[Row]] = deque()
        self._sent: dict[int, Parcel] = {}
        self._lock = threading.Lock()
        self._waiting_bytes = 0
        self._sent_bytes = 0
        self.accepted = 0
        """Results that count."""
        self.duplicate = 0
        """Results that came too late to count: another worker was first."""
        self.failed = 0
        """Failed attempts."""
        self.refused: list[tuple[int, RequestRefused]] = []
        """Rows the server will never take, and why; whoever reads them empties the list."""

    def __len__(self) -> int:
        sent = sum(len(parcel.rows) for parcel in self._sent.values())
        return self.waiting + sent

    @property
    def waiting(self) -> int:
        """Rows that are to be sent."""
        return len(self._waiting) + sum(map(len, self._again))

    @property
    def has_returned(self) -> bool:
        """Whether there are rows among those to be sent that were sent before."""
        return bool(self._again)

    @property
    def in_flight(self) -> int:
        """Parcels without an answer."""
        return len(self._sent)

    @property
    def waiting_bytes(self) -> int:
        """The payload of the rows that were never sent."""
        return self._waiting_bytes

    @property
    def size_bytes(self) -> int:
        """The payload of all that is not answered."""
        return self._waiting_bytes + self._sent_bytes

    def add(self, number: int, outcome: Outcome) -> None:
        """Put a line's outcome in."""
        row = (number, outcome)
        with self._lock:
            self._waiting.append(row)
            self._waiting_bytes += _row_bytes(row)

    def take(self) -> list[Parcel]:
        """Pack all that waits; each parcel must be answered by one of the methods below."""
        parcels: list[Parcel] = []
        while self._again:
            parcels += pack(self._again.popleft())
        with self._lock:
            rows = list(self._waiting)
            self._waiting.clear()
            self._sent_bytes += self._waiting_bytes
            self._waiting_bytes = 0
        parcels += pack(rows)
        self._sent.update((id(parcel), parcel) for parcel in parcels)
        return parcels

    def acknowledge(self, parcel: Parcel, reply: DoneReply) -> None:
        """The server has it, for good."""
        self._remove(parcel)
        self._sent_bytes -= sum(map(_row_bytes, parcel.rows))
        self.accepted += reply.accepted
        self.duplicate += reply.duplicate
        self.failed += reply.failed

    def put_back(self, parcel: Parcel) -> None:
        """Nobody knows whether the server has it: it is sent again."""
        self._remove(parcel)
        self._again.appendleft(parcel.rows)

    def refuse(self, parcel: Parcel, refusal: RequestRefused) -> None:
        """The server took nothing of it: the halves are sent, or one row is given up.

        A single result that is no valid result becomes a failed attempt, with the server's words.
        """
        self._remove(parcel)
        rows = parcel.rows
        if len(rows) > 1:
            middle = len(rows) // 2
            self._again.extend([rows[:middle], rows[middle:]])
            return
        number, outcome = rows[0]
        self._sent_bytes -= _row_bytes(rows[0])
        if refusal.code in RESULT_CODES and not isinstance(outcome, Failure):
            failure = (number, Failure(f"The server refused the result: {refusal}"))
            self._again.append([failure])
            self._sent_bytes += _row_bytes(failure)
        else:
            self.refused.append((number, refusal))

    def _remove(self, parcel: Parcel) -> None:
        del self._sent[id(parcel)]


RESULT_CODES = frozenset({ErrorCode.BAD_RESULT, ErrorCode.TOO_LARGE, ErrorCode.BAD_REQUEST})
"""Refusals that say that the result itself is at fault."""
