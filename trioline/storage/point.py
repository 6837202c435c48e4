"""One durable point: how far a job is safe from power loss, begun, made and ended.

To make one takes as long as the disk takes, so that commits go on beside it: ``begin`` fixes how
far it reaches, and nothing that is committed later is in it. For recovery it is as if the
checkpoint had been written at that instant: what came behind is in the journal, as ever.
"""

from __future__ import annotations

import attrs

from trioline.storage.answers import Answers
from trioline.storage.checkpoint import Checkpoint, CheckpointFile
from trioline.storage.covering import Checksums
from trioline.storage.frames import Frame
from trioline.storage.journal import Journal
from trioline.storage.segment import Segment
from trioline.storage.state import State


class Point:
    """One durable point; made by ``begin``.

    ``make`` may run beside commits, in a thread of its own; ``begin`` and ``end`` may not. One that
    is not made or not ended costs nothing: the next one reaches as far and further.
    """

    def __init__(
        self,
        state: State,
        last: Checkpoint,
        reached: Checkpoint,
        *,
        ahead_end: int,
        unsynced: Segment | None,
        covered: list[Segment],
    ) -> None:
        self.checkpoint = reached
        """The one that ``make`` has written."""
        self._checkpoints: CheckpointFile = state.checkpoints
        self._answers: Answers = state.answers
        self._journal: Journal = state.journal
        self._checksums: Checksums = state.checksums
        self._last = last
        self._reached = reached
        self._ahead_end = ahead_end
        self._unsynced = unsynced
        self._covered = covered
        self._input: Frame | None = None

    @classmethod
    def begin(
        cls,
        state: State,
        last: Checkpoint,
        input_offset: int,
        *,
        ahead_end: int,
        epoch: int,
        finished: bool = False,
    ) -> Point:
        """Fix how far the next checkpoint reaches: to here.

        Args:
            last: The newest one.
            input_offset: Of the line after the written ones.
            ahead_end: The line after the last one that is ahead: up to there the journal gets what
                the input is.
            finished: The job is over.

        Raises:
            StorageError: A file failed.
        """
        answers, journal = state.answers, state.journal
        answers.end_region()
        tail_bytes, tail_crc = answers.output.tail()
        rejected_tail_bytes, rejected_tail_crc = answers.rejected.tail()
        reached = Checkpoint(
            run_id=last.run_id,
            epoch=epoch,
            sequence=last.sequence + 1,
            line_count=answers.written_count,
            output_bytes=answers.output.length,
            rejected_bytes=answers.rejected.length,
            rejected_count=answers.rejected_count,
            input_offset=input_offset,
            tail_bytes=tail_bytes,
            tail_crc=tail_crc,
            rejected_tail_bytes=rejected_tail_bytes,
            rejected_tail_crc=rejected_tail_crc,
            finished=finished,
        )
        journal.trim()
        journal.sync_names()
        if not finished:
            reached = attrs.evolve(
                reached,
                journal_segment=journal.newest,
                journal_bytes=journal.newest_bytes,
                journal_older_bytes=journal.bytes_beyond(reached.line_count, journal.newest),
            )
        return cls(
            state,
            last,
            reached,
            ahead_end=ahead_end,
            unsynced=journal.unsynced(),
            covered=journal.covered(reached.line_count),
        )

    def make(self) -> None:
        """Sync the files and write the checkpoint; takes as long as the disk takes.

        Raises:
            DiskFull: The last checkpoint still counts; the same call may be repeated.
            StorageError: A file failed, or is not what was written.
        """
        self._answers.sync()
        checkpoint = self._checksums.cover(self._last, self._reached)
        ahead = self._checksums.ahead
        if self._ahead_end or ahead.is_other:
            self._input = ahead.unrecorded(checkpoint, self._ahead_end)
        if self._unsynced is not None:
            self._unsynced.sync_beside()
        self._checkpoints.write(checkpoint)
        if self._covered or checkpoint.finished:
            # In both slots: what only the newest one makes safe to drop could not be had back if
            # that were damaged.
            checkpoint = self._checkpoints.repeat(checkpoint)
        self.checkpoint = checkpoint
        self._answers.settle()

    def end(self) -> None:
        """Let go of what the checkpoint makes superfluous.

        Raises:
            DiskFull: The same call may be repeated.
            StorageError: A file failed.
        """
        covered, self._covered = self._covered, []
        self._journal.drop(covered)  # first: it makes room
        if self.checkpoint.finished:
            self._journal.drop_all()
        elif self._input is not None:
            self._journal.append([self._input])
            self._checksums.ahead.recorded(self._input)
            self._input = None
