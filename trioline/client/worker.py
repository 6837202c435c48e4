"""A user's function kept busy: leases lines, runs the function, hands results in, survives cuts.

The tasks of ``run_worker``, all ended when it returns::

    uplink      connects, and again when the connection is lost; says goodbye
    sender      hands results in, so many at a time
    renewer     extends the leases; sends notes; never waits for user code
    fetcher     keeps enough lines in hand
    consumers   ``concurrency`` of them: run the function

They share three pieces without I/O: the ``Hand`` (lines), the ``Outbox`` (results) and the
``Pace`` (how many lines). No task and no event is made per line.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import Any, Protocol

import anyio
import attrs

from trioline.client.blocks import BlockConsumer, BlockFunction, BlockHand
from trioline.client.consumer import Consumer
from trioline.client.delivery import Delivery
from trioline.client.functions import FunctionConsumer
from trioline.client.hand import Hand, ItemHand
from trioline.client.lease import Lease
from trioline.client.pace import Pace, renewal_seconds
from trioline.client.pipeline import Answer, Pending, decode_get
from trioline.client.reach import (
    address_text,
    find_deadline,
    find_token,
    parse_address,
    worker_name,
)
from trioline.client.session import Session
from trioline.client.uplink import Uplink
from trioline.client.wakeup import Wakeup
from trioline.config import Address
from trioline.errors import (
    ConnectionLost,
    ErrorCode,
    RequestRefused,
    TriolineError,
    UsageError,
)
from trioline.wire.messages import Complete, Form, Get, Retry

logger = logging.getLogger("trioline.worker")

GET_WAIT_SECONDS = 30.0
"""How long one ``get`` waits for work; it is repeated, so this only bounds a reply's age."""
MAX_PAUSE_SECONDS = 5.0
"""The longest that a server's ``retry_in`` is heeded."""
TICK_SECONDS = 1.0
"""How often the renewer looks for notes and for a new connection."""
FLUSH_SECONDS = 5.0
"""At a stop, for the server to answer what was handed in."""


class StopEvent(Protocol):
    """An event of anyio, trio or asyncio."""

    async def wait(self) -> Any:  # noqa: ANN401 - they return different things
        """Wait until it is set."""


@attrs.frozen(kw_only=True)
class WorkerSummary:
    """What a worker has done when it is over."""

    complete: bool
    """Whether the job is over; False where the worker left before that."""
    reason: str | None
    """Why it left before the job was over: ``drain`` or ``deadline`` (or a newer server's word)
    where the server sent it home, ``stop`` after a stop; None where the job is over."""
    done: int
    """Results of this worker that count."""
    failed: int
    """Failed attempts."""
    duplicate: int
    """Results that came too late: another worker was first."""
    refused: int
    """Results the server would not have; each was logged."""
    seconds: float


