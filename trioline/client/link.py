"""One connection to a server for plain threads: a socket, no event loop.

Any number of threads may make requests at once. Whoever waits for a reply reads for all: a
thread that waits long with ``get`` reads what answers the others, and they find it settled.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

from trioline.client.pipeline import Pending, Pipeline, decoder, hearing
from trioline.client.reach import CONNECT_SECONDS, reason_of, tune
from trioline.config import RECEIVE_BYTES, Address
from trioline.errors import ConnectionLost, RemoteProtocolError
from trioline.wire.codec import encode_request
from trioline.wire.messages import Hello, HelloReply, Request, WorkLines

T = TypeVar("T")


class Message(NamedTuple):
    """A request on its way, and what waits for its reply."""

    request: Request
    pending: Pending[Any]
    body: bytes = b""


class Link:
    """An open connection; made by ``open``.

    Attributes:
        address: The server's.
        hello: What the server said of itself.
        sent_count: Requests made so far: tells whether another one has ended a ``get``'s wait.
        end_reason: Why the connection has ended, as a sentence; None while it lives.
    """

    def __init__(self, raw: socket.socket, address: Address) -> None:
        self.address = address
        self._socket = raw
        self._pipeline = Pipeline()
        self._sending = threading.Lock()
        self._turn = threading.Condition()
        self._is_reading = False
        self.sent_count = 0
        self.end_reason: str | None = None
        self.hello: HelloReply

    @classmethod
    def open(cls, address: Address, hello: Hello) -> Link:
        """Connect and say hello.

        Raises:
            ConnectionLost: There is no connection to be had.
            RequestRefused: The server does not want us.
        """
        try:
            raw = _connect(address)
        except OSError as error:
            raise ConnectionLost(f"No connection to {address}: {reason_of(error)}.") from error
        link = cls(raw, address)
        try:
            link.hello = link.ask(hello, decoder(HelloReply))
            link._pipeline.allow(link.hello.max_line)
            link.limit(None)
        except BaseException:
            link.close()
            raise
        return link

    def limit(self, seconds: float | None) -> None:
        """Take a server that says nothing for so long for lost; None: wait as long as it takes."""
        self._socket.settimeout(seconds)

    def ask(
        self,
        request: Request,
        decode: Callable[[bytes], T | WorkLines],
        body: bytes = b"",
        *,
        on_reply: Callable[[T], None] | None = None,
    ) -> T:
        """Make a request and wait for its reply.

        Args:
            request: Any of them.
            decode: Reads the reply; see ``pipeline.decoder``.
            body: Raw result lines behind a ``DoneLines``.
            on_reply: Called with the reply by the thread that reads, before any later reply counts.

        Raises:
            RequestRefused: The server said no.
            ConnectionLost: Whether it took effect is unknown.
        """
        pending: Pending[T] = Pending(decode, hearing(on_reply))
        self.send([Message(request, pending, body)])
        self.wait(pending)
        return pending.reply

    def send(self, messages: list[Message]) -> None:
        """Send requests in one piece; each is settled exactly once, also where this fails."""
        with self._sending:  # what is expected first must be the first on the stream
            data = b"".join([encode_request(each.request, each.body) for each in messages])
            for message in messages:
                self._pipeline.expect(message.pending)
            self.sent_count += len(messages)
            if self.end_reason is not None:
                self._end(self.end_reason)
                return
            try:
                self._socket.sendall(data)
            except OSError as error:
                self._drain(error)
            except BaseException:  # KeyboardInterrupt: part of it may be out
                self._end(f"A request to {self.address} was interrupted half-way.")
                raise

    def wait(self, pending: Pending[Any]) -> None:
        """Read until a request that was sent has its reply, or never will."""
        self._read_until(lambda: pending.is_settled)

    def close(self) -> None:
        """Close it; whoever waits is failed. Idempotent."""
        self._end(f"The connection to {self.address} was closed by this side.")
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)  # wakes a thread that reads
        self._socket.close()

    def _drain(self, error: OSError) -> None:
        """Sending failed: the server may have said why before it closed."""
        self._read_until(lambda: self.end_reason is not None)
        self._end(f"The connection to {self.address} was lost: {reason_of(error)}.", error)

    def _read_until(self, is_over: Callable[[], bool]) -> None:
        """Take turns at reading; after each piece everyone looks whether it was for them."""
        while True:
            with self._turn:
                self._turn.wait_for(lambda: is_over() or not self._is_reading)
                if is_over():
                    return
                self._is_reading = True
            try:
                self._receive()
            finally:
                with self._turn:
                    self._is_reading = False
                    self._turn.notify_all()

    def _receive(self) -> None:
        try:
            data = self._socket.recv(RECEIVE_BYTES)
            if data:
                self._pipeline.feed(data)
            else:
                self._end(f"The server at {self.address} closed the connection.")
        except OSError as error:
            self._end(f"The connection to {self.address} was lost: {reason_of(error)}.", error)
        except RemoteProtocolError as error:
            self._end(f"{self.address} does not speak the protocol: {error}", error)

    def _end(self, reason: str, cause: BaseException | None = None) -> None:
        # Not only the first time: a request may have come in between reason and failing.
        if self.end_reason is None:
            self.end_reason = reason
        self._pipeline.fail_all(self.end_reason, cause)


def _connect(address: Address) -> socket.socket:
    if address.path is not None:
        raw = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            raw.settimeout(CONNECT_SECONDS)
            raw.connect(address.path)
        except BaseException:
            raw.close()
            raise
        return raw
    raw = socket.create_connection((address.host or "", address.port or 0), CONNECT_SECONDS)
    tune(raw)
    return raw
