"""Work for plain scripts and threads: sockets only, no event loop.

::

    with trioline.Client("host:7766") as client:
        for item in client:
            client.done(item, answer(item.data))
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from functools import partial
from types import TracebackType

from trioline.client.hand import ItemHand
from trioline.client.item import Failure, Item, Outcome, failure_of, outcome_of
from trioline.client.lease import Lease
from trioline.client.link import Link, Message
from trioline.client.outbox import Outbox, Parcel
from trioline.client.pace import Pace, renewal_seconds
from trioline.client.pipeline import Answer, Pending, decode_get, decoder
from trioline.client.reach import (
    address_text,
    find_deadline,
    find_token,
    parse_address,
    worker_name,
)
from trioline.client.tether import Tether
from trioline.config import Address
from trioline.errors import ConnectionLost, ErrorCode, RequestRefused, UsageError
from trioline.snapshot import Snapshot
from trioline.wire.messages import (
    Bye,
    Complete,
    DoneReply,
    Extend,
    ExtendReply,
    Form,
    Get,
    Hello,
    Note,
    Okay,
    Ping,
    Release,
    ReleaseReply,
    Status,
)

logger = logging.getLogger("trioline.client")

GET_WAIT_SECONDS = 30.0
"""How long one ``get`` waits for work; it is repeated."""
MAX_PAUSE_SECONDS = 5.0
"""The longest that a server's ``retry_in`` is heeded."""
FLUSH_SECONDS = 1.0
"""Results wait for so long at the most before they are sent; the next ``get`` takes them along."""
MAX_UNSENT_BYTES = 8 * 1024 * 1024
"""... or until they are so large."""
MAX_PARCELS_IN_FLIGHT = 64
MAX_UNANSWERED_BYTES = 64 * 1024 * 1024
"""Past either ``done`` waits for the server: bounds memory."""
TICK_SECONDS = 1.0
"""How often the renewing thread looks whether there is something to do."""
LEAVE_SECONDS = 5.0
"""For the goodbye when the ``with`` block is left by an exception."""


