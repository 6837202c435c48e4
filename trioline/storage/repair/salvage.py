"""What is left of a damaged journal: every frame that still proves what it is.

A frame names its lines, and its mark the segment, so that it is good wherever it lies: behind a bad
stretch the next one is found by its mark.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import attrs

from trioline.storage.files import Disk
from trioline.storage.frames import HEADER_BYTES, Kind, Region, encode, mark_of
from trioline.storage.repair.ranges import Ranges
from trioline.storage.segment import Segment, is_segment, number_of


@attrs.frozen(kw_only=True)
class Piece:
    """One good frame, or some of its results."""

    offset: int
    """Of the frame."""
    length: int
    """Of a frame of these lines, in bytes."""
    kind: Kind
    first: int
    end: int
    region: Region | None = None
    """Of a WRITTEN frame."""
    sums: bytes = b""
    """Of an INPUT frame, as it has them."""
    is_part: bool = False
    """Whether the frame has other lines, too."""

    @property
    def lines(self) -> tuple[int, int]:
        """The first one, and the one after the last."""
        return self.first, self.end

    @property
    def is_settling(self) -> bool:
        """Whether it says that its lines are settled."""
        return self.kind not in (Kind.TRIED, Kind.INPUT)

    @property
    def has_results(self) -> bool:
        """Whether the results, or the record, are in it."""
        return self.kind in (Kind.RESULTS, Kind.REJECTED)


@attrs.frozen(kw_only=True)
class Scan:
    """One segment, looked through."""

    number: int
    path: Path
    length: int
    pieces: tuple[Piece, ...]
    has_bad_end: bool = False
    """Whether what is behind its last frame is no zeros, so that it may have been acknowledged."""

    @property
    def good_bytes(self) -> int:
        """How much of it good frames take."""
        return sum(piece.length for piece in self.pieces)

    @property
    def bad_at(self) -> int:
        """The first byte that no good frame has; the length, where there is none."""
        at = 0
        for piece in self.pieces:
            if piece.offset != at:
                break
            at += piece.length
        return at

    @property
    def is_torn_only(self) -> bool:
        """Whether nothing good is behind the first bad byte, as after a crash."""
        return self.good_bytes == self.bad_at

    @property
    def top(self) -> int:
        """The line after the highest one in it."""
        return max((piece.end for piece in self.pieces), default=0)

    @property
    def settled_top(self) -> int:
        """The line after the highest one that it says is settled."""
        return max((piece.end for piece in self.pieces if piece.is_settling), default=0)


def scan_journal(disk: Disk, folder: Path, run_id: bytes) -> list[Scan]:
    """Look through all segments, the oldest first.

    Raises:
        StorageError: A later version of trioline wrote one, or it cannot be read.
    """
    numbers = sorted(number_of(name) for name in disk.names(folder) if is_segment(name))
    return [_scan(disk, folder, number, run_id) for number in numbers]


def _scan(disk: Disk, folder: Path, number: int, run_id: bytes) -> Scan:
    with contextlib.closing(Segment(disk, folder, number, mark_of(run_id, number))) as segment:
        pieces = tuple(_pieces(segment))
    return Scan(
        number=number,
        path=segment.path,
        length=segment.length,
        pieces=pieces,
        has_bad_end=segment.gaps[-1:] != [] and segment.gaps[-1][1] == segment.length,
    )


def _pieces(segment: Segment) -> Iterator[Piece]:
    for frame, offset in segment.all_frames():
        yield Piece(
            offset=offset,
            length=HEADER_BYTES + len(frame.payload),
            kind=frame.kind,
            first=frame.first,
            end=frame.end,
            region=Region.unpack(frame.payload) if frame.kind is Kind.WRITTEN else None,
            sums=frame.payload if frame.kind is Kind.INPUT else b"",
        )


def parts_outside(
    disk: Disk, scan: Scan, run_id: bytes, piece: Piece, lines: Ranges
) -> list[Piece]:
    """What is left of a frame of results without some lines."""
    with contextlib.closing(_segment(disk, scan, run_id)) as segment:
        frame = segment.read(piece.offset)
    assert frame is not None
    parts = [frame.part(first, end) for first, end in lines.gaps(piece.first, piece.end)]
    return [
        attrs.evolve(
            piece,
            first=part.first,
            end=part.end,
            length=HEADER_BYTES + len(part.payload),
            is_part=True,
        )
        for part in parts
    ]


def write_good(disk: Disk, scan: Scan, run_id: bytes) -> None:
    """Replace a segment by its good frames, whole or not at all; by nothing, where it has none.

    The caller syncs the folder.
    """
    if not scan.pieces:
        disk.unlink(scan.path)
        return
    draft = scan.path.with_name(scan.path.name + ".new")
    at = 0
    with (
        contextlib.closing(_segment(disk, scan, run_id)) as old,
        disk.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC) as new,
    ):
        for piece in scan.pieces:
            frame = old.read(piece.offset)
            assert frame is not None
            frame = frame.part(piece.first, piece.end) if piece.is_part else frame
            new.write(b"".join(encode(frame, old.mark)), at)
            at += piece.length
        new.sync()
    disk.rename(draft, scan.path)


def records_in(disk: Disk, scans: Iterable[Scan], run_id: bytes) -> dict[int, bytes]:
    """The records of rejected lines that a journal has, by line."""
    records: dict[int, bytes] = {}
    for scan in scans:
        with contextlib.closing(_segment(disk, scan, run_id)) as segment:
            for piece in scan.pieces:
                frame = segment.read(piece.offset) if piece.kind is Kind.REJECTED else None
                if frame is not None:
                    records.setdefault(frame.first, frame.payload)
    return records


def _segment(disk: Disk, scan: Scan, run_id: bytes) -> Segment:
    return Segment(disk, scan.path.parent, scan.number, mark_of(run_id, scan.number))
