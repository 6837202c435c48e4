"""The journal's frames: bytes that prove what they are.

A frame is a header of 40 bytes (mark, crc32, kind, payload length, first line, count of lines) and
its payload. The mark says which segment of which run it belongs to: no other frame is valid there,
nor is a block of zeros. It is made from the run id by a hash with a key, and the run id is told to
nobody: so what a worker hands in, whatever its bytes, cannot pass for a frame, and behind a damaged
one the next is where the mark is.
"""

from __future__ import annotations

import enum
import hashlib
import struct
import zlib
from collections.abc import Iterable, Iterator
from operator import attrgetter
from typing import assert_never

import attrs

from trioline.newlines import count_newlines
from trioline.storage.entries import Entry, Rejection, Results, Tried

FRAME_BYTES = 1024 * 1024
"""Neighbouring results share a frame up to here: a frame is read back whole."""

_MARK_BYTES = 8
"""A guess is right with a chance of 2⁻⁶⁴, and no worker is told whether one was."""
_CRC = struct.Struct("<I")
_AFTER_CRC = struct.Struct("<B3xQQQ")
_REGION = struct.Struct("<QQI")
_SUMMED_FROM = _MARK_BYTES + _CRC.size
HEADER_BYTES = _SUMMED_FROM + _AFTER_CRC.size


class Kind(enum.IntEnum):
    """What a frame's payload is."""

    RESULTS = 1
    """``count`` lines for the output, each with its newline."""
    REJECTED = 2
    """The record of one rejected line, with its newline."""
    WRITTEN = 3
    """Where in the output ``count`` lines are: offset, length, crc32."""
    TRIED = 4
    """What was tried with ``count`` lines that were not settled then."""
    INPUT = 5
    """What ``count`` lines of the input were: the crc32 of each block of 64 of them."""


_KINDS = {int(kind): kind for kind in Kind}


@attrs.define(init=False)
class Frame:
    """One decoded frame. Nobody changes one; frozen, it would take four times as long to make."""

    kind: Kind
    first: int
    count: int
    payload: bytes
    end: int
    """The line after the last one."""

    def __init__(self, kind: Kind, first: int, count: int, payload: bytes) -> None:
        self.kind = kind
        self.first = first
        self.count = count
        self.payload = payload
        self.end = first + count

    def lines_from(self, line: int) -> bytes:
        """The payload without the lines before ``line``."""
        if line <= self.first:
            return self.payload
        return self.payload.split(b"\n", line - self.first)[-1]

    def part(self, first: int, end: int) -> Frame:
        """Some of its results, as a frame of their own."""
        lines = self.payload.split(b"\n", end - self.first)[first - self.first : end - self.first]
        return Frame(self.kind, first, end - first, b"\n".join([*lines, b""]))


@attrs.define
class Region:
    """A piece of the output, as a WRITTEN frame holds it. Nobody changes one, see ``Frame``."""

    offset: int
    length: int
    crc: int

    pack = staticmethod(_REGION.pack)
    """Encode offset, length and crc as a WRITTEN frame's payload."""

    @classmethod
    def unpack(cls, payload: bytes) -> Region:
        """Decode a WRITTEN frame's payload, which a crc has vouched for."""
        return cls(*_REGION.unpack(payload))


def mark_of(run_id: bytes, segment: int) -> bytes:
    """What the frames of a segment begin with."""
    number = segment.to_bytes(8, "little")
    return hashlib.blake2b(number, digest_size=_MARK_BYTES, key=run_id).digest()


def encode(frame: Frame, mark: bytes) -> list[bytes]:
    """A frame as bytes, in two pieces."""
    summed = _AFTER_CRC.pack(frame.kind, len(frame.payload), frame.first, frame.count)
    crc = zlib.crc32(frame.payload, zlib.crc32(summed))
    return [mark + _CRC.pack(crc) + summed, frame.payload]


class UnknownKind(Exception):
    """A valid frame of a kind that a later version knows; its argument is the kind."""


@attrs.frozen
class Header:
    """A frame's header, not yet vouched for by its crc."""

    crc: int
    summed: bytes
    """What the crc is of, but for the payload: all that follows."""
    kind: int
    length: int
    first: int
    count: int

    @classmethod
    def unpack(cls, data: bytes, mark: bytes) -> Header | None:
        """Decode a header; None for what can be none of the segment with that mark."""
        if len(data) != HEADER_BYTES or not data.startswith(mark):
            return None
        (crc,) = _CRC.unpack_from(data, _MARK_BYTES)
        summed = data[_SUMMED_FROM:]
        return cls(crc, summed, *_AFTER_CRC.unpack(summed))

    def frame(self, payload: bytes) -> Frame | None:
        """The frame of this header and its payload, if the crc says so.

        Raises:
            UnknownKind: The crc does, but the kind is none of ours.
        """
        if self.crc != zlib.crc32(payload, zlib.crc32(self.summed)):
            return None
        kind = _KINDS.get(self.kind)
        if kind is None:
            raise UnknownKind(self.kind)
        return Frame(kind, self.first, self.count, payload)


def frames_from(entries: Iterable[Entry]) -> list[Frame]:
    """Sort entries by line and let neighbouring results share frames.

    What was tried comes last, in the order given: of a line the last frame counts, and none of a
    line that is settled, so that it may be in the commit as often as it likes.

    Raises:
        ValueError: Data is not ``count`` lines, or a line is settled twice: the caller's mistake,
            and one that would shift every later line of the output.
    """
    frames: list[Frame] = []
    settling: list[Frame] = []
    tried: list[Frame] = []
    for entry in entries:
        frame = _frame(entry)
        if frame.kind is Kind.TRIED:
            tried.append(frame)
        else:
            settling.append(frame)
    if len(settling) == 1:
        return settling + tried
    settling.sort(key=attrgetter("first"))
    end = 0
    for run in _runs(settling):
        frame = _joined(run)
        if frame.first < end:
            raise ValueError(f"line {frame.first} is in one commit twice")
        end = frame.end
        frames.append(frame)
    return frames + tried


def _frame(entry: Entry) -> Frame:
    match entry:
        case Results(first, count, data):
            _check_lines(first, count, data)
            return Frame(Kind.RESULTS, first, count, data)
        case Rejection(line, record):
            _check_lines(line, 1, record)
            return Frame(Kind.REJECTED, line, 1, record)
        case Tried(first, count, history):
            if count < 1:
                raise ValueError(f"what was tried with line {first} names {count} lines")
            return Frame(Kind.TRIED, first, count, history)
        case _:
            assert_never(entry)


def _check_lines(first: int, count: int, data: bytes) -> None:
    if count < 1 or not data.endswith(b"\n") or count_newlines(data) != count:
        raise ValueError(f"the data for line {first} is not {count} whole lines")


def _runs(frames: Iterable[Frame]) -> Iterator[list[Frame]]:
    """Group what may share a frame."""
    run: list[Frame] = []
    size = 0
    for frame in frames:
        if run and not (
            frame.kind is run[-1].kind is Kind.RESULTS
            and frame.first == run[-1].end
            and size + len(frame.payload) <= FRAME_BYTES
        ):
            yield run
            run, size = [], 0
        run.append(frame)
        size += len(frame.payload)
    if run:
        yield run


def _joined(run: list[Frame]) -> Frame:
    if len(run) == 1:
        return run[0]
    payload = b"".join(frame.payload for frame in run)
    return Frame(Kind.RESULTS, run[0].first, run[-1].end - run[0].first, payload)
