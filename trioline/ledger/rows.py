"""The rows of the ledger, and what its operations return."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
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
    """Workers lost while they held nothing but this line."""
    errors: tuple[str, ...] = ()
    """Texts of the last failures, oldest first."""
    max_together: int | None = None
    """On probation: no more lines at one holder, as one of them may have killed or hung a worker.
    None: as many as are asked for."""

    def failed(self, error: str) -> History:
        """Add a failed attempt."""
        errors = (*self.errors, error)[-MAX_KEPT_ERRORS:]
        return attrs.evolve(self, attempts=self.attempts + 1, errors=errors)

    def lost(self) -> History:
        """Add the loss of a worker that held nothing else."""
        return attrs.evolve(self, losses=self.losses + 1, max_together=1)

    def in_company(self, count: int) -> History:
        """Put it on probation: something happened to ``count`` lines, nobody knows by whose fault.

        Halved from time to time, the one at fault is alone after as many times as the logarithm
        of ``count``.
        """
        half = max(1, (count + 1) // 2)
        return attrs.evolve(self, max_together=min(half, self.max_together or half))


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
        return itertools.compress(itertools.count(self._first), self._mask)

    @classmethod
    def of(cls, runs: Sequence[range]) -> LineSet:
        """Make a set of one or more ranges, in order."""
        lines = cls(range(runs[0].start, runs[-1].stop))
        for left, right in itertools.pairwise(runs):
            lines.remove(range(left.stop, right.start))
        return lines

    def runs(self, within: range | None = None) -> Iterator[range]:
        """Find its lines, all or those in a range, put together in order."""
        first, mask = self._first, self._mask
        start = 0 if within is None else max(within.start - first, 0)
        end = len(mask) if within is None else min(within.stop - first, len(mask))
        while start < end and (start := mask.find(1, start, end)) >= 0:
            gap = mask.find(0, start, end)
            stop = end if gap < 0 else gap
            yield range(first + start, first + stop)
            start = stop

    def remove(self, lines: range) -> None:
        """Take lines of the range out."""
        start = lines.start - self._first
        self._mask[start : start + len(lines)] = bytes(len(lines))


@attrs.define
class Offer:
    """Lines that could be leased now; nothing has happened yet. Never changed; made for each lease,
    and frozen it would take four times as long."""

    first: int
    count: int
    history: History
    original: Lease | None = None
    """The lease that they are in already, where a second copy is offered."""


@attrs.define(eq=False, kw_only=True)
class Lease:
    """Lines given out together."""

    number: LeaseId
    holder: HolderId
    lines: range | LineSet
    """What is still leased of them: a range until one inside it is settled."""
    count: int
    """How many they were at first."""
    history: History
    granted_at: float
    timeout_seconds: float
    """How long it holds from being given out, and from each renewal."""
    is_lost: bool = False
    """The holder's connection is gone; the lease waits a while for it to come back."""
    is_blameless: bool = False
    """Its holder had hung up before it got it: what becomes of it says nothing about its lines."""
    company: int = 1
    """How many lines the holder had when it was lost, or let the lease run out."""
    answered_count: int = 0
    """Lines of it that its holder has answered."""
    original: Lease | None = None
    """This is a second copy of lines of that lease, and of no others."""
    copies: tuple[Lease, ...] = ()
    """Second copies of its lines, none of them twice."""
    uncopied: frozenset[int] = frozenset()
    """Lines whose copy failed or went unanswered: there will be no other."""
    lost_copies: int = 0
    """Copies whose worker was lost."""

    @property
    def attempt(self) -> int:
        """Which attempt at its lines this is, from 1."""
        return self.history.attempts + 1

    def run_from(self, first: int, stop: int) -> range:
        """The lines in a row that it holds from ``first``, which is one, to before ``stop``."""
        held = self.lines
        if isinstance(held, range):
            return range(first, min(stop, held.stop))
        return next(held.runs(range(first, stop)))

    def among(self, lines: range) -> list[range]:
        """Those of some lines that are in it, in order."""
        held = self.lines
        if isinstance(held, range):
            return runs_of(range(max(lines.start, held.start), min(lines.stop, held.stop)))
        return list(held.runs(lines))

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
class Tried:
    """Lines whose history has changed just now: to be remembered beyond this process."""

    lines: range
    history: History


@attrs.frozen
class Expired:
    """A lease that was taken back."""

    lease: Lease
    """As it was given out; it has no lines any more."""
    lines: tuple[range, ...]
    """What it still had."""
    effects: tuple[Rejected | Tried, ...]


@attrs.frozen
class Failure:
    """What became of a failed line."""

    attempt: int
    """Attempts used up so far, this one included."""
    effect: Rejected | Tried | None
    """None where it goes on elsewhere as if nothing had been: a second copy failed."""


def runs_of(lines: Iterable[int]) -> list[range]:
    """Put lines together into as few ranges as possible, in order."""
    if isinstance(lines, range):
        return [lines] if lines else []
    if isinstance(lines, LineSet):
        return list(lines.runs())
    runs: list[range] = []
    for line in sorted(lines):
        if runs and runs[-1].stop == line:
            runs[-1] = range(runs[-1].start, line + 1)
        else:
            runs.append(range(line, line + 1))
    return runs
