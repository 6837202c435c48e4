"""``--each``: a process for each line."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import anyio

from trioline.client.child import EXIT_SECONDS, Child
from trioline.client.command import (
    CANNOT_START,
    NOT_RUN_STATUS,
    CommandFailed,
    CommandNotRun,
    misspelt,
)
from trioline.client.item import Item, Raw
from trioline.config import MAX_LINE_BYTES, MAX_TEXT_CHARS

MAX_STDERR_BYTES = 4 * MAX_TEXT_CHARS
"""Kept of what a process said last."""


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
            raise misspelt(command, str(failure)) from failure
        has_run = True
        return result

    yield answer


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
