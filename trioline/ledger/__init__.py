"""The heart: which lines are given out, to whom, until when, and which are settled.

Theory of operation
===================

A line of the input is, at any instant, in exactly one of four states::

    fresh ──lease──> leased ──settle──> settled
                      │  ^                ^
       fail, expiry,  │  │ lease          │ settle (a late result), reject
       loss, release  v  │                │
                     queued ──────────────┘

*Fresh* lines lie at and beyond the frontier and were never given out by this ledger. *Queued*
lines came back. *Settled* lines have a result, or are rejected, for good. Everything below
``base`` is settled; ``window`` bounds how far the frontier may run ahead of it.

Work moves in ranges. A lease is one small object, however many lines it holds, and becomes a set
of lines only when they are settled one by one. What was tried with a line before (its
``History``) is the same for all lines of a queued range and of a lease, so it is held once a
range. What is kept for each line between ``base`` and the frontier is nine bytes: one that says
whether it is settled, eight that name the lease it was last given out with.

Three budgets are kept apart. *Attempts*: the worker said that the line failed, or did not answer in
time. *Losses*: the worker was lost while it held nothing but this line. *Releases* cost nothing.
Lines that were lost or went unanswered in company are on probation: nobody gets more of them, nor
others beside them, than half as many as they were, down to one by one; so the one that kills or
hangs its workers is found out, and no other is given up for it.

Where nothing else is left to give, a lease that takes far longer than others did gets a second
*copy*: the first result of a line counts. A copy's failure, expiry or loss changes nothing for
its line; when the original ends without a result, the copy takes its place. A lease whose copies
have cost as many workers as a line may is taken back, as if its own worker were lost.

Invariants (the tests check them after every step)
--------------------------------------------------

1. At one instant a line has at most one lease and one copy of that, held by two different
   holders, and no settled line is leased or offered.
2. A line is settled once: ``settle`` names it as new once, or it is rejected once, never both.
3. fresh + queued + leased + settled lines are all lines: nothing is forgotten.
4. ``base`` is the first line that is not settled, and the frontier is at most ``window`` beyond.
5. The oldest line that can be offered is offered first.
6. Only a present holder's fail, release and extend change anything.
7. A history is only ever added to, and each change of one is told as an effect.

What must never be added here: I/O, clocks (``now`` is a parameter, in seconds of any monotonic
clock), randomness, logging, awaiting. Ordinary bad luck is a return value, not an exception.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from trioline.config import WINDOW, LeaseSettings
from trioline.ledger.backlog import MAX_WAITING_RANGES, Backlog
from trioline.ledger.budgets import Budgets
from trioline.ledger.hedging import Hedging
from trioline.ledger.leases import Leases
from trioline.ledger.pace import Pace
from trioline.ledger.returns import Returns
from trioline.ledger.rows import (
    FRESH,
    Expired,
    Failure,
    History,
    HolderId,
    Lease,
    LeaseId,
    Offer,
    Rejected,
    Tried,
)
from trioline.ledger.table import LineTable

__all__ = [
    "FRESH",
    "Expired",
    "Failure",
    "History",
    "HolderId",
    "Lease",
    "LeaseId",
    "Ledger",
    "Offer",
    "Rejected",
    "Tried",
]


class Ledger:
    """The state of one job. See the module's docstring for its theory.

    Args:
        settings: Budgets and times; ``lease_timeout_seconds``, ``paused``, and what ``budgets`` and
            ``hedging`` say, may be changed later.
        base: The first line without a result: all before it are settled.
        is_resumed: Whether another ledger of the same job gave out lines before. Results for
            lines up to ``window``, or its default, beyond ``base`` are accepted then, as it may
            have given them out.
    """

    def __init__(self, settings: LeaseSettings, *, base: int = 0, is_resumed: bool = False) -> None:
        self.lease_timeout_seconds = settings.lease_timeout_seconds
        self.grace_seconds = settings.grace_seconds
        self.window = settings.window
        self.paused = False
        self.total: int | None = None
        self.pace: Final = Pace()
        """How long lines take."""
        self.budgets: Final = Budgets(settings)
        self._table = LineTable(base)
        self._leases = Leases(self._table, self.pace)
        self.hedging = Hedging(self._leases, self.pace, settings.hedge)
        self._backlog = Backlog(self._table, self._leases, self.pace)
        self._returns = Returns(self._table, self._leases, self._backlog, self.budgets)
        self._given_out_before = base + max(settings.window, WINDOW) if is_resumed else base

    # --- what is there ---------------------------------------------------------------------------

    @property
    def base(self) -> int:
        """The first line that is not settled."""
        return self._table.base

    @property
    def frontier(self) -> int:
        """The first line that was never given out, nor settled before its turn."""
        return self._table.frontier

    @property
    def is_settled(self) -> bool:
        """Whether every line of the input is settled."""
        return self.total is not None and self._table.base >= self.total

    @property
    def ahead_count(self) -> int:
        """Lines settled beyond ``base``."""
        return self._table.settled_count()

    @property
    def leased_count(self) -> int:
        """Lines leased now."""
        return self._leases.line_count

    @property
    def hedged_count(self) -> int:
        """Lines of these that have a second copy out."""
        return self._leases.copied_count

    @property
    def queued_count(self) -> int:
        """Lines that came back and wait to be given out again."""
        frontier = self.frontier
        unsettled = frontier - self.base - self._table.settled_count(frontier)
        return unsettled - self.leased_count

    @property
    def is_idle(self) -> bool:
        """Whether nothing is leased."""
        return not len(self._leases)

    def holds(self, holder: HolderId) -> int:
        """Count the lines a holder has, copies among them."""
        return self._leases.lines_held(holder)

    def lease_count(self, holder: HolderId) -> int:
        """Count the leases a holder has."""
        return self._leases.held_count(holder)

    def lease_of(self, line: int) -> Lease | None:
        """Find the lease that holds a line now; not a copy."""
        return self._leases.of(line)

    def history_of(self, line: int) -> History:
        """What was tried with a queued or leased line before."""
        lease = self.lease_of(line)
        return self._backlog.history_of(line) if lease is None else lease.history

    def was_given_out(self, line: int) -> bool:
        """Whether a result for this line can be meant seriously; its existence is not checked."""
        return line < max(self.frontier, self._given_out_before)

    # --- giving out ------------------------------------------------------------------------------

    def restore(self, ahead: Iterable[range], tried: Iterable[Tried] = ()) -> None:
        """Take over what an earlier run left, before anything is given out.

        Args:
            ahead: Lines that it settled before their turn.
            tried: Lines that are not settled and have a history, in order.
        """
        for lines in ahead:
            if lines.stop > self.base:
                self._table.settle(range(max(lines.start, self.base), lines.stop))
        for one in tried:
            self._backlog.push_unsettled(range(self.frontier, one.lines.start), FRESH)
            self._backlog.push_unsettled(one.lines, one.history)
            self._table.frontier = max(self.frontier, one.lines.stop)

    def end_at(self, total: int) -> None:
        """Say how many lines the input has, once its end was seen."""
        self.total = total

    def offer(
        self,
        now: float,
        max_count: int,
        holder: HolderId | None = None,
        *,
        fresh_first: bool = False,
    ) -> Offer | None:
        """Find the oldest lines that can be leased; they share one history.

        Args:
            now: The instant.
            max_count: At most so many.
            holder: To whom; None: somebody who holds nothing.
            fresh_first: Rather lines that were never tried: for a canary, which may well fail.

        Returns:
            None where there are none now. Beyond the frontier the offer supposes that the input
            goes on: take as many of its lines as there are.
        """
        if self.paused:
            return None
        together = None if holder is None else self._leases.max_together(holder)
        if holder is not None and together is not None:
            max_count = min(max_count, together - self.holds(holder))
            if max_count <= 0:
                return None
        if self._backlog.is_idle:
            return self._offer_fresh(max_count)
        self._backlog.wake(now)
        if fresh_first and self._backlog.count < MAX_WAITING_RANGES:
            fresh = self._offer_fresh(max_count)
            if fresh is not None:
                return fresh
        queued = self._backlog.offer(now, max_count, holder)
        if queued is not None or self._backlog.is_volunteer(now, holder):
            return queued
        # Counted anew: ranges that were settled meanwhile have gone out just now.
        return self._offer_fresh(max_count) if self._backlog.count < MAX_WAITING_RANGES else None

    def _offer_fresh(self, max_count: int) -> Offer | None:
        stop = self._table.base + self.window
        if self.total is not None and self.total < stop:
            stop = self.total
        run = self._table.first_unsettled_run(self._table.frontier, stop)
        return Offer(run.start, min(max_count, len(run)), FRESH) if run else None

    def offer_copy(self, now: float, holder: HolderId, max_count: int) -> Offer | None:
        """Find lines of the oldest late lease to give to ``holder`` as well.

        To be asked where ``offer`` has nothing: at the job's end, or with the window full.
        """
        return None if self.paused else self.hedging.offer(now, holder, max_count)

    def lease(self, now: float, holder: HolderId, offer: Offer, count: int) -> Lease:
        """Give out the first ``count`` lines of an offer just made; 1 to ``offer.count``."""
        lines = range(offer.first, offer.first + count)
        if offer.original is not None:
            pass
        elif lines.start >= self._table.frontier:
            self._table.frontier = lines.stop
        else:
            self._backlog.take(offer, count)
        if offer.history.max_together is not None:
            self._backlog.excuse(holder)
        return self._leases.add(now, holder, offer, count, self.lease_timeout_seconds)

    # --- settling --------------------------------------------------------------------------------

    def settle(self, now: float, holder: HolderId, lines: range) -> tuple[range, ...]:
        """Take results for lines that were given out, whoever holds them now.

        Returns:
            The lines that had none yet, in order: the others are duplicates.
        """
        new = tuple(self._table.unsettled_runs(lines.start, lines.stop))
        for run in new:
            self._leases.settle(now, run, holder)  # first: the table may forget their owners
            self._table.settle(run)
        return new

    # --- coming back -----------------------------------------------------------------------------

    def fail(
        self,
        now: float,
        holder: HolderId,
        line: int,
        error: str,
        *,
        retry: bool = True,
        delay_seconds: float | None = None,
        lease_number: int | None = None,
    ) -> Failure | None:
        """Count a failed attempt of a line that ``holder`` holds.

        Args:
            now: The instant.
            holder: Who says so.
            line: The line.
            error: What went wrong.
            retry: False rejects it at once.
            delay_seconds: Until it may be given out again; None: the job's retry delay, doubled
                from failure to failure.
            lease_number: Counts only if the line is held with this lease.

        Returns:
            None where ``holder`` does not hold it: nothing has changed.
        """
        lease = self._leases.of_holder(line, holder)
        if lease is None or lease_number not in (None, lease.number):
            return None
        return self._returns.fail(now, lease, line, error, retry=retry, delay_seconds=delay_seconds)

    def reject_unreadable(self, line: int, error: str) -> Rejected:
        """Give up a line that is next to be given out but cannot be."""
        self._table.frontier = max(self.frontier, line + 1)
        return self._returns.reject(range(line, line + 1), FRESH.failed(error))

    def release(self, now: float, holder: HolderId, lines: Iterable[int] | None = None) -> int:
        """Take lines back that were not worked on; costs them nothing.

        Args:
            now: The instant.
            holder: Who gives them back.
            lines: Which; None: all it holds.

        Returns:
            How many came back; those it does not hold are left alone.
        """
        return self._returns.release(now, holder, lines)

    def extend(
        self, now: float, holder: HolderId, lease_number: int | None = None
    ) -> list[int] | None:
        """Renew a lease, or all that ``holder`` has, for the present lease timeout from now.

        Returns:
            Lines that the holder may believe it has but has no more, each told once; None where
            ``lease_number`` is not its lease: nothing has changed.
        """
        return self._leases.extend(now, holder, lease_number, self.lease_timeout_seconds)

    # --- holders that come and go ----------------------------------------------------------------

    def lose(self, now: float, holder: HolderId, grace_seconds: float) -> None:
        """Say that a connection is gone: its leases end in ``grace_seconds`` at the latest.

        ``expire`` takes them back then, as losses. ``reattach`` undoes it until then.
        """
        self._backlog.excuse(holder)
        self._leases.lose(now, holder, grace_seconds)

    def reattach(self, now: float, holder: HolderId) -> None:
        """Say that a holder is back: its leases hold for the full lease timeout again."""
        for lease in self._leases.held_by(holder):
            self._leases.renew(now, lease, self.lease_timeout_seconds)

    def forget(self, holder: HolderId) -> None:
        """Say that a holder without leases will never come back."""
        self._backlog.excuse(holder)
        self._leases.forget(holder)

    # --- time ------------------------------------------------------------------------------------

    def next_due_at(self) -> float | None:
        """The next instant at which ``expire`` has something to do; None: not before a change."""
        instants = (self._leases.deadlines.next_due_at(), self._backlog.next_ready_at())
        return min((instant for instant in instants if instant is not None), default=None)

    def expire(self, now: float) -> tuple[Expired, ...]:
        """Do all that is due: take back leases that ran out, wake delayed lines."""
        self._backlog.wake(now)
        return self._returns.expire(now)

    def postpone(self, now: float) -> None:
        """Give every lease its full time from now: this process, not the workers, stood still."""
        self._leases.deadlines.restart_all(now)
