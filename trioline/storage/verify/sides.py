"""One of a job's two files, held line by line and block by block against what is known of it."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import attrs

from trioline.storage.checkpoint import Checkpoint
from trioline.storage.checksums import BLOCK_LINES, UNKNOWN, Entry, Table, Tally
from trioline.storage.verify.findings import Finding, Report
from trioline.storage.verify.marks import Mark
from trioline.storage.verify.pieces import Piece, Read, pieces

_COMPARED_BLOCKS = 1_024
"""Compared with the table at a time."""
_HELD_BYTES = 1024 * 1024
FindBad = Callable[[bytes], Iterable[int]]
"""Given whole lines, says which of them, from 0, no result can be."""


@attrs.frozen(kw_only=True)
class Side:
    """One of the two files, and what is known of it."""

    path: Path
    read: Read
    end: int
    """How much of it counts, in bytes."""
    marks: Iterator[Mark]
    """Lines that are known, in order."""
    mark_text: str
    """What is wrong where one is another."""
    entry_crc: Callable[[Entry], int]
    max_held_bytes: int
    find_bad: FindBad | None = None


class Walk:
    """Looks at the pieces of one file."""

    def __init__(self, side: Side, blocks: Blocks, report: Report) -> None:
        self._side = side
        self._blocks = blocks
        self._report = report
        self._mark = next(side.marks, None)
        self._part = (0, 0)
        """Length and crc of a line that comes in parts."""

    def take(self, piece: Piece) -> None:
        """Look at the next piece."""
        self._blocks.take(piece)
        if piece.is_part:
            self._take_part(piece)
            return
        end = piece.first + piece.count
        if self._mark is not None and self._mark.line < end:
            lines = piece.lines()
            while self._mark is not None and self._mark.line < end:
                line = lines[self._mark.line - piece.first]
                self._check_mark(len(line), zlib.crc32(line))
        if self._side.find_bad is not None:
            data = piece.data if piece.data.endswith(b"\n") else piece.data + b"\n"
            for place in self._side.find_bad(data):
                self._add(piece.first + place, "is not valid JSON")

    def end(self) -> None:
        """Compare what is left."""
        self._blocks.end()

    def _take_part(self, piece: Piece) -> None:
        content = piece.data.removesuffix(b"\n") if piece.count else piece.data
        length, crc = self._part
        self._part = length + len(content), zlib.crc32(content, crc)
        if piece.count:
            if self._mark is not None and self._mark.line == piece.first:
                self._check_mark(*self._part)
            if self._side.find_bad is not None:
                self._add(piece.first, "is longer than any result can be")
            self._part = (0, 0)

    def _check_mark(self, length: int, crc: int) -> None:
        assert self._mark is not None
        if not self._mark.fits(length, crc):
            self._add(self._mark.line, self._side.mark_text)
        self._mark = next(self._side.marks, None)

    def _add(self, line: int, what: str) -> None:
        byte = self._blocks.offset_of(line)
        text = f"{self._side.path}: line {line:,} (byte {byte:,}) {what}."
        self._report.add(Finding(path=str(self._side.path), line=line, byte=byte, text=text))


class Blocks:
    """Compares the sums of one file's blocks with what was recorded."""

    def __init__(self, side: Side, table: Table | None, last: Checkpoint, report: Report) -> None:
        self.tally = Tally()
        self.unsummed_lines = 0
        self._side = side
        self._table = table
        self._last = last
        self._report = report
        self._anchors: list[tuple[int, int]] = []
        """Line and byte of the pieces that have lines not compared yet."""
        self._compared = 0
        """Blocks compared."""
        self._bad: tuple[int, int] | None = None
        """First block and byte of the blocks in a row that are others."""

    def take(self, piece: Piece) -> None:
        """Take the next piece."""
        if not piece.is_part or piece.offset == 0 or self._anchors[-1][0] != piece.first:
            self._anchors.append((piece.first, piece.offset))
        self.tally.feed(piece.data)
        if len(self.tally.sums) >= _COMPARED_BLOCKS:
            self._compare()

    def end(self) -> None:
        """Compare what is left, with the last block."""
        self.tally.end()
        self.tally.end_block()
        self._compare()
        self._end_bad(self._compared)

    def offset_of(self, line: int) -> int:
        """The byte at which a line of the last pieces begins."""
        at = max(at for at, (first, _) in enumerate(self._anchors) if first <= line)
        first, offset = self._anchors[at]
        if first < line:
            for piece in pieces(
                lambda count, begin: self._side.read(count, offset + begin),
                self._side.end - offset,
                max_held_bytes=_HELD_BYTES,
            ):
                if first + piece.first + piece.count > line:
                    before = piece.lines()[: line - first - piece.first]
                    return offset + piece.offset + sum(map(len, before)) + len(before)
        return offset

    def _compare(self) -> None:
        sums = self.tally.sums
        known = -(-self._last.line_count // BLOCK_LINES)
        count = max(0, min(len(sums), known - self._compared))
        for crc, entry in zip(sums, self._entries(self._compared, count), strict=False):
            self._compare_block(crc, entry)
            self._compared += 1
        del sums[:]
        line = self._compared * BLOCK_LINES
        needed = max(
            (at for at, (first, _) in enumerate(self._anchors) if first <= line), default=0
        )
        del self._anchors[:needed]

    def _compare_block(self, crc: int, entry: Entry) -> None:
        if not entry.is_known:
            begin = self._compared * BLOCK_LINES
            self.unsummed_lines += min(BLOCK_LINES, self._last.line_count - begin)
        if not entry.is_known or self._side.entry_crc(entry) == crc:
            self._end_bad(self._compared)
        elif self._bad is None:
            self._bad = self._compared, self.offset_of(self._compared * BLOCK_LINES)

    def _entries(self, first: int, count: int) -> list[Entry]:
        """What was recorded of blocks; of the last one the checkpoint knows, before the end."""
        if count <= 0:
            return []
        last = self._last
        entries = [UNKNOWN] * count if self._table is None else self._table.read(first, count)
        is_open = last.line_count % BLOCK_LINES and not last.finished
        if is_open and first + count == last.line_count // BLOCK_LINES + 1:
            sums = Entry(last.input_crc, last.output_crc)
            entries[-1] = sums if last.is_block_known else UNKNOWN
        return entries

    def _end_bad(self, end: int) -> None:
        if self._bad is None:
            return
        (first, byte), self._bad = self._bad, None
        line, last_line = first * BLOCK_LINES, min(end * BLOCK_LINES, self._last.line_count) - 1
        text = f"{self._side.path}: lines {line:,} to {last_line:,} (from byte {byte:,} on) are not"
        text += " as they were when the job wrote them"
        if end - first > 1:
            text += (
                f": lines were changed, added or lost, the first one among the first {BLOCK_LINES}"
            )
        self._report.add(
            Finding(
                path=str(self._side.path),
                line=line,
                last_line=last_line,
                byte=byte,
                text=text + ".",
            )
        )
