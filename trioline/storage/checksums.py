"""Checksums of what was answered with what: ``trioline verify`` holds the files against them.

Entry i of ``OUTPUT.trioline/checksums`` covers the lines 64·i to 64·i + 63: the crc32 of these
lines of the input, and of these lines of the output, newlines included; eight bytes an entry, so
that it is found without being looked for.

The table is written at each durable point, before the checkpoint that vouches for it. That holds,
for each side, the sum of the block that is not complete then, and one sum of all the sums before
it. So a crash leaves no entry in doubt, a start needs nothing but the checkpoint to go on, and a
whole file proves itself without the table, which only says where one that is not whole differs.
"""

from __future__ import annotations

import os
import sys
import zlib
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path

import attrs

from trioline.newlines import count_newlines, end_of_lines
from trioline.storage.checkpoint import Checkpoint
from trioline.storage.files import Disk, File

CHECKSUMS_NAME = "checksums"
BLOCK_LINES = 64
ENTRY_BYTES = 8
_READ_BYTES = 256 * 1024

Read = Callable[[int, int], bytes]
"""Reads so many bytes from an offset on: fewer only at the end of the file."""


class Tally:
    """Sums up one side, block by block, as its bytes pass by.

    Args:
        line_count: Lines before the first byte; a multiple of 64, unless ``crc`` has those of the
            block that is begun.
        crc: Of the lines of that block, so far.
        sums_crc: Of the sums of all blocks before it.
    """

    def __init__(self, line_count: int = 0, crc: int = 0, sums_crc: int = 0) -> None:
        self.sums = array("I")
        """Of the blocks completed since ``take_sums``."""
        self.sums_crc = sums_crc
        """Of the sums that were taken."""
        self.line_count = line_count
        """Lines up to here, from the file's first one."""
        self.crc = crc
        """Of the block that is not complete; 0 where none is begun."""
        self._is_inside = False
        """The last byte was no newline."""
        self._block_bytes = 0  # of the last block that was in one piece

    def feed(self, data: bytes) -> None:
        """Take the next bytes, wherever they are cut off."""
        cut = data.rfind(b"\n") + 1
        at = self._go_on(data, cut) if self._is_inside or self.line_count % BLOCK_LINES else 0
        while end := end_of_lines(data, at, BLOCK_LINES, self._block_bytes):
            self._take(data[at:end], BLOCK_LINES)
            self._block_bytes = end - at
            at = end
        if at < cut:
            self._take(data[at:cut], count_newlines(data[at:cut]))
        if cut < len(data):
            self.crc = zlib.crc32(memoryview(data)[cut:], self.crc)
            self._is_inside = True

    def end(self) -> None:
        """Count a last line that has no newline."""
        if self._is_inside:
            self._take(b"", 1)

    def end_block(self) -> None:
        """Complete the last block of all, which may have fewer lines; ``crc`` stays."""
        if self.line_count % BLOCK_LINES:
            self.sums.append(self.crc)

    def take_sums(self) -> array[int]:
        """Hand over the sums of the blocks completed since the last call."""
        sums, self.sums = self.sums, array("I")
        self.sums_crc = zlib.crc32(encoded(sums), self.sums_crc)
        return sums

    def _go_on(self, data: bytes, cut: int) -> int:
        """Take the rest of the block that is begun; returns where it ends."""
        at = count = 0
        missing = BLOCK_LINES - self.line_count % BLOCK_LINES
        while at < cut and count < missing:
            at = data.find(b"\n", at) + 1
            count += 1
        if count:
            self._take(data[:at], count)
        return at

    def _take(self, lines: bytes, count: int) -> None:
        """Take lines that end in the block that is begun, or complete it."""
        self.crc = zlib.crc32(lines, self.crc)
        self.line_count += count
        self._is_inside = False
        if self.line_count % BLOCK_LINES == 0:
            self.sums.append(self.crc)
            self.crc = 0


@attrs.frozen(kw_only=True)
class Proof:
    """What a checkpoint says of one of the two files, as a whole."""

    length: int
    """How much of it counts, in bytes."""
    line_count: int
    crc: int
    sums_crc: int
    is_finished: bool

    @classmethod
    def of_input(cls, last: Checkpoint) -> Proof:
        """Of the lines that are answered."""
        return cls(
            length=last.input_offset,
            line_count=last.line_count,
            crc=last.input_crc,
            sums_crc=last.input_sums_crc,
            is_finished=last.finished,
        )

    @classmethod
    def of_output(cls, last: Checkpoint) -> Proof:
        """Of their answers."""
        return cls(
            length=last.output_bytes,
            line_count=last.line_count,
            crc=last.output_crc,
            sums_crc=last.output_sums_crc,
            is_finished=last.finished,
        )

    @property
    def block_count(self) -> int:
        """Blocks that are in the table."""
        count = self.line_count // BLOCK_LINES
        return count + bool(self.is_finished and self.line_count % BLOCK_LINES)

    def holds(self, read: Read) -> bool:
        """Whether a file is what was written: reads all of it."""
        tally = Tally()
        run_through(tally, read, 0, self.length)
        if self.is_finished:
            tally.end_block()
        tally.take_sums()
        return self.fits(tally)

    def fits(self, tally: Tally) -> bool:
        """The same, of a file that has passed by, and whose sums were taken."""
        known = self.line_count, self.crc, self.sums_crc
        return known == (tally.line_count, tally.crc, tally.sums_crc)


