"""What workers that are shell commands have in common."""

from __future__ import annotations

from trioline.client.item import GiveUp
from trioline.errors import TriolineError

NOT_RUN_STATUS = ("exit status 126", "exit status 127")
"""The shell's words for a command that cannot be executed, and for one that is not there."""
CANNOT_START = (FileNotFoundError, NotADirectoryError, PermissionError)


class CommandFailed(Exception):
    """A command did not answer a line as it should; its text says how."""


class CommandNotRun(CommandFailed):
    """The shell could not find or execute what it was to run."""


class CommandOutOfStep(TriolineError):
    """A command printed more lines than it was given, and some of its answers were taken."""


def misspelt(command: str, problem: str) -> GiveUp:
    """The end of a worker whose command cannot be run."""
    return GiveUp(
        f"The command {command!r} cannot be run ({problem}). All lines were given back: mend the "
        "command and start the worker again."
    )
