"""System calls that fail, write short, or find nothing."""

from __future__ import annotations

import errno
import os
import random
from pathlib import Path

import pytest
from storage_helpers import CrashFiles

from trioline.errors import DiskFull, StorageError
from trioline.storage.files import Disk, File
from trioline.storage.system import OsFiles

PATH = Path("/d/file")
CREATE = os.O_RDWR | os.O_CREAT


def open_file() -> tuple[CrashFiles, File]:
    files = CrashFiles()
    return files, Disk(files).open(PATH, CREATE)


def fail_with(files: CrashFiles, code: int) -> None:
    files.fail = lambda _call, _path, _count: code


def test_short_writes_go_on() -> None:
    files, file = open_file()
    files.short_writes = random.Random(0)
    data = random.Random(1).randbytes(3_000)
    file.write(data, 7)
    assert files.get(PATH) == bytes(7) + data


def test_short_reads_go_on() -> None:
    class OneByte(CrashFiles):
        def pread(self, fd: int, count: int, offset: int) -> bytes:
            return super().pread(fd, min(count, 1), offset)

    files = OneByte()
    files.put(PATH, b"abcdef")
    with Disk(files).open(PATH, os.O_RDONLY) as file:
        assert file.read(3, 1) == b"bcd"
        assert file.read(2_000, 4) == b"ef"
        assert file.read(1, 6) == b""


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_only_what_takes_room_finds_the_disk_full(code: int) -> None:
    files, file = open_file()
    fail_with(files, code)
    with pytest.raises(DiskFull, match=r"file cannot be written: .*Make room") as full:
        file.write(b"x", 0)
    assert full.value.path == str(PATH)
    with pytest.raises(DiskFull, match="file2 cannot be opened"):
        Disk(files).open(PATH.with_name("file2"), CREATE)
    for call in (file.sync, lambda: file.cut(0)):
        with pytest.raises(StorageError) as caught:
            call()
        assert not isinstance(caught.value, DiskFull)
    with pytest.raises(StorageError) as caught:
        Disk(files).sync_folder(PATH.parent)
    assert not isinstance(caught.value, DiskFull)


@pytest.mark.parametrize("code", [errno.EIO, errno.EROFS, errno.ESTALE, errno.EACCES])
def test_other_errors_name_the_file_and_the_reason(code: int) -> None:
    files, file = open_file()
    fail_with(files, code)
    with pytest.raises(StorageError, match=f"/d/file cannot be written: {os.strerror(code)}"):
        file.write(b"x", 0)


def test_the_real_calls_do_what_the_double_does(tmp_path: Path) -> None:
    for files, folder in ((OsFiles(), tmp_path), (CrashFiles(), Path("/d"))):
        disk = Disk(files)
        path, other = folder / "a", folder / "b"
        assert disk.stat(path) is None
        assert disk.size(path) == 0
        disk.unlink(path)
        disk.write_whole(path, b"hello")
        disk.write_whole(path, b"hey")
        disk.rename(path, other)
        assert disk.names(folder) == ["b"]
        assert disk.names(folder / "none") == []
        assert disk.read_whole(other, 2) == b"he"
        disk.make_folder(folder / "f")
        disk.make_folder(folder / "f")
        found = disk.stat(folder / "f")
        assert found is not None
        assert found.is_folder
        assert not found.is_file
        assert disk.is_writable(folder)
        with disk.open(other, os.O_RDWR) as file:
            file.lock()
            with disk.open(other, os.O_RDWR) as second, pytest.raises(BlockingIOError):
                second.lock()
            assert file.is_in_place()
            file.cut(5)
            assert file.read(9, 0) == b"hey\0\0"
            file.cut(1)
            assert file.size() == file.stat().size == 1
            assert disk.identity(str(other)) == (file.stat().device, file.stat().inode)
            disk.unlink(other)
            assert disk.identity(str(other)) is None
            assert not file.is_in_place()
        file.close()
        disk.sync_folder(folder)


def test_power_loss_drops_what_was_not_synced() -> None:
    """The double itself: else the crash tests prove nothing."""
    outcomes = set()
    for seed in range(40):
        files, file = open_file()
        file.write(b"safe", 0)
        file.sync()
        Disk(files).sync_folder(PATH.parent)
        file.write(b"x" * 1_000, 4)
        Disk(files).open(PATH.with_name("new"), CREATE).close()
        files.lose_power(random.Random(seed))
        assert files.get(PATH).startswith(b"safe")
        outcomes.add((files.get(PATH)[4:], files.has(PATH.with_name("new"))))
    contents = {content for content, _ in outcomes}
    assert {b"", b"x" * 1_000, bytes(1_000), b"x" * 508} <= contents
    assert {has for _, has in outcomes} == {True, False}
