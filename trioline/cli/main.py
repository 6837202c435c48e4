"""``trioline``: the commands by name, and how every error ends.

Commands are imported when they are called, so that ``--help`` and ``--version`` are quick.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import signal
import sys
from collections.abc import Iterator
from types import FrameType

import click

from trioline._version import __version__
from trioline.errors import StorageError, TriolineError, UsageError

EXIT_DONE = 0
EXIT_OTHER = 1
EXIT_USAGE = 2
EXIT_REJECTED = 3
EXIT_STOPPED = 4
EXIT_STORAGE = 74
"""As sysexits.h has it: an input or output error."""

COMMANDS = {
    "serve": ("trioline.cli.serve", "Hand out the lines of INPUT; write the answers to OUTPUT."),
    "work": ("trioline.cli.work", "Work on the lines of the server at ADDRESS."),
    "run": ("trioline.cli.run", "Serve and work on this machine, in one command."),
    "verify": ("trioline.cli.verify", "Prove that OUTPUT answers INPUT, line by line."),
    "retry": ("trioline.cli.retry", "Run only the rejected lines of a finished job again."),
    "status": ("trioline.cli.control", "Show how the job at ADDRESS stands."),
    "set": ("trioline.cli.control", "Change settings of the running job at ADDRESS."),
    "drain": ("trioline.cli.control", "Send a worker of the job at ADDRESS home."),
    "repair": ("trioline.cli.repair", "Save what can be saved of a damaged job's files."),
    "doctor": ("trioline.cli.doctor", "Say what the file system at PATH can promise."),
}


class Commands(click.Group):
    """Knows every command's name and one line of help without importing it."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """In the order in which people meet them."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the command."""
        if cmd_name not in COMMANDS:
            return None
        command = getattr(importlib.import_module(COMMANDS[cmd_name][0]), f"{cmd_name}_command")
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List them without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, help_text) for name, (_, help_text) in COMMANDS.items()])


@click.group(
    cls=Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Each command has its own --help. README.md and protocol.md tell the rest.",
)
@click.version_option(__version__, message="trioline %(version)s")
def commands() -> None:
    """Lease the lines of one large file to any number of workers; get the answers in order.

    \b
    trioline serve prompts.jsonl answers.jsonl            on one machine
    trioline work HOST:7766 mymodule:myfunction           on any others
    """


def main() -> None:
    """Run the command line and leave with its exit code.

    Where nothing better is done about SIGTERM it is what SIGINT is; and once the exit code is
    known, neither changes it any more.
    """
    end_at(signal.SIGTERM)
    code = EXIT_STOPPED
    with contextlib.suppress(KeyboardInterrupt):
        code = run(sys.argv[1:])
        _ignore_signals()
    _ignore_signals()
    sys.exit(code)


def end_at(*numbers: signal.Signals) -> None:
    """Let signals end the command with 4, by KeyboardInterrupt."""
    for number in numbers:
        signal.signal(number, _interrupt)


def _interrupt(_number: int, frame: FrameType | None) -> None:
    """Raise KeyboardInterrupt, once: a second one would come in the midst of what the first does.

    While trio's loop runs, its own handler of SIGINT knows where one may be raised. It is only
    called: what a script starts with ``&`` has SIGINT ignored.
    """
    handler = signal.getsignal(signal.SIGINT)
    _ignore_signals()
    if callable(handler) and handler != _interrupt:
        handler(signal.SIGINT, frame)
    else:
        raise KeyboardInterrupt


def _ignore_signals() -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def run(arguments: list[str]) -> int:
    """Run one command.

    Returns:
        The exit code; what went wrong stands on stderr, one sentence each.
    """
    try:
        code = commands.main(args=arguments, prog_name="trioline", standalone_mode=False)
    except click.exceptions.Abort:
        return EXIT_STOPPED
    except click.UsageError as error:
        error.show()
        return EXIT_USAGE
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except KeyboardInterrupt:
        return EXIT_STOPPED
    except BrokenPipeError:  # as in: trioline status | head -1
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_OTHER
    except (TriolineError, BaseExceptionGroup) as error:
        return report(error)
    return code if isinstance(code, int) else EXIT_DONE


def report(error: BaseException) -> int:
    """Say on stderr what went wrong.

    Raises:
        BaseException: ``error`` itself, where it is none of ours: a bug keeps its traceback.

    Returns:
        The exit code for it.
    """
    leaves = list(_leaves(error))
    ours = [leaf for leaf in leaves if isinstance(leaf, TriolineError)]
    if all(isinstance(leaf, KeyboardInterrupt) for leaf in leaves):
        return EXIT_STOPPED
    if len(ours) < len(leaves):
        raise error
    for text, is_usage in {str(leaf): isinstance(leaf, UsageError) for leaf in ours}.items():
        _complain(text, has_time=not is_usage)
    if any(isinstance(leaf, StorageError) for leaf in ours):
        return EXIT_STORAGE
    return EXIT_USAGE if any(isinstance(leaf, UsageError) for leaf in ours) else EXIT_OTHER


def _complain(text: str, *, has_time: bool) -> None:
    import logging  # here, so that --help is quick

    if logging.getLogger().handlers:
        # In the format that was asked for. A command that never began needs no time of day.
        logging.getLogger("trioline.cli").error("%s", text, extra={"has_time": has_time})
    else:
        click.echo(f"trioline: {text}", err=True)


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from _leaves(inner)
    else:
        yield error
