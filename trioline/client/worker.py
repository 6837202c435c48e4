"""A user's function kept busy: leases lines, runs the function, hands results in, survives cuts."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from trioline.client.blocks import BlockConsumer, BlockFunction, BlockHand
from trioline.client.crew import Crew, StopEvent, WorkerSummary
from trioline.client.delivery import Delivery
from trioline.client.functions import FunctionConsumer
from trioline.client.hand import ItemHand
from trioline.client.pace import Pace
from trioline.client.reach import (
    address_text,
    find_deadline,
    find_token,
    parse_address,
    worker_name,
)
from trioline.client.uplink import Uplink
from trioline.config import Address
from trioline.errors import UsageError

__all__ = ["StopEvent", "WorkerSummary", "run_worker"]


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
    if isinstance(function, BlockFunction):
        pace = Pace(concurrency=concurrency, batch=batch, many=True)
        blocks = BlockHand()
        answerer = BlockConsumer(function, blocks, delivery, pace)
        crew = Crew(uplink, blocks, delivery, pace, answerer, stage)
    else:
        pace = Pace(concurrency=concurrency, batch=batch, many=many)
        items = ItemHand()
        caller = FunctionConsumer(
            function,
            items,
            delivery,
            pace,
            concurrency=concurrency,
            many=many,
            text=text,
            timeout_seconds=timeout,
        )
        crew = Crew(uplink, items, delivery, pace, caller, stage)
    return await crew.run(concurrency, stop, drain_seconds)
