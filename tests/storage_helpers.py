"""A disk in memory that can lose power, and the making of small jobs.

``CrashFiles`` keeps what was synced apart from what was not, for files and for folders. ``kill``
ends the process only; ``lose_power`` keeps any part of what was not synced: writes whole, dropped,
torn at a sector, or as zeros; names made or removed, or not.
"""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Literal

import attrs

from trioline.config import Fsync, JobSettings
from trioline.storage.files import Stat

SECTOR_BYTES = 512


class Crash(BaseException):
    """The process ended here. No handler may take it for an error and go on."""


@attrs.define(eq=False)
class _Inode:
    number: int
    data: bytearray = attrs.Factory(bytearray)
    synced: bytes = b""
    pending: list[tuple[int, bytes | None]] = attrs.Factory(list)
    """Writes (offset, bytes) and cuts (length, None) since the last sync, in order."""


@attrs.define(eq=False)
class _Folder:
    number: int
    names: dict[str, _Inode] = attrs.Factory(dict)
    synced: dict[str, _Inode] = attrs.Factory(dict)
    pending: list[dict[str, _Inode | None]] = attrs.Factory(list)
    """Name changes since the last sync, in order; each dict is one that happens whole or not."""


class CrashFiles:
    """The system calls of storage, in memory."""

    def __init__(self, folders: Iterable[Path] = (Path("/d"),)) -> None:
        self.folders: dict[Path, _Folder] = {}
        self.call_count = 0
        self.crash_at: int | None = None
        """The process ends at this system call, counted from 1."""
        self.crash_after = False
        """... when it has been made, not before."""
        self.fail: Callable[[str, Path, int], int | None] = lambda _call, _path, _count: None
        """Given the call's name, its path and its number: the errno to fail with."""
        self.short_writes: random.Random | None = None
        self._open: dict[int, tuple[Path, _Inode]] = {}
        self._locks: dict[int, int] = {}
        self._next = 10
        for path in folders:
            self.folders[path] = _Folder(self._number())

    # --- what tests do ----------------------------------------------------------------------

    def put(self, path: Path, data: bytes) -> None:
        """Place a file, safely on the disk."""
        inode = _Inode(self._number(), bytearray(data), data)
        folder = self.folders[path.parent]
        folder.names[path.name] = folder.synced[path.name] = inode

    def get(self, path: Path) -> bytes:
        """What is in a file now."""
        return bytes(self.folders[path.parent].names[path.name].data)

    def has(self, path: Path) -> bool:
        """Whether there is such a file."""
        return path.parent in self.folders and path.name in self.folders[path.parent].names

    @property
    def open_count(self) -> int:
        """How many files are open."""
        return len(self._open)

    def kill(self) -> None:
        """End the process; the system lives, so nothing is lost."""
        self._open.clear()
        self._locks.clear()
        self.crash_at = None

    def lose_power(self, rng: random.Random) -> None:
        """End everything; of what was not synced any part may remain."""
        self.kill()
        for folder in self.folders.values():
            names = dict(folder.synced)
            for change in folder.pending:
                if rng.random() < 0.5:
                    _apply_names(names, change)
            folder.names, folder.synced, folder.pending = names, dict(names), []
        # A folder made and not synced would vanish with all in it: too kind to be of interest.
        everything = {i.number: i for f in self.folders.values() for i in f.names.values()}
        for inode in everything.values():
            inode.data = _survivor(inode, rng)
            inode.synced, inode.pending = bytes(inode.data), []

    # --- system calls -----------------------------------------------------------------------

    def open(self, path: Path, flags: int) -> int:
        folder = self._folder(path)
        self._call("open" if path.name in folder.names else "create", path)
        inode = folder.names.get(path.name)
        if inode is None:
            if not flags & os.O_CREAT:
                raise _error(errno.ENOENT, path)
            inode = _Inode(self._number())
            folder.names[path.name] = inode
            folder.pending.append({path.name: inode})
        elif flags & os.O_EXCL:
            raise _error(errno.EEXIST, path)
        if flags & os.O_TRUNC and inode.data:
            self._cut(inode, 0)
        fd = self._number()
        self._open[fd] = (path, inode)
        self._called()
        return fd

    def close(self, fd: int) -> None:
        _path, inode = self._open.pop(fd)
        if self._locks.get(inode.number) == fd:
            del self._locks[inode.number]

    def pread(self, fd: int, count: int, offset: int) -> bytes:
        path, inode = self._open[fd]
        self._fail("pread", path)
        return bytes(inode.data[offset : offset + count])

    def pwrite(self, fd: int, data: bytes | memoryview, offset: int) -> int:
        path, inode = self._open[fd]
        if self.short_writes is not None and len(data) > 1:
            data = data[: self.short_writes.randrange(1, len(data) + 1)]
        self._call("pwrite", path)
        data = bytes(data)
        _write(inode.data, offset, data)
        inode.pending.append((offset, data))
        self._called()
        return len(data)

    def truncate(self, fd: int, length: int) -> None:
        path, inode = self._open[fd]
        self._call("truncate", path)
        self._cut(inode, length)
        self._called()

    def sync(self, fd: int) -> None:
        path, inode = self._open[fd]
        self._call("sync", path)
        inode.synced, inode.pending = bytes(inode.data), []
        self._called()

    def lock(self, fd: int) -> None:
        path, inode = self._open[fd]
        self._fail("lock", path)
        if self._locks.setdefault(inode.number, fd) != fd:
            raise BlockingIOError(errno.EAGAIN, "held", str(path))

    def fstat(self, fd: int) -> Stat:
        _path, inode = self._open[fd]
        return Stat(size=len(inode.data), device=1, inode=inode.number)

    def stat(self, path: Path) -> Stat:
        if path in self.folders:
            number = self.folders[path].number
            return Stat(size=0, device=1, inode=number, is_file=False, is_folder=True)
        inode = self._folder(path).names.get(path.name)
        if inode is None:
            raise _error(errno.ENOENT, path)
        return Stat(size=len(inode.data), device=1, inode=inode.number)

    def is_writable(self, path: Path) -> bool:
        return path in self.folders or self.has(path)

    def rename(self, old: Path, new: Path) -> None:
        self._call("rename", old)
        folder = self._folder(old)
        change = {old.name: None, new.name: folder.names[old.name]}
        _apply_names(folder.names, change)
        folder.pending.append(change)
        self._called()

    def unlink(self, path: Path) -> None:
        self._call("unlink", path)
        folder = self._folder(path)
        if path.name not in folder.names:
            raise _error(errno.ENOENT, path)
        del folder.names[path.name]
        folder.pending.append({path.name: None})
        self._called()

    def mkdir(self, path: Path) -> None:
        self._call("mkdir", path)
        if path in self.folders:
            raise _error(errno.EEXIST, path)
        self.folders[path] = _Folder(self._number())
        self._called()

    def listdir(self, path: Path) -> list[str]:
        if path not in self.folders:
            raise _error(errno.ENOENT, path)
        return list(self.folders[path].names)

    def sync_folder(self, path: Path) -> None:
        self._call("sync_folder", path)
        folder = self.folders[path]
        folder.synced, folder.pending = dict(folder.names), []
        self._called()

    # --- inside -----------------------------------------------------------------------------

    def _number(self) -> int:
        self._next += 1
        return self._next

    def _folder(self, path: Path) -> _Folder:
        if path.parent not in self.folders:
            raise _error(errno.ENOENT, path)
        return self.folders[path.parent]

    def _cut(self, inode: _Inode, length: int) -> None:
        del inode.data[length:]
        inode.data.extend(bytes(length - len(inode.data)))
        inode.pending.append((length, None))

    def _call(self, name: str, path: Path) -> None:
        """Before a call that changes something."""
        self.call_count += 1
        if self.call_count == self.crash_at and not self.crash_after:
            raise Crash
        self._fail(name, path)

    def _called(self) -> None:
        if self.call_count == self.crash_at:
            raise Crash

    def _fail(self, name: str, path: Path) -> None:
        code = self.fail(name, path, self.call_count)
        if code is not None:
            raise _error(code, path)


