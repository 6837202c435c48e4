"""The one writer: whatever is queued becomes one commit, then its replies go out.

It owns the job's files while it runs. What it is handed was settled in the ledger already; it
answers a ``done`` only after the commit that holds its results is as safe as the fsync policy
says. Duplicates pass through it too: their reply must not overtake the first result's commit.

Durable points are made beside the commits, one at a time: to sync a long output takes as long as
the disk takes, and nobody waits for it.

A full disk stops it where it is: it tries again each second, and nothing is answered until there is
room. Any other error of a file ends it, and with it the server.
"""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Callable, Iterator, Sequence

import attrs
import trio

from trioline.config import (
    LAZY_SYNC_INTERVAL_SECONDS,
    MAX_QUEUED_BYTES,
    MAX_QUEUED_RESULTS,
    SYNC_INTERVAL_BYTES,
    SYNC_INTERVAL_SECONDS,
    Fsync,
)
from trioline.errors import DiskFull
from trioline.ledger import Rejected
from trioline.server.full_disk import FullDisk
from trioline.server.outbox import Outbox, Slot
from trioline.server.rejections import rejections
from trioline.server.thread import Thread
from trioline.storage.job import Entry, Job, Point

log = logging.getLogger("trioline.server")

MAX_INLINE_BYTES = 1024 * 1024
"""A commit without sync up to this size is done in place: a thread hop costs more (100 us)."""
MAX_RECORDS_BYTES = 8 * 1024 * 1024
"""Records of rejected lines in one commit, and one line more: they are large as their lines."""
MAX_INLINE_AHEAD = 1_000
"""Lines ahead of their turn that a commit in place may write out: a million take seconds."""


@attrs.define
class Batch:
    """What belongs to one ``done``, or to one other event. Nobody changes it."""

    entries: Sequence[Entry]
    size_bytes: int
    """Of what the entries hold, or more."""
    rejected: Sequence[Rejected] = ()
    """Their records are made when their turn comes, a few at a time: they hold the whole lines."""
    slot: Slot | None = None
    """Where the reply goes after the commit."""
    reply: bytes = b""


@attrs.define(eq=False)
class _UnderWay:
    """A durable point that is being made."""

    point: Point
    made: trio.Event = attrs.Factory(trio.Event)
    is_full: bool = False
    """The disk was: it was not made."""


