"""Lines that are worked on as one piece of bytes: none of them is looked at."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterable, Iterator, Sequence, Set
from itertools import chain

import anyio.lowlevel
import attrs

from trioline.client.consumer import Consumer
from trioline.client.delivery import Delivery
from trioline.client.hand import Hand
from trioline.client.item import Failure, GiveBack, GiveUp, Raw, outcome_of
from trioline.client.lease import Lease
from trioline.client.outbox import MAX_PARCEL_BYTES
from trioline.client.pace import Pace
from trioline.client.raised import raised_async

MIN_PARCEL_LINES = 64
"""Answers to fewer lines share a message with others."""


@attrs.frozen(eq=False)
class Block:
    """Lines that follow each other, each with its newline."""

    first: int
    count: int
    body: bytes

    @property
    def numbers(self) -> range:
        """The lines' numbers."""
        return range(self.first, self.first + self.count)

    def overlaps(self, other: Block) -> bool:
        """Whether a line is in both."""
        return self.first < other.numbers.stop and other.first < self.numbers.stop

    def cut(self, count: int) -> tuple[Block, Block]:
        """Split it behind ``count`` lines, fewer than it has."""
        *lines, rest = self.body.split(b"\n", count)
        head = Block(self.first, count, b"\n".join([*lines, b""]))
        return head, Block(self.first + count, self.count - count, rest)

    def without(self, numbers: Set[int]) -> Iterator[Block]:
        """What remains of it, where some lines are taken out."""
        rest = self
        for number in sorted(number for number in numbers if number in self.numbers):
            if number > rest.first:
                head, rest = rest.cut(number - rest.first)
                yield head
            if rest.count == 1:
                return
            _, rest = rest.cut(1)
        yield rest


@attrs.frozen
class Answers:
    """What became of a block: its first lines have results, the next ones failed.

    What is behind those was not worked on.
    """

    count: int
    body: bytes
    """Results of so many lines, each with its newline."""
    failures: Sequence[Failure] = ()


class BlockFunction(ABC):
    """Works on blocks."""

    @abstractmethod
    async def __call__(self, block: Block) -> Answers:
        """Answer a block.

        Raises:
            GiveUp: No line can be worked on at all.
            Exception: All of them failed.
        """


class BlockHand(Hand):
    """Keeps blocks whole."""

    def __init__(self) -> None:
        super().__init__()
        self._queue: deque[Block] = deque()
        self._running: list[Block] = []
        self._lost: set[int] = set()

    @property
    def queued(self) -> int:
        """Lines that nobody has begun."""
        return sum(block.count for block in self._queue)

    @property
    def running(self) -> int:
        """Lines that are being worked on."""
        return sum(block.count for block in self._running)

    def put(self, lease: Lease) -> None:
        """Queue the lines of a lease; once closed, they are unwanted."""
        for block in _blocks_of(lease):
            if self._is_closed:
                self.unwanted.extend(block.numbers)
                continue
            # After a cut a line may come again that is still being worked on here.
            begun = [other.numbers for other in self._running if other.overlaps(block)]
            self._queue.extend(block.without(set(chain(*begun))))

    def take(self, max_count: int) -> Block | None:
        """Begin up to so many lines that follow each other; None where there are none."""
        if not self._queue:
            return None
        block = self._queue.popleft()
        if block.count > max_count:
            block, rest = block.cut(max_count)
            self._queue.appendleft(rest)
        self._running.append(block)
        return block

    def holds(self, number: int) -> bool:
        """Whether a line that was begun is still this worker's."""
        return number not in self._lost

    def finish(self, block: Block) -> None:
        """The lines have their outcomes."""
        self._running.remove(block)
        if self._lost:
            self._lost.difference_update(block.numbers)

    def drop(self, lost: Iterable[int]) -> None:
        """Never begin these, and hold those no more that were begun: they are another's by now."""
        numbers = set(lost)
        if numbers:
            self._queue = deque(rest for block in self._queue for rest in block.without(numbers))
            for block in self._running:
                self._lost.update(number for number in numbers if number in block.numbers)

    def forget_queue(self) -> None:
        """What was not begun is another's: the leases are gone, all of them."""
        self._queue.clear()
        self.unwanted.clear()

    def shed(self, count: int) -> None:
        """Give back so many of the lines that would be begun last."""
        while count > 0 and self._queue:
            block = self._queue.pop()
            if block.count > count:
                head, block = block.cut(block.count - count)
                self._queue.append(head)
            self.unwanted.extend(block.numbers)
            count -= block.count


def _blocks_of(lease: Lease) -> list[Block]:
    if lease.block is not None and lease.first is not None:
        return [Block(lease.first, lease.count, lease.block)]
    return [Block(item.id, 1, item.raw + b"\n") for item in lease.items]


class BlockConsumer(Consumer[Block]):
    """Has a function answer blocks.

    Args:
        function: Answers them.
        hand: Where they come from.
        delivery: Where the outcomes go.
        pace: Told how long they took.
    """

    def __init__(
        self, function: BlockFunction, hand: BlockHand, delivery: Delivery, pace: Pace
    ) -> None:
        super().__init__(hand, delivery, pace)
        self._function = function
        self._blocks = hand

    def _take(self) -> Block | None:
        return self._blocks.take(self._pace.unit)

    async def _work(self, lines: Block) -> None:
        began_at = time.perf_counter()
        try:
            answers = await self._function(lines)
        except BaseException as error:  # noqa: BLE001, ASYNC103 - what is not its own is raised
            answers = self._without_answers(lines, raised_async(error))  # noqa: ASYNC104
        self._pace.record(lines.count, time.perf_counter() - began_at)
        self._hand_in(lines, answers)
        await anyio.lowlevel.checkpoint()  # the function may have waited for nothing

    def _without_answers(self, block: Block, caught: Failure | GiveBack) -> Answers:
        if isinstance(caught, GiveUp):
            self.reason = caught
        failures = [caught] * block.count if isinstance(caught, Failure) else []
        return Answers(0, b"", failures)

    def _hand_in(self, block: Block, answers: Answers) -> None:
        count = answers.count
        self._put(block.first, count, answers.body)
        outbox, holds = self._delivery.outbox, self._blocks.holds
        failed = block.numbers[count : count + len(answers.failures)]
        for number, failure in zip(failed, answers.failures, strict=True):
            if holds(number):
                outbox.add(number, failure)
        rest = block.numbers[count + len(failed) :]
        self._blocks.unwanted.extend(number for number in rest if holds(number))
        self._blocks.finish(block)

    def _put(self, first: int, count: int, body: bytes) -> None:
        outbox = self._delivery.outbox
        if count >= MIN_PARCEL_LINES and len(body) <= min(MAX_PARCEL_BYTES, self.max_result_bytes):
            outbox.add_block(first, count, body)
        else:
            for number, line in enumerate(body.split(b"\n")[:-1], first):
                outbox.add(number, outcome_of(Raw(line), max_bytes=self.max_result_bytes))
