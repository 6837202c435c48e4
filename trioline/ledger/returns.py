"""Leases that end without a result, and what becomes of their lines.

Queued again, or given up where a budget is used up; or a copy goes on with them as if nothing had
been. A lease ends so in one of four ways: its holder says that a line failed, or gives lines
back, or lets it run out, or is lost. The package's docstring says what each of them costs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from trioline.ledger.backlog import Backlog
from trioline.ledger.budgets import Budgets, Verdict
from trioline.ledger.leases import Leases
from trioline.ledger.rows import (
    Expired,
    Failure,
    History,
    HolderId,
    Lease,
    Rejected,
    Tried,
    runs_of,
)
from trioline.ledger.table import LineTable


class Returns:
    """Takes lines back.

    Args:
        table: Told of lines that are given up.
        leases: Which end here.
        backlog: Gets the lines that are to be tried again.
        budgets: What a line may cost.
    """

    def __init__(
        self, table: LineTable, leases: Leases, backlog: Backlog, budgets: Budgets
    ) -> None:
        self._table = table
        self._leases = leases
        self._backlog = backlog
        self._budgets = budgets

    def fail(
        self,
        now: float,
        lease: Lease,
        line: int,
        error: str,
        *,
        retry: bool,
        delay_seconds: float | None,
    ) -> Failure:
        """Count a failed attempt of a line; the holder of ``lease``, which has it, says so."""
        original = lease.original
        lines = range(line, line + 1)
        if original is not None and retry:
            self._leases.give_up(lease, lines, lease.history)
            original.uncopied |= {line}
            return Failure(lease.history.attempts, None)
        verdict = self._budgets.failed(lease.history, error, line, delay_seconds)
        if not retry:
            self._leases.settle_in(original or lease, lines, lease.holder)
            return Failure(verdict.history.attempts, self.reject(lines, verdict.history))
        (effect,) = self._end(now, lease, lines, verdict)
        return Failure(verdict.history.attempts, effect)

    def release(self, now: float, holder: HolderId, lines: Iterable[int] | None) -> int:
        """Take lines back that were not worked on; None: all that ``holder`` has.

        Returns:
            How many came back.
        """
        if lines is None:
            leases = self._leases.held_by(holder)
            return sum(self._give_back(now, lease, lease.lines) for lease in leases)
        held: dict[Lease, set[int]] = {}
        for line in lines:
            lease = self._leases.of_holder(line, holder)
            if lease is not None:
                held.setdefault(lease, set()).add(line)
        return sum(self._give_back(now, lease, given) for lease, given in held.items())

    def _give_back(self, now: float, lease: Lease, lines: Iterable[int]) -> int:
        runs = runs_of(lines)
        free, _ = self._leases.give_up(lease, lines, lease.history)
        for run in free:
            self._requeue(now, run, lease.history, 0)
        return sum(map(len, runs))

    def expire(self, now: float) -> tuple[Expired, ...]:
        """Take back all leases that ran out."""
        due = self._leases.deadlines.due(now)
        silent = [lease for lease in due if not lease.is_lost]
        held = {
            holder: self._leases.lines_held(holder) for holder in {lease.holder for lease in silent}
        }
        for lease in silent:  # all that its holder had counts, also what runs out with it
            lease.company = held[lease.holder]
            self._backlog.excuse(lease.holder)
        # Copies first: one that is due with its original must not take its place before, or the
        # line would pay for both.
        due.sort(key=lambda lease: lease.original is None)
        # One that is due with the last copy it may cost has ended with that.
        return tuple(self._take_back(now, lease) for lease in due if lease.lines)

    def _take_back(self, now: float, lease: Lease) -> Expired:
        runs, original = tuple(runs_of(lease.lines)), lease.original
        if original is None:
            effects = self._end_in_vain(now, lease, lease.company, is_lost=lease.is_lost)
            return Expired(lease, runs, tuple(effects))
        if lease.is_lost:
            original.lost_copies += 1
        else:
            original.uncopied |= frozenset(lease.lines)
        for run in runs:
            self._leases.tell_lost(lease.holder, run)
        self._leases.give_up(lease, lease.lines, lease.history)
        if original.lost_copies < self._budgets.max_losses:
            return Expired(lease, runs, ())
        # These lines kill, and whoever had them first may hang on them and renew for ever.
        company = self._leases.lines_held(original.holder)
        effects = self._end_in_vain(now, original, company, is_lost=True)
        return Expired(lease, runs, tuple(effects))

    def _end_in_vain(
        self, now: float, lease: Lease, company: int, *, is_lost: bool
    ) -> Iterator[Rejected | Tried]:
        """Take a lease back for which nothing will come any more, or too late.

        Args:
            now: The instant.
            lease: An original.
            company: How many lines its holder had.
            is_lost: The holder is gone; else it let the lease run out.
        """
        for run in runs_of(lease.lines):
            self._leases.tell_lost(lease.holder, run)
        if is_lost and lease.is_blameless:
            verdict = Verdict(lease.history, is_over=False)
        elif is_lost:
            verdict = self._budgets.lost(lease.history, company, next(iter(lease.lines)))
        else:
            verdict = self._budgets.timed_out(lease.history, company, lease.timeout_seconds)
        return self._end(now, lease, lease.lines, verdict)

    def _end(
        self, now: float, lease: Lease, lines: Iterable[int], verdict: Verdict
    ) -> Iterator[Rejected | Tried]:
        """End a lease's hold on lines that were tried in vain."""
        free, kept = self._leases.give_up(lease, lines, verdict.history, is_over=verdict.is_over)
        for run in kept:
            yield Tried(run, verdict.history)
        for run in free:
            if verdict.is_over:
                yield self.reject(run, verdict.history)
            else:
                self._requeue(now, run, verdict.history, verdict.delay_seconds)
                yield Tried(run, verdict.history)

    def reject(self, lines: range, history: History) -> Rejected:
        """Give lines up that nobody has."""
        self._table.settle(lines)
        return Rejected(lines, history)

    def _requeue(self, now: float, lines: range, history: History, delay: float) -> None:
        self._backlog.push(lines, history, now + delay if delay > 0 else None)
