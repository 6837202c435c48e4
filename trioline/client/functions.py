"""Runs a user's function on the lines in hand; whatever the function does becomes an outcome."""

from __future__ import annotations

import contextlib
import inspect
import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import anyio
import anyio.lowlevel
import anyio.to_thread
import attrs

from trioline.client.consumer import Consumer
from trioline.client.delivery import Delivery
from trioline.client.hand import ItemHand
from trioline.client.item import Failure, GiveBack, GiveUp, Item, Outcome, outcome_of
from trioline.client.pace import Pace
from trioline.client.raised import checked, is_cancelled, raised, raised_async

logger = logging.getLogger("trioline.worker")

SLICE_SECONDS = 0.01
"""An async function that never waits gets the loop for so long, and a thread is kept for so long:
far longer than the hop costs (0.1 ms), far shorter than anyone notices."""


@attrs.define(eq=False)
class _Call:
    """An async call for one line, and then for the next one."""

    scope: anyio.CancelScope
    item: Item | None = None
    is_lost: bool = False


class FunctionConsumer(Consumer[list[Item]]):
    """Calls a function, ``concurrency`` calls at a time.

    Args:
        function: Async or not; takes one item, or a list where ``many``.
        hand: Where the lines come from.
        delivery: Where the outcomes go.
        pace: Told how long they took.
        concurrency: Calls at a time.
        many: Whether the function takes lists.
        text: Whether ``str`` results are lines as they are.
        timeout_seconds: How long a call may take; None: for ever.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        hand: ItemHand,
        delivery: Delivery,
        pace: Pace,
        *,
        concurrency: int,
        many: bool,
        text: bool,
        timeout_seconds: float | None,
    ) -> None:
        super().__init__(hand, delivery, pace)
        self._function = function
        self._items = hand
        self._outbox = delivery.outbox
        self._many = many
        self._text = text
        self._timeout_seconds = timeout_seconds
        self._too_late = Failure(f"no result within {timeout_seconds or math.inf:g} seconds")
        self._is_async = _is_async(function)
        self._calls: list[_Call] = []
        self._limiter = anyio.CapacityLimiter(concurrency)
        self._is_over = False

    def lose(self, lost: Sequence[int]) -> None:
        """Stop working on lines that are another's by now; an async call for one is cancelled."""
        numbers = set(lost)
        for call in self._calls:
            if call.item is not None and call.item.id in numbers:
                call.is_lost = True
                call.scope.cancel()
        super().lose(lost)

    def end(self) -> None:
        """Keep threads that were left behind from beginning anything more."""
        self._is_over = True

    def _take(self) -> list[Item] | None:
        return self._items.take_many(self._pace.unit) or None

    async def _work(self, lines: list[Item]) -> None:
        if not self._is_async:
            await self._hop_to_thread(lines)
            return
        if self._many:
            began_at = time.perf_counter()
            self._finish(lines, await self._call_many(lines), began_at)
        else:
            await self._async_slice(lines[0])
        await self._settle()

    # --- async functions ------------------------------------------------------------------------

    async def _async_slice(self, first: Item) -> None:
        """Work on lines one by one until the queue is empty or the time is over."""
        function, seconds = self._function, self._timeout_seconds
        text, max_bytes = self._text, self.max_result_bytes
        add, finish, take = self._outbox.add_quickly, self._items.finish, self._items.take
        item: Item | None = first
        outcome: Outcome | GiveBack
        count = size_bytes = 0
        began_at = time.perf_counter()
        ends_at = began_at + SLICE_SECONDS
        # One scope for all of them, since one for each would cost more than a quick call.
        with anyio.CancelScope() as scope, self._calling_in(scope) as call:
            while item is not None:
                call.item = item
                if seconds is not None:
                    scope.deadline = anyio.current_time() + seconds
                try:
                    outcome = outcome_of(await function(item), text=text, max_bytes=max_bytes)
                except BaseException as error:  # noqa: BLE001, ASYNC103 - not its own: raised
                    outcome = raised_async(error)
                if isinstance(outcome, bytes):
                    add((item.id, outcome))
                    finish(item)
                    size_bytes += len(outcome)
                else:  # also what it made of its cancellation
                    self._fail(item, self._too_late if scope.cancel_called else outcome)
                count += 1
                is_over = time.perf_counter() >= ends_at or call.is_lost
                # To ask a scope costs as much as a quick call.
                is_over = is_over or (seconds is not None and scope.cancel_called)
                item = None if is_over else take()
        if scope.cancelled_caught and call.item is not None:
            self._fail(call.item, self._too_late)
            count += 1
        self._outbox.count_bytes(size_bytes)
        self._pace.record(count, time.perf_counter() - began_at)

    @contextlib.contextmanager
    def _calling_in(self, scope: anyio.CancelScope) -> Iterator[_Call]:
        call = _Call(scope)
        self._calls.append(call)
        try:
            yield call
        finally:
            self._calls.remove(call)

    async def _call_many(self, items: list[Item]) -> Sequence[object]:
        with anyio.move_on_after(self._timeout_seconds) as scope:
            try:
                return checked(await self._function(items), len(items))
            except BaseException as error:  # noqa: BLE001, ASYNC103 - what is not its own is raised
                caught = raised_async(error)
        return [self._too_late if scope.cancel_called else caught] * len(items)

    async def _settle(self) -> None:
        """Let others run: the function may never have waited for anything.

        Under asyncio it may also have cancelled this very task, which then is found out here,
        where no line is in hand.
        """
        try:
            await anyio.lowlevel.checkpoint()
        except anyio.get_cancelled_exc_class():  # noqa: ASYNC103 - ours is raised
            if is_cancelled():
                raise
            logger.warning("The function cancelled the task that had called it.")

    # --- functions in threads ---------------------------------------------------------------------

    async def _hop_to_thread(self, items: list[Item]) -> None:
        at_work = [items]
        # No call begins later than a slice after the first one: whichever is on then, took longer.
        longest = None if self._timeout_seconds is None else self._timeout_seconds + SLICE_SECONDS
        run = self._many_in_thread if self._many else self._slice_in_thread
        with anyio.move_on_after(longest) as scope:
            await anyio.to_thread.run_sync(
                run, items, at_work, abandon_on_cancel=True, limiter=self._limiter
            )
        if scope.cancelled_caught:
            self._limiter.total_tokens += 1  # it keeps its own for as long as it hangs
            for item in at_work[0]:
                self._fail(item, self._too_late)

    def _slice_in_thread(self, items: list[Item], at_work: list[list[Item]]) -> None:
        """Do as ``_async_slice``."""
        function, text, max_bytes = self._function, self._text, self.max_result_bytes
        add, finish, take = self._outbox.add_quickly, self._items.finish, self._items.take
        item: Item | None = items[0]
        outcome: Outcome | GiveBack
        count = size_bytes = 0
        began_at = time.perf_counter()
        ends_at = began_at + SLICE_SECONDS
        while item is not None:
            at_work[0] = [item]
            try:
                outcome = outcome_of(function(item), text=text, max_bytes=max_bytes)
            except BaseException as error:  # noqa: BLE001, ASYNC103 - in a thread none is ours
                outcome = raised(error)  # noqa: ASYNC104
            if isinstance(outcome, bytes):
                add((item.id, outcome))
                finish(item)
                size_bytes += len(outcome)
            else:
                self._fail(item, outcome)
            count += 1
            is_over = self._is_over or time.perf_counter() >= ends_at
            item = None if is_over else take()
        self._outbox.count_bytes(size_bytes)
        self._pace.record(count, time.perf_counter() - began_at)

    def _many_in_thread(self, items: list[Item], at_work: list[list[Item]]) -> None:
        ends_at = time.perf_counter() + SLICE_SECONDS
        while items:
            at_work[0] = items
            began_at = time.perf_counter()
            try:
                values = checked(self._function(items), len(items))
            except BaseException as error:  # noqa: BLE001, ASYNC103 - in a thread none is ours
                values = [raised(error)] * len(items)  # noqa: ASYNC104
            self._finish(items, values, began_at)
            if self._is_over or time.perf_counter() >= ends_at:
                return
            items = self._items.take_many(self._pace.unit)

    # --- outcomes ---------------------------------------------------------------------------------

    def _finish(self, items: list[Item], values: Sequence[object], began_at: float) -> None:
        """Hand in what a call for many lines returned."""
        self._pace.record(len(items), time.perf_counter() - began_at)
        text, max_bytes = self._text, self.max_result_bytes
        for item, value in zip(items, values, strict=True):
            if not isinstance(value, (Failure, GiveBack)):
                value = outcome_of(value, text=text, max_bytes=max_bytes)
            if isinstance(value, bytes):
                self._outbox.add(item.id, value)
                self._items.finish(item)
            else:
                self._fail(item, value)

    def _fail(self, item: Item, outcome: Failure | GiveBack) -> None:
        """Hand in that a line has no result, from any thread, unless it is another's by now."""
        if isinstance(outcome, GiveUp):
            self.reason = outcome
        if not self._items.holds(item):
            return
        if isinstance(outcome, GiveBack):
            self._items.give_back(item)
        else:
            self._outbox.add(item.id, outcome)
            self._items.finish(item)


def _is_async(function: Callable[..., Any]) -> bool:
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(
        getattr(function, "__call__", None)  # noqa: B004 - an object with async def __call__
    )
