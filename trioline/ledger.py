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

import heapq
from array import array
from collections.abc import Iterable, Iterator
from typing import NewType

import attrs

from trioline.config import LeaseSettings
from trioline.deadlines import Deadlines

HolderId = NewType("HolderId", int)
"""Whoever can hold leases: a connection, or a session that outlives its connections."""
LeaseId = NewType("LeaseId", int)

MAX_KEPT_ERRORS = 10
"""Texts kept of a line's failed attempts: the last ones."""
MAX_LOST_RANGES = 1_000
"""Lost ranges remembered for a holder that never asks; older ones are forgotten."""
ALONE_AFTER_LOSSES = 2
"""A line in that many lost leases is leased alone, so that its next loss is its own."""
MIN_TRIM = 65_536
"""Places at the front of the owner table that may be unused before it is moved together."""


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
    lines: range | set[int]
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
            self.lines = held = set(held)
        held.difference_update(lines)


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


class Ledger:
    """The state of one job. See the module's docstring for its theory.

    Args:
        settings: Budgets and times; ``lease_timeout_seconds``, ``max_attempts`` and ``paused``
            may be changed later.
        base: The first line without a result: all before it are settled.
        is_resumed: Whether another ledger of the same job gave out lines before. Results for
            lines up to ``window`` beyond ``base`` are accepted then, as it may have given them out.
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
        self._base = base
        self._frontier = base
        self._given_out_before = base + settings.window if is_resumed else base
        self._settled = bytearray()  # place i: line base + i
        self._owner: array[int] = array("q")  # place i: line owner_base + i
        self._owner_base = base
        self._queue: list[tuple[int, int, History]] = []  # heap of (first, stop, history)
        self._delayed: list[tuple[float, int, int, History]] = []  # heap of (ready_at, …)
        self._leases: dict[LeaseId, Lease] = {}
        self._held: dict[HolderId, dict[LeaseId, Lease]] = {}
        self._lost: dict[HolderId, list[range]] = {}
        self._deadlines: Deadlines[Lease] = Deadlines()
        self._next_lease = 1

    # --- what is there ---------------------------------------------------------------------------

    @property
    def base(self) -> int:
        """The first line that is not settled."""
        return self._base

    @property
    def frontier(self) -> int:
        """The first line that was never given out."""
        return self._frontier

    @property
    def is_settled(self) -> bool:
        """Whether every line of the input is settled."""
        return self.total is not None and self._base >= self.total

    @property
    def ahead_count(self) -> int:
        """Lines settled beyond ``base``."""
        return self._settled.count(1)

    @property
    def leased_count(self) -> int:
        """Lines leased now."""
        return sum(len(lease.lines) for lease in self._leases.values())

    @property
    def queued_count(self) -> int:
        """Lines that came back and wait to be given out again."""
        known = self._frontier - self._base
        return known - self._settled.count(1, 0, known) - self.leased_count

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
        place = line - self._owner_base
        if not 0 <= place < len(self._owner):
            return None
        lease = self._leases.get(LeaseId(self._owner[place]))
        return lease if lease is not None and line in lease.lines else None

    def history_of(self, line: int) -> History:
        """What was tried with a queued or leased line before."""
        lease = self.lease_of(line)
        if lease is not None:
            return lease.history
        waiting = [*self._queue, *((first, stop, past) for _, first, stop, past in self._delayed)]
        return next((past for first, stop, past in waiting if first <= line < stop), FRESH)

    def was_given_out(self, line: int) -> bool:
        """Whether a result for this line can be meant seriously; its existence is not checked."""
        return line < max(self._frontier, self._given_out_before)

    # --- giving out ------------------------------------------------------------------------------

    def restore(self, ahead: Iterable[range]) -> None:
        """Mark lines that an earlier run settled before their turn."""
        for lines in ahead:
            self._mark_settled(lines)
        self._advance()

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
        self._wake_delayed(now)
        return self._offer_queued(max_count) or self._offer_fresh(max_count)

    def _offer_queued(self, max_count: int) -> Offer | None:
        while self._queue:
            first, stop, history = self._queue[0]
            run = self._first_unsettled_run(first, stop)
            if run:
                alone = history.losses >= ALONE_AFTER_LOSSES
                return Offer(run.start, 1 if alone else min(max_count, len(run)), history)
            heapq.heappop(self._queue)
        return None

    def _offer_fresh(self, max_count: int) -> Offer | None:
        stop = self._base + self.window
        if self.total is not None:
            stop = min(stop, self.total)
        run = self._first_unsettled_run(self._frontier, stop)
        return Offer(run.start, min(max_count, len(run)), FRESH) if run else None

    def _first_unsettled_run(self, first: int, stop: int) -> range:
        base, settled = self._base, self._settled
        first = max(first, base)
        if first >= stop:
            return range(first, first)
        start = settled.find(0, first - base, stop - base)
        if start < 0:
            start = max(len(settled), first - base)
        end = settled.find(1, start, stop - base)
        return range(base + start, base + end if end >= 0 else max(stop, base + start))

    def lease(self, now: float, holder: HolderId, offer: Offer, count: int) -> Lease:
        """Give out the first ``count`` lines of an offer just made; 1 to ``offer.count``."""
        lines = range(offer.first, offer.first + count)
        if lines.start >= self._frontier:
            self._frontier = lines.stop
        else:
            _, stop, history = heapq.heappop(self._queue)
            if lines.stop < stop:
                heapq.heappush(self._queue, (lines.stop, stop, history))
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
        self._set_owner(lines, lease.number)
        self._deadlines.start(lease, lease.timeout_seconds, now)
        return lease

    def _set_owner(self, lines: range, number: LeaseId) -> None:
        missing = lines.stop - self._owner_base - len(self._owner)
        if missing > 0:
            self._owner.extend(array("q", [0]) * missing)
        start = lines.start - self._owner_base
        self._owner[start : start + len(lines)] = array("q", [number]) * len(lines)

    # --- settling --------------------------------------------------------------------------------

    def settle(self, holder: HolderId, lines: range) -> tuple[range, ...]:
        """Take results for lines that were given out, whoever holds them now.

        Returns:
            The lines that had none yet, in order: the others are duplicates.
        """
        start = max(lines.start, self._base)
        new = tuple(self._unsettled_runs(start, lines.stop))
        for run in new:
            self._mark_settled(run)
            self._remove_from_leases(run, holder)
        if new and new[0].start == self._base:
            self._advance()
        return new

    def _unsettled_runs(self, first: int, stop: int) -> Iterator[range]:
        while first < stop:
            run = self._first_unsettled_run(first, stop)
            if not run:
                return
            yield run
            first = run.stop

    def _mark_settled(self, run: range) -> None:
        start, stop = run.start - self._base, run.stop - self._base
        if stop > len(self._settled):
            self._settled.extend(bytes(stop - len(self._settled)))
        self._settled[start:stop] = b"\x01" * (stop - start)

    def _advance(self) -> None:
        done = self._settled.find(0)
        done = len(self._settled) if done < 0 else done
        del self._settled[:done]  # cheap: a bytearray moves its start, not its content
        self._base += done
        self._frontier = max(self._frontier, self._base)
        unused = self._base - self._owner_base
        if unused > max(MIN_TRIM, len(self._owner) // 2):
            del self._owner[:unused]
            self._owner_base = self._base

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
        self._mark_settled(lines)
        if lines.start == self._base:
            self._advance()
        return Rejected(lines, history)

    def _requeue(
        self, now: float, lines: range, history: History, delay_seconds: float | None
    ) -> None:
        delay = self.retry_delay_seconds if delay_seconds is None else delay_seconds
        if delay > 0:
            heapq.heappush(self._delayed, (now + delay, lines.start, lines.stop, history))
        else:
            heapq.heappush(self._queue, (lines.start, lines.stop, history))

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
            return sum(self._give_back(now, lease) for lease in leases)
        released = 0
        for line in lines:
            lease = self.lease_of(line)
            if lease is not None and lease.holder == holder:
                self._take(lease, range(line, line + 1), holder)
                self._requeue(now, range(line, line + 1), lease.history, 0)
                released += 1
        return released

    def _give_back(self, now: float, lease: Lease) -> int:
        for run in _runs(lease.lines):
            self._requeue(now, run, lease.history, 0)
        self._end(lease)
        return len(lease.lines)

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
        lost = {line for lines in self._lost.pop(holder, ()) for line in lines}
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
        instants = [self._deadlines.next_due_at(), self._delayed[0][0] if self._delayed else None]
        return min((instant for instant in instants if instant is not None), default=None)

    def expire(self, now: float) -> tuple[Rejected, ...]:
        """Do all that is due: take back leases that ran out, wake delayed lines.

        Returns:
            Lines whose budget that used up.
        """
        self._wake_delayed(now)
        due = self._deadlines.due(now)
        return tuple(rejected for lease in due for rejected in self._take_back(now, lease))

    def postpone(self, now: float) -> None:
        """Give every lease its full time from now: this process, not the workers, stood still."""
        self._deadlines.restart_all(now)

    def _take_back(self, now: float, lease: Lease) -> Iterator[Rejected]:
        runs = _runs(lease.lines)
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

    def _wake_delayed(self, now: float) -> None:
        while self._delayed and self._delayed[0][0] <= now:
            _, first, stop, history = heapq.heappop(self._delayed)
            heapq.heappush(self._queue, (first, stop, history))


def _runs(lines: range | set[int]) -> list[range]:
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
