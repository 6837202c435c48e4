"""The input, by line number and by byte offset.

Lines are counted by ``b"\\n"`` alone, in binary: a last line without newline is a line, an empty
file has none. The file's size is fixed when it is opened; what is appended later does not count.

Nearly all reads go on where the last one ended: they slice a list that one ``split`` made. A range
that was given back is read through the sparse index with a block of its own, so that the sequential
block stays. A line longer than the limit is never held in memory.
"""

from __future__ import annotations

import os
from bisect import bisect_right
from itertools import accumulate
from pathlib import Path

import attrs

from trioline.errors import StorageError, TriolineError
from trioline.newlines import count_newlines
from trioline.storage.files import Disk
from trioline.storage.line_index import ANCHOR_SPACING_BYTES, LineIndex
from trioline.storage.system import Files

_BLOCK_BYTES = 64 * 1024
"""Read and split at a time. From 128 KiB on it is slower: such memory is mapped anew each
time, and each page of it faults."""
_MAX_GAP_BYTES = ANCHOR_SPACING_BYTES + _BLOCK_BYTES
"""A line that is no anchor begins less than this after one."""
_LONG_READ_BYTES = 1024 * 1024
"""Read at a time where only the end of a long line is looked for."""


class InputLineTooLong(TriolineError):
    """A line of the input is longer than the limit, and so cannot be handed out.

    Attributes:
        line: Its number, from 0.
        length: Its bytes, without newline.
    """

    def __init__(self, line: int, length: int, limit: int) -> None:
        super().__init__(f"Line {line} of the input has {length} bytes; the limit is {limit}.")
        self.line = line
        self.length = length


@attrs.define(kw_only=True)
class _Block:
    """Some lines in a row, held in memory; or one that is too long to be held."""

    first: int
    lines: list[bytes]
    """Empty when its one line is too long."""
    end: int
    """The line after the last one."""
    end_offset: int
    """Where that begins."""
    size_bytes: int
    """Of the lines at the most, a newline each included."""
    longest: int = 0
    """The longest line's bytes, or 0 where none can be over the limit."""


