"""The way out of damage: go back to what can be vouched for, and keep all that still proves itself.

``examine`` only reads. It holds the files against each other as a start does, and makes a
``Plan``: a base (lines of the output that hold), the segments to be rewritten with their good
frames, and what is lost by it.
``mending`` does it.
"""

from __future__ import annotations

import datetime
import uuid
from pathlib import Path

import attrs

from trioline._version import __version__
from trioline.config import JobSettings
from trioline.errors import StorageError, UsageError
from trioline.storage.checkpoint import Checkpoint, CheckpointFile
from trioline.storage.checksums import BLOCK_LINES, CHECKSUMS_NAME, Table
from trioline.storage.damage import STATE_SUFFIX, NewerFormat
from trioline.storage.files import Disk
from trioline.storage.frames import Kind
from trioline.storage.opening import CHECKPOINT_NAME, check_paths
from trioline.storage.output import GrowingFile
from trioline.storage.repair.rejected_rebuild import unrecorded
from trioline.storage.repair.salvage import Reach, Scan, scan_journal
from trioline.storage.repair.vouch import (
    Prefix,
    Records,
    is_json,
    is_text,
    offset_of_line,
    records_below,
    vouched,
)
from trioline.storage.retry_files import check_no_swap
from trioline.storage.run import RUN_NAME, Run, check_match, make_run, read_run
from trioline.storage.source import Source


@attrs.frozen(kw_only=True)
class Given:
    """What the user says of the job; None: it stands in ``run.json``."""

    output: Path
    input: Path | None = None
    text: bool = False
    placeholder: bytes | None = None
    rejected: Path | None = None

    @property
    def state(self) -> Path:
        """The job's folder."""
        return self.output.with_name(self.output.name + STATE_SUFFIX)


@attrs.frozen(kw_only=True)
class Base:
    """Where the repaired job begins: a checkpoint's numbers."""

    lines: int
    output_bytes: int
    rejected_count: int
    rejected_bytes: int
    finished: bool = False


@attrs.frozen(kw_only=True)
class Plan:
    """What was found and what would be done."""

    settings: JobSettings
    run: Run
    last: Checkpoint | None
    base: Base
    segments: tuple[Scan, ...]
    """To be rewritten with their good frames."""
    is_run_lost: bool
    is_rejected_rebuilt: bool
    is_checkpoint_written: bool
    found: tuple[str, ...]
    steps: tuple[str, ...]
    redone_count: int
    """Lines whose results are known to be lost."""

    @property
    def is_needed(self) -> bool:
        """Whether there is anything to be done."""
        return bool(self.steps)


