"""How long lines take, from the last leases that were answered.

A lease may be worked on line by line, side by side, or all at once, and the ledger cannot see
which. Two measures together are right for each: how long it takes until something comes back
(one line's own time, where lines run side by side), and what the whole lease took a line (the rate
at which its holder gets through them).
"""

from __future__ import annotations

import math
from collections import deque

from trioline.ledger.rows import Lease

RECENT_LEASES = 256
MIN_LEASES = 10
"""Before so many were answered nothing is known."""


class Pace:
    """Recent times, in seconds a line."""

    def __init__(self) -> None:
        self._firsts: deque[float] = deque(maxlen=RECENT_LEASES)
        self._wholes: deque[float] = deque(maxlen=RECENT_LEASES)
        self._sorted: tuple[list[float], list[float]] | None = None  # both, until the next value

    def answered(self, now: float, lease: Lease, count: int) -> None:
        """Note that the holder of a lease has answered ``count`` lines, taken out of it by now."""
        seconds = now - lease.granted_at
        if not lease.answered_count:
            self._firsts.append(seconds / count)
            self._sorted = None
        lease.answered_count += count
        if not lease.lines:
            self._wholes.append(seconds / lease.answered_count)
            self._sorted = None

    def needed_seconds(self, count: int, share: float) -> float | None:
        """How long a lease of ``count`` lines takes at the most, in ``share`` of all cases.

        Returns:
            None where too few have been seen.
        """
        quantiles = self._quantiles(share)
        if quantiles is None:
            return None
        first, whole = quantiles
        # Of several lines, not each is a slow one.
        return max(first, whole + (count - 1) * _mean(self._wholes))

    def fitting_count(self, seconds: float, share: float) -> int | None:
        """How many lines can be answered in a time, in ``share`` of all cases.

        Returns:
            0: not even one. None: nothing is known.
        """
        quantiles = self._quantiles(share)
        if quantiles is None:
            return None
        first, whole = quantiles
        if seconds < max(first, whole):
            return 0
        usual = _mean(self._wholes)
        return 1 + int(min((seconds - whole) / usual, 1e9)) if usual > 0 else 1_000_000_000

    def _quantiles(self, share: float) -> tuple[float, float] | None:
        """What ``share`` of the first and of the whole times are at the most."""
        if min(len(self._firsts), len(self._wholes)) < MIN_LEASES:
            return None
        if self._sorted is None:
            self._sorted = sorted(self._firsts), sorted(self._wholes)
        firsts, wholes = self._sorted
        return _quantile(firsts, share), _quantile(wholes, share)


def _mean(values: deque[float]) -> float:
    return sum(values) / len(values)


def _quantile(ordered: list[float], share: float) -> float:
    return ordered[math.ceil(share * len(ordered)) - 1]
