"""Replies of one connection: sent in the order of their requests, each as soon as it may be.

A request gets a ``Slot`` when it is read. The slot may be filled at once or much later, when the
commit that it waits for is done; those behind it wait, the work of those behind it does not.

Whoever fills a slot sends what has become ready by that, in place. Only what the socket does not
take at once is left to a task of its own.
"""

from __future__ import annotations

from collections import deque

import trio

from trioline.config import MAX_OUTBOX_BYTES, MAX_PIPELINED, MAX_SEND_SECONDS
from trioline.server.transport import Transport

SEND_BYTES = 256 * 1024
"""Sent at a time: a peer has its time for each piece, as slow is not the same as silent."""


class Slot:
    """The place of one reply. Filled once, by whoever carries the request out."""

    __slots__ = ("data", "outbox")

    def __init__(self, outbox: Outbox) -> None:
        self.data: bytes | None = None
        self.outbox = outbox

    def put(self, data: bytes) -> None:
        """Give the reply, to be sent by the next ``flush``. A second one changes nothing."""
        if self.data is None:
            self.data = data
            self.outbox.waiting_bytes += len(data)

    def fill(self, data: bytes) -> None:
        """Give the reply, and send it if it is its turn. A second one changes nothing."""
        self.put(data)
        self.outbox.flush()


class Outbox:
    """The replies that one connection still owes.

    Args:
        transport: Where they go; nothing else may send on it.
        nursery: The connection's: where what is not taken at once is sent. There it raises
            ``trio.BrokenResourceError`` when the peer is gone, or took nothing for too long.

    Closing: ``close``, when the nursery ends; it is idempotent.
    """

    def __init__(self, transport: Transport, nursery: trio.Nursery) -> None:
        self._transport = transport
        self._nursery = nursery
        self._slots: deque[Slot] = deque()
        self._is_held = False
        self._is_sending = False
        self._is_closed = False
        self._progress = trio.lowlevel.ParkingLot()
        self.waiting_bytes = 0
        """Of replies that are there and not out yet."""

    def reserve(self) -> Slot:
        """Take the next place."""
        slot = Slot(self)
        self._slots.append(slot)
        return slot

    def hold(self) -> None:
        """Let replies gather until ``release``: several requests are carried out in a row."""
        self._is_held = True

    def release(self) -> None:
        """Send what has gathered, as far as it is its turn."""
        self._is_held = False
        self.flush()

    def flush(self) -> None:
        """Send what is ready, unless something before it is on its way."""
        slots = self._slots
        if self._is_held or self._is_sending or self._is_closed:
            return
        if not slots or slots[0].data is None:
            return
        ready = self._take_ready()
        try:
            sent = self._transport.send_nowait(ready)
        except trio.BrokenResourceError:
            sent = 0  # told where the connection's tasks hear of it, not to whoever is here
        self.waiting_bytes -= sent
        if sent < sum(map(len, ready)):
            self._is_sending = True
            self._nursery.start_soon(self._send_rest, memoryview(b"".join(ready))[sent:])

    def close(self) -> None:
        """Drop all that was not sent: the connection is over."""
        self._is_closed = True
        self._slots.clear()
        self._progress.unpark_all()

    @property
    def has_room(self) -> bool:
        """Whether the connection may be read further."""
        return len(self._slots) < MAX_PIPELINED and self.waiting_bytes < MAX_OUTBOX_BYTES

    async def wait_room(self) -> None:
        """Wait until the connection may be read further.

        Cancellation: nothing has happened.
        """
        while not self.has_room:
            await self._progress.park()

    async def wait_empty(self) -> None:
        """Wait until every reply is out, or the connection is over.

        Cancellation: nothing has happened.
        """
        while not self._is_closed and (self._slots or self.waiting_bytes):
            await self._progress.park()

    async def _send_rest(self, data: memoryview) -> None:
        while data:
            for start in range(0, len(data), SEND_BYTES):
                piece = data[start : start + SEND_BYTES]
                with trio.move_on_after(MAX_SEND_SECONDS) as scope:
                    await self._transport.send_all(piece)
                if scope.cancelled_caught:
                    raise trio.BrokenResourceError("the peer does not read its replies")
                self.waiting_bytes -= len(piece)
            self._progress.unpark_all()
            data = memoryview(b"".join(self._take_ready()))
        self._is_sending = False

    def _take_ready(self) -> list[bytes]:
        """Take the replies whose turn it is."""
        slots, ready = self._slots, []
        while slots and (data := slots[0].data) is not None:
            ready.append(data)
            slots.popleft()
        if ready and self._progress:
            self._progress.unpark_all()
        return ready
