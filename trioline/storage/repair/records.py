"""The records of rejected lines: those that hold, and new ones for those that were lost.

A rejected line has a placeholder in the output. Its record is one of the file's that still hold,
or one that the journal has; else one is made that says that the first one was lost, so that the
line is not forgotten.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Generator, Iterable, Iterator, Mapping, Set
from pathlib import Path

import attrs
import msgspec

from trioline.config import JobSettings
from trioline.storage.files import Disk
from trioline.storage.new_file import NewFile
from trioline.storage.rejected import encode_record
from trioline.storage.repair.line_file import LineFile
from trioline.storage.repair.walk import Run
from trioline.storage.source import InputLineTooLong, Source

LOST = "the record of this line was lost; made anew by trioline repair"


@attrs.frozen(kw_only=True)
class Records:
    """The records of a rejected file that hold, from its beginning on."""

    count: int
    length: int
    """In bytes."""


@attrs.frozen
class _Id:
    id: int


def _record_id(line: bytes) -> int | None:
    """The line that a record is about; None where it is no record."""
    try:
        return msgspec.json.decode(line, type=_Id).id
    except (ValueError, msgspec.MsgspecError, RecursionError):
        return None


def records_below(disk: Disk, path: Path, line: int) -> Records:
    """Count the records of lines below ``line``, up to the first that is none or out of order."""
    count = length = 0
    before = -1
    for record in _lines(disk, path):
        number = _record_id(record)
        if number is None or not before < number < line:
            break
        count, length, before = count + 1, length + len(record) + 1, number
    return Records(count=count, length=length)


def unrecorded(disk: Disk, path: Path, lines: Set[int], length: int) -> set[int]:
    """Those of ``lines`` that have no record in the first ``length`` bytes of a rejected file."""
    missing = set(lines)
    at = 0
    for record in _lines(disk, path) if missing else ():
        at += len(record) + 1
        if at > length:
            break
        number = _record_id(record)
        if number is not None:
            missing.discard(number)
    return missing


class Finder:
    """Finds the records of lines, asked for in order.

    Args:
        known: Records that the journal has, by line.
        makes_lost: Whether a record is made where none is found.
    """

    def __init__(
        self,
        disk: Disk,
        settings: JobSettings,
        known: Mapping[int, bytes],
        *,
        makes_lost: bool,
    ) -> None:
        self._good = _good_records(disk, settings.rejected)
        self._next: tuple[int, bytes] | None = next(self._good, None)
        self._known = known
        self._source = (
            Source(disk.files, settings.input, max_line_bytes=settings.max_line_bytes)
            if makes_lost
            else None
        )

    def find(self, line: int) -> bytes | None:
        """The record of a line that has a placeholder; None where it is a result like any other."""
        while self._next is not None and self._next[0] < line:
            self._next = next(self._good, None)
        if self._next is not None and self._next[0] == line:
            return self._next[1]
        if line in self._known or self._source is None:
            return self._known.get(line)
        content = _content(self._source, line)
        return encode_record(line, content, attempts=0, losses=0, errors=[LOST])

    def close(self) -> None:
        """Close what was opened."""
        self._good.close()
        if self._source is not None:
            self._source.close()


def placeholders(lines: LineFile, run: Run, placeholder: bytes) -> Iterator[int]:
    """The lines of a run that have the placeholder for a result."""
    first = run.first
    for piece in lines.pieces(run.offset, run.offset + run.length):
        count = piece.count(b"\n")
        if placeholder + b"\n" in piece:
            for number, line in enumerate(piece.split(b"\n")[:count], first):
                if line == placeholder:
                    yield number
        first += count


def found_count(disk: Disk, settings: JobSettings, runs: Iterable[Run], known: Set[int]) -> int:
    """Count the placeholders among the lines of runs that have a record."""
    finder = Finder(disk, settings, dict.fromkeys(known, b""), makes_lost=False)
    with contextlib.closing(finder), disk.open(settings.output, os.O_RDONLY) as file:
        lines = LineFile(file)
        return sum(
            finder.find(line) is not None
            for run in runs
            for line in placeholders(lines, run, settings.placeholder)
        )


def write_records(disk: Disk, settings: JobSettings, base: Run, finder: Finder) -> Records:
    """Replace the rejected file by the records of the output's first lines, whole or not at all."""
    path = settings.rejected
    draft = path.with_name(path.name + ".new")
    count = 0
    with disk.open(settings.output, os.O_RDONLY) as output, NewFile(disk, draft) as file:
        for line in placeholders(LineFile(output), base, settings.placeholder):
            record = finder.find(line)
            if record is not None:
                file.append(record)
                count += 1
        length = file.length
    disk.rename(draft, path)
    disk.sync_folder(path.parent)
    return Records(count=count, length=length)


def _content(source: Source, line: int) -> bytes | int:
    try:
        return source.read(line, 1, 1 << 30)[0]
    except InputLineTooLong as error:
        return error.length


def _good_records(disk: Disk, path: Path) -> Generator[tuple[int, bytes]]:
    """Lines that are records and in order, with their numbers."""
    before = -1
    with contextlib.closing(_lines(disk, path)) as records:
        for record in records:
            number = _record_id(record)
            if number is not None and number > before:
                before = number
                yield number, record + b"\n"


def _lines(disk: Disk, path: Path) -> Generator[bytes]:
    if disk.stat(path) is None:
        return
    with disk.open(path, os.O_RDONLY) as file:
        for piece in LineFile(file).pieces(0, file.stat().size):
            yield from piece.split(b"\n")[:-1]
