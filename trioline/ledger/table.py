"""What is kept for each line between the base and the frontier: nine bytes.

One says whether it is settled, eight name the lease it was last given out with. Whole ranges are
read and written at the speed of memory.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator

MIN_TRIM = 65_536
"""Places at the front of the owner table that may be unused before it is moved together."""


class LineTable:
    """The lines from ``base`` on; everything below is settled.

    Args:
        base: The first line that is not settled.
    """

    def __init__(self, base: int) -> None:
        self.base = base
        self._settled = bytearray()  # place i: line base + i
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
        first = max(first, base)
        if first >= stop:
            return range(first, first)
        start = settled.find(0, first - base, stop - base)
        if start < 0:
            start = max(len(settled), first - base)
        end = settled.find(1, start, stop - base)
        return range(base + start, base + end if end >= 0 else max(stop, base + start))

    def unsettled_runs(self, first: int, stop: int) -> Iterator[range]:
        """Find all lines without a result from ``first`` to before ``stop``."""
        while first < stop:
            run = self.first_unsettled_run(first, stop)
            if not run:
                return
            yield run
            first = run.stop

    def settle(self, run: range) -> None:
        """Mark lines, none of them below ``base``; moves ``base`` where they begin at it."""
        start, stop = run.start - self.base, run.stop - self.base
        if stop > len(self._settled):
            self._settled.extend(bytes(stop - len(self._settled)))
        self._settled[start:stop] = b"\x01" * (stop - start)
        if start == 0:
            self._advance()

    def _advance(self) -> None:
        done = self._settled.find(0)
        done = len(self._settled) if done < 0 else done
        del self._settled[:done]  # cheap: a bytearray moves its start, not its content
        self.base += done
        unused = self.base - self._owner_base
        if unused > max(MIN_TRIM, len(self._owner) // 2):
            del self._owner[:unused]
            self._owner_base = self.base

    def set_owner(self, lines: range, number: int) -> None:
        """Note the lease that lines are given out with."""
        missing = lines.stop - self._owner_base - len(self._owner)
        if missing > 0:
            self._owner.extend(array("q", [0]) * missing)
        start = lines.start - self._owner_base
        self._owner[start : start + len(lines)] = array("q", [number]) * len(lines)

    def owner(self, line: int) -> int:
        """The lease a line was last given out with, over by now or not; 0 where there is none."""
        place = line - self._owner_base
        return self._owner[place] if 0 <= place < len(self._owner) else 0
