"""A ``Client``'s lines: fetched, and asked for before they are needed; shared by its threads."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque

from trioline.client.hand import ItemHand
from trioline.client.lease import Lease
from trioline.client.link import Link, Message
from trioline.client.pace import Pace
from trioline.client.pipeline import Answer, Pending, decode_get, decoder
from trioline.client.returns import Returns
from trioline.client.tether import Tether
from trioline.errors import ConnectionLost, ErrorCode, RequestRefused
from trioline.wire.messages import Complete, Form, Get, Release, ReleaseReply, Retry

logger = logging.getLogger("trioline.client")

GET_WAIT_SECONDS = 30.0
"""How long one ``get`` waits for work; it is repeated."""
MAX_PAUSE_SECONDS = 5.0
"""The longest that a server's ``retry_in`` is heeded."""


class Supply:
    """Keeps lines in hand.

    While some are worked on, the next ones are asked for: with the results of each stretch goes the
    ``get`` for the lines after those that are on their way, so that nobody waits for a round trip.

    Args:
        returns: Its results go out with each request for lines.
        batch: Lines to lease at a time; None to adapt.
        stage: The stage to work for.

    Attributes:
        hand: The lines.
        pace: How many to ask for.
        is_complete: Whether the job is over.
        reason: Why this worker was sent home before that; None where it was not.
    """

    def __init__(self, returns: Returns, *, batch: int | None, stage: str | None) -> None:
        self.hand = ItemHand()
        self.pace = Pace(concurrency=1, batch=batch, many=False)
        self.is_complete = False
        self.reason: str | None = None
        self._returns = returns
        self._stage = stage
        self._fetching = threading.Lock()
        self._asked: deque[tuple[Pending[Answer], int]] = deque()  # and for how many lines
        self._is_dry = True  # whether the last get brought nothing: then only one that waits does
        self._is_get_lost = False
        self._fetched_at = 0.0
        self._fetched_count = 0

    def fetch(self, tether: Tether, at_least: int) -> int:
        """Have lines queued, and more of them on their way.

        Returns:
            How many to take before this is called again; 0 when there will be no more.

        Raises:
            ConnectionLost: There was no connection to be had.
            RequestRefused: The server gives no lines to this worker.
        """
        with self._fetching:  # one thread fetches for all
            self._measure()
            while not self._is_over:
                link = tether.link
                try:
                    self._ask_ahead(link)
                    if self.hand.queued:
                        break
                    self._wait_for_lines(link, at_least)
                except ConnectionLost:
                    self._asked.clear()
                    if link.end_reason is not None:  # else another thread has renewed it since
                        tether.renew(link)
            self._fetched_at = time.monotonic()
            queued, spare = self.hand.queued, self.pace.spare
            return queued - spare if queued > spare else queued

    def release(self, tether: Tether) -> int:
        """Give everything back; returns how many lines that were."""
        with self._fetching:
            while self._asked:
                tether.link.wait(self._asked.popleft()[0])
            self.hand.forget()
            return tether.ask(Release(), decoder(ReleaseReply)).released

    def returned(self, link: Link, *, has_leases: bool) -> None:
        """Go on after a cut, on a new link, with the leases of before or without.

        The server may have leased lines to us that never arrived. We cannot name them, and our
        renewals would keep them for ever: then all is given back but what is done already.
        """
        if has_leases and not self._is_get_lost:
            return
        try:
            if has_leases:
                self._returns.send(link)
                link.ask(Release(), decoder(ReleaseReply))
        except ConnectionLost:
            return  # whoever finds it lost comes here again
        self._is_get_lost = False
        self.hand.forget_queue()

    def shed(self, tether: Tether, stalled_seconds: float) -> None:
        """Give back what would lie here unbegun for long."""
        if self._fetching.acquire(blocking=False):  # else there is nothing queued
            try:
                queued = self.hand.queued
                surplus = self.pace.surplus(queued=queued, stalled_seconds=stalled_seconds)
                self.hand.shed(surplus)
            finally:
                self._fetching.release()
        unwanted = self.hand.unwanted
        ids = sorted(unwanted.popleft() for _ in range(len(unwanted)))
        if ids:
            try:
                tether.ask(Release(ids=ids), decoder(ReleaseReply))
            except RequestRefused as refusal:
                if refusal.code != ErrorCode.NOT_HELD:  # else they are not ours any more: as wished
                    raise

    @property
    def _is_over(self) -> bool:
        return self.is_complete or self.reason is not None

    def _measure(self) -> None:
        if self._fetched_count:
            self.pace.record(self._fetched_count, time.monotonic() - self._fetched_at)
            self._fetched_count = 0

    def _ask_ahead(self, link: Link) -> None:
        """Ask for more where it pays, and send the results along."""
        while self._asked and self._asked[0][0].is_settled:
            _check(self._asked.popleft()[0])
        on_its_way = sum(count for _, count in self._asked)
        count = 0 if self._is_dry else self.pace.ahead(self.hand.queued + on_its_way)
        if count:
            self._asked.append((self._ask(link, count, 0), count))

    def _wait_for_lines(self, link: Link, at_least: int) -> None:
        if self._asked:
            self._returns.send(link)
            link.wait(self._asked[0][0])
            return
        asked_at = time.monotonic()
        count = max(at_least, self.pace.wanted(idle=1, queued=0))
        pending = self._ask(link, count, GET_WAIT_SECONDS)
        sent_count = link.sent_count
        link.wait(pending)
        reply = pending.reply
        is_early = time.monotonic() - asked_at < GET_WAIT_SECONDS
        if isinstance(reply, Retry) and is_early and link.sent_count == sent_count:
            # Not one of our own requests has ended the wait: the server has its reason.
            time.sleep(min(max(reply.retry_in, 0.01), MAX_PAUSE_SECONDS))

    def _ask(self, link: Link, count: int, wait_seconds: float) -> Pending[Answer]:
        pending: Pending[Answer] = Pending(decode_get, self._answered)
        request = Get(max=count, wait=wait_seconds, form=Form.LINES, stage=self._stage)
        self._returns.send(link, Message(request, pending))
        return pending

    def _answered(self, pending: Pending[Answer]) -> None:
        """Take in what came, in the order in which it came, by whichever thread reads."""
        if pending.error is not None:
            is_lost = isinstance(pending.error, ConnectionLost) and pending.is_expected
            self._is_get_lost = self._is_get_lost or is_lost
            self._is_dry = True
            return
        reply = pending.reply
        self._is_dry = not isinstance(reply, Lease)
        if isinstance(reply, Lease):
            self._fetched_count += reply.count
            self.hand.put(reply)
        elif isinstance(reply, Complete):
            self.reason = reply.reason
            self.is_complete = reply.reason is None


def _check(pending: Pending[Answer]) -> None:
    """Look how a ``get`` ended that did not wait.

    Raises:
        ConnectionLost, RequestRefused: As its reply; but to ask for too many is no harm.
    """
    error = pending.error
    if error is not None and getattr(error, "code", None) != ErrorCode.TOO_MANY:
        raise error
