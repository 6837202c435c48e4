"""``--exec``: long-lived processes that answer blocks of lines."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio

from trioline.client.blocks import Answers, Block, BlockFunction
from trioline.client.command import CANNOT_START, NOT_RUN_STATUS, CommandOutOfStep, misspelt
from trioline.client.filter import Filter

logger = logging.getLogger("trioline.worker")

QUICK_DEATH_SECONDS = 1.0
"""A process that ends sooner is started anew only after a pause, which doubles each time."""
MAX_RESTART_PAUSE_SECONDS = 5.0
CLOSE_SECONDS = 5.0
"""For all processes to end once nothing more comes; those that do not are killed."""


@asynccontextmanager
async def exec_function(
    command: str, *, answer_seconds: float | None = None
) -> AsyncIterator[BlockFunction]:
    """Make a function that has a long-lived process answer lines; as many as there are calls.

    When a process dies, the line it was at is a failed attempt, with the exit status; what it had
    answered before counts, and the lines behind are given back. It is started anew. One that cannot
    be run, before any line was answered, is misspelt: it gives everything back and ends the worker.

    Args:
        command: For ``/bin/sh -c``. Its stderr goes where the worker's goes.
        answer_seconds: Kill it when it owes lines and prints nothing for so long; None: never.

    Yields:
        A function for ``run_worker``.

    Raises:
        CommandOutOfStep: On leaving the body: a process that had answered lines printed more than
            that. Only logged where the body raised something of its own.

    **Cancellation**: of a call: its process is killed, since nobody knows where it is.

    **Closing**: leaving the body ends the processes: their input ends, and they have five seconds.
    """
    pool = _Pool(command, answer_seconds)
    try:
        yield pool
    except BaseException:
        await pool.aclose()
        if pool.surplus_count:
            logger.error("%s", pool.out_of_step())
        raise
    await pool.aclose()
    if pool.surplus_count:
        raise pool.out_of_step()


class _Pool(BlockFunction):
    """The processes of one command; each serves one call at a time.

    Attributes:
        surplus_count: Lines that were found behind answers that had been taken.
    """

    def __init__(self, command: str, answer_seconds: float | None) -> None:
        self.surplus_count = 0
        self._command = command
        self._answer_seconds = answer_seconds
        self._free: list[Filter] = []
        self._pause_seconds = 0.0
        self._has_answered = False

    async def __call__(self, block: Block) -> Answers:
        filter_ = await self._borrow()
        try:
            answers = await filter_.answer(block)
        except BaseException:
            filter_.kill()
            raise
        self._has_answered = self._has_answered or answers.count > 0
        if filter_.ending in NOT_RUN_STATUS and not self._has_answered:
            raise misspelt(self._command, filter_.ending)
        if filter_.is_over:
            self.surplus_count += filter_.surplus_count
            self._note_death(filter_)
        else:
            self._free.append(filter_)
            self._pause_seconds = 0.0
        return answers

    async def aclose(self) -> None:
        """End all processes, also while being cancelled; it takes ``CLOSE_SECONDS`` at the most."""
        with anyio.move_on_after(CLOSE_SECONDS, shield=True):
            async with anyio.create_task_group() as closing:
                while self._free:
                    closing.start_soon(self._close, self._free.pop())

    def out_of_step(self) -> CommandOutOfStep:
        return CommandOutOfStep(
            f"The command {self._command!r} printed lines that nobody had asked for, at least "
            f"{self.surplus_count} of them: the answers of this worker may be shifted, each to a "
            "later line. Make it print exactly one line for each line it reads, and do the job "
            "again with --fresh."
        )

    async def _close(self, filter_: Filter) -> None:
        await filter_.aclose()
        self.surplus_count += filter_.surplus_count

    async def _borrow(self) -> Filter:
        if self._free:
            return self._free.pop()
        if self._pause_seconds:
            await anyio.sleep(self._pause_seconds)
        try:
            return Filter(self._command, self._answer_seconds)
        except CANNOT_START as error:
            if self._has_answered:
                raise
            raise misspelt(self._command, str(error)) from error

    def _note_death(self, filter_: Filter) -> None:
        logger.warning("The command %r ended (%s).", self._command, filter_.ending)
        if filter_.lived_seconds < QUICK_DEATH_SECONDS:
            longer = max(0.1, 2 * self._pause_seconds)
            self._pause_seconds = min(longer, MAX_RESTART_PAUSE_SECONDS)
        else:
            self._pause_seconds = 0.0
