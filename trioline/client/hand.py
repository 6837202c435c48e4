"""The lines a worker has in hand: queued here, being worked on, or given up as lost. No I/O.

Threads that run a user's function take lines and put outcomes in by themselves, so whatever
they touch is a deque or a dict used by single operations, which Python makes whole.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterable

from trioline.client.item import Item
from trioline.client.lease import Lease


class Hand(ABC):
    """What was leased and has no outcome yet.

    Attributes:
        notes: Texts that the user's function left with ``Item.note``, to be sent.
        unwanted: Lines to be given back to the server.
    """

    def __init__(self) -> None:
        self.notes: dict[int, str] = {}
        self.unwanted: deque[int] = deque()
        self._is_closed = False

    def __len__(self) -> int:
        return self.queued + self.running

    @property
    @abstractmethod
    def queued(self) -> int:
        """Lines that nobody has begun."""

    @property
    @abstractmethod
    def running(self) -> int:
        """Lines that are being worked on."""

    @abstractmethod
    def put(self, lease: Lease) -> None:
        """Queue the lines of a lease; once closed, they are unwanted."""

    @abstractmethod
    def drop(self, lost: Iterable[int]) -> None:
        """Never begin these, and hold those no more that were begun: they are another's by now."""

    @abstractmethod
    def forget_queue(self) -> None:
        """What was not begun is another's: the leases are gone, all of them."""

    @abstractmethod
    def shed(self, count: int) -> None:
        """Give back so many of the lines that would be begun last."""

    def close(self) -> None:
        """Begin nothing more: what is queued, and whatever still comes, is unwanted."""
        self._is_closed = True
        self.shed(self.queued)


class ItemHand(Hand):
    """Has an item for each line."""

    def __init__(self) -> None:
        super().__init__()
        self._queue: deque[Item] = deque()
        self._running: dict[int, Item] = {}
        self._lost: set[int] = set()

    @property
    def queued(self) -> int:
        """Lines that nobody has begun."""
        return len(self._queue)

    @property
    def running(self) -> int:
        """Lines that are being worked on."""
        return len(self._running)

    def put(self, lease: Lease) -> None:
        """Queue the lines of a lease; once closed, they are unwanted."""
        items = lease.items_noting(self.notes)
        if self._lost:
            self._lost.difference_update([item.id for item in items])
        if self._is_closed:
            self.unwanted.extend(item.id for item in items)
        elif self._running:
            # After a cut a line may come again that is still being worked on here.
            self._queue.extend([item for item in items if item.id not in self._running])
        else:
            self._queue.extend(items)

    def take(self) -> Item | None:
        """Begin the next line that is not lost; None where there is none."""
        queue = self._queue
        while True:
            try:
                item = queue.popleft()
            except IndexError:
                return None
            if item.id in self._lost:
                self._lost.discard(item.id)
                continue
            self._running[item.id] = item
            return item

    def take_many(self, max_count: int) -> list[Item]:
        """Begin up to so many lines."""
        items: list[Item] = []
        while len(items) < max_count and (item := self.take()) is not None:
            items.append(item)
        return items

    def holds(self, item: Item) -> bool:
        """Whether a line that was begun is still this worker's, and has no outcome yet."""
        return self._running.get(item.id) is item

    def finish(self, item: Item) -> None:
        """The line has its outcome."""
        # Else it was lost; where it came again, the other item of it is still at work.
        if self._running.get(item.id) is item:
            self._running.pop(item.id, None)

    def finish_number(self, number: int) -> None:
        """The line has its outcome, whichever item of it that came from."""
        self._running.pop(number, None)

    def drop(self, lost: Iterable[int]) -> None:
        """Never begin these, and hold those no more that were begun: they are another's by now."""
        running = self._running
        self._lost.update([number for number in lost if running.pop(number, None) is None])
        if not self._queue:
            self._lost.clear()

    def give_back(self, item: Item) -> None:
        """The line was begun, but not worked on: it is unwanted."""
        self.finish(item)
        self.unwanted.append(item.id)

    def forget_queue(self) -> None:
        """What was not begun is another's: the leases are gone, all of them."""
        self._queue.clear()
        self.unwanted.clear()
        self._lost.clear()

    def forget(self) -> None:
        """Everything has been given back, what was begun as well."""
        self.forget_queue()
        self._running.clear()

    def shed(self, count: int) -> None:
        """Give back so many of the lines that would be begun last."""
        for _ in range(count):
            try:
                number = self._queue.pop().id
            except IndexError:  # a thread was quicker
                break
            if number in self._lost:
                self._lost.discard(number)
            else:
                self.unwanted.append(number)
