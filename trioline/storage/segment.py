"""One segment of the journal: a file of frames, one after the other."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from trioline.errors import DiskFull, StorageError
from trioline.storage.damage import damaged, newer, output_of
from trioline.storage.files import Disk, File
from trioline.storage.frames import HEADER_BYTES, Frame, Header, UnknownKind

_NAME = re.compile(r"journal-(\d{8,})")
_MIN_READ_BYTES = 4 * 1024
"""Read where a frame is asked for out of order: often it is a short one."""
_MAX_READ_BYTES = 256 * 1024
"""Read at a time where frames are asked for in order."""
_SEARCH_BYTES = 1024 * 1024
_EXTENT_BYTES = 64 * 1024
"""How far ahead of its frames the end of a file is put that is synced in each commit: a sync that
has no new length to write takes two thirds of the time (65 instead of 95 microseconds, measured).
"""


def is_segment(name: str) -> bool:
    """Whether a file's name is a segment's."""
    return _NAME.fullmatch(name) is not None


def number_of(name: str) -> int:
    """The number in a segment's name."""
    return int(name.removeprefix("journal-"))


def segment_path(folder: Path, number: int) -> Path:
    """Where a segment is."""
    return folder / f"journal-{number:08}"


class Segment:
    """Appends frames to one file and reads them back.

    The file is opened when it is needed: a job may have thousands of segments, so their owner
    closes those that rest. Closing: ``close`` is idempotent, and undone by the next use.

    Args:
        mark: What its frames begin with.
        is_new: It is made here, and empty.
        is_extended: The file is kept longer than what counts of it, until ``trim``.
    """

    def __init__(
        self,
        disk: Disk,
        folder: Path,
        number: int,
        mark: bytes,
        *,
        is_new: bool = False,
        is_extended: bool = False,
    ) -> None:
        self.number = number
        self.mark = mark
        self.path = segment_path(folder, number)
        self.top = 0
        """The line after the highest one in it."""
        self.good_length = 0
        """How far ``frames`` found valid frames, in bytes."""
        self.gaps: list[tuple[int, int]] = []
        """What ``frames_behind`` found to be bad, from byte to byte."""
        self.length = 0
        """What of the file counts, in bytes."""
        self._disk = disk
        self._file: File | None = None
        self._change_count = int(is_new)
        self._synced_count = 0
        self._is_extended = is_extended
        self._window = _Window()
        if is_new:
            self._file = disk.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL)
        else:
            self.length = disk.size(self.path)
        self._end = self.length  # of the file

    @property
    def is_open(self) -> bool:
        """Whether it holds a file descriptor."""
        return self._file is not None

    def append(self, data: bytes, *, top: int) -> None:
        """Append encoded frames.

        Raises:
            DiskFull: The file is as before.
        """
        file, end = self._opened(), self.length + len(data)
        if self._is_extended and end > self._end and file.extend(end + _EXTENT_BYTES):
            self._end = end + _EXTENT_BYTES
        try:
            file.write(data, self.length)
        except DiskFull:
            self.cut(self.length, top=self.top)
            raise
        self._change_count += 1
        self.length = end
        if top > self.top:
            self.top = top

    def trim(self) -> None:
        """Let the file end where what counts of it does."""
        if self._end > self.length:
            self.cut(self.length, top=self.top)

    def cut(self, length: int, *, top: int) -> None:
        """Cut the file after its first ``length`` bytes."""
        self._opened().cut(length)
        self._change_count += 1
        self._window.forget()
        self.length = self._end = length
        self.top = top

    def sync(self, *, force: bool = False) -> None:
        """Return when the file is on the disk; ``force``: also what another process wrote."""
        if force or not self.is_synced:
            count = self._change_count
            self._opened().sync()
            self._synced_count = count

    @property
    def is_synced(self) -> bool:
        """Whether all that was written here is on the disk."""
        return self._synced_count == self._change_count

    def sync_beside(self) -> None:
        """Return when what was appended before is on the disk.

        By a descriptor of its own: the segment may be appended to and closed meanwhile.
        """
        count = self._change_count
        with self._open() as file:
            file.sync()
        self._synced_count = max(count, self._synced_count)

    def read(self, offset: int) -> Frame | None:
        """The frame at ``offset``; None when there is no valid one.

        Raises:
            StorageError: A later version of trioline wrote it.
        """
        file = self._opened()
        data = self._window.read(file, HEADER_BYTES, offset, self.length)
        header = Header.unpack(data, self.mark)
        # Before anything is read: a flipped bit in the length must not ask for gigabytes.
        if header is None or header.length > self.length - offset - HEADER_BYTES:
            return None
        payload = self._window.read(file, header.length, offset + HEADER_BYTES, self.length)
        try:
            return header.frame(payload)
        except UnknownKind as error:
            what = f"has a frame of kind {error} at byte {offset}, which this version does not know"
            raise newer(self.path, what) from error

    def frames(self) -> Iterator[tuple[Frame, int]]:
        """All frames and their offsets, up to the end or the first bad one."""
        self.good_length = 0
        for frame, offset in self._frames_from(0):
            self.good_length = offset + HEADER_BYTES + len(frame.payload)
            yield frame, offset

    def frames_behind(self) -> Iterator[tuple[Frame, int]]:
        """After ``frames``: the good frames behind the first bad one, and their offsets.

        What is bad at the end is a gap, too, unless it is zeros: it may have been acknowledged.
        """
        self.gaps = []
        at = self.good_length
        while (begin := self._next_good(at)) is not None:
            self.gaps.append((at, begin))
            at = begin
            for frame, offset in self._frames_from(begin):
                at = offset + HEADER_BYTES + len(frame.payload)
                yield frame, offset

    def all_frames(self) -> Iterator[tuple[Frame, int]]:
        """All good frames and their offsets."""
        yield from self.frames()
        yield from self.frames_behind()

    def _frames_from(self, at: int) -> Iterator[tuple[Frame, int]]:
        while (frame := self.read(at)) is not None:
            self.top = max(self.top, frame.end)
            yield frame, at
            at += HEADER_BYTES + len(frame.payload)

    def _next_good(self, bad: int) -> int | None:
        """Where the next good frame begins behind a bad one; or the end, behind what is no zero."""
        at: int | None = bad
        while at is not None and (at := self._next_mark(at + 1)) is not None:
            if self.read(at) is not None:
                return at
        return self.length if self._has_data(bad) else None

    def _next_mark(self, at: int) -> int | None:
        """Where the mark is, at a byte or behind it."""
        file = self._opened()
        while len(data := file.read(_SEARCH_BYTES, at)) >= len(self.mark):
            found = data.find(self.mark)
            if found >= 0:
                return at + found
            at += len(data) - len(self.mark) + 1
        return None

    def _has_data(self, at: int) -> bool:
        file = self._opened()
        while at < self.length and (data := file.read(_MAX_READ_BYTES, at)):
            if data.count(0) != len(data):
                return True
            at += len(data)
        return False

    def close(self) -> None:
        """Close the file, and let go of what was read of it."""
        file, self._file = self._file, None
        self._window.forget()
        if file is not None:
            file.close()

    def _opened(self) -> File:
        if self._file is None:
            self._file = self._open()
        return self._file

    def _open(self) -> File:
        try:
            return self._disk.open(self.path, os.O_RDWR)
        except StorageError as error:
            if isinstance(error.__cause__, FileNotFoundError):
                raise damaged(self.path, "is missing", output_of(self.path.parent)) from error
            raise


class _Window:
    """Some bytes of a file in memory, more of them the longer it is read in order."""

    def __init__(self) -> None:
        self._begin = 0
        self._data = b""
        self._span = _MIN_READ_BYTES

    def read(self, file: File, count: int, offset: int, end: int) -> bytes:
        """``count`` bytes of ``file`` from ``offset``, or as many as there are before ``end``: what
        is behind that may become something else."""
        at = offset - self._begin
        if not 0 <= at <= at + count <= len(self._data):
            in_order = 0 <= at <= len(self._data)
            self._span = min(self._span * 2, _MAX_READ_BYTES) if in_order else _MIN_READ_BYTES
            if count > self._span:
                self._begin, self._data = offset + count, b""  # too large to be kept
                return file.read(count, offset)
            self._begin, at = offset, 0
            self._data = file.read(min(self._span, max(0, end - offset)), offset)
        return self._data[at : at + count]

    def forget(self) -> None:
        """Let go of what was read: the file has changed."""
        self._begin, self._data = 0, b""
