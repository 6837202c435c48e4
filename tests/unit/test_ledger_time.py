"""Leases that run out, are renewed, or lose their holder."""

from __future__ import annotations

import pytest
from ledger_helpers import ANNA, BERT, lines_of, make, take

from trioline.ledger import History, Rejected, Tried
from trioline.ledger.leases import MAX_LOST_RANGES

# --- time -----------------------------------------------------------------------------------------


def test_a_lease_that_runs_out_is_an_attempt() -> None:
    ledger = make()
    lease = take(ledger, ANNA, 2)
    assert ledger.next_due_at() == 10
    assert ledger.expire(9.99) == ()
    assert ledger.leased_count == 2
    (expired,) = ledger.expire(10)
    errors = ("no answer within the lease of 10 seconds",)
    history = History(attempts=1, errors=errors, max_together=1)
    assert (expired.lease, expired.lines) == (lease, (range(2),))
    assert expired.effects == (Tried(range(2), history),)
    assert (ledger.leased_count, ledger.queued_count) == (0, 2)
    again = take(ledger, BERT, now=10)
    assert (again.attempt, again.history) == (2, history)


def test_a_lease_that_ran_out_has_waited_long_enough() -> None:
    ledger = make(retry_delay_seconds=60)
    take(ledger, ANNA)
    ledger.expire(10)
    assert take(ledger, BERT, now=10).lines == range(1)


def test_the_last_attempt_that_runs_out_rejects_a_line_only_where_it_was_alone() -> None:
    ledger = make(max_attempts=1)
    take(ledger, ANNA, 5)
    ledger.settle(0, ANNA, range(2, 3))
    (expired,) = ledger.expire(10)
    assert expired.lines == (range(2), range(3, 5))
    assert [one.lines for one in expired.effects] == [range(2), range(3, 5)]
    assert all(isinstance(one, Tried) for one in expired.effects)
    assert all(one.history.attempts == 0 for one in expired.effects)
    for line in (0, 1, 3, 4):
        now = 10.0 * (line + 1)
        offer = ledger.offer(now, 5, ANNA)
        assert offer is not None
        assert (offer.first, offer.count) == (line, 1)
        ledger.lease(now, ANNA, offer, 1)
        assert ledger.offer(now, 5, ANNA) is None, "nothing beside it"
        (alone,) = ledger.expire(now + 10)
        assert [type(one) for one in alone.effects] == [Rejected]
    assert ledger.base == 5
    assert ledger.expire(100) == ()


def test_extend_renews_one_lease_or_all() -> None:
    ledger = make()
    first, second = take(ledger, ANNA), take(ledger, ANNA)
    assert ledger.extend(4, ANNA, second.number) == []
    assert ledger.next_due_at() == 10
    ledger.expire(10)
    assert ledger.lease_of(0) is None
    assert ledger.lease_of(1) is second
    assert not ledger.is_idle
    assert not first.lines
    take(ledger, ANNA, now=10)
    ledger.extend(12, ANNA)
    assert ledger.next_due_at() == 22


def test_extend_tells_what_is_lost_once() -> None:
    ledger = make()
    take(ledger, ANNA, 3)
    ledger.settle(0, ANNA, range(1, 2))
    ledger.expire(10)
    assert ledger.extend(10, ANNA) == [0, 2]
    assert ledger.extend(10, ANNA) == []


def test_extend_of_one_lease_tells_what_is_lost_too() -> None:
    ledger = make()
    take(ledger, ANNA)
    lease = take(ledger, ANNA, now=5)
    ledger.expire(10)
    assert ledger.extend(10, ANNA, lease.number) == [0]


def test_a_line_that_its_holder_got_again_is_not_lost() -> None:
    ledger = make()
    take(ledger, ANNA, 2)
    ledger.expire(10)
    assert take(ledger, ANNA, now=10).lines == range(1)
    assert ledger.extend(11, ANNA) == [1]


def test_a_line_lost_twice_is_told_once() -> None:
    ledger = make()
    for now in (0, 10):
        take(ledger, ANNA, now=now)
        ledger.expire(now + 10)
    assert ledger.extend(20, ANNA) == [0]


def test_own_results_are_not_losses() -> None:
    ledger = make()
    take(ledger, ANNA, 3)
    ledger.settle(0, ANNA, range(3))
    take(ledger, ANNA)
    ledger.fail(0, ANNA, 3, "no")
    ledger.release(0, ANNA)
    assert ledger.extend(0, ANNA) == []


