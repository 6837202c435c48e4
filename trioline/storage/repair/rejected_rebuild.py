"""The rejected file made anew, when it was damaged.

A rejected line has a placeholder in the output. Its record is one of the file's that still hold,
or one that the journal has; else one is made that says that the first one was lost, so that the
line is not forgotten.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Set
from pathlib import Path

from trioline.config import JobSettings
from trioline.storage.files import Disk
from trioline.storage.rejected import encode_record
from trioline.storage.repair.vouch import blocks, record_id
from trioline.storage.source import InputLineTooLong, Source

LOST = "the record of this line was lost; made anew by trioline repair"
_WRITE_BYTES = 256 * 1024


def unrecorded(disk: Disk, path: Path, lines: Set[int], length: int) -> set[int]:
    """Those of ``lines`` that have no record in the first ``length`` bytes of a rejected file."""
    missing = set(lines)
    if missing and disk.stat(path) is not None:
        at = 0
        for record in _lines(disk, path):
            at += len(record) + 1
            if at > length:
                break
            number = record_id(record)
            if number is not None:
                missing.discard(number)
    return missing


def write_records(
    disk: Disk,
    settings: JobSettings,
    line_count: int,
    known: Mapping[int, bytes],
    expected: int | None,
) -> tuple[int, int]:
    """Replace the rejected file by the records of the output's first lines, whole or not at all.

    Args:
        known: Records from the journal, by line.
        expected: How many there were; None where that is not known. When as many still hold, none
            is made for a placeholder that is a result like any other.

    Returns:
        Records and bytes.
    """
    path = settings.rejected
    is_all = expected is not None and _good_count(disk, settings, line_count, known) >= expected
    draft = path.with_name(path.name + ".new")
    count = length = 0
    gathered: list[bytes] = []
    size = 0
    with disk.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC) as file:
        for record in _records(disk, settings, line_count, known, is_all=is_all):
            gathered.append(record)
            size += len(record)
            count += 1
            if size >= _WRITE_BYTES:
                file.write(b"".join(gathered), length)
                length, gathered, size = length + size, [], 0
        file.write(b"".join(gathered), length)
        length += size
        file.sync()
    disk.rename(draft, path)
    disk.sync_folder(path.parent)
    return count, length


def _good_count(
    disk: Disk, settings: JobSettings, line_count: int, known: Mapping[int, bytes]
) -> int:
    return sum(1 for _ in _records(disk, settings, line_count, known, is_all=True))


def _records(
    disk: Disk,
    settings: JobSettings,
    line_count: int,
    known: Mapping[int, bytes],
    *,
    is_all: bool,
) -> Iterator[bytes]:
    """The records, in order; for lost ones others, unless ``is_all``."""
    source = Source(disk.files, settings.input, max_line_bytes=settings.max_line_bytes)
    good = _good_records(disk, settings.rejected)
    number, record = next(good, (line_count, b""))
    try:
        for line in _placeholders(disk, settings, line_count):
            while number < line:
                number, record = next(good, (line_count, b""))
            if number == line:
                yield record
            elif line in known:
                yield known[line]
            elif not is_all:
                yield encode_record(
                    line, _content(source, line), attempts=0, losses=0, errors=[LOST]
                )
    finally:
        source.close()


def _content(source: Source, line: int) -> bytes | int:
    try:
        return source.read(line, 1, 1 << 30)[0]
    except InputLineTooLong as error:
        return error.length


def _placeholders(disk: Disk, settings: JobSettings, line_count: int) -> Iterator[int]:
    for number, line in enumerate(_lines(disk, settings.output)):
        if number >= line_count:
            return
        if line == settings.placeholder:
            yield number


def _good_records(disk: Disk, path: Path) -> Iterator[tuple[int, bytes]]:
    """Lines that are records and in order, with their numbers."""
    before = -1
    if disk.stat(path) is None:
        return
    for record in _lines(disk, path):
        number = record_id(record)
        if number is not None and number > before:
            before = number
            yield number, record + b"\n"


def _lines(disk: Disk, path: Path) -> Iterator[bytes]:
    with disk.open(path, os.O_RDONLY) as file:
        for block in blocks(file):
            yield from block.split(b"\n")[:-1]
