from __future__ import annotations

import random
import time

from trioline.ledger.standings import MAX_KEPT, MIN_LINES, RECENT_LINES, Standings


def fail(standings: Standings, key: str, *others: str, count: int = 1) -> float | None:
    found = None
    for _ in range(count):
        found = standings.failed(key, 0.0, lambda: {key, *others}) or found
    return found


def test_who_fails_like_all_others_is_not_set_aside() -> None:
    standings = Standings()
    for key in ("a", "b", "c"):
        assert fail(standings, key, "a", "b", "c", count=100) is None


def test_only_recent_lines_count_of_everyone() -> None:
    standings = Standings()
    names = [f"w{number}" for number in range(5)]
    rng = random.Random(1)
    for _ in range(2_000):
        standings.succeeded(rng.choice(names), rng.randrange(1, 30))
        fail(standings, rng.choice(names))
    for name in names:
        standings.succeeded(name, 50)
    assert fail(standings, "w0", *names, count=MIN_LINES - 1) is None
    assert fail(standings, "w0", *names, count=40) is not None


def test_failures_that_are_long_past_speak_for_nobody_else() -> None:
    standings = Standings()
    fail(standings, "good", "bad", count=RECENT_LINES)
    standings.succeeded("good", RECENT_LINES)
    assert fail(standings, "bad", "good", count=MIN_LINES) is not None


def test_who_is_forgotten_counts_no_more() -> None:
    standings = Standings()
    for _ in range(MIN_LINES):
        standings.succeeded("gone", 5)
    for number in range(MAX_KEPT):
        fail(standings, f"w{number}")
    standings.succeeded("good", 50)
    assert fail(standings, "bad", "good", count=40) is None, "all but the good one fail"


def test_a_failure_costs_the_same_however_many_there_are() -> None:
    standings = Standings()
    for number in range(5_000):
        fail(standings, f"w{number}", count=MIN_LINES)
    began_at = time.perf_counter()
    fail(standings, "w0", "w1", count=1_000)
    assert time.perf_counter() - began_at < 0.5, "500 us each; a walk would take 4,000"
