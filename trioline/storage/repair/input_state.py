"""What of the journal answers an input that is another one now: by the sums that it has of it."""

from __future__ import annotations

import os

import attrs

from trioline.storage.checksums import BLOCK_LINES
from trioline.storage.files import Disk
from trioline.storage.frames import Kind
from trioline.storage.input_ahead import known_of, sums_from
from trioline.storage.repair.given import Identity, Notes
from trioline.storage.repair.output_state import named
from trioline.storage.repair.salvage import Piece, Scan
from trioline.storage.repair.sums import add_block


def without_changed_input(
    disk: Disk, job: Identity, scans: list[Scan], line_count: int, notes: Notes
) -> list[Scan]:
    """The journal without the frames that answer lines in blocks of the input that were changed."""
    durable = 0 if job.last is None else job.last.line_count
    pieces = [piece for scan in scans for piece in scan.pieces]
    wrong = _changed_blocks(disk, job, pieces)
    dropped = [piece for piece in pieces if piece.end > durable and _is_in(piece, wrong)]
    if not dropped:
        return scans
    answered = [number for number in sorted(wrong) if any(_is_in(one, {number}) for one in dropped)]
    stretches: list[tuple[int, int]] = []
    for number in answered:
        add_block(stretches, number)
    path = job.settings.input
    notes.found.append(
        f"{path} was changed in {named(stretches, line_count)}, of which the journal has answers"
    )
    notes.steps.append(
        f"drop these from the journal, with what was handed in together: {len(dropped)} frames"
    )
    return [_without(scan, dropped) for scan in scans]


def _changed_blocks(disk: Disk, job: Identity, pieces: list[Piece]) -> set[int]:
    known: dict[int, int] = {}
    for piece in pieces:
        if piece.kind is Kind.INPUT:
            known.update(known_of(piece.first, piece.sums))
    first = 0 if job.last is None else job.last.line_count // BLOCK_LINES
    end = max(known, default=-1) + 1
    wrong = set()
    with disk.open(job.settings.input, os.O_RDONLY) as file:
        sums = sums_from(file.read, file.stat().size, job.last)
        for number in range(first, end):
            crc = next(sums, 0)
            if known.get(number, crc) != crc:
                wrong.add(number)
    return wrong


def _is_in(piece: Piece, blocks: set[int]) -> bool:
    """Whether a frame answers lines of one of some blocks."""
    if not blocks or not piece.is_settling:
        return False
    return not blocks.isdisjoint(
        range(piece.first // BLOCK_LINES, (piece.end - 1) // BLOCK_LINES + 1)
    )


def _without(scan: Scan, dropped: list[Piece]) -> Scan:
    kept = tuple(piece for piece in scan.pieces if piece not in dropped)
    return scan if len(kept) == len(scan.pieces) else attrs.evolve(scan, pieces=kept)
