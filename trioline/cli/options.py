"""Options that several commands have, and settings made from them."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import click

from trioline.cli.deadline import Deadline
from trioline.config import (
    DEFAULT_HOST,
    DEFAULT_PORT,
    HEDGE,
    MAX_BATCH,
    MAX_HELD_LINES,
    MAX_LINE_BYTES,
    Fsync,
    JobSettings,
    LeaseSettings,
    ServerSettings,
    behind_links,
    converter,
    default_rejected,
)
from trioline.errors import UsageError

P = ParamSpec("P")
R = TypeVar("R")

TOKEN_ENVIRONMENT = "TRIOLINE_TOKEN_FILE"
ADDRESS_ENVIRONMENT = "TRIOLINE_ADDRESS"
MAX_TOKEN_BYTES = 4_096


def _stack(*decorators: Callable[[Any], Any]) -> Callable[[Callable[P, R]], Callable[P, R]]:
    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        return functools.reduce(lambda inner, outer: outer(inner), reversed(decorators), function)

    return decorate


class Seconds(click.FloatRange):
    """A duration that is a number: of nan no range says that it is not in it."""

    def convert(
        self,
        value: Any,  # noqa: ANN401 - as in click
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> Any:  # noqa: ANN401
        """Take a number, and only that."""
        seconds = super().convert(value, param, ctx)
        if math.isnan(seconds):
            self.fail(f"{value!r} is not a number of seconds.", param, ctx)
        return seconds


log_format_option = click.option(
    "--log-format",
    type=click.Choice(["text", "json"]),
    default="text",
    show_default=True,
    help="How lines on stderr look.",
)

text_option = click.option(
    "--text", is_flag=True, help="Lines are text, not JSON: any line is a result."
)

kept_job_options = _stack(
    click.argument("input_path", metavar="INPUT", type=click.Path(path_type=Path)),
    click.argument("output_path", metavar="OUTPUT", type=click.Path(path_type=Path)),
    text_option,
    click.option(
        "--placeholder",
        metavar="JSON",
        help="Stands in OUTPUT for a rejected line.  [default: null; an empty line with --text]",
    ),
    click.option(
        "--rejected",
        "rejected_path",
        metavar="PATH",
        type=click.Path(path_type=Path),
        help="Full records of rejected lines.  [default: OUTPUT.rejected]",
    ),
    click.option(
        "--fsync",
        type=click.Choice([policy.value for policy in Fsync]),
        default=Fsync.ALWAYS.value,
        show_default=True,
        help="A result is acknowledged when it is on the disk (always: survives power loss), or "
        "when the system has it (survives kill -9), synced each second or when it likes.",
    ),
    click.option(
        "--max-line",
        metavar="BYTES",
        type=int,
        default=MAX_LINE_BYTES,
        show_default=True,
        help="The longest line or message; longer input lines are rejected.",
    ),
)
"""For a job that is there."""

job_options = _stack(
    kept_job_options,
    click.option(
        "--fresh", is_flag=True, help="Throw this OUTPUT's answers so far away; begin anew."
    ),
)

lease_options = _stack(
    click.option(
        "--lease-timeout",
        metavar="SECONDS",
        type=float,
        default=900.0,
        show_default=True,
        help="A worker that is silent for so long loses its lines.",
    ),
    click.option(
        "--max-attempts",
        type=int,
        default=3,
        show_default=True,
        help="Failures after which a line is rejected.",
    ),
    click.option(
        "--max-losses",
        type=int,
        default=10,
        show_default=True,
        help="Workers a line may take down, when it was leased alone, before it is rejected.",
    ),
    click.option(
        "--retry-delay",
        metavar="SECONDS",
        type=float,
        default=0.0,
        show_default=True,
        help="How long a failed line waits for its next attempt, doubled each time; at least a "
        "second before the third and the last one.",
    ),
    click.option(
        "--grace",
        metavar="SECONDS",
        type=float,
        default=10.0,
        show_default=True,
        help="How long a dropped worker's lines wait for it to come back.",
    ),
    click.option(
        "--window",
        metavar="LINES",
        type=int,
        default=1_000_000,
        show_default=True,
        help="How far the work may run ahead of the first unanswered line.",
    ),
    click.option(
        "--hedge",
        metavar="FACTOR",
        type=float,
        default=HEDGE,
        show_default=True,
        help="With nothing else to give, an idle worker gets a copy of what takes so many times as "
        "long as the rest; 0: never.",
    ),
    click.option(
        "--halt",
        metavar="SHARE%/LINES",
        default="50%/200",
        show_default=True,
        help="When so many of the last lines failed, only one is tried each half minute until one "
        "succeeds; never: not at all.",
    ),
    click.option(
        "--max-held",
        metavar="LINES",
        type=int,
        default=MAX_HELD_LINES,
        show_default=True,
        help="Lines that one worker may hold, over all its connections.",
    ),
)

end_options = _stack(
    click.option(
        "--linger",
        metavar="SECONDS",
        type=float,
        default=2.0,
        show_default=True,
        help="How long to go on telling workers that the job is complete; 0: some may not hear it.",
    ),
    click.option(
        "--drain",
        metavar="SECONDS",
        type=float,
        default=10.0,
        show_default=True,
        help="How long to wait at the first signal for results that are on their way.",
    ),
    log_format_option,
    click.option("--quiet", is_flag=True, help="No progress and no summary: only what is wrong."),
)

listen_options = _stack(
    click.option("--host", default=DEFAULT_HOST, show_default=True, help="Where to listen."),
    click.option(
        "--port", type=int, help=f"0: any free.  [default: {DEFAULT_PORT}; none with --unix, `run`]"
    ),
    click.option(
        "--unix",
        metavar="PATH",
        type=click.Path(path_type=Path),
        help="Listen on a Unix socket, which only this user can open.",
    ),
    click.option(
        "--token-file",
        type=click.Path(path_type=Path),
        envvar=TOKEN_ENVIRONMENT,
        show_envvar=True,
        help="Its content is a secret that every worker must show.",
    ),
    click.option(
        "--address-file",
        metavar="FILE",
        type=click.Path(path_type=Path),
        help="Write the address there, for workers to be given as @FILE.",
    ),
)

token_option = click.option(
    "--token-file",
    type=click.Path(path_type=Path),
    envvar=TOKEN_ENVIRONMENT,
    show_envvar=True,
    help="The server's secret.",
)


local_work_options = _stack(
    click.argument("function_name", metavar="[MODULE:FUNCTION]", required=False),
    click.option(
        "--jobs",
        "-j",
        type=click.IntRange(1, 4096),
        help="How many worker processes.  [default: one for each core]",
    ),
)
"""For workers on the server's machine, beside ``work_options``."""

