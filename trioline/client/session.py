"""One connection to a server, for async code: runs under trio and asyncio.

Several tasks may make requests at once: they are sent in the order in which they got the
stream, and a task of the connection hands each reply to the request it answers.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import TypeVar

import anyio
import anyio.abc
import anyio.lowlevel

from trioline.client.item import encode_result, failure_of
from trioline.client.outbox import result_row
from trioline.client.pipeline import Answer, Pending, Pipeline, decode_get, decoder
from trioline.client.reach import (
    CONNECT_SECONDS,
    address_text,
    find_token,
    parse_address,
    reason_of,
    tune,
)
from trioline.config import RECEIVE_BYTES, Address
from trioline.errors import ConnectionLost, LocalProtocolError, RemoteProtocolError
from trioline.snapshot import Snapshot
from trioline.wire.codec import encode_request
from trioline.wire.messages import (
    Bye,
    Done,
    DoneLines,
    DoneReply,
    Extend,
    ExtendReply,
    Fail,
    FailReply,
    Form,
    Get,
    Hello,
    HelloReply,
    Note,
    Okay,
    Ping,
    Release,
    ReleaseReply,
    Request,
    Set,
    SetReply,
    Status,
    WorkLines,
)

T = TypeVar("T")

BROKEN_STREAM = (anyio.BrokenResourceError, anyio.ClosedResourceError, anyio.EndOfStream, OSError)


@asynccontextmanager
async def connect(
    address: str | Address | None = None,
    *,
    token: str | None = None,
    worker: str | None = None,
    detach: bool = False,
    deadline: float | None = None,
    session: str | None = None,
) -> AsyncIterator[Session]:
    """Open a connection and say hello.

    Exceptions of the body come out as they are, not in a group.

    Args:
        address: ``host:port``, ``tcp://…``, ``unix:PATH`` or ``@FILE``; None for the environment's
            ``TRIOLINE_ADDRESS``.
        token: The server's token; None for what ``TRIOLINE_TOKEN_FILE`` holds, if it is set.
        worker: A name for status and logs; None for the connection's address.
        detach: Leases outlive the connection.
        deadline: When this worker will be killed, in Unix time; None where that is not known.
        session: ``hello.session`` of a connection that was lost, to take its leases up again.

    Raises:
        ConnectionLost: There is no connection to be had.
        RequestRefused: The server wants none of us; ``auth-required``, ``auth-failed`` and
            ``version`` are final.
        UsageError: The address is none.

    **Cancellation**: the connection is closed; leases go back after the server's grace period, or
    at once where ``bye`` was called before.

    **Closing**: leaving the body closes the connection, once and for all.
    """
    hello = Hello(
        worker=worker, token=find_token(token), detach=detach, deadline=deadline, session=session
    )
    target = parse_address(address_text(address))
    stream = await _open_stream(target)
    failure: Exception | None = None
    opened = Session(stream, target)
    async with stream, anyio.create_task_group() as tasks:
        # Shielded until the body is left, so that a body that is being cancelled can still say
        # goodbye and hear the answer, under a deadline of its own.
        reading = anyio.CancelScope(shield=True)
        tasks.start_soon(opened._read, reading)
        try:
            await opened._greet(hello)
            yield opened
        except Exception as error:  # noqa: BLE001 - raised again below, outside of the group
            failure = error
        finally:
            reading.cancel()
    if failure is not None:
        raise failure


async def _open_stream(address: Address) -> anyio.abc.ByteStream:
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


class Session:
    """An open connection; made by ``connect``.

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

    # --- requests -----------------------------------------------------------------------------

    async def get(
        self,
        max: int = 1,  # noqa: A002 - the protocol's word
        *,
        wait: float = 0.0,
        form: Form | str = Form.ITEMS,
        stage: str | None = None,
    ) -> Answer:
        """Ask for lines to work on.

        Args:
            max: How many at the most.
            wait: Seconds to wait for work where there is none; any further request on this
                connection ends the wait.
            form: ``items``, or ``lines`` for throughput.
            stage: The stage; None for the only or first one.

        Returns:
            A ``Lease``; or ``Retry``: nothing now; or ``Complete``: the job is over.

        **Cancellation**: whether lines were leased is unknown; their reply is thrown away. They go
        back by ``release()``, with the connection's end, or when their lease runs out.
        """
        request = Get(max=max, wait=wait, form=Form(form), stage=stage)
        return await self._ask(request, decode_get)

    async def done(self, results: Iterable[tuple[int, object]], *, text: bool = False) -> DoneReply:
        """Hand results in; the reply is the server's promise that they are safe.

        Args:
            results: Line numbers and results: what JSON can hold, ``Raw``, or an exception for a
                failed attempt (``Reject``: a final one).
            text: ``str`` and ``bytes`` are output lines as they are.

        Raises:
            TypeError, ValueError: A result cannot be written; nothing was sent.
            RequestRefused: Nothing of it was taken.

        **Cancellation**: unknown; repeating is safe.
        """
        rows = [
            result_row(
                number,
                failure_of(value)
                if isinstance(value, Exception)
                else encode_result(value, text=text),
            )
            for number, value in results
        ]
        return await self._ask(Done(results=rows), decoder(DoneReply))

    async def done_lines(self, first: int, lines: Sequence[bytes]) -> DoneReply:
        """Hand in raw results of lines that follow each other.

        Args:
            first: The first one's line number.
            lines: Results without newlines.

        Raises:
            RequestRefused: Nothing of it was taken.

        **Cancellation**: unknown; repeating is safe.
        """
        body = b"".join([line + b"\n" for line in lines])
        if body.count(b"\n") != len(lines):
            raise LocalProtocolError("A result line has a newline in it.")
        request = DoneLines(first=first, count=len(lines), bytes=len(body))
        return await self._ask(request, decoder(DoneReply), body)

    async def fail(
        self,
        id: int,  # noqa: A002 - the protocol's word
        error: str = "",
        *,
        retry: bool = True,
        delay: float | None = None,
        lease: int | None = None,
    ) -> FailReply:
        """Say that an attempt at a line failed.

        Args:
            id: The line's number.
            error: What went wrong, for the rejected file.
            retry: False: don't try it again, whoever it be.
            delay: Seconds until it is given out again; None for the server's setting.
            lease: The lease it was given in, where that is to be checked.

        Raises:
            RequestRefused: ``not-held``: it is another's by now, and nothing changed.

        **Cancellation**: unknown; repeating is refused with ``not-held`` if it took effect.
        """
        request = Fail(id=id, error=error, retry=retry, delay=delay, lease=lease)
        return await self._ask(request, decoder(FailReply))

    async def release(self, ids: Sequence[int] | None = None) -> int:
        """Give lines back that were not worked on: it costs no attempt.

        Args:
            ids: Their numbers; None for all that this connection holds.

        Returns:
            How many went back.

        **Cancellation**: unknown; repeating with the same numbers is harmless.
        """
        request = Release(ids=None if ids is None else list(ids))
        return (await self._ask(request, decoder(ReleaseReply))).released

    async def extend(self, lease: int | None = None) -> ExtendReply:
        """Keep leases for another lease timeout from now.

        Args:
            lease: Its number; None for all that this connection holds.

        Returns:
            The timeout, and the lines that are ``lost``: no longer held.

        Raises:
            RequestRefused: ``not-held``: that lease is gone.

        **Cancellation**: unknown; repeating is harmless.
        """
        return await self._ask(Extend(lease=lease), decoder(ExtendReply))

    async def note(self, text: str, id: int | None = None) -> None:  # noqa: A002
        """Leave a text for whoever watches the job.

        Args:
            text: Cut by the server where it is long.
            id: The line it is about; None for the worker as a whole.

        **Cancellation**: unknown; repeating is harmless.
        """
        await self._ask(Note(text=text, id=id), decoder(Okay))

    async def status(self) -> Snapshot:
        """Ask how the job stands.

        **Cancellation**: nothing happened.
        """
        return await self._ask(Status(), decoder(Snapshot))

    async def set(
        self,
        *,
        lease_timeout: float | None = None,
        max_attempts: int | None = None,
        paused: bool | None = None,
    ) -> SetReply:
        """Change settings of the running job; None leaves one as it is.

        Returns:
            All of them, as they are now.

        **Cancellation**: unknown; repeating is harmless.
        """
        request = Set(lease_timeout=lease_timeout, max_attempts=max_attempts, paused=paused)
        return await self._ask(request, decoder(SetReply))

    async def ping(self) -> None:
        """Ask whether the server is there.

        **Cancellation**: nothing happened.
        """
        await self._ask(Ping(), decoder(Okay))

    async def bye(self) -> None:
        """Give everything back and end the connection.

        **Cancellation**: unknown; leaving ``connect`` gives everything back, too, only later.
        """
        await self._ask(Bye(), decoder(Okay))

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

    # --- the stream -----------------------------------------------------------------------------

    async def _ask(
        self, request: Request, decode: Callable[[bytes], T | WorkLines], body: bytes = b""
    ) -> T:
        answered = anyio.Event()
        pending: Pending[T] = Pending(decode, lambda _: answered.set())
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

    async def _greet(self, hello: Hello) -> None:
        try:
            with anyio.fail_after(CONNECT_SECONDS):
                self.hello = await self._ask(hello, decoder(HelloReply))
        except TimeoutError as error:
            raise ConnectionLost(
                f"{self.address} did not answer hello for {CONNECT_SECONDS:g} seconds."
            ) from error
        self._pipeline.allow(self.hello.max_line)

    async def _read(self, scope: anyio.CancelScope) -> None:
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
