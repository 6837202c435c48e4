"""What a start takes away of a file is kept in a copy beside the journal, and said.

A copy is on the disk, with its name, before anything is taken away. It is named after what it is
of, where that was, and its crc32: so a start that was cut off writes the same one again, and no
other one takes its place.

A server that is killed again and again may leave something to copy each time: results that are
computed again. So of the copies that may be of such only the newest are kept. What is longer than a
crash can leave is somebody's work, as where an older state was put back: nobody removes that.
"""

from __future__ import annotations

import os
import re
import zlib
from collections.abc import Iterator
from pathlib import Path

from trioline.config import MAX_QUEUED_BYTES, SYNC_INTERVAL_BYTES
from trioline.errors import DiskFull
from trioline.newlines import count_newlines
from trioline.storage.damage import output_of
from trioline.storage.files import Disk, File
from trioline.storage.frames import Frame, Kind, Region, encode
from trioline.storage.new_file import NewFile
from trioline.storage.output import GrowingFile
from trioline.storage.segment import Segment

MAX_COPIES = 4
"""Of what crashes may have left; together at most 1.3 gibibytes."""
CRASH_BYTES = 2 * SYNC_INTERVAL_BYTES + 3 * MAX_QUEUED_BYTES
"""What a server has not made durable: what the durable point under way is of, what the next one
will be of, and with each of them, and behind them, a commit."""
_READ_BYTES = 1024 * 1024
_COPY = re.compile(r".+\.(?:cut-\d+|damaged)-\d+-[0-9a-f]{8}")


def keep_tail(disk: Disk, file: GrowingFile, folder: Path) -> str | None:
    """Before a file is cut: copy what is behind its length, where that is a line or more.

    Returns:
        What the user should know; None where nothing will be cut.

    Raises:
        DiskFull: There is no room for the copy.
    """
    begin, end = file.length, disk.size(file.path)
    if end <= begin:
        return None
    where = ""
    with disk.open(file.path, os.O_RDONLY) as old:
        count = sum(count_newlines(data) for data in _pieces(old, begin, end))
        if count:
            copy = _copy(disk, old, begin, end, folder / f"{file.path.name}.cut-{begin}-{end}")
            where = f"; a copy of them is in {copy}"
    return (
        f"{file.path} had {end - begin:,} bytes ({count:,} whole lines) behind byte {begin:,} that"
        " neither checkpoint nor journal knows of there, as after a kill in the midst of a write or"
        f" a loss of power, or where one of these is damaged or older: they were cut off{where}."
        " What the journal does not have of these lines is computed again."
    )


def take_out_gaps(disk: Disk, segment: Segment) -> str:
    """Replace a segment by its good frames, whole or not at all.

    Args:
        segment: All of it was read, what is behind its gaps, too.

    Returns:
        What the user should know.

    Raises:
        DiskFull: There is no room for the copy, or for what replaces it.
    """
    path, output, gaps = segment.path, output_of(segment.path.parent), list(segment.gaps)
    name = path.with_name(f"{path.name}.damaged-{gaps[0][0]}")
    with disk.open(path, os.O_RDONLY) as old:
        copy = _copy(disk, old, 0, segment.length, name)
    draft = path.with_name(path.name + ".new")
    with disk.open(output, os.O_RDONLY) as lines, NewFile(disk, draft) as new:
        for frame, offset in segment.all_frames():
            if offset > gaps[0][0] and frame.kind is Kind.WRITTEN:
                frame = _with_lines(frame, lines)
            for data in encode(frame, segment.mark):
                new.append(data)
    disk.rename(draft, path)
    disk.sync_folder(path.parent)
    where = ", ".join(f"{begin:,} to {end:,}" for begin, end in gaps)
    return (
        f"Bytes {where} of {path} are not what was to be written, as after a kill in the midst of a"
        " write, a loss of power, or a fault of the disk. What else is in it was kept; the lines in"
        f" them are computed again. A copy of the whole file is {copy}."
    )


def _with_lines(frame: Frame, output: File) -> Frame:
    """A frame that tells where lines are, with the lines: it may not go on from what is written."""
    region = Region.unpack(frame.payload)
    if region.offset + region.length > output.size():
        return frame
    data = output.read(region.length, region.offset)
    if zlib.crc32(data) != region.crc:
        return frame
    return Frame(Kind.RESULTS, frame.first, frame.count, data)


def _copy(disk: Disk, old: File, begin: int, end: int, name: Path) -> Path:
    crc = 0
    for data in _pieces(old, begin, end):
        crc = zlib.crc32(data, crc)
    to = name.with_name(f"{name.name}-{crc:08x}")
    try:
        with NewFile(disk, to) as new:
            for data in _pieces(old, begin, end):
                new.append(data)
    except DiskFull as full:
        why = f"{full} It is a copy of {end - begin:,} bytes that this start takes away."
        raise DiskFull(why, to) from full
    disk.sync_folder(to.parent)
    _drop_old_copies(disk, to)
    return to


def _drop_old_copies(disk: Disk, newest: Path) -> None:
    copies = []
    for name in disk.names(newest.parent):
        found = disk.stat(newest.with_name(name)) if _COPY.fullmatch(name) else None
        if found is not None and found.size <= CRASH_BYTES and name != newest.name:
            copies.append((found.mtime_ns, name))
    for _, name in sorted(copies, reverse=True)[MAX_COPIES - 1 :]:
        disk.unlink(newest.with_name(name))


def _pieces(file: File, begin: int, end: int) -> Iterator[bytes]:
    while begin < end and (data := file.read(min(_READ_BYTES, end - begin), begin)):
        yield data
        begin += len(data)
