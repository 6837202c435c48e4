"""One server at a time: a lock that ends with the process that holds it.

``flock`` on a file of its own, opened for writing (over NFS it is refused otherwise). Where the
file system has no locks, a file that only one can make stands in for it, with its owner's host,
boot and process in it, so that an owner that is surely gone can be told from one that may live.
The server says in it at each durable point that it lives; of one on another host nobody but a
person can know more than when it last did.
"""

from __future__ import annotations

import contextlib
import datetime
import errno
import os
import socket
import uuid
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
    renewed: str = attrs.field(default="", eq=False)
    """ISO time, UTC, to the second: when it last said that it lives, in an owner file. For people.
    """

    @classmethod
    def me(cls) -> Owner:
        """This process."""
        boot = space = ""
        with contextlib.suppress(OSError):
            boot = _BOOT_ID.read_text(encoding="ascii").strip()
            space = os.readlink("/proc/self/ns/pid")
        return cls(host=socket.gethostname(), boot=boot, pid_space=space, pid=os.getpid())

    @classmethod
    def now(cls) -> bytes:
        """This process, alive now, encoded; always of one length."""
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        return msgspec.json.encode(attrs.evolve(cls.me(), renewed=now))

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


FOLDER_GONE = (
    "was moved or removed while the job ran: this server ends. Put it back, then start the same"
    " command again. Results that waited in its journal are only there."
)


