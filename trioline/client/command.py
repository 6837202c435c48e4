"""Workers that are shell commands: functions for ``run_worker`` made of a command's text.

``exec_function`` (for ``run_worker(…, many=True)``): one long-lived process a call at a time, a
line in, a line out. It must answer each line before it needs the next one, or after some of
them, but never wait for the end of its input: most programs buffer what they print into a pipe,
so ``python -u``, ``grep --line-buffered``, ``sed -u``, ``stdbuf -oL`` may be needed.
A line too many shifts the answers behind it. It is found at the latest when the process ends, and
then the whole worker has failed: which of its answers are wrong cannot be told.

``each_function``: a process a line, the line on stdin, one line on stdout.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import anyio

from trioline.client.child import EXIT_SECONDS, Child
from trioline.client.item import GiveBack, GiveUp, Item, Raw
from trioline.config import MAX_BLOCK_BYTES, MAX_LINE_BYTES, MAX_TEXT_CHARS
from trioline.errors import TriolineError

logger = logging.getLogger("trioline.worker")

FIRST_ANSWER_SECONDS = 30.0
"""A command that has not answered its first line by then is warned about: it may be loading a
model, or it buffers its output and would never answer."""
QUICK_DEATH_SECONDS = 1.0
"""A process that ends sooner is started anew only after a pause, which doubles each time."""
MAX_RESTART_PAUSE_SECONDS = 5.0
CLOSE_SECONDS = 5.0
"""For all processes to end once nothing more comes; those that do not are killed."""
ENDED = "the command ended"
NOT_RUN_STATUS = ("exit status 126", "exit status 127")
"""The shell's words for a command that cannot be executed, and for one that is not there."""
CANNOT_START = (FileNotFoundError, NotADirectoryError, PermissionError)
MAX_STDERR_BYTES = 4 * MAX_TEXT_CHARS
"""Kept of what a process said last."""


class CommandFailed(Exception):
    """A command did not answer a line as it should; its text says how."""


class CommandNotRun(CommandFailed):
    """The shell could not find or execute what it was to run."""


class CommandOutOfStep(TriolineError):
    """A command printed more lines than it was given, and some of its answers were taken."""


@asynccontextmanager
async def exec_function(
    command: str, *, answer_seconds: float | None = None
) -> AsyncIterator[Callable[[list[Item]], Awaitable[list[object]]]]:
    """Make a function that has a long-lived process answer lines; as many as there are calls.

    When a process dies, the line it was at is a failed attempt, with the exit status; what it had
    answered before counts, and the lines behind are given back. It is started anew. One that cannot
    be run, before any line was answered, is misspelt: it gives everything back and ends the worker.

    Args:
        command: For ``/bin/sh -c``. Its stderr goes where the worker's goes.
        answer_seconds: Kill it when it owes lines and prints nothing for so long; None: never.

    Yields:
        An async function for ``run_worker(…, many=True)``.

    Raises:
        CommandOutOfStep: On leaving the body: a process that had answered lines printed more than
            that. Only logged where the body raised something of its own.

    **Cancellation**: of a call: its process is killed, since nobody knows where it is.

    **Closing**: leaving the body ends the processes: their input ends, and they have five seconds.
    """
    pool = _Pool(command, answer_seconds)
    try:
        yield pool.answer
    except BaseException:
        await pool.aclose()
        if pool.surplus_count:
            logger.error("%s", pool.out_of_step())
        raise
    await pool.aclose()
    if pool.surplus_count:
        raise pool.out_of_step()


@asynccontextmanager
async def each_function(command: str) -> AsyncIterator[Callable[[Item], Awaitable[Raw]]]:
    """Make a function that starts a process for each line.

    The line comes on stdin, its number and attempt are in ``TRIOLINE_ID`` and ``TRIOLINE_ATTEMPT``.
    What is printed is the result: exactly one line, whose newline may be missing. Any exit
    status but 0 is a failed attempt with the end of stderr as its text. A command that cannot be
    run, before it has done so once, is misspelt: everything is given back and the worker ends.

    Args:
        command: For ``/bin/sh -c``.

    Yields:
        An async function for ``run_worker``.

    **Cancellation**: of a call: its process is killed.
    """

    has_run = False

    async def answer(item: Item) -> Raw:
        nonlocal has_run
        try:
            result = await _answer_once(command, item)
        except CommandNotRun as failure:
            if has_run:
                raise
            raise _misspelt(command, str(failure)) from failure
        has_run = True
        return result

    yield answer


