"""The input, by line number and by byte offset.

Lines are counted by ``b"\\n"`` alone, in binary: a last line without newline is a line, an empty
file has none. The file's size is fixed when it is opened; what is appended later does not count.

Lines are handed out in one piece, as they stand in the file: mostly nobody looks at each of them.
Nearly all reads go on where the last one ended. A range that was given back is read through the
sparse index with a block of its own, so that the sequential block stays. A line longer than the
limit is never held in memory.
"""

from __future__ import annotations

import os
from pathlib import Path

import attrs

from trioline.errors import StorageError, TriolineError
from trioline.newlines import count_newlines, end_of_lines
from trioline.storage.files import Disk
from trioline.storage.line_index import ANCHOR_SPACING_BYTES, LineIndex
from trioline.storage.system import Files

_BLOCK_BYTES = 64 * 1024
"""Read at a time. From 128 KiB on it is slower: such memory is mapped anew each
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


@attrs.define
class Lines:
    """Some lines in a row. Nobody changes them: made for each lease, and frozen it would take four
    times as long."""

    count: int
    data: bytes
    """All of them, each with its newline, also the last one of the file if it has none there."""

    def first(self, count: int) -> Lines:
        """The first ``count`` of them, at least one."""
        if count == self.count:
            return self
        return Lines(count, self.data[: end_of_lines(self.data, 0, count)])

    def split(self) -> list[bytes]:
        """Each without its newline."""
        lines = self.data.split(b"\n")
        lines.pop()
        return lines


class _Block:
    """Some lines in a row, held in memory; or one that is too long to be held.

    Args:
        first: The first one's number.
        count: How many there are.
        end_offset: Where the line after them begins.
        data: All of them, each with its newline; empty for the one that is too long.
        length: Its bytes.
    """

    def __init__(
        self, first: int, count: int, end_offset: int, data: bytes = b"", length: int = 0
    ) -> None:
        self.first = first
        self.end = first + count
        self.end_offset = end_offset
        self.data = data
        self.length = length
        self._line, self._byte = first, 0  # where the last piece ended

    def take(self, line: int, max_count: int, max_bytes: int) -> Lines:
        """The lines from ``line`` on, which is in it; none where the first has too many bytes."""
        data, count = self.data, min(max_count, self.end - line)
        begin = self._byte if line == self._line else self._skip(0, line - self.first)
        stop = self._skip(begin, count) if line + count < self.end else len(data)
        if stop - begin > max_bytes:
            stop = data.rfind(b"\n", begin, begin + max_bytes) + 1 or begin
            count = count_newlines(data[begin:stop])
        self._line, self._byte = line + count, stop
        return Lines(count, data[begin:stop])

    def _skip(self, begin: int, count: int) -> int:
        """Where ``count`` lines end."""
        guess = count * len(self.data) // (self.end - self.first)
        return end_of_lines(self.data, begin, count, guess) if count else begin


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
        self._forward = _Block(first, 0, offset)
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

    def read(self, first: int, max_count: int, max_bytes: int) -> Lines:
        """Read the lines from line ``first`` on, up to ``max_count`` of them.

        Stops before they are more than ``max_bytes``, newlines included (but there is always one
        line, if there is one), and before a line that is too long. None at the end.

        Raises:
            InputLineTooLong: Line ``first`` itself is too long.
            StorageError: The file cannot be read or has become shorter.
        """
        pieces: list[bytes] = []
        line, stop, room = first, first + max_count, max_bytes
        while line < stop and (block := self._block_at(line)) is not None:
            if not block.data:
                if not pieces:
                    raise InputLineTooLong(first, block.length, self._max_line_bytes)
                break
            lines = block.take(line, stop - line, room)
            if not (lines.count or pieces):
                lines = block.take(line, 1, len(block.data))
            pieces.append(lines.data)
            line += lines.count
            room = max(0, room - len(lines.data))
            if line < block.end:
                break
        return Lines(line - first, pieces[0] if len(pieces) == 1 else b"".join(pieces))

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
        data, end = self._whole_lines(offset)
        if len(data) > self._max_line_bytes:  # so one of its lines may be, too
            good = self._before_too_long(data)
            if len(good) < len(data):
                end = offset + (len(good) or data.find(b"\n") + 1 or len(data))
                data = good
        if not data and end > offset:
            block = self._load_long(line, offset, end)
        else:
            data += b"" if data.endswith(b"\n") or not data else b"\n"
            block = _Block(line, count_newlines(data), end, data)
        if offset == self._index.end_offset:
            self._index.extend(block.end - line, end)
        return block

    def _before_too_long(self, data: bytes) -> bytes:
        end = 0
        for text in data.split(b"\n"):
            if len(text) > self._max_line_bytes:
                return data[:end]
            end += len(text) + 1
        return data

    def _load_long(self, line: int, offset: int, end: int) -> _Block:
        """Make a block of one line; it is held only if it may be."""
        length = end - offset - (self._read(end - 1, 1) == b"\n")
        data = self._read(offset, length) + b"\n" if length <= self._max_line_bytes else b""
        return _Block(line, 1, end, data, length)

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
