"""Sets of lines, as ranges."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator


class Ranges:
    """Lines in ranges, joined where they touch; of any order when it is made."""

    def __init__(self, ranges: Iterable[tuple[int, int]]) -> None:
        self.firsts: list[int] = []
        self.ends: list[int] = []
        for first, end in sorted(ranges):
            if self.ends and first <= self.ends[-1]:
                self.ends[-1] = max(self.ends[-1], end)
            elif first < end:
                self.firsts.append(first)
                self.ends.append(end)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """Their first lines and ends, in order."""
        return zip(self.firsts, self.ends, strict=True)

    def __bool__(self) -> bool:
        return bool(self.firsts)

    def __contains__(self, line: int) -> bool:
        return self.has_all(line, line + 1)

    def has_all(self, first: int, end: int) -> bool:
        """Whether all lines from ``first`` to ``end`` are in it."""
        at = bisect_right(self.firsts, first) - 1
        return at >= 0 and end <= self.ends[at]

    def has_any(self, first: int, end: int) -> bool:
        """Whether any of the lines from ``first`` to ``end`` is in it."""
        at = bisect_right(self.ends, first)
        return at < len(self.firsts) and self.firsts[at] < end

    def gaps(self, first: int, end: int) -> Iterator[tuple[int, int]]:
        """The lines from ``first`` to ``end`` that are not in it."""
        at = bisect_right(self.ends, first)
        for begin, stop in zip(self.firsts[at:], self.ends[at:], strict=True):
            if begin >= end:
                break
            if first < begin:
                yield first, begin
            first = stop
        if first < end:
            yield first, end

    def hull(self, first: int, end: int) -> range:
        """The fewest lines in a row that are all of it from ``first`` to ``end``."""
        found = [
            (max(first, begin), min(end, stop))
            for begin, stop in self
            if begin < end and stop > first
        ]
        return range(found[0][0], found[-1][1]) if first < end and found else range(0)

    def count(self, end: int) -> int:
        """How many lines below ``end`` are in it."""
        return sum(max(0, min(stop, end) - first) for first, stop in self)

    def count_common(self, other: Ranges) -> int:
        """How many lines are in both."""
        return sum(
            end - first - sum(stop - begin for begin, stop in other.gaps(first, end))
            for first, end in self
        )
