"""A file that only grows at its end: the output, and the file of rejected lines.

The length is tracked here, not asked for: each write goes to a known offset, so that a write that
was cut short, or done before a crash, is done again in its place.
"""

from __future__ import annotations

import os
import zlib
from pathlib import Path

from trioline.errors import DiskFull, StorageError
from trioline.storage.checkpoint import TAIL_BYTES
from trioline.storage.damage import damaged
from trioline.storage.files import Disk

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
        self._output = output or path
        self.length = length
        """Bytes, tracked."""
        self._file = disk.open(path, os.O_RDWR)
        self._is_synced = True
        self._tail_end = self._tail_bytes = self._tail_crc = 0
        self.grown_crc = 0
        """crc32 of what was appended since the last ``tail``."""

    def append(self, data: bytes) -> None:
        """Write at the end.

        Raises:
            DiskFull: The file is as before.
            StorageError: Somebody else made it shorter.
        """
        size = self._file.stat().size
        # Before it is written: afterwards the length is right, with zeros where lines were.
        if size < self.length:
            raise self._changed(f"it has {size} bytes instead of {self.length}")
        self._is_synced = False
        try:
            self._file.write(data, self.length)
        except DiskFull:
            # In recovery there is more behind: of lines that the journal only tells the place of.
            self._file.cut(size)
            raise
        self.length += len(data)
        self.grown_crc = zlib.crc32(data, self.grown_crc)

    def read(self, count: int, offset: int) -> bytes:
        """Read what was written; fewer bytes only at the end of the file."""
        return self._file.read(count, offset)

    def adopt(self, length: int, crc: int) -> bool:
        """Take the next ``length`` bytes, written before a crash, if they have this crc32."""
        if self._crc(self.length, length) != crc:
            return False
        self.length += length
        return True

    def cut(self, length: int) -> None:
        """Cut the file after ``length`` bytes."""
        self._is_synced = False
        self._file.cut(length)
        self.length = length

    def sync(self, *, force: bool = False) -> None:
        """Return when the file is on the disk; ``force``: also what another process wrote."""
        if force or not self._is_synced:
            self._file.sync()
            self._is_synced = True

    def tail(self) -> tuple[int, int]:
        """Length and crc32 of the file's last bytes, at most 4,096 of them."""
        length = min(self.length, TAIL_BYTES)
        crc = self._crc(self.length - length, length) or 0
        self._tail_end, self._tail_bytes, self._tail_crc = self.length, length, crc
        self.grown_crc = 0
        return length, crc

    def check(self, *, is_guarded: bool = True) -> None:
        """Hold against the file what was written: its place, its length, and the last ``tail``.

        Args:
            is_guarded: Whether no other server can be writing there; else all that was appended
                since is read back.

        Raises:
            StorageError: Somebody else replaced it, made it longer or shorter, or wrote there.
        """
        if not self._file.is_in_place():
            raise self._changed("it was moved, replaced or removed")
        size = self._file.stat().size
        if size != self.length:
            raise self._changed(f"it has {size} bytes instead of {self.length}")
        begin = self._tail_end - self._tail_bytes
        if self._crc(begin, self._tail_bytes) != self._tail_crc:
            raise self._changed(f"bytes {begin} to {self._tail_end} are not what was written")
        if not is_guarded and self._crc(self._tail_end, size - self._tail_end) != self.grown_crc:
            raise self._changed(f"bytes {self._tail_end} to {size} are not what was written")

    def check_begin(self, tail_bytes: int = 0, tail_crc: int = 0) -> None:
        """Hold against the file what a checkpoint says of its first ``length`` bytes.

        Raises:
            StorageError: It is shorter, or its last bytes are others. Nothing was touched.
        """
        size = self._file.stat().size
        if size < self.length:
            raise self._changed(f"it ends at byte {size}, but {self.length} bytes were safe")
        begin = self.length - tail_bytes
        if self._crc(begin, tail_bytes) != tail_crc:
            raise self._changed(f"bytes {begin} to {self.length} are not what was written")

    def check_end(self) -> None:
        """Hold against a finished job's file that nothing came behind it.

        Raises:
            StorageError: It is longer. Nothing was touched.
        """
        size = self._file.stat().size
        if size > self.length:
            raise self._changed(f"the job ended it at byte {self.length}, it has {size} now")

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _crc(self, offset: int, length: int) -> int | None:
        """crc32 of a part of the file; None where the file ends before."""
        crc, end = 0, offset + length
        while offset < end:
            data = self._file.read(min(_READ_BYTES, end - offset), offset)
            if not data:
                return None
            crc = zlib.crc32(data, crc)
            offset += len(data)
        return crc

    def _changed(self, how: str) -> StorageError:
        return damaged(self.path, f"was changed by somebody else: {how}", self._output)
