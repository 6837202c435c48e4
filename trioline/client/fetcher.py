"""Keeps a worker in lines."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import anyio

from trioline.client.consumer import Consumer
from trioline.client.hand import Hand
from trioline.client.lease import Lease
from trioline.client.pace import Pace
from trioline.client.pipeline import Answer, Pending, decode_get
from trioline.client.session import Session
from trioline.client.uplink import Uplink
from trioline.client.wakeup import Wakeup
from trioline.errors import ConnectionLost, ErrorCode, RequestRefused
from trioline.wire.messages import Complete, Form, Get, Retry

logger = logging.getLogger("trioline.worker")

GET_WAIT_SECONDS = 30.0
"""How long one ``get`` waits for work; it is repeated, so this only bounds a reply's age."""
MAX_PAUSE_SECONDS = 5.0
"""The longest that a server's ``retry_in`` is heeded."""
TOO_MANY_SECONDS = 1.0
"""Before the next ``get`` where the server gave none because of all that is in hand."""


class Fetcher:
    """Leases lines whenever too few are in hand.

    Args:
        uplink: The way to the server.
        hand: Where lines are put.
        pace: How many to ask for.
        consumer: Says when it is hungry, and is woken.
        stage: The stage to work for.
        give_up: Told of a refusal that ends the worker.

    Attributes:
        is_complete: Whether the job is over.
        reason: Why the server sent this worker home before that; None where it did not.
        is_get_lost: Whether lines may have been leased that never arrived.
    """

    def __init__(
        self,
        uplink: Uplink,
        hand: Hand,
        pace: Pace,
        consumer: Consumer[Any],
        stage: str | None,
        give_up: Callable[[RequestRefused], None],
    ) -> None:
        self.is_complete = False
        self.reason: str | None = None
        self.is_get_lost = False
        self._uplink = uplink
        self._hand = hand
        self._pace = pace
        self._consumer = consumer
        self._stage = stage
        self._give_up = give_up

    async def run(self) -> None:
        """Keep enough lines in hand until the job is complete or the server sends us home.

        **Cancellation**: lines that still come are taken care of.
        """
        while not self.is_complete and self.reason is None:
            wanted = self._pace.wanted(
                idle=self._consumer.idle,
                queued=self._hand.queued,
                stalled_seconds=self._consumer.stalled_seconds,
            )
            if wanted:
                session = await self._uplink.wait_session()
                self._pace.max_batch = session.hello.max_batch
                self._consumer.max_result_bytes = session.hello.max_line
                await self._get(session, wanted)
            else:
                if self._consumer.is_in_vain:
                    await self._ask_if_complete()
                if not self.is_complete:
                    await self._consumer.hungry.wait()

    async def _ask_if_complete(self) -> None:
        """Ask without leasing anything: whatever is at work may hang for ever."""
        session = await self._uplink.wait_session()
        try:
            self.is_complete = (await session.status()).state == "complete"
        except (ConnectionLost, RequestRefused) as error:
            logger.info("The server did not say how the job stands: %s", error)

    async def _get(self, session: Session, count: int) -> None:
        answered = Wakeup()
        outcome: list[Pending[Answer]] = []
        requests, asked_at = session.request_count, anyio.current_time()

        def on_settled(pending: Pending[Answer]) -> None:
            # Lines are taken care of here, so that they are also when the fetcher was cancelled.
            if isinstance(pending.error, ConnectionLost):
                self.is_get_lost = self.is_get_lost or pending.is_expected
            elif pending.error is None and isinstance(pending.reply, Lease):
                self._hand.put(pending.reply)
                self._consumer.wake()
                self._consumer.given_back.ring()
            outcome.append(pending)
            answered.ring()

        request = Get(max=count, wait=GET_WAIT_SECONDS, form=Form.LINES, stage=self._stage)
        try:
            await session.post(request, decode_get, on_settled)
            await answered.wait()
            reply = outcome[0].reply
        except ConnectionLost:
            return
        except RequestRefused as refusal:
            await self._refused(refusal)
            return
        if isinstance(reply, Complete):
            self.reason = reply.reason
            self.is_complete = reply.reason is None
        # Where nothing else was asked, and the time is not over, the server has its own reason to
        # say so: come back when it says.
        is_early = anyio.current_time() - asked_at < GET_WAIT_SECONDS
        if isinstance(reply, Retry) and is_early and session.request_count == requests + 1:
            await anyio.sleep(min(max(reply.retry_in, 0.01), MAX_PAUSE_SECONDS))

    async def _refused(self, refusal: RequestRefused) -> None:
        if refusal.code == ErrorCode.TOO_MANY:  # holds too many lines: some must be done first
            logger.warning("The server gives no more lines for now: %s", refusal)
            await anyio.sleep(TOO_MANY_SECONDS)
        else:
            self._give_up(refusal)
            await anyio.sleep_forever()
