"""Copies of what a repair changes or drops, so that nothing is gone that was there."""

from __future__ import annotations

import datetime
import os
from collections.abc import Iterator
from pathlib import Path

from trioline.storage.checksums import CHECKSUMS_NAME
from trioline.storage.files import Disk
from trioline.storage.opening import CHECKPOINT_NAME
from trioline.storage.repair.plan import Plan
from trioline.storage.run import RUN_NAME

_COPY_BYTES = 1024 * 1024


def save_copies(disk: Disk, plan: Plan, now: datetime.datetime) -> Path:
    """Copy what will be changed or cut; returns the folder.

    Of the output only what no line is kept of: the rest is in the journal before it is cut.
    """
    state = plan.settings.state
    folder = state / f"damaged-{now.astimezone(datetime.UTC):%Y%m%dT%H%M%S.%fZ}"
    disk.make_folder(folder)
    wanted = [(scan.path, 0, scan.length) for scan in plan.segments]
    wanted += [
        (state / name, 0, disk.size(state / name))
        for name in (CHECKPOINT_NAME, RUN_NAME, CHECKSUMS_NAME)
    ]
    wanted += [(plan.settings.output, begin, end) for begin, end in _dropped(disk, plan)]
    rejected, base = plan.settings.rejected, plan.base
    begin = 0 if plan.rejected.is_rebuilt else base.rejected_bytes
    wanted.append((rejected, begin, disk.size(rejected)))
    for path, begin, end in wanted:
        if begin < end:
            _copy(
                disk, path, folder / (path.name + (f"-from-{begin}" if begin else "")), begin, end
            )
    disk.sync_folder(folder)
    disk.sync_folder(state)
    return folder


def _dropped(disk: Disk, plan: Plan) -> Iterator[tuple[int, int]]:
    """The stretches of the output that are not kept."""
    at = plan.base.output_bytes
    for run in plan.rescued:
        yield at, run.offset
        at = run.offset + run.length
    yield at, disk.size(plan.settings.output)


def _copy(disk: Disk, path: Path, to: Path, begin: int, end: int) -> None:
    with (
        disk.open(path, os.O_RDONLY) as old,
        disk.open(to, os.O_WRONLY | os.O_CREAT | os.O_TRUNC) as new,
    ):
        at = begin
        while at < end and (data := old.read(min(_COPY_BYTES, end - at), at)):
            new.write(data, at - begin)
            at += len(data)
        new.sync()
