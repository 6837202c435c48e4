"""A file that only grows at its end: the output, and the file of rejected lines.

The length is tracked here, not asked for: each write goes to a known offset, so that a write that
was cut short, or done before a crash, is done again in its place. So is the crc32 of what is
written between two durable points: what is summed up then is what was written, not what is found.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator
from pathlib import Path

from trioline.errors import DiskFull, StorageError
from trioline.storage.checkpoint import TAIL_BYTES
from trioline.storage.damage import changed_behind, damaged
from trioline.storage.files import Disk
from trioline.storage.frames import Region

_READ_BYTES = 1024 * 1024


class GrowingFile:
    """Appends at a tracked length and notices when somebody else changes the file.

    Closing: its owner calls ``close``; it is idempotent and syncs nothing.

    Args:
        length: How much of the file is ours, in bytes. What is behind it is overwritten.
        output: The job's, for what is said of damage; None: this file itself.
    """

    def __init__(self, disk: Disk, path: Path, length: int, *, output: Path | None = None) -> None:
        self.path = path
        self._disk = disk
        self._output = output or path
        self.length = length
        """Bytes, tracked."""
        self.grown_crc = 0
        """crc32 of what was written since ``end_region``, or since it was opened."""
        self._begin = length  # of what that is the sum of
        self._regions: list[Region] = []  # before that, since ``settle``
        self._file = disk.open(path, os.O_RDWR)
        self._change_count = self._synced_count = 0
        self._tail_end = self._tail_bytes = self._tail_crc = 0

    def append(self, data: bytes) -> None:
        """Write at the end.

        Raises:
            DiskFull: The file is as before.
            StorageError: Somebody else made it shorter.
        """
        size = self._file.size()
        # Before it is written: afterwards the length is right, with zeros where lines were.
        if size < self.length:
            raise self._changed_since(f"it has {size} bytes instead of {self.length}")
        try:
            self._file.write(data, self.length)
        except DiskFull:
            # In recovery there is more behind: of lines that the journal only tells the place of.
            self._cut(size)
            raise
        self._change_count += 1
        self.length += len(data)
        self.grown_crc = zlib.crc32(data, self.grown_crc)

    def adopt(self, region: Region, known_count: int) -> bool:
        """Take what was written before a crash, from here to the end of a region.

        Args:
            region: Counts if it is whole.
            known_count: So many of its lines are before here, or it does not fit.
        """
        at, end = region.offset, region.offset + region.length
        if not at <= self.length < end:
            return False
        found, grown_crc, count = 0, self.grown_crc, 0
        # In one go: read twice, it might be something else the second time.
        for data in self._pieces(at, end):
            known = min(len(data), max(0, self.length - at))
            found, count = zlib.crc32(data, found), count + data.count(b"\n", 0, known)
            grown_crc = zlib.crc32(data[known:], grown_crc)
            at += len(data)
        if found != region.crc or count != known_count:
            return False
        self.length, self.grown_crc = end, grown_crc
        return True

    def cut_off(self) -> None:
        """Cut off what is behind ``length``."""
        self._cut(self.length)

    def _cut(self, length: int) -> None:
        self._file.cut(length)
        self._change_count += 1

    def cut_back(self, length: int, grown_crc: int) -> None:
        """Go back to where ``length`` and ``grown_crc`` were these."""
        self.length, self.grown_crc = length, grown_crc
        self.cut_off()

    def end_region(self) -> None:
        """Sum what comes from here on up by itself: a durable point reaches up to here."""
        if self.length > self._begin:
            region = Region(self._begin, self.length - self._begin, self.grown_crc)
            self._regions.append(region)
            self._begin, self.grown_crc = self.length, 0

    def grown(self) -> Iterator[bytes]:
        """Read back what was written from ``settle`` to ``end_region``, in order.

        More may be appended meanwhile.

        Raises:
            StorageError: At the end: it is not what was written. What was yielded counts for
                nothing then.
        """
        for region in self._regions:
            end, crc = region.offset + region.length, 0
            for data in self._pieces(region.offset, end):
                crc = zlib.crc32(data, crc)
                yield data
            if crc != region.crc:
                raise self._changed_since(
                    f"bytes {region.offset} to {end} are not what was written"
                )

    def settle(self) -> None:
        """Forget what ``grown`` tells of: a checkpoint vouches for it."""
        self._regions.clear()

    def sync(self, *, force: bool = False) -> None:
        """Return when what was written before is on the disk; ``force``: by whatever process.

        More may be appended meanwhile.
        """
        count = self._change_count
        if force or self._synced_count != count:
            self._file.sync()
            self._synced_count = count

    def tail(self) -> tuple[int, int]:
        """Length and crc32 of the file's last bytes, at most 4,096 of them."""
        length = min(self.length, TAIL_BYTES)
        crc = self._crc(self.length - length, length) or 0
        self._tail_end, self._tail_bytes, self._tail_crc = self.length, length, crc
        return length, crc

    def check(self) -> None:
        """Hold against the file what was written: its place, its length, and the last ``tail``.

        Raises:
            StorageError: Somebody else replaced it, made it longer or shorter, or wrote there.
        """
        if not self._file.is_in_place():
            raise self._changed_since("it was moved, replaced or removed")
        size = self._file.size()
        if size != self.length:
            raise self._changed_since(f"it has {size} bytes instead of {self.length}")
        begin = self._tail_end - self._tail_bytes
        if self._crc(begin, self._tail_bytes) != self._tail_crc:
            raise self._changed(f"bytes {begin} to {self._tail_end} are not what was written")

    def check_begin(self, tail_bytes: int = 0, tail_crc: int = 0) -> None:
        """Hold against the file what a checkpoint says of its first ``length`` bytes.

        Raises:
            StorageError: It is shorter, or its last bytes are others. Nothing was touched.
        """
        size = self._file.size()
        if size < self.length:
            raise self._changed(f"it ends at byte {size}, but {self.length} bytes were safe")
        begin = self.length - tail_bytes
        if self._crc(begin, tail_bytes) != tail_crc:
            raise self._changed(f"bytes {begin} to {self.length} are not what was written")

    def check_whole(self, tail_bytes: int, crc: int) -> None:
        """Hold against the file the crc32 of its first ``length`` bytes, after ``check_begin``.

        Raises:
            StorageError: They are others, before its last ``tail_bytes`` bytes. Nothing was
                touched.
        """
        if self._crc(0, self.length) != crc:
            end = self.length - tail_bytes
            raise self._changed(f"bytes 0 to {end} are not what was written")

    def check_end(self) -> None:
        """Hold against a finished job's file that nothing came behind it.

        Raises:
            StorageError: It is longer. Nothing was touched.
        """
        size = self._file.size()
        if size > self.length:
            raise self._changed(f"the job ended it at byte {self.length}, it has {size} now")

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _crc(self, offset: int, length: int) -> int | None:
        """crc32 of a part of the file; None where the file ends before."""
        crc = 0
        for data in self._pieces(offset, offset + length):
            crc = zlib.crc32(data, crc)
            length -= len(data)
        return None if length else crc

    def _pieces(self, begin: int, end: int) -> Iterator[bytes]:
        """A part of the file, or what is there of it."""
        while begin < end and (data := self._file.read(min(_READ_BYTES, end - begin), begin)):
            yield data
            begin += len(data)

    def _changed_since(self, how: str) -> StorageError:
        """The error for a change since it was opened: the next start may undo it, or not."""
        if self._is_good_begin():
            return changed_behind(self.path, f"was changed by somebody else: {how}")
        return self._changed(how)

    def _is_good_begin(self) -> bool:
        """Whether what is in the file's place ends, up to the last ``tail``, as that says."""
        found = self._disk.stat(self.path)
        if found is None or not found.is_file:
            return False
        begin = self._tail_end - self._tail_bytes
        with self._disk.open(self.path, os.O_RDONLY) as file:
            return zlib.crc32(file.read(self._tail_bytes, begin)) == self._tail_crc

    def _changed(self, how: str) -> StorageError:
        return damaged(self.path, f"was changed by somebody else: {how}", self._output)
