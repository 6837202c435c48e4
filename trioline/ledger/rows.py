"""The rows of the ledger, and what its operations return."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import compress, count
from typing import NewType

import attrs

HolderId = NewType("HolderId", int)
"""Whoever can hold leases: a connection, or a session that outlives its connections."""
LeaseId = NewType("LeaseId", int)

MAX_KEPT_ERRORS = 10
"""Texts kept of a line's failed attempts: the last ones."""


@attrs.frozen
class History:
    """What was tried with a line before."""

    attempts: int = 0
    """Failures and unanswered leases; the next lease is attempt ``attempts + 1``."""
    losses: int = 0
    """Leases that ended because the connection dropped."""
    errors: tuple[str, ...] = ()
    """Texts of the last failures, oldest first."""

    def failed(self, error: str) -> History:
        """Add a failed attempt."""
        return History(self.attempts + 1, self.losses, (*self.errors, error)[-MAX_KEPT_ERRORS:])

    def lost(self) -> History:
        """Add a loss."""
        return attrs.evolve(self, losses=self.losses + 1)


FRESH = History()


class LineSet:
    """Some lines of a range: a byte each, where a set of numbers takes a hundred.

    Args:
        lines: The range; all of it is in the set at first.
    """

    __slots__ = ("_first", "_mask")

    def __init__(self, lines: range) -> None:
        self._first = lines.start
        self._mask = bytearray(b"\x01" * len(lines))

    def __len__(self) -> int:
        return self._mask.count(1)

    def __bool__(self) -> bool:
        return self._mask.find(1) >= 0

    def __contains__(self, line: object) -> bool:
        place = line - self._first if isinstance(line, int) else -1
        return 0 <= place < len(self._mask) and self._mask[place] == 1

    def __iter__(self) -> Iterator[int]:
        return compress(count(self._first), self._mask)

    def remove(self, lines: range) -> None:
        """Take lines of the range out."""
        start = lines.start - self._first
        self._mask[start : start + len(lines)] = bytes(len(lines))


@attrs.frozen
class Offer:
    """Lines that could be leased now; nothing has happened yet."""

    first: int
    count: int
    history: History


@attrs.define(eq=False, kw_only=True)
class Lease:
    """Lines given out together."""

    number: LeaseId
    holder: HolderId
    lines: range | LineSet
    """What is still leased of them: a range until one inside it is settled."""
    history: History
    granted_at: float
    timeout_seconds: float
    """How long it holds from being given out, and from each renewal."""
    is_lost: bool = False
    """The holder's connection is gone; the lease waits a while for it to come back."""

    @property
    def attempt(self) -> int:
        """Which attempt at its lines this is, from 1."""
        return self.history.attempts + 1

    def remove(self, lines: range) -> None:
        """Take lines out; they are all in it."""
        held = self.lines
        if isinstance(held, range):
            if lines.start == held.start:
                self.lines = range(lines.stop, held.stop)
                return
            if lines.stop == held.stop:
                self.lines = range(held.start, lines.start)
                return
            self.lines = held = LineSet(held)
        held.remove(lines)


@attrs.frozen
class Rejected:
    """Lines given up just now: they are settled, and their placeholder is to be written."""

    lines: range
    history: History


@attrs.frozen
class Failure:
    """What became of a failed line."""

    attempt: int
    """Attempts used up so far, this one included."""
    rejected: Rejected | None
    """None where it is queued again."""


def runs_of(lines: Iterable[int]) -> list[range]:
    """Put lines together into as few ranges as possible, in order."""
    if isinstance(lines, range):
        return [lines] if lines else []
    runs: list[range] = []
    for line in sorted(lines):
        if runs and runs[-1].stop == line:
            runs[-1] = range(runs[-1].start, line + 1)
        else:
            runs.append(range(line, line + 1))
    return runs
