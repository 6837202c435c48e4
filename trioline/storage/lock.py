"""One server at a time: a lock that ends with the process that holds it.

``flock`` on a file of its own, opened for writing (over NFS it is refused otherwise). Where the
file system has no locks, a file that only one can make stands in for it, with its owner's host,
boot and process in it, so that an owner that is surely gone can be told from one that may live.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from pathlib import Path

import attrs
import msgspec

from trioline.errors import DiskFull, JobLocked, StorageError
from trioline.storage.files import Disk, File

_NO_LOCKS = frozenset({errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL})
_MAX_OWNER_BYTES = 4_096
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


@attrs.frozen(kw_only=True)
class Owner:
    """Which process holds a lock."""

    host: str
    boot: str
    """The host's boot id; empty where it has none."""
    pid_space: str
    """The pid namespace: pids of another container mean nothing here."""
    pid: int

    @classmethod
    def me(cls) -> Owner:
        """This process."""
        boot = space = ""
        with contextlib.suppress(OSError):
            boot = _BOOT_ID.read_text(encoding="ascii").strip()
            space = os.readlink("/proc/self/ns/pid")
        return cls(host=socket.gethostname(), boot=boot, pid_space=space, pid=os.getpid())

    def is_surely_gone(self) -> bool:
        """Whether it ran on this host and does no longer. Of another host nothing is known."""
        me = Owner.me()
        if self.host != me.host:
            return False
        if self.boot != me.boot:
            return True
        if self.pid_space != me.pid_space:
            return False
        if self.pid == me.pid:
            return True  # its number came to us
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            return False
        return False

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


class Lock:
    """Held from construction until ``close``.

    Args:
        path: The lock's file. Its owner file, where one is needed, is beside it.

    Raises:
        JobLocked: Another process holds it; the message says which.
        StorageError: The file cannot be made.
    """

    def __init__(self, disk: Disk, path: Path) -> None:
        self.warning: str | None = None
        """What the user should know of this lock."""
        self._disk = disk
        self._owner_path: Path | None = None
        self._file = disk.open(path, os.O_RDWR | os.O_CREAT)
        try:
            self._take(path)
        except BaseException:
            self._file.close()
            raise

    def _take(self, path: Path) -> None:
        try:
            self._file.lock()
        except BlockingIOError as error:
            raise _locked(path, _owner_in(self._file)) from error
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise StorageError(f"{path} cannot be locked: {error.strerror}.", path) from error
            self._take_owner_file(path.with_name("owner"))
        # Only for the other one's message: a full disk must not keep a job from going on.
        with contextlib.suppress(DiskFull):
            data = msgspec.json.encode(Owner.me())
            self._file.write(data, 0)
            self._file.cut(len(data))

    def _take_owner_file(self, path: Path) -> None:
        self._make_owner_file(path)
        self._owner_path = path
        self.warning = (
            f"{path.parent} is on a file system without locks: {path} stands in for one. It is left"
            " behind when the server is killed on another host: see that nobody is at work before"
            " you remove it."
        )

    def _make_owner_file(self, path: Path) -> None:
        if self._disk.stat(path) is not None:
            with self._disk.open(path, os.O_RDONLY) as file:
                owner = _owner_in(file)
            if owner is None or not owner.is_surely_gone():
                raise _locked(path, owner, remove=True)
            self._disk.unlink(path)
        try:
            file = self._disk.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        except StorageError as error:
            if isinstance(error.__cause__, FileExistsError):
                raise _locked(path, None, remove=True) from error
            raise
        with file:
            try:
                file.write(msgspec.json.encode(Owner.me()), 0)
                file.sync()
            except BaseException:
                self._disk.unlink(path)
                raise

    def close(self) -> None:
        """Let go of the lock; idempotent."""
        path, self._owner_path = self._owner_path, None
        if path is not None:
            self._disk.unlink(path)
        self._file.close()


def _owner_in(file: File) -> Owner | None:
    """Who wrote the file; None when that cannot be read, as in the instant before it is written."""
    try:
        return msgspec.json.decode(file.read(_MAX_OWNER_BYTES, 0), type=Owner)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None


def _locked(path: Path, owner: Owner | None, *, remove: bool = False) -> JobLocked:
    who = "another server" if owner is None else str(owner)
    way_out = f", or remove {path} if it surely runs no more" if remove else ""
    return JobLocked(f"{who} is at work on {path.parent}: stop it first{way_out}.")
