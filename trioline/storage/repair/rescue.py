"""Saves results that hold, but lie behind lines that do not, into the journal.

There they wait for their turn, like results that came early; only the lines before them are open.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path

import attrs

from trioline.config import JobSettings
from trioline.newlines import count_newlines
from trioline.storage.files import Disk
from trioline.storage.frames import Frame, Kind, encode, mark_of
from trioline.storage.new_file import NewFile
from trioline.storage.repair.line_file import LineFile
from trioline.storage.repair.ranges import Ranges
from trioline.storage.repair.records import Finder
from trioline.storage.repair.walk import Run
from trioline.storage.segment import segment_path

_SEGMENT_BYTES = 64 * 1024 * 1024


@attrs.frozen
class Segment:
    """A segment of the repaired journal."""

    number: int
    length: int
    top: int
    """The line after the highest one in it."""


class Rescue:
    """Writes segments, each synced before the next one is begun, as a server does.

    Args:
        number: Of the first segment.
        held: Lines that the journal has already.
    """

    def __init__(
        self, disk: Disk, settings: JobSettings, run_id: bytes, number: int, held: Ranges
    ) -> None:
        self._disk = disk
        self._settings = settings
        self._run_id = run_id
        self._number = number
        self._held = held

    def write(self, runs: Iterable[Run], told: Iterable[Run], finder: Finder) -> list[Segment]:
        """Put the lines of runs into new segments.

        Args:
            told: Lines of which none was rejected: the journal tells so.
            finder: Of the records of rejected ones among the others.
        """
        with self._disk.open(self._settings.output, os.O_RDONLY) as file:
            lines = LineFile(file)
            frames = chain(self._frames(lines, runs, finder), self._frames(lines, told, None))
            return self._write(frames)

    def _write(self, frames: Iterator[Frame]) -> list[Segment]:
        written = []
        frame = next(frames, None)
        while frame is not None:
            path, number, top = self._path(), self._number, 0
            mark = mark_of(self._run_id, number)
            with NewFile(self._disk, path) as file:
                while frame is not None and file.length < _SEGMENT_BYTES:
                    for data in encode(frame, mark):
                        file.append(data)
                    top = max(top, frame.end)
                    frame = next(frames, None)
                written.append(Segment(number, file.length, top))
            self._disk.sync_folder(self._settings.state)
            self._number += 1
        return written

    def _path(self) -> Path:
        return segment_path(self._settings.state, self._number)

    def _frames(
        self, lines: LineFile, runs: Iterable[Run], finder: Finder | None
    ) -> Iterator[Frame]:
        for run in runs:
            first = run.first
            for piece in lines.pieces(run.offset, run.offset + run.length):
                count = count_newlines(piece)
                if not self._held.has_all(first, first + count):
                    yield from self._split(first, count, piece, finder)
                first += count

    def _split(
        self, first: int, count: int, piece: bytes, finder: Finder | None
    ) -> Iterator[Frame]:
        """The frames of some lines: those of rejected ones have their records."""
        placeholder = self._settings.placeholder
        if finder is None or placeholder + b"\n" not in piece:
            yield Frame(Kind.RESULTS, first, count, piece)
            return
        lines = piece.split(b"\n")[:count]
        begin = 0
        for place, line in enumerate(lines):
            record = finder.find(first + place) if line == placeholder else None
            if record is None:
                continue
            if begin < place:
                yield _results(first + begin, lines[begin:place])
            yield Frame(Kind.REJECTED, first + place, 1, record)
            begin = place + 1
        if begin < count:
            yield _results(first + begin, lines[begin:])


def _results(first: int, lines: list[bytes]) -> Frame:
    return Frame(Kind.RESULTS, first, len(lines), b"\n".join([*lines, b""]))
