"""A long file by its lines: blocks of them, and where they begin, in a memory that is bounded."""

from __future__ import annotations

import zlib
from collections.abc import Iterator

import attrs

from trioline.newlines import count_newlines, end_of_lines
from trioline.storage.files import File

_READ_BYTES = 1024 * 1024


@attrs.frozen
class Block:
    """Some lines in a row."""

    length: int
    """In bytes, newlines included."""
    count: int
    """Lines: fewer than were asked for only at the end of the file."""
    crc: int


class LineFile:
    """Reads at any place; fast where one block follows the other.

    Args:
        counts_rest: Whether bytes behind the last newline are a line: in an input they are, in an
            output a result that was cut off is none.
    """

    def __init__(self, file: File, *, counts_rest: bool = False) -> None:
        self._file = file
        self._counts_rest = counts_rest
        self._begin = 0
        self._data = b""
        self._guess = 0

    def block(self, at: int, count: int) -> Block:
        """The next ``count`` lines from a byte on; none are a block of no bytes."""
        if not count:
            return Block(0, 0, 0)
        length = self._length_of(at - self._begin, count)
        if not length:
            self._begin, self._data = at, self._file.read(_READ_BYTES, at)
            length = self._length_of(0, count)
        if not length:
            return self._sum_up(at, count)
        self._guess = length
        begin = at - self._begin
        return Block(length, count, zlib.crc32(memoryview(self._data)[begin : begin + length]))

    def _length_of(self, begin: int, count: int) -> int:
        """How long the lines are that begin in the data; 0 where they are not all in it."""
        data = self._data
        if not 0 <= begin < len(data):
            return 0
        return max(0, end_of_lines(data, begin, count, self._guess) - begin)

    def _sum_up(self, at: int, count: int) -> Block:
        """The same piece by piece, for lines that may be of any length."""
        begin = end = at
        lines = crc = so_far = 0
        while lines < count and (data := self._file.read(_READ_BYTES, at)):
            stop, found = _nth_newline(data, count - lines)
            if found:
                crc = so_far = zlib.crc32(data[:stop], so_far)
                end = at + stop
                lines += found
            so_far = zlib.crc32(data[stop:], so_far)
            at += len(data)
        if lines < count and self._counts_rest and at > end:
            return Block(at - begin, lines + 1, so_far)
        return Block(end - begin, lines, crc)

    def starts(self, at: int, count: int) -> list[int]:
        """Where the next ``count`` lines begin, and the byte behind the last of them."""
        starts = [at]
        while len(starts) <= count and (data := self._file.read(_READ_BYTES, at)):
            place = data.find(b"\n") + 1
            while place and len(starts) <= count:
                starts.append(at + place)
                place = data.find(b"\n", place) + 1
            at += len(data)
        return starts

    def crc(self, begin: int, end: int) -> int:
        """The crc32 of some bytes."""
        crc = 0
        while begin < end and (data := self._file.read(min(_READ_BYTES, end - begin), begin)):
            crc = zlib.crc32(data, crc)
            begin += len(data)
        return crc

    def read(self, begin: int, end: int) -> bytes:
        """Some bytes."""
        return self._file.read(end - begin, begin)

    def offset_of(self, line: int) -> int:
        """Where a line of the file begins; where it ends, for the line behind the last one."""
        at = 0
        while line and (data := self._file.read(_READ_BYTES, at)):
            stop, found = _nth_newline(data, line)
            line -= found
            at += len(data) if line else stop
        return at

    def line_count(self) -> int:
        """Count all lines."""
        at = count = 0
        is_inside = False
        while data := self._file.read(_READ_BYTES, at):
            at += len(data)
            count += count_newlines(data)
            is_inside = not data.endswith(b"\n")
        return count + (self._counts_rest and is_inside)

    def pieces(self, begin: int, end: int) -> Iterator[bytes]:
        """Whole lines from ``begin`` to ``end``, about a megabyte at a time."""
        held: list[bytes] = []
        while begin < end and (data := self._file.read(min(_READ_BYTES, end - begin), begin)):
            begin += len(data)
            cut = data.rfind(b"\n") + 1
            if cut:
                yield b"".join([*held, data[:cut]])
                held = []
            if cut < len(data):
                held.append(data[cut:])


def _nth_newline(data: bytes, count: int) -> tuple[int, int]:
    """The byte behind the newline number ``count``, or behind the last; and how many there are."""
    found = count_newlines(data)
    if found <= count:
        return data.rfind(b"\n") + 1, found
    at = 0
    for _ in range(count):
        at = data.find(b"\n", at) + 1
    return at, count