def _error(code: int, path: Path) -> OSError:
    return OSError(code, os.strerror(code), str(path))


def _apply_names(names: dict[str, _Inode], change: dict[str, _Inode | None]) -> None:
    for name, inode in change.items():
        if inode is None:
            names.pop(name, None)
        else:
            names[name] = inode


def _write(data: bytearray, offset: int, new: bytes) -> None:
    data.extend(bytes(max(0, offset - len(data))))
    data[offset : offset + len(new)] = new


def _survivor(inode: _Inode, rng: random.Random) -> bytearray:
    """What of a file remains after a power loss."""
    data = bytearray(inode.synced)
    for offset, new in inode.pending:
        fate: Literal["kept", "dropped", "torn", "zeroed"] = rng.choice(
            ("kept", "kept", "dropped", "torn", "zeroed")
        )
        if fate == "dropped":
            continue
        if new is None:
            del data[offset:]
            data.extend(bytes(offset - len(data)))
        elif fate == "torn":
            _write(data, offset, new[: _sector_cut(offset, len(new), rng)])
        elif fate == "zeroed" and offset + len(new) > len(data):
            # The length arrived, the content did not: only where the file grew.
            _write(data, max(offset, len(data)), bytes(offset + len(new) - max(offset, len(data))))
        elif fate == "kept":
            _write(data, offset, new)
    return data


def _sector_cut(offset: int, length: int, rng: random.Random) -> int:
    """A length, up to ``length``, that ends at a sector's border or at the end."""
    first = -offset % SECTOR_BYTES
    cuts: list[int] = [0, *range(first, length, SECTOR_BYTES), length]
    return cuts[rng.randrange(len(cuts))]


def settings_for(
    folder: Path, *, fsync: Fsync = Fsync.ALWAYS, fresh: bool = False, text: bool = False
) -> JobSettings:
    """Settings for ``folder/in`` and ``folder/out``."""
    return JobSettings(
        input=folder / "in",
        output=folder / "out",
        rejected=folder / "out.rejected",
        fsync=fsync,
        fresh=fresh,
        text=text,
        max_line_bytes=1_024,
    )


def input_of(count: int) -> bytes:
    """An input of so many lines of different lengths."""
    return b"".join(b"line %d %s\n" % (n, b"." * (n % 7)) for n in range(count))
