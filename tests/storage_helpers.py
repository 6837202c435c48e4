"""A disk in memory that can lose power, and the making of small jobs.

``CrashFiles`` keeps what was synced apart from what was not, for files and for folders. ``kill``
ends the process only; ``lose_power`` keeps any part of what was not synced: writes whole, dropped,
torn at any byte, some of their sectors, or as zeros; names made or removed, or not; new folders.
"""

from __future__ import annotations

import errno
import os
import random
import stat
from collections.abc import Callable, Iterable
from pathlib import Path

import attrs

from trioline.config import Fsync, JobSettings
from trioline.storage.system import Stat

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
    mtime_ns: int = 0
    """Counts the changes."""
    ctime_ns: int = 0


@attrs.define(eq=False)
class _Folder:
    number: int
    is_synced: bool
    """Its own name is on the disk."""
    names: dict[str, _Inode] = attrs.Factory(dict)
    synced: dict[str, _Inode] = attrs.Factory(dict)
    pending: list[dict[str, _Inode | None]] = attrs.Factory(list)
    """Name changes since the last sync, in order; each dict is one that happens whole or not."""


class CrashFiles:
    """The system calls of storage, in memory."""

    def __init__(self, folders: Iterable[Path] = (Path("/d"),)) -> None:
        self.call_count = 0
        """Calls that change something."""
        self.crash_at: int | None = None
        """The process ends at this one of them, counted from 1."""
        self.crash_after = False
        """... when it has been made, not before."""
        self.fail: Callable[[str, Path, int], int | None] | None = None
        """Given the call's name, its path and ``call_count``: the errno to fail with."""
        self.short_writes: random.Random | None = None
        self.beside: Callable[[], None] | None = None
        """What another thread does before a call that changes something, or in the midst of a
        ``sync``."""
        self._folders: dict[str, _Folder] = {}
        self._open: dict[int, tuple[Path, _Inode]] = {}
        self._locks: dict[int, int] = {}
        self._removed: dict[str, _Folder] = {}
        """Folders that a power loss may bring back."""
        self._next = 10
        for path in folders:
            self._folders[str(path)] = _Folder(self._number(), is_synced=True)

    # --- what tests do ----------------------------------------------------------------------

    def put(self, path: Path, data: bytes) -> None:
        """Place a file, safely on the disk."""
        inode = _Inode(self._number(), bytearray(data), data)
        folder, name = self._find(path)
        folder.names[name] = folder.synced[name] = inode

    def get(self, path: Path) -> bytes:
        """What is in a file now."""
        folder, name = self._find(path)
        return bytes(folder.names[name].data)

    def set_times(self, path: Path, mtime_ns: int, ctime_ns: int) -> None:
        """Say when a file was changed."""
        folder, name = self._find(path)
        folder.names[name].mtime_ns, folder.names[name].ctime_ns = mtime_ns, ctime_ns

    def has(self, path: Path) -> bool:
        """Whether there is such a file."""
        folder, _, name = str(path).rpartition("/")
        return folder in self._folders and name in self._folders[folder].names

    def paths(self) -> list[Path]:
        """All files."""
        return [Path(at) / name for at, folder in self._folders.items() for name in folder.names]

    @property
    def open_count(self) -> int:
        """How many files are open."""
        return len(self._open)

    def kill(self) -> None:
        """End the process; the system lives, so nothing is lost."""
        self._open.clear()
        self._locks.clear()
        self.crash_at = self.beside = None

    def lose_power(self, rng: random.Random) -> None:
        """End everything; of what was not synced any part may remain."""
        self.kill()
        for path, folder in list(self._folders.items()):
            if not folder.is_synced and rng.random() < 0.5:
                del self._folders[path]
                continue
            folder.is_synced = True
        for path, folder in reversed(self._removed.items()):  # the outer ones went last
            parent = path.rpartition("/")[0]
            if path not in self._folders and parent in self._folders and rng.random() < 0.5:
                self._folders[path] = folder
        self._removed.clear()
        for folder in self._folders.values():
            if folder.pending:
                names = dict(folder.synced)
                for change in folder.pending:
                    if rng.random() < 0.5:
                        _apply_names(names, change)
                folder.names, folder.synced, folder.pending = names, dict(names), []
        for folder in self._folders.values():
            for inode in folder.names.values():
                if inode.pending:
                    inode.data = _survivor(inode, rng)
                    inode.synced, inode.pending = bytes(inode.data), []

    # --- system calls -----------------------------------------------------------------------

    def open(self, path: Path, flags: int) -> int:
        folder, name = self._find(path)
        self._call("open" if name in folder.names else "create", path)
        inode = folder.names.get(name)  # as it is now: another server may have been quicker
        if inode is None:
            if not flags & os.O_CREAT:
                raise _error(errno.ENOENT, path)
            inode = _Inode(self._number())
            folder.names[name] = inode
            folder.pending.append({name: inode})
        elif flags & os.O_EXCL:
            raise _error(errno.EEXIST, path)
        if flags & os.O_TRUNC and inode.data:
            self._cut(inode, 0)
        fd = self._number()
        self._open[fd] = (path, inode)
        self._called()
        return fd

    def close(self, fd: int) -> None:
        path, inode = self._open.pop(fd)
        if self._locks.get(inode.number) == fd:
            del self._locks[inode.number]
        self._fail("close", path)

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
        inode.mtime_ns += 1
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
        begun, pending = bytes(inode.data), list(inode.pending)
        self._run_beside()  # what is written now may miss this sync
        if pending and inode.pending[: len(pending)] == pending:
            inode.synced, inode.pending = begun, inode.pending[len(pending) :]
        self._called()

    def lock(self, fd: int) -> None:
        path, inode = self._open[fd]
        self._fail("lock", path)
        if self._locks.setdefault(inode.number, fd) != fd:
            raise BlockingIOError(errno.EAGAIN, "held", str(path))

    def fstat(self, fd: int) -> Stat:
        path, inode = self._open[fd]
        self._fail("fstat", path)
        return _stat_of(inode)

    def size(self, fd: int) -> int:
        return self.fstat(fd).size

    def identity(self, path: str) -> tuple[int, int]:
        found = self.stat(Path(path))
        return found.device, found.inode

    def stat(self, path: Path) -> Stat:
        self._fail("stat", path)
        here = self._folders.get(str(path))
        if here is not None:
            return Stat(size=0, device=1, inode=here.number, mode=stat.S_IFDIR)
        folder, name = self._find(path)
        inode = folder.names.get(name)
        if inode is None:
            raise _error(errno.ENOENT, path)
        return _stat_of(inode)

    def is_writable(self, path: Path) -> bool:
        self._fail("is_writable", path)
        return str(path) in self._folders or self.has(path)

    def rename(self, old: Path, new: Path) -> None:
        self._call("rename", old)
        folder, name = self._find(old)
        if name not in folder.names:
            raise _error(errno.ENOENT, old)
        change = {name: None, new.name: folder.names[name]}
        _apply_names(folder.names, change)
        folder.pending.append(change)
        self._called()

    def unlink(self, path: Path) -> None:
        self._call("unlink", path)
        folder, name = self._find(path)
        if name not in folder.names:
            raise _error(errno.ENOENT, path)
        del folder.names[name]
        folder.pending.append({name: None})
        self._called()

    def mkdir(self, path: Path) -> None:
        self._call("mkdir", path)
        if str(path) in self._folders:
            raise _error(errno.EEXIST, path)
        self._folders[str(path)] = _Folder(self._number(), is_synced=False)
        self._called()

    def rmdir(self, path: Path) -> None:
        self._call("rmdir", path)
        folder = self._folders.get(str(path))
        if folder is None:
            raise _error(errno.ENOENT, path)
        if folder.names or any(name.rpartition("/")[0] == str(path) for name in self._folders):
            raise _error(errno.ENOTEMPTY, path)
        del self._folders[str(path)]
        if folder.is_synced:
            self._removed[str(path)] = folder
        self._called()

    def copy_permissions(self, path: Path, fd: int) -> None:
        self._find(path)
        self._fail("copy_permissions", self._open[fd][0])

    def listdir(self, path: Path) -> list[str]:
        self._fail("listdir", path)
        if str(path) not in self._folders:
            raise _error(errno.ENOENT, path)
        return list(self._folders[str(path)].names)

    def sync_folder(self, path: Path) -> None:
        self._call("sync_folder", path)
        folder = self._folders[str(path)]
        if folder.pending:
            folder.synced, folder.pending = dict(folder.names), []
        for other, inner in self._folders.items():
            if not inner.is_synced and other.rpartition("/")[0] == str(path):
                inner.is_synced = True
        for other in [*self._removed]:
            parent = other.rpartition("/")[0]
            if parent == str(path) or parent not in self._folders:
                self._removed.pop(other)
        self._called()

    # --- inside -----------------------------------------------------------------------------

    def _number(self) -> int:
        self._next += 1
        return self._next

    def _find(self, path: Path) -> tuple[_Folder, str]:
        folder, _, name = str(path).rpartition("/")
        found = self._folders.get(folder)
        if found is None:
            raise _error(errno.ENOENT, path)
        return found, name

    def _cut(self, inode: _Inode, length: int) -> None:
        if length != len(inode.data):
            _resize(inode.data, length)
            inode.mtime_ns += 1
            inode.pending.append((length, None))

    def _call(self, name: str, path: Path) -> None:
        """Before a call that changes something."""
        self._run_beside()
        self.call_count += 1
        if self.crash_at is not None and self.call_count + (not self.crash_after) > self.crash_at:
            raise Crash  # again and again: what is dead does nothing more
        self._fail(name, path)

    def _run_beside(self) -> None:
        beside, self.beside = self.beside, None  # what it does has nothing beside it
        if beside is not None:
            beside()
            self.beside = beside

    def _called(self) -> None:
        if self.call_count == self.crash_at:
            raise Crash

    def _fail(self, name: str, path: Path) -> None:
        if self.fail is not None:
            code = self.fail(name, path, self.call_count)
            if code is not None:
                raise _error(code, path)


