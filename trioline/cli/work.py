"""``trioline work``."""

from __future__ import annotations

import logging
import math
import os
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import attrs
import click
import trio

from trioline.cli import logs
from trioline.cli.children import EXIT_SENT_HOME, run_until_signal, worker_command
from trioline.cli.functions import load_function
from trioline.cli.main import EXIT_DONE, EXIT_STOPPED
from trioline.cli.options import (
    ADDRESS_ENVIRONMENT,
    Seconds,
    log_format_option,
    read_token,
    text_option,
    token_option,
    work_options,
)
from trioline.cli.signals import Stops
from trioline.client.each import each_function
from trioline.client.pool import exec_function
from trioline.client.worker import WorkerSummary, run_worker
from trioline.config import Address
from trioline.errors import UsageError
from trioline.ops.progress import duration

log = logging.getLogger("trioline.cli")


@click.command("work")
@click.argument("targets", nargs=-1, metavar="ADDRESS [MODULE:FUNCTION]")
@work_options
@text_option
@click.option(
    "--processes",
    "-j",
    type=click.IntRange(1, 4096),
    default=1,
    show_default=True,
    help="How many worker processes to run.",
)
@click.option(
    "--give-up",
    metavar="SECONDS",
    type=Seconds(0, 1e9),
    default=60.0,
    show_default=True,
    help="End with an error after so long without a connection.",
)
@token_option
@click.option("--name", help="For status and logs.  [default: HOST:PID]")
@click.option(
    "--drain",
    "worker_drain",
    metavar="SECONDS",
    type=Seconds(0, 1e9),
    default=5.0,
    show_default=True,
    help="How long a line that is being worked on may go on after a signal.",
)
@log_format_option
@click.option("--quiet", is_flag=True, help="No summary: only what is wrong.")
@click.option("--child", is_flag=True, hidden=True)
def work_command(targets: tuple[str, ...], **options: Any) -> int:  # noqa: ANN401 - click's values
    """Work on the lines of the server at ADDRESS, until the job is complete.

    Before that it goes home when it is told to (trioline drain) or when its deadline is near.

    ADDRESS: host:port, tcp://…, unix:PATH or @FILE; TRIOLINE_ADDRESS where it is left out.

    MODULE:FUNCTION is called with an Item (id, data, line, raw, attempt) and returns the result.
    It may be async; if not, it is called in threads. An exception is a failed attempt, no more.

    Exit codes: 0 the job is complete or this worker was sent home, 4 ended by a signal, 2 usage,
    1 anything else.
    """
    logs.set_up(options["log_format"], quiet=options["quiet"])
    address, function_name = _find_targets(targets, options)
    work = Work.from_options(address, function_name, options)
    if options["processes"] > 1:
        return trio.run(_run_processes, work, options["processes"], Stops())
    work.load()
    return anyio.run(work.run, Stops(), backend="trio")


def _find_targets(targets: tuple[str, ...], options: dict[str, Any]) -> tuple[str, str | None]:
    has_command = options["exec_command"] is not None or options["each_command"] is not None
    wanted = 1 if has_command else 2
    if len(targets) == wanted - 1 and ADDRESS_ENVIRONMENT in os.environ:
        targets = (os.environ[ADDRESS_ENVIRONMENT], *targets)
    if len(targets) != wanted:
        raise UsageError(
            "Give what does the work: write trioline work ADDRESS MODULE:FUNCTION, or trioline "
            f"work ADDRESS --exec CMD (or --each CMD); this has {_counted(len(targets))} beside "
            "the options."
        )
    Address.parse(targets[0])
    return targets[0], None if has_command else targets[1]


def _counted(count: int) -> str:
    return "1 argument" if count == 1 else f"{count} arguments"


