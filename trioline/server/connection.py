"""One peer: its bytes in, its requests carried out in order, its replies out in order."""

from __future__ import annotations

import logging
import math

import trio

from trioline.config import (
    MAX_HELLO_BYTES,
    MAX_HELLO_SECONDS,
    MAX_RESULTS,
)
from trioline.errors import ErrorCode, RemoteProtocolError
from trioline.server.dispatch import Dispatch
from trioline.server.listeners import acknowledge_now
from trioline.server.outbox import Outbox
from trioline.server.peers import Peer
from trioline.server.transport import Transport
from trioline.server.writer import Writer
from trioline.wire.codec import Ref, encode_refusal
from trioline.wire.envelope import Envelope, open_envelope
from trioline.wire.framing import Framer

log = logging.getLogger("trioline.server")

REQUESTS_BETWEEN_CHECKPOINTS = 100
"""Requests of one chunk handled before the other connections get their turn; the writer's queue is
looked at as often, so it may be over its room by as many."""
GOODBYE_SECONDS = 1.0
GOODBYE_BYTES = 1024 * 1024
"""How long and how much is read on after a refusal that closes: a socket closed with unread
bytes resets the connection, and the refusal on its way would be lost."""


class Connection:
    """One accepted connection.

    Args:
        stream: Its socket.
        nursery: Its own: what a reply leaves to be sent later is sent there.
        peer: What it holds and is called.
        dispatch: Carries its requests out.
        writer: Gives the word for reading further.
        max_line_bytes: For one message or raw line.
    """

    def __init__(
        self,
        stream: trio.SocketStream,
        nursery: trio.Nursery,
        peer: Peer,
        dispatch: Dispatch,
        writer: Writer,
        max_line_bytes: int,
    ) -> None:
        self._stream = stream
        self._peer = peer
        self._dispatch = dispatch
        self._writer = writer
        self._max_line_bytes = max_line_bytes
        self._framer = Framer(max_line_bytes if peer.is_welcome else MAX_HELLO_BYTES)
        self._transport = Transport(stream)
        self._outbox = Outbox(self._transport, nursery)
        self._envelope: Envelope | None = None  # whose raw lines are not all here
        self._owes_hello = not peer.is_welcome
        self._hello_scope = trio.CancelScope()

    async def run(self) -> None:
        """Serve until the peer is gone, has said bye or has broken the protocol.

        Raises:
            trio.BrokenResourceError: The connection broke; the nursery may raise it as well.

        Cancellation: requests read so far are carried out, their replies may be lost.
        """
        try:
            is_in_step = await self._read()
            await self._outbox.wait_empty()
            if not is_in_step:
                await self._say_goodbye()
        finally:
            self._outbox.close()

    async def _read(self) -> bool:
        """Read and handle all there is; False where the rest of the stream means nothing."""
        try:
            await self._read_requests()
        except RemoteProtocolError as error:
            log.info("%s: %s", self._peer.name or self._peer.address, error)
            return False
        return not self._peer.is_leaving

    async def _read_requests(self) -> None:
        with self._hello_scope:
            if self._owes_hello:
                self._hello_scope.deadline = trio.current_time() + MAX_HELLO_SECONDS
            while not self._peer.is_leaving:
                data = await self._transport.receive()
                if not data:
                    self._dispatch.hang_up(self._peer)
                    return
                self._framer.feed(data)
                while not self._peer.is_leaving and not self._handle_some():
                    await self._give_way()
                if self._envelope is not None:
                    acknowledge_now(self._stream.socket)

    async def _give_way(self) -> None:
        """Let others have their turn, until nothing stands in the way of the next request."""
        await trio.lowlevel.checkpoint()
        while not (self._outbox.has_room and self._writer.has_room):
            await self._outbox.wait_room()
            await self._writer.wait_room()

    def _handle_some(self) -> bool:
        """Handle requests and send what can be answered at once; True where no more are here."""
        self._outbox.hold()
        try:
            if self._writer.has_room:
                for _ in range(REQUESTS_BETWEEN_CHECKPOINTS):
                    if self._peer.is_leaving or not self._outbox.has_room:
                        break
                    if not self._handle_next():
                        return True
            return False
        finally:
            self._outbox.release()

    def _handle_next(self) -> bool:
        """Handle one request; False where no whole one is here."""
        envelope, block = self._envelope, None
        try:
            if envelope is None:
                message = self._framer.next_message()
                if message is None:
                    return False
                envelope = open_envelope(message)
            if envelope.raw_count and self._peer.is_welcome:
                self._envelope = envelope
                block = self._next_block(envelope)
                if block is None:
                    return False
        except RemoteProtocolError as error:
            self._refuse(error, None if envelope is None else envelope.ref)
            raise
        self._envelope = None
        self._dispatch.handle(self._peer, envelope, block, self._outbox.reserve())
        if self._owes_hello and self._peer.is_welcome:
            # At once: what comes behind the hello may be here already, and long.
            self._owes_hello = False
            self._hello_scope.deadline = math.inf
            self._framer.max_line_bytes = self._max_line_bytes
        return True

    def _next_block(self, envelope: Envelope) -> bytes | None:
        count = envelope.raw_count
        if count > MAX_RESULTS:
            raise RemoteProtocolError(
                ErrorCode.TOO_LARGE,
                f"One done takes at most {MAX_RESULTS} lines, not {count}.",
                is_fatal=True,
            )
        return self._framer.next_block(count, envelope.bytes_hint)

    def _refuse(self, error: RemoteProtocolError, ref: Ref) -> None:
        """Answer what ends the connection before it could be handled."""
        self._dispatch.end_wait(self._peer)
        self._outbox.reserve().fill(encode_refusal(error, ref))

    async def wait_answered(self) -> None:
        """Wait until all replies are out, or the connection is gone.

        Cancellation: nothing has happened.
        """
        await self._outbox.wait_empty()

    async def _say_goodbye(self) -> None:
        with trio.move_on_after(GOODBYE_SECONDS):
            await self._stream.send_eof()
            left = GOODBYE_BYTES
            while left > 0 and (data := await self._transport.receive()):
                left -= len(data)
