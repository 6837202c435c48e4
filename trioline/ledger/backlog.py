"""Lines that came back and wait to be given out again.

Those on probation stand apart: nobody knows which of them was at fault, so they go only to who
holds so few lines that it can be found out, and whoever has some gets no others beside them. Where
all who ask hold too many, one for each such range is made a *volunteer*: it gets nothing more until
it has answered enough of what it has, and then the range; one that does not in its time is let go.
"""

from __future__ import annotations

from trioline.ledger.leases import Leases
from trioline.ledger.pace import Pace
from trioline.ledger.queue import Queue
from trioline.ledger.rows import FRESH, History, HolderId, Offer
from trioline.ledger.table import LineTable

MAX_WAITING_RANGES = 100_000
"""Ranges that wait for another attempt, each with its errors' texts: past it nothing fresh is
given out, so that a job in which everything fails stays within bounds."""
VOLUNTEER_SHARE = 0.95
"""A volunteer has twice the time that this share of recent leases took, for what it holds."""
UNKNOWN_SECONDS = 60.0
"""The same, where nothing is known of that."""


class Backlog:
    """The ranges that came back.

    Args:
        table: Knows which of their lines were settled meanwhile.
        leases: Know what who asks has already.
        pace: How long that may take.
    """

    def __init__(self, table: LineTable, leases: Leases, pace: Pace) -> None:
        self._table = table
        self._leases = leases
        self._pace = pace
        self._plain = Queue()
        self._probation = Queue()
        self._volunteers: dict[HolderId, float] = {}  # until when; once each

    @property
    def count(self) -> int:
        """How many ranges there are."""
        return len(self._plain) + len(self._probation)

    @property
    def is_idle(self) -> bool:
        """Whether there are none, and nobody who waits for some."""
        plain, probation = self._plain, self._probation
        return not (
            plain.ready or plain.delayed or probation.ready or probation.delayed or self._volunteers
        )

    def push(self, lines: range, history: History, ready_at: float | None = None) -> None:
        """Put lines in; they cannot be given out before ``ready_at``, None: at once."""
        queue = self._queue_for(history)
        if ready_at is None:
            queue.push(lines, history)
        else:
            queue.push_delayed(lines, history, ready_at)

    def push_unsettled(self, lines: range, history: History) -> None:
        """Put those of some lines in that have no result."""
        for run in self._table.unsettled_runs(max(lines.start, self._table.base), lines.stop):
            self.push(run, history)

    def wake(self, now: float) -> None:
        """Let those whose time has come be given out."""
        for queue in (self._plain, self._probation):
            if queue.delayed:
                queue.wake(now)

    def next_ready_at(self) -> float | None:
        """When the next delayed one's time comes; None where none is delayed."""
        instants = (self._plain.next_ready_at(), self._probation.next_ready_at())
        return min((instant for instant in instants if instant is not None), default=None)

    def offer(self, now: float, max_count: int, holder: HolderId | None) -> Offer | None:
        """Find the oldest lines for somebody; None: somebody who holds nothing."""
        plain, suspect = self._first(self._plain), self._first(self._probation)
        if suspect is None:
            self._volunteers.clear()
        elif plain is None or suspect.first < plain.first:
            together = suspect.history.max_together
            assert together is not None
            count = min(max_count, suspect.count, together - self._held(holder))
            if count > 0:
                return Offer(suspect.first, count, suspect.history)
            if holder is not None and holder not in self._volunteers:
                active = sum(until > now for until in self._volunteers.values())
                if active < len(self._probation.ready):
                    self._volunteers[holder] = now + self._needed_seconds(holder)
        if plain is None or self.is_volunteer(now, holder):
            return None
        return Offer(plain.first, min(max_count, plain.count), plain.history)

    def _held(self, holder: HolderId | None) -> int:
        return 0 if holder is None else self._leases.lines_held(holder)

    def _needed_seconds(self, holder: HolderId) -> float:
        usual = self._pace.needed_seconds(self._leases.lines_held(holder), VOLUNTEER_SHARE)
        return UNKNOWN_SECONDS if usual is None else 2 * usual + 1

    def is_volunteer(self, now: float, holder: HolderId | None) -> bool:
        """Whether somebody is to get nothing but lines on probation."""
        return holder in self._volunteers and self._volunteers[holder] > now

    def excuse(self, holder: HolderId) -> None:
        """Say that a holder got lines on probation, or will not come for them."""
        self._volunteers.pop(holder, None)

    def _first(self, queue: Queue) -> Offer | None:
        while queue.ready:
            first, stop, history = queue.ready[0]
            run = self._table.first_unsettled_run(first, stop)
            if run:
                return Offer(run.start, len(run), history)
            queue.drop_first()
        return None

    def take(self, offer: Offer, count: int) -> None:
        """Take the first ``count`` lines of an offer just made out."""
        self._queue_for(offer.history).drop_first(before=offer.first + count)

    def history_of(self, line: int) -> History:
        """What was tried with a line that is in here; looks at all of them."""
        history = self._probation.history_of(line)
        return self._plain.history_of(line) if history is FRESH else history

    def _queue_for(self, history: History) -> Queue:
        return self._plain if history.max_together is None else self._probation
