"""Requests and their replies on one stream, for async code: runs under trio and asyncio.

Several tasks may make requests at once: they are sent in the order in which they got the
stream, and a task of the connection hands each reply to the request it answers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import anyio
import anyio.abc
import anyio.lowlevel

from trioline.client.pipeline import Pending, Pipeline, decoder, hearing
from trioline.client.reach import CONNECT_SECONDS, reason_of, tune
from trioline.config import RECEIVE_BYTES, Address
from trioline.errors import ConnectionLost, LocalProtocolError, RemoteProtocolError
from trioline.wire.codec import encode_request
from trioline.wire.messages import Hello, HelloReply, Request, WorkLines

T = TypeVar("T")

BROKEN_STREAM = (anyio.BrokenResourceError, anyio.ClosedResourceError, anyio.EndOfStream, OSError)


async def open_stream(address: Address) -> anyio.abc.ByteStream:
    """Connect.

    Raises:
        ConnectionLost: There is no connection to be had.

    **Cancellation**: nothing is left open.
    """
    try:
        with anyio.fail_after(CONNECT_SECONDS):
            if address.path is not None:
                return await anyio.connect_unix(address.path)
            if address.host is None or address.port is None:
                raise LocalProtocolError("An address needs a host and a port, or a path.")
            stream = await anyio.connect_tcp(address.host, address.port)
    except TimeoutError as error:
        raise ConnectionLost(
            f"No connection to {address}: no answer for {CONNECT_SECONDS:g} seconds."
        ) from error
    except OSError as error:
        raise ConnectionLost(f"No connection to {address}: {reason_of(error)}.") from error
    tune(stream.extra(anyio.abc.SocketAttribute.raw_socket))
    return stream


class Channel:
    """A stream to a server, and the requests that are on their way on it.

    Attributes:
        address: The server's.
        hello: What the server said of itself: session, limits, lease timeout.
        request_count: Requests made so far; whoever waits with ``get`` can see whether another
            request has ended the wait.
    """

    hello: HelloReply

    def __init__(self, stream: anyio.abc.ByteStream, address: Address) -> None:
        self.address = address
        self.request_count = 0
        self._stream = stream
        self._pipeline = Pipeline()
        self._sending = anyio.Lock()
        self._ended = anyio.Event()
        self._end_reason: str | None = None

    @property
    def is_broken(self) -> bool:
        """Whether the connection has ended: every further request raises ``ConnectionLost``."""
        return self._end_reason is not None

    async def wait_broken(self) -> str:
        """Wait until the connection has ended.

        Returns:
            Why, as a sentence.

        **Cancellation**: nothing happened.
        """
        await self._ended.wait()
        return self._end_reason or ""

    async def post(
        self,
        request: Request,
        decode: Callable[[bytes], T | WorkLines],
        on_settled: Callable[[Pending[T]], None],
        body: bytes = b"",
    ) -> None:
        """Send a request without waiting for its reply.

        Args:
            request: Any of them.
            decode: Reads the reply; see ``pipeline.decoder``.
            on_settled: Called exactly once, whatever happens, by the task that reads (or by this
                one where nothing could be sent): with the reply, the refusal or ``ConnectionLost``.
            body: Raw result lines behind a ``DoneLines``.

        **Cancellation**: ``on_settled`` is called with ``ConnectionLost``; where part of the
        request may be out, the connection is of no use any more.
        """
        pending: Pending[T] = Pending(decode, on_settled)
        try:
            await self._send(request, pending, body)
        finally:
            if not pending.is_settled and not pending.is_expected:
                pending.fail(ConnectionLost("The request was not sent."))

    async def ask(
        self,
        request: Request,
        decode: Callable[[bytes], T | WorkLines],
        body: bytes = b"",
        *,
        on_reply: Callable[[T], None] | None = None,
    ) -> T:
        """Send a request and wait for its reply.

        Args:
            request: Any of them.
            decode: Reads the reply; see ``pipeline.decoder``.
            body: Raw result lines behind a ``DoneLines``.
            on_reply: Called with the reply by the task that reads, before any later reply counts.

        Raises:
            RequestRefused: The server said no.
            ConnectionLost: Whether it took effect is unknown.

        **Cancellation**: unknown; where part of the request may be out, the connection is of no
        use any more.
        """
        answered = anyio.Event()
        hear = hearing(on_reply)

        def on_settled(pending: Pending[T]) -> None:
            hear(pending)
            answered.set()

        pending: Pending[T] = Pending(decode, on_settled)
        await self._send(request, pending, body)
        await answered.wait()
        return pending.reply

    async def _send(self, request: Request, pending: Pending[T], body: bytes) -> None:
        async with self._sending:  # what is encoded first must be the first on the stream
            # Here nothing is out yet; a cancellation that comes later ends the session.
            await anyio.lowlevel.checkpoint_if_cancelled()
            if self._end_reason is not None:
                raise ConnectionLost(self._end_reason)
            data = encode_request(request, body)
            self._pipeline.expect(pending)
            self.request_count += 1
            try:
                await self._stream.send(data)
            except BROKEN_STREAM as error:
                # The reader may still find replies, and the reason why the server has closed:
                # it is the one who ends the session, and this request with it.
                await self._stream_ended(error)
            except BaseException:  # Cancelled above all: part of the request may be out
                self._end(f"A request to {self.address} was interrupted half-way.")
                raise

    async def _stream_ended(self, error: BaseException) -> None:
        with anyio.move_on_after(CONNECT_SECONDS):
            await self._ended.wait()
        self._end(f"The connection to {self.address} was lost: {reason_of(error)}.", error)

    async def greet(self, hello: Hello) -> None:
        """Say hello; the first request, while ``read`` is running.

        Raises:
            RequestRefused: The server wants none of us.
            ConnectionLost: There was no reply in time, or no more connection.

        **Cancellation**: the connection is of no use any more.
        """
        try:
            with anyio.fail_after(CONNECT_SECONDS):
                self.hello = await self.ask(hello, decoder(HelloReply))
        except TimeoutError as error:
            raise ConnectionLost(
                f"{self.address} did not answer hello for {CONNECT_SECONDS:g} seconds."
            ) from error
        self._pipeline.allow(self.hello.max_line)

    async def read(self, scope: anyio.CancelScope) -> None:
        """Hand replies to the requests they answer, until the stream ends.

        Args:
            scope: Ends it when it is cancelled.

        **Cancellation**: every request that waits fails with ``ConnectionLost``.
        """
        try:
            with scope:
                while True:
                    self._pipeline.feed(await self._stream.receive(RECEIVE_BYTES))
        except anyio.EndOfStream:
            self._end(f"The server at {self.address} closed the connection.")
        except BROKEN_STREAM as error:
            self._end(f"The connection to {self.address} was lost: {reason_of(error)}.", error)
        except RemoteProtocolError as error:
            self._end(f"{self.address} does not speak the protocol: {error}", error)
        finally:
            self._end(f"The connection to {self.address} was closed by this side.")

    def _end(self, reason: str, cause: BaseException | None = None) -> None:
        """Mark it broken and fail whoever waits; the first reason stands."""
        if self._end_reason is None:
            self._end_reason = reason
            self._pipeline.fail_all(reason, cause)
            self._ended.set()
