"""The table of checksums made anew, with the sums that a checkpoint has of it."""

from __future__ import annotations

import os
from array import array
from collections.abc import Iterator
from pathlib import Path

from trioline.storage.checksums import Read, Tally, interleaved
from trioline.storage.files import Disk
from trioline.storage.new_file import NewFile
from trioline.storage.repair.plan import Plan

_READ_BYTES = 1024 * 1024
_WRITTEN_ENTRIES = 4_096
"""Written at a time."""


def write_table(disk: Disk, plan: Plan, input_offset: int, draft: Path) -> tuple[Tally, Tally]:
    """Sum up what the base has of input and output.

    Returns:
        Both, with the sums of all blocks and of the one that is not complete.
    """
    base, tallies = plan.base, (Tally(), Tally())
    sums = array("I"), array("I")
    with (
        disk.open(plan.settings.input, os.O_RDONLY) as inputs,
        disk.open(plan.settings.output, os.O_RDONLY) as outputs,
        NewFile(disk, draft) as table,
    ):
        columns = (
            _column(tallies[0], inputs.read, input_offset, is_finished=base.finished),
            _column(tallies[1], outputs.read, base.output_bytes, is_finished=base.finished),
        )
        for pair in zip(*columns, strict=True):
            for side, crc in zip(sums, pair, strict=True):
                side.append(crc)
            if len(sums[0]) == _WRITTEN_ENTRIES:
                table.append(interleaved(*sums))
                sums = array("I"), array("I")
        table.append(interleaved(*sums))
    return tallies


def _column(tally: Tally, read: Read, end: int, *, is_finished: bool) -> Iterator[int]:
    """The sums of one side's blocks; the tally has the rest when all were taken."""
    at = 0
    while at < end and (data := read(min(_READ_BYTES, end - at), at)):
        at += len(data)
        tally.feed(data)
        yield from tally.take_sums()
    tally.end()
    if is_finished:
        tally.end_block()
    yield from tally.take_sums()
