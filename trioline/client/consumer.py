"""Keeps places of work busy with the lines in hand; what the work is, is a subclass's business."""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Sequence
from typing import Generic, TypeVar

import anyio

from trioline.client.delivery import Delivery
from trioline.client.hand import Hand
from trioline.client.item import GiveUp
from trioline.client.pace import Pace
from trioline.client.wakeup import Wakeup
from trioline.config import MAX_LINE_BYTES

L = TypeVar("L")
"""What a subclass begins at a time."""

LATE_SECONDS = 1.0
LATE_FACTOR = 2.0
"""The server gives second copies away of what takes longer than both, by its own measure."""


class Consumer(ABC, Generic[L]):
    """Does the work, in as many tasks as call ``run``.

    Args:
        hand: Where the lines come from.
        delivery: Where the outcomes go.
        pace: Told how long they took.

    Attributes:
        hungry: Rung when lines run short, and when nothing runs any more.
        gave_up: Set when no line can be worked on at all; ``reason`` says why.
        given_back: Rung when lines were given back.
        is_in_vain: Whether calls go on though every line in hand is another's by now.
        max_result_bytes: The longest result the server takes.
    """

    def __init__(self, hand: Hand, delivery: Delivery, pace: Pace) -> None:
        self.hungry = Wakeup()
        self.given_back = Wakeup()
        self.gave_up = anyio.Event()
        self.reason: GiveUp | None = None
        self.is_in_vain = False
        self.max_result_bytes = MAX_LINE_BYTES
        self._hand = hand
        self._delivery = delivery
        self._pace = pace
        self._idle: deque[anyio.Event] = deque()
        self._began_at = 0.0
        self._calling = 0

    @abstractmethod
    def _take(self) -> L | None:
        """Begin lines; None where there are none."""

    @abstractmethod
    async def _work(self, lines: L) -> None:
        """See lines that were begun through.

        **Cancellation**: what has no outcome yet gets none.
        """

    @property
    def stalled_seconds(self) -> float:
        """For how long all that is at work has been so, and nothing else was begun."""
        return time.perf_counter() - self._began_at if self._calling else 0.0

    @property
    def is_late(self) -> bool:
        """Whether all that is at work takes so long that others may have copies of it."""
        usual = self._pace.usual_seconds
        return usual is not None and self.stalled_seconds > max(LATE_SECONDS, LATE_FACTOR * usual)

    @property
    def idle(self) -> int:
        """Calls that could begin at once if there were lines."""
        return len(self._idle)

    def wake(self) -> None:
        """Say that there are new lines in hand."""
        needed = math.ceil(self._hand.queued / self._pace.unit)
        while self._idle and needed > 0:
            self._idle.popleft().set()
            needed -= 1

    def lose(self, lost: Sequence[int]) -> None:
        """Stop working on lines that are another's by now.

        What is queued is never begun. Work that goes on may still be the first to have a result,
        which is handed in all the same; a failure counts no more.
        """
        self._hand.drop(lost)
        self.is_in_vain = self.is_in_vain or bool(lost and self._calling and not len(self._hand))

    def end(self) -> None:
        """Keep whatever was left behind from beginning anything more."""

    async def run(self) -> None:
        """Work on lines until cancelled.

        **Cancellation**: the call is cancelled; a thread is left behind and its outcome is lost.
        """
        while True:
            await self._delivery.wait_room()
            lines = self._take()
            if lines is None:
                await self._wait_for_lines()
                continue
            if self._hand.queued <= self._pace.low:
                self.hungry.ring()
            self._began_at = time.perf_counter()
            self._calling += 1
            await self._work(lines)
            self._calling -= 1
            self.is_in_vain = False
            self._delivery.ring()
            if self.reason is not None:
                self.gave_up.set()
            if self._hand.unwanted:
                self.given_back.ring()
            if not self._hand.running:
                self.hungry.ring()

    async def _wait_for_lines(self) -> None:
        woken = anyio.Event()
        self._idle.append(woken)
        self.hungry.ring()
        await woken.wait()
