"""What ``trioline doctor`` finds: the mounts it knows, and each probe's good and bad end."""

from __future__ import annotations

import errno
import fcntl
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from processes import invoke

from trioline.cli.main import EXIT_OTHER, EXIT_USAGE
from trioline.storage.doctor import probe as probing
from trioline.storage.doctor.mounts import Mount, meaning, mount_of, parse
from trioline.storage.doctor.probe import PROBES, Check, probe

MOUNTINFO = r"""
24 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
30 24 0:26 / /tmp rw,nosuid - tmpfs tmpfs rw,size=1g
31 24 0:40 / /mnt/a\040b rw - nfs4 server:/x rw,vers=4.2,soft
32 24 8:2 / /tmp/disk rw - xfs /dev/sdb1 rw,nobarrier
broken line
33 24 8:3 / /tmp/disk rw - xfs /dev/sdc1 rw
"""


def test_mountinfo_is_read() -> None:
    mounts = parse(MOUNTINFO)
    assert [mount.point for mount in mounts] == ["/", "/tmp", "/mnt/a b", "/tmp/disk", "/tmp/disk"]
    assert mounts[2].options >= {"rw", "soft", "vers=4.2"}
    for path, point in (("/tmp/x/y", "/tmp"), ("/tmpx", "/"), ("/mnt/a b/c", "/mnt/a b")):
        found = mount_of(Path(path), mounts)
        assert found is not None
        assert found.point == point
    assert mount_of(Path("/tmp/disk"), mounts) is mounts[4]  # the one mounted over the other
    assert mount_of(Path("/x"), []) is None


@pytest.mark.parametrize(
    ("kind", "options", "level", "words"),
    [
        ("ext4", "rw", "ok", "survives power loss"),
        ("xfs", "rw,nobarrier", "problem", "without barriers"),
        ("ext4", "rw,barrier=0", "problem", "without barriers"),
        ("btrfs", "ro", "problem", "read-only"),
        ("tmpfs", "rw", "warning", "gone at power loss"),
        ("nfs4", "rw,hard", "warning", "export must be sync"),
        ("nfs", "rw,soft", "problem", "use hard"),
        ("nfs", "rw,nolock", "warning", "locks hold on this host only"),
        ("lustre", "rw,flock", "warning", "as safe as its servers' disks"),
        ("lustre", "rw,localflock", "warning", "no locks between hosts"),
        ("overlay", "rw", "warning", "use a volume"),
        ("fuse.sshfs", "rw", "warning", "up to the program behind it"),
        ("beegfs", "rw", "warning", "not one that trioline knows"),
    ],
)
def test_what_a_mount_means(kind: str, options: str, level: str, words: str) -> None:
    mount = Mount(point="/m", kind=kind, options=frozenset(options.split(",")), device="1:1")
    found = meaning(mount)
    assert (found.level, words in found.text) == (level, True), found.text
    assert meaning(None).level == "warning"


def test_a_folder_that_is_fine(tmp_path: Path) -> None:
    checks = {check.name: check for check in probe(tmp_path)}
    assert list(checks) == ["file system", *PROBES]
    assert not [check for check in checks.values() if check.level == "problem"]
    assert checks["speed"].numbers["p50_ms"] > 0
    assert not list(tmp_path.iterdir())


def levels(folder: Path) -> dict[str, Check]:
    return {check.name: check for check in probe(folder)}


def test_a_file_system_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(_file: object, _how: int) -> None:
        raise OSError(errno.ENOLCK, "no locks")

    monkeypatch.setattr(fcntl, "flock", flock)
    check = levels(tmp_path)["lock"]
    assert (check.level, "owner file stands in" in check.text) == ("warning", True)


def test_locks_that_keep_nobody_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fcntl, "flock", lambda _file, _how: None)
    check = levels(tmp_path)["lock"]
    assert (check.level, "two servers" in check.text) == ("problem", True)


def test_a_sync_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fdatasync(_fd: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fdatasync", fdatasync)
    check = levels(tmp_path)["sync of a file"]
    assert (check.level, "Input/output error" in check.text) == ("problem", True)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("seconds", "level", "words"),
    [
        (0.2, "warning", "slow"),
        (0.000_001, "warning", "faster than a disk"),
        (0.001, "ok", "1,000"),
    ],
)
def test_how_long_a_sync_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: float, level: str, words: str
) -> None:
    def timed(_path: Path) -> Iterator[float]:
        yield from [seconds] * 50

    monkeypatch.setattr(probing, "_timed_syncs", timed)
    check = levels(tmp_path)["speed"]
    assert (check.level, words in check.text) == (level, True), check.text


@pytest.mark.parametrize(
    ("blocks", "inodes", "level"),
    [(1 << 30, 1 << 20, "ok"), (50_000, 1 << 20, "warning"), (1 << 30, 10, "warning"),
     (100, 1 << 20, "problem"), (1 << 30, 0, "problem")],
)  # fmt: skip
def test_how_much_room_there_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, blocks: int, inodes: int, level: str
) -> None:
    values = (4_096, 4_096, blocks, blocks, blocks, 1 << 20, inodes, inodes, 0, 255)
    monkeypatch.setattr(os, "statvfs", lambda _path: os.statvfs_result(values))
    assert levels(tmp_path)["room"].level == level


def test_the_command(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    capture = capfd.readouterr
    told = invoke("doctor", tmp_path, capture=capture)
    assert told.code == 0
    assert len(told.stdout.splitlines()) == 1 + len(PROBES)
    assert all(line.split()[0] in ("ok", "warning") for line in told.stdout.splitlines())
    refused = invoke("doctor", tmp_path / "out", capture=capture)
    assert (refused.code, refused.stdout) == (EXIT_USAGE, "")
    assert f"{tmp_path / 'out'} is not there: name a folder, or a file in it" in refused.stderr
    assert not list(tmp_path.iterdir())
    (tmp_path / "out").touch()
    body = json.loads(invoke("doctor", "--json", tmp_path / "out", capture=capture).stdout)
    assert body["ok"] is True
    assert [check["name"] for check in body["checks"]] == ["file system", *PROBES]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    refused = invoke("doctor", tmp_path / "no" / "out", capture=capture)
    assert (refused.code, "make it first" in refused.stderr) == (EXIT_USAGE, True)


def test_the_command_finds_problems(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fcntl, "flock", lambda _file, _how: None)
    told = invoke("doctor", tmp_path, capture=capfd.readouterr)
    assert told.code == EXIT_OTHER
    assert "problem  lock: flock does not keep a second process out" in told.stdout
