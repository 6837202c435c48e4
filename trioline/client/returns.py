"""A ``Client``'s results on their way to the server; shared by its threads."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from functools import partial

from trioline.client.link import Link, Message
from trioline.client.outbox import Outbox, Parcel
from trioline.client.pipeline import Pending, decoder
from trioline.client.tether import Tether
from trioline.errors import ConnectionLost, RequestRefused
from trioline.wire.messages import DoneReply, Okay, Ping

logger = logging.getLogger("trioline.client")

FLUSH_SECONDS = 0.5
"""Results wait for so long at the most before they are due; the next ``get`` takes them along."""
MAX_PARCELS_IN_FLIGHT = 64
MAX_UNANSWERED_BYTES = 64 * 1024 * 1024
"""Past either ``done`` waits for the server: bounds memory."""


class Returns:
    """Sends what the outbox holds and hears the answers.

    Args:
        on_returned: Called where results came back unsent or refused: nobody else may be about to
            send them.

    Attributes:
        outbox: The results without an answer.
    """

    def __init__(self, on_returned: Callable[[], None]) -> None:
        self.outbox = Outbox()
        self._on_returned = on_returned
        self._settling = threading.RLock()
        self._sent_at = time.monotonic()

    @property
    def is_due(self) -> bool:
        """Whether results have waited long enough."""
        is_overdue = time.monotonic() - self._sent_at >= FLUSH_SECONDS
        return self.outbox.has_parcels or (is_overdue and self.outbox.waiting > 0)

    @property
    def is_full(self) -> bool:
        """Whether the server is to answer before more is sent."""
        outbox = self.outbox
        return outbox.size_bytes > MAX_UNANSWERED_BYTES or outbox.in_flight > MAX_PARCELS_IN_FLIGHT

    def send(self, link: Link, *behind: Message) -> None:
        """Send all results that wait, and other requests behind them in the same piece."""
        with self._settling:
            parcels = self.outbox.take()
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

    def flush(self, tether: Tether, is_over: Callable[[], bool]) -> None:
        """Send all results and wait until the server has answered that they are safe.

        Args:
            tether: Renewed where the link is lost.
            is_over: Whether every line has its result: what is left are duplicates.

        Raises:
            ConnectionLost: There was no connection to be had.
        """
        while self._owes():
            link = tether.link
            # Others may have sent some: what is asked last is answered last.
            barrier: Pending[Okay] = Pending(decoder(Okay))
            self.send(link, Message(Ping(), barrier))
            link.wait(barrier)
            if link.end_reason is not None:
                if is_over():
                    return
                tether.renew(link)

    def _owes(self) -> bool:
        # Looked at in the middle of a move, results would be neither waiting nor sent.
        with self._settling:
            return bool(len(self.outbox))

    def _settled(self, parcel: Parcel, pending: Pending[DoneReply]) -> None:
        with self._settling:
            match pending.error:
                case None:
                    self.outbox.acknowledge(parcel, pending.reply)
                case RequestRefused() as refusal:
                    self.outbox.refuse(parcel, refusal)
                case ConnectionLost():
                    self.outbox.put_back(parcel)
            for number, refusal in self.outbox.refused:
                logger.warning("The server would not have line %d's result: %s", number, refusal)
            self.outbox.refused.clear()
            if self.outbox.has_parcels:
                self._on_returned()
