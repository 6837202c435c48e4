"""The write-ahead log: append-only segments of frames beside the output.

A server appends only to segments that it made itself. One commit goes into one segment, so that one
sync makes it safe and one cut takes it back. A segment is synced, with its name, before its
successor comes to be: after a crash only the newest one may have bad frames, which a recovery takes
out before it has a successor. A bad frame in an earlier one is damage, as is a gap in the numbers
behind the durable point. A segment goes when all of it is below the durable line count.

A *place* is a segment's number and a frame's offset in one integer.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path

import attrs

from trioline.errors import StorageError
from trioline.storage.damage import damaged, output_of
from trioline.storage.files import Disk
from trioline.storage.frames import HEADER_BYTES, Frame, encode, mark_of
from trioline.storage.kept import take_out_gaps
from trioline.storage.segment import Segment, is_segment, number_of, segment_path

_OFFSET_BITS = 32
_OFFSET_MASK = (1 << _OFFSET_BITS) - 1
_MAX_OPEN_SEGMENTS = 16
"""Open for reading at a time: a million lines of 1 KB are as many segments."""


@attrs.define
class Mark:
    """How far the journal reached at one instant. Made in each commit, and never changed."""

    segment: int
    length: int
    top: int

    @property
    def place(self) -> int:
        """Where the next frame begins: what was appended later is at it, or behind."""
        return self.segment << _OFFSET_BITS | self.length


class Journal:
    """The segments of one run.

    Closing: its owner calls ``close``; it is idempotent and syncs nothing.

    Args:
        folder: Where the segments are.
        run_id: Of this run; frames of another one are not valid.
        segment_bytes: A segment that has grown to this gets a successor.
        is_synced_often: Its newest segment is kept longer than it is until ``trim``.

    Raises:
        StorageError: A segment cannot be opened or synced.
    """

    def __init__(
        self,
        disk: Disk,
        folder: Path,
        run_id: bytes,
        *,
        segment_bytes: int,
        is_synced_often: bool = False,
    ) -> None:
        self._disk = disk
        self._folder = folder
        self._run_id = run_id
        self._segment_bytes = segment_bytes
        self._is_synced_often = is_synced_often
        self._segments = {
            number: Segment(disk, folder, number, mark_of(run_id, number))
            for number in sorted(number_of(name) for name in disk.names(folder) if is_segment(name))
        }
        self._newest = next(reversed(self._segments.values()), None)
        self._rested_bytes = sum(segment.length for segment in self._segments.values())
        self._rested_bytes -= self.newest_bytes
        self._reading: deque[Segment] = deque()
        self._is_folder_synced = True
        self._is_newest_ours = False
        self.appended_bytes = 0
        """By this process in all."""

    @property
    def size_bytes(self) -> int:
        """What the segments take on the disk."""
        newest = self._newest
        return self._rested_bytes + (0 if newest is None else newest.length)

    @property
    def newest(self) -> int:
        """The newest segment's number; 0: there is none."""
        return 0 if self._newest is None else self._newest.number

    @property
    def newest_bytes(self) -> int:
        """How long the newest segment is."""
        return 0 if self._newest is None else self._newest.length

    @property
    def is_segment_full(self) -> bool:
        """Whether the next frame begins a new segment, for which the newest one is synced.

        Another server's segment is full: were that server alive after all, with its lock lost, what
        it still appends would stand where our frames are.
        """
        newest = self._newest
        return newest is not None and (
            not self._is_newest_ours or newest.length >= self._segment_bytes
        )

    # --- appending --------------------------------------------------------------------------

    def append(self, frames: Sequence[Frame]) -> list[int]:
        """Append frames and return their places. They are safe only after ``sync``.

        Raises:
            DiskFull: Nothing of it is in the journal; the same call may be repeated.
        """
        if not frames:
            return []
        segment = self._segment_with_room()
        pieces: list[bytes] = []
        places: list[int] = []
        at = begin = segment.length
        top = 0
        for frame in frames:
            places.append(segment.number << _OFFSET_BITS | at)
            pieces += encode(frame, segment.mark)
            at += HEADER_BYTES + len(frame.payload)
            if frame.end > top:
                top = frame.end
        segment.append(b"".join(pieces), top=top)
        self.appended_bytes += at - begin
        return places

    def sync(self) -> None:
        """Return when all that was appended is on the disk, names of new segments included."""
        if self._newest is not None:
            self._newest.sync()
        self.sync_names()

    def unsynced(self) -> Segment | None:
        """The one segment that may not be on the disk: all others were synced by their successor.

        It may be synced beside what is appended, see ``Segment.sync_beside``.
        """
        newest = self._newest
        return None if newest is None or newest.is_synced else newest

    def sync_names(self) -> None:
        """Return when the names of new segments are on the disk."""
        if not self._is_folder_synced:
            self._disk.sync_folder(self._folder)
            self._is_folder_synced = True

    def trim(self) -> None:
        """Let the newest segment's file end where the segment does."""
        if self._newest is not None:
            self._newest.trim()

    def mark(self) -> Mark:
        """Remember how far the journal reaches, for ``cut_back``."""
        segment = self._newest
        if segment is None:
            return Mark(0, 0, 0)
        return Mark(segment.number, segment.length, segment.top)

    def cut_back(self, mark: Mark) -> None:
        """Take back what was appended since ``mark``; it was in one commit, so in one segment."""
        segment = self._newest
        if segment is None:
            return
        if segment.number == mark.segment:
            segment.cut(mark.length, top=mark.top)
        else:
            segment.cut(0, top=0)

    def _segment_with_room(self) -> Segment:
        newest = self._newest
        if newest is not None and not self.is_segment_full:
            return newest
        if newest is not None:
            # So that a crash can never leave a bad frame in a segment that has a successor, nor a
            # successor without it.
            newest.trim()
            self.sync()
            newest.close()
        number = self.newest + 1
        try:
            segment = Segment(
                self._disk,
                self._folder,
                number,
                mark_of(self._run_id, number),
                is_new=True,
                is_extended=self._is_synced_often,
            )
        except StorageError as error:
            if isinstance(error.__cause__, FileExistsError):
                raise taken_over(self._folder) from error
            raise
        self._is_newest_ours = True
        self._rested_bytes += self.newest_bytes
        self._segments[number] = self._newest = segment
        self._is_folder_synced = False
        return segment

    # --- reading ----------------------------------------------------------------------------

    def read(self, place: int) -> Frame:
        """Read one frame back.

        Raises:
            StorageError: It is not what was written.
        """
        frame = self._segment(place >> _OFFSET_BITS).read(place & _OFFSET_MASK)
        if frame is None:
            raise bad_frame(*self.locate(place))
        return frame

    def locate(self, place: int) -> tuple[Path, int]:
        """The file and the byte of a place."""
        return self._segments[place >> _OFFSET_BITS].path, place & _OFFSET_MASK

    def _segment(self, number: int) -> Segment:
        """A segment to be read; the one that was opened longest ago is closed for it."""
        segment = self._segments[number]
        if not segment.is_open:
            self._reading.append(segment)
        if len(self._reading) > _MAX_OPEN_SEGMENTS:
            self._reading.popleft().close()
        return segment

    def replay(self, durable: Mark) -> Iterator[tuple[Frame, int]]:
        """All frames with their places, oldest first.

        In the newest segment a bad frame may be of a commit that was never synced. Good ones behind
        it may not be: they count, and ``take_out_gaps`` must come then.

        Args:
            durable: How far the journal was on the disk for certain; its ``top`` does not matter.

        Raises:
            StorageError: A bad frame is in an earlier segment, or below what was on the disk for
                certain; or a segment of that instant or later is missing.
        """
        # What the checkpoint calls the newest stays at least until the next checkpoint, and no
        # later one goes before.
        for number in range(max(durable.segment, 1), max(durable.segment, self.newest) + 1):
            if number not in self._segments:
                path = segment_path(self._folder, number)
                raise damaged(path, "is missing", output_of(self._folder))
        for segment in self._segments.values():
            for frame, offset in segment.frames():
                yield frame, segment.number << _OFFSET_BITS | offset
            certain = durable.length if segment.number == durable.segment else 0
            if segment.number != self.newest:
                certain = max(certain, segment.length)
                segment.close()
            if segment.good_length < certain:
                raise bad_frame(segment.path, segment.good_length)
            if segment.number == self.newest and segment.good_length < segment.length:
                for frame, offset in segment.frames_behind():
                    yield frame, segment.number << _OFFSET_BITS | offset

    @property
    def has_gaps(self) -> bool:
        """After ``replay``: whether the newest segment has a bad frame before a good one."""
        return self._newest is not None and bool(self._newest.gaps)

    def take_out_gaps(self) -> str:
        """Replace the newest segment by its good frames, and keep a copy of it as it was.

        Nobody finds a frame by its old place then: the journal is to be opened anew.

        Returns:
            What the user should know.
        """
        assert self._newest is not None
        return take_out_gaps(self._disk, self._newest)

    def bytes_beyond(self, line: int, segment: int) -> int:
        """Length of the segments before ``segment`` that hold anything from ``line`` on."""
        return sum(
            one.length for one in self._segments.values() if one.number < segment and one.top > line
        )

    def check_complete(self, line: int, segment: int, length: int) -> None:
        """After ``replay``: hold against it what a checkpoint says of ``bytes_beyond``.

        Raises:
            StorageError: A segment is missing, or was cut between two frames.
        """
        found = self.bytes_beyond(line, segment)
        if found != length:
            raise damaged(
                self._folder,
                f"has {found} bytes of journal that count before segment {segment}, where {length}"
                " were safe: a segment was cut, removed or added",
                output_of(self._folder),
            )

    def end_replay(self) -> None:
        """Cut the newest segment after its last good frame, so that what follows never counts.

        Raises:
            StorageError: It has a gap, though it was taken out.
        """
        segment = self._newest
        if segment is not None:
            if segment.gaps:
                raise bad_frame(segment.path, segment.good_length)
            segment.cut(segment.good_length, top=segment.top)

    def sync_all(self) -> None:
        """Return when every segment is on the disk: before any of it is trusted."""
        for segment in self._segments.values():
            segment.sync(force=True)
            segment.close()
        self._disk.sync_folder(self._folder)

    # --- dropping ---------------------------------------------------------------------------

    def drop(self, segments: Sequence[Segment]) -> None:
        """Remove segments that were ``covered``."""
        for segment in segments:
            self._remove(segment)

    def covered(self, line: int) -> list[Segment]:
        """The segments that hold nothing from ``line`` on, the newest excepted."""
        newest = self.newest
        return [
            segment
            for segment in self._segments.values()
            if segment.top <= line and segment.number != newest
        ]

    def drop_all(self) -> None:
        """Remove all segments: the job is over."""
        for segment in list(self._segments.values()):
            self._remove(segment)
        self._disk.sync_folder(self._folder)

    def _remove(self, segment: Segment) -> None:
        segment.close()
        self._disk.unlink(segment.path)
        if segment is self._newest:
            self._newest = None
        else:
            self._rested_bytes -= segment.length
        del self._segments[segment.number]

    def close(self) -> None:
        """Close all segments."""
        for segment in self._segments.values():
            segment.close()


def taken_over(state: Path) -> StorageError:
    """The error for what only another server can have written."""
    return StorageError(
        f"Another server has taken over {state}, so this one ends: its lock was lost.", state
    )


def bad_frame(path: Path, offset: int) -> StorageError:
    """The error for a frame that is not what was written."""
    what = f"is damaged at byte {offset}: what is there is not what was written"
    return damaged(path, what, output_of(path.parent))
