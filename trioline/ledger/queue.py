"""Lines that came back: some can be given out at once, others wait for their next attempt."""

from __future__ import annotations

import heapq

from trioline.ledger.rows import FRESH, History


class Queue:
    """Ranges of lines in order of their numbers; the delayed ones in order of their time."""

    def __init__(self) -> None:
        self.ready: list[tuple[int, int, History]] = []
        """A heap of (first, stop, history); to be changed by the methods alone."""
        self.delayed: list[tuple[float, int, int, History]] = []
        """A heap of (ready_at, first, stop, history); likewise."""

    def __len__(self) -> int:
        """How many ranges there are."""
        return len(self.ready) + len(self.delayed)

    def push(self, lines: range, history: History) -> None:
        """Put lines in that can be given out now."""
        heapq.heappush(self.ready, (lines.start, lines.stop, history))

    def push_delayed(self, lines: range, history: History, ready_at: float) -> None:
        """Put lines in that cannot be given out before ``ready_at``."""
        heapq.heappush(self.delayed, (ready_at, lines.start, lines.stop, history))

    def wake(self, now: float) -> None:
        """Let those whose time has come be given out."""
        while self.delayed and self.delayed[0][0] <= now:
            _, first, stop, history = heapq.heappop(self.delayed)
            heapq.heappush(self.ready, (first, stop, history))

    def next_ready_at(self) -> float | None:
        """When the next delayed one's time comes; None where none is delayed."""
        return self.delayed[0][0] if self.delayed else None

    def drop_first(self, before: int | None = None) -> None:
        """Take the first range out, or only its lines below ``before``."""
        _, stop, history = heapq.heappop(self.ready)
        if before is not None and before < stop:
            heapq.heappush(self.ready, (before, stop, history))

    def history_of(self, line: int) -> History:
        """What was tried with a line that is in here; looks at all of them."""
        waiting = [*self.ready, *((first, stop, past) for _, first, stop, past in self.delayed)]
        return next((past for first, stop, past in waiting if first <= line < stop), FRESH)
