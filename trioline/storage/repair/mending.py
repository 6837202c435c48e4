"""Does what ``repair.examine`` has planned; copies of what it changes are kept.

The checkpoint comes last (and ``run.json`` behind it, where that was lost): at each instant before,
the job is as damaged as it was, so that a kill leaves it to be repaired again.
"""

from __future__ import annotations

import datetime
import os
from pathlib import Path

import attrs

from trioline import config
from trioline.config import JobSettings
from trioline.storage.checkpoint import Checkpoint, CheckpointFile
from trioline.storage.checksums import BLOCK_LINES, CHECKSUMS_NAME, ENTRY_BYTES, Tally
from trioline.storage.files import Disk
from trioline.storage.opening import CHECKPOINT_NAME, sync_folders
from trioline.storage.output import GrowingFile
from trioline.storage.recovery import recover
from trioline.storage.repair.plan import Base, Plan
from trioline.storage.repair.rejected_rebuild import write_records
from trioline.storage.repair.salvage import records_in, scan_journal, write_good
from trioline.storage.repair.vouch import (
    offset_of_line,
)
from trioline.storage.run import RUN_NAME, write_run
from trioline.storage.source import Source

_COPY_BYTES = 1024 * 1024


def mend(disk: Disk, plan: Plan, now: datetime.datetime) -> Path:
    """Do what the plan says; returns the folder with copies of what was changed.

    Raises:
        DiskFull: There is no room. What was done may be done again.
        StorageError: A file failed; or the job does not open even so.
    """
    copies = _save(disk, plan, now)
    for scan in plan.segments:
        write_good(disk, scan)
    disk.sync_folder(plan.settings.state)
    for path in (plan.settings.output, plan.settings.rejected):
        if disk.stat(path) is None:
            disk.write_whole(path, b"")
    base = plan.base
    if plan.is_rejected_rebuilt:
        scans = scan_journal(disk, plan.settings.state, plan.run.id_bytes)
        known = records_in(disk, scans, plan.run.id_bytes)
        last = plan.last
        is_all = last is not None and base.lines == last.line_count
        expected = last.rejected_count if last is not None and is_all else None
        count, length = write_records(disk, plan.settings, base.lines, known, expected)
        base = attrs.evolve(base, rejected_count=count, rejected_bytes=length)
    if plan.base.finished:
        _cut(disk, plan.settings.output, base.output_bytes)
        _cut(disk, plan.settings.rejected, base.rejected_bytes)
    sync_folders(disk, plan.settings)
    _write_checkpoint(disk, plan, base)
    if plan.is_run_lost:
        write_run(disk, plan.settings.state, plan.run)
    return copies


def open_once(disk: Disk, plan: Plan) -> tuple[int, int]:
    """Open the job as a start would; returns its lines written, and those ahead of their turn."""
    state = recover(disk, plan.settings, plan.run, config.SEGMENT_BYTES)
    numbers = state.answers.written_count, len(state.ahead)
    for part in (state.source, state.journal, state.checksums, state.answers, state.checkpoints):
        part.close()
    return numbers


def _save(disk: Disk, plan: Plan, now: datetime.datetime) -> Path:
    """Copy what will be changed or cut."""
    state, settings, base = plan.settings.state, plan.settings, plan.base
    folder = state / f"damaged-{now.astimezone(datetime.UTC):%Y%m%dT%H%M%S.%fZ}"
    disk.make_folder(folder)
    wanted = [(scan.path, 0) for scan in plan.segments]
    wanted += [(state / name, 0) for name in (CHECKPOINT_NAME, RUN_NAME)]
    is_cut = plan.last is None or base.lines < plan.last.line_count or base.finished
    if is_cut:
        wanted.append((settings.output, base.output_bytes))
    if is_cut or plan.is_rejected_rebuilt:
        wanted.append((settings.rejected, 0 if plan.is_rejected_rebuilt else base.rejected_bytes))
    for path, begin in wanted:
        if disk.stat(path) is not None and disk.size(path) > begin:
            _copy(disk, path, folder / (path.name + (f"-from-{begin}" if begin else "")), begin)
    disk.sync_folder(folder)
    disk.sync_folder(state)
    return folder