class Lock:
    """Held from construction until ``close``.

    A lock that stays held may still be lost: a person removes its file, and the next server locks a
    new one. ``check`` finds that, and ``hold`` shuts out the next server even then.

    Args:
        path: The lock's file. Its owner file, where one is needed, is beside it.

    Raises:
        JobLocked: Another process holds it; the message says which.
        StorageError: The file cannot be made.
    """

    def __init__(self, disk: Disk, path: Path) -> None:
        self.warning: str | None = None
        """What the user should know of this lock."""
        self.is_holding = False
        """Whether the system keeps every other server from all files given to ``hold``."""
        self._disk = disk
        self._owner: File | None = None
        self._held: dict[Path, File] = {}
        self._file = disk.open(path, os.O_RDWR | os.O_CREAT)
        try:
            self._take(path)
            proof = self._owner or self._file
            self._path, found = str(proof.path), proof.stat()
            self._identity = found.device, found.inode
            self.check()
        except BaseException:
            self.close()
            raise

    def _take(self, path: Path) -> None:
        try:
            has_locks = _lock(self._file)
        except BlockingIOError as error:
            raise _locked(path, _owner_in(self._file)) from error
        if not has_locks:
            self._take_owner_file(path.with_name("owner"))
        # Only for the other one's message: a full disk must not keep a job from going on.
        with contextlib.suppress(DiskFull):
            data = msgspec.json.encode(Owner.me())
            self._file.write(data, 0)
            self._file.cut(len(data))

    def _take_owner_file(self, path: Path) -> None:
        if self._disk.stat(path) is not None:
            self._remove_stale(path)
        self._owner = self._make_owner_file(path)
        self.warning = (
            f"{path.parent} is on a file system without locks: {path} stands in for one. It is left"
            " behind when the server is killed on another host: see that nobody is at work before"
            " you remove it."
        )

    def _remove_stale(self, path: Path) -> None:
        """Remove the owner file of one that is surely gone, and never another one's."""
        with self._disk.open(path, os.O_RDONLY) as seen:
            owner = _owner_in(seen)
            if owner is None or not owner.is_surely_gone():
                raise _locked(path, owner, remove=True)
            aside = path.with_name(f"{path.name}.{uuid.uuid4().hex}")
            try:
                self._disk.rename(path, aside)
            except StorageError as error:
                if isinstance(error.__cause__, FileNotFoundError):
                    raise _locked(path, None, remove=True) from error
                raise
            found = self._disk.stat(aside)
            if found is None or not found.is_same(seen.stat()):
                # Another server was quicker, and this is its own. Where a third one has made its
                # file meanwhile, the one of the two that is not in place ends by ``check``.
                self._disk.rename(aside, path)
                raise _locked(path, None, remove=True)
            self._disk.unlink(aside)

    def _make_owner_file(self, path: Path) -> File:
        try:
            file = self._disk.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL)
        except StorageError as error:
            if isinstance(error.__cause__, FileExistsError):
                raise _locked(path, None, remove=True) from error
            raise
        try:
            file.write(Owner.now(), 0)
            file.sync()
        except BaseException:
            file.close()
            self._disk.unlink(path)
            raise
        return file

    @property
    def is_stand_in(self) -> bool:
        """Whether the file system has no locks, and an owner file stands in for one."""
        return self._owner is not None

    def hold(self, *paths: Path) -> None:
        """Keep other servers from files, whatever their names and even if ours is removed.

        One that is not there, or on a file system without locks, is not held. What is held already
        stays so, where it is in its place.

        Raises:
            JobLocked: Another process holds one.
        """
        held = [self._hold(path) for path in paths]
        self.is_holding = all(held)

    def _hold(self, path: Path) -> bool:
        held = self._held.get(path)
        if held is not None and held.is_in_place():
            return True
        if held is not None:
            del self._held[path]
            held.close()
        found = self._disk.stat(path)
        if found is None or not found.is_file:
            return False
        file = self._disk.open(path, os.O_RDWR)
        try:
            is_held = _lock(file)
        except BlockingIOError as error:
            file.close()
            raise JobLocked(
                f"another server is at work on {path}, perhaps by another of its names or for"
                " another job: stop it first, or name another file."
            ) from error
        except BaseException:
            file.close()
            raise
        if is_held:
            self._held[path] = file
        else:
            file.close()
        return is_held

    def check(self) -> None:
        """See that no other server can have taken over.

        Raises:
            StorageError: The lock's file is not where it was.
        """
        if self._disk.identity(self._path) != self._identity:
            path = Path(self._path)
            folder = path.parent
            if self._disk.stat(folder) is None:
                raise StorageError(f"{folder} {FOLDER_GONE}", folder)
            raise StorageError(
                f"{path} was moved or removed while the job ran, so that another server may"
                " have taken over: this one ends. Nothing acknowledged is lost. Start the same"
                " command again when no other is at work.",
                path,
            )

    def renew(self) -> None:
        """Where an owner file stands in for the lock: say in it that its owner lives."""
        if self._owner is not None:
            with contextlib.suppress(DiskFull):
                self._owner.write(Owner.now(), 0)

    def close(self) -> None:
        """Let go of the lock; idempotent."""
        owner, self._owner = self._owner, None
        try:
            if owner is not None:
                if owner.is_in_place():
                    self._disk.unlink(owner.path)
                owner.close()
        finally:
            held, self._held, self.is_holding = self._held, {}, False
            for file in held.values():
                file.close()
            self._file.close()


def _lock(file: File) -> bool:
    """Take a file's lock; False where the file system has none.

    Raises:
        BlockingIOError: Another process holds it.
    """
    try:
        file.lock()
    except BlockingIOError:
        raise
    except OSError as error:
        if error.errno in _NO_LOCKS:
            return False
        raise StorageError(f"{file.path} cannot be locked: {error.strerror}.", file.path) from error
    return True


def _owner_in(file: File) -> Owner | None:
    """Who wrote the file; None when that cannot be read, as in the instant before it is written."""
    try:
        return msgspec.json.decode(file.read(_MAX_OWNER_BYTES, 0), type=Owner)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None


def _locked(path: Path, owner: Owner | None, *, remove: bool = False) -> JobLocked:
    who = "another server" if owner is None else str(owner)
    seen = way_out = ""
    if remove:
        way_out = f", or remove {path} if it surely runs no more"
        if owner is not None:
            seen = f" (it last said so at {owner.renewed}; it says nothing while it has no work)"
    return JobLocked(f"{who} is at work on {path.parent}{seen}: stop it first{way_out}.")
