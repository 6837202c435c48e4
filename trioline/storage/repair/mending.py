"""Does what ``repair.examine`` has planned; copies of what it changes are kept.

The checkpoint comes last (and ``run.json`` behind it, where that was lost): at each instant before,
the job is as damaged as it was, so that a kill leaves it to be repaired again.
"""

from __future__ import annotations

import contextlib
import datetime
import os
from collections.abc import Callable
from pathlib import Path

import attrs

from trioline import config
from trioline.config import JobSettings
from trioline.storage.checkpoint import Checkpoint, CheckpointFile
from trioline.storage.checksums import CHECKSUMS_NAME, crc_of
from trioline.storage.claims import claim
from trioline.storage.doubts import hull
from trioline.storage.files import Disk
from trioline.storage.opening import CHECKPOINT_NAME, sync_folders
from trioline.storage.output import GrowingFile
from trioline.storage.recovery import recover
from trioline.storage.repair.copies import save_copies
from trioline.storage.repair.line_file import LineFile
from trioline.storage.repair.plan import Base, Plan
from trioline.storage.repair.records import Finder, write_records
from trioline.storage.repair.rescue import Rescue, Segment
from trioline.storage.repair.salvage import write_good
from trioline.storage.repair.table import write_table
from trioline.storage.retry_files import beside
from trioline.storage.run import write_run


def mend(disk: Disk, plan: Plan, now: datetime.datetime) -> Path:
    """Do what the plan says; returns the folder with copies of what was changed.

    Raises:
        DiskFull: There is no room. What was done may be done again.
        StorageError: A file failed; or the job does not open even so.
    """
    copies = save_copies(disk, plan, now)
    plan = attrs.evolve(plan, last=_record_doubts(disk, plan))
    for path in (plan.settings.output, plan.settings.rejected):
        # That the rejected file is missing says more than an empty one, also to another repair.
        is_made_later = path == plan.settings.rejected and plan.rejected.is_rebuilt
        if not is_made_later and disk.stat(path) is None:
            disk.write_whole(path, b"")
    make_finder = _make_finder(disk, plan)
    # The journal first: it gets the records that the rejected file then loses.
    segments = _write_journal(disk, plan, make_finder)
    base = _write_rejected(disk, plan, make_finder)
    claim(disk, plan.settings, plan.run)
    sync_folders(disk, plan.settings)
    table = plan.settings.state / CHECKSUMS_NAME
    draft = beside(table)
    _write_checkpoint(disk, plan, _checkpoint(disk, plan, base, segments, draft))
    if plan.is_run_lost:
        write_run(disk, plan.settings.state, plan.run)
    # Not before: the old one says what is damaged, and of the new one what was taken by its form
    # alone must not seem to be vouched for.
    disk.rename(draft, table)
    disk.sync_folder(plan.settings.state)
    _cut(disk, plan.settings.output, base.output_bytes)
    _cut(disk, plan.settings.rejected, base.rejected_bytes)
    return copies


def _record_doubts(disk: Disk, plan: Plan) -> Checkpoint | None:
    """Have the old checkpoint say what is in doubt: the journal, once it is another, tells no more.

    Where a frame lies says when it was written, and what is put there now looks like any other.
    Both slots say it: one of them is written over at the end.

    Returns:
        What it said before, as the newest slot: of the mended job that is what counts.
    """
    last, doubted = plan.last, hull([plan.redoubted, plan.unknown])
    if last is None:
        return None
    doubting = attrs.evolve(
        last.doubting(doubted) if doubted else last,
        are_records_assumed=last.are_records_assumed or plan.rejected.is_assumed,
    )
    if doubting == last:
        return last
    with contextlib.closing(CheckpointFile(disk, plan.settings.state / CHECKPOINT_NAME)) as file:
        newest = file.repeat(file.repeat(doubting))
    return attrs.evolve(last, sequence=newest.sequence)


def open_once(disk: Disk, plan: Plan) -> tuple[int, int, str | None]:
    """Open the job as a start would.

    Returns:
        Its lines written, those ahead of their turn, and what the user should know besides.
    """
    state = recover(disk, plan.settings, plan.run, config.SEGMENT_BYTES, is_mended=True)
    found = state.answers.written_count, state.ahead.count, state.warning
    for part in (state.source, state.journal, state.checksums, state.answers, state.checkpoints):
        part.close()
    return found


