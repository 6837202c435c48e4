"""Runs a user's function on the lines in hand; whatever the function does becomes an outcome."""

from __future__ import annotations

import inspect
import logging
import math
import time
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import anyio
import anyio.lowlevel
import anyio.to_thread

from trioline.client.delivery import Delivery
from trioline.client.hand import Hand
from trioline.client.item import Failure, GiveBack, GiveUp, Item, Outcome, failure_of, outcome_of
from trioline.client.pace import Pace
from trioline.client.wakeup import Wakeup
from trioline.config import MAX_LINE_BYTES

logger = logging.getLogger("trioline.worker")

SLICE_SECONDS = 0.01
"""An async function that never waits gets the loop for so long, and a thread is kept for so long:
far longer than the hop costs (0.1 ms), far shorter than anyone notices."""
LATE_SECONDS = 1.0
LATE_FACTOR = 2.0
"""The server gives second copies away of what takes longer than both, by its own measure."""


class Consumer:
    """Calls the function, ``concurrency`` calls at a time.

    Args:
        function: Async or not; takes one item, or a list where ``many``.
        hand: Where the lines come from.
        delivery: Where the outcomes go.
        pace: Told how long they took.
        concurrency: Calls at a time.
        many: Whether the function takes lists.
        text: Whether ``str`` results are lines as they are.
        timeout_seconds: How long a call may take; None: for ever.

    Attributes:
        hungry: Rung when lines run short, and when nothing runs any more.
        gave_up: Set when the function can work on nothing at all; ``reason`` says why.
        given_back: Rung when the function gave lines back.
        is_in_vain: Whether calls go on though every line in hand is another's by now.
        max_result_bytes: The longest result the server takes.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        hand: Hand,
        delivery: Delivery,
        pace: Pace,
        *,
        concurrency: int,
        many: bool,
        text: bool,
        timeout_seconds: float | None,
    ) -> None:
        self.hungry = Wakeup()
        self.given_back = Wakeup()
        self.gave_up = anyio.Event()
        self.reason: GiveUp | None = None
        self.max_result_bytes = MAX_LINE_BYTES
        self._function = function
        self._hand = hand
        self._delivery = delivery
        self._pace = pace
        self._many = many
        self._text = text
        self._timeout_seconds = timeout_seconds
        self._too_late = Failure(f"no result within {timeout_seconds or math.inf:g} seconds")
        self._is_async = _is_async(function)
        self._calls: dict[int, anyio.CancelScope] = {}  # async ones of a line each
        self._idle: deque[anyio.Event] = deque()
        self._limiter = anyio.CapacityLimiter(concurrency)
        self._is_over = False
        self._began_at = 0.0
        self._calling = 0
        self.is_in_vain = False

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

        What is queued is never begun, and an async call for one line is cancelled. A thread and a
        call for many lines go on: a result of theirs is handed in all the same, for it may still
        be the first one; a failure of theirs counts no more.
        """
        self._hand.drop(lost)
        for number in lost:
            if number in self._calls:
                self._calls.pop(number).cancel()
        self.is_in_vain = self.is_in_vain or bool(lost and self._calling and not len(self._hand))

    def end(self) -> None:
        """Keep threads that were left behind from beginning anything more."""
        self._is_over = True

    async def run(self) -> None:
        """Work on lines until cancelled; one of ``concurrency`` tasks.

        **Cancellation**: the call is cancelled; a thread is left behind and its outcome is lost.
        """
        while True:
            await self._delivery.wait_room()
            items = self._hand.take_many(self._pace.unit)
            if not items:
                await self._wait_for_lines()
                continue
            if self._hand.queued <= self._pace.low:
                self.hungry.ring()
            self._began_at = time.perf_counter()
            self._calling += 1
            await self._work(items)
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

    async def _work(self, items: list[Item]) -> None:
        if not self._is_async:
            await self._hop_to_thread(items)
        elif self._many:
            began_at = time.perf_counter()
            self._finish(items, await self._call_many(items), began_at)
            await self._settle()
        else:
            await self._async_slice(items[0])

    # --- async functions ------------------------------------------------------------------------

    async def _async_slice(self, first: Item) -> None:
        """Work on lines one by one until the queue is empty or the time is over."""
        item = first
        next_item: Item | None = first
        began_at = now = time.perf_counter()
        ends_at = now + SLICE_SECONDS
        # One scope for all of them, since one for each would cost more than a quick call.
        with anyio.CancelScope() as scope:
            while next_item is not None:
                item, began_at = next_item, now
                self._calls[item.id] = scope
                if self._timeout_seconds is not None:
                    scope.deadline = anyio.current_time() + self._timeout_seconds
                outcome = await self._call(item)
                now = time.perf_counter()
                self._pace.record(1, now - began_at)
                if scope.cancel_called and not isinstance(outcome, bytes):
                    outcome = self._too_late  # what it made of its cancellation
                self._put(item, outcome)
                self._calls.pop(item.id, None)
                is_over = now >= ends_at or scope.cancel_called
                next_item = None if is_over else self._hand.take()
        if scope.cancelled_caught:
            self._pace.record(1, time.perf_counter() - began_at)
            self._put(item, self._too_late)
            self._calls.pop(item.id, None)
        await self._settle()

    async def _call(self, item: Item) -> Outcome | GiveBack:
        """Call the function."""
        try:
            value = await self._function(item)
        except BaseException as error:  # noqa: BLE001, ASYNC103 - what is not its own is raised
            return _raised_async(error)  # noqa: ASYNC104
        return outcome_of(value, text=self._text, max_bytes=self.max_result_bytes)

    async def _call_many(self, items: list[Item]) -> Sequence[object]:
        with anyio.move_on_after(self._timeout_seconds) as scope:
            try:
                return _checked(await self._function(items), len(items))
            except BaseException as error:  # noqa: BLE001, ASYNC103 - what is not its own is raised
                raised = _raised_async(error)
        return [self._too_late if scope.cancel_called else raised] * len(items)

    async def _settle(self) -> None:
        """Let others run: the function may never have waited for anything.

        Under asyncio it may also have cancelled this very task, which then is found out here,
        where no line is in hand.
        """
        try:
            await anyio.lowlevel.checkpoint()
        except anyio.get_cancelled_exc_class():  # noqa: ASYNC103 - ours is raised
            if _is_cancelled():
                raise
            logger.warning("The function cancelled the task that had called it.")

    # --- functions in threads ---------------------------------------------------------------------

    async def _hop_to_thread(self, items: list[Item]) -> None:
        at_work = [items]
        # No call begins later than a slice after the first one: whichever is on then, took longer.
        longest = None if self._timeout_seconds is None else self._timeout_seconds + SLICE_SECONDS
        with anyio.move_on_after(longest) as scope:
            await anyio.to_thread.run_sync(
                self._thread_slice, items, at_work, abandon_on_cancel=True, limiter=self._limiter
            )
        if scope.cancelled_caught:
            self._limiter.total_tokens += 1  # it keeps its own for as long as it hangs
            for item in at_work[0]:
                if self._hand.holds(item):
                    self._put(item, self._too_late)

    def _thread_slice(self, items: list[Item], at_work: list[list[Item]]) -> None:
        ends_at = time.perf_counter() + SLICE_SECONDS
        while items:
            at_work[0] = items
            began_at = time.perf_counter()
            self._finish(items, self._call_sync(items), began_at)
            if self._is_over or time.perf_counter() >= ends_at:
                return
            items = self._hand.take_many(self._pace.unit)

    def _call_sync(self, items: list[Item]) -> Sequence[object]:
        try:
            if self._many:
                return _checked(self._function(items), len(items))
            return [self._function(items[0])]
        except BaseException as error:  # noqa: BLE001, ASYNC103 - in a thread none is ours
            return [_raised(error)] * len(items)  # noqa: ASYNC104

    def _finish(self, items: list[Item], values: Sequence[object], began_at: float) -> None:
        self._pace.record(len(items), time.perf_counter() - began_at)
        text, max_bytes = self._text, self.max_result_bytes
        for item, value in zip(items, values, strict=True):
            if not isinstance(value, (Failure, GiveBack)):
                value = outcome_of(value, text=text, max_bytes=max_bytes)
            self._put(item, value)

    # --- outcomes ---------------------------------------------------------------------------------

    def _put(self, item: Item, outcome: Outcome | GiveBack) -> None:
        """Let a line's outcome go its way, from any thread."""
        if isinstance(outcome, GiveUp):
            self.reason = outcome
        is_held = self._hand.holds(item)
        if isinstance(outcome, GiveBack):
            if is_held:
                self._hand.give_back(item)
        elif is_held or isinstance(outcome, bytes):
            self._delivery.add(item.id, outcome)
            if is_held:
                self._hand.finish(item.id)