async def run_worker(
    function: Callable[..., Any],
    address: str | Address | None = None,
    *,
    concurrency: int = 1,
    batch: int | None = None,
    many: bool = False,
    text: bool = False,
    name: str | None = None,
    token: str | None = None,
    deadline: float | None = None,
    stage: str | None = None,
    timeout: float | None = None,  # noqa: ASYNC109 - it is for each call
    stop: StopEvent | None = None,
    drain_seconds: float = 5.0,
    reconnect_seconds: float = 60.0,
) -> WorkerSummary:
    """Work on a server's lines until the job is complete, or the server sends the worker home.

    Runs under trio and asyncio. An exception of ``function`` is a failed attempt at its line and
    nothing more. A lost connection is made again, work in hand goes on meanwhile, and results are
    handed in until the server has answered them.

    Args:
        function: Takes an ``Item`` and returns its result: what JSON can hold, or ``Raw``. An
            async function runs here and must not block; any other runs in threads.
        address: See ``connect``.
        concurrency: How many calls of ``function`` at a time.
        batch: Lines to lease at a time; None to adapt: about a second of work in hand.
        many: ``function`` takes a list of up to ``batch`` items and returns as many results, in
            their order; one that is an exception is a failed attempt at its line.
        text: ``str`` and ``bytes`` results are output lines as they are (jobs with ``--text``).
        name: For status and logs; None for ``host:pid``.
        token: See ``connect``.
        deadline: See ``connect``; near it the server sends this worker home.
        stage: The stage to work for; None for the only or first one.
        timeout: Seconds that a call of ``function`` may take; None: for ever. An async call is
            cancelled then; a thread is left behind, as Python cannot end it. Either way it is a
            failed attempt, with ``many`` at all lines of the call.
        stop: Once it is set, nothing new is begun, lines that were not begun go back at once, and
            what is running has ``drain_seconds`` to end.
        drain_seconds: See ``stop``; after it async calls are cancelled, and threads left behind:
            Python cannot end them, and their result is thrown away.
        reconnect_seconds: How long to try for a connection, at the start as after a loss.

    Returns:
        What was done; ``complete`` tells whether the job is over, ``reason`` why else it ended.

    Raises:
        ConnectionLost: There was no connection for ``reconnect_seconds``.
        RequestRefused: The server does not want this worker (wrong token, other version).
        UsageError: An argument is wrong.

    **Cancellation**: results that are ready are sent and everything else is given back, within
    two seconds; then it is cancelled.
    """
    if concurrency < 1 or (batch is not None and batch < 1):
        raise UsageError("concurrency and batch must be at least 1.")
    if timeout is not None and not timeout > 0:
        raise UsageError(f"timeout is {timeout} seconds; it must be more than 0.")
    target = address_text(address)
    parse_address(target)  # a wrong one is reported at once, not after reconnect_seconds
    leave_at = find_deadline(deadline)
    uplink = Uplink(
        target,
        token=find_token(token),
        worker=worker_name(name),
        deadline=math.inf if leave_at is None else leave_at,
        reconnect_seconds=reconnect_seconds,
    )
    delivery = Delivery(uplink)
    hand: Hand
    consumer: Consumer[Any]
    if isinstance(function, BlockFunction):
        pace = Pace(concurrency=concurrency, batch=batch, many=True)
        hand = blocks = BlockHand()
        consumer = BlockConsumer(function, blocks, delivery, pace)
    else:
        pace = Pace(concurrency=concurrency, batch=batch, many=many)
        hand = items = ItemHand()
        consumer = FunctionConsumer(
            function,
            items,
            delivery,
            pace,
            concurrency=concurrency,
            many=many,
            text=text,
            timeout_seconds=timeout,
        )
    worker = _Worker(uplink, hand, delivery, pace, consumer, stage)
    return await worker.run(concurrency, stop, drain_seconds)


