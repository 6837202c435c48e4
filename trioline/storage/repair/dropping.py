"""The journal without answers that do not count any more: they would come back with the replay.

Of a frame of results only those lines go; where the journal but tells of lines in the output, the
others are saved from there, see ``plan``.
"""

from __future__ import annotations

from collections.abc import Iterator

import attrs

from trioline.storage.files import Disk
from trioline.storage.frames import Kind
from trioline.storage.repair.forms import counted
from trioline.storage.repair.given import Notes
from trioline.storage.repair.input_state import is_outdated
from trioline.storage.repair.ranges import Ranges
from trioline.storage.repair.salvage import Piece, Scan, parts_outside


@attrs.frozen(kw_only=True)
class Dropped:
    """What goes."""

    lines: Ranges
    """The lines whose answers go."""
    base_end: int
    """Lines below it are not replayed: what the journal has of them may stay."""
    outdated: frozenset[int]
    """Blocks of the input that the journal has otherwise than they were answered; where lines of
    them are replayed, a start would hold the input against that."""


def without_dropped(
    disk: Disk, scans: list[Scan], run_id: bytes, dropped: Dropped, notes: Notes
) -> list[Scan]:
    """The segments as they are to be; those that stay as they are are the same as before."""
    kept = [tuple(_kept(disk, scan, run_id, dropped)) for scan in scans]
    pieces = [piece for scan in scans for piece in scan.pieces if piece.has_results]
    answers = Ranges(piece.lines for piece in pieces if _is_answer(piece, dropped))
    count = answers.count_common(dropped.lines)
    if count:
        lines = counted(count, "line")
        notes.steps.append(f"drop the answers of these lines from the journal: {lines}")
    return [
        scan if pieces == scan.pieces else attrs.evolve(scan, pieces=pieces)
        for scan, pieces in zip(scans, kept, strict=True)
    ]


def _kept(disk: Disk, scan: Scan, run_id: bytes, dropped: Dropped) -> Iterator[Piece]:
    for piece in scan.pieces:
        if not _is_answer(piece, dropped):
            if not is_outdated(piece, dropped.outdated):
                yield piece
        elif piece.kind is Kind.RESULTS:
            yield from parts_outside(disk, scan, run_id, piece, dropped.lines)


def _is_answer(piece: Piece, dropped: Dropped) -> bool:
    is_replayed = piece.is_settling and piece.end > dropped.base_end
    return is_replayed and dropped.lines.has_any(piece.first, piece.end)
