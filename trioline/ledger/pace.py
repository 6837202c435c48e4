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
        self._firsts = _Recent()
        self._wholes = _Recent()

    def answered(self, now: float, lease: Lease, count: int) -> None:
        """Note that the holder of a lease has answered ``count`` lines, taken out of it by now."""
        if not lease.answered_count:
            self.first_came(now - lease.granted_at, count)
        lease.answered_count += count
        if not lease.lines:
            self.all_came(now - lease.granted_at, lease.answered_count)

    def first_came(self, seconds: float, count: int) -> None:
        """Note when the first ``count`` lines of a lease came back together."""
        self._firsts.add(seconds / count)

    def all_came(self, seconds: float, count: int) -> None:
        """Note when the last of a lease's ``count`` lines came back."""
        self._wholes.add(seconds / count)

    def needed_seconds(self, count: int, share: float) -> float | None:
        """How long a lease of ``count`` lines takes at the most, in ``share`` of all cases.

        Returns:
            None where too few have been seen.
        """
        first, whole = self._firsts.quantile(share), self._wholes.quantile(share)
        if first is None or whole is None:
            return None
        # Of several lines, not each is a slow one.
        return max(first, whole + (count - 1) * self._wholes.mean())

    def fitting_count(self, seconds: float, share: float) -> int | None:
        """How many lines can be answered in a time, in ``share`` of all cases.

        Returns:
            0: not even one. None: nothing is known.
        """
        first, whole = self._firsts.quantile(share), self._wholes.quantile(share)
        if first is None or whole is None:
            return None
        if seconds < max(first, whole):
            return 0
        usual = self._wholes.mean()
        return 1 + int(min((seconds - whole) / usual, 1e9)) if usual > 0 else 1_000_000_000


class _Recent:
    """The last values, and what share of them is below what."""

    def __init__(self) -> None:
        self._values: deque[float] = deque(maxlen=RECENT_LEASES)
        self._sorted: list[float] | None = None

    def add(self, value: float) -> None:
        self._values.append(value)
        self._sorted = None

    def mean(self) -> float:
        return sum(self._values) / len(self._values) if self._values else 0.0

    def quantile(self, share: float) -> float | None:
        if len(self._values) < MIN_LEASES:
            return None
        if self._sorted is None:
            self._sorted = sorted(self._values)
        return self._sorted[math.ceil(share * len(self._sorted)) - 1]
