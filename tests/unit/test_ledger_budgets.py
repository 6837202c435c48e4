"""What a failure costs a line, and how long it waits."""

from __future__ import annotations

import itertools

import pytest
from ledger_helpers import ANNA, BERT, make, take

from trioline.config import LeaseSettings
from trioline.ledger import Failure, History, Rejected, Tried
from trioline.ledger.budgets import MAX_DELAY_SECONDS, MIN_DELAY_SECONDS, SPREAD, Budgets
from trioline.ledger.rows import MAX_KEPT_ERRORS


def test_a_failed_line_is_queued_again_and_remembers() -> None:
    ledger = make()
    take(ledger, ANNA, 2)
    failure = ledger.fail(1, ANNA, 0, "OOM")
    assert failure is not None
    history = History(attempts=1, errors=("OOM",))
    assert failure == Failure(1, Tried(range(1), history))
    assert ledger.queued_count == 1
    lease = take(ledger, BERT, now=1)
    assert (lease.lines, lease.attempt, lease.history) == (range(1), 2, history)
    assert ledger.holds(ANNA) == 1, "its neighbour is still leased"


def test_the_last_attempt_rejects() -> None:
    ledger = make(max_attempts=2)
    take(ledger, ANNA)
    ledger.fail(0, ANNA, 0, "first")
    take(ledger, BERT, now=2)
    failure = ledger.fail(2, BERT, 0, "second")
    assert failure is not None
    assert isinstance(failure.effect, Rejected)
    assert failure.effect.lines == range(1)
    assert failure.effect.history.errors == ("first", "second")
    assert ledger.base == 1
    assert ledger.settle(0, ANNA, range(1)) == (), "rejection is final"


def test_no_retry_rejects_at_once() -> None:
    ledger = make()
    take(ledger, ANNA, 2)
    failure = ledger.fail(0, ANNA, 1, "bad prompt", retry=False)
    assert failure is not None
    assert isinstance(failure.effect, Rejected)
    assert (ledger.base, ledger.ahead_count) == (0, 1)


def test_fewer_attempts_count_at_the_next_failure() -> None:
    ledger = make(max_attempts=3)
    take(ledger, ANNA)
    ledger.budgets.max_attempts = 1
    failure = ledger.fail(0, ANNA, 0, "no")
    assert failure is not None
    assert isinstance(failure.effect, Rejected)


def test_only_the_last_errors_are_kept() -> None:
    ledger = make(max_attempts=1_000)
    for attempt in range(MAX_KEPT_ERRORS + 5):
        take(ledger, ANNA)
        ledger.fail(0, ANNA, 0, f"error {attempt}", delay_seconds=0)
    errors = ledger.history_of(0).errors
    assert len(errors) == MAX_KEPT_ERRORS
    assert errors[-1] == f"error {MAX_KEPT_ERRORS + 4}"
    assert ledger.history_of(0).attempts == MAX_KEPT_ERRORS + 5


@pytest.mark.parametrize("waits", [0.0, 7.0, 1_000.0])
def test_a_delay_that_is_asked_for_is_kept_exactly(waits: float) -> None:
    ledger = make(retry_delay_seconds=5, max_attempts=10)
    ledger.end_at(1)
    take(ledger, ANNA, now=100)
    ledger.fail(100, ANNA, 0, "no", delay_seconds=waits)
    assert ledger.queued_count == 1
    if waits:
        assert ledger.next_due_at() == 100 + waits
        assert ledger.offer(100 + waits - 0.01, 1) is None
    assert take(ledger, BERT, now=100 + waits).attempt == 2


def test_younger_lines_go_on_while_an_older_one_is_delayed() -> None:
    ledger = make()
    take(ledger, ANNA)
    ledger.fail(0, ANNA, 0, "no", delay_seconds=5)
    assert take(ledger, ANNA, now=1).lines == range(1, 2)
    assert take(ledger, ANNA, now=5).lines == range(1)


def test_different_histories_never_share_a_lease() -> None:
    ledger = make()
    take(ledger, ANNA, 4)
    ledger.fail(0, ANNA, 1, "no")
    ledger.release(0, ANNA)
    leases = []
    ledger.end_at(4)
    while (offer := ledger.offer(0, 10)) is not None:
        leases.append(ledger.lease(0, BERT, offer, offer.count))
    assert [(lease.lines, lease.attempt) for lease in leases] == [
        (range(1), 1),
        (range(1, 2), 2),
        (range(2, 4), 1),
    ]


def test_fresh_lines_never_share_a_lease_with_what_came_back() -> None:
    ledger = make()
    take(ledger, ANNA, 2)
    ledger.release(0, ANNA)
    offer = ledger.offer(0, 10)
    assert offer is not None
    assert offer.count == 2


def waits_of(line: int, failures: int, seconds: float = 8.0) -> list[float]:
    """Measure how long a line waits after each of its failures."""
    ledger = make(retry_delay_seconds=seconds, max_attempts=1_000, window=line + 1)
    if line:
        take(ledger, BERT, line)
    now, waits = 0.0, []
    for _ in range(failures):
        take(ledger, ANNA, now=now)
        ledger.fail(now, ANNA, line, "no")
        due = ledger._backlog.next_ready_at()
        assert due is not None
        waits.append(due - now)
        now = due
    return waits