def _misspelt(command: str, problem: str) -> GiveUp:
    return GiveUp(
        f"The command {command!r} cannot be run ({problem}). All lines were given back: mend the "
        "command and start the worker again."
    )


# --- one process for many lines ------------------------------------------------------------------


class _Pool:
    """The processes of one command; each serves one call at a time.

    Attributes:
        surplus_count: Lines that were found behind answers that had been taken.
    """

    def __init__(self, command: str, answer_seconds: float | None) -> None:
        self.surplus_count = 0
        self._command = command
        self._answer_seconds = answer_seconds
        self._free: list[_Filter] = []
        self._pause_seconds = 0.0
        self._has_answered = False

    async def answer(self, items: list[Item]) -> list[object]:
        filter_ = await self._borrow()
        try:
            results = await filter_.answer(items)
        except BaseException:
            filter_.kill()
            raise
        self._has_answered = self._has_answered or isinstance(results[0], Raw)
        if filter_.ending in NOT_RUN_STATUS and not self._has_answered:
            raise _misspelt(self._command, filter_.ending)
        if filter_.is_over:
            self.surplus_count += filter_.surplus_count
            self._note_death(filter_)
        else:
            self._free.append(filter_)
            self._pause_seconds = 0.0
        return results

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

    async def _close(self, filter_: _Filter) -> None:
        await filter_.aclose()
        self.surplus_count += filter_.surplus_count

    async def _borrow(self) -> _Filter:
        if self._free:
            return self._free.pop()
        if self._pause_seconds:
            await anyio.sleep(self._pause_seconds)
        try:
            return _Filter(self._command, self._answer_seconds)
        except CANNOT_START as error:
            if self._has_answered:
                raise
            raise _misspelt(self._command, str(error)) from error

    def _note_death(self, filter_: _Filter) -> None:
        logger.warning("The command %r ended (%s).", self._command, filter_.ending)
        if filter_.lived_seconds < QUICK_DEATH_SECONDS:
            longer = max(0.1, 2 * self._pause_seconds)
            self._pause_seconds = min(longer, MAX_RESTART_PAUSE_SECONDS)
        else:
            self._pause_seconds = 0.0


