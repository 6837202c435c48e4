"""Where in the journal the lines ahead of their turn are: eight bytes a line.

With line 0 stuck, a million results may wait: no objects, no tuples, one number a line in arrays of
1,024 lines each. An array goes when all its lines are written.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator

_CHUNK_LINES = 1_024
_REJECTED = 1 << 63
"""Set in a rejected line's number. Segment numbers stay below it for longer than disks last."""


class AheadIndex:
    """Line number to place; a place is a positive number below 2⁶³ that the journal understands."""

    def __init__(self) -> None:
        self._chunks: dict[int, array[int]] = {}
        self.count = 0
        """How many lines there are."""
        self.rejected_count = 0
        """How many of them are rejected ones."""

    def __contains__(self, line: object) -> bool:
        return isinstance(line, int) and self.place(line) is not None

    @property
    def end(self) -> int:
        """The line after the highest one; 0: there is none."""
        for key in sorted(self._chunks, reverse=True):
            filled = self._chunks[key].tobytes().rstrip(b"\0")
            if filled:
                return key * _CHUNK_LINES + (len(filled) + 7) // 8
        return 0

    def place(self, line: int) -> int | None:
        """Where the line's frame is; None for a line that is not ahead."""
        chunk = self._chunks.get(line // _CHUNK_LINES)
        value = chunk[line % _CHUNK_LINES] & ~_REJECTED if chunk is not None else 0
        return value or None

    def put(self, first: int, count: int, place: int, *, rejected: bool = False) -> None:
        """Remember a frame's lines; those that are there already stay where they are."""
        value = place | _REJECTED if rejected else place
        for key, begin, end in _parts(first, first + count):
            chunk = self._chunks.get(key)
            if chunk is None:
                chunk = self._chunks[key] = array("Q", bytes(8 * _CHUNK_LINES))
            before = chunk[begin:end]
            new_count = before.count(0)
            if new_count == end - begin:
                chunk[begin:end] = array("Q", [value]) * (end - begin)
            else:
                chunk[begin:end] = array("Q", [old or value for old in before])
            self.count += new_count
            self.rejected_count += new_count if rejected else 0

    def remove(self, first: int, count: int) -> None:
        """Forget lines; those that are not there are well forgotten."""
        for key, begin, end in _parts(first, first + count):
            chunk = self._chunks.get(key)
            if chunk is not None:
                self._uncount(chunk[begin:end])
                chunk[begin:end] = array("Q", bytes(8 * (end - begin)))

    def advance(self, written: int, now_written: int) -> None:
        """Forget the lines from ``written`` up to ``now_written``: all before them went before.

        Gives the memory of arrays back that are wholly behind.
        """
        if not self._chunks:
            return
        if self.count:
            self.remove(written, now_written - written)
        for key in range(written // _CHUNK_LINES, now_written // _CHUNK_LINES):
            self._chunks.pop(key, None)

    def ranges(self) -> Iterator[range]:
        """The lines that are ahead, in order, each range as long as it can be."""
        first = end = 0
        for key in sorted(self._chunks):
            for begin, stop in _occupied(self._chunks[key]):
                if key * _CHUNK_LINES + begin != end:
                    if end > first:
                        yield range(first, end)
                    first = key * _CHUNK_LINES + begin
                end = key * _CHUNK_LINES + stop
        if end > first:
            yield range(first, end)

    def size_bytes(self) -> int:
        """Memory that the arrays take."""
        return sum(chunk.itemsize * len(chunk) for chunk in self._chunks.values())

    def _uncount(self, values: array[int]) -> None:
        self.count -= len(values) - values.count(0)
        if self.rejected_count:
            self.rejected_count -= sum(value >= _REJECTED for value in values)


def _parts(first: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Cut a range of lines at chunk borders: key, first and end inside of the chunk."""
    while first < end:
        key, begin = divmod(first, _CHUNK_LINES)
        stop = min(_CHUNK_LINES, begin + end - first)
        yield key, begin, stop
        first += stop - begin


def _occupied(values: array[int]) -> Iterator[tuple[int, int]]:
    """First and end of each run of places."""
    begin = None
    for at, value in enumerate(values):
        if value and begin is None:
            begin = at
        elif not value and begin is not None:
            yield begin, at
            begin = None
    if begin is not None:
        yield begin, len(values)