class Source:
    """The lines of one input file.

    Used by one thread at a time. Closing: the owner calls ``close``; it is idempotent.

    Args:
        first: Number of the line to begin with; earlier ones cannot be read.
        offset: The byte at which that line begins.
        max_line_bytes: A longer line, its newline not counted, is not handed out.

    Raises:
        StorageError: The file cannot be read, or no line begins at ``offset``.
    """

    def __init__(
        self, files: Files, path: Path, *, first: int = 0, offset: int = 0, max_line_bytes: int
    ) -> None:
        self.path = path
        self._max_line_bytes = max_line_bytes
        self._file = Disk(files).open(path, os.O_RDONLY)
        self.stat = self._file.stat()
        """The file, as it was when it was opened."""
        self.size_bytes = self.stat.size
        """Fixed when the file was opened."""
        self._index = LineIndex(first, offset)
        self._forward = _Block(first=first, lines=[], end=first, end_offset=offset, size_bytes=0)
        self._aside = self._forward
        try:
            self._check_begin(offset)
        except StorageError:
            self.close()
            raise

    @property
    def known_count(self) -> int:
        """How many lines have been found so far, counted from line 0."""
        return self._index.count

    @property
    def at_end(self) -> bool:
        """Whether ``known_count`` is the number of all lines."""
        return self._index.end_offset >= self.size_bytes

    def read(self, first: int, count: int, max_bytes: int) -> list[bytes]:
        """Read up to ``count`` lines from line ``first`` on, each without its newline.

        Stops before their length, a newline each included, exceeds ``max_bytes`` (but there is
        always one line, if there is one), and before a line that is too long. Empty at the end.

        Raises:
            InputLineTooLong: Line ``first`` itself is too long.
            StorageError: The file cannot be read or has become shorter.
        """
        lines: list[bytes] = []
        line, stop, blocks_bytes = first, first + count, 0
        while line < stop:
            block = self._block_at(line)
            if block is None:
                break
            lines += self._short_enough(block, line, stop - line)
            if not lines:
                raise self._too_long(block, first)
            blocks_bytes += block.size_bytes
            # As long as all of their blocks would fit, they need not be measured.
            if blocks_bytes > max_bytes:
                fitting = _fitting_count(lines, max_bytes)
                if fitting < len(lines):
                    return lines[:fitting]
            line = first + len(lines)
            if line < block.end:
                break
        return lines

    def scan(self, until: int) -> bool:
        """Count lines, without keeping them, until ``known_count`` is at least ``until``.

        Returns:
            False when the input ends before.
        """
        while self._index.count < until and not self.at_end:
            begin = self._index.end_offset
            chunk, end = self._whole_lines(begin)
            self._index.extend(count_newlines(chunk) + (not chunk.endswith(b"\n")), end)
        return self._index.count >= until

    def offset_of(self, line: int) -> int:
        """The byte at which ``line`` begins; for the line after the last one, the file's size.

        Raises:
            ValueError: There is no such line, or ``forget`` was told that it is not needed.
        """
        if not self.scan(line):
            raise ValueError(f"{self.path} has {self.known_count} lines; line {line} is no place")
        if line == self._index.count:
            return self._index.end_offset
        known, offset = self._index.anchor(line)
        if line == known:
            return offset
        chunk = self._read(offset, min(_MAX_GAP_BYTES, self._index.end_offset - offset))
        parts = chunk.split(b"\n", line - known)
        if len(parts) <= line - known:
            raise self._changed(offset)
        return offset + len(chunk) - len(parts[-1])

    def forget(self, before: int) -> None:
        """Let go of the places of lines below ``before``: they are not read again."""
        self._index.forget(before)

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    # --- blocks -----------------------------------------------------------------------------

    def _block_at(self, line: int) -> _Block | None:
        """The block that holds ``line``, read if need be; None when there is no such line."""
        for block in (self._forward, self._aside):
            if block.first <= line < block.end:
                return block
        if line == self._forward.end:
            self._forward = self._load(line, self._forward.end_offset)
            return self._forward if line < self._forward.end else None
        if not self.scan(line + 1):
            return None
        follows = line == self._aside.end
        offset = self._aside.end_offset if follows else self.offset_of(line)
        self._aside = self._load(line, offset)
        return self._aside

    def _load(self, line: int, offset: int) -> _Block:
        """Read the lines from ``offset`` on: at least one, unless at the end."""
        is_new = offset == self._index.end_offset
        chunk, end = self._whole_lines(offset)
        if not chunk and end > offset:
            return self._load_long(line, offset, end, is_new=is_new)
        lines = chunk.split(b"\n")
        if not lines[-1]:
            del lines[-1]
        if is_new:
            self._index.extend(len(lines), end)
        longest = max(map(len, lines)) if len(chunk) > self._max_line_bytes else 0
        return _Block(
            first=line,
            lines=lines,
            end=line + len(lines),
            end_offset=end,
            size_bytes=len(chunk) + 1,  # the last line may lack its newline
            longest=longest,
        )

    def _load_long(self, line: int, offset: int, end: int, *, is_new: bool) -> _Block:
        """Make a block of one line that is longer than a block; it is held only if it may be."""
        if is_new:
            self._index.extend(1, end)
        length = end - offset - (self._read(end - 1, 1) == b"\n")
        lines = [self._read(offset, length)] if length <= self._max_line_bytes else []
        return _Block(
            first=line,
            lines=lines,
            end=line + 1,
            end_offset=end,
            size_bytes=length + 1,
            longest=length,
        )

    def _short_enough(self, block: _Block, line: int, count: int) -> list[bytes]:
        """Up to ``count`` lines of ``block`` from ``line`` on, up to one that is too long."""
        at = line - block.first
        part = block.lines[at : at + count]
        if block.longest <= self._max_line_bytes:
            return part
        limit = self._max_line_bytes
        return part[: next((i for i, text in enumerate(part) if len(text) > limit), len(part))]

    def _too_long(self, block: _Block, line: int) -> InputLineTooLong:
        length = len(block.lines[line - block.first]) if block.lines else block.longest
        return InputLineTooLong(line, length, self._max_line_bytes)

    # --- bytes ------------------------------------------------------------------------------

    def _whole_lines(self, begin: int) -> tuple[bytes, int]:
        """Read whole lines from ``begin`` on, and say where the next one begins.

        No bytes, but an end beyond ``begin``, for a line that is longer than a block.
        """
        known_end = self._index.end_offset
        # A line ends at the end of what is known and at the end of the file: no need to look.
        stop = known_end if begin < known_end else self.size_bytes
        chunk = self._read(begin, min(_BLOCK_BYTES, stop - begin))
        if begin + len(chunk) == stop:
            return chunk, stop
        cut = chunk.rfind(b"\n") + 1
        if cut:
            return chunk[:cut], begin + cut
        return b"", self._line_end(begin + len(chunk), stop)

    def _line_end(self, offset: int, stop: int) -> int:
        """Where the line ends that ``offset`` is in, its newline included."""
        while offset < stop:
            chunk = self._read(offset, min(_LONG_READ_BYTES, stop - offset))
            found = chunk.find(b"\n") + 1
            if found:
                return offset + found
            offset += len(chunk)
        return stop

    def _read(self, offset: int, count: int) -> bytes:
        data = self._file.read(count, offset)
        if len(data) < count:
            raise StorageError(
                f"{self.path} has become shorter: it had {self.size_bytes} bytes when it was"
                f" opened, and now ends at byte {offset + len(data)}. Put the input back as it was,"
                " then start the same command again.",
                self.path,
            )
        return data

    def _check_begin(self, offset: int) -> None:
        if offset > self.size_bytes or (
            0 < offset < self.size_bytes and self._read(offset - 1, 1) != b"\n"
        ):
            raise self._changed(offset)

    def _changed(self, offset: int) -> StorageError:
        return StorageError(
            f"{self.path} has changed: no line begins at byte {offset} any more. Put the input"
            " back as it was, then start the same command again.",
            self.path,
        )


def _fitting_count(lines: list[bytes], room: int) -> int:
    """How many of ``lines`` fit into ``room`` bytes, newlines included; at least one."""
    ends = list(accumulate(len(line) + 1 for line in lines))
    return max(bisect_right(ends, room), 1)
