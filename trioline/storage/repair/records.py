"""The records of rejected lines: those that hold, and new ones for those that were lost.

A rejected line has a placeholder in the output. Its record is the one that the journal has, or one
of the file's that still hold; else one is made that says that the first one was lost, so that the
line is not forgotten. A record stands for itself: it holds where it says what its line of the
input is, as ``trioline verify`` reads it.

A placeholder may be a result like any other, too. The records are in the order of their lines, and
nothing is ever taken out: where two that hold follow each other without a byte between them, no
line between theirs was rejected.
"""

from __future__ import annotations

import contextlib
import enum
import os
import zlib
from collections.abc import Generator, Iterable, Iterator, Mapping
from itertools import pairwise

import attrs

from trioline.config import JobSettings, behind_links
from trioline.newlines import count_newlines
from trioline.storage.files import Disk
from trioline.storage.new_file import NewFile
from trioline.storage.rejected import encode_record
from trioline.storage.repair.line_file import LineFile
from trioline.storage.repair.ranges import Ranges
from trioline.storage.repair.walk import Run
from trioline.storage.retry_files import beside
from trioline.storage.source import InputLineTooLong, Source
from trioline.storage.verify.marks import Mark, Record, decode_record, read_lines

LOST = "the record of this line was lost; made anew by trioline repair"
DOUBTFUL = (
    "this line may have been rejected: its result is the placeholder, and where its record would be"
    " the file was damaged; made by trioline repair"
)


class Lacking(enum.Enum):
    """Which placeholders without a record get a new one."""

    NONE = 0
    IN_GAPS = 1
    """Those whose record would be where the file does not hold."""
    ALL = 2


@attrs.frozen(kw_only=True)
class Records:
    """The records that a rejected file begins with."""

    count: int
    length: int
    """In bytes."""


@attrs.frozen(kw_only=True)
class GoodRecord:
    """A record that holds."""

    line: int
    data: bytes
    """With its newline."""
    end: int
    """The byte behind it in its file."""

    @property
    def begin(self) -> int:
        """Its first byte."""
        return self.end - len(self.data)


def good_records(disk: Disk, settings: JobSettings) -> Generator[GoodRecord]:
    """The records of the rejected file that hold, by their lines; of a line the first."""
    if not in_order(disk, settings):
        yield from _sorted_records(disk, settings)
        return
    yield from _records_as_they_lie(disk, settings)


def in_order(disk: Disk, settings: JobSettings) -> bool:
    """Whether the records that hold lie in the order of their lines, as they were written."""
    with contextlib.closing(_records_as_they_lie(disk, settings)) as records:
        return all(one.line < other.line for one, other in pairwise(records))


def _sorted_records(disk: Disk, settings: JobSettings) -> Generator[GoodRecord]:
    """The same of a file whose lines were moved about: holds where each record is in memory."""
    with contextlib.closing(_records_as_they_lie(disk, settings)) as records:
        places = sorted((record.line, record.begin, record.end) for record in records)
    before = -1
    with disk.open(settings.rejected, os.O_RDONLY) as file:
        for line, begin, end in places:
            if line > before:
                yield GoodRecord(line=line, data=file.read(end - begin, begin), end=end)
            before = line


def _records_as_they_lie(disk: Disk, settings: JobSettings) -> Generator[GoodRecord]:
    if disk.stat(settings.rejected) is None:
        return
    with (
        contextlib.closing(_open_source(disk, settings)) as source,
        disk.open(settings.rejected, os.O_RDONLY) as file,
    ):
        size = file.size()
        for _, offset, line in read_lines(file.read, size):
            end = offset + len(line) + 1
            record = decode_record(line)
            if end > size or isinstance(record, str) or record.id < 0:
                continue
            if _is_of_its_line(source, record):
                yield GoodRecord(line=record.id, data=line + b"\n", end=end)


def leading_records(disk: Disk, settings: JobSettings, line: int) -> Generator[GoodRecord]:
    """Those of lines below ``line``, up to the first one that does not hold."""
    length = 0
    with contextlib.closing(good_records(disk, settings)) as records:
        for record in records:
            length += len(record.data)
            if record.end != length or record.line >= line:
                return
            yield record


def records_below(disk: Disk, settings: JobSettings, line: int) -> Records:
    """Count the leading records of lines below ``line``."""
    count = length = 0
    for record in leading_records(disk, settings, line):
        count, length = count + 1, record.end
    return Records(count=count, length=length)


