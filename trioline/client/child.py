"""A child process on two pipes, for async code: runs under trio and asyncio.

Made of ``subprocess`` and non-blocking pipes rather than of ``anyio.open_process``, because a
pipe must be looked into without waiting: whatever lies in it before a line was given is a
mistake that has to be found.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import subprocess
from collections.abc import Mapping

import anyio

PIPE_BYTES = 1024 * 1024
"""Asked of the system for each pipe, and read from it at a time: fewer turns for large batches."""
EXIT_SECONDS = 2.0
"""For a child to end once its input has ended; then it is killed."""
FIRST_LOOK_SECONDS = 0.0005
MAX_LOOK_SECONDS = 0.05
"""How often it is looked whether a child has ended: soon at first, as most have."""
F_SETPIPE_SZ = 1031


class Child:
    """``/bin/sh -c command`` in a process group of its own.

    Its own group, so that ending it ends what it has started, and so that Ctrl-C ends the worker,
    which lets the child finish its line.

    Args:
        command: For ``/bin/sh``.
        environment: Variables on top of the worker's own.
        with_stderr: Whether stderr is to be read; else it goes where the worker's goes.
    """

    def __init__(
        self,
        command: str,
        *,
        environment: Mapping[str, str] | None = None,
        with_stderr: bool = False,
    ) -> None:
        self._process = subprocess.Popen(
            ["/bin/sh", "-c", command],
            bufsize=0,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE if with_stderr else None,
            env={**os.environ, **(environment or {})},
            start_new_session=True,
        )
        for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
            if pipe is not None:
                os.set_blocking(pipe.fileno(), False)
                _widen(pipe.fileno())

    async def feed(self, data: bytes) -> None:
        """Write to its stdin; a child that does not read it any more is no error.

        **Cancellation**: part of it may be written.
        """
        if self._process.stdin is None or self._process.stdin.closed:
            return
        number = self._process.stdin.fileno()
        rest = memoryview(data)
        while rest:
            try:
                rest = rest[os.write(number, rest) :]
            except BlockingIOError:
                await anyio.wait_writable(number)
            except BrokenPipeError:
                return

    def end_input(self) -> None:
        """Close its stdin. Idempotent."""
        if self._process.stdin is not None:
            self._process.stdin.close()

    async def read(self) -> bytes:
        """Read from its stdout; empty at the end.

        **Cancellation**: nothing was read.
        """
        if self._process.stdout is None:
            return b""
        return await _read(self._process.stdout.fileno())

    async def read_stderr(self) -> bytes:
        """Read from its stderr; empty at the end.

        **Cancellation**: nothing was read.
        """
        if self._process.stderr is None:
            return b""
        return await _read(self._process.stderr.fileno())

    def peek(self) -> bytes | None:
        """Read its stdout without waiting; empty at the end, None where nothing lies in it."""
        if self._process.stdout is None:
            return b""
        try:
            return os.read(self._process.stdout.fileno(), PIPE_BYTES)
        except BlockingIOError:
            return None

    def kill(self) -> str:
        """End it and all that it has started, at once.

        Returns:
            How it ended, as words.

        **Closing**: its pipes are closed and it is reaped. Idempotent.
        """
        if self._process.returncode is None:  # once it is reaped, its number may be another's
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()  # it is dead: reaping it takes no time
        for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
            if pipe is not None:
                pipe.close()
        return _exit_words(self._process.returncode)

    async def aclose(self) -> str:
        """End its input, wait until it has ended, kill it where it does not.

        Returns:
            How it ended, as words.

        **Cancellation**: it is killed.

        **Closing**: as ``kill``, whatever happens. Idempotent.
        """
        self.end_input()
        try:
            with anyio.move_on_after(EXIT_SECONDS):
                await self._wait_ended()
        finally:
            words = self.kill()  # also what it may have left behind in its group
        return words

    async def _wait_ended(self) -> None:
        pause = FIRST_LOOK_SECONDS
        while not self._has_ended():
            await anyio.sleep(pause)
            pause = min(2 * pause, MAX_LOOK_SECONDS)

    def _has_ended(self) -> bool:
        """Whether it has ended; looking does not reap it, so that its group can still be killed."""
        if self._process.returncode is not None:
            return True
        options = os.WEXITED | os.WNOHANG | os.WNOWAIT
        try:
            return os.waitid(os.P_PID, self._process.pid, options) is not None
        except ChildProcessError:  # SIGCHLD is ignored here: the system has reaped it
            return True


def _widen(number: int) -> None:
    with contextlib.suppress(OSError):  # not on this system, or over the user's quota
        fcntl.fcntl(number, F_SETPIPE_SZ, PIPE_BYTES)


async def _read(number: int) -> bytes:
    while True:
        await anyio.wait_readable(number)
        with contextlib.suppress(BlockingIOError):
            return os.read(number, PIPE_BYTES)


def _exit_words(status: int) -> str:
    if status >= 0:
        return f"exit status {status}"
    try:
        return f"signal {-status} ({signal.Signals(-status).name})"
    except ValueError:
        return f"signal {-status}"
