"""Proves that the nth line of the output answers the nth line of the input, or says where not.

Reads only: no lock, no sync, nothing is changed. What is looked at is what the checkpoint vouches
for, and that does not change any more, so that a server may go on meanwhile. Each file passes by
once (the rejected one thrice): memory is constant, but for the longest line.
"""

from __future__ import annotations

import contextlib
import os
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import attrs

from trioline.config import JobSettings
from trioline.errors import UsageError
from trioline.storage.checkpoint import Checkpoint, CheckpointFile
from trioline.storage.checksums import CHECKSUMS_NAME, Table
from trioline.storage.files import Disk, File, Files, OsFiles
from trioline.storage.opening import CHECKPOINT_NAME
from trioline.storage.retry_files import check_no_swap
from trioline.storage.run import Run, hash_input, read_run
from trioline.storage.verify.findings import Finding, Report
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

    run: Run
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
        StorageError: Its state cannot be read.
    """
    output, state = settings.output, settings.state
    run = read_run(disk, state)
    if run is None:
        raise UsageError(f"{output} is no job's output: there is no {state}. Check the path.")
    if settings.text and not run.text:
        raise UsageError(f"{output} belongs to a job without --text: leave it out.")
    last = _read_last(disk, settings, run)
    return Subject(
        settings=settings,
        run=run,
        last=last,
        input=settings.input,
        output=output,
        rejected=settings.rejected if is_elsewhere else run.rejected_path(output),
        total_bytes=last.input_offset + last.output_bytes,
    )


def _read_last(disk: Disk, settings: JobSettings, run: Run) -> Checkpoint:
    check_no_swap(disk, settings)
    path = settings.state / CHECKPOINT_NAME
    with contextlib.closing(CheckpointFile(disk, path, os.O_RDONLY)) as file:
        return file.read(run.id_bytes)


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
        check.input_file()
        check.output_file(find_bad)
    return report


class _Verification:
    """The three files, one after the other."""

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
        self._table = Table.open(disk, subject.settings.state / CHECKSUMS_NAME)
        if self._table is not None:
            opened.callback(self._table.close)
        self._check_not_replaced()

    def _check_not_replaced(self) -> None:
        subject = self._subject
        now = _read_last(self._disk, subject.settings, subject.run)
        if subject.last.finished and now.output_bytes != self._last.output_bytes:
            raise UsageError(f"{subject.output} was just replaced by a retry: verify it again.")

    def rejected_file(self) -> None:
        """Are the records whole, in order, and as many as were written?"""
        path, last, report = self._subject.rejected, self._last, self._report
        file = self._rejected
        if file is None:
            return
        count, before = 0, -1
        for number, offset, record in read_records(file.read, last.rejected_bytes):
            count += 1
            problem = _record_problem(record, before, last.line_count)
            if isinstance(record, Record) and problem is None:
                before = record.id
            if problem is not None:
                text = f"{path}: line {number} (byte {offset}) {problem}."
                report.add(Finding(path=str(path), line=number, byte=offset, text=text))
        if count != last.rejected_count:
            text = f"{path} has {count:,} records; the job wrote {last.rejected_count:,}."
            report.add(Finding(path=str(path), text=text))
        self._check_tail(
            file, last.rejected_bytes, last.rejected_tail_bytes, last.rejected_tail_crc
        )

    def input_file(self) -> None:
        """Is the input the one that was answered?"""
        path, last, run = self._subject.input, self._last, self._subject.run
        file = self._input
        if file is None:
            return
        size = file.stat().size
        if size != run.input_bytes:
            text = f"{path} has {size:,} bytes; it had {run.input_bytes:,} when the job began."
            self._report.add(Finding(path=str(path), text=text))
        elif hash_input(self._disk, path, size) != run.input_hash:
            text = f"{path} is not the input that the job began with: its ends differ."
            self._report.add(Finding(path=str(path), text=text))
        self._report.input_lines = self._pass(
            Side(
                path=path,
                read=file.read,
                end=last.input_offset,
                marks=self._input_marks(),
                mark_text="is not the line that its record in the rejected file has",
                entry_crc=lambda entry: entry.input_crc,
                max_held_bytes=_HELD_BYTES,
            )
        )

    def output_file(self, find_bad: FindBad) -> None:
        """Is the output what was written, each line a result or its placeholder?"""
        path, last = self._subject.output, self._last
        file = self._output
        if file is None:
            return
        self._report.output_lines = self._pass(
            Side(
                path=path,
                read=file.read,
                end=last.output_bytes,
                marks=self._output_marks(),
                mark_text="is not the placeholder, but has a record in the rejected file",
                entry_crc=lambda entry: entry.output_crc,
                find_bad=None if self._subject.run.text else find_bad,
                max_held_bytes=_MAX_RESULT_BYTES,
            )
        )
        if self._report.unsummed_lines:
            self._check_tail(file, last.output_bytes, last.tail_bytes, last.tail_crc)

    def _pass(self, side: Side) -> int:
        blocks = Blocks(side, self._table, self._last, self._report)
        walk = Walk(side, blocks, self._report)
        for piece in pieces(side.read, side.end, max_held_bytes=side.max_held_bytes):
            walk.take(piece)
            self._advance(len(piece.data))
        walk.end()
        found, wanted = blocks.tally.line_count, self._last.line_count
        if found != wanted:
            text = (
                f"{side.path} has {found:,} lines in its first {side.end:,} bytes, where {wanted:,}"
                " were."
            )
            self._report.add(Finding(path=str(side.path), text=text))
        # One side is enough: the table knows both or neither.
        self._report.unsummed_lines = blocks.unsummed_lines
        return found

    def _input_marks(self) -> Iterator[Mark]:
        for record in self._records():
            yield record.mark()

    def _output_marks(self) -> Iterator[Mark]:
        placeholder = self._subject.run.placeholder.encode()
        if b"\\x" in placeholder:
            return  # stands for bytes that are no UTF-8: which ones was not kept
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
        size = file.stat().size
        if size < length:
            text = f"{path} ends at byte {size:,}; the job has {length:,} bytes in it."
            self._report.add(Finding(path=str(path), byte=size, text=text))
        elif size > length and self._last.finished and path != self._subject.input:
            text = f"{path} goes on after byte {length:,}, where the job ended it."
            self._report.add(Finding(path=str(path), byte=length, text=text))
        return file

    def _check_tail(self, file: File, length: int, tail_bytes: int, tail_crc: int) -> None:
        begin = length - tail_bytes
        if zlib.crc32(file.read(tail_bytes, begin)) != tail_crc:
            text = f"{file.path}: bytes {begin:,} to {length:,} are not what was written."
            self._report.add(Finding(path=str(file.path), byte=begin, text=text))


def _record_problem(record: Record | str, before: int, line_count: int) -> str | None:
    if isinstance(record, str):
        return f"is no record: {record}"
    if record.id <= before:
        return f"has the record of line {record.id:,} after that of line {before:,}"
    if record.id >= line_count:
        return f"has a record of line {record.id:,}, but only {line_count:,} lines are written"
    return None
