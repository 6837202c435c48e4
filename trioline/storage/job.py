"""One job on the disk: its input, its output, and what is between them.

**What a return from** ``commit`` **means.** The results survive kill -9; under ``always`` they also
survive power loss. Under ``interval`` and ``never`` they survive it from the next ``sync`` on.

Under ``always`` every entry goes to the journal, and one sync makes the whole commit safe; the
output is written at once and synced later. Otherwise results on their turn go straight to the
output, and the journal only says where they are. ``sync`` makes a durable point: output, rejected
file, journal, then the checkpoint, then segments that nobody needs go. Commits may go on beside it,
see ``point``. See ``recovery`` for the way back.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from types import TracebackType

from trioline import config
from trioline.config import Fsync, JobSettings
from trioline.errors import DiskFull, StorageError
from trioline.storage.claims import claim
from trioline.storage.entries import Entry, Rejection, Results, Tried
from trioline.storage.files import Disk
from trioline.storage.frames import Frame, Kind, frames_from
from trioline.storage.journal import taken_over
from trioline.storage.lock import Lock
from trioline.storage.merge import Merge
from trioline.storage.numbers import Numbers
from trioline.storage.opening import (
    LOCK_NAME,
    check_discard,
    check_paths,
    check_unclaimed,
    create,
    discard,
    fence_journal,
)
from trioline.storage.point import Point
from trioline.storage.recovery import recover
from trioline.storage.retry_files import check_no_swap
from trioline.storage.run import Run, check_match, read_run
from trioline.storage.source import Source
from trioline.storage.state import State
from trioline.storage.system import Files, OsFiles

__all__ = ["Entry", "Job", "Point", "Rejection", "Results", "Tried"]


class Job:
    """An opened job; made by ``Job.open``.

    What changes the files never touches ``source``, so that it may run in another thread, one call
    at a time; only ``make_point`` may run beside others, which are no points. After a
    ``StorageError`` other than ``DiskFull`` the job is at its end: all of them raise it again.

    Closing: the owner calls ``close``.
    """

    def __init__(
        self, settings: JobSettings, run: Run, state: State, lock: Lock, *, is_resumed: bool
    ) -> None:
        self.settings = settings
        self.public_id = run.public_id
        """32 hex digits that are the same as long as the job is."""
        self.is_resumed = is_resumed
        """Whether there was a job before."""
        self.source: Source = state.source
        """The input, from line ``written_count`` on."""
        self.numbers: Numbers | None = None
        """Of the lines on the wire, where they are only some of a file's: set before serving."""
        self.warning = " ".join(filter(None, (lock.warning, state.warning))) or None
        """What the user should know, or None."""
        self._lock = lock
        self._state = state
        self._checkpoints = state.checkpoints
        self._last = state.last
        self._answers = state.answers
        self._journal = state.journal
        self._ahead = state.ahead
        self._tried = state.tried
        self._merge = Merge(state.answers, state.journal, state.ahead)
        self._synced_bytes = self._begun_bytes = self._grown_bytes()
        self._final_errors = _FinalErrors()
        self._publish()

    @classmethod
    def open(
        cls,
        settings: JobSettings,
        files: Files | None = None,
        *,
        segment_bytes: int = config.SEGMENT_BYTES,
    ) -> Job:
        """Lock, then make a job or recover the one that is there.

        Args:
            files: The system calls; None: the real ones.
            segment_bytes: When the journal begins a new segment.

        Raises:
            UsageError: A named file cannot be used as it is. Nothing was touched.
            JobMismatch: The job there has another input or other options. Nothing was touched.
            JobLocked: Another server is at work on it.
            StorageError: A file failed or is damaged.
        """
        disk = Disk(files or OsFiles())
        input_bytes = check_paths(disk, settings)
        given = disk.stat(settings.input)
        check_unclaimed(disk, settings)
        disk.make_folder(settings.state)
        disk.sync_folder(settings.state.parent)
        with contextlib.ExitStack() as opened:
            lock = Lock(disk, settings.state / LOCK_NAME)
            opened.callback(lock.close)
            lock.hold(settings.output, settings.rejected)
            found = read_run(disk, settings.state)
            if found is not None and settings.fresh:
                check_discard(disk, settings, found)
                lock.hold(settings.output, found.rejected_path(settings.output))
                discard(disk, settings, found)
                found = None
            if found is None:
                check_unclaimed(disk, settings)
                run = create(disk, settings, input_bytes, lock)
            else:
                check_match(disk, found, settings, input_bytes, may_begin_anew=True)
                check_no_swap(disk, settings)
                run = found
            # Once more: what is there now may not have been when the lock was taken.
            lock.hold(settings.output, settings.rejected)
            lock.check()
            claim(disk, settings, run)  # two may have been made at once where there are no locks
            if lock.is_stand_in:
                fence_journal(disk, settings.state)
            state = recover(disk, settings, run, segment_bytes, given=given)
            job = cls(settings, run, state, lock, is_resumed=found is not None)
            opened.callback(job.close)
            lock.hold(settings.output, settings.rejected)  # one may have been made anew
            opened.pop_all()
        return job

    # --- what there is ----------------------------------------------------------------------

    @property
    def is_finished(self) -> bool:
        """Whether every line is in the output and the checkpoint says so."""
        return self._last.finished

    @property
    def is_next_commit_synced(self) -> bool:
        """Whether the next ``commit`` waits for the disk: by policy, or for a new segment."""
        return self.settings.fsync is Fsync.ALWAYS or self._journal.is_segment_full

    def number_of(self, line: int) -> int:
        """A line's number on the wire and in records."""
        return line if self.numbers is None else self.numbers[line]

    def ahead(self) -> Iterator[range]:
        """The lines above ``written_count`` that are settled, in order."""
        return self._ahead.ranges()

    def tried(self) -> Iterator[tuple[range, bytes]]:
        """What was tried before the job was opened, of lines that are not settled, in order.

        It is handed over once, before the first commit, and read from the journal on the way: line
        after line of it, never all at once.

        Raises:
            StorageError: The journal is not what was written.
        """
        return self._tried.take(self.written_count, self._ahead)

    # --- what is done -----------------------------------------------------------------------

    def commit(self, entries: Sequence[Entry]) -> None:
        """Make entries safe, as the fsync policy defines it, and put those on their turn out.

        Args:
            entries: In any order; no line among them that is written, ahead, or settled twice. Of
                what was tried with a line the last counts, and nothing once the line is settled.

        Raises:
            DiskFull: Nothing has changed; the same call may be repeated.
            StorageError: The job is at its end. Whether the entries are safe is unknown.
            ValueError: The entries are not as described. Nothing has changed.
        """
        with self._final_errors:
            frames = frames_from(entries)
            self._check_new(frames)
            self._check_lock()
            written, answers = self.written_count, self._answers.mark()
            journal = self._journal.mark()
            try:
                self._place(frames)
            except DiskFull:
                self._answers.cut_back(answers)
                self._journal.cut_back(journal)
                for frame in frames:
                    if frame.kind is not Kind.TRIED:  # may have settled lines among its own
                        self._ahead.remove(frame.first, frame.count)
                raise
            self._ahead.advance(written, self._answers.written_count)
            # Whoever takes the lock from now on finds these entries when it recovers.
            self._lock.check()
        self._publish()

    def sync(self, input_offset: int) -> None:
        """Make a durable point: all that was committed survives power loss.

        Args:
            input_offset: ``source.offset_of(written_count)``, computed by the source's thread.

        Raises:
            DiskFull: The last durable point still holds; the same call may be repeated.
            StorageError: The job is at its end, or somebody else changed the output.
        """
        self._make_whole(input_offset)
        if self.unsynced_bytes:  # what the point recorded of the input: nothing the second time
            self._make_whole(input_offset)

    def finish(self, input_offset: int) -> None:
        """Make the last durable point, when all lines are written, and drop the journal.

        Raises:
            DiskFull: As in ``sync``.
            StorageError: As in ``sync``.
        """
        assert not self._ahead.count
        self._make_whole(input_offset, finished=True)

    def _make_whole(self, input_offset: int, *, finished: bool = False) -> None:
        point = self.begin_point(input_offset, finished=finished)
        try:
            self.make_point(point)
            self.end_point(point)
        except DiskFull:
            self.give_up_point()
            raise

    # What ``sync`` does in one go, in three steps: while ``make_point`` waits for the disk, commits
    # go on.

    def begin_point(self, input_offset: int, *, finished: bool = False) -> Point:
        """Fix how far a durable point reaches: all that was committed until now.

        Args:
            input_offset: As in ``sync``.
            finished: The job is over.

        Raises:
            StorageError: As in ``sync``.
        """
        with self._final_errors:
            self._answers.check()
            point = Point.begin(
                self._state,
                self._last,
                input_offset,
                ahead_end=self._ahead.end,
                epoch=self._last.epoch,
                finished=finished,
            )
            self._begun_bytes = self._grown_bytes()
        self._publish()
        return point

    def make_point(self, point: Point) -> None:
        """Make it; ``commit`` may be called meanwhile, in another thread.

        Raises:
            DiskFull: As in ``sync``.
            StorageError: As in ``sync``.
        """
        with self._final_errors:
            self._check_not_taken_over()
            point.make()
            self._last = point.checkpoint
            self._synced_bytes = self._begun_bytes
            self._lock.check()
            self._lock.renew()

    def end_point(self, point: Point) -> None:
        """Drop what it makes superfluous.

        Raises:
            DiskFull: As in ``sync``.
            StorageError: As in ``sync``.
        """
        with self._final_errors:
            point.end()
        self._publish()

    def give_up_point(self) -> None:
        """Count what a point was begun for, and found no room for, as not synced."""
        self._begun_bytes = self._synced_bytes
        self._publish()

    def close(self) -> None:
        """Close all files and let go of the lock. Syncs nothing; idempotent."""
        with contextlib.ExitStack() as closing:
            for close in (
                self._lock.close,  # called last
                self.source.close,
                self._journal.close,
                self._state.checksums.close,
                self._answers.close,
                self._checkpoints.close,
            ):
                closing.callback(close)

    # --- steps ------------------------------------------------------------------------------

    def _publish(self) -> None:
        """Show how things stand, after a call and never in its midst.

        Another thread may read these while a commit is under way that is then taken back.
        """
        answers, journal, ahead = self._answers, self._journal, self._ahead
        self.written_count = answers.written_count
        """Lines whose results are in the output, in order."""
        self.rejected_count = answers.rejected_count
        """Rejected lines among the written ones."""
        self.ahead_count = ahead.count
        """Lines that are settled before their turn."""
        self.rejected_ahead_count = ahead.rejected_count
        """Rejected lines among those ahead of their turn."""
        self.output_bytes = answers.output.length
        """How long the output is."""
        self.journal_bytes = journal.size_bytes
        """What the journal takes on the disk."""
        self.unsynced_bytes = self._grown_bytes() - self._begun_bytes
        """What was written since the last durable point was begun."""

    def _place(self, frames: list[Frame]) -> None:
        """Put frames into journal and output, in the order that the policy's promise needs."""
        if self.settings.fsync is Fsync.ALWAYS or not self._lock.is_holding:
            places = self._journal.append(frames)
            if self.settings.fsync is Fsync.ALWAYS:
                self._journal.sync()
            self._check_lock()  # a sync may take long
        else:
            # The region before its frame: a frame tells only of what is there.
            frames = self._answers.take_in_turn(frames)
            places = self._journal.append(frames)
            self._merge.drain()
        for frame, place in zip(frames, places, strict=True):
            self._merge.apply(frame, place)
        self._answers.flush()

    def _check_lock(self) -> None:
        """Before the output is written: what is written over another server's lines is not had back
        at once."""
        if not self._lock.is_holding:
            self._lock.check()

    def _check_not_taken_over(self) -> None:
        self._state.standing.check()
        newest = self._checkpoints.read(self._last.run_id)
        if newest.epoch != self._last.epoch:
            raise taken_over(self.settings.state)
        self._lock.check()

    def _check_new(self, frames: list[Frame]) -> None:
        """Catch a ledger that forgot what it settled, at the cost of two look-ups a frame."""
        written, ahead_count, place = self.written_count, self.ahead_count, self._ahead.place
        for frame in frames:
            is_ahead = ahead_count and (
                place(frame.first) is not None or place(frame.end - 1) is not None
            )
            if is_ahead or frame.first < written:
                raise ValueError(f"line {frame.first} or a later one is settled already")

    def _grown_bytes(self) -> int:
        answers = self._answers
        return answers.output.length + answers.rejected.length + self._journal.appended_bytes


class _FinalErrors:
    """Lets no call go on after an error that is final: what it left behind is unknown."""

    def __init__(self) -> None:
        self._error: StorageError | None = None

    def __enter__(self) -> None:
        if self._error is not None:
            raise self._error

    def __exit__(
        self, _: type[BaseException] | None, error: BaseException | None, __: TracebackType | None
    ) -> None:
        if isinstance(error, StorageError) and not isinstance(error, DiskFull):
            self._error = error
        elif self._error is not None:  # beside this call, in another thread
            raise self._error
