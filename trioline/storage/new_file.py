"""A file written from its beginning to its end, in large pieces, synced once."""

from __future__ import annotations

import os
from pathlib import Path
from types import TracebackType

from trioline.errors import DiskFull
from trioline.storage.files import Disk

_BUFFER_BYTES = 1024 * 1024


class NewFile:
    """Used as a context manager: whole and on the disk when that is left without an error.

    Its name is on the disk after ``sync_folder``. Where the disk is full it goes again, to make
    room. What had its name before is overwritten.

    Args:
        like: The file whose mode and owner it gets, where there is one.
    """

    def __init__(self, disk: Disk, path: Path, *, like: Path | None = None) -> None:
        self._disk = disk
        self._path = path
        self._file = disk.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        self._held: list[bytes] = []
        self._held_bytes = 0
        self._written = 0
        if like is not None and disk.stat(like) is not None:
            self._file.copy_permissions(like)

    @property
    def length(self) -> int:
        """Bytes so far."""
        return self._written + self._held_bytes

    def append(self, data: bytes) -> None:
        """Write at the end.

        Raises:
            DiskFull: There is no room for it.
        """
        self._held.append(data)
        self._held_bytes += len(data)
        if self._held_bytes >= _BUFFER_BYTES:
            self._flush()

    def _flush(self) -> None:
        data = b"".join(self._held)
        self._file.write(data, self._written)
        self._written += len(data)
        self._held, self._held_bytes = [], 0

    def __enter__(self) -> NewFile:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            if error is None:
                self._flush()
                self._file.sync()
        except DiskFull as full:
            error = full
            raise
        finally:
            self._file.close()
            if isinstance(error, DiskFull):
                self._disk.unlink(self._path)
