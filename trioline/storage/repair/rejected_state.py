"""What of a rejected file holds: as a whole by the checkpoint, else record by record."""

from __future__ import annotations

import contextlib
import os
from itertools import zip_longest

import attrs

from trioline.config import JobSettings
from trioline.storage.checkpoint import Checkpoint
from trioline.storage.checksums import crc_of
from trioline.storage.files import Disk
from trioline.storage.frames import Kind
from trioline.storage.repair.given import Identity, Notes
from trioline.storage.repair.output_state import file_holds
from trioline.storage.repair.ranges import Ranges
from trioline.storage.repair.records import (
    Finder,
    Records,
    known_count,
    leading_records,
    placeholders,
    records_below,
)
from trioline.storage.repair.salvage import Piece
from trioline.storage.repair.walk import Run


@attrs.frozen(kw_only=True)
class RejectedState:
    """How the rejected file goes on."""

    leading: Records
    """What the file begins with: the records of the base's lines, unless it is made anew."""
    is_rebuilt: bool
    is_lost: bool
    """Whether each placeholder without a record gets one that says that the first was lost."""


def rejected_holds(
    disk: Disk, settings: JobSettings, last: Checkpoint | None, notes: Notes
) -> bool:
    """Whether the rejected file is what the checkpoint says; else say how it is not."""
    path = settings.rejected
    if disk.stat(path) is None:
        if last is not None and not last.rejected_bytes:
            return True
        notes.found.append(f"{path} is missing")
        return False
    if last is None:
        return False
    with disk.open(path, os.O_RDONLY) as file:
        is_same = crc_of(file.read, 0, last.rejected_bytes) == last.rejected_crc
    tail = last.rejected_tail_bytes, last.rejected_tail_crc
    ends = last.finished and is_same
    holds = file_holds(disk, path, last.rejected_bytes, tail, settings.output, ends, notes)
    if not is_same:
        notes.found.append(
            f"{path} is not what the job wrote: of the records that hold, what they say of attempts"
            " and errors is not proved"
        )
    return holds and is_same


def look_at_records(
    disk: Disk,
    job: Identity,
    pieces: list[Piece],
    runs: list[Run],
    notes: Notes,
    *,
    is_vouched: bool,
) -> RejectedState:
    """Find out which records hold, and how many are lost.

    Args:
        pieces: The journal's.
        runs: The base, and the lines behind it that are kept.
        is_vouched: Whether the checkpoint vouches for the file.
    """
    settings, last, base = job.settings, job.last, runs[0]
    if is_vouched and last is not None and base.end == last.line_count:
        whole = Records(count=last.rejected_count, length=last.rejected_bytes)
        return RejectedState(leading=whole, is_rebuilt=False, is_lost=False)
    leading = records_below(disk, settings, base.end)
    if is_vouched:
        return RejectedState(leading=leading, is_rebuilt=False, is_lost=False)
    kept, missing = _count(disk, settings, pieces, runs)
    most = missing
    if last is not None:
        journal = {piece.first for piece in pieces if piece.kind is Kind.REJECTED}
        known = known_count(disk, settings, journal, last.line_count)
        most = min(missing, max(0, last.rejected_count - known))
    is_rebuilt = last is not None or not _is_complete(disk, settings, pieces, base)
    if last is None and disk.stat(settings.rejected) is not None and (is_rebuilt or missing):
        notes.found.append(
            f"{settings.rejected} has not one record for each placeholder in {settings.output}"
        )
    if is_rebuilt:
        notes.steps.append(f"make {settings.rejected} anew with the {kept} records that hold")
    if most:
        notes.steps.append(_lost_step(missing, most, is_exact=last is not None))
    return RejectedState(leading=leading, is_rebuilt=is_rebuilt, is_lost=most > 0)


def _lost_step(missing: int, most: int, *, is_exact: bool) -> str:
    step = f"make a record that says that the first one was lost for {missing} placeholders"
    if not is_exact:
        return f"{step} without one, though these may be results like any other"
    if most < missing:
        return f"{step} without one, of which {most} were rejected lines: which ones nothing tells"
    return f"{step} without one"


def known_results(pieces: list[Piece]) -> Ranges:
    """The lines of which the journal tells that they have a result."""
    kinds = Kind.RESULTS, Kind.WRITTEN
    return Ranges(piece.lines for piece in pieces if piece.kind in kinds)


def _count(
    disk: Disk, settings: JobSettings, pieces: list[Piece], runs: list[Run]
) -> tuple[int, int]:
    """How many placeholders have a record, and how many have none that may need one."""
    journal = {piece.first: b"" for piece in pieces if piece.kind is Kind.REJECTED}
    finder = Finder(disk, settings, journal, known_results(pieces), makes_lost=False)
    kept = missing = 0
    with (
        contextlib.closing(finder),
        contextlib.closing(placeholders(disk, settings, runs)) as lines,
    ):
        for line in lines:
            if finder.lacks(line):
                missing += 1
            elif finder.find(line) is not None:
                kept += 1
    return kept, missing


def _is_complete(disk: Disk, settings: JobSettings, pieces: list[Piece], base: Run) -> bool:
    """Whether the file begins with the records of the base's lines, all and only these."""
    results = known_results(pieces)
    with (
        contextlib.closing(leading_records(disk, settings, base.end)) as records,
        contextlib.closing(placeholders(disk, settings, [base])) as lines,
    ):
        wanted = (line for line in lines if not results.has_all(line, line + 1))
        found = (record.line for record in records)
        return all(line == other for line, other in zip_longest(wanted, found))
