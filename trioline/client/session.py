"""One connection to a server, for async code: what can be asked for on it.

Runs under trio and asyncio. How requests and replies travel is the business of ``channel``.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager

import anyio

from trioline.client.channel import Channel, open_stream
from trioline.client.item import encode_result, failure_of
from trioline.client.outbox import result_row
from trioline.client.pipeline import Answer, decode_get, decoder
from trioline.client.reach import address_text, find_deadline, find_token, parse_address
from trioline.config import Address
from trioline.errors import LocalProtocolError
from trioline.newlines import count_newlines
from trioline.snapshot import Snapshot
from trioline.wire.messages import (
    Bye,
    Done,
    DoneLines,
    DoneReply,
    Drain,
    DrainReply,
    Extend,
    ExtendReply,
    Fail,
    FailReply,
    Form,
    Get,
    Hello,
    Note,
    Okay,
    Ping,
    Release,
    ReleaseReply,
    Set,
    SetReply,
    Status,
)


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
        deadline: When this worker will be killed, in Unix time; None for the environment's
            ``SLURM_JOB_END_TIME``, if it is there, ``math.inf`` for never.
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
        worker=worker,
        token=find_token(token),
        detach=detach,
        deadline=find_deadline(deadline),
        session=session,
    )
    target = parse_address(address_text(address))
    stream = await open_stream(target)
    failure: Exception | None = None
    opened = Session(stream, target)
    async with stream, anyio.create_task_group() as tasks:
        # Shielded until the body is left, so that a body that is being cancelled can still say
        # goodbye and hear the answer, under a deadline of its own.
        reading = anyio.CancelScope(shield=True)
        tasks.start_soon(opened.read, reading)
        try:
            await opened.greet(hello)
            yield opened
        except Exception as error:  # noqa: BLE001 - raised again below, outside of the group
            failure = error
        finally:
            reading.cancel()
    if failure is not None:
        raise failure


class Session(Channel):
    """An open connection, with all that can be asked for on it; made by ``connect``."""

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
        return await self.ask(request, decode_get)

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
        return await self.ask(Done(results=rows), decoder(DoneReply))

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
        if count_newlines(body) != len(lines):
            raise LocalProtocolError("A result line has a newline in it.")
        request = DoneLines(first=first, count=len(lines), bytes=len(body))
        return await self.ask(request, decoder(DoneReply), body)

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
        return await self.ask(request, decoder(FailReply))

    async def release(self, ids: Sequence[int] | None = None) -> int:
        """Give lines back that were not worked on: it costs no attempt.

        Args:
            ids: Their numbers; None for all that this connection holds.

        Returns:
            How many went back.

        **Cancellation**: unknown; repeating with the same numbers is harmless.
        """
        request = Release(ids=None if ids is None else list(ids))
        return (await self.ask(request, decoder(ReleaseReply))).released

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
        return await self.ask(Extend(lease=lease), decoder(ExtendReply))

    async def note(self, text: str, id: int | None = None) -> None:  # noqa: A002
        """Leave a text for whoever watches the job.

        Args:
            text: Cut by the server where it is long.
            id: The line it is about; None for the worker as a whole.

        **Cancellation**: unknown; repeating is harmless.
        """
        await self.ask(Note(text=text, id=id), decoder(Okay))

    async def status(self) -> Snapshot:
        """Ask how the job stands.

        **Cancellation**: nothing happened.
        """
        return await self.ask(Status(), decoder(Snapshot))

    async def set(
        self,
        *,
        lease_timeout: float | None = None,
        max_attempts: int | None = None,
        paused: bool | None = None,
        hedge: float | bool | None = None,
    ) -> SetReply:
        """Change settings of the running job; None leaves one as it is.

        Returns:
            All of them, as they are now.

        **Cancellation**: unknown; repeating is harmless.
        """
        request = Set(
            lease_timeout=lease_timeout, max_attempts=max_attempts, paused=paused, hedge=hedge
        )
        return await self.ask(request, decoder(SetReply))

    async def drain(self, worker: str) -> int:
        """Send a worker home: it finishes what it has begun and gets nothing more.

        Args:
            worker: Its name, as in ``status``.

        Returns:
            How many connections of that name were told; 0: none is there.

        **Cancellation**: unknown; repeating is harmless.
        """
        return (await self.ask(Drain(worker=worker), decoder(DrainReply))).connections

    async def ping(self) -> None:
        """Ask whether the server is there.

        **Cancellation**: nothing happened.
        """
        await self.ask(Ping(), decoder(Okay))

    async def bye(self) -> None:
        """Give everything back and end the connection.

        **Cancellation**: unknown; leaving ``connect`` gives everything back, too, only later.
        """
        await self.ask(Bye(), decoder(Okay))
