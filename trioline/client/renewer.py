"""What a worker has to tell the server now and then, whatever its function is at."""

from __future__ import annotations

import logging
import math
from typing import Any

import anyio

from trioline.client.consumer import Consumer
from trioline.client.delivery import Delivery
from trioline.client.hand import Hand
from trioline.client.pace import Pace, renewal_seconds
from trioline.client.pipeline import decoder
from trioline.client.session import Session
from trioline.client.uplink import Uplink
from trioline.errors import ConnectionLost, ErrorCode, RequestRefused
from trioline.wire.messages import Extend, ExtendReply

logger = logging.getLogger("trioline.worker")

TICK_SECONDS = 1.0
"""How often it looks for notes and for a new connection."""


class Renewer:
    """Extends leases, gives lines back, sends notes; never waits for user code.

    Args:
        uplink: The way to the server.
        hand: The lines.
        pace: Says how many of them are too many.
        consumer: Told of lines that are lost.
        delivery: Rung now and then, for results of lines before one that takes long.
    """

    def __init__(
        self, uplink: Uplink, hand: Hand, pace: Pace, consumer: Consumer[Any], delivery: Delivery
    ) -> None:
        self._uplink = uplink
        self._hand = hand
        self._pace = pace
        self._consumer = consumer
        self._delivery = delivery

    async def run(self) -> None:
        """Extend the leases and hear what is lost; give back what is not wanted; send notes.

        **Cancellation**: whether what was under way took effect is unknown.
        """
        held: Session | None = None
        renewed_at, timeout = -math.inf, math.inf
        while True:
            session = await self._uplink.wait_session()
            if session is not held:  # after a cut: which lines are still ours?
                held, renewed_at, timeout = session, -math.inf, session.hello.lease_timeout
            try:
                self._shed()
                await self._give_back(session)
                await self._send_notes(session)
                if anyio.current_time() >= renewed_at + self._renewal_seconds(timeout) and len(
                    self._hand
                ):
                    renewed_at = anyio.current_time()
                    # Before any later reply counts: the next one may lease us again what is lost.
                    reply = await session.ask(
                        Extend(),
                        decoder(ExtendReply),
                        on_reply=lambda reply: self._consumer.lose(reply.lost),
                    )
                    timeout = reply.lease_timeout
            except ConnectionLost:
                continue
            except RequestRefused as refusal:
                logger.warning("The server refused to extend, release or note: %s", refusal)
            # Where a function's present line takes long: results and hunger of those before it.
            self._delivery.ring()
            self._consumer.hungry.ring()
            with anyio.move_on_after(min(TICK_SECONDS, timeout / 6)):
                await self._consumer.given_back.wait()

    def _renewal_seconds(self, timeout: float) -> float:
        # Where a copy was quicker with the job's last line, the server is there for 2 seconds yet.
        seconds = renewal_seconds(timeout)
        return min(seconds, TICK_SECONDS) if self._consumer.is_late else seconds

    def _shed(self) -> None:
        """Give up what would lie here unbegun for long."""
        queued, stalled_seconds = self._hand.queued, self._consumer.stalled_seconds
        self._hand.shed(self._pace.surplus(queued=queued, stalled_seconds=stalled_seconds))

    async def _give_back(self, session: Session) -> None:
        unwanted = self._hand.unwanted
        ids = sorted([unwanted.popleft() for _ in range(len(unwanted))])
        if not ids:
            return
        try:
            await session.release(ids)
        except ConnectionLost:
            unwanted.extend(ids)
            raise
        except RequestRefused as refusal:
            if refusal.code != ErrorCode.NOT_HELD:  # else they are not ours any more: as wished
                raise

    async def _send_notes(self, session: Session) -> None:
        for number in list(self._hand.notes):
            await session.note(self._hand.notes.pop(number), number)
