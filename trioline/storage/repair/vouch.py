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
_BLOCK = re.compile(rb"(?:[^\n]*+\n){%d}" % BLOCK_LINES)
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
    is_refuted: bool = False
    """Whether a sum says that the lines behind it are not what was written."""


def blocks(file: File) -> Iterator[bytes]:
    """The whole lines of a file, 64 at a time; the last block may have fewer."""
    parts: list[bytes] = []
    at = count = 0
    while data := file.read(_READ_BYTES, at):
        at += len(data)
        parts.append(data)
        count += data.count(b"\n")
        if count >= BLOCK_LINES:
            text, end = b"".join(parts), 0
            for found in _BLOCK.finditer(text):
                yield found[0]
                end = found.end()
            parts = [text[end:]]
            count = parts[0].count(b"\n")
    rest = b"".join(parts)
    if b"\n" in rest:
        yield rest[: rest.rindex(b"\n") + 1]


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
    lines = length = unknown = known_end = 0
    is_refuted = False
    with disk.open(path, os.O_RDONLY) as file:
        for number, block in enumerate(blocks(file)):
            wanted = block if last is None else _first_lines(block, last.line_count - lines)
            if not wanted:
                break
            good, is_known = _good_part(number, wanted, entries.at(number), last, is_valid)
            lines, length = lines + good.count(b"\n"), length + len(good)
            if is_known:
                known_end = lines
                is_refuted = not good
            else:
                unknown += good.count(b"\n")
            if good != block:
                break
        most = limit(known_end)
        if lines > most:
            unknown, lines = max(0, unknown - (lines - most)), most
            length = _offset(file, lines)
    return Prefix(lines=lines, length=length, unknown=unknown, is_refuted=is_refuted)


def _good_part(
    number: int,
    block: bytes,
    entry: Entry,
    last: Checkpoint | None,
    is_valid: Callable[[bytes], bool],
) -> tuple[bytes, bool]:
    """The lines of a block that hold, and whether a sum speaks for them."""
    crc = zlib.crc32(block)
    is_begun = last is not None and number == last.line_count // BLOCK_LINES and not last.finished
    if is_begun and last is not None and last.is_block_known:
        return (block if crc == last.output_crc else b""), True
    if entry.is_known and crc == entry.output_crc:
        return block, True
    is_whole = block.count(b"\n") == BLOCK_LINES or (last is not None and last.finished)
    if entry.is_known and is_whole and not is_begun:
        return b"", True
    return _valid_part(block, is_valid), False


def _first_lines(block: bytes, count: int) -> bytes:
    if count >= block.count(b"\n"):
        return block
    return b"".join(line + b"\n" for line in block.split(b"\n")[: max(0, count)])


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
