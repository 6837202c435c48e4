"""The table of checksums made anew for lines that are kept without one."""

from __future__ import annotations

import os
from array import array

from trioline.storage.checksums import BLOCK_LINES, CHECKSUMS_NAME, ENTRY_BYTES, interleaved
from trioline.storage.files import Disk
from trioline.storage.new_file import NewFile
from trioline.storage.repair.line_file import LineFile
from trioline.storage.repair.plan import Plan

_COPY_BYTES = 1024 * 1024


def rebuild_table(disk: Disk, plan: Plan) -> None:
    """Sum up the base's blocks that have no sums; the others' stay, whole or not at all.

    Also those behind the base stay: until the checkpoint is written, they say what is damaged.
    """
    path = plan.settings.state / CHECKSUMS_NAME
    draft = path.with_name(path.name + ".new")
    with (
        disk.open(plan.settings.input, os.O_RDONLY) as inputs,
        disk.open(plan.settings.output, os.O_RDONLY) as outputs,
        NewFile(disk, draft) as new,
    ):
        sides = LineFile(inputs, counts_rest=True), LineFile(outputs)
        ats = [0, 0]
        for number in range(entry_count(plan)):
            size = min(BLOCK_LINES, plan.base.lines - number * BLOCK_LINES)
            blocks = [side.block(at, size) for side, at in zip(sides, ats, strict=True)]
            ats = [at + block.length for at, block in zip(ats, blocks, strict=True)]
            new.append(interleaved(*(array("I", [block.crc]) for block in blocks)))
        if disk.stat(path) is not None:
            with disk.open(path, os.O_RDONLY) as old:
                while data := old.read(_COPY_BYTES, new.length):
                    new.append(data)
    disk.rename(draft, path)
    disk.sync_folder(plan.settings.state)


def entry_count(plan: Plan) -> int:
    """How many entries the table has of the base's lines."""
    lines = plan.base.lines
    return -(-lines // BLOCK_LINES) if plan.base.finished else lines // BLOCK_LINES


def cut_table(disk: Disk, plan: Plan) -> None:
    """Forget the sums of lines that will be written again."""
    path, length = plan.settings.state / CHECKSUMS_NAME, entry_count(plan) * ENTRY_BYTES
    if disk.size(path) > length:
        with disk.open(path, os.O_RDWR) as file:
            file.cut(length)
            file.sync()
