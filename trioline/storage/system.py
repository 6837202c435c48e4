"""The system calls of storage, as one small interface.

``Files`` is what a double stands in for in tests: it behaves as Linux does, short writes and
``OSError`` included. Storage makes them through ``files`` alone, which says what their errors mean.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
from pathlib import Path
from typing import Protocol

import attrs


@attrs.define(kw_only=True)
class Stat:
    """What is known of a file or folder without reading it.

    Nobody changes one: it is not frozen, for that takes twice as long.
    """

    size: int
    """Bytes."""
    device: int
    inode: int
    mode: int = stat.S_IFREG
    """What kind of file it is, as ``stat`` has it."""
    mtime_ns: int = 0
    """When it was written to."""
    ctime_ns: int = 0
    """When anything about it changed; nobody can set that back."""
    link_count: int = 1
    """Names that it has."""

    @property
    def is_file(self) -> bool:
        """Whether it is a regular one: no folder, no pipe, no device."""
        return stat.S_ISREG(self.mode)

    @property
    def is_folder(self) -> bool:
        """Whether it is a folder."""
        return stat.S_ISDIR(self.mode)

    def is_same(self, other: Stat) -> bool:
        """Whether both are one and the same file, whatever its names."""
        return self.inode == other.inode and self.device == other.device

    def is_unchanged(self, other: Stat) -> bool:
        """Whether it is one and the same file, and not written to between the two."""
        return self.is_same(other) and (self.size, self.mtime_ns) == (other.size, other.mtime_ns)


class Files(Protocol):
    """The system calls that storage makes. All raise ``OSError`` as the system does."""

    def open(self, path: Path, flags: int) -> int:
        """Open a file with ``os.O_*`` flags; new ones get the usual mode."""

    def close(self, fd: int) -> None:
        """Close it; releases its lock."""

    def pread(self, fd: int, count: int, offset: int) -> bytes:
        """Read up to ``count`` bytes; fewer at the end of the file, or for no reason."""

    def pwrite(self, fd: int, data: bytes | memoryview, offset: int) -> int:
        """Write some of ``data``; returns how many bytes."""

    def truncate(self, fd: int, length: int) -> None:
        """Cut the file at ``length`` bytes."""

    def sync(self, fd: int) -> None:
        """Return when data and length are on the disk (fdatasync)."""

    def lock(self, fd: int) -> None:
        """Take the file's exclusive lock; ``BlockingIOError`` when another process has it."""

    def fstat(self, fd: int) -> Stat:
        """Describe an open file."""

    def size(self, fd: int) -> int:
        """How long an open file is: of ``fstat`` what each commit asks for."""

    def identity(self, path: str) -> tuple[int, int]:
        """Device and inode of what is at ``path``: of ``stat`` what each commit asks for."""

    def stat(self, path: Path) -> Stat:
        """Describe what is at ``path`` now, symbolic links followed."""

    def is_writable(self, path: Path) -> bool:
        """Whether this process may write there."""

    def rename(self, old: Path, new: Path) -> None:
        """Give a file another name, replacing what had it."""

    def unlink(self, path: Path) -> None:
        """Remove a file's name."""

    def mkdir(self, path: Path) -> None:
        """Make a folder."""

    def rmdir(self, path: Path) -> None:
        """Remove an empty folder."""

    def copy_permissions(self, path: Path, fd: int) -> None:
        """Give an open file the mode, and where that is permitted the owner, of another one."""

    def listdir(self, path: Path) -> list[str]:
        """Name what is in a folder."""

    def sync_folder(self, path: Path) -> None:
        """Return when the names in the folder are on the disk."""


class OsFiles:
    """``Files`` by the operating system."""

    def open(self, path: Path, flags: int) -> int:
        """Open by open(2)."""
        return os.open(path, flags, 0o666)

    def close(self, fd: int) -> None:
        """Close by close(2)."""
        os.close(fd)

    def pread(self, fd: int, count: int, offset: int) -> bytes:
        """Read by pread(2)."""
        return os.pread(fd, count, offset)

    def pwrite(self, fd: int, data: bytes | memoryview, offset: int) -> int:
        """Write by pwrite(2)."""
        return os.pwrite(fd, data, offset)

    def truncate(self, fd: int, length: int) -> None:
        """Cut by ftruncate(2)."""
        os.ftruncate(fd, length)

    def sync(self, fd: int) -> None:
        """Sync by fdatasync(2)."""
        os.fdatasync(fd)

    def lock(self, fd: int) -> None:
        """Lock by flock(2), without waiting."""
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def fstat(self, fd: int) -> Stat:
        """Describe by fstat(2)."""
        return _stat_from(os.fstat(fd))

    def size(self, fd: int) -> int:
        """Ask fstat(2)."""
        return os.fstat(fd).st_size

    def identity(self, path: str) -> tuple[int, int]:
        """Ask stat(2)."""
        found = os.stat(path)
        return found.st_dev, found.st_ino

    def stat(self, path: Path) -> Stat:
        """Describe by stat(2)."""
        return _stat_from(os.stat(path))

    def is_writable(self, path: Path) -> bool:
        """Ask access(2)."""
        return os.access(path, os.W_OK)

    def rename(self, old: Path, new: Path) -> None:
        """Rename by rename(2)."""
        os.rename(old, new)

    def unlink(self, path: Path) -> None:
        """Remove by unlink(2)."""
        os.unlink(path)

    def mkdir(self, path: Path) -> None:
        """Make by mkdir(2)."""
        os.mkdir(path)

    def rmdir(self, path: Path) -> None:
        """Remove by rmdir(2)."""
        os.rmdir(path)

    def copy_permissions(self, path: Path, fd: int) -> None:
        """Copy by fchown(2) and fchmod(2)."""
        found = os.stat(path)
        for owner in (-1, found.st_gid), (found.st_uid, -1):
            with contextlib.suppress(OSError):  # only root may give files away
                os.fchown(fd, *owner)
        with contextlib.suppress(PermissionError):  # a file system without modes
            os.fchmod(fd, found.st_mode & 0o777)

    def listdir(self, path: Path) -> list[str]:
        """Name by readdir(3)."""
        return os.listdir(path)

    def sync_folder(self, path: Path) -> None:
        """Sync by fsync(2) of the folder."""
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def _stat_from(result: os.stat_result) -> Stat:
    return Stat(
        size=result.st_size,
        device=result.st_dev,
        inode=result.st_ino,
        mode=result.st_mode,
        mtime_ns=result.st_mtime_ns,
        ctime_ns=result.st_ctime_ns,
        link_count=result.st_nlink,
    )
