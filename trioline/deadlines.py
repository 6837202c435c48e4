"""Things that fall due, for the ledger's leases and the server's waiting requests.

Most of them share a few durations and end early, so a heap would fill with what is long over.
Here all that started with one duration stand in one queue, which is in order of falling due by
itself: starting, stopping and finding the next one cost the same however many there are.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Iterator
from typing import Generic, TypeVar

T = TypeVar("T", bound=Hashable)


class Deadlines(Generic[T]):
    """A set of items, each with an instant at which it falls due.

    ``now`` is in seconds of any monotonic clock and never goes back from call to call.
    """

    def __init__(self) -> None:
        self._queues: dict[float, OrderedDict[T, float]] = {}
        self.started: OrderedDict[T, float] = OrderedDict()
        """All items in the order in which they were started, each with its seconds; to be read."""

    def start(self, item: T, seconds: float, now: float) -> None:
        """Let an item fall due ``seconds`` from now, whatever was set for it before."""
        if item in self.started:
            self.stop(item)
        self.started[item] = seconds
        if seconds not in self._queues:
            self._queues[seconds] = OrderedDict()
        self._queues[seconds][item] = now + seconds

    def stop(self, item: T) -> None:
        """Take an item out; nothing happens where it is not there."""
        seconds = self.started.pop(item, None)
        if seconds is not None:
            queue = self._queues[seconds]
            del queue[item]
            if not queue:
                del self._queues[seconds]

    def due_at(self, item: T) -> float:
        """When an item falls due.

        Raises:
            KeyError: It is not there.
        """
        return self._queues[self.started[item]][item]

    def next_due_at(self) -> float | None:
        """When the next item falls due; None where there is none."""
        return min((next(iter(queue.values())) for queue in self._queues.values()), default=None)

    def due(self, now: float) -> list[T]:
        """The items that have fallen due by now; they stay in until stopped."""
        return [item for queue in self._queues.values() for item in _due(queue, now)]

    def first(self) -> T | None:
        """The item that was started before all others; None where there is none."""
        return next(iter(self.started)) if self.started else None

    def restart_all(self, now: float) -> None:
        """Give every item its whole duration again."""
        for seconds, queue in self._queues.items():
            for item in queue:
                queue[item] = now + seconds


def _due(queue: OrderedDict[T, float], now: float) -> Iterator[T]:
    for item, due_at in queue.items():
        if due_at > now:
            return
        yield item