class Examination:
    """Looks at one job's files, and writes down what it sees."""

    def __init__(self, disk: Disk, given: Given) -> None:
        self.disk = disk
        self.given = given
        self.found: list[str] = []
        self.steps: list[str] = []
        self._run: Run | None = self._read_run()
        self.last = self._read_slots()
        self.settings = self._settings()
        self.run = self._run or self._new_run()
        self.scans = self._scan()
        self.is_rejected_rebuilt = False

    # --- what the job is --------------------------------------------------------------------

    def _read_run(self) -> Run | None:
        path = self.given.state / RUN_NAME
        try:
            run = read_run(self.disk, self.given.state)
        except NewerFormat:
            raise
        except StorageError:
            run = None
            self.found.append(f"{path} is damaged")
        else:
            if run is None:
                self.found.append(f"{path} is missing")
        if run is None and self.given.input is None:
            raise UsageError(
                f"{self.found[-1]}: say what the job was with --input INPUT (and --text,"
                " --placeholder, --rejected where they were given), so that it can be made anew."
            )
        return run

    def _settings(self) -> JobSettings:
        given, run = self.given, self._run
        text = given.text if run is None else run.text
        placeholder = given.placeholder if run is None else run.placeholder.encode()
        if placeholder is None:
            placeholder = b"" if text else b"null"
        rejected = given.rejected or given.output.with_name(given.output.name + ".rejected")
        path = given.input or Path(run.input if run is not None else "")
        if run is not None:
            rejected = run.rejected_path(given.output)
            if self.disk.stat(path) is None:
                raise UsageError(f"The input {path} is not there: say where it is with --input.")
        settings = JobSettings(
            input=path,
            output=given.output,
            text=text,
            placeholder=placeholder,
            rejected=rejected,
            max_line_bytes=1 << 30,
        )
        size = check_paths(self.disk, settings)
        if run is not None:
            check_match(self.disk, run, settings, size)
        return settings

    def _new_run(self) -> Run:
        """What ``run.json`` said: the run id is in the checkpoint, too."""
        run_id = uuid.uuid4().hex if self.last is None else self.last.run_id.hex()
        self.steps.append(f"write {self.given.state / RUN_NAME} anew for {self.settings.input}")
        return make_run(
            self.disk,
            self.settings,
            self.disk.size(self.settings.input),
            run_id=run_id,
            created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            version=__version__,
        )

    def _read_slots(self) -> Checkpoint | None:
        path = self.given.state / CHECKPOINT_NAME
        if self.disk.stat(path) is None:
            self.found.append(f"{path} is missing")
            return None
        file = CheckpointFile(self.disk, path)
        try:
            slots = [slot for slot in file.slots() if slot is not None]
        finally:
            file.close()
        if self._run is not None:
            foreign = len(slots)
            slots = [slot for slot in slots if slot.run_id == self._run.id_bytes]
            if foreign and not slots:
                self.found.append(f"{path} belongs to another job")
                return None
        if not slots:
            self.found.append(f"{path} is damaged: neither of its two slots is valid")
            return None
        return max(slots, key=lambda slot: slot.sequence)

    # --- the journal ------------------------------------------------------------------------

    def _scan(self) -> list[Scan]:
        scans = scan_journal(self.disk, self.given.state, self.run.id_bytes)
        if self.last is not None:
            self._look_for_gaps(scans, self.last)
        return scans

    def _look_for_gaps(self, scans: list[Scan], last: Checkpoint) -> None:
        numbers = {scan.number for scan in scans}
        newest = max(numbers, default=0)
        if last.finished:
            return
        first = max(last.journal_segment, 1)
        for number in range(first, max(last.journal_segment, newest) + 1):
            if number not in numbers:
                path = self.given.state / f"journal-{number:08}"
                self.found.append(f"{path} is missing")
        older = sum(
            scan.length
            for scan in scans
            if scan.number < last.journal_segment and scan.top > last.line_count
        )
        if older != last.journal_older_bytes:
            self.found.append(
                f"{self.given.state} has {older} bytes of older journal that count instead of"
                f" {last.journal_older_bytes}: segments were cut, removed or damaged"
            )

    def damaged_segments(self) -> list[Scan]:
        """Those that a start would refuse; a torn end of the newest one is none."""
        newest = self.scans[-1].number if self.scans else 0
        damaged = []
        for scan in self.scans:
            certain = scan.length if scan.number != newest else 0
            if self.last is not None and scan.number == self.last.journal_segment:
                certain = max(certain, self.last.journal_bytes)
            if scan.bad_at < certain or not scan.is_torn_only:
                damaged.append(scan)
                lost = max(certain, scan.length) - scan.good_bytes
                self.found.append(
                    f"{scan.path} is damaged at byte {scan.bad_at}: {lost} bytes of it cannot be"
                    f" read, {len(scan.pieces)} frames are good"
                )
                what = "keep its good frames" if scan.pieces else "remove it"
                self.steps.append(f"{scan.path}: {what}")
        return damaged

    # --- output and rejected file -----------------------------------------------------------

    def output_holds(self) -> bool:
        """Whether the output is what the checkpoint says; else say how it is not."""
        last, path = self.last, self.settings.output
        if self.disk.stat(path) is None:
            self.found.append(f"{path} is missing")
            return False
        if last is None:
            return False
        return self._holds(path, last.output_bytes, last.tail_bytes, last.tail_crc, last.finished)

    def rejected_holds(self) -> bool:
        """The same of the rejected file."""
        last, path = self.last, self.settings.rejected
        if self.disk.stat(path) is None:
            self.found.append(f"{path} is missing")
            return False
        if last is None:
            return True
        tail = last.rejected_tail_bytes, last.rejected_tail_crc
        return self._holds(path, last.rejected_bytes, *tail, last.finished)

    def _holds(self, path: Path, length: int, tail: int, crc: int, finished: bool) -> bool:
        file = GrowingFile(self.disk, path, length, output=self.settings.output)
        try:
            file.check_begin(tail, crc)
        except StorageError as error:
            self.found.append(str(error).split(". It was left")[0])
            return False
        finally:
            file.close()
        size = self.disk.size(path)
        if finished and size > length:
            self.found.append(f"{path} has {size - length} bytes behind the end of the job")
            self.steps.append(f"cut {path} at byte {length}")
        return True

    def prefix(self, *, is_held: bool) -> Prefix:
        """How much of the output holds by the table, and by its form where the checkpoint fails."""
        path = self.settings.output
        if self.disk.stat(path) is None:
            return Prefix(lines=0, length=0)
        table = Table.open(self.disk, self.given.state / CHECKSUMS_NAME)
        try:
            return vouched(
                self.disk,
                path,
                table,
                self.last,
                limit=self._limit,
                is_valid=_anything if is_held else is_text if self.settings.text else is_json,
            )
        finally:
            if table is not None:
                table.close()

    def _limit(self, known: int) -> int:
        """The most lines that may be taken: what journal and table know, and the input has."""
        top = max((scan.settled_top for scan in self.scans), default=0)
        if self.last is not None:
            top = max(top, self.last.line_count)
        most = max(known, top) or (1 << 62)
        source = self._source()
        try:
            return most if source.scan(most) else source.known_count
        finally:
            source.close()

    def _source(self) -> Source:
        return Source(
            self.disk.files,
            self.settings.input,
            max_line_bytes=self.settings.max_line_bytes,
        )

    def input_offset(self, line: int) -> int:
        """Where a line of the input begins."""
        source = self._source()
        try:
            return source.offset_of(line)
        finally:
            source.close()

    def records(self, lines: int) -> Records:
        """The rejected file's records of lines below ``lines``."""
        path = self.settings.rejected
        if self.disk.stat(path) is None:
            return Records(count=0, length=0)
        return records_below(self.disk, path, lines)