work_options = _stack(
    click.option(
        "--exec",
        "exec_command",
        metavar="CMD",
        help="One long-lived process answers: each line on its stdin, its result on stdout.",
    ),
    click.option(
        "--each",
        "each_command",
        metavar="CMD",
        help="A process a line: the line on stdin, the result on stdout, status 0.",
    ),
    click.option(
        "--concurrency",
        type=click.IntRange(1, 100_000),
        default=1,
        show_default=True,
        help="Lines worked on at a time, in each process.",
    ),
    click.option(
        "--batch",
        type=click.IntRange(1, MAX_BATCH),
        help="Lines leased at a time.  [default: about a second of work]",
    ),
    click.option(
        "--timeout",
        metavar="SECONDS",
        type=Seconds(0.001, 1e9),
        help="A line without a result for so long is a failed attempt.  [default: none]",
    ),
    click.option(
        "--deadline",
        metavar="WHEN",
        type=Deadline(),
        help="When this worker will be killed: Unix time, ISO time, or from now, as in 2h30m.  "
        "[default: SLURM_JOB_END_TIME]",
    ),
    click.option("--many", is_flag=True, help="FUNCTION takes a list of items and returns a list."),
)


def read_token(path: Path | None) -> str | None:
    """Read a secret from a file; white space around it does not count.

    Raises:
        UsageError: It cannot be read, is empty or too long.
    """
    if path is None:
        return None
    try:
        token = path.read_bytes()[: MAX_TOKEN_BYTES + 1].decode().strip()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise UsageError(f"The token file {path} cannot be read: {why}.") from error
    if not token or len(token) > MAX_TOKEN_BYTES:
        raise UsageError(
            f"The token file {path} must hold 1 to {MAX_TOKEN_BYTES} characters; "
            "head -c 24 /dev/urandom | base64 > FILE makes a good one."
        )
    return token


def job_settings(options: dict[str, Any]) -> JobSettings:
    """Make the job's settings from the options of ``job_options``.

    Raises:
        UsageError: One of them cannot be used.
    """
    output = behind_links(options["output_path"])
    if output.name in ("", ".."):
        raise UsageError(f"The output {str(output)!r} is a folder: name a file.")
    text: bool = options["text"]
    placeholder = options["placeholder"]
    values = {
        "input": options["input_path"],
        "output": output,
        "text": text,
        "placeholder": _placeholder(placeholder, text=text),
        "rejected": options["rejected_path"] or default_rejected(output),
        "fsync": Fsync(options["fsync"]),
        "fresh": options.get("fresh", False),
        "max_line_bytes": options["max_line"],
    }
    return converter.structure(values, JobSettings)


def _placeholder(given: str | None, *, text: bool) -> bytes:
    if given is None:
        return b"" if text else b"null"
    from trioline.wire.codec import is_json

    placeholder = placeholder_bytes(given)
    if b"\n" in placeholder or not (text or is_json(placeholder)):
        raise UsageError(
            f"--placeholder {given!r} must be one line of JSON, for example null or "
            "'{\"error\":true}'; with --text any line."
        )
    return placeholder


def placeholder_bytes(given: str) -> bytes:
    """Encode a placeholder.

    Raises:
        UsageError: It is not UTF-8: no reader of the output could tell what it is.
    """
    try:
        return given.encode()
    except UnicodeEncodeError as error:
        raise UsageError(f"--placeholder {given!r} is not UTF-8: give one that is.") from error


def lease_settings(options: dict[str, Any]) -> LeaseSettings:
    """Make the lease settings from the options of ``lease_options``."""
    values = {
        "lease_timeout_seconds": options["lease_timeout"],
        "max_attempts": options["max_attempts"],
        "max_losses": options["max_losses"],
        "retry_delay_seconds": options["retry_delay"],
        "grace_seconds": options["grace"],
        "window": options["window"],
        "hedge": options["hedge"],
        "halt": options["halt"],
        "max_held": options["max_held"],
    }
    return converter.structure(values, LeaseSettings)


def server_settings(options: dict[str, Any]) -> ServerSettings:
    """Make the server's settings from the options of ``listen_options`` and ``end_options``."""
    port: int | None = options["port"]
    if port is None and options["unix"] is None:
        port = DEFAULT_PORT
    values = {
        "host": options["host"],
        "port": port,
        "unix": options["unix"],
        "token": read_token(options["token_file"]),
        "linger_seconds": options["linger"],
        "drain_seconds": options["drain"],
    }
    return converter.structure(values, ServerSettings)
