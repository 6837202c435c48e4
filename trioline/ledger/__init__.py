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

Invariants (the tests check them after every step)
--------------------------------------------------

1. No line is leased twice at one instant, and no settled line is leased or offered.
2. A line is settled once: ``settle`` names it as new once, or it is rejected once, never both.
3. fresh + queued + leased + settled lines are all lines: nothing is forgotten.
4. ``base`` is the first line that is not settled, and the frontier is at most ``window`` beyond.
5. The oldest line that can be offered is offered first.
6. Only the present holder's fail, release and extend change anything.

What must never be added here: I/O, clocks (``now`` is a parameter, in seconds of any monotonic
clock), randomness, logging, awaiting. Ordinary bad luck is a return value, not an exception.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice

from trioline.config import WINDOW, LeaseSettings
from trioline.deadlines import Deadlines
from trioline.ledger.queue import Queue
from trioline.ledger.rows import (
    FRESH,
    Failure,
    History,
    HolderId,
    Lease,
    LeaseId,
    Offer,
    Rejected,
    runs_of,
)
from trioline.ledger.table import LineTable

__all__ = [
    "FRESH",
    "Failure",
    "History",
    "HolderId",
    "Lease",
    "LeaseId",
    "Ledger",
    "Offer",
    "Rejected",
]

MAX_LOST_RANGES = 1_000
"""Lost ranges remembered for a holder that never asks; older ones are forgotten."""
MAX_TOLD_LOST = 100_000
"""Lost lines that one ``extend`` names; the rest are news only to a worker that is long gone."""
ALONE_AFTER_LOSSES = 2
"""A line in that many lost leases is leased alone, so that its next loss is its own."""
MAX_WAITING_RANGES = 100_000
"""Ranges that wait for another attempt, each with its errors' texts: past it nothing fresh is
given out, so that a job in which everything fails stays within bounds."""


