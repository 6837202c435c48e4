"""The tasks of a worker.

All of them have ended when ``run_worker`` returns::

    uplink      connects, and again when the connection is lost; says goodbye
    sender      hands results in, so many at a time
    renewer     extends the leases; sends notes; never waits for user code
    fetcher     keeps enough lines in hand
    consumers   ``concurrency`` of them: run the function

They share three pieces without I/O: the ``Hand`` (lines), the ``Outbox`` (results) and the
``Pace`` (how many lines). No task and no event is made per line.
"""

from __future__ import annotations

import logging
import math
from typing import Any, Protocol

import anyio
import attrs

from trioline.client.consumer import Consumer
from trioline.client.delivery import Delivery
from trioline.client.fetcher import Fetcher
from trioline.client.hand import Hand
from trioline.client.pace import Pace
from trioline.client.renewer import Renewer
from trioline.client.session import Session
from trioline.client.uplink import Uplink
from trioline.errors import ConnectionLost, RequestRefused, TriolineError

logger = logging.getLogger("trioline.worker")

FLUSH_SECONDS = 5.0
"""At a stop, for the server to answer what was handed in."""


class StopEvent(Protocol):
    """An event of anyio, trio or asyncio."""

    async def wait(self) -> Any:  # noqa: ANN401 - they return different things
        """Wait until it is set."""


@attrs.frozen(kw_only=True)
class WorkerSummary:
    """What a worker has done when it is over."""

    complete: bool
    """Whether the job is over; False where the worker left before that."""
    reason: str | None
    """Why it left before the job was over: ``drain`` or ``deadline`` (or a newer server's word)
    where the server sent it home, ``stop`` after a stop; None where the job is over."""
    done: int
    """Results of this worker that count."""
    failed: int
    """Failed attempts."""
    duplicate: int
    """Results that came too late: another worker was first."""
    refused: int
    """Results the server would not have; each was logged."""
    seconds: float


class Crew:
    """The tasks around one function's consumers."""

    def __init__(
        self,
        uplink: Uplink,
        hand: Hand,
        delivery: Delivery,
        pace: Pace,
        consumer: Consumer[Any],
        stage: str | None,
    ) -> None:
        self._uplink = uplink
        self._hand = hand
        self._delivery = delivery
        self._consumer = consumer
        self._fetcher = Fetcher(uplink, hand, pace, consumer, stage, self._give_up)
        self._renewer = Renewer(uplink, hand, pace, consumer, delivery)
        self._services = anyio.CancelScope()
        self._is_stopping = False
        self._fatal: TriolineError | None = None

    async def run(
        self, concurrency: int, stop: StopEvent | None, drain_seconds: float
    ) -> WorkerSummary:
        """Work until the job is complete, the server sends the worker home, or a stop.

        Raises:
            TriolineError: The worker cannot go on.

        **Cancellation**: as ``run_worker``.
        """
        began_at = anyio.current_time()
        with self._services:
            async with anyio.create_task_group() as services:
                services.start_soon(self._keep_connected, name="trioline uplink")
                services.start_soon(self._delivery.run, name="trioline sender")
                services.start_soon(self._renewer.run, name="trioline renewer")
                await self._work(concurrency, stop, drain_seconds)
                if self._fetcher.is_complete or self._is_stopping:
                    await self._flush()
                self._services.cancel()
        if self._fatal is not None:
            raise self._fatal
        outbox = self._delivery.outbox
        return WorkerSummary(
            complete=self._fetcher.is_complete,
            reason="stop"
            if self._is_stopping and not self._fetcher.is_complete
            else self._fetcher.reason,
            done=outbox.accepted,
            failed=outbox.failed,
            duplicate=outbox.duplicate,
            refused=self._delivery.refused_count,
            seconds=anyio.current_time() - began_at,
        )

    async def _work(self, concurrency: int, stop: StopEvent | None, drain_seconds: float) -> None:
        """Run the consumers until the job is complete, or what was begun has been drained."""
        fetching = anyio.CancelScope()
        try:
            async with anyio.create_task_group() as work:
                for _ in range(concurrency):
                    work.start_soon(self._consumer.run, name="trioline consumer")
                if stop is not None:
                    work.start_soon(self._watch, stop, fetching, name="trioline stop")
                work.start_soon(self._watch_function, fetching, name="trioline function")
                with fetching:
                    await self._fetcher.run()
                    if self._fetcher.reason is not None:
                        # What was begun may take its time, and only a stop cuts that short.
                        await self._drain(math.inf)
                        await self._delivery.wait_empty()
                if self._is_stopping:
                    await self._drain(drain_seconds)
                # At the job's end every line has its result: what still runs is of no use.
                work.cancel_scope.cancel()
        finally:
            self._consumer.end()

    def _give_up(self, error: TriolineError) -> None:
        self._fatal = error
        self._services.cancel()

    # --- connection ---------------------------------------------------------------------------

    async def _keep_connected(self) -> None:
        try:
            await self._uplink.run(self._return, self._say_goodbye)
        except (ConnectionLost, RequestRefused) as error:
            self._give_up(error)  # raised outside of the task group, where it is no group

    async def _return(self, session: Session, has_leases: bool) -> None:
        """Go on after a cut, with the leases of before or without."""
        if has_leases and not self._fetcher.is_get_lost:
            return
        if has_leases:
            # The server may have leased lines to us that never arrived. We cannot name them, and
            # our renewals would keep them for ever: all is given back but what is done already.
            await self._delivery.send(session)
            await session.release()
        self._fetcher.is_get_lost = False
        self._hand.forget_queue()
        self._consumer.hungry.ring()

    async def _say_goodbye(self, session: Session) -> None:
        try:
            await self._delivery.send(session)
            await session.bye()
        except (ConnectionLost, RequestRefused) as error:
            if not self._fetcher.is_complete:  # a server whose job is over need not wait for it
                logger.warning("Left without a goodbye: %s", error)

    # --- the end ----------------------------------------------------------------------------------

    async def _watch(self, stop: StopEvent, fetching: anyio.CancelScope) -> None:
        await stop.wait()
        self._is_stopping = True
        fetching.cancel()

    async def _watch_function(self, fetching: anyio.CancelScope) -> None:
        await self._consumer.gave_up.wait()
        self._fatal = TriolineError(str(self._consumer.reason))
        self._is_stopping = True
        fetching.cancel()

    async def _drain(self, seconds: float) -> None:
        """Give back what was not begun, at once; let what was begun end."""
        self._hand.close()
        self._consumer.given_back.ring()
        with anyio.move_on_after(seconds):
            while self._hand.running:
                await self._consumer.hungry.wait()

    async def _flush(self) -> None:
        """Wait for the server's answers; at the job's end only while it is there to give them."""
        session = self._uplink.session
        if not self._fetcher.is_complete:
            with anyio.move_on_after(FLUSH_SECONDS):
                await self._delivery.wait_empty()
        elif session is not None:
            async with anyio.create_task_group() as waiting:

                async def wait_broken() -> None:
                    await session.wait_broken()
                    waiting.cancel_scope.cancel()

                waiting.start_soon(wait_broken)
                await self._delivery.wait_empty()
                waiting.cancel_scope.cancel()
