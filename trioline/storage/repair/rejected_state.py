"""What of a rejected file holds: as a whole by the checkpoint, else record by record."""

from __future__ import annotations

import contextlib
import os
import zlib
from collections.abc import Mapping
from pathlib import Path

import attrs

from trioline.config import JobSettings
from trioline.storage.checkpoint import Checkpoint
from trioline.storage.checksums import crc_of
from trioline.storage.files import Disk
from trioline.storage.frames import Kind
from trioline.storage.repair.forms import counted
from trioline.storage.repair.given import Identity, Notes
from trioline.storage.repair.output_state import file_holds
from trioline.storage.repair.ranges import Ranges
from trioline.storage.repair.records import (
    DOUBTFUL,
    LOST,
    Finder,
    Lacking,
    Records,
    good_records,
    placeholders,
    records_below,
)
from trioline.storage.repair.salvage import Piece
from trioline.storage.repair.walk import Run

_MAX_TOLD = 5
"""Records that are told one by one."""


@attrs.frozen(kw_only=True)
class Journal:
    """What the journal knows of rejected lines."""

    records: Mapping[int, bytes]
    """Theirs, by line: they are what was written."""
    results: Ranges
    """Lines that were not rejected."""


@attrs.frozen(kw_only=True)
class RejectedState:
    """How the rejected file goes on."""

    leading: Records
    """What the file begins with: the records of the base's lines, unless it is made anew."""
    is_rebuilt: bool = False
    lacking: Lacking = Lacking.NONE
    """Which placeholders without a record get a new one."""
    text: str = LOST
    """What that says."""
    is_assumed: bool
    """Whether records are kept of which nothing proves what they say of attempts and errors, or are
    made of lines that may have had none, or placeholders are kept without one, of which nothing
    proves that they are results."""


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
    tail = last.rejected_tail_bytes, last.rejected_tail_crc
    with disk.open(path, os.O_RDONLY) as file:
        is_same = crc_of(file.read, 0, last.rejected_bytes) == last.rejected_crc
    ends = last.finished and is_same
    holds = file_holds(disk, path, last.rejected_bytes, tail, settings.output, ends, notes)
    if holds and not is_same:
        end = last.rejected_bytes - last.rejected_tail_bytes
        notes.found.append(f"{path}: bytes 0 to {end:,} are not what the job wrote")
    return holds and is_same


def look_at_records(
    disk: Disk, job: Identity, journal: Journal, runs: list[Run], notes: Notes, *, is_vouched: bool
) -> RejectedState:
    """Find out which records hold, and how many are lost.

    Args:
        runs: The base, and the lines behind it that are kept.
        is_vouched: Whether the checkpoint vouches for the file.
    """
    settings, last, base = job.settings, job.last, runs[0]
    was_assumed = last is not None and last.are_records_assumed
    is_any_kept = bool(journal.records) or any(run.count for run in runs)
    stays_assumed = (was_assumed and is_any_kept) or not job.is_placeholder_known
    if is_vouched and last is not None:
        leading = Records(count=last.rejected_count, length=last.rejected_bytes)
        if base.end != last.line_count:
            leading = records_below(disk, settings, base.end)
        return RejectedState(leading=leading, is_assumed=stays_assumed)
    survey = _survey(disk, settings, journal, runs)
    # Lines that are done again may be those whose records are lost.
    is_all_kept = last is not None and sum(run.count for run in runs) >= last.line_count
    lacking, most = _lacking(disk, settings, last, journal, survey, is_all_kept=is_all_kept)
    made = {Lacking.NONE: 0, Lacking.IN_GAPS: survey.in_gaps, Lacking.ALL: survey.missing}[lacking]
    is_sure = is_all_kept and made == most
    is_exact = last is not None and not made and survey.is_what(last)
    is_invented = made > 0 and not is_sure
    is_lacking = last is not None and made < most
    is_taken = survey.from_file > 0 or is_invented or is_lacking
    is_taken = is_taken or (last is None and survey.elsewhere > 0)
    is_rebuilt = made > 0 or not survey.is_in_file
    state = RejectedState(
        leading=Records(count=survey.base_count, length=survey.length),
        is_rebuilt=is_rebuilt,
        lacking=lacking,
        text=LOST if is_sure else DOUBTFUL,
        # Those that an earlier repair made may be in the journal by now.
        is_assumed=stays_assumed or (is_taken and not is_exact),
    )
    _tell(settings, last, survey, state, notes, made=made, most=most, is_all_kept=is_all_kept)
    return state


@attrs.define
class _Survey:
    """The records that the lines with placeholders would have."""

    kept: int = 0
    from_file: int = 0
    """Kept ones that only the file has."""
    restored: list[tuple[int, int]] = attrs.Factory(list)
    """The first lines whose record the journal has otherwise, and the bytes where the file has it;
    those that the file has not are not among them."""
    in_gaps: int = 0
    """Lines without a record where the file does not hold."""
    elsewhere: int = 0
    first_elsewhere: int = 0
    base_count: int = 0
    length: int = 0
    """Of the base's records, in bytes."""
    crc: int = 0
    """The same."""
    is_in_file: bool = False
    """Whether the file begins with them."""

    @property
    def missing(self) -> int:
        """All lines without a record that may need one."""
        return self.in_gaps + self.elsewhere

    def is_what(self, last: Checkpoint) -> bool:
        """Whether the base's records are what the job wrote."""
        return (self.length, self.crc) == (last.rejected_bytes, last.rejected_crc)