class Ledger:
    """The state of one job. See the module's docstring for its theory.

    Args:
        settings: Budgets and times; ``lease_timeout_seconds``, ``max_attempts`` and ``paused``
            may be changed later.
        base: The first line without a result: all before it are settled.
        is_resumed: Whether another ledger of the same job gave out lines before. Results for
            lines up to ``window``, or its default, beyond ``base`` are accepted then, as it may
            have given them out.
    """

    def __init__(self, settings: LeaseSettings, *, base: int = 0, is_resumed: bool = False) -> None:
        self.lease_timeout_seconds = settings.lease_timeout_seconds
        self.max_attempts = settings.max_attempts
        self.max_losses = settings.max_losses
        self.retry_delay_seconds = settings.retry_delay_seconds
        self.grace_seconds = settings.grace_seconds
        self.window = settings.window
        self.paused = False
        self.total: int | None = None
        self._table = LineTable(base)
        self._frontier = base
        self._given_out_before = base + max(settings.window, WINDOW) if is_resumed else base
        self._queue = Queue()
        self._leases: dict[LeaseId, Lease] = {}
        self._held: dict[HolderId, dict[LeaseId, Lease]] = {}
        self._lost: dict[HolderId, list[range]] = {}
        self._deadlines: Deadlines[Lease] = Deadlines()
        self._next_lease = 1

    # --- what is there ---------------------------------------------------------------------------

    @property
    def base(self) -> int:
        """The first line that is not settled."""
        return self._table.base

    @property
    def frontier(self) -> int:
        """The first line that was never given out, nor settled before its turn."""
        return max(self._frontier, self._table.base)

    @property
    def is_settled(self) -> bool:
        """Whether every line of the input is settled."""
        return self.total is not None and self.base >= self.total

    @property
    def ahead_count(self) -> int:
        """Lines settled beyond ``base``."""
        return self._table.settled_count()

    @property
    def leased_count(self) -> int:
        """Lines leased now."""
        return sum(len(lease.lines) for lease in self._leases.values())

    @property
    def queued_count(self) -> int:
        """Lines that came back and wait to be given out again."""
        frontier = self.frontier
        unsettled = frontier - self.base - self._table.settled_count(frontier)
        return unsettled - self.leased_count

    @property
    def is_idle(self) -> bool:
        """Whether nothing is leased."""
        return not self._leases

    def holds(self, holder: HolderId) -> int:
        """Count the lines a holder has."""
        return sum(len(lease.lines) for lease in self._held.get(holder, {}).values())

    def lease_count(self, holder: HolderId) -> int:
        """Count the leases a holder has."""
        return len(self._held.get(holder, ()))

    def lease_of(self, line: int) -> Lease | None:
        """Find the lease that holds a line now."""
        lease = self._leases.get(LeaseId(self._table.owner(line)))
        return lease if lease is not None and line in lease.lines else None

    def history_of(self, line: int) -> History:
        """What was tried with a queued or leased line before."""
        lease = self.lease_of(line)
        return self._queue.history_of(line) if lease is None else lease.history

    def was_given_out(self, line: int) -> bool:
        """Whether a result for this line can be meant seriously; its existence is not checked."""
        return line < max(self.frontier, self._given_out_before)

    # --- giving out ------------------------------------------------------------------------------

    def restore(self, ahead: Iterable[range]) -> None:
        """Mark lines that an earlier run settled before their turn."""
        for lines in ahead:
            self._table.settle(range(max(lines.start, self.base), lines.stop))

    def end_at(self, total: int) -> None:
        """Say how many lines the input has, once its end was seen."""
        self.total = total

    def offer(self, now: float, max_count: int) -> Offer | None:
        """Find the oldest lines that can be leased; they share one history.

        Returns:
            None where there are none now. Beyond the frontier the offer supposes that the input
            goes on: take as many of its lines as there are.
        """
        if self.paused:
            return None
        self._queue.wake(now)
        return self._offer_queued(max_count) or self._offer_fresh(max_count)

    def _offer_queued(self, max_count: int) -> Offer | None:
        while (found := self._queue.first()) is not None:
            lines, history = found
            run = self._table.first_unsettled_run(lines.start, lines.stop)
            if run:
                alone = history.losses >= ALONE_AFTER_LOSSES
                return Offer(run.start, 1 if alone else min(max_count, len(run)), history)
            self._queue.drop_first()
        return None

    def _offer_fresh(self, max_count: int) -> Offer | None:
        if len(self._queue) >= MAX_WAITING_RANGES:
            return None
        stop = self.base + self.window
        if self.total is not None:
            stop = min(stop, self.total)
        run = self._table.first_unsettled_run(self._frontier, stop)
        return Offer(run.start, min(max_count, len(run)), FRESH) if run else None

    def lease(self, now: float, holder: HolderId, offer: Offer, count: int) -> Lease:
        """Give out the first ``count`` lines of an offer just made; 1 to ``offer.count``."""
        lines = range(offer.first, offer.first + count)
        if lines.start >= self.frontier:
            self._frontier = lines.stop
        else:
            self._queue.drop_first(before=lines.stop)
        lease = Lease(
            number=LeaseId(self._next_lease),
            holder=holder,
            lines=lines,
            history=offer.history,
            granted_at=now,
            timeout_seconds=self.lease_timeout_seconds,
        )
        self._next_lease += 1
        self._leases[lease.number] = lease
        self._held.setdefault(holder, {})[lease.number] = lease
        self._table.set_owner(lines, lease.number)
        self._deadlines.start(lease, lease.timeout_seconds, now)
        return lease

    # --- settling --------------------------------------------------------------------------------

    def settle(self, holder: HolderId, lines: range) -> tuple[range, ...]:
        """Take results for lines that were given out, whoever holds them now.

        Returns:
            The lines that had none yet, in order: the others are duplicates.
        """
        start = max(lines.start, self.base)
        new = tuple(self._table.unsettled_runs(start, lines.stop))
        for run in new:
            self._remove_from_leases(run, holder)  # first: settling may forget their owners
            self._table.settle(run)
        return new

    def _remove_from_leases(self, run: range, holder: HolderId) -> None:
        lease = self.lease_of(run.start)
        if lease is not None and lease.lines == run:
            self._take(lease, run, holder)
            return
        for line in run:
            lease = self.lease_of(line)
            if lease is not None:
                self._take(lease, range(line, line + 1), holder)

    def _take(self, lease: Lease, lines: range, holder: HolderId) -> None:
        lease.remove(lines)
        if not lease.lines:
            self._end(lease)
        if lease.holder != holder:
            self._tell_lost(lease.holder, lines)

    def _end(self, lease: Lease) -> None:
        del self._leases[lease.number]
        self._deadlines.stop(lease)
        held = self._held[lease.holder]
        del held[lease.number]
        if not held:
            del self._held[lease.holder]

    def _tell_lost(self, holder: HolderId, lines: range) -> None:
        lost = self._lost.setdefault(holder, [])
        if lost and lost[-1].stop == lines.start:
            lost[-1] = range(lost[-1].start, lines.stop)
        else:
            lost.append(lines)
            del lost[:-MAX_LOST_RANGES]

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
            delay_seconds: Until it may be given out again; None: the job's retry delay.
            lease_number: Counts only if the line is held with this lease.

        Returns:
            None where ``holder`` does not hold it: nothing has changed.
        """
        lease = self.lease_of(line)
        if lease is None or lease.holder != holder:
            return None
        if lease_number is not None and lease.number != lease_number:
            return None
        lines = range(line, line + 1)
        history = lease.history.failed(error)
        self._take(lease, lines, holder)
        if not retry or history.attempts >= self.max_attempts:
            return Failure(history.attempts, self._reject(lines, history))
        self._requeue(now, lines, history, delay_seconds)
        return Failure(history.attempts, None)

    def reject_unreadable(self, line: int, error: str) -> Rejected:
        """Give up a line that is next to be given out but cannot be."""
        history = FRESH.failed(error)
        self._frontier = max(self._frontier, line + 1)
        return self._reject(range(line, line + 1), history)

    def _reject(self, lines: range, history: History) -> Rejected:
        self._table.settle(lines)
        return Rejected(lines, history)

    def _requeue(
        self, now: float, lines: range, history: History, delay_seconds: float | None
    ) -> None:
        delay = self.retry_delay_seconds if delay_seconds is None else delay_seconds
        if delay > 0:
            self._queue.push_delayed(lines, history, now + delay)
        else:
            self._queue.push(lines, history)

    def release(self, now: float, holder: HolderId, lines: Iterable[int] | None = None) -> int:
        """Take lines back that were not worked on; costs them nothing.

        Args:
            now: The instant.
            holder: Who gives them back.
            lines: Which; None: all it holds.

        Returns:
            How many came back; those it does not hold are left alone.
        """
        if lines is None:
            leases = tuple(self._held.get(holder, {}).values())
            return sum(self._give_back(lease, lease.lines) for lease in leases)
        held: dict[Lease, set[int]] = {}
        for line in lines:
            lease = self.lease_of(line)
            if lease is not None and lease.holder == holder:
                held.setdefault(lease, set()).add(line)
        return sum(self._give_back(lease, given) for lease, given in held.items())

    def _give_back(self, lease: Lease, lines: Iterable[int]) -> int:
        runs = runs_of(lines)
        for run in runs:
            self._take(lease, run, lease.holder)
            self._queue.push(run, lease.history)
        return sum(map(len, runs))

    def extend(
        self, now: float, holder: HolderId, lease_number: int | None = None
    ) -> list[int] | None:
        """Renew a lease, or all that ``holder`` has, for the present lease timeout from now.

        Returns:
            Lines that the holder may believe it has but has no more, each told once; None where
            ``lease_number`` is not its lease: nothing has changed.
        """
        held = self._held.get(holder, {})
        if lease_number is None:
            for lease in tuple(held.values()):
                self._renew(now, lease)
        else:
            single = held.get(LeaseId(lease_number))
            if single is None:
                return None
            self._renew(now, single)
        ranges = self._lost.pop(holder, ())
        lost = set(islice((line for lines in ranges for line in lines), MAX_TOLD_LOST))
        return sorted(lost.difference(*(lease.lines for lease in held.values()))) if lost else []

    def _renew(self, now: float, lease: Lease) -> None:
        lease.timeout_seconds = self.lease_timeout_seconds
        lease.is_lost = False
        self._deadlines.start(lease, lease.timeout_seconds, now)

    # --- holders that come and go ----------------------------------------------------------------

    def lose(self, now: float, holder: HolderId, grace_seconds: float) -> None:
        """Say that a connection is gone: its leases end in ``grace_seconds`` at the latest.

        ``expire`` takes them back then, as losses. ``reattach`` undoes it until then.
        """
        for lease in tuple(self._held.get(holder, {}).values()):
            lease.is_lost = True
            if self._deadlines.due_at(lease) > now + grace_seconds:
                self._deadlines.start(lease, grace_seconds, now)

    def reattach(self, now: float, holder: HolderId) -> None:
        """Say that a holder is back: its leases hold for the full lease timeout again."""
        for lease in tuple(self._held.get(holder, {}).values()):
            self._renew(now, lease)

    def forget(self, holder: HolderId) -> None:
        """Say that a holder without leases will never come back."""
        self._lost.pop(holder, None)

    # --- time ------------------------------------------------------------------------------------

    def next_due_at(self) -> float | None:
        """The next instant at which ``expire`` has something to do; None: not before a change."""
        instants = (self._deadlines.next_due_at(), self._queue.next_ready_at())
        return min((instant for instant in instants if instant is not None), default=None)

    def expire(self, now: float) -> tuple[Rejected, ...]:
        """Do all that is due: take back leases that ran out, wake delayed lines.

        Returns:
            Lines whose budget that used up.
        """
        self._queue.wake(now)
        due = self._deadlines.due(now)
        return tuple(rejected for lease in due for rejected in self._take_back(now, lease))

    def postpone(self, now: float) -> None:
        """Give every lease its full time from now: this process, not the workers, stood still."""
        self._deadlines.restart_all(now)

    def _take_back(self, now: float, lease: Lease) -> Iterator[Rejected]:
        runs = runs_of(lease.lines)
        self._end(lease)
        if lease.is_lost:
            history = lease.history.lost()
            # Only a line that was alone can be blamed for what happened to its worker.
            is_over = history.losses >= self.max_losses and len(lease.lines) == 1
            if is_over:
                history = history.failed(f"its workers were lost {history.losses} times")
        else:
            history = lease.history.failed(
                f"no answer within the lease of {lease.timeout_seconds:g} seconds"
            )
            is_over = history.attempts >= self.max_attempts
        for run in runs:
            self._tell_lost(lease.holder, run)
            if is_over:
                yield self._reject(run, history)
            else:
                self._requeue(now, run, history, 0 if lease.is_lost else None)
