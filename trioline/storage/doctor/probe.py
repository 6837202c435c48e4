"""Tries out what trioline needs of a file system, in a folder of its own that is removed again."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import attrs

from trioline.config import SEGMENT_BYTES
from trioline.errors import UsageError
from trioline.storage.doctor.mounts import MOUNTINFO, meaning, mount_of, parse

WRITE_BYTES = 4_096
WRITES = 50
LOW_SPACE_BYTES = 1 << 30
LOW_INODES = 1_000
"""A job has a handful of files and a segment of the journal for each 64 MiB ahead."""
MAX_SKEW_SECONDS = 5.0
SLOW_SECONDS = 0.05
TOO_FAST_SECONDS = 0.000_02
"""No device, and hardly any controller's memory, has synced 4 KiB in so short a time."""
_TRY_LOCK = (
    "import fcntl,sys\n"
    "try: fcntl.flock(open(sys.argv[1],'r+'), fcntl.LOCK_EX|fcntl.LOCK_NB)\n"
    "except BlockingIOError: sys.exit(10)\n"
)
_HELD = 10
_CHILD_SECONDS = 30


@attrs.frozen(kw_only=True)
class Check:
    """One thing that was looked at."""

    name: str
    level: str
    """ok, warning or problem."""
    text: str
    """What was found, and what it means for trioline."""
    numbers: dict[str, float] = attrs.Factory(dict)
    """What was measured; the unit is in the name."""


Probe = Callable[[Path], Check]


def probe(path: Path) -> Iterator[Check]:
    """Try out everything in a folder, or in the folder of a file.

    Raises:
        UsageError: There is no such folder or file.
    """
    folder = path if path.is_dir() else path.parent
    if not folder.is_dir():
        raise UsageError(f"There is no folder {folder}: make it first.")
    if not os.path.lexists(path):
        raise UsageError(f"{path} is not there: name a folder, or a file in it.")
    yield _file_system(folder)
    try:
        own = Path(tempfile.mkdtemp(prefix=".trioline-doctor-", dir=folder))
    except OSError as error:
        text = f"{folder} cannot be written in: {error.strerror}"
        yield Check(name="writing", level="problem", text=text)
        return
    try:
        for name, attempt in PROBES.items():
            yield _attempted(name, attempt, own)
    finally:
        shutil.rmtree(own, ignore_errors=True)


def _attempted(name: str, attempt: Probe, own: Path) -> Check:
    try:
        return attempt(own)
    except OSError as error:
        reason = error.strerror or str(error)
        return Check(name=name, level="problem", text=f"failed: {reason}; trioline needs it")


def _file_system(folder: Path) -> Check:
    try:
        mounts = parse(MOUNTINFO.read_text(encoding="utf-8", errors="surrogateescape"))
    except OSError:
        mounts = []
    found = meaning(mount_of(folder, mounts))
    return Check(name="file system", level=found.level, text=found.text)


def _room(own: Path) -> Check:
    stats = os.statvfs(own)
    free = stats.f_bavail * stats.f_frsize
    inodes = stats.f_favail if stats.f_files else None
    numbers: dict[str, float] = {"free_bytes": free}
    text = f"{free / 2**30:,.1f} GiB free"
    if inodes is not None:
        text += f", {inodes:,} files"
        numbers["free_files"] = inodes
    level, more = "ok", "; a full disk pauses the job, it loses nothing"
    if free < 2 * SEGMENT_BYTES or inodes == 0:
        level, more = "problem", "; too little for a job"
    elif free < LOW_SPACE_BYTES or (inodes is not None and inodes < LOW_INODES):
        level, more = "warning", "; little: a full disk pauses the job until there is room"
    return Check(name="room", level=level, text=text + more, numbers=numbers)


def _exclusive(own: Path) -> Check:
    path = own / "exclusive"
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL))
    with contextlib.suppress(FileExistsError):
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL))
        text = "O_EXCL makes a file that is there: two servers could take one owner file"
        return Check(name="exclusive create", level="problem", text=text)
    return Check(name="exclusive create", level="ok", text="only one can make a file")


