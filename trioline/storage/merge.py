"""What becomes of a frame: to the output on its turn, or remembered until then.

A commit and a recovery go through the same steps here, so that a restart can only arrive where the
running server was.
"""

from __future__ import annotations

from trioline.storage.ahead import AheadIndex
from trioline.storage.answers import Answers
from trioline.storage.frames import Frame, Kind
from trioline.storage.journal import Journal, bad_frame


class Merge:
    """Joins journal and output by line number. Holds nothing of its own."""

    def __init__(self, answers: Answers, journal: Journal, ahead: AheadIndex) -> None:
        self._answers = answers
        self._journal = journal
        self._ahead = ahead

    def apply(self, frame: Frame, place: int) -> None:
        """Take a frame that is in the journal at ``place``.

        Its lines that are settled already are skipped: the first result of a line counts. What was
        tried settles none.

        Raises:
            DiskFull: ``Answers.cut_back`` takes back what reached the output.
        """
        written = self._answers.written_count
        if frame.end <= written or frame.kind is Kind.TRIED:
            return
        if frame.kind is Kind.WRITTEN:
            if self._answers.adopt(frame):
                self.drain()
        elif frame.first > written:
            rejected = frame.kind is Kind.REJECTED
            self._ahead.put(frame.first, frame.count, place, rejected=rejected)
        else:
            self._answers.take(frame)
            self.drain()

    def drain(self) -> None:
        """Put the lines whose turn has come from the journal into the output, up to the next gap.

        Raises:
            DiskFull: As in ``apply``.
            StorageError: A frame is not what was written.
        """
        if not self._ahead.count:
            return
        while (place := self._ahead.place(self._answers.written_count)) is not None:
            frame = self._journal.read(place)
            if not frame.first <= self._answers.written_count < frame.end:
                raise bad_frame(*self._journal.locate(place))
            self._answers.take(frame)
