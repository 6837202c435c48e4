"""The numbers of lines that are only some of a file's: the rejected ones, run again.

A file of eight bytes a line, in order, read where it is asked: a job may have many of them.
"""

from __future__ import annotations

import os
import struct
from bisect import bisect_left
from collections.abc import Iterator
from pathlib import Path

from trioline.errors import StorageError
from trioline.storage.files import Disk, File

_NUMBER = struct.Struct("<Q")
NUMBER_BYTES = _NUMBER.size
_READ_NUMBERS = 1_024


def pack(number: int) -> bytes:
    """Encode one number."""
    return _NUMBER.pack(number)


class Numbers:
    """Translates between *places*, from 0 without gaps, and the numbers of lines.

    Closing: the owner calls ``close``; it is idempotent.
    """

    def __init__(self, disk: Disk, path: Path) -> None:
        self._file: File = disk.open(path, os.O_RDONLY)
        self._count = self._file.size() // NUMBER_BYTES
        self._next = 0
        """The place that will be asked for next, if they come in order."""

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, place: int) -> int:
        """The number of the line at a place."""
        if not 0 <= place < self._count:
            raise IndexError(place)
        number: int
        (number,) = _NUMBER.unpack(self._read(place, 1))
        return number

    def __iter__(self) -> Iterator[int]:
        """All numbers, in order."""
        for first in range(0, self._count, _READ_NUMBERS):
            data = self._read(first, min(_READ_NUMBERS, self._count - first))
            yield from (number for (number,) in _NUMBER.iter_unpack(data))

    def place_of(self, number: int) -> int | None:
        """The place of a line; None where it is none of these."""
        place = self._next
        if place >= self._count or self[place] != number:
            place = bisect_left(self, number)
            if place == self._count or self[place] != number:
                return None
        self._next = place + 1
        return place

    def run_at(self, place: int, count: int) -> int:
        """How many of ``count`` lines from a place on follow each other without a gap."""
        first = self[place]
        end = min(place + count, self._count)
        low, high = place + 1, end
        while low < high:  # numbers only grow: once there was a gap, there is always one
            middle = (low + high) // 2
            if self[middle] - first == middle - place:
                low = middle + 1
            else:
                high = middle
        return low - place

    def _read(self, place: int, count: int) -> bytes:
        data = self._file.read(count * NUMBER_BYTES, place * NUMBER_BYTES)
        if len(data) < count * NUMBER_BYTES:
            raise StorageError(
                f"{self._file.path} has become shorter: it had {self._count} numbers when it was"
                " opened. Put it back from a copy, then start the same command again.",
                self._file.path,
            )
        return data

    def close(self) -> None:
        """Close the file."""
        self._file.close()
