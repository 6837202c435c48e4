"""One long-lived process that answers lines."""

from __future__ import annotations

import logging

import anyio
import attrs

from trioline.client.blocks import Answers, Block
from trioline.client.child import EXIT_SECONDS, Child
from trioline.client.command import CommandFailed
from trioline.client.item import failure_of
from trioline.config import MAX_BLOCK_BYTES
from trioline.newlines import count_newlines

logger = logging.getLogger("trioline.worker")

FIRST_ANSWER_SECONDS = 30.0
"""A command that has not answered its first line by then is warned about: it may be loading a
model, or it buffers its output and would never answer."""
ENDED = "the command ended"


class Filter:
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
        """Whether it has ended."""
        return self.ending is not None

    @property
    def lived_seconds(self) -> float:
        """How long ago it was started."""
        return anyio.current_time() - self._began_at

    async def answer(self, block: Block) -> Answers:
        """Give it lines and read as many back, both at once, so that no full pipe stops either."""
        unasked = self._child.peek()
        if unasked:
            return self._out_of_step(block.count, unasked)
        if unasked is not None:
            return await self._failed(Answers(0, b""), ENDED)
        count, output, problem = 0, b"", None
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._child.feed, block.body)
            count, output, problem = await self._read_lines(block.count)
            tasks.cancel_scope.cancel()
        # Mostly there is nothing behind the last newline.
        end = output.rfind(b"\n") + 1
        if count > block.count:
            end = len(output) - len(output.split(b"\n", block.count)[-1])
        if count >= block.count and (unasked := output[end:] or self._child.peek()):
            return self._out_of_step(block.count, unasked)
        answers = Answers(count, output[:end])
        if problem is not None:
            return await self._failed(answers, problem, is_short=count < block.count)
        self._has_answered = True
        return answers

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

    async def _read_lines(self, count: int) -> tuple[int, bytes, str | None]:
        """Read so many lines and what comes with them; how many, and why where they are fewer."""
        pieces: list[bytes] = []
        newlines = size = 0
        problem = None
        while newlines < count and problem is None:
            data = await self._read_some()
            newlines += count_newlines(data or b"")
            size += len(data or b"")
            pieces.append(data or b"")
            if data is None:
                problem = f"the command printed nothing for {self._answer_seconds:g} seconds"
            elif not data:
                problem = ENDED
            elif size > MAX_BLOCK_BYTES:
                problem = f"the command printed more than {MAX_BLOCK_BYTES} bytes"
        return newlines, b"".join(pieces), problem

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

    async def _failed(self, answers: Answers, problem: str, *, is_short: bool = True) -> Answers:
        """Blame the first line without an answer, and only that one."""
        self.ending = await self._child.aclose() if problem == ENDED else self._child.kill()
        failure = failure_of(CommandFailed(f"{problem} ({self.ending})"))
        return attrs.evolve(answers, failures=[failure] if is_short else [])

    def _out_of_step(self, count: int, unasked: bytes) -> Answers:
        """Fail them all: which of its lines was the surplus one cannot be told."""
        self.kill()
        self._count_surplus(unasked)
        shown = unasked[:80].decode("utf-8", "replace")
        text = f"the command must print one line for each line it reads, but printed also {shown!r}"
        return Answers(0, b"", [failure_of(CommandFailed(f"{text} ({self.ending})"))] * count)

    def _count_surplus(self, data: bytes) -> None:
        if not self._has_answered:
            return  # no answer was taken that could be a wrong one
        self.surplus_count += count_newlines(data) - self._is_within_surplus
        self._is_within_surplus = not data.endswith(b"\n")
        self.surplus_count += self._is_within_surplus
