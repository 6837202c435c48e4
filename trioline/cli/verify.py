"""``trioline verify``."""

from __future__ import annotations

import contextlib
import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import attrs
import click
import msgspec

from trioline.cli.main import EXIT_DONE, EXIT_OTHER
from trioline.cli.options import text_option
from trioline.config import JobSettings
from trioline.storage.files import Disk
from trioline.storage.system import OsFiles
from trioline.storage.verify.findings import Report
from trioline.storage.verify.verification import Subject, find_subject, verify
from trioline.wire.codec import find_bad_json, is_json

LONG_BYTES = 1 << 30
"""From here on it takes seconds, and shows how far it is."""


@click.command("verify")
@click.argument("input_path", metavar="INPUT", type=click.Path(path_type=Path))
@click.argument("output_path", metavar="OUTPUT", type=click.Path(path_type=Path))
@text_option
@click.option(
    "--rejected",
    "rejected_path",
    metavar="PATH",
    type=click.Path(path_type=Path),
    help="Where the records of rejected lines are.  [default: where the job put them]",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def verify_command(
    input_path: Path, output_path: Path, rejected_path: Path | None, *, text: bool, as_json: bool
) -> int:
    """Prove that the nth line of OUTPUT answers the nth line of INPUT, or say where not.

    Both files are held against the checksums that the job recorded: a line that was changed,
    swapped, added or lost is found within 64 lines. Every result must be valid JSON, and each
    rejected line must have its placeholder and its record. Of a job that is not over, what is safe
    in the output is looked at; a running server is not disturbed.

    Exit codes: 0 all is proved (rejected lines or not), 1 something does not hold or cannot be
    proved, 2 usage, 74 a file cannot be read, or the job's checkpoint is lost.
    """
    settings = JobSettings(
        input=input_path,
        output=output_path,
        rejected=rejected_path or output_path.with_name(output_path.name + ".rejected"),
        text=text,
    )
    subject = find_subject(Disk(OsFiles()), settings, is_elsewhere=rejected_path is not None)
    with _progress(subject, is_quiet=as_json) as advance:
        report = verify(subject, _bad_lines, advance=advance)
    if as_json:
        click.echo(msgspec.json.encode({"ok": report.holds, **attrs.asdict(report)}))
    else:
        _tell(subject, report)
    return EXIT_DONE if report.holds else EXIT_OTHER


def _bad_lines(block: bytes) -> Iterator[int]:
    if find_bad_json(block) is not None:
        lines = block[:-1].split(b"\n")
        yield from (place for place, line in enumerate(lines) if not is_json(line))


def _tell(subject: Subject, report: Report) -> None:
    for finding in report.findings:
        click.echo(finding.text)
    more = report.finding_count - len(report.findings)
    if more:
        click.echo(f"... and {more:,} more like these.")
    is_input_found = any(finding.path == str(subject.input) for finding in report.findings)
    if report.is_proved and not report.holds and not is_input_found:
        click.echo(
            f"The {report.line_count:,} lines that the job has written to {subject.output} answer"
            f" those of {subject.input} even so: its checkpoint vouches for them."
        )
    is_told = any("trioline repair" in finding.text for finding in report.findings)
    if any(finding.is_damage for finding in report.findings) and not is_told:
        command = f"trioline repair {shlex.quote(str(subject.output))}"
        click.echo(f"Put back what was changed from a copy, or see what `{command}` can save.")
    if report.holds:
        click.echo(_summary(subject, report))


def _summary(subject: Subject, report: Report) -> str:
    rejected = f", {report.rejected_count:,} of them rejected" if report.rejected_count else ""
    if report.is_finished:
        return (
            f"All {report.line_count:,} lines of {subject.output} answer those of {subject.input}"
            f"{rejected}."
        )
    return (
        f"The {report.line_count:,} lines that are safe in {subject.output} so far answer the first"
        f" ones of {subject.input}{rejected}. The job is not over."
    )


@contextlib.contextmanager
def _progress(subject: Subject, *, is_quiet: bool) -> Iterator[Callable[[int], None]]:
    if is_quiet or subject.total_bytes < LONG_BYTES or not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn

    columns = (BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("", total=subject.total_bytes)
        yield lambda count: progress.advance(task, count)
