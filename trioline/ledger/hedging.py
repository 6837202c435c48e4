"""Second copies of late leases, for workers that would have nothing to do."""

from __future__ import annotations

from itertools import islice

from trioline.ledger.leases import Leases
from trioline.ledger.pace import Pace
from trioline.ledger.rows import HolderId, Lease, LineSet, Offer, runs_of

SHARE = 0.95
"""A lease is late where it takes ``factor`` times what this share of recent ones took."""
MIN_SECONDS = 1.0
"""Before that no lease is late: a copy costs a round trip, and quick lines are nobody's trouble."""
MAX_LOOKS = 1_000
"""Late leases looked at for one that can be copied."""


class Hedging:
    """Finds what is worth a second copy.

    Args:
        leases: Of all holders.
        pace: How long they usually take.
        factor: See ``SHARE``; 0: no copies. May be changed later.
    """

    def __init__(self, leases: Leases, pace: Pace, factor: float) -> None:
        self.factor = factor
        self._leases = leases
        self._pace = pace

    def offer(self, now: float, holder: HolderId, max_count: int) -> Offer | None:
        """Find lines of the oldest late lease that ``holder`` could have as well."""
        if not self.factor:
            return None
        for lease in islice(self._leases.oldest_first(), MAX_LOOKS):
            if now - lease.granted_at < MIN_SECONDS:
                return None
            if lease.holder != holder and self._is_late(now, lease):
                run = _uncopied(lease)
                if run:
                    count = min(max_count, len(run), lease.history.max_together or max_count)
                    return Offer(run.start, count, lease.history, lease)
        return None

    def _is_late(self, now: float, lease: Lease) -> bool:
        if lease.is_lost:
            return False  # its grace is short, and it may have been these lines that killed
        usual = self._pace.needed_seconds(lease.count, SHARE)
        return usual is not None and now - lease.granted_at >= self.factor * usual


def _uncopied(lease: Lease) -> range:
    """The first lines in a row that may have a copy."""
    if sum(len(copy.lines) for copy in lease.copies) == len(lease.lines):
        return range(0)
    free = LineSet.of(runs_of(lease.lines))
    for copy in lease.copies:
        for run in runs_of(copy.lines):
            free.remove(run)
    for line in lease.uncopied:
        if line in free:
            free.remove(range(line, line + 1))
    return next(free.runs(), range(0))
