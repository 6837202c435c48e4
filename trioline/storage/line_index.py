"""Where lines begin: a remembered place per 64 KiB or so, and the frontier of what is known.

A job of 10⁹ lines could not keep an offset for each line; from the nearest remembered place any
line is one small read away.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right

ANCHOR_SPACING_BYTES = 64 * 1024
"""Between two anchors at least; at the most it is this and what is added at a time."""
_MIN_FORGOTTEN = 1_024
"""Anchors dropped at a time at the least: deleting from an array's front moves all the rest."""


class LineIndex:
    """Sparse pairs of line number and byte offset, growing at the end, forgotten at the front."""

    def __init__(self, first: int, offset: int) -> None:
        self._lines = array("Q", [first])
        self._offsets = array("Q", [offset])
        self.count = first
        """Lines known, counted from line 0 of the file."""
        self.end_offset = offset
        """Byte offset at which line ``count`` begins, if there is one."""

    def extend(self, count: int, end_offset: int) -> None:
        """Add ``count`` lines that were found from ``end_offset`` of before up to the one given."""
        self.count += count
        self.end_offset = end_offset
        if end_offset - self._offsets[-1] >= ANCHOR_SPACING_BYTES:
            self._lines.append(self.count)
            self._offsets.append(end_offset)

    def anchor(self, line: int) -> tuple[int, int]:
        """The nearest remembered place at or before ``line``: its line and byte offset.

        Raises:
            ValueError: The place was forgotten, or the index begins after it.
        """
        at = bisect_right(self._lines, line) - 1
        if at < 0:
            raise ValueError(f"line {line} is before line {self._lines[0]}, where the index begins")
        return self._lines[at], self._offsets[at]

    def forget(self, before: int) -> None:
        """Let go of places that only lines below ``before`` need."""
        unneeded = bisect_right(self._lines, before) - 1
        if unneeded >= max(_MIN_FORGOTTEN, len(self._lines) // 2):
            del self._lines[:unneeded]
            del self._offsets[:unneeded]

    def size_bytes(self) -> int:
        """Memory that the remembered places take."""
        return self._lines.itemsize * (len(self._lines) + len(self._offsets))