class Finder:
    """Finds the records of lines, asked for in order.

    Args:
        known: Records that the journal has, by line: they are what was written.
        results: Lines whose results the journal knows: none of them was rejected.
        lacking: Which of the others get a record that says that theirs was lost.
        text: What that says.
    """

    def __init__(
        self,
        disk: Disk,
        settings: JobSettings,
        known: Mapping[int, bytes],
        results: Ranges,
        *,
        lacking: Lacking = Lacking.NONE,
        text: str = LOST,
    ) -> None:
        self._good = good_records(disk, settings)
        self._known = known
        self._results = results
        self._disk = disk
        self._settings = settings
        self._lacking = lacking
        self._text = text
        self._source: Source | None = None
        self._size = disk.size(settings.rejected)
        self._is_as_written = disk.stat(settings.rejected) is not None and in_order(disk, settings)
        self._before_end = 0
        """The byte behind the last record before ``_next``."""
        self._next = next(self._good, None)

    def find(self, line: int) -> bytes | None:
        """The record of a line that has a placeholder; None where it is a result like any other."""
        record = self.kept(line)
        if record is not None or line in self._results or self._lacking is Lacking.NONE:
            return record
        if self._lacking is Lacking.IN_GAPS and not self.is_in_gap(line):
            return None
        self._source = self._source or _open_source(self._disk, self._settings)
        content = _content(self._source, line)
        return encode_record(line, content, attempts=0, losses=0, errors=[self._text])

    def kept(self, line: int) -> bytes | None:
        """The record that journal or file have of a line."""
        found = self.in_file(line)
        return self._known.get(line, None if found is None else found.data)

    def in_file(self, line: int) -> GoodRecord | None:
        """The record that the file has of a line."""
        while self._next is not None and self._next.line < line:
            self._before_end = self._next.end
            self._next = next(self._good, None)
        return self._next if self._next is not None and self._next.line == line else None

    def is_in_gap(self, line: int) -> bool:
        """Whether the file does not hold where the record of such a line would be."""
        self.in_file(line)
        begin = self._size if self._next is None else self._next.begin
        return begin > self._before_end or not self._is_as_written

    def close(self) -> None:
        """Close what was opened."""
        self._good.close()
        if self._source is not None:
            self._source.close()


def placeholders(disk: Disk, settings: JobSettings, runs: Iterable[Run]) -> Generator[int]:
    """The lines of runs that have the placeholder for a result."""
    if disk.stat(settings.output) is None:
        return
    with disk.open(settings.output, os.O_RDONLY) as file:
        lines = LineFile(file)
        for run in runs:
            yield from _placeholders(lines, run, settings.placeholder)


def _placeholders(lines: LineFile, run: Run, placeholder: bytes) -> Iterator[int]:
    first = run.first
    for piece in lines.pieces(run.offset, run.offset + run.length):
        count = count_newlines(piece)
        if placeholder + b"\n" in piece:
            for number, line in enumerate(piece.split(b"\n")[:count], first):
                if line == placeholder:
                    yield number
        first += count


def write_records(disk: Disk, settings: JobSettings, base: Run, finder: Finder) -> Records:
    """Replace the rejected file by the records of the output's first lines, whole or not at all."""
    path = behind_links(settings.rejected)
    draft = beside(path)
    count = 0
    with (
        contextlib.closing(placeholders(disk, settings, [base])) as lines,
        NewFile(disk, draft, like=path) as file,
    ):
        for line in lines:
            record = finder.find(line)
            if record is not None:
                file.append(record)
                count += 1
        length = file.length
    disk.rename(draft, path)
    disk.sync_folder(path.parent)
    return Records(count=count, length=length)


def _open_source(disk: Disk, settings: JobSettings) -> Source:
    return Source(disk.files, settings.input, max_line_bytes=settings.max_line_bytes)


def _is_of_its_line(source: Source, record: Record) -> bool:
    mark: Mark = record.mark()
    try:
        lines = source.read(record.id, 1, 1 << 30).split()
    except InputLineTooLong as error:
        return mark.crc is None and mark.length == error.length
    return bool(lines) and mark.fits(len(lines[0]), zlib.crc32(lines[0]))


def _content(source: Source, line: int) -> bytes | int:
    try:
        return source.read(line, 1, 1 << 30).split()[0]
    except InputLineTooLong as error:
        return error.length
