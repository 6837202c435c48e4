"""What was tried before with lines that are not settled: found by a recovery, handed over once.

A line's attempts and errors outlive the server in the journal alone. While it runs, the ledger has
them; between the two this holds eight bytes a line.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby

from trioline.storage.ahead import AheadIndex
from trioline.storage.frames import Frame
from trioline.storage.journal import Journal


class TriedIndex:
    """Where in the journal the last TRIED frame of each line is."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._places = AheadIndex()

    def put(self, frame: Frame, place: int) -> None:
        """Remember a TRIED frame's lines; it takes the place of those before."""
        self._places.remove(frame.first, frame.count)
        self._places.put(frame.first, frame.count, place)

    def take(self, written: int, ahead: AheadIndex) -> Iterator[tuple[range, bytes]]:
        """Hand over and forget.

        Args:
            written: Lines below it are settled.
            ahead: So are these.

        Returns:
            The other lines in order, neighbours that share a frame together, with its payload.

        Raises:
            StorageError: A frame is not what was written.
        """
        places, self._places = self._places, AheadIndex()

        def place_of(line: int) -> int | None:
            return None if line < written or line in ahead else places.place(line)

        for lines in places.ranges():
            for place, part in groupby(lines, place_of):
                if place is not None:
                    first, *others = part
                    yield range(first, first + 1 + len(others)), self._journal.read(place).payload
