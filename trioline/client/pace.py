"""How many lines to have in hand: about a second of work, never more than can be helped.

Too few, and the worker waits for the network; too many, and others have nothing to do at the
end of the job while this one sits on lines it has not begun.
"""

from __future__ import annotations

HAND_SECONDS = 1.0
"""The work to have in hand beyond what is being worked on: far longer than a round trip and a
commit, far shorter than anyone would wait for at the end of a job."""
MAX_HAND_SECONDS = 10.0
"""Where lines turn out slower than expected, and more than so much work is queued, the rest goes
back: others may have nothing to do."""
STALL_SECONDS = 5.0
"""A line that is at work for so long already counts as that slow, though it has not ended."""
FIRST_STEP = 8
"""What may be prefetched at the first measurement. From then on it doubles at the most, so that
one quick line (an empty one, say) does not bring thousands of slow ones."""
MAX_RENEWAL_SECONDS = 10.0
"""The reply to a renewal is where a worker hears that another one was quicker with a line."""


def renewal_seconds(lease_timeout: float) -> float:
    """How often to extend leases: twice in vain would still be in time."""
    return min(lease_timeout / 3, MAX_RENEWAL_SECONDS)


class Pace:
    """Measures what lines take and says how many to ask for.

    Args:
        concurrency: How many are worked on at a time, at least 1.
        batch: Lines in one lease where the user has fixed it, else None.
        many: Whether the user's function takes ``batch`` lines at a time.
        max_batch: The most the server gives at a time.

    Attributes:
        max_batch: See above.
        low: With no more lines queued than this, asking for more may pay.
        usual_seconds: What a line took lately, of those that have ended; None: none has.
    """

    def __init__(
        self, *, concurrency: int, batch: int | None, many: bool, max_batch: int = 10_000
    ) -> None:
        self.max_batch = max_batch
        self.low = 0
        self._concurrency = concurrency
        self._batch = batch
        self._many = many
        self._adaptive_unit = 1
        self._adaptive_spare = 0
        self._count = 0
        self._seconds = 0.0
        self._item_seconds: float | None = None
        self.usual_seconds: float | None = None

    @property
    def unit(self) -> int:
        """How many lines the user's function is handed at a time."""
        if not self._many:
            return 1
        return self._adaptive_unit if self._batch is None else self._batch

    @property
    def spare(self) -> int:
        """How many lines to have in hand beyond those being worked on."""
        if self._batch is None:
            return self._adaptive_spare
        # With one line at a time whoever asked for that does not want one to lie about.
        return self._batch if self._batch > 1 else 0

    def record(self, count: int, seconds: float) -> None:
        """Take note that ``count`` lines took ``seconds`` in one place of work."""
        self._count += count
        self._seconds += seconds

    def wanted(self, *, idle: int, queued: int, stalled_seconds: float = 0.0) -> int:
        """Say how many lines to ask for now.

        Args:
            idle: Places of work with nothing to do.
            queued: Lines in hand that nobody has begun.
            stalled_seconds: For how long none was begun.

        Returns:
            0 where there are enough: asking again for each line would cost more than it gives.
        """
        self._adapt()
        self.low = self.spare // 2
        if not idle and stalled_seconds >= STALL_SECONDS:
            return 0  # what hangs here may hang for ever: others shall have the lines
        target = idle * self.unit + self.spare
        if target == 0 or queued * 2 > target:
            return 0
        wanted = target - queued if self._batch is None else self._batch
        return max(0, min(wanted, self.max_batch))

    def ahead(self, in_hand: int) -> int:
        """Say how many lines to ask for now, where some are always to be on their way.

        Args:
            in_hand: Lines that nobody has begun, here or on their way.
        """
        self._adapt()
        return min(self.spare, self.max_batch) if in_hand <= self.spare else 0

    def surplus(self, *, queued: int, stalled_seconds: float) -> int:
        """Say how many queued lines to give back.

        Args:
            queued: Lines in hand that nobody has begun.
            stalled_seconds: For how long none was begun.

        Returns:
            0 where the user has fixed how many to lease.
        """
        self._adapt()
        known = self._item_seconds or 0.0
        if stalled_seconds >= STALL_SECONDS and stalled_seconds > known:
            known = stalled_seconds
            self._set_pace(known)
        if self._batch is not None or queued * known / self._concurrency <= MAX_HAND_SECONDS:
            return 0
        return queued - min(queued, int(HAND_SECONDS * self._concurrency / known))

    def _adapt(self) -> None:
        if not self._count:
            return
        recent = self._seconds / self._count
        self._count, self._seconds = 0, 0.0
        self.usual_seconds = recent
        known = self._item_seconds
        self._set_pace(recent if known is None else (known + recent) / 2)

    def _set_pace(self, item_seconds: float) -> None:
        self._item_seconds = item_seconds
        fit = HAND_SECONDS / max(item_seconds, 1e-9)
        self._adaptive_unit = max(1, min(int(fit), 2 * self._adaptive_unit, self.max_batch))
        step = 2 * self._adaptive_spare + max(FIRST_STEP, self._concurrency)
        self._adaptive_spare = min(int(fit * self._concurrency), step, self.max_batch)
