"""``trioline serve``."""

from __future__ import annotations

from typing import Any

import click

from trioline.cli import logs
from trioline.cli.options import (
    end_options,
    job_options,
    lease_options,
    listen_options,
)
from trioline.cli.serving import serve_job, service_from


@click.command("serve")
@job_options
@listen_options
@lease_options
@end_options
def serve_command(**options: Any) -> int:  # noqa: ANN401 - click's values
    """Hand out the lines of INPUT to workers; write their answers to OUTPUT, in order.

    The nth line of OUTPUT answers the nth line of INPUT. Stopped or killed at any moment, the
    same command goes on where it was. Lines that cannot be done have a placeholder in OUTPUT
    and a full record in OUTPUT.rejected.

    Exit codes: 0 all lines done, 3 some rejected, 4 stopped before the end (resumable),
    74 storage failure, 2 usage, 1 anything else.
    """
    logs.set_up(options["log_format"], quiet=options["quiet"])
    return serve_job(service_from(options))
