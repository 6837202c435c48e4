"""Proves that the nth line of the output answers the nth line of the input, or says where not.

Reads only: no lock, no sync, nothing is changed. What is looked at is what the checkpoint vouches
for, and that does not change any more, so that a server may go on meanwhile. Each file passes by
once (the rejected one four times): memory is constant, but for the longest line.
"""

from __future__ import annotations

import contextlib
import os
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path

import attrs

from trioline.config import JobSettings
from trioline.errors import UsageError
from trioline.storage.checkpoint import Checkpoint
from trioline.storage.checksums import CHECKSUMS_NAME, ENTRY_BYTES, Proof, Table, crc_of
from trioline.storage.damage import way_out
from trioline.storage.files import Disk, File
from trioline.storage.run import RUN_NAME, Run, hash_input
from trioline.storage.system import Files, OsFiles
from trioline.storage.verify.findings import Finding, Report
from trioline.storage.verify.loss import find_run, read_last
from trioline.storage.verify.marks import Mark, Record, read_records
from trioline.storage.verify.pieces import pieces
from trioline.storage.verify.sides import Blocks, FindBad, Side, Walk

_HELD_BYTES = 1024 * 1024
"""A longer line of the input comes in parts."""
_MAX_RESULT_BYTES = 1 << 30
"""No limit for results can be set higher."""

Advance = Callable[[int], None]
"""Told how many more bytes have been looked at."""


@attrs.frozen(kw_only=True)
class Subject:
    """The job that is looked at."""

    run: Run | None
    """None where it was lost: what only it says is not looked at."""
    loss: str | None = None
    """The sentence about that."""
    last: Checkpoint
    input: Path
    output: Path
    rejected: Path
    total_bytes: int
    """How much there is to read."""
    settings: JobSettings


def find_subject(disk: Disk, settings: JobSettings, *, is_elsewhere: bool = False) -> Subject:
    """Find out what was written, from the job's state.

    Args:
        settings: Of these only the paths count, and ``text`` where it is set.
        is_elsewhere: Whether ``settings.rejected`` was named, and so counts.

    Raises:
        UsageError: There is no job, or it is of another kind.
        StorageError: Its checkpoint is lost; what can be proved without it is in the sentence.
    """
    output = settings.output
    run, loss = find_run(disk, settings)
    if run is not None and settings.text and not run.text:
        raise UsageError(f"{output} belongs to a job without --text: leave it out.")
    last = read_last(disk, settings, run)
    has_own = run is not None and not is_elsewhere
    return Subject(
        settings=settings,
        run=run,
        loss=loss,
        last=last,
        input=settings.input,
        output=output,
        rejected=run.rejected_path(output) if run is not None and has_own else settings.rejected,
        total_bytes=last.input_offset + last.output_bytes,
    )


def verify(
    subject: Subject,
    find_bad: FindBad,
    *,
    files: Files | None = None,
    advance: Advance = lambda _: None,
) -> Report:
    """Look at all of it.

    Raises:
        StorageError: A file cannot be read.
    """
    disk = Disk(files or OsFiles())
    last = subject.last
    report = Report(
        is_finished=last.finished, line_count=last.line_count, rejected_count=last.rejected_count
    )
    with contextlib.ExitStack() as opened:
        check = _Verification(disk, subject, report, advance, opened)
        check.rejected_file()
        is_input_whole = check.input_file()
        is_output_whole = check.output_file(find_bad)
        report.is_proved = is_input_whole and is_output_whole
        check.state()
    return report


