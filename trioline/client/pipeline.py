"""Replies to their requests, without any I/O: the nth reply answers the nth request.

Whoever owns a connection puts a ``Pending`` in before its request goes out, and feeds what
comes in. Every ``Pending`` is settled exactly once: by its reply, by the server's refusal, or by
``ConnectionLost`` when the connection ends.
"""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

from trioline.client.lease import Lease
from trioline.config import MAX_LINE_BYTES
from trioline.errors import ConnectionLost, ErrorCode, RemoteProtocolError, RequestRefused
from trioline.newlines import count_newlines
from trioline.wire.codec import decode_get_reply, decode_reply
from trioline.wire.framing import Framer
from trioline.wire.messages import Complete, Retry, Work, WorkLines

T = TypeVar("T")

REPLY_FACTOR = 8
"""A reply in items form may be so many times as long as the lines in it: JSON escapes a control
character with six bytes, and the rest is room for the fields."""

Answer = Lease | Retry | Complete
"""What a ``get`` may bring."""


class Pending(Generic[T]):
    """A request that waits for its reply.

    Attributes:
        error: Why there is no reply; None while there is none and where there is one.
        is_expected: Whether its request is on the stream, or part of it.
        is_settled: Whether reply or error have come.
    """

    __slots__ = ("_on_settled", "_reply", "decode", "error", "is_expected", "is_settled")

    def __init__(
        self,
        decode: Callable[[bytes], T | WorkLines],
        on_settled: Callable[[Pending[T]], None] | None = None,
    ) -> None:
        self.decode = decode
        self.error: RequestRefused | ConnectionLost | None = None
        self.is_expected = False
        self.is_settled = False
        self._reply: T | None = None
        self._on_settled = on_settled

    @property
    def reply(self) -> T:
        """What the server said.

        Raises:
            RequestRefused: It said no.
            ConnectionLost: It said nothing any more.
        """
        if self.error is not None:
            raise self.error
        return self._reply  # type: ignore[return-value]  # settled: callers wait for that

    def settle(self, reply: T) -> None:
        """Give it its reply."""
        self._reply = reply
        self._end()

    def fail(self, error: RequestRefused | ConnectionLost) -> None:
        """Give it the reason why there is none."""
        self.error = error
        self._end()

    def _end(self) -> None:
        self.is_settled = True
        if self._on_settled is not None:
            self._on_settled(self)


def hearing(on_reply: Callable[[T], None] | None) -> Callable[[Pending[T]], None]:
    """Make what is to be called when a request is settled of what wants to hear of its reply."""

    def on_settled(pending: Pending[T]) -> None:
        if on_reply is not None and pending.error is None:
            on_reply(pending.reply)

    return on_settled


def decode_get(line: bytes) -> Answer | WorkLines:
    """Read the reply to ``get``; raises as ``wire.codec.decode_get_reply``."""
    reply = decode_get_reply(line)
    return Lease.from_items(reply) if isinstance(reply, Work) else reply


def decoder(kind: type[T]) -> Callable[[bytes], T]:
    """Make what reads replies of ``kind``."""
    return functools.partial(decode_reply, kind=kind)


class Pipeline:
    """The requests of one connection that wait for their replies, in order."""

    def __init__(self) -> None:
        self._framer = Framer()
        self._waiting: deque[Pending[object]] = deque()
        self._announced: WorkLines | None = None
        self.allow(MAX_LINE_BYTES)

    def __len__(self) -> int:
        return len(self._waiting)

    def allow(self, max_line_bytes: int) -> None:
        """Expect replies that hold lines of this length."""
        self._framer.max_line_bytes = REPLY_FACTOR * max(max_line_bytes, MAX_LINE_BYTES)
        self._framer.max_block_bytes = self._framer.max_line_bytes

    def expect(self, pending: Pending[T]) -> None:
        """Put in what the next request on the stream waits with."""
        pending.is_expected = True
        self._waiting.append(pending)  # type: ignore[arg-type]  # settled with its own decoder's

    def feed(self, data: bytes) -> None:
        """Take what was received and settle whatever it answers.

        Raises:
            RemoteProtocolError: The server is out of step; the connection is of no use then.
        """
        self._framer.feed(data)
        while self._settle_next():
            pass

    def fail_all(self, reason: str, cause: BaseException | None = None) -> None:
        """Fail whatever waits with ``ConnectionLost``: the connection has ended."""
        while self._waiting:
            error = ConnectionLost(reason)
            error.__cause__ = cause
            self._waiting.popleft().fail(error)

    def _settle_next(self) -> bool:
        if self._announced is not None:
            return self._take_block(self._announced)
        line = self._framer.next_message()
        if line is None:
            return False
        if not self._waiting:
            raise RemoteProtocolError(ErrorCode.BAD_JSON, "The server answered what nobody asked.")
        try:
            reply = self._waiting[0].decode(line)
        except RequestRefused as refusal:
            self._waiting.popleft().fail(refusal)
            return True
        if isinstance(reply, WorkLines):
            self._announced = reply
        else:
            self._waiting.popleft().settle(reply)
        return True

    def _take_block(self, reply: WorkLines) -> bool:
        block = self._framer.next_bytes(reply.bytes)
        if block is None:
            return False
        if not block.endswith(b"\n") or count_newlines(block) != reply.count:
            raise RemoteProtocolError(
                ErrorCode.BAD_JSON,
                f"The server announced {reply.count} lines in {reply.bytes} bytes, which are not "
                "as many whole lines.",
            )
        self._announced = None
        self._waiting.popleft().settle(Lease.from_lines(reply, block))
        return True
