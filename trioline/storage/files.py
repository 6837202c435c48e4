"""Files and folders in the terms of storage, and the sentences for when a system call fails.

All of storage uses ``Disk`` and ``File``, which loop over short reads and writes and turn each
``OSError`` of ``Files`` into a ``StorageError`` here and nowhere else.
"""

from __future__ import annotations

import errno
import os
import resource
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from trioline.errors import DiskFull, StorageError
from trioline.storage.system import Files, Stat

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_NO_DESCRIPTORS = frozenset({errno.EMFILE, errno.ENFILE})
_Answer = TypeVar("_Answer")


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

    def identity(self, path: str) -> tuple[int, int] | None:
        """Device and inode of what is at ``path``; None when there is nothing."""
        try:
            return self.files.identity(path)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise _failed("examined", Path(path), error) from error

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
        try:
            done = self._files.pwrite(self._fd, data, offset)
            while done < len(data):
                rest = memoryview(data)[done:]
                done += self._files.pwrite(self._fd, rest, offset + done)
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
        try:
            self._files.sync(self._fd)
        except OSError as error:
            raise _failed("synced", self.path, error) from error

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

    def size(self) -> int:
        """How long the open file is, in bytes."""
        try:
            return self._files.size(self._fd)
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