def _anything(_line: bytes) -> bool:
    return True


def examine(disk: Disk, given: Given) -> Plan:
    """Look at a job's files; nothing is changed. The caller holds the lock.

    Raises:
        UsageError: The input is not there, is another one, or must be named; or a retry was
            stopped while it replaced the files, and is to end that first.
        StorageError: There is nothing to repair it from, or a later version wrote it.
    """
    seen = Examination(disk, given)
    check_no_swap(disk, seen.settings)
    segments = seen.damaged_segments()
    base = _find_base(seen)
    if seen.found and not seen.steps:
        seen.steps.append("write a checkpoint that says how things stand")
    last = seen.last
    known = last.line_count if last is not None else base.lines
    pieces = (piece for scan in seen.scans for piece in scan.pieces)
    return Plan(
        settings=seen.settings,
        run=seen.run,
        last=last,
        base=base,
        segments=tuple(segments),
        is_run_lost=not _has_run(disk, given),
        is_rejected_rebuilt=seen.is_rejected_rebuilt,
        is_checkpoint_written=bool(seen.steps),
        found=tuple(seen.found),
        steps=tuple(seen.steps),
        redone_count=Reach(pieces).missing(base.lines, known),
    )


def _has_run(disk: Disk, given: Given) -> bool:
    try:
        return read_run(disk, given.state) is not None
    except StorageError:
        return False


def _find_base(seen: Examination) -> Base:
    last, output = seen.last, seen.settings.output
    holds = seen.output_holds()
    prefix = seen.prefix(is_held=holds)
    if last is not None and (prefix.lines, prefix.length) != (last.line_count, last.output_bytes):
        if holds or prefix.is_refuted:
            end = min(last.line_count, prefix.lines + BLOCK_LINES) - 1
            seen.found.append(f"{output} was changed in lines {prefix.lines} to {end}")
        _check_vouched(seen, prefix, last)
        holds = False
    lines, length = prefix.lines, prefix.length
    is_rejected_good = seen.rejected_holds()
    if holds and last is not None and is_rejected_good:
        return Base(
            lines=lines,
            output_bytes=length,
            rejected_count=last.rejected_count,
            rejected_bytes=last.rejected_bytes,
            finished=last.finished,
        )
    if not holds:
        lines, length = _before_lost_records(seen, lines, length)
        seen.steps.append(f"go on from line {lines}, byte {length} of {output}")
        if prefix.unknown:
            seen.found.append(
                f"nothing but their form speaks for {prefix.unknown} of the lines before that"
            )
    if not is_rejected_good:
        seen.is_rejected_rebuilt = True
        seen.steps.append(
            f"make {seen.settings.rejected} anew: its good records, and for each other placeholder"
            " a record that says that the first one was lost"
        )
        return Base(lines=lines, output_bytes=length, rejected_count=0, rejected_bytes=0)
    records = seen.records(lines)
    return Base(
        lines=lines,
        output_bytes=length,
        rejected_count=records.count,
        rejected_bytes=records.length,
    )


def _check_vouched(seen: Examination, prefix: Prefix, last: Checkpoint) -> None:
    """Refuse an output that was edited where nothing records what it was."""
    path = seen.settings.output
    if prefix.unknown and seen.disk.size(path) >= last.output_bytes:
        raise StorageError(
            f"{path} was edited, and of its first {prefix.lines} lines nothing records what"
            f" {prefix.unknown} of them were: this cannot be repaired. Put it back from a copy, or"
            " begin anew with --fresh, which throws the old answers away.",
            path,
        )


def _before_lost_records(seen: Examination, lines: int, length: int) -> tuple[int, int]:
    """Go back to a rejected line whose record is only in the journal: there it is read again."""
    records = seen.records(lines)
    in_journal = {
        piece.first
        for scan in seen.scans
        for piece in scan.pieces
        if piece.kind is Kind.REJECTED and piece.first < lines
    }
    if in_journal:
        missing = unrecorded(seen.disk, seen.settings.rejected, in_journal, records.length)
        if missing:
            lines = min(missing)
            length = offset_of_line(seen.disk, seen.settings.output, lines)
    return lines, length
