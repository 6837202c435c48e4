"""The way out of damage: keep all that can be vouched for, and let only the rest be done again.

``examine`` only reads. It holds the files against each other as a start does, and makes a
``Plan``: a base (lines at the output's beginning that hold), lines behind it that hold and go to
the journal, segments to be rewritten with their good frames, and what is lost by it.
``mending`` does it.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import attrs

from trioline.config import JobSettings
from trioline.storage.checkpoint import Checkpoint
from trioline.storage.checksums import CHECKSUMS_NAME, ENTRY_BYTES, Proof
from trioline.storage.doubts import hull
from trioline.storage.files import Disk
from trioline.storage.frames import Kind
from trioline.storage.repair.forms import counted
from trioline.storage.repair.given import Given, Identity, Notes, identify
from trioline.storage.repair.input_state import find_doubted, tell_doubted
from trioline.storage.repair.line_file import LineFile
from trioline.storage.repair.output_state import (
    Kept,
    look_at_output,
)
from trioline.storage.repair.ranges import Ranges
from trioline.storage.repair.records import leading_records
from trioline.storage.repair.rejected_state import (
    Journal,
    RejectedState,
    known_results,
    look_at_records,
    rejected_holds,
)
from trioline.storage.repair.retry_state import retry_step
from trioline.storage.repair.salvage import Scan, records_in, scan_journal
from trioline.storage.repair.saving import (
    fitting_journal,
    held,
    lines_of,
    pieces,
    saved_lines,
    torn,
)
from trioline.storage.repair.segments import damaged_segments, look_for_gaps
from trioline.storage.repair.unproved import without_unproved
from trioline.storage.repair.walk import Run
from trioline.storage.retry_files import check_no_swap
from trioline.storage.run import Run as JobRun
from trioline.storage.system import Stat


@attrs.frozen(kw_only=True)
class Base:
    """Where the repaired job begins: a checkpoint's numbers."""

    lines: int
    output_bytes: int
    rejected_count: int
    rejected_bytes: int
    finished: bool = False

    @property
    def run(self) -> Run:
        """Its lines."""
        return Run(0, self.lines, 0, self.output_bytes)


@attrs.frozen(kw_only=True)
class Counts:
    """How the job stands when the plan was done."""

    written: int
    """Lines in the output."""
    ahead: int
    """Lines that wait in the journal for their turn."""
    open: int
    """Lines of the input that the next start hands out."""
    redone: int
    """Of these, lines that are known to have been done before."""


@attrs.frozen(kw_only=True)
class Plan:
    """What was found and what would be done."""

    settings: JobSettings
    run: JobRun
    last: Checkpoint | None
    base: Base
    scans: tuple[Scan, ...]
    segments: tuple[Scan, ...]
    """To be rewritten with their good frames."""
    rescued: tuple[Run, ...]
    """Lines behind the base whose results go to the journal."""
    told: tuple[Run, ...]
    """The same of lines that the journal tells the places of."""
    is_run_lost: bool
    rejected: RejectedState
    journal: Journal
    """What it knows of rejected lines, before any of it is rewritten."""
    unknown: range
    """The lines of both among which some are kept by their form alone."""
    doubted: range
    """The kept lines of which nothing says what some were, where the input was touched."""
    redoubted: range
    """The same before any are dropped to be computed again."""
    given: Stat
    """The input before it was held against what was recorded of it."""
    is_journal_damaged: bool
    found: tuple[str, ...]
    steps: tuple[str, ...]
    counts: Counts

    @property
    def is_needed(self) -> bool:
        """Whether there is anything to be done."""
        return bool(self.steps)

    @property
    def held(self) -> Ranges:
        """The lines whose results the journal has already."""
        return Ranges(held(self.scans))

    @property
    def kept(self) -> Ranges:
        """All lines whose results are kept."""
        return Ranges([*held(self.scans), *lines_of([self.base.run, *self.rescued, *self.told])])

    @property
    def assumed(self) -> range:
        """The kept lines among which some have nothing but their form to speak for them."""
        parts = [self.unknown, self.doubted]
        if self.last is not None:
            parts.append(self.kept.hull(self.last.assumed_first, self.last.assumed_end))
        return hull(parts)


