"""What of an output holds: by the checkpoint, by the checksums, by the journal, by its form."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import attrs

from trioline.config import JobSettings
from trioline.errors import StorageError, UsageError
from trioline.storage.checkpoint import Checkpoint
from trioline.storage.checksums import BLOCK_LINES, CHECKSUMS_NAME, ENTRY_BYTES, Proof, Table
from trioline.storage.files import Disk
from trioline.storage.frames import Kind
from trioline.storage.output import GrowingFile
from trioline.storage.repair.forms import is_json, is_text
from trioline.storage.repair.given import Identity, Notes
from trioline.storage.repair.input_state import Changes, find_changes
from trioline.storage.repair.line_file import LineFile
from trioline.storage.repair.ranges import Ranges
from trioline.storage.repair.salvage import Piece, Scan
from trioline.storage.repair.sums import Sums, named
from trioline.storage.repair.told import Told
from trioline.storage.repair.walk import Run, Walk

_MAX_TOLD = 5
"""Disproved lines that are told one by one."""


@attrs.frozen(kw_only=True)
class Kept:
    """What was found in the output."""

    runs: list[Run]
    """In order. Their memory grows with the number of damaged stretches, not with the file."""
    is_held: bool
    """Whether it is all that the checkpoint says."""
    is_table_good: bool
    changes: Changes
    """Of the input."""
    assumed: list[tuple[int, int]] = attrs.field(factory=list)
    """First line and end of stretches that have but their form to speak for them."""
    unproved: Ranges = attrs.field(factory=lambda: Ranges([]))
    """Lines that the user wants to be computed again, as nothing proves them."""

    @property
    def dropped(self) -> Ranges:
        """Lines whose answers are not kept, wherever they are."""
        lines = self.changes.lines
        return Ranges([*lines, *self.unproved]) if self.unproved else lines

    @property
    def prefix(self) -> Run:
        """The lines from the beginning on."""
        is_first = self.runs and self.runs[0].first == 0
        return self.runs[0] if is_first else Run(0, 0, 0, 0)


def look_at_output(
    disk: Disk, job: Identity, scans: list[Scan], line_count: int, notes: Notes
) -> Kept:
    """Find all lines of the output that hold.

    Args:
        line_count: Of the input.

    Raises:
        StorageError: The input was edited, and nothing records what it was.
    """
    settings, last = job.settings, job.last
    is_held = output_holds(disk, settings, last, notes)
    with contextlib.ExitStack() as opened:
        table = Table.open(disk, settings.state / CHECKSUMS_NAME)
        if table is not None:
            opened.callback(table.close)
        sums = Sums(table, last, _end(disk, job, scans, line_count))
        changed = _changes_of_input(disk, job, sums)
        _tell_changes(settings.input, changed, sums.end, notes)
        changes = find_changes(disk, job, scans, sums, changed)
        sums.others = changes.by_journal
        none = Kept(runs=[], is_held=False, is_table_good=sums.is_table_good, changes=changes)
        if disk.stat(settings.output) is None:
            return none
        file = opened.enter_context(disk.open(settings.output, os.O_RDONLY))
        if last is not None and not changed and not sums.are_outputs_vouched:
            proof = Proof.of_output(last)
            if proof.holds(file.read):
                run = Run(0, proof.line_count, 0, proof.length)
                runs = [run] if run.count else []
                return attrs.evolve(none, runs=runs, is_held=is_held, is_table_good=False)
        size = file.size()
        told = Told(disk, scans, job.run.id_bytes, settings.placeholder)
        opened.callback(told.close)
        walk = Walk(
            LineFile(file),
            sums,
            size=size,
            end_byte=size if last is None else last.output_bytes,
            is_valid=is_text if settings.text else is_json,
            told=told,
        )
        runs = list(walk.runs())
    _tell_changes(settings.output, walk.refuted, sums.end, notes)
    for line, byte in walk.disproved[:_MAX_TOLD]:
        notes.found.append(
            f"{settings.output}: line {line:,} (byte {byte:,}) is not what the journal has of it"
        )
    kept = attrs.evolve(none, runs=runs, is_held=is_held, assumed=walk.assumed)
    if last is None or _is_whole(kept.prefix, last):
        return kept
    if is_held and not walk.refuted and not changed:
        notes.found.append(f"{settings.output} was changed before line {last.line_count:,}")
    return attrs.evolve(kept, is_held=False)


def _is_whole(prefix: Run, last: Checkpoint) -> bool:
    """Whether it is all that the checkpoint says."""
    wanted = last.line_count, last.output_bytes
    return not prefix.unknown and (prefix.end, prefix.length) == wanted


def output_holds(disk: Disk, settings: JobSettings, last: Checkpoint | None, notes: Notes) -> bool:
    """Whether the output is what the checkpoint says of its end; else say how it is not."""
    path = settings.output
    if disk.stat(path) is None:
        notes.found.append(f"{path} is missing")
        return False
    if last is None:
        return False
    tail = last.tail_bytes, last.tail_crc
    return file_holds(disk, path, last.output_bytes, tail, path, last.finished, notes)


def file_holds(
    disk: Disk,
    path: Path,
    length: int,
    tail: tuple[int, int],
    output: Path,
    finished: bool,
    notes: Notes,
) -> bool:
    """Whether a file has ``length`` bytes or more and ends there as its tail says.

    Args:
        tail: Length and crc32 of the last bytes.
        output: The job's.
        finished: Whether nothing may be behind it.
        notes: Where it is said how it does not.
    """
    file = GrowingFile(disk, path, length, output=output)
    try:
        file.check_begin(*tail)
    except StorageError as error:
        notes.found.append(str(error).split(". It was left")[0])
        return False
    finally:
        file.close()
    size = disk.size(path)
    if finished and size > length:
        notes.found.append(f"{path} has {size - length:,} bytes behind the end of the job")
        notes.steps.append(f"cut {path} at byte {length:,}")
    return True


def _changes_of_input(disk: Disk, job: Identity, sums: Sums) -> list[tuple[int, int]]:
    """First and last block of the input's lines that are not those that were answered.

    Raises:
        UsageError: It is another one.
        StorageError: It changed where nothing records what it was.
    """
    path, last = job.settings.input, job.last
    if last is None or sums.are_inputs_vouched:
        changed = sums.read_input(disk, path)
        if job.is_run_lost and sums.is_another_input(disk, job.settings.output):
            raise UsageError(
                f"{path} is not the input of this job: none of its lines have the checksums that"
                " the job recorded. Name the one that it had with --input."
            )
        if last is None:
            return changed
        # Only run.json says that it is the job's input at all.
        if not changed or not job.is_run_lost:
            return changed
    else:
        with disk.open(path, os.O_RDONLY) as file:
            is_certain = Proof.of_input(last).holds(file.read)
        if is_certain:
            if not sums.are_outputs_vouched:
                sums.drop_misfits(disk, path)
            return []
    raise StorageError(
        f"{path} was changed after its lines were answered: this cannot be repaired. Put it back"
        " as it was; `trioline verify` says where it differs.",
        path,
    )


def _end(disk: Disk, job: Identity, scans: list[Scan], line_count: int) -> int:
    """The lines that may be in the output: what checkpoint, table and journal know of."""
    if job.last is not None:
        return min(job.last.line_count, line_count)
    summed = disk.size(job.settings.state / CHECKSUMS_NAME) // ENTRY_BYTES * BLOCK_LINES
    top = max((scan.settled_top for scan in scans), default=0)
    if top > summed:
        return min(top, line_count)
    # A block that is not complete is not in the table, and a repair leaves no journal of it.
    if not summed:
        return line_count
    most = max(summed, _whole_lines(disk, job.settings.output))
    return min(most, summed + BLOCK_LINES - 1, line_count)


def _whole_lines(disk: Disk, path: Path) -> int:
    if disk.stat(path) is None:
        return 0
    with disk.open(path, os.O_RDONLY) as file:
        return LineFile(file).line_count()


def _tell_changes(path: Path, blocks: list[tuple[int, int]], end: int, notes: Notes) -> None:
    if blocks:
        notes.found.append(f"{path} was changed in {named(blocks, end)}")


def told_by_journal(lines: LineFile, pieces: Iterable[Piece], base: Run) -> Iterator[Run]:
    """The lines behind ``base`` whose places the journal has, where they still are there."""
    for piece in pieces:
        if piece.kind is not Kind.WRITTEN or piece.region is None or piece.end <= base.end:
            continue
        region, count = piece.region, piece.end - piece.first
        block = lines.block(region.offset, count)
        if (block.length, block.count, block.crc) == (region.length, count, region.crc):
            yield behind(lines, Run(piece.first, count, region.offset, region.length), base)


def outside(lines: LineFile, run: Run, changed: Ranges) -> Iterator[Run]:
    """The parts of a run that have none of some lines."""
    for first, end in changed.gaps(run.first, run.end):
        begin = run.offset + lines.block(run.offset, first - run.first).length
        yield Run(first, end - first, begin, lines.block(begin, end - first).length)


def behind(lines: LineFile, run: Run, base: Run) -> Run:
    """The lines of a run that are behind ``base``."""
    if run.first >= base.end:
        return run
    skipped = base.end - run.first
    length = lines.block(run.offset, skipped).length
    return Run(base.end, run.count - skipped, run.offset + length, run.length - length)