@attrs.frozen(kw_only=True)
class Work:
    """One worker process: what it runs and how."""

    address: str
    function_name: str | None
    exec_command: str | None
    each_command: str | None
    concurrency: int
    batch: int | None
    many: bool
    text: bool
    timeout_seconds: float | None
    deadline: float | None
    name: str | None
    token_file: Path | None
    give_up_seconds: float
    drain_seconds: float
    log_format: str
    quiet: bool
    is_child: bool
    """Whether another trioline started it, which must know whether the job is over."""

    @classmethod
    def from_options(cls, address: str, function_name: str | None, options: dict[str, Any]) -> Work:
        """Check the options of ``work_options``.

        Raises:
            UsageError: They do not go together.
        """
        commands = [options["exec_command"], options["each_command"]]
        if None not in commands:
            raise UsageError("--exec and --each do not go together: one command answers the lines.")
        if any(command is not None and not command.strip() for command in commands):
            raise UsageError("The command is empty: give --exec or --each one that answers lines.")
        if options["many"] and function_name is None:
            raise UsageError("--many goes with MODULE:FUNCTION, not with a command.")
        read_token(options["token_file"])
        return cls(
            address=address,
            function_name=function_name,
            exec_command=options["exec_command"],
            each_command=options["each_command"],
            concurrency=options["concurrency"],
            batch=options["batch"],
            many=options["many"],
            text=options["text"],
            timeout_seconds=options["timeout"],
            deadline=options["deadline"],
            name=options["name"],
            token_file=options["token_file"],
            give_up_seconds=options["give_up"],
            drain_seconds=options["worker_drain"],
            log_format=options["log_format"],
            quiet=options["quiet"],
            is_child=options.get("child", False),
        )

    def load(self) -> None:
        """Import the user's function before anything is leased for it.

        Raises:
            UsageError: It cannot be.
        """
        if self.function_name is not None:
            load_function(self.function_name)

    def arguments(self) -> list[str]:
        """The command line of one more process that does the same."""
        pairs = {
            "--exec": self.exec_command,
            "--each": self.each_command,
            "--concurrency": self.concurrency,
            "--batch": self.batch,
            "--timeout": self.timeout_seconds,
            "--deadline": None if self.deadline is None else _deadline_text(self.deadline),
            "--token-file": self.token_file,
            "--give-up": self.give_up_seconds,
            "--drain": self.drain_seconds,
            "--log-format": self.log_format,
        }
        given = [f"{option}={value}" for option, value in pairs.items() if value is not None]
        flags = {"--many": self.many, "--text": self.text, "--quiet": self.quiet}
        given += [flag for flag, is_set in flags.items() if is_set]
        return given if self.function_name is None else [self.function_name, *given]

    async def run(self, stops: Stops) -> int:
        """Work until the job is complete or a signal comes; returns the exit code."""
        async with self._function() as (function, many), anyio.create_task_group() as tasks:
            stop = anyio.Event()
            tasks.start_soon(_stop_at_signal, stops, stop)
            summary = await run_worker(
                function,
                self.address,
                concurrency=self.concurrency,
                batch=self.batch,
                many=many,
                text=self.text,
                name=self.name,
                deadline=self.deadline,
                # A process that many lines were given to keeps the time for each by itself.
                timeout=None if self.exec_command is not None else self.timeout_seconds,
                token=read_token(self.token_file),
                stop=stop,
                drain_seconds=self.drain_seconds,
                reconnect_seconds=self.give_up_seconds,
            )
            tasks.cancel_scope.cancel()
        _say_summary(summary)
        if summary.reason == "stop":
            return EXIT_STOPPED
        is_over = summary.complete or not self.is_child
        return EXIT_DONE if is_over else EXIT_SENT_HOME

    @asynccontextmanager
    async def _function(self) -> AsyncIterator[tuple[Callable[..., Any], bool]]:
        if self.exec_command is not None:
            async with exec_function(
                self.exec_command, answer_seconds=self.timeout_seconds
            ) as answer_blocks:
                yield answer_blocks, False
        elif self.each_command is not None:
            async with each_function(self.each_command) as answer:
                yield answer, False
        else:
            assert self.function_name is not None
            yield load_function(self.function_name), self.many


async def _stop_at_signal(stops: Stops, stop: anyio.Event) -> None:
    with stops.heard() as signals:
        async for _ in signals:
            if stop.is_set():
                os._exit(EXIT_STOPPED)  # the server takes the leases back by itself
            stop.set()


async def _run_processes(work: Work, count: int, stops: Stops) -> int:
    name = work.name or f"{socket.gethostname()}:{os.getpid()}"
    commands = [
        worker_command(work.address, work.arguments(), f"{name}-{number}")
        for number in range(1, count + 1)
    ]
    return await run_until_signal(commands, work.drain_seconds, stops)


_SENT_HOME = "the server sent this worker home before the end of the job"
_ENDS: dict[str | None, str] = {
    "stop": "stopped before the end of the job",
    "drain": "drained before the end of the job, as the server was asked to",
    "deadline": "left before the end of the job, as its deadline is near",
}


def _deadline_text(deadline: float) -> str:
    return "none" if math.isinf(deadline) else f"{deadline:.3f}"


def _say_summary(summary: WorkerSummary) -> None:
    failed = f", {summary.failed:,} attempts failed" if summary.failed else ""
    end = "the job is complete" if summary.complete else _ENDS.get(summary.reason, _SENT_HOME)
    log.info(
        "%s lines done%s in %s; %s.", f"{summary.done:,}", failed, duration(summary.seconds), end
    )
