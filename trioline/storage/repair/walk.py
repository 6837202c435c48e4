"""Goes through an output and finds the lines in it that hold, also behind those that do not.

Each block of 64 lines is proven by its crc32 and its number of lines. Behind a bad block the next
ones are looked for: where they would be if only bytes had changed, then nearby, then farther on. A
false match has a chance of 2⁻³² a try. Nearby, where one block is enough, there are at most some
2,000 tries for a bad block; farther on two blocks in a row must match, and the tries are bounded by
bytes to be summed up, so that damage of any size costs about as much as two more readings.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise

import attrs

from trioline.storage.checksums import BLOCK_LINES
from trioline.storage.repair.line_file import LineFile
from trioline.storage.repair.sums import Sums, add_block
from trioline.storage.repair.told import Judgement, Told, Word

_NEAR_BLOCKS = 8
_NEAR_LINES = 64
"""Added or lost; more than that is searched for farther on."""
_WINDOW_BLOCKS = 4_096
"""Looked for at a time farther on, around where the number of bytes says that they should be."""
_FAR_LINES = 4_096
"""Tried there before the window is moved on."""
_MIN_SEARCH_BYTES = 256 * 1024 * 1024
MAX_RESULT_BYTES = 1 << 30
"""No limit for results can be set higher."""

IsValid = Callable[[bytes], bool]
"""Says of one line, without its newline, whether it can be a result."""


@attrs.frozen
class Run:
    """Lines in a row that hold, and where they are in the output."""

    first: int
    count: int
    offset: int
    length: int
    """In bytes."""
    unknown: int = 0
    """Lines among them that no sum speaks for."""

    @property
    def end(self) -> int:
        """The line after the last one."""
        return self.first + self.count

    def is_followed_by(self, other: Run) -> bool:
        """Whether they are one run."""
        return self.end == other.first and self.offset + self.length == other.offset

    def joined(self, other: Run) -> Run:
        """Both, where one follows the other."""
        return Run(
            self.first,
            self.count + other.count,
            self.offset,
            self.length + other.length,
            self.unknown + other.unknown,
        )


class Walk:
    """One way through an output.

    Args:
        size: Of the output, in bytes.
        end_byte: Where its last line ended when it was written.
        is_valid: For lines that nothing speaks for.
        told: What the journal says of lines that no sum speaks for.
    """

    def __init__(
        self,
        lines: LineFile,
        sums: Sums,
        *,
        size: int,
        end_byte: int,
        is_valid: IsValid,
        told: Told | None = None,
    ) -> None:
        self.refuted: list[tuple[int, int]] = []
        """First and last block of stretches whose sums are known to be others."""
        self.assumed: list[tuple[int, int]] = []
        """First line and end of stretches that have but their form to speak for them."""
        self.disproved: list[tuple[int, int]] = []
        """Line and byte where the journal has another result."""
        self._lines = lines
        self._sums = sums
        self._size = size
        self._end_byte = end_byte
        self._is_valid = is_valid
        self._told = told
        self._moved: set[int] = set()
        """Lines that are elsewhere than those before them say."""
        self._search_bytes = max(_MIN_SEARCH_BYTES, 2 * size)
        """Left to be summed up in searches."""
        self._mean_bytes = max(1, size // max(1, sums.block_count))
        # Lines of gigabytes, as a hole in a file is one, would use all of it up.
        self._most_bytes = 1024 * 1024 + 16 * self._mean_bytes

    def runs(self) -> Iterator[Run]:
        """All that holds, in order, each run as long as it can be."""
        run: Run | None = None
        for part in self._proven_parts():
            if run is not None and run.is_followed_by(part):
                run = run.joined(part)
                continue
            if run is not None:
                yield run
            run = part
        if run is not None:
            yield run

    def _proven_parts(self) -> Iterator[Run]:
        """Keep unknown lines behind a bad block only where a good block or the end follows them.

        From the beginning on their places are certain; behind a bad block they are what was
        guessed, until something proves it. Where something proves that what follows them is
        elsewhere, they are not kept.
        """
        pending: Run | None = None
        is_certain = True
        line = 0
        for part in self._parts():
            if pending is not None:
                is_followed = pending.is_followed_by(part)
                if part.unknown and is_followed:
                    pending, line = pending.joined(part), part.end
                    continue
                if (is_certain or is_followed) and pending.end not in self._moved:
                    yield self._assume(pending)
            is_certain = (is_certain and part.first == line) or not part.unknown
            line = part.end
            pending = part if part.unknown else None
            if not part.unknown:
                yield part
        if pending is not None and pending.end not in self._moved:
            is_end = (pending.end, pending.offset + pending.length) == (
                self._sums.end,
                self._end_byte,
            )
            if is_certain or is_end:
                yield self._assume(pending)

    def _assume(self, part: Run) -> Run:
        if self.assumed and self.assumed[-1][1] == part.first:
            self.assumed[-1] = self.assumed[-1][0], part.end
        else:
            self.assumed.append((part.first, part.end))
        return part

    def _parts(self) -> Iterator[Run]:
        sums = self._sums
        number = at = 0
        while number < sums.block_count and at < self._size:
            size, entry = sums.size(number), sums.at(number)
            block = self._lines.block(at, size)
            first = number * BLOCK_LINES
            if not entry.is_known and number in sums.others:
                is_good = block.count == size
            elif not entry.is_known:
                found = 0
                for part in self._unsummed_parts(first, at, block.count):
                    found += part.count
                    yield part
                is_good = found == size
            else:
                is_good = block.count == size and block.crc == entry.output_crc
                if not is_good:
                    add_block(self.refuted, number)
                elif sums.is_input_good(number):
                    yield Run(first, size, at, block.length)
            number, at = (number + 1, at + block.length) if is_good else self._go_on(number, at)

    def _unsummed_parts(self, line: int, at: int, count: int) -> Iterator[Run]:
        """The lines of a block of which no sum is known, up to the first that does not hold."""
        end = line + count
        while line < end:
            said = Judgement(Word.NOTHING, end - line)
            if self._told is not None:
                said = self._told.judge(self._lines, line, at, end - line)
            if said.word is Word.NOTHING:
                found, length = self._valid_part(at, said.count)
                part = Run(line, found, at, length, unknown=found)
            elif said.word is Word.HOLDS:
                part = Run(line, said.count, at, self._lines.block(at, said.count).length)
            else:
                self.disproved.append((line, at))
                if said.word is Word.MOVED:
                    self._moved.add(line)
                return
            if part.count:
                yield part
            if part.count < said.count:
                return
            line, at = part.end, at + part.length

    def _valid_part(self, at: int, count: int) -> tuple[int, int]:
        """How many lines from a byte on can be results, and their bytes."""
        starts = self._lines.starts(at, count)
        for place, (begin, end) in enumerate(pairwise(starts)):
            is_long = end - begin > MAX_RESULT_BYTES
            if is_long or not self._is_valid(self._lines.read(begin, end - 1)):
                return place, begin - at
        return len(starts) - 1, starts[-1] - at

    # --- behind a bad block -----------------------------------------------------------------

    def _go_on(self, number: int, at: int) -> tuple[int, int]:
        """Where to go on behind a bad block: the next block, and the byte that it begins at."""
        starts = self._lines.starts(at, (_NEAR_BLOCKS + 1) * BLOCK_LINES + _NEAR_LINES)
        if len(starts) == 1:
            return self._sums.block_count, at
        as_it_lies = number + 1, starts[min(BLOCK_LINES, len(starts) - 1)]
        found = self._near(number, starts)
        if found is None and self._sums.at(number + 1).is_known:
            found = self._far(number, at)
        if found is None or starts[(found[0] - number) * BLOCK_LINES :][:1] == [found[1]]:
            return as_it_lies
        for lost in range(number + 1, found[0]):
            add_block(self.refuted, lost)
        return found

    def _near(self, number: int, starts: list[int]) -> tuple[int, int] | None:
        """Look for one of the next blocks, the fewer lines were added or lost the sooner."""
        for shift in sorted(range(-_NEAR_LINES, _NEAR_LINES + 1), key=abs):
            for ahead in range(1, _NEAR_BLOCKS + 1):
                begin = ahead * BLOCK_LINES + shift
                end = begin + self._sums.size(number + ahead)
                if not 0 <= begin < end < len(starts):
                    continue
                if self._holds(number + ahead, starts[begin], starts[end]):
                    return number + ahead, starts[begin]
                if self._search_bytes <= 0:
                    return None
        return None

    def _holds(self, number: int, begin: int, end: int) -> bool:
        entry = self._sums.at(number)
        if not entry.is_known or end - begin > self._most_bytes:
            return False
        self._search_bytes -= end - begin
        return self._lines.crc(begin, end) == entry.output_crc

    def _far(self, number: int, at: int) -> tuple[int, int] | None:
        """Look at each line behind the bad block whether one of the later blocks begins there."""
        sums, bad_at = self._sums, at
        window: dict[int, int] = {}
        window_end = 0
        while at < self._size and self._search_bytes > 0:
            starts = self._lines.starts(at, _FAR_LINES + BLOCK_LINES)
            for begin, end in zip(starts[:_FAR_LINES], starts[BLOCK_LINES:], strict=False):
                if end - begin > self._most_bytes or self._search_bytes <= 0:
                    continue
                self._search_bytes -= end - begin
                expected = number + 1 + (begin - bad_at) // self._mean_bytes
                if expected >= window_end:
                    first = max(number + 1, expected - _WINDOW_BLOCKS // 2)
                    window = sums.window(first, _WINDOW_BLOCKS)
                    window_end = first + _WINDOW_BLOCKS * 3 // 4
                found = window.get(self._lines.crc(begin, end))
                if found is not None and self._is_confirmed(found, end):
                    return found, begin
            if len(starts) <= _FAR_LINES:
                return self._at_end(number, starts)
            at = starts[_FAR_LINES]
        return None

    def _at_end(self, number: int, starts: list[int]) -> tuple[int, int] | None:
        """The last block, which may have fewer lines, as the last lines of all."""
        last = self._sums.block_count - 1
        begin = len(starts) - 1 - self._sums.size(last)
        if last <= number or begin < 0 or not self._holds(last, starts[begin], starts[-1]):
            return None
        return last, starts[begin]

    def _is_confirmed(self, number: int, end: int) -> bool:
        """Whether the block behind one that was found is there, too, or the end of it all."""
        if number + 1 == self._sums.block_count:
            return end == self._end_byte
        entry, size = self._sums.at(number + 1), self._sums.size(number + 1)
        block = self._lines.block(end, size)
        return entry.is_known and block.count == size and block.crc == entry.output_crc
