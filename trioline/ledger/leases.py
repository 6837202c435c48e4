"""The leases there are: by number, by holder, by line, by the instant they run out.

Of each line there is at most one *original* lease, which the table names as its owner, and at most
one *copy* of it, which hangs at the original. A copy has only lines that its original has: what
leaves an original leaves its copies, unless a copy takes its place.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from itertools import islice

from trioline.deadlines import Deadlines
from trioline.ledger.pace import Pace
from trioline.ledger.rows import (
    History,
    HolderId,
    Lease,
    LeaseId,
    LineSet,
    Offer,
    runs_of,
)
from trioline.ledger.table import LineTable

MAX_LOST_RANGES = 1_000
"""Lost ranges remembered for a holder that never asks; older ones are forgotten."""
MAX_TOLD_LOST = 100_000
"""Lost lines that one ``extend`` names; the rest are news only to a worker that is long gone."""


class Leases:
    """All leases, kept consistent.

    Args:
        table: Told who owns which line.
        pace: Told how long it took until a lease was answered.
    """

    def __init__(self, table: LineTable, pace: Pace) -> None:
        self._table = table
        self._pace = pace
        self._originals: dict[int, Lease] = {}  # by number
        self._held: dict[HolderId, dict[LeaseId, Lease]] = {}
        self._probation: set[LeaseId] = set()
        self._lost: dict[HolderId, list[range]] = {}
        self._numbers = itertools.count(1)
        self.deadlines: Deadlines[Lease] = Deadlines()

    def __len__(self) -> int:
        """How many originals there are."""
        return len(self._originals)

    @property
    def line_count(self) -> int:
        """Lines leased, however often."""
        return sum(len(lease.lines) for lease in self._originals.values())

    @property
    def copied_count(self) -> int:
        """Lines that have a second copy out."""
        return sum(len(copy.lines) for lease in self._originals.values() for copy in lease.copies)

    def held_by(self, holder: HolderId) -> tuple[Lease, ...]:
        """A holder's leases, copies among them."""
        return tuple(self._held.get(holder, {}).values())

    def held_count(self, holder: HolderId) -> int:
        """How many these are."""
        return len(self._held[holder]) if holder in self._held else 0

    def lines_held(self, holder: HolderId) -> int:
        """How many lines a holder has, those of copies among them."""
        return sum(len(lease.lines) for lease in self.held_by(holder))

    def max_together(self, holder: HolderId) -> int | None:
        """How many lines a holder may have in all; None: it has none on probation."""
        if not self._probation:
            return None
        limits = (lease.history.max_together for lease in self.held_by(holder))
        return min((limit for limit in limits if limit is not None), default=None)

    def numbered(self, holder: HolderId, number: int) -> Lease | None:
        """A holder's lease of a number."""
        return self._held.get(holder, {}).get(LeaseId(number))

    def of(self, line: int) -> Lease | None:
        """The original that a line is leased with."""
        lease = self._originals.get(self._table.owner(line))
        return lease if lease is not None and line in lease.lines else None

    def of_holder(self, line: int, holder: HolderId) -> Lease | None:
        """The lease, original or copy, with which a holder has a line."""
        lease = self.of(line)
        if lease is None or lease.holder == holder:
            return lease
        copies = (copy for copy in lease.copies if copy.holder == holder and line in copy.lines)
        return next(copies, None)

    def oldest_first(self) -> Iterator[Lease]:
        """The originals in the order in which they were given out."""
        return iter(self._originals.values())

    # --- given out -------------------------------------------------------------------------------

    def add(self, now: float, holder: HolderId, offer: Offer, count: int, seconds: float) -> Lease:
        """Make a lease of the first lines of an offer; a copy where that names an original."""
        number, lines = LeaseId(next(self._numbers)), range(offer.first, offer.first + count)
        lease = Lease(
            number=number,
            holder=holder,
            lines=lines,
            count=count,
            history=offer.history,
            granted_at=now,
            timeout_seconds=seconds,
            original=offer.original,
        )
        if offer.original is None:
            self._originals[number] = lease
            self._table.set_owner(lines, number)
        else:
            offer.original.copies += (lease,)
        self._held.setdefault(holder, {})[number] = lease
        if offer.history.max_together is not None:
            self._probation.add(number)
        self.deadlines.start(lease, seconds, now)
        return lease

    def renew(self, now: float, lease: Lease, seconds: float) -> None:
        """Let a lease hold for ``seconds`` from now."""
        lease.timeout_seconds = seconds
        lease.is_lost = False
        self.deadlines.start(lease, seconds, now)

    def extend(
        self, now: float, holder: HolderId, number: int | None, seconds: float
    ) -> list[int] | None:
        """Renew the lease of a number, or all that a holder has; see ``Ledger.extend``."""
        held = self.held_by(holder)
        if number is None:
            renewed = held
        else:
            single = self.numbered(holder, number)
            if single is None:
                return None
            renewed = (single,)
        for lease in renewed:
            self.renew(now, lease, seconds)
        lost = set(islice(self.lost_by(holder), MAX_TOLD_LOST))
        return sorted(lost.difference(*(lease.lines for lease in held))) if lost else []

    def lose(self, now: float, holder: HolderId, grace_seconds: float) -> None:
        """Let a holder's leases end in ``grace_seconds`` at the latest, as those of a lost one."""
        company = self.lines_held(holder)
        for lease in self.held_by(holder):
            if not lease.is_lost:
                lease.is_lost, lease.company = True, company
            if self.deadlines.due_at(lease) > now + grace_seconds:
                self.deadlines.start(lease, grace_seconds, now)

    # --- ended -----------------------------------------------------------------------------------

    def settle(self, now: float, lines: range, holder: HolderId) -> None:
        """Take lines that have their result from ``holder`` out of all leases."""
        line = lines.start
        while line < lines.stop:
            lease = self.of(line)
            if lease is None:
                line += 1
                continue
            part = lines if lines == lease.lines else lease.run_from(line, lines.stop)
            self.settle_in(lease, part, holder)
            if lease.holder == holder:
                self._pace.answered(now, lease, part.stop - part.start)
            line = part.stop

    def settle_in(self, lease: Lease, lines: range, holder: HolderId) -> None:
        """Take lines that ``holder`` has settled out of their original and its copies."""
        self._take(lease, lines, told=lease.holder != holder)
        for copy in lease.copies:
            for run in copy.among(lines):
                self._take(copy, run, told=copy.holder != holder)

    def give_up(
        self, lease: Lease, lines: Iterable[int], history: History, *, is_over: bool = False
    ) -> tuple[list[range], list[range]]:
        """Take lines that have no result out of a lease.

        A copy that has no other lines than these takes its original's place, with ``history``;
        where ``is_over``, the line's budget is used up, and it gets no copy in its turn.

        Returns:
            The lines that nobody works on now, and those that a copy kept.
        """
        given = runs_of(lines)
        for run in given:
            self._take(lease, run)
        if lease.original is not None:
            return [], given
        if not lease.copies:
            return given, []
        free, kept = LineSet.of(given), list[range]()
        for copy in lease.copies:
            runs = runs_of(copy.lines)
            if all(list(free.runs(run)) == [run] for run in runs):
                self._promote(copy, history)
                if is_over:
                    copy.uncopied = frozenset(copy.lines)
                kept += runs
                for run in runs:
                    free.remove(run)
                continue
            for run in runs:
                for part in free.runs(run):
                    self._take(copy, part, told=True)
        return list(free.runs()), kept

    def _promote(self, copy: Lease, history: History) -> None:
        assert copy.original is not None
        _remove_copy(copy.original, copy)
        copy.lost_copies = copy.original.lost_copies
        copy.original, copy.history = None, history
        if history.max_together is not None:
            self._probation.add(copy.number)
        self._originals[copy.number] = copy
        for run in runs_of(copy.lines):
            self._table.set_owner(run, copy.number)

    def _take(self, lease: Lease, lines: range, *, told: bool = False) -> None:
        if told:
            self.tell_lost(lease.holder, lines)
        if lease.lines != lines:
            lease.remove(lines)
            if lease.lines:
                return
        self._end(lease)

    def _end(self, lease: Lease) -> None:
        lease.lines = range(0)
        if lease.original is None:
            del self._originals[lease.number]
        else:
            _remove_copy(lease.original, lease)
        self.deadlines.stop(lease)
        if self._probation:
            self._probation.discard(lease.number)
        held = self._held[lease.holder]
        del held[lease.number]
        if not held:
            del self._held[lease.holder]

    # --- told ------------------------------------------------------------------------------------

    def tell_lost(self, holder: HolderId, lines: range) -> None:
        """Remember lines to tell a holder of that it has no more."""
        lost = self._lost.setdefault(holder, [])
        if lost and lost[-1].stop == lines.start:
            lost[-1] = range(lost[-1].start, lines.stop)
        else:
            lost.append(lines)
            del lost[:-MAX_LOST_RANGES]

    def lost_by(self, holder: HolderId) -> Iterator[int]:
        """The lines to tell a holder of; they are told once."""
        return (line for lines in self._lost.pop(holder, ()) for line in lines)

    def forget(self, holder: HolderId) -> None:
        """Say that a holder without leases will never ask."""
        self._lost.pop(holder, None)


def _remove_copy(original: Lease, copy: Lease) -> None:
    original.copies = tuple(other for other in original.copies if other is not copy)