def _stat_of(inode: _Inode) -> Stat:
    return Stat(
        size=len(inode.data),
        device=1,
        inode=inode.number,
        mtime_ns=inode.mtime_ns,
        ctime_ns=inode.ctime_ns,
    )


def _error(code: int, path: Path) -> OSError:
    return OSError(code, os.strerror(code), str(path))


def _apply_names(names: dict[str, _Inode], change: dict[str, _Inode | None]) -> None:
    for name, inode in change.items():
        if inode is None:
            names.pop(name, None)
        else:
            names[name] = inode


def _write(data: bytearray, offset: int, new: bytes) -> None:
    if offset > len(data):
        data.extend(bytes(offset - len(data)))
    data[offset : offset + len(new)] = new


def _resize(data: bytearray, length: int) -> None:
    del data[length:]
    data.extend(bytes(length - len(data)))


def _survivor(inode: _Inode, rng: random.Random) -> bytearray:
    """What of a file remains after a power loss."""
    data = bytearray(inode.synced)
    # Most of the time each part has its own fate; at times only the first ones arrived.
    kept_count = rng.randrange(len(inode.pending) + 1) if rng.random() < 0.3 else None
    for at, (offset, new) in enumerate(inode.pending):
        if kept_count is None:
            fate = rng.choice(("kept", "kept", "dropped", "torn", "holed", "zeroed"))
        else:
            fate = "kept" if at < kept_count else "torn" if at == kept_count else "dropped"
        if fate == "dropped":
            continue
        if new is None:
            _resize(data, offset)
        elif fate == "kept":
            _write(data, offset, new)
        elif fate == "torn":
            _write(data, offset, new[: _tear(offset, len(new), rng)])
        elif fate == "holed":
            _write_some_sectors(data, offset, new, rng)
        elif offset + len(new) > len(data):
            # The length arrived, the content did not: only where the file grew.
            _resize(data, offset + len(new))
    return data