def examine(disk: Disk, given: Given) -> Plan:
    """Look at a job's files; nothing is changed. The caller holds the lock.

    Raises:
        UsageError: The input is not there, is another one, or must be named; or a retry was
            stopped while it replaced the files, and is to end that first.
        StorageError: There is nothing to repair it from, or a later version wrote it.
    """
    notes = Notes()
    job = identify(disk, given, notes)
    check_no_swap(disk, job.settings)
    all_scans = scan_journal(disk, job.settings.state, job.run.id_bytes)
    has_gaps = job.last is not None and look_for_gaps(given.state, all_scans, job.last, notes)
    segments = damaged_segments(all_scans, job.last, notes)
    is_journal_damaged = has_gaps or bool(segments)
    given_input, line_count = _look_at_input(disk, job.settings)
    kept = look_at_output(disk, job, all_scans, line_count, notes)
    redoubted = None
    if given.recomputes_unproved:
        kept, redoubted = _drop_unproved(disk, job, given_input, all_scans, kept, notes)
    is_rejected_vouched = rejected_holds(disk, job.settings, job.last, notes)
    base = _find_base(disk, job, all_scans, kept, notes, is_rejected_vouched=is_rejected_vouched)
    scans = fitting_journal(disk, job, all_scans, kept, base.run, line_count, notes)
    segments = _to_rewrite(all_scans, scans, segments)
    rescued, told = saved_lines(disk, job, all_scans, held(scans), kept, base.run)
    journal = _look_at_journal(disk, job, scans)
    rejected = look_at_records(
        disk, job, journal, [base.run, *rescued], notes, is_vouched=is_rejected_vouched
    )
    _tell_of_table(disk, job, kept, notes)
    unknown = _unknown(base, rescued, kept, notes)
    _tell_of_rescued(rescued, notes)
    kept_lines = Ranges([*held(scans), *lines_of([base.run, *rescued, *told])])
    doubted = find_doubted(job, given_input, all_scans, kept_lines)
    tell_doubted(job, doubted, notes)
    torn_segments = torn(scans, segments, notes, is_followed=bool(rescued or told))
    _tell_of_tail(disk, job, base, kept, notes)
    _tell_of_retry(disk, job, base, kept_lines, rejected, notes)
    return Plan(
        settings=job.settings,
        run=job.run,
        last=job.last,
        base=_with_records(base, rejected),
        scans=tuple(scans),
        segments=(*segments, *torn_segments),
        rescued=tuple(rescued),
        told=tuple(told),
        is_run_lost=job.is_run_lost,
        rejected=rejected,
        journal=journal,
        unknown=unknown,
        doubted=doubted,
        redoubted=doubted if redoubted is None else redoubted,
        given=given_input,
        is_journal_damaged=is_journal_damaged or any(scan.has_bad_end for scan in torn_segments),
        found=tuple(notes.found),
        steps=tuple(notes.steps),
        counts=_count(job, scans, base, [*rescued, *told], all_scans, line_count),
    )


def _tell_of_retry(
    disk: Disk,
    job: Identity,
    base: Base,
    kept: Ranges,
    rejected: RejectedState,
    notes: Notes,
) -> None:
    """Say what becomes of a retry that is under way, where anything is changed at all."""
    step = retry_step(
        disk,
        job.settings,
        kept,
        is_same=base.finished and not rejected.is_rebuilt,
        has_new_id=job.last is None and job.is_run_lost,
    )
    if notes.steps and step is not None:
        notes.steps.append(step)


def _look_at_input(disk: Disk, settings: JobSettings) -> tuple[Stat, int]:
    """What it is before anything of it is read, so that what is written to it later shows."""
    with disk.open(settings.input, os.O_RDONLY) as file:
        return file.stat(), LineFile(file, counts_rest=True).line_count()


def _drop_unproved(
    disk: Disk, job: Identity, given_input: Stat, scans: list[Scan], kept: Kept, notes: Notes
) -> tuple[Kept, range]:
    """What is kept where all that nothing proves is computed again, and what was in doubt."""
    doubted = find_doubted(job, given_input, scans, _answered(scans, kept))
    return without_unproved(disk, job.settings, job.last, kept, doubted, notes), doubted


def _look_at_journal(disk: Disk, job: Identity, scans: list[Scan]) -> Journal:
    """What it knows of rejected lines."""
    records = records_in(disk, scans, job.run.id_bytes)
    return Journal(records=records, results=known_results(pieces(scans)))


def _to_rewrite(all_scans: list[Scan], scans: list[Scan], damaged: list[Scan]) -> list[Scan]:
    """The segments that are damaged, or of which not all that was found is kept."""
    return [
        scan for old, scan in zip(all_scans, scans, strict=True) if old in damaged or old != scan
    ]


def _answered(scans: list[Scan], kept: Kept) -> Ranges:
    """All lines whose answers could be kept, but for those that are others now."""
    settled = [piece.lines for piece in pieces(scans) if piece.is_settling]
    lines = Ranges([*settled, *lines_of(kept.runs)])
    changed = kept.changes.lines
    return Ranges(part for first, end in lines for part in changed.gaps(first, end))


