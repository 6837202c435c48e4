"""The system calls of storage, as one small interface, and the sentences for when they fail.

``Files`` is what a double stands in for in tests: it behaves as Linux does, short writes and
``OSError`` included. Everything else in storage uses ``Disk`` and ``File``, which loop over short
reads and writes and turn each ``OSError`` into a ``StorageError`` here and nowhere else.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import resource
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Protocol, TypeVar

import attrs

from trioline.errors import DiskFull, StorageError

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_NO_DESCRIPTORS = frozenset({errno.EMFILE, errno.ENFILE})
_Answer = TypeVar("_Answer")


@attrs.define(kw_only=True)
class Stat:
    """What is known of a file or folder without reading it.

    Not frozen, for that takes twice as long, twice in each commit. Nobody changes one.
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


def attempt(
    verb: str, path: Path, call: Callable[[], _Answer], *, may_be_full: bool = False
) -> _Answer:
    """Make a system call; its ``OSError`` ends here.

    Args:
        verb: What was done to the file, as in "cannot be read".
        may_be_full: Only for calls that take room and that may be repeated. An fsync never is:
            after its first error the system forgets what it could not write, and says OK next time.

    Raises:
        DiskFull: There is no room, and ``may_be_full``.
        StorageError: Anything else.
    """
    try:
        return call()
    except OSError as error:
        raise _failed(verb, path, error, may_be_full=may_be_full) from error


def _failed(verb: str, path: Path, error: OSError, *, may_be_full: bool = False) -> StorageError:
    """The one place where an ``OSError`` becomes a sentence."""
    reason = error.strerror or str(error)
    if may_be_full and error.errno in _FULL:
        return DiskFull(
            f"{path} cannot be {verb}: {reason}. Make room, or raise the quota or limit.", path
        )
    if error.errno in _NO_DESCRIPTORS:
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        return StorageError(
            f"{path} cannot be {verb}: {reason}; this process may have {limit}. Raise that"
            " (`ulimit -n`) or close what else is open, then start the same command again: nothing"
            " acknowledged is lost.",
            path,
        )
    return StorageError(
        f"{path} cannot be {verb}: {reason}. Look after the file system, then start the same"
        " command again: it goes on from what is safe.",
        path,
    )


class Disk:
    """``Files`` in the terms of storage: folders and names, and files as ``File``."""

    def __init__(self, files: Files) -> None:
        self.files = files

    def open(self, path: Path, flags: int) -> File:
        """Open a file with ``os.O_*`` flags."""
        call = self.files.open
        fd = attempt(
            "opened", path, lambda: call(path, flags), may_be_full=bool(flags & os.O_CREAT)
        )
        return File(self.files, path, fd)

    def stat(self, path: Path) -> Stat | None:
        """Describe what is at ``path``; None when there is nothing."""
        try:
            return self.files.stat(path)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise _failed("examined", path, error) from error

    def is_writable(self, path: Path) -> bool:
        """Whether this process may write there."""
        return attempt("examined", path, lambda: self.files.is_writable(path))

    def size(self, path: Path) -> int:
        """How long the file is, in bytes; 0 when there is none."""
        found = self.stat(path)
        return 0 if found is None else found.size

    def read_whole(self, path: Path, max_bytes: int) -> bytes:
        """Read a small file, at most ``max_bytes`` of it."""
        with self.open(path, os.O_RDONLY) as file:
            return file.read(max_bytes, 0)

    def write_whole(self, path: Path, data: bytes, *, flags: int = os.O_TRUNC) -> None:
        """Make or replace a small file, and return when its content is on the disk.

        Its name is not, before ``sync_folder``.

        Args:
            flags: ``os.O_EXCL``: it is never replaced.
        """
        with self.open(path, os.O_WRONLY | os.O_CREAT | flags) as file:
            file.write(data, 0)
            file.sync()

    def rename(self, old: Path, new: Path) -> None:
        """Give a file another name, replacing what had it."""
        attempt("renamed", old, lambda: self.files.rename(old, new), may_be_full=True)

    def unlink(self, path: Path) -> None:
        """Remove a file; one that is not there is well removed."""

        def call() -> None:
            try:
                self.files.unlink(path)
            except FileNotFoundError:
                return

        attempt("removed", path, call)

    def make_folder(self, path: Path) -> None:
        """Make a folder, unless it is there."""

        def call() -> None:
            try:
                self.files.mkdir(path)
            except FileExistsError:
                return

        attempt("made", path, call, may_be_full=True)

    def remove_folder(self, path: Path) -> None:
        """Remove a folder, unless something is in it; one that is not there is well removed."""

        def call() -> None:
            try:
                self.files.rmdir(path)
            except FileNotFoundError:
                return
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise

        attempt("removed", path, call)

    def names(self, path: Path) -> list[str]:
        """Name what is in a folder, in order; nothing when there is no folder."""

        def call() -> list[str]:
            try:
                return sorted(self.files.listdir(path))
            except FileNotFoundError:
                return []

        return attempt("listed", path, call)

    def sync_folder(self, path: Path) -> None:
        """Return when the names in the folder are on the disk."""
        attempt("synced", path, lambda: self.files.sync_folder(path))