def test_no_attempts_are_used_up_in_milliseconds() -> None:
    budgets = Budgets(LeaseSettings(max_attempts=10, retry_delay_seconds=0))
    past, waits = History(), list[float]()
    for _ in range(3):
        verdict = budgets.failed(past, "no", line=7)
        past, waits = verdict.history, [*waits, verdict.delay_seconds]
    assert waits[0] == 0, "what fails once is mostly a moment's bad luck"
    for seconds, usual in zip(waits[1:], (MIN_DELAY_SECONDS, 2 * MIN_DELAY_SECONDS), strict=True):
        assert (1 - SPREAD) * usual <= seconds <= (1 + SPREAD) * usual


def test_the_last_attempt_is_never_at_once() -> None:
    ledger = make(max_attempts=2)
    ledger.end_at(1)
    take(ledger, ANNA)
    ledger.fail(0, ANNA, 0, "no")
    assert ledger.offer(0, 1) is None
    assert ledger.offer((1 + SPREAD) * MIN_DELAY_SECONDS, 1) is not None


def test_each_failure_doubles_the_delay_up_to_a_cap() -> None:
    waits = waits_of(3, 12)
    for count, seconds in enumerate(waits):
        usual = min(8.0 * 2**count, MAX_DELAY_SECONDS)
        assert (1 - SPREAD) * usual <= seconds <= (1 + SPREAD) * usual
    assert waits_of(3, 12) == waits, "the ledger knows no chance"


def test_a_delay_above_the_cap_is_kept_and_not_doubled() -> None:
    assert all(0.75e4 <= seconds <= 1.25e4 for seconds in waits_of(0, 4, seconds=1e4))


def test_lines_that_failed_together_come_back_spread() -> None:
    waits = sorted(waits_of(line, 1)[0] for line in range(100))
    assert waits[0] < 6.1
    assert waits[-1] > 9.9
    gaps = [after - before for before, after in itertools.pairwise(waits)]
    assert min(gaps) > 0, "no two at once"
    assert max(gaps) < 3 * 4 / 100, "evenly"


def test_a_line_has_another_place_in_the_spread_each_time() -> None:
    waits = waits_of(0, 5)
    assert len({seconds / 2**count for count, seconds in enumerate(waits)}) == 5


def test_a_line_lost_alone_goes_on_at_once_and_waits_from_the_second_loss_on() -> None:
    ledger = make(retry_delay_seconds=8, max_losses=4)
    ledger.end_at(1)
    now, waits = 0.0, []
    for _ in range(3):
        take(ledger, ANNA, now=now)
        ledger.lose(now, ANNA, 0)
        (expired,) = ledger.expire(now)
        assert isinstance(expired.effects[0], Tried)
        due = ledger.next_due_at() or now
        waits.append(due - now)
        now = due
    assert waits[0] == 0
    assert 12 <= waits[1] <= 20
    assert 24 <= waits[2] <= 40


def test_the_budgets_are_kept_apart() -> None:
    ledger = make(max_attempts=3, max_losses=3)
    ledger.end_at(1)
    for now in (0.0, 100.0):
        take(ledger, ANNA, now=now)
        ledger.lose(now, ANNA, 0)
        ledger.expire(now)
        take(ledger, ANNA, now=now + 50)
        ledger.fail(now + 50, ANNA, 0, "no", delay_seconds=0)
        take(ledger, ANNA, now=now + 50)
        ledger.release(now + 50, ANNA)
    assert ledger.history_of(0) == History(2, 2, ("no", "no"), max_together=1)
    take(ledger, ANNA, now=200)
    ledger.lose(200, ANNA, 0)
    (expired,) = ledger.expire(200)
    (rejected,) = expired.effects
    assert isinstance(rejected, Rejected)
    assert rejected.history.errors[-1] == "its workers were lost 3 times"


def test_nothing_fresh_is_given_out_while_too_much_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trioline.ledger.MAX_WAITING_RANGES", 2)
    ledger = make()
    for line in range(2):
        take(ledger, ANNA)
        ledger.fail(0, ANNA, line, "no", delay_seconds=5)
    assert ledger.offer(4, 1) is None
    assert ledger.offer(4, 1, fresh_first=True) is None
    assert take(ledger, ANNA, now=5).lines == range(1)
    offer = ledger.offer(5, 1, fresh_first=True)
    assert offer is not None
    assert offer.first == 2


def test_what_waits_and_is_settled_holds_nothing_fresh_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trioline.ledger.MAX_WAITING_RANGES", 2)
    ledger = make()
    take(ledger, ANNA, 2)
    for line in range(2):
        ledger.fail(0, ANNA, line, "no")
    ledger.settle(0, ANNA, range(2))
    offer = ledger.offer(0, 1)
    assert offer is not None
    assert offer.first == 2
