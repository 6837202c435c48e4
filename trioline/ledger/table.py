"""What is kept for each line between the base and the frontier: nine bytes.

One says whether it is settled, eight name the lease it was last given out with. Whole ranges are
read and written at the speed of memory.
"""

from __future__ import annotations

from array import array

MIN_TRIM = 65_536
"""Places at the front of the owner table that may be unused before it is moved together."""


class LineTable:
    """The lines from ``base`` on; everything below is settled.

    Args:
        base: The first line that is not settled.
    """

    def __init__(self, base: int) -> None:
        self.base = base
        self.frontier = base
        """The first line that was never given out, nor settled before its turn."""
        self._settled = bytearray()  # place i: line base + i; ends with a settled one
        self._owner: array[int] = array("q")  # place i: line owner_base + i
        self._owner_base = base

    def settled_count(self, stop: int | None = None) -> int:
        """Count the settled lines from ``base`` to before ``stop``, or all."""
        if stop is None:
            return self._settled.count(1)
        return self._settled.count(1, 0, stop - self.base)

    def first_unsettled_run(self, first: int, stop: int) -> range:
        """Find the first lines without a result from ``first`` to before ``stop``."""
        base, settled = self.base, self._settled
        if first < base:
            first = base
        if first >= stop:
            return range(first, first)
        start, end = first - base, settled.find(1, first - base, stop - base)
        if end == start:
            start = settled.find(0, start, stop - base)
            if start < 0:  # all that is known of them is settled; the rest is not
                start = len(settled)
            end = settled.find(1, start, stop - base)
        return range(base + start, stop if end < 0 else base + end)

    def unsettled_runs(self, first: int, stop: int) -> list[range]:
        """Find all lines without a result from ``first`` to before ``stop``."""
        run = self.first_unsettled_run(first, stop)
        runs = [run]
        while run.stop < stop:
            run = self.first_unsettled_run(run.stop, stop)
            runs.append(run)
        return runs if run else runs[:-1]

    def settle(self, run: range) -> None:
        """Mark lines, none of them settled; moves ``base`` where they begin at it."""
        settled, start, stop = self._settled, run.start - self.base, run.stop - self.base
        if start > 0:
            if stop > len(settled):
                settled.extend(bytes(stop - len(settled)))
            settled[start:stop] = b"\x01" * (stop - start)
            return
        if settled:  # some lines were settled before their turn: perhaps all that come next
            next_one = settled.find(0, stop)
            stop = next_one if next_one >= 0 else len(settled)
            del settled[:stop]  # cheap: a bytearray moves its start, not its content
        self.base += stop
        if self.frontier < self.base:
            self.frontier = self.base
        if self.base - self._owner_base > MIN_TRIM:
            self._trim()

    def _trim(self) -> None:
        unused = self.base - self._owner_base
        if unused > len(self._owner) // 2:
            del self._owner[:unused]
            self._owner_base = self.base

    def set_owner(self, lines: range, number: int) -> None:
        """Note the lease that lines are given out with."""
        owner, start = self._owner, lines.start - self._owner_base
        gap = start - len(owner)
        if gap > 0:
            owner.extend(array("q", [0]) * gap)
        count = lines.stop - lines.start
        owner[start : start + count] = array("q", [number]) * count  # beyond the end it grows

    def owner(self, line: int) -> int:
        """The lease a line was last given out with, over by now or not; 0 where there is none."""
        place = line - self._owner_base
        return self._owner[place] if 0 <= place < len(self._owner) else 0