def _copy(disk: Disk, path: Path, to: Path, begin: int) -> None:
    with (
        disk.open(path, os.O_RDONLY) as old,
        disk.open(to, os.O_WRONLY | os.O_CREAT | os.O_TRUNC) as new,
    ):
        at = begin
        while data := old.read(_COPY_BYTES, at):
            new.write(data, at - begin)
            at += len(data)
        new.sync()


def _cut(disk: Disk, path: Path, length: int) -> None:
    with disk.open(path, os.O_RDWR) as file:
        file.cut(length)
        file.sync()


def _write_checkpoint(disk: Disk, plan: Plan, base: Base) -> None:
    path = plan.settings.state / CHECKPOINT_NAME
    checkpoint = _checkpoint(disk, plan, base)
    if not base.finished:
        _cut_table(disk, plan.settings.state / CHECKSUMS_NAME, base.lines)
    if plan.last is None:
        CheckpointFile.create(disk, path, checkpoint).close()
        disk.sync_folder(plan.settings.state)
    file = CheckpointFile(disk, path)
    try:
        file.write(checkpoint)
        file.repeat(checkpoint)
    finally:
        file.close()


def _cut_table(disk: Disk, path: Path, lines: int) -> None:
    """Forget the sums of lines that will be done again."""
    length = lines // BLOCK_LINES * ENTRY_BYTES
    if disk.size(path) > length:
        _cut(disk, path, length)


def _checkpoint(disk: Disk, plan: Plan, base: Base) -> Checkpoint:
    settings = plan.settings
    tails = []
    for path, length in (
        (settings.output, base.output_bytes),
        (settings.rejected, base.rejected_bytes),
    ):
        file = GrowingFile(disk, path, length)
        file.sync(force=True)
        tails.append(file.tail())
        file.close()
    scans = [] if base.finished else scan_journal(disk, settings.state, plan.run.id_bytes)
    newest = scans[-1] if scans else None
    sums = _sums(disk, plan, base)
    return Checkpoint(
        run_id=plan.run.id_bytes,
        epoch=plan.last.epoch + 1 if plan.last is not None else 1,
        sequence=plan.last.sequence + 1 if plan.last is not None else 1,
        line_count=base.lines,
        output_bytes=base.output_bytes,
        rejected_bytes=base.rejected_bytes,
        rejected_count=base.rejected_count,
        input_offset=_input_offset(disk, settings, base.lines),
        tail_bytes=tails[0][0],
        tail_crc=tails[0][1],
        rejected_tail_bytes=tails[1][0],
        rejected_tail_crc=tails[1][1],
        journal_segment=newest.number if newest is not None else 0,
        journal_bytes=newest.bad_at if newest is not None else 0,
        journal_older_bytes=sum(scan.length for scan in scans[:-1] if scan.top > base.lines),
        finished=base.finished,
        input_crc=sums[0],
        output_crc=sums[1],
        is_block_known=True,
    )


def _input_offset(disk: Disk, settings: JobSettings, line: int) -> int:
    source = Source(disk.files, settings.input, max_line_bytes=settings.max_line_bytes)
    try:
        return source.offset_of(line)
    finally:
        source.close()


def _sums(disk: Disk, plan: Plan, base: Base) -> tuple[int, int]:
    """The sums of the lines in the block that is not complete."""
    first = base.lines // BLOCK_LINES * BLOCK_LINES
    settings = plan.settings
    begins = _input_offset(disk, settings, first), offset_of_line(disk, settings.output, first)
    ends = _input_offset(disk, settings, base.lines), base.output_bytes
    crcs = []
    for path, begin, end in zip((settings.input, settings.output), begins, ends, strict=True):
        tally = Tally(first)
        with disk.open(path, os.O_RDONLY) as file:
            tally.feed(file.read(end - begin, begin))
        crcs.append(tally.crc)
    return crcs[0], crcs[1]
