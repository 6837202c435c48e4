"""What a line may cost before it is given up: three budgets, kept apart.

*Attempts* are used up where the worker said that the line failed, and where it did not answer in
time. *Losses* are workers that were lost while they held nothing but this line: preemption is
daily life, so there are more of them. What is given back costs nothing.

A line that something happened to in company is on probation: nobody knows which one was at fault.
"""

from __future__ import annotations

import attrs

from trioline.config import LeaseSettings
from trioline.ledger.rows import History

MIN_DELAY_SECONDS = 1.0
"""Before the third attempt, and before the last. The second one comes as soon as was asked for:
most of what fails once is a moment's bad luck."""
MAX_DELAY_SECONDS = 300.0
"""Where doubling ends: no outage should cost a line more than that after it is over."""
SPREAD = 0.25
"""Of a delay, up and down, so that lines that failed together do not come back together."""
_GOLDEN = 0x9E3779B97F4A7C15
"""2⁶⁴ by the golden ratio: multiples of it fall evenly over the 64-bit numbers (Knuth, TAOCP 3,
6.4), so that neighbouring lines are far apart. The ledger knows no chance."""


@attrs.frozen
class Verdict:
    """What becomes of lines that were tried in vain."""

    history: History
    is_over: bool
    """They are given up."""
    delay_seconds: float = 0.0
    """Until they may be given out again."""


class Budgets:
    """The budgets of one job.

    Args:
        settings: Where they begin; ``max_attempts`` may be changed later.
    """

    def __init__(self, settings: LeaseSettings) -> None:
        self.max_attempts = settings.max_attempts
        self.max_losses = settings.max_losses
        self._delay_seconds = settings.retry_delay_seconds

    def failed(
        self, past: History, error: str, line: int, delay_seconds: float | None = None
    ) -> Verdict:
        """A worker said so; ``delay_seconds``: what it asked for."""
        history = past.failed(error)
        if delay_seconds is None:
            delay_seconds = self._backoff(history.attempts, line)
        return Verdict(history, history.attempts >= self.max_attempts, delay_seconds)

    def lost(self, past: History, company: int, line: int) -> Verdict:
        """A worker was lost that held ``company`` lines, this one among them."""
        if company > 1:
            return Verdict(past.in_company(company), is_over=False)
        history = past.lost()
        if history.losses >= self.max_losses:
            error = f"its workers were lost {history.losses} times"
            return Verdict(history.failed(error), is_over=True)
        # The first loss is somebody's preemption and goes on at once. From the second on the line
        # may kill its workers, and some should be left for the others.
        delay = self._backoff(history.losses, line) if history.losses > 1 else 0.0
        return Verdict(history, is_over=False, delay_seconds=delay)

    def timed_out(self, past: History, company: int, lease_seconds: float) -> Verdict:
        """A lease ran out unanswered whose holder had ``company`` lines; it has waited enough.

        In company no line uses up its last attempt: it may have been another's fault.
        """
        history = past.failed(f"no answer within the lease of {lease_seconds:g} seconds")
        if company == 1:
            return Verdict(history, history.attempts >= self.max_attempts)
        last = self.max_attempts - 1
        history = attrs.evolve(history, attempts=max(past.attempts, min(history.attempts, last)))
        # The last attempt is alone at once: halving may take many a lease.
        history = history.in_company(1 if history.attempts >= last else company)
        return Verdict(history, is_over=False)

    def _backoff(self, count: int, line: int) -> float:
        """The delay after the ``count``-th time: doubled each time, and spread."""
        delay = self._delay_seconds * 2.0 ** min(count - 1, 60)
        if count > 1 or count == self.max_attempts - 1:
            # Attempts that are used up in milliseconds tell nothing of a line.
            delay = max(delay, MIN_DELAY_SECONDS * 2.0 ** max(0, min(count - 2, 60)))
        limited = min(delay, max(MAX_DELAY_SECONDS, self._delay_seconds))
        place = (line + count) * _GOLDEN % 2**64 / 2**64
        return limited * (1 - SPREAD + 2 * SPREAD * place)
