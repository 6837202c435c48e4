"""What the journal says of lines in the output: that they are what was written, or are not."""

from __future__ import annotations

import enum
from collections.abc import Iterable

import attrs

from trioline.storage.files import Disk
from trioline.storage.frames import Frame, Kind, mark_of
from trioline.storage.repair.line_file import LineFile
from trioline.storage.repair.salvage import Piece, Scan
from trioline.storage.segment import Segment


class Word(enum.Enum):
    """What is said of some lines."""

    NOTHING = enum.auto()
    HOLDS = enum.auto()
    OTHER = enum.auto()
    """They are not what was written."""
    MOVED = enum.auto()
    """The same, and what was written was at another byte: so lines before them are others, too."""


@attrs.frozen
class Judgement:
    """A word, and how many lines it is of."""

    word: Word
    count: int


@attrs.frozen
class _Place:
    piece: Piece
    scan: Scan


class Told:
    """Asked of lines in order. Closing: its owner calls ``close``; it is idempotent."""

    def __init__(
        self, disk: Disk, scans: Iterable[Scan], run_id: bytes, placeholder: bytes
    ) -> None:
        places = [_Place(p, scan) for scan in scans for p in scan.pieces if p.is_settling]
        self._waiting = sorted(places, key=lambda place: place.piece.first, reverse=True)
        self._here: list[_Place] = []
        """Those that may have the line that is asked of, and later ones."""
        self._disk = disk
        self._run_id = run_id
        self._placeholder = placeholder
        self._segment: Segment | None = None
        self._read: tuple[_Place | None, Frame | None] = None, None
        self._regions: dict[int, bool] = {}

    def judge(self, lines: LineFile, line: int, at: int, count: int) -> Judgement:
        """What is said of up to ``count`` lines that lie from byte ``at`` on."""
        while self._waiting and self._waiting[-1].piece.first <= line:
            self._here.append(self._waiting.pop())
        self._here = [place for place in self._here if place.piece.end > line]
        if not self._here:
            if self._waiting:
                count = min(count, self._waiting[-1].piece.first - line)
            return Judgement(Word.NOTHING, count)
        words = [self._word(place, lines, line, at, count) for place in self._here]
        for word in (Word.HOLDS, Word.MOVED):
            found = [one.count for one in words if one.word is word]
            if found:
                return Judgement(word, max(found))
        return Judgement(Word.OTHER, 1)

    def _word(self, place: _Place, lines: LineFile, line: int, at: int, count: int) -> Judgement:
        count = min(count, place.piece.end - line)
        if place.piece.kind is Kind.WRITTEN:
            return Judgement(self._word_of_region(place.piece, lines, line, at), count)
        frame = self._frame(place)
        if frame is None:
            return Judgement(Word.OTHER, 1)
        wanted = frame.lines_from(line)
        if frame.kind is Kind.REJECTED:
            wanted = self._placeholder + b"\n"
        starts = lines.starts(at, count)
        found = lines.read(at, starts[-1])
        if wanted.startswith(found) and len(starts) == count + 1:
            return Judgement(Word.HOLDS, count)
        pairs = zip(wanted.split(b"\n"), found.split(b"\n")[:-1], strict=False)
        same = next((n for n, (one, other) in enumerate(pairs) if one != other), len(starts) - 1)
        return Judgement(Word.HOLDS if same else Word.OTHER, max(same, 1))

    def _word_of_region(self, piece: Piece, lines: LineFile, line: int, at: int) -> Word:
        region, count = piece.region, piece.end - piece.first
        assert region is not None
        if line == piece.first and at != region.offset:
            return Word.MOVED
        if region.offset not in self._regions:
            block = lines.block(region.offset, count)
            is_same = (block.length, block.count, block.crc) == (region.length, count, region.crc)
            self._regions = {region.offset: is_same}  # of the one that is asked of again
        if not self._regions[region.offset]:
            return Word.OTHER
        before = lines.block(region.offset, line - piece.first).length if line > piece.first else 0
        return Word.HOLDS if at == region.offset + before else Word.OTHER

    def _frame(self, place: _Place) -> Frame | None:
        if self._read[0] is not place:
            self._read = place, self._opened(place.scan).read(place.piece.offset)
        return self._read[1]

    def _opened(self, scan: Scan) -> Segment:
        if self._segment is None or self._segment.number != scan.number:
            self.close()
            mark = mark_of(self._run_id, scan.number)
            self._segment = Segment(self._disk, scan.path.parent, scan.number, mark)
        return self._segment

    def close(self) -> None:
        """Close what was opened."""
        if self._segment is not None:
            self._segment.close()
            self._segment = None
