"""What of the journal answers an input that is another one now, or says what that was once.

Of a block of which the table speaks, the table decides; of the others the sums that the journal has
of the input.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from itertools import islice

import attrs

from trioline.storage.checkpoint import Checkpoint
from trioline.storage.checksums import BLOCK_LINES, Proof
from trioline.storage.doubts import hull, is_touched
from trioline.storage.files import Disk
from trioline.storage.frames import Kind
from trioline.storage.input_ahead import known_of, sums_from
from trioline.storage.repair.given import Identity, Notes
from trioline.storage.repair.ranges import Ranges
from trioline.storage.repair.salvage import Piece, Scan
from trioline.storage.repair.sums import Sums, add_block, named
from trioline.storage.system import Stat


@attrs.frozen
class Changes:
    """The blocks of the input that are not what was answered."""

    by_sums: frozenset[int] = frozenset()
    """By the table, or by the checkpoint."""
    by_journal: frozenset[int] = frozenset()
    """By the journal alone; of the block that the checkpoint ends in, the lines behind it."""
    outdated: frozenset[int] = frozenset()
    """Blocks that are as the table has them: the journal has what they were before that."""

    @property
    def lines(self) -> Ranges:
        """All lines of changed blocks."""
        return _lines(self.by_sums | self.by_journal)


def find_changes(
    disk: Disk, job: Identity, scans: list[Scan], sums: Sums, changed: list[tuple[int, int]]
) -> Changes:
    """Put together what is known of the input.

    Args:
        changed: First and last blocks of the stretches that the sums name.
    """
    by_sums = {number for first, last in changed for number in range(first, last + 1)}
    if changed and job.last is not None:  # lines may be gone with their newlines
        by_sums.update(range(sums.block_count, -(-job.last.line_count // BLOCK_LINES)))
    others = _others(disk, job, scans)
    in_table = {number for number in others if _is_in_table(number, job.last, sums)}
    return Changes(
        frozenset(by_sums), frozenset(others - in_table - by_sums), frozenset(in_table - by_sums)
    )


def _is_in_table(number: int, last: Checkpoint | None, sums: Sums) -> bool:
    if last is not None:
        return number < Proof.of_output(last).block_count
    return sums.at(number).is_known


def _others(disk: Disk, job: Identity, scans: list[Scan]) -> set[int]:
    """The blocks that are not what the journal has of them."""
    known: dict[int, int] = {}
    for scan in scans:
        for piece in scan.pieces:
            if piece.kind is Kind.INPUT:
                known.update(known_of(piece.first, piece.sums))
    if not known:
        return set()
    # From the beginning: where lines were edited, the checkpoint's byte is not their end any more.
    with disk.open(job.settings.input, os.O_RDONLY) as file:
        end = max(known) + 1
        found = dict(enumerate(islice(sums_from(file.read, file.size(), None), end)))
    return {number for number, crc in known.items() if found.get(number, 0) != crc}


def tell_changes_ahead(
    job: Identity,
    changes: Changes,
    answered: Iterable[tuple[int, int]],
    line_count: int,
    notes: Notes,
) -> None:
    """Name the blocks that only the journal knows, where any of their lines was answered."""
    lines = Ranges(answered)
    stretches: list[tuple[int, int]] = []
    for number in sorted(changes.by_journal):
        if lines.has_any(number * BLOCK_LINES, (number + 1) * BLOCK_LINES):
            add_block(stretches, number)
    if stretches:
        path = job.settings.input
        notes.found.append(
            f"{path} was changed in {named(stretches, line_count)}, of which there are answers"
        )


def find_doubted(job: Identity, given: Stat, scans: list[Scan], answered: Ranges) -> range:
    """The lines of which nothing recorded what they were, where the input was touched since.

    Without a checkpoint all of them, where it was touched since the job was made: only the
    checkpoint knew which were in doubt.

    Args:
        given: The input before it was held against the sums.
        answered: The lines that it is about.
    """
    if not _is_touched(job, given):
        return range(0)
    return hull([answered.hull(*_behind(job.last, scans)), _unrecorded(job.last, scans, answered)])


def tell_doubted(job: Identity, doubted: range, notes: Notes) -> None:
    """Say which kept lines are in doubt, where anything is changed at all."""
    if doubted and notes.steps:
        notes.found.append(
            f"{job.settings.input} may have been changed after some of the lines"
            f" {doubted.start:,} to {doubted.stop - 1:,} were answered: `trioline verify` will"
            " not call them proved"
        )


def _is_touched(job: Identity, given: Stat) -> bool:
    if job.last is not None:
        return is_touched(job.last, given)
    made = job.run.input_mtime_ns, job.run.input_ctime_ns
    return made != (given.mtime_ns, given.ctime_ns)


def _behind(last: Checkpoint | None, scans: list[Scan]) -> tuple[int, int]:
    """First line and end of what was answered behind the checkpoint."""
    if last is None:
        return 0, sys.maxsize
    place = last.journal_segment, last.journal_bytes
    lines = [
        piece.lines
        for scan in scans
        for piece in scan.pieces
        if piece.is_settling and (scan.number, piece.offset) >= place
    ]
    first = min((first for first, _ in lines), default=0)
    return max(first, last.line_count), max((end for _, end in lines), default=0)


def _unrecorded(last: Checkpoint | None, scans: list[Scan], answered: Ranges) -> range:
    """Lines ahead of which neither checkpoint nor journal has a sum: that frame was lost."""
    durable = 0 if last is None else last.line_count
    frames = [piece for scan in scans for piece in scan.pieces if piece.kind is Kind.INPUT]
    recorded = Ranges(piece.lines for piece in frames)
    return hull(
        [range(*gap) for first, end in answered for gap in recorded.gaps(max(first, durable), end)]
    )


def is_outdated(piece: Piece, blocks: frozenset[int]) -> bool:
    """Whether a frame has a sum of any of some blocks."""
    if piece.kind is not Kind.INPUT or not blocks:
        return False
    return any(number in blocks for number, _ in known_of(piece.first, piece.sums))


def _lines(blocks: Iterable[int]) -> Ranges:
    return Ranges((number * BLOCK_LINES, (number + 1) * BLOCK_LINES) for number in blocks)
