"""Results on their way to the server: sends what the outbox holds and hears the answers."""

from __future__ import annotations

import logging
from functools import partial

from trioline.client.item import Outcome
from trioline.client.outbox import Outbox, Parcel
from trioline.client.pipeline import Pending, decoder
from trioline.client.session import Session
from trioline.client.uplink import Uplink
from trioline.client.wakeup import Wakeup
from trioline.errors import ConnectionLost, RequestRefused
from trioline.wire.messages import DoneReply

logger = logging.getLogger("trioline.worker")

FLUSH_ROWS = 500
"""So many results are sent although earlier ones are not answered yet. Fewer wait for that answer
and share a message: a lone result goes out at once, a stream of them in as few messages as the
server can commit."""
MAX_PARCELS_IN_FLIGHT = 4
"""... up to so many messages: enough to keep the server's commits going."""
MAX_UNANSWERED_ROWS = 50_000
MAX_UNANSWERED_BYTES = 64 * 1024 * 1024
"""Past either nothing new is begun until the server has answered: bounds memory while it is slow or
away."""


class Delivery:
    """The way of a worker's results.

    Attributes:
        outbox: The results without an answer, and the counts of those with one.
        refused_count: Results the server would not have; each was logged.
    """

    def __init__(self, uplink: Uplink) -> None:
        self.outbox = Outbox()
        self.refused_count = 0
        self._uplink = uplink
        self._changed = Wakeup()
        self._answered = Wakeup()

    def add(self, number: int, outcome: Outcome) -> None:
        """Put a line's outcome in, from any thread; ``ring`` afterwards."""
        self.outbox.add(number, outcome)

    def ring(self) -> None:
        """Say that there are new outcomes."""
        self._changed.ring()

    @property
    def is_full(self) -> bool:
        """Whether nothing new is to be begun for now."""
        outbox = self.outbox
        return outbox.size_bytes > MAX_UNANSWERED_BYTES or len(outbox) > MAX_UNANSWERED_ROWS

    async def wait_room(self) -> None:
        """Wait until something new may be begun.

        **Cancellation**: nothing happened.
        """
        while self.is_full:
            await self._answered.wait()

    async def wait_empty(self) -> None:
        """Wait until every result has its answer.

        **Cancellation**: nothing happened.
        """
        while len(self.outbox):
            await self._answered.wait()

    async def run(self) -> None:
        """Send results whenever it pays, until cancelled.

        **Cancellation**: what is not answered is still in the outbox.
        """
        while True:
            while not self._is_due:
                await self._changed.wait()
            session = await self._uplink.wait_session()
            await self.send(session)

    async def send(self, session: Session) -> None:
        """Send all that waits; the answers are heard by the session's own task.

        **Cancellation**: as ``run``; the session is of no use any more.
        """
        for parcel in self.outbox.take():
            try:
                await session.post(
                    parcel.request, decoder(DoneReply), partial(self._settled, parcel), parcel.body
                )
            except ConnectionLost:
                continue  # it is back in the outbox; so will be the others

    @property
    def _is_due(self) -> bool:
        waiting, in_flight = self.outbox.waiting, self.outbox.in_flight
        if not waiting:
            return False
        return not in_flight or (waiting >= FLUSH_ROWS and in_flight < MAX_PARCELS_IN_FLIGHT)

    def _settled(self, parcel: Parcel, pending: Pending[DoneReply]) -> None:
        match pending.error:
            case None:
                self.outbox.acknowledge(parcel, pending.reply)
            case RequestRefused() as refusal:
                self.outbox.refuse(parcel, refusal)
                self._log_refused()
            case ConnectionLost():
                self.outbox.put_back(parcel)
        self._changed.ring()
        self._answered.ring()

    def _log_refused(self) -> None:
        for number, refusal in self.outbox.refused:
            self.refused_count += 1
            logger.warning("The server would not have the result of line %d: %s", number, refusal)
        self.outbox.refused.clear()