def test_what_is_lost_is_remembered_within_bounds() -> None:
    ledger = make(max_attempts=1_000)
    take(ledger, ANNA, 4 * MAX_LOST_RANGES)
    for line in range(0, 4 * MAX_LOST_RANGES, 2):
        ledger.settle(0, BERT, range(line, line + 1))
    lost = ledger.extend(0, ANNA)
    assert lost is not None
    assert len(lost) == MAX_LOST_RANGES
    assert lost[-1] == 4 * MAX_LOST_RANGES - 2, "the youngest are kept"


def test_a_forgotten_holder_leaves_nothing() -> None:
    ledger = make()
    take(ledger, ANNA)
    ledger.expire(10)
    ledger.forget(ANNA)
    assert ledger.extend(10, ANNA) == []


def test_the_lease_timeout_may_change() -> None:
    ledger = make()
    old = take(ledger, ANNA)
    ledger.lease_timeout_seconds = 3
    take(ledger, BERT)
    assert ledger.next_due_at() == 3
    ledger.expire(3)
    assert lines_of(ledger, 0, 1) == [ANNA, None], "what was promised is kept"
    ledger.extend(4, ANNA, old.number)
    assert ledger.next_due_at() == 7


def test_a_stopped_process_postpones_everything() -> None:
    ledger = make()
    take(ledger, ANNA)
    take(ledger, BERT, now=5)
    ledger.postpone(1_000)
    assert ledger.expire(1_000) == ()
    assert ledger.leased_count == 2
    assert ledger.next_due_at() == 1_010


def test_what_is_due_next_is_the_earliest_of_all() -> None:
    ledger = make()
    take(ledger, ANNA)
    assert ledger.next_due_at() == 10
    take(ledger, BERT)
    ledger.fail(0, BERT, 1, "no", delay_seconds=4)
    assert ledger.next_due_at() == 4
    ledger.expire(4)
    assert ledger.next_due_at() == 10
    ledger.expire(10)
    assert ledger.next_due_at() is None


# --- connections that drop ------------------------------------------------------------------------


def test_a_dropped_connection_is_a_loss_and_no_attempt() -> None:
    ledger = make()
    take(ledger, ANNA, 2)
    ledger.lose(1, ANNA, 2)
    assert ledger.next_due_at() == 3
    assert lines_of(ledger, 0, 1) == [ANNA, ANNA], "within the grace period they are still hers"
    (expired,) = ledger.expire(3)
    assert expired.effects == (Tried(range(2), History(max_together=1)),)
    assert take(ledger, BERT, now=3).attempt == 1


def test_a_loss_does_not_wait_for_the_retry_delay() -> None:
    ledger = make(retry_delay_seconds=60)
    take(ledger, ANNA)
    ledger.lose(0, ANNA, 0)
    ledger.expire(0)
    assert take(ledger, BERT).lines == range(1)


def test_without_grace_the_lines_are_back_at_once() -> None:
    ledger = make()
    take(ledger, ANNA)
    ledger.lose(4, ANNA, 0)
    assert ledger.next_due_at() == 4
    ledger.expire(4)
    assert take(ledger, BERT, now=4).lines == range(1)


def test_whoever_comes_back_in_time_goes_on() -> None:
    ledger = make()
    lease = take(ledger, ANNA)
    ledger.lose(1, ANNA, 2)
    ledger.reattach(2.9, ANNA)
    assert ledger.next_due_at() == pytest.approx(12.9)
    ledger.expire(3)
    assert ledger.lease_of(0) is lease
    ledger.expire(13)
    assert ledger.history_of(0).attempts == 1, "it answers for it again"


def test_a_lease_does_not_outlive_its_timeout_by_being_lost() -> None:
    ledger = make()
    take(ledger, ANNA)
    ledger.lose(9, ANNA, 5)
    assert ledger.next_due_at() == 10


def test_losing_twice_does_not_prolong_the_grace() -> None:
    ledger = make()
    take(ledger, ANNA)
    ledger.lose(1, ANNA, 2)
    ledger.lose(2, ANNA, 2)
    assert ledger.next_due_at() == 3


def test_only_the_lost_holders_leases_end() -> None:
    ledger = make()
    take(ledger, ANNA)
    take(ledger, BERT)
    ledger.lose(1, ANNA, 0)
    ledger.expire(1)
    assert lines_of(ledger, 0, 1) == [None, BERT]


def test_results_that_were_on_their_way_still_count() -> None:
    ledger = make()
    take(ledger, ANNA, 2)
    ledger.lose(0, ANNA, 0)
    ledger.expire(0)
    assert ledger.settle(0, ANNA, range(1)) == (range(1),)
    assert ledger.queued_count == 1