class Client:
    """Takes lines and hands results in, from one thread or several.

    Iterating gives items until the job is complete or the server sends this worker home (then
    ``reason`` says why: ``drain`` or ``deadline``), and waits where there are none. A thread of its
    own renews the leases, so that a long computation does not lose them. A lost connection is made
    again and unanswered results are sent again.

    Args:
        address: See ``connect``.
        token: See ``connect``.
        name: For status and logs; None for ``host:pid``.
        batch: Lines to lease at a time; None to adapt: about a second of work.
        text: ``str`` and ``bytes`` results are output lines as they are (jobs with ``--text``).
        deadline: See ``connect``; near it the server sends this worker home.
        stage: The stage to work for; None for the only or first one.
        reconnect_seconds: How long to try for a connection, at the start as after a loss.

    Raises:
        UsageError: There is no address, or it is none.

    **Closing**: leaving the ``with`` block hands in all results and waits until they are safe, then
    gives the rest back. Left by an exception, it tries so for five seconds.
    """

    def __init__(
        self,
        address: str | Address | None = None,
        *,
        token: str | None = None,
        name: str | None = None,
        batch: int | None = None,
        text: bool = False,
        deadline: float | None = None,
        stage: str | None = None,
        reconnect_seconds: float = 60.0,
    ) -> None:
        if batch is not None and batch < 1:
            raise UsageError(f"batch is {batch}; it must be at least 1.")
        target = address_text(address)
        parse_address(target)  # a wrong one is reported at once, not after reconnect_seconds
        hello = Hello(
            worker=worker_name(name), token=find_token(token), deadline=find_deadline(deadline)
        )
        self._text = text
        self._stage = stage
        self._hand = ItemHand()
        self._outbox = Outbox()
        self._pace = Pace(concurrency=1, batch=batch, many=False)
        self._tether = Tether(
            target,
            hello,
            reconnect_seconds=reconnect_seconds,
            on_new_session=self._hand.forget_queue,
        )
        self._settling = threading.RLock()
        self._fetching = threading.Lock()
        self._wake = threading.Event()
        self._is_closing = False
        self._renewer = threading.Thread(target=self._renew, name="trioline renewer", daemon=True)
        self._is_complete = False
        self.reason: str | None = None
        self._lease_timeout = 900.0
        self._max_result_bytes = 0
        self._sent_at = time.monotonic()
        self._leased_at = 0.0
        self._leased_count = 0

    def __enter__(self) -> Client:
        """Connect.

        Raises:
            ConnectionLost: There was no connection for ``reconnect_seconds``.
            RequestRefused: The server does not want this worker.
        """
        self._greeted(self._tether.renew(None))
        self._renewer.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if error is None:
                self.flush()
            self._say_goodbye()
        finally:
            self._is_closing = True
            self._wake.set()
            self._tether.close()
            self._renewer.join(LEAVE_SECONDS)

    # --- lines --------------------------------------------------------------------------------

    def __iter__(self) -> Iterator[Item]:
        """Give lines to work on, one by one, until the job is complete or this worker is sent home.

        Raises:
            ConnectionLost: There was no connection for ``reconnect_seconds``.
            RequestRefused: The server gives no lines to this worker.
        """
        take = self._hand.take
        while True:
            while (item := take()) is not None:
                yield item
            if not self._fetch(1):
                return

    def batches(self, size: int) -> Iterator[list[Item]]:
        """Give lines to work on, up to ``size`` at a time, as iterating does.

        Raises:
            ConnectionLost, RequestRefused: As iterating.
        """
        while True:
            while items := self._hand.take_many(size):
                yield items
            if not self._fetch(size):
                return

    def done(self, item: Item | int, result: object) -> None:
        """Hand in a line's result.

        It is sent with others, within a second or with the next lines; it is safe at the latest
        when the ``with`` block has been left without an exception, or ``flush`` has returned.

        Args:
            item: The line, or its number.
            result: What JSON can hold, or ``Raw``. What cannot be written is a failed attempt.

        Raises:
            ConnectionLost: Results have piled up, and there was no connection.
        """
        outcome = outcome_of(result, text=self._text, max_bytes=self._max_result_bytes)
        self._hand_in(item, outcome)

    def fail(self, item: Item | int, error: str | BaseException, *, retry: bool = True) -> None:
        """Say that an attempt at a line failed.

        Args:
            item: The line, or its number.
            error: What went wrong, for the rejected file.
            retry: False: don't try it again, whoever it be.

        Raises:
            ConnectionLost: Results have piled up, and there was no connection.
        """
        if isinstance(error, BaseException):
            failure = failure_of(error)
            retry = retry and failure.retry
            error = failure.error
        self._hand_in(item, Failure(error, retry))

    def release(self) -> int:
        """Give everything back that has no result yet: it costs no attempt.

        Returns:
            How many lines went back.
        """
        self.flush()
        self._hand.forget()
        return self._tether.ask(Release(), decoder(ReleaseReply)).released

    def status(self) -> Snapshot:
        """Ask how the job stands."""
        return self._tether.ask(Status(), decoder(Snapshot))

    def flush(self) -> None:
        """Hand in all results and wait until the server has answered that they are safe.

        Raises:
            ConnectionLost: There was no connection for ``reconnect_seconds``.
        """
        while self._owes_results():
            link = self._tether.link
            # Others may have sent some: what is asked last is answered last.
            barrier: Pending[Okay] = Pending(decoder(Okay))
            self._send_results(link, Message(Ping(), barrier))
            link.wait(barrier)
            if link.end_reason is not None:
                if self._is_complete:
                    return  # every line has its result: these were duplicates
                self._tether.renew(link)

    # --- inside -------------------------------------------------------------------------------

    def _hand_in(self, item: Item | int, outcome: Outcome) -> None:
        number = item if isinstance(item, int) else item.id
        outbox = self._outbox
        outbox.add(number, outcome)
        self._hand.finish_number(number)
        overdue = time.monotonic() - self._sent_at >= FLUSH_SECONDS
        if overdue or outbox.waiting_bytes > MAX_UNSENT_BYTES:
            self._send_results(self._tether.link)
        if outbox.size_bytes > MAX_UNANSWERED_BYTES or outbox.in_flight > MAX_PARCELS_IN_FLIGHT:
            self.flush()

    def _send_results(self, link: Link, *behind: Message) -> None:
        """Send all results that wait, and other requests behind them in the same piece."""
        with self._settling:
            parcels = self._outbox.take()
            self._sent_at = time.monotonic()
        messages = [
            Message(
                parcel.request,
                Pending(decoder(DoneReply), partial(self._settled, parcel)),
                parcel.body,
            )
            for parcel in parcels
        ]
        link.send([*messages, *behind])

    def _settled(self, parcel: Parcel, pending: Pending[DoneReply]) -> None:
        with self._settling:
            match pending.error:
                case None:
                    self._outbox.acknowledge(parcel, pending.reply)
                case RequestRefused() as refusal:
                    self._outbox.refuse(parcel, refusal)
                case ConnectionLost():
                    self._outbox.put_back(parcel)
            for number, refusal in self._outbox.refused:
                logger.warning("The server would not have line %d's result: %s", number, refusal)
            self._outbox.refused.clear()
            if self._outbox.has_parcels:
                self._wake.set()  # nobody else may be about to send

    def _fetch(self, at_least: int) -> bool:
        """Have lines queued; False when there will be no more."""
        with self._fetching:  # one thread fetches for all
            while not self._hand.queued:
                if self._is_complete or self.reason is not None:
                    return False
                link = self._tether.link
                try:
                    self._get(link, at_least)
                except ConnectionLost:
                    self._greeted(self._tether.renew(link))
                    # The server may have leased lines to us that never arrived. We cannot name
                    # them, and our renewals would keep them for ever.
                    self._send_results(self._tether.link)
                    self._tether.ask(Release(), decoder(ReleaseReply))
        return True

    def _get(self, link: Link, at_least: int) -> None:
        now = time.monotonic()
        if self._leased_count:
            self._pace.record(self._leased_count, now - self._leased_at)
            self._leased_count = 0
        wanted = max(at_least, self._pace.wanted(idle=1, queued=0))
        pending: Pending[Answer] = Pending(decode_get)
        request = Get(max=wanted, wait=GET_WAIT_SECONDS, form=Form.LINES, stage=self._stage)
        self._send_results(link, Message(request, pending))
        sent_count = link.sent_count
        link.wait(pending)
        reply = pending.reply
        if isinstance(reply, Lease):
            self._hand.put(reply)
            self._leased_count, self._leased_at = reply.count, time.monotonic()
        elif isinstance(reply, Complete):
            self.reason = reply.reason
            self._is_complete = reply.reason is None
        elif link.sent_count == sent_count and time.monotonic() - now < GET_WAIT_SECONDS:
            # Not one of our own requests has ended the wait: the server has its reason.
            time.sleep(min(max(reply.retry_in, 0.01), MAX_PAUSE_SECONDS))

    def _greeted(self, link: Link) -> None:
        self._lease_timeout = link.hello.lease_timeout
        self._max_result_bytes = link.hello.max_line
        self._pace.max_batch = link.hello.max_batch

    def _say_goodbye(self) -> None:
        """Hand in what there is and give the rest back, over the link as it is."""
        try:
            link = self._tether.link
            link.limit(LEAVE_SECONDS)
            self._send_results(link)
            link.ask(Bye(), decoder(Okay))
        except (ConnectionLost, RequestRefused) as error:
            if not self._is_complete:
                logger.warning("Left without a goodbye: %s", error)

    # --- the renewing thread ------------------------------------------------------------------

    def _renew(self) -> None:
        renewed_at = moved_at = time.monotonic()
        queued = 0
        while not self._is_closing:
            self._wake.wait(min(TICK_SECONDS, self._lease_timeout / 6))
            self._wake.clear()
            now = time.monotonic()
            try:
                self._send_notes()
                if queued != self._hand.queued:
                    queued, moved_at = self._hand.queued, now
                self._shed(now - moved_at)
                overdue = now - self._sent_at >= FLUSH_SECONDS
                if self._outbox.has_parcels or (self._outbox.waiting and overdue):
                    self._send_results(self._living_link())
                if len(self._hand) and now >= renewed_at + renewal_seconds(self._lease_timeout):
                    renewed_at = now
                    reply = self._tether.ask(Extend(), decoder(ExtendReply))
                    self._hand.drop(reply.lost)
                    self._lease_timeout = reply.lease_timeout
            except RequestRefused as refusal:
                logger.warning("The server refused to extend or note: %s", refusal)
            except ConnectionLost:
                return  # for good: the next call of the user's raises it

    def _shed(self, stalled_seconds: float) -> None:
        """Give back what would lie here unbegun for long."""
        if self._fetching.acquire(blocking=False):  # else there is nothing queued
            try:
                queued = self._hand.queued
                surplus = self._pace.surplus(queued=queued, stalled_seconds=stalled_seconds)
                self._hand.shed(surplus)
            finally:
                self._fetching.release()
        unwanted = self._hand.unwanted
        ids = sorted(unwanted.popleft() for _ in range(len(unwanted)))
        if ids:
            try:
                self._tether.ask(Release(ids=ids), decoder(ReleaseReply))
            except RequestRefused as refusal:
                if refusal.code != ErrorCode.NOT_HELD:  # else they are not ours any more: as wished
                    raise

    def _owes_results(self) -> bool:
        # Looked at in the middle of a move, results would be neither waiting nor sent.
        with self._settling:
            return bool(len(self._outbox))

    def _living_link(self) -> Link:
        """The link, made again where it has ended: what is sent on a dead one comes right back."""
        link = self._tether.link
        return link if link.end_reason is None else self._tether.renew(link)

    def _send_notes(self) -> None:
        for number in list(self._hand.notes):
            note = Note(text=self._hand.notes.pop(number), id=number)
            self._tether.ask(note, decoder(Okay))