class _Verification:
    """The three files, one after the other, and what they are held against."""

    def __init__(
        self,
        disk: Disk,
        subject: Subject,
        report: Report,
        advance: Advance,
        opened: contextlib.ExitStack,
    ) -> None:
        self._disk = disk
        self._subject = subject
        self._last = subject.last
        self._report = report
        self._advance = advance
        self._opened = opened
        # All at once: what a retry puts in their places then is not looked at.
        self._rejected = self._open(subject.rejected, self._last.rejected_bytes)
        self._input = self._open(subject.input, self._last.input_offset)
        self._output = self._open(subject.output, self._last.output_bytes)
        self._table_path = subject.settings.state / CHECKSUMS_NAME
        self._table = Table.open(disk, self._table_path)
        self._good_columns = False, False
        if self._table is not None:
            opened.callback(self._table.close)
            self._good_columns = self._table.holds(self._last)
        self._damaged_at: int | None = None
        """The first byte of the table that is another one, where it is known."""
        self._wrong_record: str | None = None
        """The first record that cannot be what was written."""
        self._wrong_records = 0
        self._is_rejected_good = True
        self._check_not_replaced()

    def _check_not_replaced(self) -> None:
        subject = self._subject
        now = read_last(self._disk, subject.settings, subject.run)
        if subject.last.finished and Proof.of_output(now) != Proof.of_output(self._last):
            raise UsageError(f"{subject.output} was just replaced by a retry: verify it again.")

    def rejected_file(self) -> None:
        """Are the records what was written: whole, in order, and as many?"""
        last, file = self._last, self._rejected
        if file is None:
            self._is_rejected_good = not last.rejected_bytes
            return
        crc = crc_of(file.read, 0, last.rejected_bytes)
        count, before = 0, -1
        for number, offset, record in read_records(file.read, last.rejected_bytes):
            count += 1
            problem = _record_problem(record, before, last.line_count)
            if isinstance(record, Record) and problem is None:
                before = record.id
            if problem is not None:
                self._add_wrong_record(f"its line {number:,} (byte {offset:,}) {problem}")
        if count != last.rejected_count:
            self._add_wrong_record(
                f"it has {count:,} records where {last.rejected_count:,} were written"
            )
        self._is_rejected_good = crc == last.rejected_crc and not self._wrong_records

    def input_file(self) -> bool:
        """Is the input the one that was answered?"""
        file = self._input
        if file is None:
            return False
        self._check_input_as_a_whole(file)
        blocks = self._pass(
            Side(
                path=self._subject.input,
                read=file.read,
                proof=Proof.of_input(self._last),
                marks=self._input_marks(),
                mark_text="is not the line that its record in the rejected file has",
                entry_crc=lambda entry: entry.input_crc,
                entry_offset=0,
                max_held_bytes=_HELD_BYTES,
            ),
            is_table_good=self._good_columns[0],
        )
        self._report.input_lines = blocks.tally.line_count
        return blocks.is_whole

    def _check_input_as_a_whole(self, file: File) -> None:
        path, run = self._subject.input, self._subject.run
        if run is None:
            return
        size = file.size()
        if size < self._last.input_offset:
            return  # that is said
        if size != run.input_bytes:
            text = f"{path} has {size:,} bytes; it had {run.input_bytes:,} when the job began."
            self._report.add(Finding(path=str(path), text=text))
        elif hash_input(self._disk, path, size) != run.input_hash:
            text = f"{path} is not the input that the job began with: its ends differ."
            self._report.add(Finding(path=str(path), text=text))

    def output_file(self, find_bad: FindBad) -> bool:
        """Is the output what was written, each line a result or its placeholder?"""
        file, run = self._output, self._subject.run
        if file is None:
            return False
        blocks = self._pass(
            Side(
                path=self._subject.output,
                read=file.read,
                proof=Proof.of_output(self._last),
                marks=self._output_marks(),
                mark_text="is not the placeholder, but has a record in the rejected file",
                entry_crc=lambda entry: entry.output_crc,
                entry_offset=ENTRY_BYTES // 2,
                find_bad=None if run is None or run.text else find_bad,
                max_held_bytes=_MAX_RESULT_BYTES,
            ),
            is_table_good=self._good_columns[1],
        )
        self._report.output_lines = blocks.tally.line_count
        return blocks.is_whole

    def _pass(self, side: Side, *, is_table_good: bool) -> Blocks:
        blocks = Blocks(side, self._table)
        walk = Walk(side, blocks)
        for piece in pieces(side.read, side.proof.length, max_held_bytes=side.max_held_bytes):
            walk.take(piece)
            self._advance(len(piece.data))
        walk.end()
        found, wanted = blocks.tally.line_count, self._last.line_count
        if found != wanted:
            text = (
                f"{side.path} has {found:,} lines in its first {side.proof.length:,} bytes, where"
                f" {wanted:,} were."
            )
            self._report.add(Finding(path=str(side.path), text=text))
        if not blocks.is_whole:
            self._report.add_many(blocks.findings(is_table_good=is_table_good))
        elif blocks.runs.first:
            at = blocks.runs.first[0].first * ENTRY_BYTES + side.entry_offset
            self._damaged_at = min(at, at if self._damaged_at is None else self._damaged_at)
        self._report.add_many(walk.bad)
        if self._is_rejected_good:
            self._report.add_many(walk.misfits)
        elif blocks.is_whole and walk.misfits.first:
            line = walk.misfits.first[0].line
            self._add_wrong_record(f"its record of line {line:,} is not of that line")
            self._wrong_records += walk.misfits.count - 1
        return blocks

    def _add_wrong_record(self, what: str) -> None:
        self._wrong_record = self._wrong_record or what
        self._wrong_records += 1

    def state(self) -> None:
        """Is what all was held against whole itself?"""
        self._tell_rejected()
        self._tell_table()
        self._tell_assumed()
        self._tell_assumed_records()
        if self._subject.loss is not None:
            path = str(self._subject.settings.state / RUN_NAME)
            self._report.add_cause(Finding(path=path, text=self._subject.loss))

    def _tell_rejected(self) -> None:
        """Once: all that does not fit such a file follows from it."""
        if self._is_rejected_good or self._rejected is None:
            return
        path = self._subject.rejected
        text = f"{path} is not what the job wrote in its first {self._last.rejected_bytes:,} bytes"
        if self._wrong_record is not None:
            text += f": {self._wrong_record}"
        if self._wrong_records > 1:
            text += f" (and {self._wrong_records - 1:,} more that do not fit)"
        self._report.add_cause(Finding(path=str(path), text=text + "."))

    def _tell_table(self) -> None:
        if all(self._good_columns):
            return
        path, at = self._table_path, self._damaged_at
        needed = Proof.of_output(self._last).block_count * ENTRY_BYTES
        if self._table is None:
            what = "is missing"
        elif self._table.size < needed:
            at = self._table.size
            what = f"ends at byte {at:,}, but the job has {needed:,} bytes in it"
        else:
            what = "is damaged" + ("" if at is None else f" at byte {at:,}")
        way = way_out(self._subject.output)
        if self._report.is_proved:
            command = f"trioline repair {shlex.quote(str(self._subject.output))}"
            way = f"`{command}` makes it anew from input and output, which both hold."
        self._report.add(Finding(path=str(path), byte=at, text=f"{path} {what}. {way}"))

    def _tell_assumed(self) -> None:
        first, end = self._last.assumed_first, self._last.assumed_end
        if first < end:
            path = self._subject.output
            name = shlex.quote(str(path))
            text = (
                f"{path}: lines {first:,} to {end - 1:,} are not proved: a repair took some of them"
                " by their form alone, or the input was written to, touched or copied after they"
                f" were answered, and nothing recorded what they were. `trioline repair {name}"
                " --recompute-unproved --yes` has them computed again, and proved."
            )
            self._report.is_proved = False
            self._report.add(
                Finding(path=str(path), line=first, last_line=end - 1, text=text, is_damage=False)
            )

    def _tell_assumed_records(self) -> None:
        if self._last.are_records_assumed:
            path = self._subject.rejected
            text = (
                f"{path}: what its records say of attempts and errors is not proved, nor that"
                " it has those of all rejected lines and no others: a repair took it as it was, or"
                " made some. Trying its lines again ends that."
            )
            self._report.add(Finding(path=str(path), text=text, is_damage=False))

    def _input_marks(self) -> Iterator[Mark]:
        for record in self._records():
            yield record.mark()

    def _output_marks(self) -> Iterator[Mark]:
        run = self._subject.run
        placeholder = b"\\x" if run is None else run.placeholder.encode()
        if b"\\x" in placeholder:
            return  # not known, or stands for bytes that are no UTF-8: which ones was not kept
        for record in self._records():
            yield Mark.of(record.id, placeholder)

    def _records(self) -> Iterator[Record]:
        if self._rejected is not None:
            before = -1
            for _, _, record in read_records(self._rejected.read, self._last.rejected_bytes):
                if isinstance(record, Record) and before < record.id < self._last.line_count:
                    before = record.id
                    yield record

    def _open(self, path: Path, length: int) -> File | None:
        """Open a file of which ``length`` bytes were written; None where it is missing."""
        if self._disk.stat(path) is None:
            if path == self._subject.rejected and not length:
                return None
            self._report.add(Finding(path=str(path), text=f"{path} is missing."))
            return None
        file = self._disk.open(path, os.O_RDONLY)
        self._opened.callback(file.close)
        size = file.size()
        if size < length:
            text = f"{path} ends at byte {size:,}; the job has {length:,} bytes in it."
            self._report.add(Finding(path=str(path), byte=size, text=text))
        elif size > length and self._last.finished and path != self._subject.input:
            text = f"{path} goes on after byte {length:,}, where the job ended it."
            self._report.add(Finding(path=str(path), byte=length, text=text))
        return file


def _record_problem(record: Record | str, before: int, line_count: int) -> str | None:
    if isinstance(record, str):
        return f"is no record: {record}"
    if record.id <= before:
        return f"has the record of line {record.id:,} after that of line {before:,}"
    if record.id >= line_count:
        return f"has a record of line {record.id:,}, but only {line_count:,} lines are written"
    return None