def _find_base(
    disk: Disk,
    job: Identity,
    scans: list[Scan],
    kept: Kept,
    notes: Notes,
    *,
    is_rejected_vouched: bool,
) -> Base:
    """The lines of the base; its records are another matter."""
    last, settings, prefix = job.last, job.settings, kept.prefix
    lines, length = prefix.end, prefix.length
    if not kept.is_held:
        lines, length = _before_lost_records(disk, settings, scans, lines, length)
        notes.steps.append(
            f"cut {settings.output} at byte {length:,}, and go on from line {lines:,}"
            if disk.size(settings.output) > length
            else f"go on from line {lines:,} at the end of {settings.output} (byte {length:,})"
        )
    holds = kept.is_held and is_rejected_vouched
    return Base(
        lines=lines,
        output_bytes=length,
        rejected_count=0,
        rejected_bytes=0,
        finished=last is not None and last.finished and holds,
    )


def _with_records(base: Base, rejected: RejectedState) -> Base:
    if rejected.is_rebuilt:
        return base
    records = rejected.leading
    return attrs.evolve(base, rejected_count=records.count, rejected_bytes=records.length)


def _before_lost_records(
    disk: Disk, settings: JobSettings, scans: list[Scan], lines: int, length: int
) -> tuple[int, int]:
    """Go back to a rejected line whose record is only in the journal: there it is read again."""
    missing = {
        piece.first
        for piece in pieces(scans)
        if piece.kind is Kind.REJECTED and piece.first < lines
    }
    with contextlib.closing(leading_records(disk, settings, lines)) as records:
        missing.difference_update(record.line for record in records)
    if missing:
        lines = min(missing)
        with disk.open(settings.output, os.O_RDONLY) as file:
            length = LineFile(file).offset_of(lines)
    return lines, length


def _unknown(base: Base, rescued: list[Run], kept: Kept, notes: Notes) -> range:
    """The lines of base and rescued ones among which some are kept by their form alone."""
    lines = Ranges(lines_of([base.run, *rescued]))
    parts = [part for first, end in kept.assumed if (part := lines.hull(first, end))]
    unknown = range(parts[0].start, parts[-1].stop) if parts else range(0)
    if unknown:
        notes.found.append(
            f"nothing is left to prove some of the lines {unknown.start:,} to {unknown.stop - 1:,}:"
            " they are kept by their form alone, and `trioline verify` will not call them proved"
        )
    return unknown


def _tell_of_rescued(rescued: list[Run], notes: Notes) -> None:
    if rescued:
        count = sum(run.count for run in rescued)
        notes.steps.append(
            f"keep {counted(count, 'line')} that hold behind there in the journal until their turn"
        )


def _tell_of_table(disk: Disk, job: Identity, kept: Kept, notes: Notes) -> None:
    """Say how the table of checksums is not what the checkpoint counts on; it is looked at last."""
    path = job.settings.state / CHECKSUMS_NAME
    if not kept.is_table_good:
        notes.found.append(f"{path} {_wrong_table(disk, path, job.last)}")
        notes.steps.append(f"make {path} anew from input and output")
    if notes.found and not notes.steps:
        notes.steps.append("write a checkpoint that says how things stand")


def _tell_of_tail(disk: Disk, job: Identity, base: Base, kept: Kept, notes: Notes) -> None:
    """Say that the output is cut where nothing else does: what the journal has comes back."""
    output, end = job.settings.output, base.output_bytes
    if notes.steps and kept.is_held and not base.finished and disk.size(output) > end:
        notes.steps.append(
            f"cut {output} at byte {end}, where the checkpoint ends, and write behind it what the"
            " journal has"
        )


def _wrong_table(disk: Disk, path: Path, last: Checkpoint | None) -> str:
    size = disk.size(path)
    needed = 0 if last is None else Proof.of_output(last).block_count * ENTRY_BYTES
    if disk.stat(path) is None:
        return "is missing"
    if size < needed:
        return f"ends at byte {size:,}, but {needed:,} were safe"
    return f"is damaged: its first {needed:,} bytes are not what was written"


def _count(
    job: Identity,
    scans: list[Scan],
    base: Base,
    saved: list[Run],
    all_scans: list[Scan],
    line_count: int,
) -> Counts:
    if base.finished:
        return Counts(written=base.lines, ahead=0, open=0, redone=0)
    settled = [*held(scans), *lines_of([base.run, *saved])]
    ranges = Ranges(settled)
    done = [piece.lines for piece in pieces(all_scans) if piece.is_settling]
    known = job.last.line_count if job.last is not None else 0
    total = ranges.count(line_count)
    written = ranges.ends[0] if ranges.firsts[:1] == [0] else 0
    return Counts(
        written=written,
        ahead=total - written,
        open=line_count - total,
        redone=Ranges([*settled, *done, (0, known)]).count(line_count) - total,
    )
