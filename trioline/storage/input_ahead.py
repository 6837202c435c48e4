"""What the input was where lines were answered ahead of their turn.

Their answers wait in the journal, perhaps over some restarts, and the table of checksums has
nothing of them until the output has them. So the journal has the crc32 of each block of 64 lines of
the input up to the last such line, recorded at each durable point; a start holds the input against
them. While nothing is ahead, nothing is read for it.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Iterator

from trioline.storage.checkpoint import Checkpoint
from trioline.storage.checksums import BLOCK_LINES, Read, Tally, encoded, from_bytes
from trioline.storage.frames import Frame, Kind

_READ_BYTES = 256 * 1024

IsAnswered = Callable[[range], bool]
"""Says whether any of some lines is answered."""


class InputAhead:
    """Sums up the input ahead of the output.

    Args:
        read: Reads the input.
        size: Of the input, in bytes.
    """

    def __init__(self, read: Read, size: int) -> None:
        self._read = read
        self._size = size
        self._known: dict[int, int] = {}
        """The sums of blocks that are not in the table yet: one for 64 lines of the window."""
        self._sums: Iterator[int] = iter(())
        self._next = 0
        """The block whose sum comes next."""
        self._recorded = 0
        """The first block that the journal does not have as it is."""
        self.is_other = False
        """Whether the journal has a block otherwise than it is, of which no line is answered."""
        self.proved_end = 0
        """Answered lines from the last checkpoint's up to this one were held against the input."""

    def put(self, frame: Frame) -> None:
        """Take what an earlier server recorded; of a block the last frame counts."""
        self._known.update(known_of(frame.first, frame.payload))

    def check(self, last: Checkpoint, is_answered: IsAnswered) -> list[int]:
        """Hold the input against what was ``put``.

        Returns:
            The blocks that are others, where a line of them is answered.
        """
        self._begin(last)
        self._known = {at: crc for at, crc in self._known.items() if at >= self._next}
        numbers = range(self._next, max(self._known, default=-1) + 1)
        found = {number: next(self._sums, 0) for number in numbers}  # 0: fewer lines are left
        other = [number for number, crc in self._known.items() if found[number] != crc]
        unknown = next((number for number in numbers if number not in self._known), numbers.stop)
        self.is_other = bool(other)
        self.proved_end = unknown * BLOCK_LINES
        self._recorded = min([unknown, *other])
        self._known, self._next = found, max(self._next, numbers.stop)
        return sorted(
            number
            for number in other
            if is_answered(range(number * BLOCK_LINES, (number + 1) * BLOCK_LINES))
        )

    def unrecorded(self, last: Checkpoint, end: int) -> Frame | None:
        """Make the frame that the journal lacks, of the blocks up to line ``end``.

        Args:
            last: The checkpoint that is about to be written: the blocks from its lines on count.
        """
        if self._next <= last.line_count // BLOCK_LINES:
            self._begin(last)
        while self._next * BLOCK_LINES < end:
            self._known[self._next] = next(self._sums, 0)
            self._next += 1
        first = max(self._recorded, last.line_count // BLOCK_LINES)
        if first >= self._next:
            self.is_other = False
            return None
        crcs = array("I", (self._known[number] for number in range(first, self._next)))
        count = len(crcs) * BLOCK_LINES
        return Frame(Kind.INPUT, first * BLOCK_LINES, count, encoded(crcs))

    def recorded(self, frame: Frame) -> None:
        """Note that the journal has a frame."""
        self._recorded = frame.end // BLOCK_LINES
        self.is_other = False

    def hold(self, first: int, sums: Iterable[int]) -> int | None:
        """Hold blocks that go into the table against what they were.

        Returns:
            The first that is another one.
        """
        if self._known:
            for number, crc in enumerate(sums, first):
                if self._known.pop(number, crc) != crc:
                    return number
        return None

    def _begin(self, last: Checkpoint) -> None:
        self._next = last.line_count // BLOCK_LINES
        self._recorded = max(self._recorded, self._next)
        self._sums = sums_from(self._read, self._size, last)


def known_of(first: int, payload: bytes) -> Iterator[tuple[int, int]]:
    """The blocks that an INPUT frame tells of, and their sums."""
    return enumerate(from_bytes(payload), first // BLOCK_LINES)


def sums_from(read: Read, size: int, last: Checkpoint | None) -> Iterator[int]:
    """The sums of the input's blocks, from the one that a checkpoint ends in to the last one."""
    tally, at = Tally(), 0
    if last is not None:
        tally, at = Tally(last.line_count, last.input_crc), last.input_offset
    while at < size and (data := read(min(_READ_BYTES, size - at), at)):
        at += len(data)
        tally.feed(data)
        yield from tally.take_sums()
    tally.end()
    tally.end_block()
    yield from tally.take_sums()
