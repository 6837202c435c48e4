"""What of the journal stays, and which lines of the output it is to have besides."""

from __future__ import annotations

import os
from collections.abc import Iterable

from trioline.storage.files import Disk
from trioline.storage.repair.dropping import Dropped, without_dropped
from trioline.storage.repair.given import Identity, Notes
from trioline.storage.repair.input_state import tell_changes_ahead
from trioline.storage.repair.line_file import LineFile
from trioline.storage.repair.output_state import Kept, behind, outside, told_by_journal
from trioline.storage.repair.ranges import Ranges
from trioline.storage.repair.salvage import Piece, Scan
from trioline.storage.repair.walk import Run


def fitting_journal(
    disk: Disk,
    job: Identity,
    scans: list[Scan],
    kept: Kept,
    base: Run,
    line_count: int,
    notes: Notes,
) -> list[Scan]:
    """The journal without the answers of lines that are others now; says which these are."""
    durable = 0 if job.last is None else job.last.line_count
    settled = [piece.lines for piece in pieces(scans) if piece.is_settling]
    answered = [*settled, *lines_of(kept.runs)]
    behind_base = [(max(first, base.end), end) for first, end in answered if end > base.end]
    tell_changes_ahead(job, kept.changes, behind_base, line_count, notes)
    dropped = Dropped(
        lines=kept.dropped,
        base_end=base.end,
        # Those from before the durable point are answered by the journal once more then.
        outdated=kept.changes.outdated if base.end < durable else frozenset(),
    )
    return without_dropped(disk, scans, job.run.id_bytes, dropped, notes)


def torn(scans: list[Scan], segments: list[Scan], notes: Notes, *, is_followed: bool) -> list[Scan]:
    """A torn end is let pass in the newest segment only: one that will not be it any more.

    Where anything is changed at all, it is said as a start would; else it is left to that.
    """
    bad = [scan for scan in scans[-1:] if scan.bad_at < scan.length and scan not in segments]
    ends = [scan for scan in bad if scan.has_bad_end]
    for scan in ends if notes.steps else []:
        notes.found.append(
            f"{scan.path}: bytes {scan.bad_at} to {scan.length} at its end are not what was to be"
            " written, as after a kill in the midst of a write, a loss of power, or a fault of the"
            " disk"
        )
        notes.steps.append(f"{scan.path}: {'keep its good frames' if scan.pieces else 'remove it'}")
    return bad if is_followed else ends


def saved_lines(
    disk: Disk,
    job: Identity,
    all_scans: list[Scan],
    held: list[tuple[int, int]],
    kept: Kept,
    base: Run,
) -> tuple[list[Run], list[Run]]:
    """The lines behind the base that hold, and more of them that the journal tells of.

    Args:
        held: The lines that are in the journal itself.
    """
    output = job.settings.output
    if disk.stat(output) is None:
        return [], []
    with disk.open(output, os.O_RDONLY) as file:
        lines = LineFile(file)
        runs = [behind(lines, run, base) for run in kept.runs if run.end > base.end]
        rescued = _outside(lines, runs, kept)
        told = _outside(lines, told_by_journal(lines, pieces(all_scans), base), kept)
    there = Ranges([*held, *lines_of(rescued)])
    return rescued, [run for run in told if not there.has_all(run.first, run.end)]


def _outside(lines: LineFile, runs: Iterable[Run], kept: Kept) -> list[Run]:
    dropped = kept.dropped
    return [part for run in runs for part in outside(lines, run, dropped)]


def lines_of(runs: Iterable[Run]) -> list[tuple[int, int]]:
    """First lines and ends."""
    return [(run.first, run.end) for run in runs]


def pieces(scans: Iterable[Scan]) -> list[Piece]:
    """The good frames of all segments."""
    return [piece for scan in scans for piece in scan.pieces]


def held(scans: Iterable[Scan]) -> list[tuple[int, int]]:
    """The lines whose results, or records, are in the journal itself."""
    return [piece.lines for scan in scans for piece in scan.pieces if piece.has_results]
