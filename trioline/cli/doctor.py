"""``trioline doctor``: say what the file system at a path can promise."""

from __future__ import annotations

from pathlib import Path

import attrs
import click
import msgspec

from trioline.cli.main import EXIT_DONE, EXIT_OTHER
from trioline.storage.doctor.probe import Check, probe


@click.command("doctor")
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def doctor_command(path: Path, as_json: bool) -> int:
    """Say what the file system at PATH can promise.

    PATH is a folder, or an output in it. Tries locks, syncs, renames and what else a job needs in
    a folder of its own, measures how long a sync takes, and leaves nothing behind.

    Exit codes: 0 fine (there may be warnings), 1 there are problems, 2 PATH is not there.
    """
    checks = []
    for check in probe(path):
        checks.append(check)
        if not as_json:
            _tell(check)
    is_fine = all(check.level != "problem" for check in checks)
    if as_json:
        body = {"path": str(path), "ok": is_fine, "checks": [attrs.asdict(one) for one in checks]}
        click.echo(msgspec.json.encode(body))
    return EXIT_DONE if is_fine else EXIT_OTHER


def _tell(check: Check) -> None:
    click.echo(f"{check.level:8} {check.name}: {check.text}")
