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
from trioline.storage.files import Disk
from trioline.storage.lock import Lock, Owner
from trioline.storage.system import OsFiles

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


def test_an_owner_says_when_it_last_lived() -> None:
    files = without_locks()
    lock = Lock(Disk(files), LOCK)
    old = attrs.evolve(FAR, renewed="2026-01-02T03:04:05+00:00")
    files.put(Path("/d/other"), msgspec.json.encode(old))
    begun = msgspec.json.decode(files.get(OWNER), type=Owner).renewed
    assert begun
    fd = files.open(OWNER, os.O_RDWR)
    files.pwrite(fd, files.get(OWNER).replace(begun.encode(), old.renewed.encode()), 0)
    lock.renew()
    assert msgspec.json.decode(files.get(OWNER), type=Owner).renewed >= begun
    lock.close()
    files.put(OWNER, msgspec.json.encode(old))
    with pytest.raises(JobLocked, match=r"on far is at work .*last said so at 2026-01-02T03:04:05"):
        Lock(Disk(files), LOCK)


@pytest.mark.parametrize("instant", ["rename", "create"])
def test_of_two_that_find_a_stale_owner_one_is_refused(instant: str) -> None:
    """Another server takes the place of the stale owner at any instant of ours."""
    quick = msgspec.json.encode(ALIVE)
    files = CrashFiles()

    def fail(call: str, path: Path, _count: int) -> int | None:
        if call == instant and path == OWNER:
            files.put(OWNER, quick)
            return errno.EEXIST if call == "create" else None
        return errno.ENOLCK if call == "lock" else None

    files.fail = fail
    files.put(OWNER, msgspec.json.encode(ended_process()))
    with pytest.raises(JobLocked, match="another server is at work"):
        Lock(Disk(files), LOCK)
    assert files.get(OWNER) == quick
    assert [path.name for path in files.paths() if path.name.startswith("owner")] == ["owner"]
    assert files.open_count == 0


def test_a_stale_owner_that_another_one_moved_is_no_longer_ours_to_take() -> None:
    files = CrashFiles()

    def fail(call: str, path: Path, _count: int) -> int | None:
        return {"lock": errno.ENOLCK, "rename": errno.ENOENT}.get(call)

    files.fail = fail
    files.put(OWNER, msgspec.json.encode(ended_process()))
    with pytest.raises(JobLocked, match="another server is at work"):
        Lock(Disk(files), LOCK)


@pytest.mark.parametrize("has_locks", [True, False])
@pytest.mark.parametrize("is_replaced", [True, False])
def test_a_lock_whose_file_is_gone_is_lost(*, has_locks: bool, is_replaced: bool) -> None:
    files = CrashFiles() if has_locks else without_locks()
    path = LOCK if has_locks else OWNER
    lock = Lock(Disk(files), LOCK)
    lock.check()
    files.unlink(path)
    if is_replaced:
        files.put(path, b"another's")
    with pytest.raises(StorageError, match=f"{path} was moved or removed while the job ran"):
        lock.check()
    lock.close()
    assert not is_replaced or files.get(path) == b"another's"


def test_a_file_is_held_by_whatever_name(tmp_path: Path) -> None:
    disk = Disk(OsFiles())
    (tmp_path / "out").touch()
    (tmp_path / "again").hardlink_to(tmp_path / "out")
    first, second = Lock(disk, tmp_path / "1"), Lock(disk, tmp_path / "2")
    first.hold(tmp_path / "out")
    assert first.is_holding
    with pytest.raises(JobLocked, match=r"at work on .*again, perhaps by another of its names"):
        second.hold(tmp_path / "again")
    first.close()
    second.hold(tmp_path / "again")
    second.hold(tmp_path / "none")
    assert not second.is_holding
    second.close()


def test_another_error_is_no_missing_lock() -> None:
    with pytest.raises(StorageError, match="lock cannot be locked: Input/output error"):
        Lock(Disk(without_locks(errno.EIO)), LOCK)


def ended_process() -> Owner:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return attrs.evolve(Owner.me(), pid=process.pid)
