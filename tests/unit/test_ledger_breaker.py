"""When so much fails that it is hardly the lines' fault; in virtual time."""

from __future__ import annotations

from trioline.config import Halt
from trioline.ledger.breaker import CANARY_SECONDS, SAME_ERROR_LINES, Breaker, signature_of


def fail(
    breaker: Breaker,
    *lines: int,
    error: str = "no",
    worker: str = "anna",
    attempt: int = 1,
    workers: int = 1,
) -> bool:
    """Fail lines at 100; says whether that opened it."""
    opened = [
        breaker.failed(100, line, worker, error, attempt=attempt, count_workers=lambda: workers)
        for line in lines
    ]
    return any(opened)


def opened() -> Breaker:
    """A breaker that opened at 100."""
    breaker = Breaker(Halt(0.5, 10))
    assert fail(breaker, *range(5))
    return breaker


def is_open(breaker: Breaker) -> bool:
    return breaker.reason is not None


def test_it_opens_at_its_share_of_the_last_lines() -> None:
    breaker = Breaker(Halt(0.5, 10))
    breaker.succeeded([range(1_000)], 1_000)
    assert not fail(breaker, *range(4))
    assert not is_open(breaker)
    assert fail(breaker, 4)
    assert breaker.reason == "5 of the last 10 lines failed: no"


def test_failures_that_are_long_past_do_not_count() -> None:
    breaker = Breaker(Halt(0.5, 10))
    for start in range(0, 1_000, 10):
        assert not fail(breaker, *range(start, start + 4))
        breaker.succeeded([range(10)], 10)


def test_only_a_lines_first_failure_counts() -> None:
    breaker = Breaker(Halt(0.5, 10))
    assert not fail(breaker, *range(1_000), attempt=2)


def test_one_error_from_every_worker_opens_it_whatever_the_share() -> None:
    breaker = Breaker(Halt(1, 1_000_000))
    count = SAME_ERROR_LINES
    for line in range(count):
        assert not fail(breaker, line, error=f"no model at /m/{line}", workers=2)
    assert fail(breaker, count, error="no model at /m/x", worker="bert", workers=2)
    assert breaker.reason == f"the last {count + 1} lines failed alike: no model at /m/x"


def test_a_success_or_another_error_ends_the_row() -> None:
    breaker = Breaker(Halt(1, 1_000_000))
    for start in range(0, 10 * SAME_ERROR_LINES, SAME_ERROR_LINES):
        assert not fail(breaker, *range(start, start + SAME_ERROR_LINES - 1), error="one")
        if start % (2 * SAME_ERROR_LINES):
            breaker.succeeded([range(1)], 1)
        else:
            assert not fail(breaker, start, error="another")


def test_a_canary_goes_each_half_minute() -> None:
    breaker = opened()
    assert not breaker.is_canary_due(100 + CANARY_SECONDS - 0.1)
    assert breaker.is_canary_due(100 + CANARY_SECONDS)
    breaker.gave_canary(100 + CANARY_SECONDS, 50)
    assert not breaker.is_canary_due(100 + CANARY_SECONDS)
    assert breaker.is_canary_due(100 + 2 * CANARY_SECONDS)


def test_any_canary_closes_it_however_long_it_took_and_nothing_else_does() -> None:
    breaker = opened()
    for number in range(1, 5):
        breaker.gave_canary(100 + number * CANARY_SECONDS, 50 + number)
    assert not breaker.succeeded([range(50)], 50)
    assert is_open(breaker)
    assert breaker.succeeded([range(51, 52)], 1)
    assert not is_open(breaker)
    assert not fail(breaker, *range(60, 64)), "it counts anew"


def test_it_never_opens_where_it_shall_not() -> None:
    assert not fail(Breaker(None), *range(10_000))


def test_what_varies_from_line_to_line_is_no_part_of_an_error() -> None:
    texts = ("line 7 at 0x7f00: /a/b.json is bad", "line 81 at 0xbeef: /c is bad")
    assert len(set(map(signature_of, texts))) == 1
