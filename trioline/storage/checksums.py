"""Checksums of what was answered with what: ``trioline verify`` holds the files against them.

Entry i of ``OUTPUT.trioline/checksums`` covers the lines 64·i to 64·i + 63: the crc32 of these
lines of the input, and of these lines of the output, newlines included; eight bytes an entry, so
that it is found without being looked for. An entry of zeros says that its lines are not known.

The table is written at each durable point, before the checkpoint that vouches for it: of the block
that is not complete then, the checkpoint itself holds the two sums. So a crash leaves no entry in
doubt, and a start needs nothing but the checkpoint to go on.
"""

from __future__ import annotations

import os
import re
import sys
import zlib
from array import array
from collections.abc import Callable
from pathlib import Path

import attrs

from trioline.errors import StorageError
from trioline.storage.checkpoint import Checkpoint
from trioline.storage.files import Disk, File, Stat

CHECKSUMS_NAME = "checksums"
BLOCK_LINES = 64
ENTRY_BYTES = 8
_READ_BYTES = 256 * 1024
_BLOCKS = re.compile(rb"(?:[^\n]*+\n){1,%d}+" % BLOCK_LINES)
"""Cuts whole lines into blocks; as fast as anything that python does with 190-byte lines."""

Read = Callable[[int, int], bytes]
"""Reads so many bytes from an offset on: fewer only at the end of the file."""


class Tally:
    """Sums up one side, block by block, as its bytes pass by.

    Args:
        line_count: Lines before the first byte; a multiple of 64, unless ``crc`` has those of the
            block that is begun.
        crc: Of the lines of that block, so far.
    """

    def __init__(self, line_count: int = 0, crc: int = 0) -> None:
        self.sums = array("I")
        """Of the blocks completed so far."""
        self.line_count = line_count
        """Lines up to here, from the file's first one."""
        self.crc = crc
        """Of the block that is not complete; 0 where none is begun."""
        self._is_inside = False
        """The last byte was no newline."""

    def feed(self, data: bytes) -> None:
        """Take the next bytes, wherever they are cut off."""
        cut = data.rfind(b"\n") + 1
        at = self._go_on(data, cut) if self._is_inside or self.line_count % BLOCK_LINES else 0
        blocks: list[bytes] = _BLOCKS.findall(data, at, cut)
        if blocks:
            self.sums.extend(map(zlib.crc32, blocks[:-1]))
            self._take(blocks[-1], blocks[-1].count(b"\n") + BLOCK_LINES * (len(blocks) - 1))
        if cut < len(data):
            self.crc = zlib.crc32(memoryview(data)[cut:], self.crc)
            self._is_inside = True

    def end(self) -> None:
        """Count a last line that has no newline."""
        if self._is_inside:
            self._take(b"", 1)

    def end_block(self) -> None:
        """Complete the last block of all, which may have fewer lines."""
        if self.line_count % BLOCK_LINES:
            self.sums.append(self.crc)
            self.crc = 0

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
    if sys.byteorder == "big":
        sums.byteswap()
    return sums.tobytes()


def from_bytes(data: bytes) -> array[int]:
    """Decode entries: input, output, input, …"""
    sums = array("I")
    sums.frombytes(data)
    if sys.byteorder == "big":
        sums.byteswap()
    return sums


class Checksums:
    """Writes the table of a running job.

    It opens what it needs when it needs it: a finished job's start needs nothing. Closing: its
    owner calls ``close``; it is idempotent.

    Args:
        folder: Of the job's state.
        input_path: Read by a descriptor of its own: the job's source belongs to another thread.
        read_output: Reads the output.
        output: Its path, for messages.
        given: The input that the job reads.
    """

    def __init__(
        self,
        disk: Disk,
        folder: Path,
        input_path: Path,
        output: Path,
        read_output: Read,
        given: Stat,
    ) -> None:
        self._disk = disk
        self._folder = folder
        self._input_path = input_path
        self._output = output
        self._read_output = read_output
        self._given = given
        self._input: File | None = None
        self._table: Table | None = None

    def cover(self, last: Checkpoint, new: Checkpoint) -> Checkpoint:
        """Put what was done between two checkpoints into the table, and sync it.

        Returns:
            ``new`` with the sums of the block that is not complete.

        Raises:
            DiskFull: The same call may be repeated.
            StorageError: Input or output are not what they were.
        """
        lines = new.line_count
        inputs = Tally(last.line_count, last.input_crc)
        outputs = Tally(last.line_count, last.output_crc)
        if lines > last.line_count or new.finished:
            read_input = self._opened_input().read
            _run_through(inputs, read_input, last.input_offset, new.input_offset)
            _run_through(outputs, self._read_output, last.output_bytes, new.output_bytes)
            for tally, path in ((inputs, self._input_path), (outputs, self._output)):
                if tally.line_count != lines:
                    raise _changed(path, last.line_count, tally.line_count, lines)
        crcs = inputs.crc, outputs.crc
        if new.finished:
            inputs.end_block()
            outputs.end_block()
        is_known = last.is_block_known or last.line_count % BLOCK_LINES == 0
        if inputs.sums:
            if not is_known:
                inputs.sums[0] = outputs.sums[0] = 0
            self._write(last.line_count // BLOCK_LINES, inputs.sums, outputs.sums)
        return attrs.evolve(
            new,
            input_crc=crcs[0],
            output_crc=crcs[1],
            is_block_known=is_known or bool(inputs.sums),
        )

    def close(self) -> None:
        """Close what was opened."""
        for file in (self._input, self._table):
            if file is not None:
                file.close()
        self._input = self._table = None

    def _write(self, first: int, inputs: array[int], outputs: array[int]) -> None:
        if self._table is None:
            path = self._folder / CHECKSUMS_NAME
            is_new = self._disk.stat(path) is None
            self._table = Table(self._disk.open(path, os.O_RDWR | os.O_CREAT))
            if is_new:  # a state that an earlier version made, or that lost its table
                self._disk.sync_folder(self._folder)
        self._table.write(first, inputs, outputs)
        self._table.sync()

    def _opened_input(self) -> File:
        if self._input is None:
            self._input = self._disk.open(self._input_path, os.O_RDONLY)
            if not self._input.stat().is_same(self._given):
                raise replaced(self._input_path)
        return self._input


def _run_through(tally: Tally, read: Read, begin: int, end: int) -> None:
    """Let a part of a file pass by; it ends where a line does."""
    while begin < end:
        data = read(min(_READ_BYTES, end - begin), begin)
        if not data:
            break
        tally.feed(data)
        begin += len(data)
    tally.end()


def replaced(path: Path) -> StorageError:
    """The error for an input that is no longer the file that the job began to read."""
    return StorageError(
        f"{path} was replaced or changed while the job began to read it. Put it back as it was,"
        " then start the same command again.",
        path,
    )


def _changed(path: Path, first: int, end: int, wanted: int) -> StorageError:
    return StorageError(
        f"{path} has changed while the job ran: from line {first} on it has {end - first} lines"
        f" where {wanted - first} were. Put it back as it was, then start the same command again.",
        path,
    )