class _Worker:
    """The tasks around one function's consumers."""

    def __init__(
        self,
        uplink: Uplink,
        hand: Hand,
        delivery: Delivery,
        pace: Pace,
        consumer: Consumer[Any],
        stage: str | None,
    ) -> None:
        self._uplink = uplink
        self._hand = hand
        self._delivery = delivery
        self._pace = pace
        self._consumer = consumer
        self._stage = stage
        self._chores = consumer.given_back
        self._services = anyio.CancelScope()
        self._is_complete = False
        self._reason: str | None = None
        self._is_stopping = False
        self._is_get_lost = False
        self._fatal: TriolineError | None = None

    async def run(
        self, concurrency: int, stop: StopEvent | None, drain_seconds: float
    ) -> WorkerSummary:
        began_at = anyio.current_time()
        with self._services:
            async with anyio.create_task_group() as services:
                services.start_soon(self._keep_connected, name="trioline uplink")
                services.start_soon(self._delivery.run, name="trioline sender")
                services.start_soon(self._renew, name="trioline renewer")
                await self._work(concurrency, stop, drain_seconds)
                if self._is_complete or self._is_stopping:
                    await self._flush()
                self._services.cancel()
        if self._fatal is not None:
            raise self._fatal
        outbox = self._delivery.outbox
        return WorkerSummary(
            complete=self._is_complete,
            reason="stop" if self._is_stopping and not self._is_complete else self._reason,
            done=outbox.accepted,
            failed=outbox.failed,
            duplicate=outbox.duplicate,
            refused=self._delivery.refused_count,
            seconds=anyio.current_time() - began_at,
        )

    async def _work(self, concurrency: int, stop: StopEvent | None, drain_seconds: float) -> None:
        """Run the consumers until the job is complete, or what was begun has been drained."""
        fetching = anyio.CancelScope()
        try:
            async with anyio.create_task_group() as work:
                for _ in range(concurrency):
                    work.start_soon(self._consumer.run, name="trioline consumer")
                if stop is not None:
                    work.start_soon(self._watch, stop, fetching, name="trioline stop")
                work.start_soon(self._watch_function, fetching, name="trioline function")
                with fetching:
                    await self._fetch()
                    if self._reason is not None:
                        # What was begun may take its time, and only a stop cuts that short.
                        await self._drain(math.inf)
                        await self._delivery.wait_empty()
                if self._is_stopping:
                    await self._drain(drain_seconds)
                # At the job's end every line has its result: what still runs is of no use.
                work.cancel_scope.cancel()
        finally:
            self._consumer.end()

    def _give_up(self, error: TriolineError) -> None:
        self._fatal = error
        self._services.cancel()

    # --- connection ---------------------------------------------------------------------------

    async def _keep_connected(self) -> None:
        try:
            await self._uplink.run(self._return, self._say_goodbye)
        except (ConnectionLost, RequestRefused) as error:
            self._give_up(error)  # raised outside of the task group, where it is no group

    async def _return(self, session: Session, has_leases: bool) -> None:
        """Go on after a cut, with the leases of before or without."""
        if has_leases and not self._is_get_lost:
            return
        if has_leases:
            # The server may have leased lines to us that never arrived. We cannot name them, and
            # our renewals would keep them for ever: all is given back but what is done already.
            await self._delivery.send(session)
            await session.release()
        self._is_get_lost = False
        self._hand.forget_queue()
        self._consumer.hungry.ring()

    async def _say_goodbye(self, session: Session) -> None:
        try:
            await self._delivery.send(session)
            await session.bye()
        except (ConnectionLost, RequestRefused) as error:
            if not self._is_complete:  # a server whose job is over need not wait for it
                logger.warning("Left without a goodbye: %s", error)

    # --- lines --------------------------------------------------------------------------------

    async def _fetch(self) -> None:
        """Keep enough lines in hand until the job is complete or the server sends us home."""
        while not self._is_complete and self._reason is None:
            wanted = self._pace.wanted(
                idle=self._consumer.idle,
                queued=self._hand.queued,
                stalled_seconds=self._consumer.stalled_seconds,
            )
            if wanted:
                session = await self._uplink.wait_session()
                self._pace.max_batch = session.hello.max_batch
                self._consumer.max_result_bytes = session.hello.max_line
                await self._get(session, wanted)
            else:
                if self._consumer.is_in_vain:
                    await self._ask_if_complete()
                if not self._is_complete:
                    await self._consumer.hungry.wait()

    async def _ask_if_complete(self) -> None:
        """Ask without leasing anything: whatever is at work may hang for ever."""
        session = await self._uplink.wait_session()
        try:
            self._is_complete = (await session.status()).state == "complete"
        except (ConnectionLost, RequestRefused) as error:
            logger.info("The server did not say how the job stands: %s", error)

    async def _get(self, session: Session, count: int) -> None:
        answered = Wakeup()
        outcome: list[Pending[Answer]] = []
        requests, asked_at = session.request_count, anyio.current_time()

        def on_settled(pending: Pending[Answer]) -> None:
            # Lines are taken care of here, so that they are also when the fetcher was cancelled.
            if isinstance(pending.error, ConnectionLost):
                self._is_get_lost = self._is_get_lost or pending.is_expected
            elif pending.error is None and isinstance(pending.reply, Lease):
                self._hand.put(pending.reply)
                self._consumer.wake()
                self._chores.ring()
            outcome.append(pending)
            answered.ring()

        request = Get(max=count, wait=GET_WAIT_SECONDS, form=Form.LINES, stage=self._stage)
        try:
            await session.post(request, decode_get, on_settled)
            await answered.wait()
            reply = outcome[0].reply
        except ConnectionLost:
            return
        except RequestRefused as refusal:
            await self._refused(refusal)
            return
        if isinstance(reply, Complete):
            self._reason = reply.reason
            self._is_complete = reply.reason is None
        # Where nothing else was asked, and the time is not over, the server has its own reason to
        # say so: come back when it says.
        is_early = anyio.current_time() - asked_at < GET_WAIT_SECONDS
        if isinstance(reply, Retry) and is_early and session.request_count == requests + 1:
            await anyio.sleep(min(max(reply.retry_in, 0.01), MAX_PAUSE_SECONDS))

    async def _refused(self, refusal: RequestRefused) -> None:
        if refusal.code == ErrorCode.TOO_MANY:  # holds too many lines: some must be done first
            logger.warning("The server gives no more lines for now: %s", refusal)
            await anyio.sleep(TICK_SECONDS)
        else:
            self._give_up(refusal)
            await anyio.sleep_forever()

    # --- leases and notes -------------------------------------------------------------------------

    async def _renew(self) -> None:
        """Extend the leases and hear what is lost; give back what is not wanted; send notes."""
        held: Session | None = None
        renewed_at, timeout = -math.inf, math.inf
        while True:
            session = await self._uplink.wait_session()
            if session is not held:  # after a cut: which lines are still ours?
                held, renewed_at, timeout = session, -math.inf, session.hello.lease_timeout
            try:
                self._shed()
                await self._give_back(session)
                await self._send_notes(session)
                if anyio.current_time() >= renewed_at + self._renewal_seconds(timeout) and len(
                    self._hand
                ):
                    renewed_at = anyio.current_time()
                    reply = await session.extend()
                    self._consumer.lose(reply.lost)
                    timeout = reply.lease_timeout
            except ConnectionLost:
                continue
            except RequestRefused as refusal:
                logger.warning("The server refused to extend, release or note: %s", refusal)
            # Where a function's present line takes long: results and hunger of those before it.
            self._delivery.ring()
            self._consumer.hungry.ring()
            with anyio.move_on_after(min(TICK_SECONDS, timeout / 6)):
                await self._chores.wait()

    def _renewal_seconds(self, timeout: float) -> float:
        # Where a copy was quicker with the job's last line, the server is there for 2 seconds yet.
        seconds = renewal_seconds(timeout)
        return min(seconds, TICK_SECONDS) if self._consumer.is_late else seconds

    def _shed(self) -> None:
        """Give up what would lie here unbegun for long."""
        queued, stalled_seconds = self._hand.queued, self._consumer.stalled_seconds
        self._hand.shed(self._pace.surplus(queued=queued, stalled_seconds=stalled_seconds))

    async def _give_back(self, session: Session) -> None:
        unwanted = self._hand.unwanted
        ids = sorted([unwanted.popleft() for _ in range(len(unwanted))])
        if not ids:
            return
        try:
            await session.release(ids)
        except ConnectionLost:
            unwanted.extend(ids)
            raise
        except RequestRefused as refusal:
            if refusal.code != ErrorCode.NOT_HELD:  # else they are not ours any more: as wished
                raise

    async def _send_notes(self, session: Session) -> None:
        for number in list(self._hand.notes):
            await session.note(self._hand.notes.pop(number), number)

    # --- the end ----------------------------------------------------------------------------------

    async def _watch(self, stop: StopEvent, fetching: anyio.CancelScope) -> None:
        await stop.wait()
        self._is_stopping = True
        fetching.cancel()

    async def _watch_function(self, fetching: anyio.CancelScope) -> None:
        await self._consumer.gave_up.wait()
        self._fatal = TriolineError(str(self._consumer.reason))
        self._is_stopping = True
        fetching.cancel()

    async def _drain(self, seconds: float) -> None:
        """Give back what was not begun, at once; let what was begun end."""
        self._hand.close()
        self._chores.ring()
        with anyio.move_on_after(seconds):
            while self._hand.running:
                await self._consumer.hungry.wait()

    async def _flush(self) -> None:
        """Wait for the server's answers; at the job's end only while it is there to give them."""
        session = self._uplink.session
        if not self._is_complete:
            with anyio.move_on_after(FLUSH_SECONDS):
                await self._delivery.wait_empty()
        elif session is not None:
            async with anyio.create_task_group() as waiting:

                async def wait_broken() -> None:
                    await session.wait_broken()
                    waiting.cancel_scope.cancel()

                waiting.start_soon(wait_broken)
                await self._delivery.wait_empty()
                waiting.cancel_scope.cancel()