def _tear(offset: int, length: int, rng: random.Random) -> int:
    """A length up to ``length``; half of the time one that ends at a sector's border."""
    if rng.random() < 0.5:
        return rng.randrange(length + 1)
    cuts: list[int] = [0, *range(-offset % SECTOR_BYTES, length, SECTOR_BYTES), length]
    return cuts[rng.randrange(len(cuts))]


def _write_some_sectors(data: bytearray, offset: int, new: bytes, rng: random.Random) -> None:
    """Any of the sectors arrive; where the file grew, the others are zeros."""
    if offset + len(new) > len(data):
        _resize(data, offset + len(new))
    begin = 0
    while begin < len(new):
        end = min(len(new), begin + SECTOR_BYTES - (offset + begin) % SECTOR_BYTES)
        if rng.random() < 0.5:
            data[offset + begin : offset + end] = new[begin:end]
        begin = end


class AtCall:
    """Does something at the nth system call of some files, and fails none."""

    def __init__(self, files: CrashFiles, at: int, action: Callable[[], None]) -> None:
        self.count = 0
        """Calls so far."""
        self._at = at
        self._action = action
        files.fail = self

    def __call__(self, _call: str, _path: Path, _count: int) -> None:
        self.count += 1
        if self.count == self._at:
            self._action()


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
    return b"".join(input_line(n) + b"\n" for n in range(count))


def input_line(number: int) -> bytes:
    """One of its lines, without its newline."""
    return b"line %d %s" % (number, b"." * (number % 7))
