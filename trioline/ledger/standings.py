"""Who fails far more than the others: a bad node takes line after line and fails each at once.

It is set aside for a time that doubles, then tried with single lines until one succeeds. Nobody is
set aside where no other is left: where all fail, it is the breaker's business. Whether the others
are still there later on is for whoever gives lines out to ask.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection

import attrs

RECENT_LINES = 50
"""Of each one, its last lines count."""
MIN_LINES = 10
"""Before that nothing is held against it."""
MIN_SHARE = 0.5
"""Of its lines that failed."""
FAR_OUT = 4.0
"""... and so many times the share of all others."""
FIRST_ASIDE_SECONDS = 30.0
MAX_ASIDE_SECONDS = 1_800.0
MAX_KEPT = 20_000
"""Whoever came first is forgotten beyond so many: names may be new each time."""


@attrs.define(eq=False)
class _One:
    seen: int = 0
    recent: int = 0  # of these, as far as they count
    failures: deque[int] = attrs.field(factory=deque)  # each one's place among all seen
    until: float = 0.0
    times: int = 0


class Standings:
    """How all of a kind (workers, hosts) do, and who is set aside."""

    def __init__(self) -> None:
        self._all: dict[str, _One] = {}
        self.on_trial: set[str] = set()
        """Who is set aside, or came back from that and gets single lines until one succeeds."""
        # Of all of them, in step with each: a look at every one for each failure is too much.
        self._recent = 0
        self._failed = 0

    def succeeded(self, key: str, count: int) -> None:
        """Note lines that have their result: whoever was set aside has stood its trial."""
        one = self._all.get(key) or self._new(key)
        one.seen += count
        if one.failures or one.recent < RECENT_LINES:
            self._update(one)
        if key in self.on_trial:
            self.on_trial.remove(key)
            one.until, one.times = 0.0, 0
            self._failed -= len(one.failures)
            one.failures.clear()

    def failed(self, key: str, now: float, present: Callable[[], Collection[str]]) -> float | None:
        """Note a failed line.

        Args:
            key: Whose.
            now: The instant.
            present: Says who is there now; asked only where it matters.

        Returns:
            For how many seconds it is set aside now; None: it is not.
        """
        one = self._all.get(key) or self._new(key)
        one.seen += 1
        self._update(one)
        one.failures.append(one.seen)
        self._failed += 1
        if now < one.until or not (key in self.on_trial or self._is_far_out(one)):
            return None
        if not self._has_others(key, now, present()):
            return None
        seconds = min(FIRST_ASIDE_SECONDS * 2.0**one.times, MAX_ASIDE_SECONDS)
        one.until, one.times = now + seconds, one.times + 1
        self.on_trial.add(key)
        return seconds

    def _has_others(self, key: str, now: float, present: Collection[str]) -> bool:
        return any(other != key and not self.aside_seconds(other, now) for other in present)

    def _is_far_out(self, one: _One) -> bool:
        count = len(one.failures)
        if one.recent < MIN_LINES or count < MIN_SHARE * one.recent:
            return False
        seen, failed = self._recent - one.recent, self._failed - count
        # Where nothing is known of the others, nobody stands far out.
        return seen >= MIN_LINES and count * seen >= FAR_OUT * failed * one.recent

    def aside_seconds(self, key: str, now: float) -> float:
        """For how long it is set aside yet; 0: it is not."""
        return max(0.0, self._all[key].until - now) if key in self.on_trial else 0.0

    def _new(self, key: str) -> _One:
        if len(self._all) >= MAX_KEPT:
            first = next(iter(self._all))
            self.on_trial.discard(first)
            gone = self._all.pop(first)
            self._recent -= gone.recent
            self._failed -= len(gone.failures)
        one = self._all[key] = _One()
        return one

    def _update(self, one: _One) -> None:
        """Count its recent lines anew; failures that are no longer recent are dropped."""
        self._recent -= one.recent
        one.recent = min(one.seen, RECENT_LINES)
        self._recent += one.recent
        while one.failures and one.failures[0] <= one.seen - RECENT_LINES:
            one.failures.popleft()
            self._failed -= 1
