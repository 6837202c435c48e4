"""How long leases take, and how many lines fit into a time."""

from __future__ import annotations

import pytest
from ledger_helpers import ANNA, BERT, make, take

from trioline.ledger import FRESH, Lease, LeaseId
from trioline.ledger.pace import MIN_LEASES, RECENT_LEASES, Pace


def answer(pace: Pace, first: float, whole: float, count: int = 1) -> None:
    """Note a lease whose first line came after some time, and its last one after ``whole``."""
    lines = range(count)
    lease = Lease(
        number=LeaseId(1),
        holder=ANNA,
        lines=lines,
        count=count,
        history=FRESH,
        granted_at=0,
        timeout_seconds=60,
    )
    for now, part in ((first, lines[:1]), (whole, lines[1:])):
        if part:
            lease.remove(part)
            pace.answered(now, lease, len(part))


def paced(first: float, whole: float, times: int = MIN_LEASES, count: int = 1) -> Pace:
    """Make a pace of leases that all took the same."""
    pace = Pace()
    for _ in range(times):
        answer(pace, first, whole, count)
    return pace


def test_nothing_is_known_of_too_few_leases() -> None:
    pace = paced(1, 1, times=MIN_LEASES - 1)
    assert pace.needed_seconds(1, 0.95) is None
    assert pace.fitting_count(10, 0.95) is None


def test_a_lease_needs_its_lines_one_after_the_other() -> None:
    assert paced(2, 20, count=10).needed_seconds(5, 0.95) == pytest.approx(10)


def test_a_lease_worked_on_side_by_side_needs_at_least_one_lines_time() -> None:
    pace = paced(8, 10, count=100)
    assert pace.needed_seconds(5, 0.95) == pytest.approx(8)
    assert pace.needed_seconds(100, 0.95) == pytest.approx(10)


def test_as_many_lines_fit_as_take_the_time() -> None:
    pace = paced(2, 20, count=10)
    assert [pace.fitting_count(seconds, 0.95) for seconds in (1.9, 2, 7)] == [0, 1, 3]


def test_lines_that_take_no_time_always_fit() -> None:
    assert paced(0, 0).fitting_count(1, 0.95) == 1_000_000_000


def test_the_share_says_how_many_of_them_are_quicker() -> None:
    pace = Pace()
    for seconds in range(1, 101):
        answer(pace, 0, 2 * seconds, count=2)
    assert pace.needed_seconds(1, 0.5) == 50
    assert pace.needed_seconds(1, 0.95) == 95
    assert pace.needed_seconds(1, 1.0) == 100


def test_old_times_are_forgotten() -> None:
    pace = paced(100, 100, times=RECENT_LEASES)
    for _ in range(RECENT_LEASES):
        answer(pace, 1, 1)
    assert pace.needed_seconds(1, 1.0) == 1


def test_the_ledger_notes_when_the_first_and_the_last_line_came() -> None:
    ledger = make()
    for start in range(0, 10 * MIN_LEASES, 10):
        take(ledger, ANNA, 10)
        ledger.settle(2, ANNA, range(start, start + 1))
        ledger.settle(5, ANNA, range(start + 1, start + 10))
    assert ledger.pace.needed_seconds(1, 0.95) == pytest.approx(2)
    assert ledger.pace.needed_seconds(100, 0.95) == pytest.approx(50)


def test_anothers_late_results_say_nothing_about_a_lease() -> None:
    ledger = make()
    for line in range(2 * MIN_LEASES):
        take(ledger, ANNA)
        ledger.settle(2, BERT, range(line, line + 1))
    assert ledger.pace.needed_seconds(1, 0.95) is None
