"""Replies of one connection: sent in the order of their requests, each as soon as it may be.

A request gets a ``Slot`` when it is read. The slot may be filled at once or much later, when the
commit that it waits for is done; those behind it wait, the work of those behind it does not.
"""

from __future__ import annotations

from collections import deque

import trio

from trioline.config import MAX_OUTBOX_BYTES, MAX_PIPELINED, MAX_SEND_SECONDS

SEND_BYTES = 256 * 1024
"""Sent at a time: a peer has its time for each piece, as slow is not the same as silent."""


class Slot:
    """The place of one reply. Filled once, by whoever carries the request out."""

    __slots__ = ("_outbox", "data")

    def __init__(self, outbox: Outbox) -> None:
        self.data: bytes | None = None
        self._outbox = outbox

    @property
    def is_filled(self) -> bool:
        """Whether the reply is there."""
        return self.data is not None

    def fill(self, data: bytes) -> None:
        """Give the reply. A second one changes nothing."""
        if self.data is None:
            self.data = data
            self._outbox.wake(self)


class Outbox:
    """The replies that one connection still owes.

    Args:
        stream: Where they go; nothing else may send on it.
    """

    def __init__(self, stream: trio.abc.SendStream) -> None:
        self._stream = stream
        self._slots: deque[Slot] = deque()
        self._bytes = 0
        self._is_closed = False
        self._is_over = False
        self._sender = trio.lowlevel.ParkingLot()
        self._room = trio.lowlevel.ParkingLot()

    def reserve(self) -> Slot:
        """Take the next place."""
        slot = Slot(self)
        self._slots.append(slot)
        return slot

    def close(self) -> None:
        """Say that no more places will be taken: ``run`` ends when all are sent."""
        self._is_closed = True
        self._sender.unpark_all()

    def wake(self, slot: Slot) -> None:
        """Let the sender go on: ``slot`` was filled."""
        assert slot.data is not None
        self._bytes += len(slot.data)
        if self._slots and self._slots[0] is slot:
            self._sender.unpark_all()

    @property
    def has_room(self) -> bool:
        """Whether the connection may be read further."""
        return len(self._slots) < MAX_PIPELINED and self._bytes < MAX_OUTBOX_BYTES

    async def wait_room(self) -> None:
        """Wait until the connection may be read further.

        Cancellation: nothing has happened.
        """
        while not self.has_room:
            await self._room.park()

    async def wait_empty(self) -> None:
        """Wait until every reply is out, or ``run`` has ended.

        Cancellation: nothing has happened.
        """
        while self._slots and not self._is_over:
            await self._room.park()

    async def run(self) -> None:
        """Send until closed and empty.

        Raises:
            trio.BrokenResourceError: The peer is gone, or took nothing for too long.

        Cancellation: a part of a reply may be out; the stream is of no use then.
        """
        try:
            await self._send_all()
        finally:
            self._is_over = True
            self._room.unpark_all()

    async def _send_all(self) -> None:
        while True:
            ready = self._take_ready()
            if ready:
                await self._send_pieces(memoryview(b"".join(ready)))
                self._room.unpark_all()
            elif self._is_closed and not self._slots:
                return
            else:
                await self._sender.park()

    async def _send_pieces(self, data: memoryview) -> None:
        for start in range(0, len(data), SEND_BYTES):
            with trio.move_on_after(MAX_SEND_SECONDS) as scope:
                await self._stream.send_all(data[start : start + SEND_BYTES])
            if scope.cancelled_caught:
                raise trio.BrokenResourceError("the peer does not read its replies")

    def _take_ready(self) -> list[bytes]:
        ready: list[bytes] = []
        slots = self._slots
        while slots and slots[0].data is not None:
            data = slots.popleft().data
            assert data is not None
            ready.append(data)
            self._bytes -= len(data)
        return ready