def _survey(disk: Disk, settings: JobSettings, journal: Journal, runs: list[Run]) -> _Survey:
    survey = _Survey()
    finder = Finder(disk, settings, journal.records, journal.results)
    with (
        contextlib.closing(finder),
        contextlib.closing(placeholders(disk, settings, runs)) as lines,
    ):
        for line in lines:
            record = finder.kept(line)
            if record is not None:
                _take(survey, finder, journal, line, record, is_base=line < runs[0].end)
            elif line not in journal.results:
                _miss(survey, line, is_in_gap=finder.is_in_gap(line))
    if disk.stat(settings.rejected) is not None:
        with disk.open(settings.rejected, os.O_RDONLY) as file:
            is_long = file.size() >= survey.length
            survey.is_in_file = is_long and crc_of(file.read, 0, survey.length) == survey.crc
    return survey


def _take(
    survey: _Survey, finder: Finder, journal: Journal, line: int, record: bytes, *, is_base: bool
) -> None:
    survey.kept += 1
    found = finder.in_file(line)
    if line not in journal.records:
        survey.from_file += 1
    elif found is not None and found.data != record:
        survey.restored.append((line, found.begin))
    if is_base:
        survey.base_count += 1
        survey.length += len(record)
        survey.crc = zlib.crc32(record, survey.crc)


def _miss(survey: _Survey, line: int, *, is_in_gap: bool) -> None:
    if is_in_gap:
        survey.in_gaps += 1
        return
    if not survey.elsewhere:
        survey.first_elsewhere = line
    survey.elsewhere += 1


def _lacking(
    disk: Disk,
    settings: JobSettings,
    last: Checkpoint | None,
    journal: Journal,
    survey: _Survey,
    *,
    is_all_kept: bool,
) -> tuple[Lacking, int]:
    """Which placeholders get a new record, and how many records were lost at most."""
    if last is None:
        return (Lacking.IN_GAPS if survey.in_gaps else Lacking.NONE), survey.in_gaps
    known, is_whole = _known(disk, settings, journal, last.line_count)
    most = min(survey.missing, max(0, last.rejected_count - known))
    if not most:
        return Lacking.NONE, 0
    if survey.in_gaps >= most or not (is_whole or is_all_kept):
        return Lacking.IN_GAPS, most
    return Lacking.ALL, most


def _known(disk: Disk, settings: JobSettings, journal: Journal, end: int) -> tuple[int, bool]:
    """How many lines below ``end`` have a record; and whether the file has nothing but records."""
    others = {line for line in journal.records if line < end}
    count = length = 0
    with contextlib.closing(good_records(disk, settings)) as records:
        for record in records:
            count += record.line < end
            length += len(record.data)
            others.discard(record.line)
    is_whole = disk.stat(settings.rejected) is not None and length == disk.size(settings.rejected)
    return count + len(others), is_whole


def _tell(
    settings: JobSettings,
    last: Checkpoint | None,
    survey: _Survey,
    state: RejectedState,
    notes: Notes,
    *,
    made: int,
    most: int,
    is_all_kept: bool,
) -> None:
    path, output = settings.rejected, settings.output
    for line, byte in survey.restored[:_MAX_TOLD]:
        notes.found.append(
            f"{path}: the record of line {line:,} (byte {byte:,}) is not the one that the"
            " journal has"
        )
    if len(survey.restored) > _MAX_TOLD:
        notes.found.append(f"{path}: so are {len(survey.restored) - _MAX_TOLD} more records")
    if last is None and survey.elsewhere:
        notes.found.append(
            f"{output}: {counted(survey.elsewhere, 'line')} from line {survey.first_elsewhere:,} on"
            f" may be a result or a placeholder. {path} has no gap there: they are taken for"
            " results"
        )
    if state.is_rebuilt:
        notes.steps.append(f"make {path} anew, with {counted(survey.kept, 'record')} kept")
    if made:
        limit = "" if is_all_kept else " at most"
        how_many = None if last is None else f"{most:,}{limit}"
        notes.steps.append(_made_step(path, made, how_many, is_sure=state.text == LOST))
    is_told = last is not None and last.are_records_assumed
    if state.is_assumed and survey.from_file and not is_told:
        notes.steps.append(
            f"take {path} at its word: nothing proves what {counted(survey.from_file, 'record')} of"
            " it say of attempts and errors, and `trioline verify` will tell"
        )


def _made_step(path: Path, made: int, how_many: str | None, *, is_sure: bool) -> str:
    step = f"make records for {counted(made, 'placeholder')} without one"
    if how_many is None:
        return f"{step}, which may be results like any other, as {path} is damaged there"
    if is_sure:
        return f"{step}, which say that the first was lost"
    return f"{step}, of which {how_many} were rejected lines: which ones nothing tells"


def known_results(pieces: list[Piece]) -> Ranges:
    """The lines of which the journal tells that they have a result."""
    kinds = Kind.RESULTS, Kind.WRITTEN
    return Ranges(piece.lines for piece in pieces if piece.kind in kinds)
