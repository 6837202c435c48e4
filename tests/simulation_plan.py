"""What a simulated job is like, and what became of it."""

from __future__ import annotations

import math
from collections import Counter

import attrs

from trioline.config import HEDGE


@attrs.frozen(kw_only=True)
class Plan:
    """What a job is like. One line's time is log-normal: a few take 50 times the median."""

    lines: int = 10_000
    workers: int = 64
    median_seconds: float = 1.0
    sigma: float = 1.2
    dying_share: float = 0.1
    """Of the workers: their connection drops at some moment."""
    hung: int = 5
    """Workers that stop answering at some moment, for good."""
    hung_renew: bool = True
    """Their helper goes on renewing and giving back what is not begun; False: all stands still."""
    poison: int = 3
    """Lines that kill whoever works on them."""
    batch: int | None = None
    """What ``run_worker`` takes."""
    hedge: float = HEDGE
    bisects: bool = True


@attrs.define(kw_only=True)
class Outcome:
    """What became of a job."""

    good_seconds: float = 0.0
    """Until every line but the poison ones had its result."""
    over_seconds: float = 0.0
    """Until those were rejected, too."""
    ideal_seconds: float = 0.0
    """With nothing done twice and every living worker busy to the end."""
    useful_seconds: float = 0.0
    busy_seconds: float = 0.0
    copied: int = 0
    killed: int = 0
    """Workers, by poison lines."""
    settled: Counter[int] = attrs.Factory(Counter)
    rejected: set[int] = attrs.Factory(set)
    poison: set[int] = attrs.Factory(set)
    unsettled: set[int] = attrs.Factory(set)

    @property
    def has_all_good(self) -> bool:
        """Whether all but the poison lines have their result."""
        return self.unsettled <= self.poison

    @property
    def ratio(self) -> float:
        """How many times the ideal the good lines took."""
        if not self.has_all_good:
            return math.inf
        return self.good_seconds / self.ideal_seconds

    @property
    def wasted(self) -> float:
        """Work done in vain, as a share of what was needed."""
        return self.busy_seconds / self.useful_seconds - 1


VARIANTS = {
    "nothing goes wrong": Plan(hung=0, poison=0, dying_share=0),
    "all on": Plan(),
    "no hedging": Plan(hedge=0),
    "no bisection": Plan(bisects=False),
    "hung, silent": Plan(hung_renew=False),
    "hung, silent, no hedging": Plan(hung_renew=False, hedge=0),
    "batch 8": Plan(batch=8),
    "batch 8, no hedging": Plan(batch=8, hedge=0),
    "batch 8, no bisection": Plan(batch=8, bisects=False),
    "batch 8, hung, silent": Plan(batch=8, hung_renew=False),
    "quick lines": Plan(median_seconds=0.1),
}
