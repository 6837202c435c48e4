"""``trioline run``: the server and its workers on one machine."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

import attrs
import click

from trioline.cli import logs
from trioline.cli.children import run_workers, worker_command
from trioline.cli.functions import load_function
from trioline.cli.main import EXIT_DONE, EXIT_OTHER
from trioline.cli.meeting import meeting_folder
from trioline.cli.options import (
    end_options,
    job_options,
    lease_options,
    listen_options,
    local_work_options,
    work_options,
)
from trioline.cli.serving import Companion, Service, serve_job, service_from
from trioline.cli.work import Work
from trioline.config import Address
from trioline.errors import TriolineError, UsageError
from trioline.server.app import Server

ORPHAN_SECONDS = 5.0
"""Workers whose server was killed end after so long: they have nobody else to work for."""


@click.command("run")
@job_options
@local_work_options
@work_options
@listen_options
@lease_options
@end_options
def run_command(**options: Any) -> int:  # noqa: ANN401 - click's values
    """Serve INPUT to OUTPUT and work on it with processes of this machine.

    The options are those of serve and work; more workers may join where --port or --unix says.
    The server and its workers meet on a Unix socket that nobody else can open.

    Exit codes: as serve.
    """
    logs.set_up(options["log_format"], quiet=options["quiet"])
    return serve_and_work(options, serve_job)


Serve = Callable[[Service, Companion], int]
"""Serves, with a companion beside it; returns the exit code."""


def has_command(options: dict[str, Any]) -> bool:
    """Whether --exec or --each is given."""
    return options["exec_command"] is not None or options["each_command"] is not None


def serve_and_work(options: dict[str, Any], serve: Serve) -> int:
    """Serve with worker processes beside it.

    Returns:
        The exit code of ``serve``.

    Raises:
        UsageError: Not exactly one kind of work is given.
        TriolineError: The workers ended before the job did, or as ``serve`` does.
    """
    if has_command(options) == (options["function_name"] is not None):
        raise UsageError("Give what does the work: MODULE:FUNCTION, --exec CMD or --each CMD.")
    if options["unix"] is not None:
        return _run(options, serve)
    with meeting_folder() as folder:
        options["unix"] = folder / "socket"
        return _run(options, serve)


def _run(options: dict[str, Any], serve: Serve) -> int:
    # Whoever waits for the line has a serve; here the workers know already.
    service = attrs.evolve(service_from(options), is_announced=not options["quiet"])
    address = str(Address(path=str(options["unix"])))
    worker = {
        **options,
        "name": None,
        "worker_drain": options["drain"],
        "give_up": ORPHAN_SECONDS,
        "quiet": True,
    }
    workers = Workers(Work.from_options(address, options["function_name"], worker), options["jobs"])
    if options["function_name"] is not None:
        load_function(options["function_name"])  # a mistake in it is said once, and at once
    code = serve(service, workers.run)
    if workers.failed and workers.is_complete:
        raise TriolineError("A worker failed although the job is complete: see what it said.")
    if workers.is_sent_home:
        raise TriolineError(
            "All workers were sent home before the job was done; the same command goes on."
        )
    if workers.failed:
        raise TriolineError(
            f"All workers ended before the job did (exit code {workers.failed}); "
            "the same command goes on."
        )
    return code


@attrs.define
class Workers:
    """The worker processes of one run."""

    work: Work
    count: int | None
    failed: int = EXIT_DONE
    """The exit code with which they ended before the job did, or in spite of it; else 0."""
    is_complete: bool = False
    """Whether the job was when they ended."""
    is_sent_home: bool = False
    """Whether they ended well before the job did: drained, or near their deadline."""

    async def run(self, server: Server, addresses: Sequence[Address]) -> None:
        """Run them; when they have ended, there is nothing left to serve for."""
        del addresses  # they meet on the Unix socket
        commands = [
            worker_command(self.work.address, self.work.arguments(), f"worker-{number}")
            for number in range(1, (self.count or os.cpu_count() or 1) + 1)
        ]
        # The server drains; once it has ended, whatever its workers still do is of no use.
        code = await run_workers(commands, drain_seconds=0)
        self.is_complete = server.snapshot().state == "complete"
        if not self.is_complete:
            self.failed = code or EXIT_OTHER
            self.is_sent_home = code == EXIT_DONE
        elif code == EXIT_OTHER:  # it said why: its answers may be wrong
            self.failed = code
        server.stop()
