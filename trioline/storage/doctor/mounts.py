"""Which file system a folder is on, and what that means for the promise."""

from __future__ import annotations

import os
import re
from pathlib import Path

import attrs

MOUNTINFO = Path("/proc/self/mountinfo")

_IN_MEMORY = frozenset({"tmpfs", "ramfs", "devtmpfs"})
_LOCAL = frozenset({"ext2", "ext3", "ext4", "xfs", "btrfs", "zfs", "f2fs", "bcachefs", "jfs"})
_NO_BARRIER = frozenset({"nobarrier", "barrier=0", "barrier=none"})
_ESCAPE = re.compile(r"\\([0-7]{3})")


@attrs.frozen(kw_only=True)
class Mount:
    """One line of mountinfo."""

    point: str
    kind: str
    """File system type, as in "ext4" or "fuse.sshfs"."""
    options: frozenset[str]
    """Of the mount and of the file system."""
    device: str
    """Major and minor number, as in "8:1"."""


@attrs.frozen(kw_only=True)
class Meaning:
    """What a mount means for trioline."""

    level: str
    """ok, warning or problem."""
    text: str


def parse(text: str) -> list[Mount]:
    """Read mountinfo; lines that are not as they should be are left out."""
    mounts = []
    for line in text.splitlines():
        front, _, back = line.partition(" - ")
        before, behind = front.split(" "), back.split(" ")
        if len(before) >= 6 and len(behind) >= 3:
            options = {*before[5].split(","), *behind[2].split(",")}
            point = _ESCAPE.sub(lambda match: chr(int(match[1], 8)), before[4])
            mounts.append(
                Mount(point=point, kind=behind[0], options=frozenset(options), device=before[2])
            )
    return mounts


def mount_of(folder: Path, mounts: list[Mount]) -> Mount | None:
    """The mount a folder is on: the longest point above it, the last one where there are two."""
    path = os.path.realpath(folder)
    found = None
    for mount in mounts:
        point = mount.point.rstrip("/")
        is_above = path == point or path.startswith(point + "/") or mount.point == "/"
        if is_above and (found is None or len(mount.point) >= len(found.point)):
            found = mount
    return found


def meaning(mount: Mount | None) -> Meaning:
    """Say what a mount means for trioline."""
    if mount is None:
        return Meaning(level="warning", text="unknown: /proc/self/mountinfo does not tell")
    kind, options = mount.kind, mount.options
    name = f"{kind} at {mount.point}"
    if "ro" in options:
        return Meaning(level="problem", text=f"{name}: mounted read-only")
    if options & _NO_BARRIER:
        return Meaning(
            level="problem",
            text=f"{name}, without barriers: fsync does not reach the disk; after power loss "
            "acknowledged results may be gone",
        )
    if kind in _LOCAL:
        return Meaning(level="ok", text=f"{name}: a local disk; what is synced survives power loss")
    return _meaning_elsewhere(mount, name)


def _meaning_elsewhere(mount: Mount, name: str) -> Meaning:
    kind, options = mount.kind, mount.options
    if kind in _IN_MEMORY:
        text = f"{name}: in memory; survives kill -9, gone at power loss or reboot"
    elif kind.startswith("nfs"):
        if options & {"soft", "softerr"}:
            text = (
                f"{name}, soft: a slow server shows as an I/O error, which ends the job; use hard"
            )
            return Meaning(level="problem", text=text)
        text = f"{name}: as safe as the NFS server's disk; its export must be sync, not async"
        if options & {"nolock", "local_lock=all", "local_lock=flock"}:
            text += "; locks hold on this host only: see that no other one serves the same output"
    elif kind == "lustre":
        text = f"{name}: as safe as its servers' disks"
        if "flock" not in options:
            text += "; no locks between hosts: see that no other one serves the same output"
    elif kind == "overlay":
        text = f"{name}: a container's own layer, gone with the container; use a volume"
    elif kind.startswith("fuse"):
        text = f"{name}: what fsync and locks mean is up to the program behind it"
    else:
        text = f"{name}: not one that trioline knows; as safe as its fsync"
    return Meaning(level="warning", text=text)
