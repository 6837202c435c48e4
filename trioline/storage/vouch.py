"""How much of an output can be vouched for, and of its rejected file, when a checkpoint cannot.

The table of checksums vouches for blocks of 64 lines; the checkpoint for the lines of a block that
is not complete. Where nothing is known of lines, whole and valid ones are taken.
"""

from __future__ import annotations

import os
import re
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import attrs
import msgspec

from trioline.storage.checkpoint import Checkpoint
from trioline.storage.checksums import BLOCK_LINES, Entry, Table
from trioline.storage.files import Disk, File

_READ_BYTES = 1024 * 1024
_LINES = re.compile(rb"(?:[^\n]*+\n){%d}+" % BLOCK_LINES)
_TABLE_ENTRIES = 4_096
"""Read at a time."""


@attrs.frozen(kw_only=True)
class Prefix:
    """The lines of the output that hold, from its beginning on."""

    lines: int
    length: int
    """In bytes."""
    unknown: int = 0
    """Lines among them that nothing but their form speaks for."""
    whole: int = 0
    """Whole lines in all of the file, good or not."""


def blocks(file: File) -> Iterator[bytes]:
    """The whole lines of a file, 64 at a time; the last block may have fewer."""
    parts: list[bytes] = []
    at = count = 0
    while data := file.read(_READ_BYTES, at):
        at += len(data)
        parts.append(data)
        count += data.count(b"\n")
        if count < BLOCK_LINES:
            continue
        text = b"".join(parts)
        end = 0
        for found in _LINES.finditer(text):
            for block in _cut(found[0]):
                yield block
            end = found.end()
        parts = [text[end:]]
        count = parts[0].count(b"\n")
    rest = b"".join(parts)
    if b"\n" in rest:
        yield rest[: rest.rindex(b"\n") + 1]


_BLOCK = re.compile(rb"(?:[^\n]*+\n){%d}" % BLOCK_LINES)


def _cut(text: bytes) -> list[bytes]:
    found: list[bytes] = _BLOCK.findall(text)
    return found


def vouched(
    disk: Disk,
    path: Path,
    table: Table | None,
    last: Checkpoint | None,
    *,
    limit: Callable[[int], int],
    is_valid: Callable[[bytes], bool],
) -> Prefix:
    """Find the longest prefix of an output that holds.

    Args:
        last: The checkpoint, where there is one: nothing behind it is looked at.
        limit: Given how many whole lines the table knows: the most that may be taken.
        is_valid: Says of one line, with its newline, whether it can be a result.
    """
    entries = _Entries(table)
    lines = length = unknown = whole = known_end = 0
    is_held = True
    with disk.open(path, os.O_RDONLY) as file:
        for number, block in enumerate(blocks(file)):
            count = block.count(b"\n")
            whole += count
            if not is_held:
                continue
            entry = entries.at(number)
            if last is not None and whole > last.line_count:
                block = _first_lines(block, count - (whole - last.line_count))
            if not block:
                is_held = False
            elif entry.is_known and entry.output_crc == zlib.crc32(block):
                lines, length = lines + block.count(b"\n"), length + len(block)
                known_end = lines
            elif _is_begun(number, last) and last is not None and last.is_block_known:
                is_held = False
                if zlib.crc32(block) == last.output_crc:
                    lines, length = lines + block.count(b"\n"), length + len(block)
                    known_end = lines
            elif entry.is_known and (last is not None or count == BLOCK_LINES):
                is_held = False
            else:
                good = _valid_part(block, is_valid)
                is_held = len(good) == len(block)
                lines, length = lines + good.count(b"\n"), length + len(good)
                unknown += good.count(b"\n")
        most = limit(known_end)
        if lines > most:
            length = _offset(file, most)
            unknown, lines = max(0, unknown - (lines - most)), most
    return Prefix(lines=lines, length=length, unknown=unknown, whole=whole)


def _is_begun(number: int, last: Checkpoint | None) -> bool:
    """Whether the checkpoint has the sum of this block's first lines."""
    if last is None or last.line_count % BLOCK_LINES == 0:
        return False
    return number == last.line_count // BLOCK_LINES


def _first_lines(block: bytes, count: int) -> bytes:
    if count <= 0:
        return b""
    return b"".join(block.splitlines(keepends=True)[:count]) if b"\r" not in block else (
        b"\n".join(block.split(b"\n")[:count]) + b"\n"
    )


def _valid_part(block: bytes, is_valid: Callable[[bytes], bool]) -> bytes:
    end = 0
    for line in block.split(b"\n")[:-1]:
        if not is_valid(line):
            break
        end += len(line) + 1
    return block[:end]


def offset_of_line(disk: Disk, path: Path, line: int) -> int:
    """Where a line of a file begins."""
    with disk.open(path, os.O_RDONLY) as file:
        return _offset(file, line)


def _offset(file: File, line: int) -> int:
    at = 0
    for number, block in enumerate(blocks(file)):
        if (number + 1) * BLOCK_LINES > line:
            return at + len(_first_lines(block, line - number * BLOCK_LINES))
        at += len(block)
    return at


def is_json(line: bytes) -> bool:
    """Whether a line is a result of a job of JSON lines."""
    try:
        line.decode("utf-8")
        msgspec.json.decode(line)
    except (ValueError, msgspec.MsgspecError, RecursionError):
        return False
    return True


def is_text(line: bytes) -> bool:
    """Whether a line is a result of a job of text; zeros are what a lost block reads as."""
    try:
        return "\0" not in line.decode("utf-8")
    except ValueError:
        return False


class _Entries:
    """The table's entries in order, read some thousand at a time."""

    def __init__(self, table: Table | None) -> None:
        self._table = table
        self._begin = 0
        self._entries: list[Entry] = []

    def at(self, number: int) -> Entry:
        if self._table is None:
            return Entry(0, 0)
        if not self._begin <= number < self._begin + len(self._entries):
            self._begin = number
            self._entries = self._table.read(number, _TABLE_ENTRIES)
        return self._entries[number - self._begin]


@attrs.frozen(kw_only=True)
class Records:
    """The records of a rejected file that hold, from its beginning on."""

    count: int
    length: int
    """In bytes."""


def record_id(line: bytes) -> int | None:
    """The line that a record is about; None where it is no record."""
    try:
        return msgspec.json.decode(line, type=_Id).id
    except (ValueError, msgspec.MsgspecError, RecursionError):
        return None


@attrs.frozen
class _Id:
    id: int


def records_below(disk: Disk, path: Path, line: int) -> Records:
    """Count the records of lines below ``line``, up to the first that is none or out of order."""
    count = length = 0
    before = -1
    with disk.open(path, os.O_RDONLY) as file:
        for block in blocks(file):
            for record in block.split(b"\n")[:-1]:
                number = record_id(record)
                if number is None or not before < number < line:
                    return Records(count=count, length=length)
                count, length, before = count + 1, length + len(record) + 1, number
    return Records(count=count, length=length)