class Writer:
    """Group commit.

    Args:
        job: The files. Between ``run`` being started and its end only ``run`` changes them.
        on_commit: Called after each commit, and when the disk is found full or has room again.
        is_over: Says whether every line is written.
    """

    def __init__(
        self, job: Job, *, on_commit: Callable[[], None], is_over: Callable[[], bool]
    ) -> None:
        self.job = job
        self.finished = trio.Event()
        """Set when every line is written and the files say so durably."""
        self.ended = trio.Event()
        """Set when ``run`` has done all after ``close``."""
        self._is_over = is_over
        self._on_commit = on_commit
        is_lazy = job.settings.fsync is Fsync.NEVER
        self._interval_seconds = LAZY_SYNC_INTERVAL_SECONDS if is_lazy else SYNC_INTERVAL_SECONDS
        self._queue: list[Batch] = []
        self._queued_bytes = 0
        self._news = trio.lowlevel.ParkingLot()
        self._room = trio.lowlevel.ParkingLot()
        self._is_sync_due = False
        self._under_way: _UnderWay | None = None
        self._closing = trio.Event()
        self._thread = Thread()
        self._point_thread = Thread()
        self._full_disk = FullDisk(self._thread, on_change=on_commit, end=self._closing)

    @property
    def is_disk_full(self) -> bool:
        """Whether nothing is answered, and nothing should be given out."""
        return self._full_disk.is_found

    @property
    def has_room(self) -> bool:
        """Whether another ``done`` may be handed in."""
        return self._queued_bytes < MAX_QUEUED_BYTES and len(self._queue) < MAX_QUEUED_RESULTS

    async def wait_room(self) -> None:
        """Wait until another ``done`` may be handed in.

        Cancellation: nothing has happened.
        """
        while not self.has_room:
            await self._room.park()

    def submit(self, batch: Batch) -> None:
        """Queue a batch for the next commit; never blocks, so that settling and queueing are one.

        Look at ``has_room`` first; what cannot wait for room is no ``done`` and has few bytes.
        """
        self._queued_bytes += batch.size_bytes
        self._queue.append(batch)
        self._news.unpark()

    def close(self) -> None:
        """Say that nothing more will be handed in: ``run`` commits what is queued and ends.

        On a full disk it tries once more, and leaves what it cannot write unanswered.
        """
        self._closing.set()
        self._news.unpark()

    async def run(self) -> None:
        """Commit until closed; ends with a durable checkpoint.

        Raises:
            StorageError: A file failed. Nothing of that commit is answered.

        Cancellation: a commit under way is finished, unless it waits for room, and not answered;
        what is queued behind it is not done.
        """
        with self._thread, self._point_thread:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._remind, name="reminder of durable points")
                while await self._commit_queued():
                    if self._under_way is not None and self._is_to_end(self._under_way):
                        if not await self._end_point():
                            break
                    elif self._is_to_finish():
                        if not await self._sync(self.job.finish):
                            break
                    elif self._is_point_due():
                        await self._begin_point(nursery)
                    elif self._queue:
                        await trio.lowlevel.checkpoint()  # what a commit calls for may come again
                    elif self._closing.is_set():
                        break
                    else:
                        await self._news.park()
                nursery.cancel_scope.cancel()
            if not self.finished.is_set():
                await self._sync(self.job.sync)
        self.ended.set()

    async def _commit_queued(self) -> bool:
        """Commit what is queued, and answer; False where the disk is full and the end has come."""
        batches, self._queue = self._queue, []
        if not batches:
            return True
        if self._room:
            self._room.unpark_all()  # the next may come meanwhile
        for entries, size_bytes in self._pieces(batches):
            if not await self._commit(entries, size_bytes):
                log.warning("What could not be written was not acknowledged: it is done again.")
                return False
        self._answer(batches)
        self._on_commit()
        return True

    def _answer(self, batches: Sequence[Batch]) -> None:
        outboxes: dict[Outbox, None] = {}
        for batch in batches:
            self._queued_bytes -= batch.size_bytes
            if batch.slot is not None:
                batch.slot.put(batch.reply)
                outboxes[batch.slot.outbox] = None
        for outbox in outboxes:  # each sends once, however many of its replies are there
            outbox.flush()
        if self._room:
            self._room.unpark_all()

    def _pieces(self, batches: Sequence[Batch]) -> Iterator[tuple[list[Entry], int]]:
        """Put together what is committed together, with its size: all results, then rejections by
        their size."""
        piece: list[Entry] = []
        rejected: list[Rejected] = []
        size_bytes = 0
        for batch in batches:
            piece += batch.entries
            rejected += batch.rejected
            size_bytes += batch.size_bytes
        for lines in rejected:
            for rejection in rejections(self.job, lines):
                piece.append(rejection)
                size_bytes += len(rejection.record)
                if size_bytes >= MAX_RECORDS_BYTES:
                    yield piece, size_bytes
                    piece, size_bytes = [], 0
        if piece:
            yield piece, size_bytes

    async def _commit(self, entries: list[Entry], size_bytes: int) -> bool:
        """Commit; False where the disk is full and the end has come."""
        if self._is_done_in_place(entries, size_bytes):
            try:
                self.job.commit(entries)
            except DiskFull:
                pass
            else:
                return True
        # Never abandoned: what has begun ends with the disk, so a commit is never halved.
        commit = functools.partial(self.job.commit, entries)
        return await self._full_disk.wait_room_for(commit, self._make_room)

    def _is_done_in_place(self, entries: list[Entry], size_bytes: int) -> bool:
        """Whether a commit is done sooner than a thread can be asked to do it."""
        return not (
            self._full_disk.is_found
            or self.job.is_next_commit_synced
            or size_bytes > MAX_INLINE_BYTES
            or (self.job.ahead_count and self._may_close_gap(entries))
        )

    def _may_close_gap(self, entries: list[Entry]) -> bool:
        """Whether a commit, however small, sets much free that waited for its turn."""
        job = self.job
        if job.ahead_count <= MAX_INLINE_AHEAD and job.journal_bytes <= MAX_INLINE_BYTES:
            return False
        turn = job.written_count
        return any(entry.first == turn for entry in entries)

    # --- durable points --------------------------------------------------------------------------

    async def _remind(self) -> None:
        """Call for durable points, also where nothing more is handed in."""
        while True:
            await trio.sleep(self._interval_seconds)
            if self.job.unsynced_bytes:
                self._is_sync_due = True
                self._news.unpark()

    def _is_to_finish(self) -> bool:
        return self._is_over() and not self.finished.is_set()

    def _is_point_due(self) -> bool:
        return self._is_sync_due or self.job.unsynced_bytes >= SYNC_INTERVAL_BYTES

    async def _begin_point(self, nursery: trio.Nursery) -> None:
        """Begin a durable point; commits go on while the disk takes its time."""
        self._is_sync_due = False
        begin = functools.partial(self.job.begin_point, self._input_offset())
        self._under_way = under_way = _UnderWay(await self._thread.call(begin))
        nursery.start_soon(self._make_point, under_way, name="durable point")

    async def _make_point(self, under_way: _UnderWay) -> None:
        try:
            await self._point_thread.call(functools.partial(self.job.make_point, under_way.point))
        except DiskFull:
            under_way.is_full = True
        under_way.made.set()
        self._news.unpark()

    def _is_to_end(self, under_way: _UnderWay) -> bool:
        """Whether the point under way is made, or commits have to wait for it: what they promise
        for the next one must not pile up behind it."""
        is_awaited = self._is_point_due() or self._is_to_finish() or self._closing.is_set()
        return is_awaited or under_way.made.is_set()

    async def _end_point(self) -> bool:
        """End it; False where the disk is full and the end has come."""
        point = await self._made_point()
        if point is None:
            return await self._sync(self.job.sync)
        return await self._full_disk.wait_room_for(functools.partial(self.job.end_point, point))

    async def _made_point(self) -> Point | None:
        """Wait for the point under way, which is none any more; None where it found no room."""
        under_way = self._under_way
        assert under_way is not None
        await under_way.made.wait()
        self._under_way = None
        if under_way.is_full:
            self.job.give_up_point()
            return None
        return under_way.point

    async def _sync(self, sync: Callable[[int], None]) -> bool:
        """Make a durable point with no commit beside it; False where the disk is full and the end
        has come."""
        is_done = await self._full_disk.wait_room_for(functools.partial(sync, self._input_offset()))
        self._is_sync_due = False
        if is_done and self.job.is_finished:
            self.finished.set()
        return is_done

    def _input_offset(self) -> int:
        source, written_count = self.job.source, self.job.written_count
        offset = source.offset_of(written_count)
        source.forget(written_count)
        return offset

    async def _make_room(self) -> bool:
        """Let go of journal, for a commit: the durable point that does it would come behind that.

        Returns:
            Whether it takes less than before.
        """
        job, journal_bytes = self.job, self.job.journal_bytes
        with contextlib.suppress(DiskFull):
            if self._under_way is not None:
                point = await self._made_point()
                if point is not None:
                    await self._thread.call(functools.partial(job.end_point, point))
            if job.unsynced_bytes:
                await self._thread.call(functools.partial(job.sync, self._input_offset()))
        return job.journal_bytes < journal_bytes