class _Filter:
    """One long-lived process that prints a line for each line it reads.

    Attributes:
        ending: How it ended, as words; None while it lives.
        surplus_count: Lines it printed beyond those that were taken as answers; 0 where none was
            taken. Not final before it has ended.
    """

    def __init__(self, command: str, answer_seconds: float | None) -> None:
        self.ending: str | None = None
        self.surplus_count = 0
        self._child = Child(command)
        self._answer_seconds = answer_seconds
        self._has_printed = False
        self._has_answered = False
        self._is_within_surplus = False
        self._began_at = anyio.current_time()

    @property
    def is_over(self) -> bool:
        return self.ending is not None

    @property
    def lived_seconds(self) -> float:
        return anyio.current_time() - self._began_at

    async def answer(self, items: list[Item]) -> list[object]:
        """Give it lines and read as many back, both at once, so that no full pipe stops either."""
        unasked = self._child.peek()
        if unasked:
            return self._out_of_step(items, unasked)
        if unasked is not None:
            return await self._failed(items, [], ENDED)
        block = b"".join([item.raw + b"\n" for item in items])
        lines: list[bytes] = []
        rest = b""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._child.feed, block)
            lines, rest, problem = await self._read_lines(len(items))
            tasks.cancel_scope.cancel()
        if len(lines) == len(items) and (unasked := rest or self._child.peek()):
            return self._out_of_step(items, unasked)
        if problem is not None:
            return await self._failed(items, lines, problem)
        self._has_answered = True
        return [Raw(line) for line in lines]

    def kill(self) -> None:
        """End it at once."""
        self.ending = self._child.kill()

    async def aclose(self) -> None:
        """Let it end, and count what it still prints.

        **Cancellation**: it is killed.
        """
        self._child.end_input()
        try:
            with anyio.move_on_after(EXIT_SECONDS):
                while data := await self._child.read():
                    self._count_surplus(data)
            self.ending = await self._child.aclose()
        except BaseException:
            self.kill()
            raise

    async def _read_lines(self, count: int) -> tuple[list[bytes], bytes, str | None]:
        """Read so many lines; also what came behind them, and why where there are fewer."""
        pieces: list[bytes] = []
        newlines = size = 0
        problem = None
        while newlines < count and problem is None:
            data = await self._read_some()
            newlines += (data or b"").count(b"\n")
            size += len(data or b"")
            pieces.append(data or b"")
            if data is None:
                problem = f"the command printed nothing for {self._answer_seconds:g} seconds"
            elif not data:
                problem = ENDED
            elif size > MAX_BLOCK_BYTES:
                problem = f"the command printed more than {MAX_BLOCK_BYTES} bytes"
        *lines, rest = b"".join(pieces).split(b"\n", count)
        return lines, rest, problem

    async def _read_some(self) -> bytes | None:
        """Read; None where nothing came for too long."""
        if not self._has_printed and self._answer_seconds is None:
            with anyio.move_on_after(FIRST_ANSWER_SECONDS):
                return await self._read()
            logger.warning(
                "The command has not answered its first line for %g seconds. If it buffers what it "
                "prints, it never will: use python -u, stdbuf -oL or the like.",
                FIRST_ANSWER_SECONDS,
            )
        with anyio.move_on_after(self._answer_seconds):
            return await self._read()
        return None

    async def _read(self) -> bytes:
        data = await self._child.read()
        self._has_printed = self._has_printed or bool(data)
        return data

    async def _failed(self, items: list[Item], lines: list[bytes], problem: str) -> list[object]:
        """Blame the first line without an answer, and only that one."""
        self.ending = await self._child.aclose() if problem == ENDED else self._child.kill()
        answered: list[object] = [Raw(line) for line in lines]
        if len(answered) < len(items):
            answered.append(CommandFailed(f"{problem} ({self.ending})"))
        return answered + [GiveBack()] * (len(items) - len(answered))

    def _out_of_step(self, items: list[Item], unasked: bytes) -> list[object]:
        """Fail them all: which of its lines was the surplus one cannot be told."""
        self.kill()
        self._count_surplus(unasked)
        shown = unasked[:80].decode("utf-8", "replace")
        text = f"the command must print one line for each line it reads, but printed also {shown!r}"
        return [CommandFailed(f"{text} ({self.ending})")] * len(items)

    def _count_surplus(self, data: bytes) -> None:
        if not self._has_answered:
            return  # no answer was taken that could be a wrong one
        self.surplus_count += data.count(b"\n") - self._is_within_surplus
        self._is_within_surplus = not data.endswith(b"\n")
        self.surplus_count += self._is_within_surplus


# --- a process for each line ----------------------------------------------------------------------


async def _answer_once(command: str, item: Item) -> Raw:
    environment = {"TRIOLINE_ID": str(item.id), "TRIOLINE_ATTEMPT": str(item.attempt)}
    try:
        child = Child(command, environment=environment, with_stderr=True)
    except CANNOT_START as error:
        raise CommandNotRun(str(error)) from error
    tail = bytearray()
    try:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_give, child, item.raw + b"\n")
            tasks.start_soon(_keep_tail, child, tail)
            output = await _read_all(child)
            # What it has left behind may hold its other pipes open for long.
            tasks.cancel_scope.deadline = anyio.current_time() + EXIT_SECONDS
        ending = await child.aclose()
    finally:
        child.kill()
    if len(output) > MAX_LINE_BYTES + 1:
        raise CommandFailed(f"the command printed more than {MAX_LINE_BYTES} bytes")
    if ending != "exit status 0":
        text = tail.decode("utf-8", "replace").strip()[-MAX_TEXT_CHARS // 2 :]
        kind = CommandNotRun if ending in NOT_RUN_STATUS else CommandFailed
        raise kind(f"{ending}: {text}" if text else ending)
    return _one_line(output)


async def _give(child: Child, line: bytes) -> None:
    await child.feed(line)
    child.end_input()


async def _keep_tail(child: Child, tail: bytearray) -> None:
    while data := await child.read_stderr():
        tail += data
        del tail[:-MAX_STDERR_BYTES]


async def _read_all(child: Child) -> bytes:
    pieces = []
    size = 0
    while size <= MAX_LINE_BYTES + 1 and (data := await child.read()):
        pieces.append(data)
        size += len(data)
    return b"".join(pieces)


def _one_line(output: bytes) -> Raw:
    if not output:
        raise CommandFailed("the command printed nothing; one line is expected")
    line = output.removesuffix(b"\n")
    count = line.count(b"\n") + 1
    if count > 1:
        raise CommandFailed(f"the command printed {count} lines; one is expected")
    return Raw(line)