@attrs.frozen
class Entry:
    """The sums of one block."""

    input_crc: int
    output_crc: int

    @property
    def is_known(self) -> bool:
        """Whether anything is known of the block."""
        return bool(self.input_crc or self.output_crc)


UNKNOWN = Entry(0, 0)


class Table:
    """The file, as it is read and written.

    Closing: its owner calls ``close``; it is idempotent.
    """

    def __init__(self, file: File) -> None:
        self._file = file

    @classmethod
    def open(cls, disk: Disk, path: Path) -> Table | None:
        """Open a table to read it; None where there is none."""
        return None if disk.stat(path) is None else cls(disk.open(path, os.O_RDONLY))

    def read(self, first: int, count: int) -> list[Entry]:
        """Read entries; those beyond the end are unknown."""
        data = self._file.read(count * ENTRY_BYTES, first * ENTRY_BYTES)
        sums = from_bytes(data[: len(data) // ENTRY_BYTES * ENTRY_BYTES])
        entries = [Entry(*pair) for pair in zip(sums[::2], sums[1::2], strict=True)]
        return entries + [UNKNOWN] * (count - len(entries))

    def holds(self, last: Checkpoint) -> tuple[bool, bool]:
        """Whether the input's sums, and the output's, are what a checkpoint counts on."""
        left, at, crcs = Proof.of_output(last).block_count * ENTRY_BYTES, 0, (0, 0)
        while left and (data := self._file.read(min(_READ_BYTES, left), at)):
            left -= len(data)
            at += len(data)
            sums = from_bytes(data[: len(data) // ENTRY_BYTES * ENTRY_BYTES])
            crcs = (
                zlib.crc32(encoded(sums[::2]), crcs[0]),
                zlib.crc32(encoded(sums[1::2]), crcs[1]),
            )
        return (
            not left and crcs[0] == last.input_sums_crc,
            not left and crcs[1] == last.output_sums_crc,
        )

    @property
    def size(self) -> int:
        """How long the file is, in bytes."""
        return self._file.size()

    def write(self, first: int, inputs: array[int], outputs: array[int]) -> None:
        """Write entries.

        Raises:
            DiskFull: Some may be written: nothing vouches for them.
        """
        self._file.write(interleaved(inputs, outputs), first * ENTRY_BYTES)

    def sync(self) -> None:
        """Return when all of it is on the disk."""
        self._file.sync()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def interleaved(inputs: array[int], outputs: array[int]) -> bytes:
    """Encode entries."""
    assert len(inputs) == len(outputs)
    sums = array("I", bytes(ENTRY_BYTES * len(inputs)))
    sums[::2], sums[1::2] = inputs, outputs
    return encoded(sums)


def encoded(sums: array[int]) -> bytes:
    """Encode sums."""
    if sys.byteorder == "big":
        sums = array("I", sums)
        sums.byteswap()
    return sums.tobytes()


def from_bytes(data: bytes) -> array[int]:
    """Decode entries: input, output, input, …"""
    sums = array("I")
    sums.frombytes(data)
    if sys.byteorder == "big":
        sums.byteswap()
    return sums


def agreeing_lines(table: Table, read_input: Read, read_output: Read) -> int:
    """How many lines, from the first one on, a table proves where no checkpoint vouches for it.

    Whole blocks only: what is behind the last of them was perhaps never written.
    """
    count = 0
    for pair in zip(_sums_of(read_input), _sums_of(read_output), strict=False):
        if table.read(count, 1) != [Entry(*pair)]:
            break
        count += 1
    return count * BLOCK_LINES


def _sums_of(read: Read) -> Iterator[int]:
    """The sums of a file's whole blocks, in order."""
    tally, at = Tally(), 0
    while data := read(_READ_BYTES, at):
        at += len(data)
        tally.feed(data)
        yield from tally.take_sums()


def crc_of(read: Read, begin: int, end: int, crc: int = 0) -> int:
    """crc32 of a part of a file, or of what is there of it, with ``crc`` of what is before."""
    while begin < end and (data := read(min(_READ_BYTES, end - begin), begin)):
        crc = zlib.crc32(data, crc)
        begin += len(data)
    return crc


def run_through(tally: Tally, read: Read, begin: int, end: int) -> None:
    """Let a part of a file pass by; it ends where a line does."""
    while begin < end:
        data = read(min(_READ_BYTES, end - begin), begin)
        if not data:
            break
        tally.feed(data)
        begin += len(data)
    tally.end()
