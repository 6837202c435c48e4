"""Does what falls due: leases, waits, retries, dropped sessions."""

from __future__ import annotations

import math
from typing import Protocol

import trio

MAX_SLEEP_SECONDS = 1.0
"""Between two sweeps: the rate is sampled and a standstill of the process is noticed by it."""


class Due(Protocol):
    """What the sweeper looks after."""

    def stall_seconds(self) -> float:
        """How late a sweep is where the whole process must have stood still."""

    def next_due_at(self) -> float | None:
        """The next instant with something to do."""

    async def sweep(self, now: float, *, stood_still: bool) -> None:
        """Do all that is due."""


class Sweeper:
    """Sleeps until something is due, and no longer than a second or half of a standstill."""

    def __init__(self) -> None:
        self._sleep = trio.CancelScope()
        self._wake_at = -math.inf  # of the present sleep; not asleep, there is nothing to change

    def notice(self, due_at: float) -> None:
        """Say that something falls due at an instant: wake by then."""
        if due_at < self._wake_at:
            self._wake_at = self._sleep.deadline = due_at

    async def run(self, due: Due) -> None:
        """Sweep until cancelled."""
        while True:
            # Awake more often than leases run out: else a standstill looks like one of them.
            stall_seconds = due.stall_seconds()
            self._wake_at = trio.current_time() + min(MAX_SLEEP_SECONDS, stall_seconds / 2)
            next_due_at = due.next_due_at()
            if next_due_at is not None:
                self._wake_at = min(self._wake_at, next_due_at)
            with trio.CancelScope(deadline=self._wake_at) as self._sleep:
                await trio.sleep_forever()
            planned_at, self._wake_at = self._wake_at, -math.inf
            now = trio.current_time()
            await due.sweep(now, stood_still=now - planned_at > stall_seconds)
