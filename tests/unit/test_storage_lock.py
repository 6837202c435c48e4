"""One server at a time, with and without locks in the file system."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import attrs
import msgspec
import pytest
from storage_helpers import CrashFiles

from trioline.errors import DiskFull, JobLocked, StorageError
from trioline.storage.files import Disk, OsFiles
from trioline.storage.lock import Lock, Owner

LOCK = Path("/d/lock")
OWNER = Path("/d/owner")


def without_locks(code: int = errno.ENOLCK) -> CrashFiles:
    files = CrashFiles()
    files.fail = lambda call, _path, _count: code if call == "lock" else None
    return files


def test_a_second_one_is_told_who_holds_it(tmp_path: Path) -> None:
    disk = Disk(OsFiles())
    first = Lock(disk, tmp_path / "lock")
    assert first.warning is None
    with pytest.raises(JobLocked, match=f"process {os.getpid()} on"):
        Lock(disk, tmp_path / "lock")
    first.close()
    first.close()
    Lock(disk, tmp_path / "lock").close()


@pytest.mark.parametrize("content", [b"", b'{"host":"\xc6"}'])
def test_an_unreadable_owner_is_another_server(content: bytes, tmp_path: Path) -> None:
    disk = Disk(OsFiles())
    first = Lock(disk, tmp_path / "lock")
    (tmp_path / "lock").write_bytes(content)
    with pytest.raises(JobLocked, match="another server is at work on"):
        Lock(disk, tmp_path / "lock")
    first.close()


def test_a_full_disk_keeps_nobody_out() -> None:
    files = CrashFiles()
    files.fail = lambda call, _path, _count: errno.ENOSPC if call == "pwrite" else None
    Lock(Disk(files), LOCK).close()


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_an_owner_file_stands_in_for_a_lock(code: int) -> None:
    files = without_locks(code)
    lock = Lock(Disk(files), LOCK)
    assert lock.warning is not None
    assert "without locks" in lock.warning
    assert msgspec.json.decode(files.get(OWNER), type=Owner) == Owner.me()
    lock.close()
    assert not files.has(OWNER)
    assert files.open_count == 0


def test_a_full_disk_leaves_no_half_owner_file() -> None:
    files = CrashFiles()
    codes = {"lock": errno.ENOLCK, "pwrite": errno.ENOSPC}
    files.fail = lambda call, _path, _count: codes.get(call)
    with pytest.raises(DiskFull):
        Lock(Disk(files), LOCK)
    assert not files.has(OWNER)


@pytest.mark.parametrize("gone", ["pid", "boot"])
def test_an_owner_that_is_surely_gone_is_replaced(gone: str) -> None:
    owner = attrs.evolve(Owner.me(), boot="another") if gone == "boot" else ended_process()
    files = without_locks()
    files.put(OWNER, msgspec.json.encode(owner))
    Lock(Disk(files), LOCK).close()


ALIVE = attrs.evolve(Owner.me(), pid=os.getppid())
FAR = attrs.evolve(ALIVE, host="far", pid=1 << 30)
CONTAINED = attrs.evolve(ALIVE, pid_space="another", pid=1 << 30)


@pytest.mark.parametrize(
    "data", [b"", *(msgspec.json.encode(owner) for owner in (ALIVE, FAR, CONTAINED))]
)
def test_an_owner_that_may_live_stays(data: bytes) -> None:
    files = without_locks()
    files.put(OWNER, data)
    with pytest.raises(
        JobLocked, match="stop it first, or remove /d/owner if it surely runs no more"
    ):
        Lock(Disk(files), LOCK)
    assert files.get(OWNER) == data


def test_another_error_is_no_missing_lock() -> None:
    with pytest.raises(StorageError, match="lock cannot be locked: Input/output error"):
        Lock(Disk(without_locks(errno.EIO)), LOCK)


def ended_process() -> Owner:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return attrs.evolve(Owner.me(), pid=process.pid)
