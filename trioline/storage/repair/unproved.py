"""Lines that nothing proves, computed again: for who would rather pay for them than believe them.

Which ones these are, the checkpoint says as ``trioline verify`` does: as one stretch. To it comes
what this repair would keep by its form alone, or a start would doubt. They go the way of damaged
lines.
"""

from __future__ import annotations

import os

import attrs

from trioline.config import JobSettings
from trioline.storage.checkpoint import Checkpoint
from trioline.storage.files import Disk
from trioline.storage.repair.given import Notes
from trioline.storage.repair.line_file import LineFile
from trioline.storage.repair.output_state import Kept, outside
from trioline.storage.repair.ranges import Ranges


def without_unproved(
    disk: Disk,
    settings: JobSettings,
    last: Checkpoint | None,
    kept: Kept,
    doubted: range,
    notes: Notes,
) -> Kept:
    """What is kept when all that nothing proves is computed again; says which lines that are."""
    stretches = [*kept.assumed, (doubted.start, doubted.stop)]
    if last is not None:
        stretches.append((last.assumed_first, last.assumed_end))
    lines = Ranges(stretches)
    if not lines:
        return kept
    named = ", ".join(f"lines {first:,} to {end - 1:,}" for first, end in lines)
    notes.found.append(f"{settings.output}: {named} are not proved")
    notes.steps.append(f"have {named} computed again")
    with disk.open(settings.output, os.O_RDONLY) as file:
        runs = [part for run in kept.runs for part in outside(LineFile(file), run, lines)]
    return attrs.evolve(
        kept, runs=runs, is_held=kept.is_held and runs == kept.runs, assumed=[], unproved=lines
    )
