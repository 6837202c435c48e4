"""What is recorded of each block of 64 lines, and which of them hold on the side of the input.

Only here is the table asked. Where the checkpoint does not vouch for it, what it says of a file
that is whole counts for nothing; of another one, what it does not know is unknown, and what it
says otherwise is done again: whether the entry or the lines are damaged, nothing tells. Only where
the input is certain, an entry that does not fit it is none.
"""

from __future__ import annotations

import os
from pathlib import Path

from trioline.storage.checkpoint import Checkpoint
from trioline.storage.checksums import BLOCK_LINES, UNKNOWN, Entry, Table
from trioline.storage.files import Disk
from trioline.storage.repair.line_file import LineFile

_TABLE_ENTRIES = 4_096
"""Read at a time."""
_MAX_TOLD = 5
"""Changed stretches that are told one by one."""


class Sums:
    """Expected sums by block.

    The checkpoint vouches for the lines of a block that is not complete, the table for the others.

    Args:
        end: The lines that may be in the output: of the last block fewer than 64 may count.
    """

    def __init__(self, table: Table | None, last: Checkpoint | None, end: int) -> None:
        self.end = end
        self.block_count = -(-end // BLOCK_LINES)
        self._table = table
        self._open: tuple[int, Entry] | None = None
        if last is not None and not last.finished and last.line_count % BLOCK_LINES:
            sums = Entry(last.input_crc, last.output_crc)
            self._open = last.line_count // BLOCK_LINES, sums
        self.are_inputs_vouched = self.are_outputs_vouched = False
        """Whether the table has for a side what the checkpoint counts on."""
        if table is not None and last is not None:
            self.are_inputs_vouched, self.are_outputs_vouched = table.holds(last)
        self.is_table_good = table is not None
        """Whether nothing is to be said against the table as a whole."""
        if last is not None:
            self.is_table_good = self.are_inputs_vouched and self.are_outputs_vouched
        self._begin = 0
        self._entries: list[Entry] = []
        self._bad_inputs = bytearray(self.block_count)
        self._is_input_certain = False
        self.others: frozenset[int] = frozenset()
        """Blocks without sums whose input is another one by what else is known."""

    def size(self, number: int) -> int:
        """How many lines a block has."""
        return max(0, min(BLOCK_LINES, self.end - number * BLOCK_LINES))

    def at(self, number: int) -> Entry:
        """The sums of a block; unknown ones where nothing is recorded."""
        if self._open is not None and number == self._open[0]:
            return self._open[1]
        if self._table is None or not 0 <= number < self.block_count:
            return UNKNOWN
        if not self._begin <= number < self._begin + len(self._entries):
            self._begin = number
            self._entries = self._table.read(number, _TABLE_ENTRIES)
        if self._is_input_certain and self._bad_inputs[number]:
            return UNKNOWN
        return self._entries[number - self._begin]

    def window(self, first: int, count: int) -> dict[int, int]:
        """The blocks from ``first`` on by the output's sum; of equal ones the first."""
        found: dict[int, int] = {}
        for number in range(first, min(first + count, self.block_count)):
            entry = self.at(number)
            if entry.is_known:
                found.setdefault(entry.output_crc, number)
        return found

    def drop_misfits(self, disk: Disk, path: Path) -> None:
        """Forget the entries that do not fit an input that is certainly the one that was answered.

        An entry may be another block's, where bytes were put into the table or are gone.
        """
        self.read_input(disk, path)
        self._is_input_certain = True

    def is_input_good(self, number: int) -> bool:
        """Whether the block's lines of the input are those that were answered, as far as known."""
        return not self._bad_inputs[number]

    def is_another_input(self, disk: Disk, output: Path) -> bool:
        """Whether no block of what ``read_input`` read is what was answered, but the answers are.

        Without these it is the table that holds nothing.
        """
        known = [number for number in range(self.block_count) if self.at(number).is_known]
        if not all(self._bad_inputs[number] for number in known) or disk.stat(output) is None:
            return False
        at = 0
        with disk.open(output, os.O_RDONLY) as file:
            lines = LineFile(file)
            for number in range(self.block_count):
                block = lines.block(at, self.size(number))
                at += block.length
                if self.at(number).is_known and self.at(number).output_crc == block.crc:
                    return True
        return False

    def read_input(self, disk: Disk, path: Path) -> list[tuple[int, int]]:
        """Hold the input against the sums; returns first and last block of changed stretches."""
        at = 0
        changed: list[tuple[int, int]] = []
        with disk.open(path, os.O_RDONLY) as file:
            lines = LineFile(file, counts_rest=True)
            for number in range(self.block_count):
                block = lines.block(at, self.size(number))
                at += block.length
                entry = self.at(number)
                if entry.is_known and entry.input_crc != block.crc:
                    self._bad_inputs[number] = 1
                    add_block(changed, number)
        return changed


def add_block(stretches: list[tuple[int, int]], number: int) -> None:
    """Add a block behind those of some stretches, each a first and a last block."""
    if stretches and stretches[-1][1] == number - 1:
        stretches[-1] = stretches[-1][0], number
    else:
        stretches.append((number, number))


def named(blocks: list[tuple[int, int]], end: int) -> str:
    """Stretches of blocks by their lines; the last of all is the one before ``end``."""
    told = [
        f"lines {first * BLOCK_LINES:,} to {min((last + 1) * BLOCK_LINES, end) - 1:,}"
        for first, last in blocks[:_MAX_TOLD]
    ]
    if len(blocks) > _MAX_TOLD:
        told.append(f"{len(blocks) - _MAX_TOLD} more places")
    return ", ".join(told)
