"""``trioline retry``."""

from __future__ import annotations

import contextlib
import logging
from typing import Any

import attrs
import click

from trioline.cli import logs
from trioline.cli.main import EXIT_DONE, EXIT_REJECTED, EXIT_STOPPED, end_at
from trioline.cli.options import (
    end_options,
    kept_job_options,
    lease_options,
    listen_options,
    local_work_options,
    work_options,
)
from trioline.cli.room import when_there_is_room
from trioline.cli.run import has_command, serve_and_work
from trioline.cli.serving import Companion, Service, serve_job, service_from
from trioline.cli.signals import STOPS
from trioline.storage.retry.retry import Retry

log = logging.getLogger("trioline.cli")


@click.command("retry")
@kept_job_options
@local_work_options
@work_options
@listen_options
@lease_options
@end_options
def retry_command(**options: Any) -> int:  # noqa: ANN401 - click's values
    """Run only the rejected lines of a finished job again.

    Their results take the places of the placeholders in OUTPUT; OUTPUT.rejected keeps those that
    failed again. Attempts are counted anew. Until the end the finished job stays as it was; stopped
    or killed at any moment, the same command goes on where it was.

    The workers come as to serve; with MODULE:FUNCTION, --exec or --each they are started here, as
    by run. Line numbers are those of INPUT.

    Exit codes: 0 no line is rejected any more, 3 some still are; else as serve.
    """
    logs.set_up(options["log_format"], quiet=options["quiet"])
    if options["function_name"] is not None or has_command(options):
        return serve_and_work(options, retry_job)
    return retry_job(service_from(options))


def retry_job(service: Service, companion: Companion | None = None) -> int:
    """Serve the rejected lines of a finished job, then put their results in their places.

    Returns:
        The exit code.

    Raises:
        TriolineError: As ``Retry.open`` and ``serve_job`` do, possibly in exception groups.
    """
    with contextlib.closing(when_there_is_room(lambda: Retry.open(service.job))) as retry:
        if retry.warning is not None:
            log.warning("%s", retry.warning)
        if not retry.line_count:
            log.info("%s has no rejected lines: there is nothing to retry.", service.job.output)
            return EXIT_DONE
        if not retry.is_served:
            again = attrs.evolve(service, job=retry.settings, numbers=retry.numbers)
            if serve_job(again, companion) == EXIT_STOPPED:
                return EXIT_STOPPED
        end_at(*STOPS)  # serving has made them mean nothing
        log.info("Putting the results of %s lines in their places.", f"{retry.line_count:,}")
        rejected = when_there_is_room(retry.put_in_place)
    if not rejected:
        log.info("No line of %s is rejected any more.", service.job.output)
        return EXIT_DONE
    log.info("%s lines failed again: see %s.", f"{rejected:,}", service.job.rejected)
    return EXIT_REJECTED