class File:
    """One open file.

    Closing: whoever opened it closes it; ``close`` is idempotent.
    """

    def __init__(self, files: Files, path: Path, fd: int) -> None:
        self.path = path
        self._files = files
        self._fd = fd

    def __enter__(self) -> File:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def read(self, count: int, offset: int) -> bytes:
        """Read ``count`` bytes, or as many as there are before the end of the file."""
        data = self._read_some(count, offset)
        if len(data) == count or not data:
            return data
        parts, got = [data], len(data)
        while got < count and (data := self._read_some(count - got, offset + got)):
            parts.append(data)
            got += len(data)
        return b"".join(parts)

    def _read_some(self, count: int, offset: int) -> bytes:
        try:
            return self._files.pread(self._fd, count, offset)
        except OSError as error:
            raise _failed("read", self.path, error) from error

    def write(self, data: bytes, offset: int) -> None:
        """Write all of ``data``, going on after short writes.

        Raises:
            DiskFull: Some of it may be written: the caller cuts it off.
        """
        done = self._write_some(data, offset)
        while done < len(data):
            done += self._write_some(memoryview(data)[done:], offset + done)

    def _write_some(self, data: bytes | memoryview, offset: int) -> int:
        try:
            return self._files.pwrite(self._fd, data, offset)
        except OSError as error:
            raise _failed("written", self.path, error, may_be_full=True) from error

    def copy_permissions(self, path: Path) -> None:
        """Take the mode of another file, and its owner where that is permitted."""
        fd = self._fd
        attempt("examined", path, lambda: self._files.copy_permissions(path, fd))

    def cut(self, length: int) -> None:
        """Cut the file at ``length`` bytes.

        Never ``DiskFull``: it makes room, and whoever cuts back after one has nothing left to try.
        """
        attempt("cut", self.path, lambda: self._files.truncate(self._fd, length))

    def extend(self, length: int) -> bool:
        """Let the file end at ``length`` bytes, with zeros up to there; False without room for it.

        Takes none yet, but for limits on a file's size.
        """
        try:
            self._files.truncate(self._fd, length)
        except OSError as error:
            if error.errno in _FULL:
                return False
            raise _failed("extended", self.path, error) from error
        return True

    def sync(self) -> None:
        """Return when data and length are on the disk. Its first error is final: never retried."""
        attempt("synced", self.path, lambda: self._files.sync(self._fd))

    def lock(self) -> None:
        """Take the file's lock.

        Raises:
            OSError: Held by another, or locks do not work here: ``lock.py`` tells which.
        """
        self._files.lock(self._fd)

    def stat(self) -> Stat:
        """Describe the open file."""
        try:
            return self._files.fstat(self._fd)
        except OSError as error:
            raise _failed("examined", self.path, error) from error

    def is_in_place(self) -> bool:
        """Whether the file's path still leads to this file."""
        found = attempt("examined", self.path, lambda: self._stat_path())
        return found is not None and found.is_same(self.stat())

    def _stat_path(self) -> Stat | None:
        try:
            return self._files.stat(self.path)
        except FileNotFoundError:
            return None

    def close(self) -> None:
        """Close the file; errors are of no consequence, for what counts was synced before."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            attempt("closed", self.path, lambda: self._files.close(fd))
