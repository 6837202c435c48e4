"""Worker processes of one command: started, watched, restarted when killed, ended with it."""

from __future__ import annotations

import logging
import signal
import subprocess
import sys
from collections.abc import Sequence

import trio

from trioline.cli.main import EXIT_DONE, EXIT_STOPPED
from trioline.cli.signals import Stops

log = logging.getLogger("trioline.cli")

EXIT_SENT_HOME = 5
"""Of such a worker only: the server sent it home, and the job goes on without it."""
RESTART_SECONDS = 1.0
"""Before a killed worker is started anew: what killed it may need a moment."""
LATE_SECONDS = 5.0
"""Once one worker heard that the job is complete: one that was just starting may find nobody."""
END_SECONDS = 3.0
"""Beyond its drain, for a worker that was told to end, until it is killed."""


OWN_CODES = frozenset({0, 1, 2, 3, 4, 5, 74})
"""What a worker itself ends with; any other code is its function's doing."""


def worker_command(address: str, arguments: Sequence[str], name: str) -> list[str]:
    """The command of one worker process."""
    return [
        sys.executable,
        "-m",
        "trioline",
        "work",
        address,
        *arguments,
        "--child",
        "--name",
        name,
    ]


async def run_workers(commands: Sequence[Sequence[str]], drain_seconds: float) -> int:
    """Run worker processes until all have ended.

    A worker that was killed (out of memory, say), or that its function ended (``os._exit``), is
    started anew; one that ended by itself is not, sent home or done. When one has seen the job's
    end, the others have a moment to see it, too.

    Returns:
        0 where all ended well, else the first other exit code.

    Cancellation: all are told to end (SIGTERM), and killed when they do not within
    ``drain_seconds`` and a bit.
    """
    codes: list[int] = []

    async def keep_running(command: Sequence[str], scope: trio.CancelScope) -> None:
        while EXIT_DONE not in codes:
            code = await _run(command, drain_seconds)
            if code in OWN_CODES:
                codes.append(code)
                if code == EXIT_DONE:
                    scope.deadline = min(scope.deadline, trio.current_time() + LATE_SECONDS)
                return
            log.warning("%s %s; starting it again.", command[-1], _how_it_ended(code))
            await trio.sleep(RESTART_SECONDS)

    async with trio.open_nursery() as nursery:
        for command in commands:
            nursery.start_soon(keep_running, command, nursery.cancel_scope)
    return next((code for code in codes if code not in (EXIT_DONE, EXIT_SENT_HOME)), EXIT_DONE)


async def run_until_signal(
    commands: Sequence[Sequence[str]], drain_seconds: float, stops: Stops
) -> int:
    """Run worker processes until all have ended, or a signal ends them.

    Returns:
        As ``run_workers``; 4 after a signal.
    """
    code = EXIT_STOPPED
    with stops.heard() as signals:
        async with trio.open_nursery() as nursery:

            async def end_at_signal() -> None:
                async for _ in signals:
                    nursery.cancel_scope.cancel()

            nursery.start_soon(end_at_signal)
            code = await run_workers(commands, drain_seconds)
            nursery.cancel_scope.cancel()
    return code


async def _run(command: Sequence[str], drain_seconds: float) -> int:
    async def end(process: trio.Process) -> None:
        process.terminate()
        with trio.move_on_after(drain_seconds + END_SECONDS):
            await process.wait()
        process.kill()

    # In a session of its own: the terminal's Ctrl-C goes to the parent, which decides.
    completed: subprocess.CompletedProcess[bytes] = await trio.run_process(
        command, check=False, deliver_cancel=end, start_new_session=True
    )
    return completed.returncode


def _how_it_ended(code: int) -> str:
    if code < 0:
        return f"was killed by {signal.Signals(-code).name}"
    return f"was ended by its function with code {code}"