def _write_journal(disk: Disk, plan: Plan, make_finder: Callable[[], Finder]) -> list[Segment]:
    """Leave the good frames, and save what holds behind the base; returns all that is there."""
    for scan in plan.segments:
        write_good(disk, scan, plan.run.id_bytes)
    disk.sync_folder(plan.settings.state)
    kept = [scan for scan in plan.scans if scan not in plan.segments or scan.pieces]
    segments = [Segment(scan.number, scan.good_bytes, scan.top) for scan in kept]
    newest = max((scan.number for scan in plan.scans), default=0)
    if plan.last is not None:
        newest = max(newest, plan.last.journal_segment)
    rescue = Rescue(disk, plan.settings, plan.run.id_bytes, newest + 1, plan.held)
    with contextlib.closing(make_finder()) as finder:
        return segments + rescue.write(plan.rescued, plan.told, finder)


def _make_finder(disk: Disk, plan: Plan) -> Callable[[], Finder]:
    """Finds the records of lines that are kept, from the first to the last, each time anew."""
    rejected, journal = plan.rejected, plan.journal
    return lambda: Finder(
        disk,
        plan.settings,
        journal.records,
        journal.results,
        lacking=rejected.lacking,
        text=rejected.text,
    )


def _write_rejected(disk: Disk, plan: Plan, make_finder: Callable[[], Finder]) -> Base:
    base = plan.base
    if not plan.rejected.is_rebuilt:
        return base
    with contextlib.closing(make_finder()) as finder:
        records = write_records(disk, plan.settings, base.run, finder)
    return attrs.evolve(base, rejected_count=records.count, rejected_bytes=records.length)


def _cut(disk: Disk, path: Path, length: int) -> None:
    with disk.open(path, os.O_RDWR) as file:
        file.cut(length)
        file.sync()


def _write_checkpoint(disk: Disk, plan: Plan, checkpoint: Checkpoint) -> None:
    path = plan.settings.state / CHECKPOINT_NAME
    if plan.last is None:
        CheckpointFile.create(disk, path, checkpoint).close()
        disk.sync_folder(plan.settings.state)
    file = CheckpointFile(disk, path)
    try:
        file.write(checkpoint)
        file.repeat(checkpoint)
    finally:
        file.close()


def _checkpoint(
    disk: Disk, plan: Plan, base: Base, segments: list[Segment], draft: Path
) -> Checkpoint:
    settings = plan.settings
    tail = _sync_end(disk, settings.output, base.output_bytes)
    rejected_tail = _sync_end(disk, settings.rejected, base.rejected_bytes)
    newest = None if base.finished or not segments else segments[-1]
    older = [] if newest is None else segments[:-1]
    input_offset = _input_offset(disk, settings, base.lines)
    inputs, outputs = write_table(disk, plan, input_offset, draft)
    assumed = plan.assumed
    return Checkpoint(
        run_id=plan.run.id_bytes,
        epoch=plan.last.epoch + 1 if plan.last is not None else 1,
        sequence=plan.last.sequence + 1 if plan.last is not None else 1,
        line_count=base.lines,
        output_bytes=base.output_bytes,
        rejected_bytes=base.rejected_bytes,
        rejected_count=base.rejected_count,
        input_offset=input_offset,
        tail_bytes=tail[0],
        tail_crc=tail[1],
        rejected_tail_bytes=rejected_tail[0],
        rejected_tail_crc=rejected_tail[1],
        rejected_crc=_crc(disk, settings.rejected, base.rejected_bytes),
        journal_segment=newest.number if newest is not None else 0,
        journal_bytes=newest.length if newest is not None else 0,
        journal_older_bytes=sum(one.length for one in older if one.top > base.lines),
        finished=base.finished,
        input_crc=inputs.crc,
        output_crc=outputs.crc,
        input_sums_crc=inputs.sums_crc,
        output_sums_crc=outputs.sums_crc,
        assumed_first=assumed.start,
        assumed_end=assumed.stop,
        input_mtime_ns=plan.given.mtime_ns,
        input_ctime_ns=plan.given.ctime_ns,
        are_records_assumed=plan.rejected.is_assumed,
    )


def _sync_end(disk: Disk, path: Path, length: int) -> tuple[int, int]:
    """Sync a file; returns length and crc32 of its last bytes."""
    with contextlib.closing(GrowingFile(disk, path, length)) as file:
        file.sync(force=True)
        return file.tail()


def _crc(disk: Disk, path: Path, length: int) -> int:
    with disk.open(path, os.O_RDONLY) as file:
        return crc_of(file.read, 0, length)


def _input_offset(disk: Disk, settings: JobSettings, line: int) -> int:
    with disk.open(settings.input, os.O_RDONLY) as file:
        return LineFile(file, counts_rest=True).offset_of(line)
