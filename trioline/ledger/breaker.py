"""The breaker: when nearly everything fails, it is hardly the lines' fault.

It opens where a share of the last lines failed, or where one error came back for so many lines in a
row, from every worker. Then nothing is given out but one *canary* line each half minute, until a
canary has its result. What a worker calls final (``"retry":false``) is its word on that line alone
and does not count, nor does a line's second failure: lines that cannot be done are no outage.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Iterable

from trioline.config import Halt

CANARY_SECONDS = 30.0
"""Between two canaries: an outage of ten hours costs 1,200 lines one attempt each."""
SAME_ERROR_LINES = 50
"""Lines in a row with the same error that open the breaker, whatever the share."""
_VARYING = re.compile(r"0x[0-9a-fA-F]+|[0-9a-fA-F]{8,}|\d+|(?:/[\w.-]+)+")
_SIGNATURE_CHARS = 200


class Breaker:
    """Whether work may be given out.

    Args:
        limit: When it opens; None: never.
    """

    def __init__(self, limit: Halt | None) -> None:
        self.reason: str | None = None
        """Why it is open; None: it is closed."""
        self._limit = limit
        self._canaries: set[int] = set()
        self._canary_at = 0.0
        self._reset()

    def _reset(self) -> None:
        self._seen = 0
        self._failures: deque[int] = deque()  # each one's place among all seen
        self._signature = ""
        self._same_lines: set[int] = set()
        self._same_workers: set[str] = set()

    def is_canary_due(self, now: float) -> bool:
        """Whether a line may be given out now, while it is open."""
        return now >= self._canary_at

    def gave_canary(self, now: float, line: int) -> None:
        """Note that a line was given out while it is open."""
        self._canaries.add(line)  # each of them counts, however long it takes
        self._canary_at = now + CANARY_SECONDS

    def succeeded(self, runs: Iterable[range], count: int) -> bool:
        """Note ``count`` lines that have their result; True where that closes it."""
        self._seen += count
        if self._same_lines:
            self._same_lines.clear()
            self._same_workers.clear()
        if self.reason is None or not any(line in run for run in runs for line in self._canaries):
            return False
        self.close()
        return True

    def failed(
        self,
        now: float,
        line: int,
        worker: str,
        error: str,
        *,
        attempt: int,
        count_workers: Callable[[], int],
    ) -> bool:
        """Note a failure that does not speak of the line alone; True where that opens it.

        Args:
            now: The instant.
            line: Which line.
            worker: Who had it.
            error: What went wrong.
            attempt: Attempts of this line used up so far.
            count_workers: Says how many workers there are.
        """
        if self._limit is None or self.reason is not None or attempt > 1:
            return False
        if self._is_share_over():
            seen = min(self._seen, self._limit.count)
            self._open(now, f"{len(self._failures)} of the last {seen} lines failed: {error}")
        elif self._is_same_everywhere(line, worker, error, count_workers):
            self._open(now, f"the last {len(self._same_lines)} lines failed alike: {error}")
        return self.reason is not None

    def _is_share_over(self) -> bool:
        assert self._limit is not None
        self._seen += 1
        self._failures.append(self._seen)
        while self._failures[0] <= self._seen - self._limit.count:
            self._failures.popleft()
        return len(self._failures) >= self._limit.share * self._limit.count

    def _is_same_everywhere(
        self, line: int, worker: str, error: str, count_workers: Callable[[], int]
    ) -> bool:
        signature = signature_of(error)
        if signature != self._signature:
            self._signature = signature
            self._same_lines.clear()
            self._same_workers.clear()
        self._same_lines.add(line)
        self._same_workers.add(worker)
        is_long = len(self._same_lines) >= SAME_ERROR_LINES
        return is_long and len(self._same_workers) >= count_workers()

    def _open(self, now: float, reason: str) -> None:
        self.reason, self._canary_at = reason, now + CANARY_SECONDS

    def close(self) -> None:
        """Let work be given out again, and count anew."""
        self.reason = None
        self._canaries.clear()
        self._reset()


def signature_of(error: str) -> str:
    """An error without what varies from line to line: numbers, paths, addresses."""
    return _VARYING.sub("#", error)[:_SIGNATURE_CHARS]