def _lock(own: Path) -> Check:
    path = own / "lock"
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL):
                raise
            text = "no flock: an owner file stands in; it stays behind when a host dies"
            return Check(name="lock", level="warning", text=text)
        child = subprocess.run(
            [sys.executable, "-c", _TRY_LOCK, path], timeout=_CHILD_SECONDS, check=False
        )
    if child.returncode != _HELD:
        text = "flock does not keep a second process out: two servers could write one output"
        return Check(name="lock", level="problem", text=text)
    return Check(name="lock", level="ok", text="flock keeps a second process out")


def _sync_file(own: Path) -> Check:
    with (own / "synced").open("wb") as file:
        file.write(b"x" * WRITE_BYTES)
        file.flush()
        os.fdatasync(file.fileno())
        os.fsync(file.fileno())
    return Check(name="sync of a file", level="ok", text="the system says that it reached the disk")


def _sync_folder(own: Path) -> Check:
    fd = os.open(own, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
    return Check(name="sync of a folder", level="ok", text="new files survive power loss")


def _rename(own: Path) -> Check:
    old, new = own / "old", own / "new"
    old.write_bytes(b"old")
    new.write_bytes(b"new")
    new.rename(old)
    if old.read_bytes() != b"new" or new.exists():
        text = "a file renamed over another one did not replace it"
        return Check(name="rename", level="problem", text=text)
    return Check(name="rename", level="ok", text="a file is replaced whole or not at all")


def _growing(own: Path) -> Check:
    fd = os.open(own / "growing", os.O_RDWR | os.O_CREAT)
    try:
        os.pwrite(fd, b"end", 100_000)
        is_sparse = os.pread(fd, 3, 50_000) == b"\0\0\0" and os.fstat(fd).st_size == 100_003
        os.ftruncate(fd, 10)
        os.pwrite(fd, b"again", 10)
        is_cut = os.pread(fd, 100, 8) == b"\0\0again" and os.fstat(fd).st_size == 15
    finally:
        os.close(fd)
    if not (is_sparse and is_cut):
        text = "what was written at an offset, or cut, does not read back"
        return Check(name="growing and cutting", level="problem", text=text)
    text = "writes at an offset and cuts read back as they should"
    return Check(name="growing and cutting", level="ok", text=text)


def _clock(own: Path) -> Check:
    path = own / "clock"
    path.write_bytes(b"x")
    skew = path.stat().st_mtime - time.time()
    numbers = {"skew_seconds": round(skew, 3)}
    if abs(skew) > MAX_SKEW_SECONDS:
        text = f"the file server's clock is {skew:+.0f} s off ours: only logs suffer"
        return Check(name="clock", level="warning", text=text, numbers=numbers)
    text = "the file system's clock agrees with ours"
    return Check(name="clock", level="ok", text=text, numbers=numbers)


def _speed(own: Path) -> Check:
    seconds = sorted(_timed_syncs(own / "speed"))
    half, worst = seconds[len(seconds) // 2], seconds[len(seconds) * 99 // 100]
    text = (
        f"fdatasync of 4 KiB: p50 {half * 1e3:.2f} ms, p99 {worst * 1e3:.2f} ms; about "
        f"{1 / max(half, 1e-7):,.0f} commits a second under --fsync always"
    )
    level = "ok"
    if half > SLOW_SECONDS:
        level = "warning"
        text += "; slow: larger batches help, or --fsync interval"
    elif half < TOO_FAST_SECONDS:
        level = "warning"
        text += "; faster than a disk: it may not be there yet when the system says so"
    numbers = {"p50_ms": round(half * 1e3, 3), "p99_ms": round(worst * 1e3, 3)}
    return Check(name="speed", level=level, text=text, numbers=numbers)


def _timed_syncs(path: Path) -> Iterator[float]:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT)
    try:
        for number in range(WRITES):
            begin = time.perf_counter()
            os.pwrite(fd, bytes(WRITE_BYTES), number * WRITE_BYTES)
            os.fdatasync(fd)
            yield time.perf_counter() - begin
    finally:
        os.close(fd)


PROBES: dict[str, Probe] = {
    "room": _room,
    "exclusive create": _exclusive,
    "lock": _lock,
    "sync of a file": _sync_file,
    "sync of a folder": _sync_folder,
    "rename": _rename,
    "growing and cutting": _growing,
    "clock": _clock,
    "speed": _speed,
}
"""In the order in which they are told of."""
