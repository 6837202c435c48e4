"""One of a job's two files, held line by line and block by block against what is known of it."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import attrs

from trioline.storage.checksums import BLOCK_LINES, ENTRY_BYTES, Entry, Proof, Table, Tally
from trioline.storage.verify.findings import Few, Finding
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
    proof: Proof
    """What the checkpoint says of it."""
    marks: Iterator[Mark]
    """Lines that are known, in order."""
    mark_text: str
    """What is wrong where one is another."""
    entry_crc: Callable[[Entry], int]
    entry_offset: int
    """Where that is in an entry, in bytes."""
    max_held_bytes: int
    find_bad: FindBad | None = None


class Walk:
    """Looks at the pieces of one file."""

    def __init__(self, side: Side, blocks: Blocks) -> None:
        self.misfits: Few[Finding] = Few()
        """Lines that are not what is known of them."""
        self.bad: Few[Finding] = Few()
        """Lines that can be no result."""
        self._side = side
        self._blocks = blocks
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
                self.bad.add(self._at(piece.first + place, "is not valid JSON"))

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
                self.bad.add(self._at(piece.first, "is longer than any result can be"))
            self._part = (0, 0)

    def _check_mark(self, length: int, crc: int) -> None:
        assert self._mark is not None
        if not self._mark.fits(length, crc):
            self.misfits.add(self._at(self._mark.line, self._side.mark_text))
        self._mark = next(self._side.marks, None)

    def _at(self, line: int, what: str) -> Finding:
        byte = self._blocks.offset_of(line)
        text = f"{self._side.path}: line {line:,} (byte {byte:,}) {what}."
        return Finding(path=str(self._side.path), line=line, byte=byte, text=text)


@attrs.frozen
class Run:
    """Blocks in a row whose sums are not those of the table."""

    first: int
    end: int
    byte: int
    """Where the first one begins in its file."""


class Blocks:
    """Compares the sums of one file's blocks with what was recorded."""

    def __init__(self, side: Side, table: Table | None) -> None:
        self.tally = Tally()
        self.is_whole = False
        """Whether the file is what it was, as a whole; known after ``end``."""
        self.runs: Few[Run] = Few()
        """What differs; of a whole file: in the table."""
        self.known_count = 0
        """Blocks that the table has something of."""
        self._side = side
        self._table = table
        self._anchors: list[tuple[int, int]] = []
        """Line and byte of the pieces that have lines not compared yet."""
        self._compared = 0
        """Blocks compared."""
        self._bad: tuple[int, int] | None = None
        """First block and byte of the blocks in a row that differ."""
        if table is not None:
            self.known_count = min(side.proof.block_count, table.size // ENTRY_BYTES)

    def take(self, piece: Piece) -> None:
        """Take the next piece."""
        if not piece.is_part or piece.offset == 0 or self._anchors[-1][0] != piece.first:
            self._anchors.append((piece.first, piece.offset))
        self.tally.feed(piece.data)
        if len(self.tally.sums) >= _COMPARED_BLOCKS:
            self._compare()

    def end(self) -> None:
        """Compare what is left, and the whole."""
        proof, tally = self._side.proof, self.tally
        tally.end()
        if proof.is_finished:
            tally.end_block()
        self._compare()
        if not proof.is_finished and tally.line_count % BLOCK_LINES:
            is_open_one = self._compared == proof.line_count // BLOCK_LINES
            self._compare_block(tally.crc, proof.crc if is_open_one else None)
        self._end_bad(self._compared)
        self.is_whole = proof.fits(tally)

    def findings(self, *, is_table_good: bool) -> Few[Finding]:
        """What there is to say of a file that is not what it was.

        Args:
            is_table_good: Whether the table has for this side what was written.
        """
        found: Few[Finding] = Few()
        lines, path = self._side.proof.line_count, self._side.path
        for run in self.runs.first:
            found.add(self._finding_of(run, is_table_good=is_table_good))
        found.count = self.runs.count
        if self.known_count < self._side.proof.block_count:
            first = self.known_count * BLOCK_LINES
            text = f"{path} is not as it was: its lines {first:,} to {lines - 1:,} are not proved, "
            text += "as the table of checksums has nothing of them."
            found.add(Finding(path=str(path), line=first, last_line=lines - 1, text=text))
        elif not found.count and self.tally.line_count == lines:
            text = f"{path} is not as it was, and its table of checksums was changed with it: its "
            text += f"lines 0 to {lines - 1:,} are not proved."
            found.add(Finding(path=str(path), line=0, last_line=lines - 1, text=text))
        return found

    def _finding_of(self, run: Run, *, is_table_good: bool) -> Finding:
        path = self._side.path
        line = run.first * BLOCK_LINES
        last_line = min(run.end * BLOCK_LINES, self._side.proof.line_count) - 1
        text = f"{path}: lines {line:,} to {last_line:,} (from byte {run.byte:,} on) are not"
        text += " as they were when the job wrote them"
        if run.end - run.first > 1:
            text += (
                f": lines were changed, added or lost, the first one among the first {BLOCK_LINES}"
            )
        if not is_table_good:
            text += ", unless it is their checksums that are damaged"
        return Finding(
            path=str(path), line=line, last_line=last_line, byte=run.byte, text=text + "."
        )

    def offset_of(self, line: int) -> int:
        """The byte at which a line of the last pieces begins."""
        at = max(at for at, (first, _) in enumerate(self._anchors) if first <= line)
        first, offset = self._anchors[at]
        if first < line:
            for piece in pieces(
                lambda count, begin: self._side.read(count, offset + begin),
                self._side.proof.length - offset,
                max_held_bytes=_HELD_BYTES,
            ):
                if first + piece.first + piece.count > line:
                    before = piece.lines()[: line - first - piece.first]
                    return offset + piece.offset + sum(map(len, before)) + len(before)
        return offset

    def _compare(self) -> None:
        sums = self.tally.take_sums()
        count = max(0, min(len(sums), self.known_count - self._compared))
        entries = self._table.read(self._compared, count) if self._table is not None else []
        for crc, entry in zip(sums, entries, strict=False):
            self._compare_block(crc, self._side.entry_crc(entry))
        if len(sums) > count:
            self._end_bad(self._compared)
            self._compared += len(sums) - count
        line = self._compared * BLOCK_LINES
        needed = max(
            (at for at, (first, _) in enumerate(self._anchors) if first <= line), default=0
        )
        del self._anchors[:needed]

    def _compare_block(self, crc: int, known: int | None) -> None:
        if known == crc:
            self._end_bad(self._compared)
        elif self._bad is None:
            self._bad = self._compared, self.offset_of(self._compared * BLOCK_LINES)
        self._compared += 1

    def _end_bad(self, end: int) -> None:
        if self._bad is not None:
            (first, byte), self._bad = self._bad, None
            self.runs.add(Run(first, end, byte))