def _is_async(function: Callable[..., Any]) -> bool:
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(
        getattr(function, "__call__", None)  # noqa: B004 - an object with async def __call__
    )


def _raised(error: BaseException) -> Failure | GiveBack:
    """Say what an exception of the function's own makes of its lines."""
    return error if isinstance(error, GiveBack) else failure_of(error)


def _raised_async(error: BaseException) -> Failure | GiveBack:
    """Do as ``_raised``, but where others raise into the function, too.

    Raises:
        BaseException: ``error`` itself, where it is meant for us.
    """
    if isinstance(error, Exception):
        return _raised(error)
    if _is_ctrl_c(error):
        raise error
    if not _is_cancelled():
        # Under asyncio a task of the user's that was cancelled raises CancelledError in whoever
        # awaits it: only where this very task is being cancelled is it meant for us.
        return _raised(error)
    if isinstance(error, anyio.get_cancelled_exc_class()):
        raise error
    return GiveBack()  # a group, say, that has the cancellation in it


def _is_cancelled() -> bool:
    return anyio.current_effective_deadline() == -math.inf


def _is_ctrl_c(error: BaseException) -> bool:
    """Whether it is a real Ctrl-C: Trio and asyncio raise it in whatever code just runs."""
    if not isinstance(error, KeyboardInterrupt):
        return False
    *_, (frame, _line) = traceback.walk_tb(error.__traceback__)
    raised_in = str(frame.f_globals.get("__name__"))
    return raised_in.partition(".")[0] in ("trio", "asyncio", "anyio")


def _checked(values: object, count: int) -> Sequence[object]:
    """Refuse what cannot be told apart into one result a line."""
    if not isinstance(values, (list, tuple)):
        values = [TypeError(f"the function returned {type(values).__name__}, not a list")] * count
    elif len(values) != count:
        text = f"the function returned {len(values)} results for {count} lines"
        values = [ValueError(text)] * count
    return values
