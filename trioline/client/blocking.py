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
from types import TracebackType

from trioline.client.item import Failure, Item, Outcome, failure_of, outcome_of
from trioline.client.link import Link
from trioline.client.pace import renewal_seconds
from trioline.client.pipeline import decoder
from trioline.client.reach import (
    address_text,
    find_deadline,
    find_token,
    parse_address,
    worker_name,
)
from trioline.client.returns import Returns
from trioline.client.supply import Supply
from trioline.client.tether import Tether
from trioline.config import Address
from trioline.errors import ConnectionLost, RequestRefused, UsageError
from trioline.snapshot import Snapshot
from trioline.wire.messages import (
    Bye,
    Extend,
    ExtendReply,
    Hello,
    Note,
    Okay,
    Status,
)

logger = logging.getLogger("trioline.client")

MAX_UNSENT_BYTES = 8 * 1024 * 1024
"""Results are sent at the latest when they are so large."""
TICK_SECONDS = 0.5
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
        batch: Lines to lease at a time; None to adapt: about a second of work. As many more are
            leased before these are done, but with 1.
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
        self._wake = threading.Event()
        self._returns = Returns(on_returned=self._wake.set)
        self._supply = Supply(self._returns, batch=batch, stage=stage)
        self._outbox = self._returns.outbox
        self._hand = self._supply.hand
        self._tether = Tether(
            target, hello, reconnect_seconds=reconnect_seconds, on_link=self._greeted
        )
        self._is_closing = False
        self._renewer = threading.Thread(target=self._renew, name="trioline renewer", daemon=True)
        self._lease_timeout = 900.0
        self._max_result_bytes = 0

    @property
    def reason(self) -> str | None:
        """Why the server sent this worker home before the job was over; None where it did not."""
        return self._supply.reason

    def __enter__(self) -> Client:
        """Connect.

        Raises:
            ConnectionLost: There was no connection for ``reconnect_seconds``.
            RequestRefused: The server does not want this worker.
        """
        self._tether.renew(None)
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
        while count := self._supply.fetch(self._tether, 1):
            for _ in range(count):
                item = take()
                if item is None:
                    break  # lost, or another thread's
                yield item

    def batches(self, size: int) -> Iterator[list[Item]]:
        """Give lines to work on, up to ``size`` at a time, as iterating does.

        Raises:
            ConnectionLost, RequestRefused: As iterating.
        """
        while count := self._supply.fetch(self._tether, size):
            while count > 0 and (items := self._hand.take_many(size)):
                count -= len(items)
                yield items

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
        return self._supply.release(self._tether)

    def status(self) -> Snapshot:
        """Ask how the job stands."""
        return self._tether.ask(Status(), decoder(Snapshot))

    def flush(self) -> None:
        """Hand in all results and wait until the server has answered that they are safe.

        Raises:
            ConnectionLost: There was no connection for ``reconnect_seconds``.
        """
        self._returns.flush(self._tether, lambda: self._supply.is_complete)

    # --- inside -------------------------------------------------------------------------------

    def _hand_in(self, item: Item | int, outcome: Outcome) -> None:
        number = item if isinstance(item, int) else item.id
        self._outbox.add(number, outcome)
        self._hand.finish_number(number)
        if self._outbox.waiting_bytes > MAX_UNSENT_BYTES:
            self._returns.send(self._tether.link)
            if self._returns.is_full:
                self.flush()

    def _greeted(self, link: Link, has_leases: bool) -> None:
        """Take note of what a server says at the beginning of a link."""
        self._lease_timeout = link.hello.lease_timeout
        self._max_result_bytes = link.hello.max_line
        self._supply.pace.max_batch = link.hello.max_batch
        self._supply.returned(link, has_leases=has_leases)

    def _say_goodbye(self) -> None:
        """Hand in what there is and give the rest back, over the link as it is."""
        try:
            link = self._tether.link
            link.limit(LEAVE_SECONDS)
            self._returns.send(link)
            link.ask(Bye(), decoder(Okay))
        except (ConnectionLost, RequestRefused) as error:
            if not self._supply.is_complete:
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
                self._supply.shed(self._tether, now - moved_at)
                if self._returns.is_due:
                    self._returns.send(self._living_link())
                if len(self._hand) and now >= renewed_at + renewal_seconds(self._lease_timeout):
                    renewed_at = now
                    self._tether.ask(Extend(), decoder(ExtendReply), on_reply=self._renewed)
            except RequestRefused as refusal:
                logger.warning("The server refused to extend or note: %s", refusal)
            except ConnectionLost:
                return  # for good: the next call of the user's raises it

    def _renewed(self, reply: ExtendReply) -> None:
        # Before any later reply counts: what is lost may be leased to us again by the next one.
        self._hand.drop(reply.lost)
        self._lease_timeout = reply.lease_timeout

    def _living_link(self) -> Link:
        """The link, made again where it has ended: what is sent on a dead one comes right back."""
        link = self._tether.link
        return link if link.end_reason is None else self._tether.renew(link)

    def _send_notes(self) -> None:
        for number in list(self._hand.notes):
            note = Note(text=self._hand.notes.pop(number), id=number)
            self._tether.ask(note, decoder(Okay))
