"""``trioline repair``: say what is damaged and what can be saved; with --yes, do it."""

from __future__ import annotations

import contextlib
import datetime
import os
from pathlib import Path

import click

from trioline.cli.main import EXIT_DONE, EXIT_OTHER
from trioline.cli.options import placeholder_bytes
from trioline.config import behind_links
from trioline.errors import UsageError
from trioline.storage.files import Disk
from trioline.storage.lock import Lock
from trioline.storage.opening import LOCK_NAME
from trioline.storage.repair.given import Given, find_rejected
from trioline.storage.repair.mending import mend, open_once
from trioline.storage.repair.plan import Plan, examine
from trioline.storage.system import OsFiles

_path = click.Path(path_type=Path)


@click.command("repair")
@click.argument("output", type=_path)
@click.option("--yes", is_flag=True, help="Do it. Copies of what is changed are kept.")
@click.option(
    "--recompute-unproved",
    is_flag=True,
    help="Lines that verify calls not proved are computed again, too.",
)
@click.option(
    "--input",
    "input_path",
    metavar="INPUT",
    type=_path,
    help="Where the input is, if it was moved, or if run.json was lost.",
)
@click.option(
    "--text/--no-text",
    default=None,
    help="As the job had it; only if run.json was lost and OUTPUT does not tell.",
)
@click.option("--placeholder", metavar="JSON", help="The same.")
@click.option(
    "--rejected",
    "rejected_path",
    metavar="PATH",
    type=_path,
    help="As the job had it; only if run.json was lost.",
)
def repair_command(
    output: Path,
    yes: bool,
    recompute_unproved: bool,
    input_path: Path | None,
    text: bool | None,
    placeholder: str | None,
    rejected_path: Path | None,
) -> int:
    """Save what can be saved of a job whose files were damaged.

    Says what it found at OUTPUT and what it would do; with --yes it does it. Results that still
    prove what they are stay, also behind damaged ones; lines whose results do not are computed
    again by the next serve. What is changed or dropped is copied to OUTPUT.trioline/damaged-TIME
    first. Killed or failed, it may be started again.

    Exit codes: 0 nothing to do, or done; 1 there is something to do; 74 it cannot be repaired.
    """
    given = Given(
        output=behind_links(output),
        input=input_path,
        text=text,
        placeholder=None if placeholder is None else placeholder_bytes(placeholder),
        rejected=rejected_path,
        recomputes_unproved=recompute_unproved,
    )
    if not given.state.is_dir():
        wrong = "is no folder" if os.path.lexists(given.state) else "is missing"
        raise UsageError(
            f"There is no job at {output}: {given.state} {wrong}. If it was lost, make an"
            " empty one, and say with --input what the job's input is: the lines of the output that"
            " are whole are kept then."
        )
    disk = Disk(OsFiles())
    with contextlib.closing(Lock(disk, given.state / LOCK_NAME)) as lock:
        files = given.output, find_rejected(disk, given)
        lock.hold(*files)
        plan = examine(disk, given)
        _tell(plan)
        if not plan.is_needed:
            return EXIT_DONE
        if not yes:
            click.echo("Nothing was changed. --yes does it.")
            return EXIT_OTHER
        copies = mend(disk, plan, datetime.datetime.now(datetime.UTC))
        lock.hold(*files)  # what was made anew is another file
        written, ahead, warning = open_once(disk, plan)
    if warning is not None:
        click.echo(warning)
    click.echo(f"Done. Copies of what was changed are in {copies}.")
    click.echo(
        f"The job stands at {written:,} lines written and {ahead:,} ahead of their turn."
        f" {_way_on(plan)}"
    )
    return EXIT_DONE


def _way_on(plan: Plan) -> str:
    if plan.base.finished:
        return "It is over."
    if not plan.counts.open:
        return "Nothing is to be computed: run the job's command once more, it ends at once."
    return "`trioline serve` goes on from there."


def _tell(plan: Plan) -> None:
    if not plan.is_needed:
        counts = plan.counts
        more, again = counts.written + counts.ahead - plan.base.lines, counts.redone
        click.echo(
            f"Nothing is damaged: {plan.base.lines:,} lines hold"
            + (f", and {more:,} that a start takes from the journal" if more else "")
            + (f"; {again:,} that were done are computed again" if again else "")
            + "."
        )
        if plan.assumed:
            first, end = plan.assumed.start, plan.assumed.stop
            click.echo(
                f"But lines {first:,} to {end - 1:,} are not proved: --recompute-unproved has them"
                " computed again."
            )
        return
    for line in plan.found:
        click.echo(f"found: {line}")
    for line in plan.steps:
        click.echo(f"would: {line}")
    counts = plan.counts
    done = f"{counts.redone:,} were done before" if counts.redone else "none was done before"
    if plan.is_journal_damaged:
        known = f"{counts.redone:,} or more were done before; " if counts.redone else ""
        done = f"{known}what was in the journal is not known"
    click.echo(
        f"Then {counts.written:,} lines are in the output, {counts.ahead:,} wait in the journal for"
        f" their turn, and {counts.open:,} are to be computed{f': {done}' if counts.open else ''}."
    )
