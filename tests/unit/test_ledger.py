"""Each rule of a line's life, one by one."""

from __future__ import annotations

import sys

import pytest

from trioline.config import WINDOW, LeaseSettings
from trioline.ledger import (
    ALONE_AFTER_LOSSES,
    FRESH,
    MAX_LOST_RANGES,
    HolderId,
    Lease,
    Ledger,
)
from trioline.ledger.rows import MAX_KEPT_ERRORS
from trioline.ledger.table import MIN_TRIM

ANNA, BERT, CARL = HolderId(1), HolderId(2), HolderId(3)


def make(base: int = 0, *, is_resumed: bool = False, **changes: float) -> Ledger:
    """Make a ledger with short times: lease timeout 10, grace 2, three attempts."""
    values = {"lease_timeout_seconds": 10, "grace_seconds": 2, "window": 1_000_000} | changes
    return Ledger(LeaseSettings(**values), base=base, is_resumed=is_resumed)  # type: ignore[arg-type]


def take(ledger: Ledger, holder: HolderId, count: int = 1, now: float = 0.0) -> Lease:
    """Lease the next ``count`` lines; there must be so many in one offer."""
    offer = ledger.offer(now, count)
    assert offer is not None
    assert offer.count == count
    return ledger.lease(now, holder, offer, count)


def lines_of(ledger: Ledger, *lines: int) -> list[HolderId | None]:
    """Say who holds each line."""
    leases = [ledger.lease_of(line) for line in lines]
    return [None if lease is None else lease.holder for lease in leases]


# --- giving out ----------------------------------------------------------------------------------


def test_lines_are_given_out_in_order() -> None:
    ledger = make()
    assert take(ledger, ANNA, 3).lines == range(3)
    assert take(ledger, BERT, 2).lines == range(3, 5)
    assert (ledger.base, ledger.frontier, ledger.leased_count) == (0, 5, 5)


def test_an_offer_changes_nothing() -> None:
    ledger = make()
    assert ledger.offer(0, 5) == ledger.offer(0, 5)
    assert (ledger.frontier, ledger.leased_count, ledger.is_idle) == (0, 0, True)
    assert ledger.next_due_at() is None


def test_part_of_an_offer_can_be_leased() -> None:
    ledger = make()
    offer = ledger.offer(0, 10)
    assert offer is not None
    assert ledger.lease(0, ANNA, offer, 4).lines == range(4)
    assert take(ledger, ANNA).lines == range(4, 5)


def test_part_of_what_came_back_can_be_leased() -> None:
    ledger = make()
    take(ledger, ANNA, 5)
    ledger.release(0, ANNA)
    assert take(ledger, BERT, 2).lines == range(2)
    assert take(ledger, BERT, 3).lines == range(2, 5)
    assert ledger.frontier == 5


def test_what_came_back_goes_first_and_the_oldest_of_it_before_all() -> None:
    ledger = make()
    take(ledger, ANNA, 2)
    take(ledger, BERT, 2)
    ledger.release(0, BERT)
    ledger.release(0, ANNA)
    assert [take(ledger, CARL, 2).lines for _ in range(2)] == [range(2), range(2, 4)]


def test_nothing_is_offered_beyond_the_end() -> None:
    ledger = make()
    ledger.end_at(3)
    offer = ledger.offer(0, 10)
    assert offer is not None
    assert offer.count == 3
    take(ledger, ANNA, 3)
    assert ledger.offer(0, 1) is None


def test_nothing_is_offered_beyond_the_window() -> None:
    ledger = make(window=4)
    offer = ledger.offer(0, 10)
    assert offer is not None
    assert offer.count == 4
    take(ledger, ANNA, 4)
    assert ledger.offer(0, 1) is None
    ledger.settle(ANNA, range(1, 4))
    assert ledger.offer(0, 1) is None, "line 0 holds the window"
    ledger.settle(ANNA, range(1))
    assert take(ledger, ANNA, 4).lines == range(4, 8)


def test_a_full_window_still_gives_out_what_came_back() -> None:
    ledger = make(window=4)
    take(ledger, ANNA, 4)
    ledger.release(0, ANNA, [2])
    assert take(ledger, BERT).lines == range(2, 3)


def test_nothing_is_offered_while_paused() -> None:
    ledger = make()
    take(ledger, ANNA, 2)
    ledger.release(0, ANNA, [0])
    ledger.paused = True
    assert ledger.offer(0, 1) is None
    assert ledger.settle(ANNA, range(1, 2)) == (range(1, 2),), "results are still taken"
    ledger.paused = False
    assert take(ledger, BERT).lines == range(1)


def test_an_empty_input_is_settled_at_once() -> None:
    ledger = make()
    was_settled = ledger.is_settled
    ledger.end_at(0)
    assert (was_settled, ledger.is_settled) == (False, True), "once the end was seen"
    assert ledger.offer(0, 1) is None


def test_an_unreadable_line_is_rejected_and_the_next_is_offered() -> None:
    ledger = make()
    take(ledger, ANNA)
    rejected = ledger.reject_unreadable(1, "70 MB long")
    assert rejected.lines == range(1, 2)
    assert rejected.history.errors == ("70 MB long",)
    assert (ledger.frontier, ledger.queued_count) == (2, 0)
    assert take(ledger, ANNA).lines == range(2, 3)
    assert ledger.ahead_count == 1
    ledger.settle(ANNA, range(1))
    assert ledger.base == 2


def test_an_unreadable_first_line_moves_the_base() -> None:
    ledger = make()
    ledger.end_at(1)
    ledger.reject_unreadable(0, "70 MB long")
    assert (ledger.base, ledger.frontier, ledger.is_settled) == (1, 1, True)


# --- results -------------------------------------------------------------------------------------


def test_a_result_settles_its_line_and_ends_its_lease() -> None:
    ledger = make()
    ledger.end_at(2)
    take(ledger, ANNA, 2)
    assert ledger.settle(ANNA, range(2)) == (range(2),)
    assert (ledger.base, ledger.leased_count, ledger.ahead_count) == (2, 0, 0)
    assert ledger.is_settled
    assert ledger.is_idle
    assert ledger.next_due_at() is None


def test_the_second_result_is_a_duplicate() -> None:
    ledger = make()
    take(ledger, ANNA, 3)
    assert ledger.settle(ANNA, range(1, 2)) == (range(1, 2),)
    assert ledger.settle(BERT, range(1, 2)) == ()
    assert ledger.settle(ANNA, range(3)) == (range(1), range(2, 3)), "only the others are new"
    assert ledger.settle(ANNA, range(3)) == (), "below base, too"
    assert ledger.base == 3


def test_results_ahead_of_their_turn_wait() -> None:
    ledger = make()
    take(ledger, ANNA, 4)
    ledger.settle(ANNA, range(2, 4))
    assert (ledger.base, ledger.ahead_count) == (0, 2)
    ledger.settle(ANNA, range(2))
    assert (ledger.base, ledger.ahead_count) == (4, 0)


def test_a_late_result_wins_if_it_is_first() -> None:
    ledger = make()
    take(ledger, ANNA)
    ledger.expire(10)
    again = take(ledger, BERT, now=10)
    assert ledger.settle(ANNA, range(1)) == (range(1),)
    assert ledger.lease_of(0) is None
    assert not again.lines
    assert ledger.settle(BERT, range(1)) == ()
    assert ledger.extend(11, BERT) == [0], "and the present holder hears of it"


def test_a_late_result_of_a_queued_line_takes_it_from_the_queue() -> None:
    ledger = make()
    take(ledger, ANNA, 3)
    ledger.expire(10)
    ledger.settle(ANNA, range(1, 2))
    assert take(ledger, BERT, now=10).lines == range(1)
    assert take(ledger, BERT, now=10).lines == range(2, 3)
    assert take(ledger, BERT, now=10).lines == range(3, 4)


def test_a_late_result_of_a_delayed_line_wins_too() -> None:
    ledger = make(retry_delay_seconds=5)
    take(ledger, ANNA)
    ledger.fail(0, ANNA, 0, "no")
    assert ledger.settle(ANNA, range(1)) == (range(1),)
    ledger.expire(5)
    assert take(ledger, BERT, now=6).lines == range(1, 2)


def test_a_lease_splits_when_its_lines_are_settled_one_by_one() -> None:
    ledger = make()
    lease = take(ledger, ANNA, 6)
    kept: list[object] = []
    for line in (0, 5, 2):
        ledger.settle(ANNA, range(line, line + 1))
        kept.append(lease.lines if isinstance(lease.lines, range) else list(lease.lines))
    assert kept == [range(1, 6), range(1, 5), [1, 3, 4]], "a range while it can be one"
    assert ledger.holds(ANNA) == ledger.leased_count == 3
    assert lines_of(ledger, 0, 1, 2, 3, 4, 5) == [None, ANNA, None, ANNA, ANNA, None]
    ledger.settle(ANNA, range(6))
    assert ledger.is_idle
    assert ledger.base == 6


def test_a_split_lease_comes_back_in_whole_ranges() -> None:
    ledger = make()
    take(ledger, ANNA, 6)
    ledger.settle(ANNA, range(2, 3))
    ledger.release(0, ANNA)
    assert take(ledger, BERT, 2).lines == range(2)
    assert take(ledger, BERT, 3).lines == range(3, 6)


def test_one_message_may_settle_lines_of_several_leases() -> None:
    ledger = make()
    take(ledger, ANNA, 2)
    take(ledger, BERT, 2)
    assert ledger.settle(ANNA, range(4)) == (range(4),)
    assert ledger.is_idle
    assert ledger.extend(0, BERT) == [2, 3]
    assert ledger.extend(0, ANNA) == []


def test_which_results_can_be_meant() -> None:
    ledger = make()
    take(ledger, ANNA, 2)
    assert ledger.was_given_out(1)
    assert not ledger.was_given_out(2)


# --- failures ------------------------------------------------------------------------------------


def test_a_failed_line_is_queued_again_and_remembers() -> None:
    ledger = make()
    take(ledger, ANNA, 2)
    failure = ledger.fail(1, ANNA, 0, "OOM")
    assert failure is not None
    assert (failure.attempt, failure.rejected) == (1, None)
    assert ledger.queued_count == 1
    lease = take(ledger, BERT, now=1)
    assert (lease.lines, lease.attempt, lease.history.errors) == (range(1), 2, ("OOM",))
    assert ledger.holds(ANNA) == 1, "its neighbour is still leased"


def test_the_last_attempt_rejects() -> None:
    ledger = make(max_attempts=2)
    take(ledger, ANNA)
    ledger.fail(0, ANNA, 0, "first")
    take(ledger, BERT)
    failure = ledger.fail(0, BERT, 0, "second")
    assert failure is not None
    assert failure.rejected is not None
    assert failure.rejected.lines == range(1)
    assert failure.rejected.history.errors == ("first", "second")
    assert ledger.base == 1
    assert ledger.settle(ANNA, range(1)) == (), "rejection is final"


def test_no_retry_rejects_at_once() -> None:
    ledger = make()
    take(ledger, ANNA, 2)
    failure = ledger.fail(0, ANNA, 1, "bad prompt", retry=False)
    assert failure is not None
    assert failure.rejected is not None
    assert (ledger.base, ledger.ahead_count) == (0, 1)


def test_fewer_attempts_count_at_the_next_failure() -> None:
    ledger = make(max_attempts=3)
    take(ledger, ANNA)
    ledger.max_attempts = 1
    failure = ledger.fail(0, ANNA, 0, "no")
    assert failure is not None
    assert failure.rejected is not None


def test_only_the_last_errors_are_kept() -> None:
    ledger = make(max_attempts=1_000)
    for attempt in range(MAX_KEPT_ERRORS + 5):
        take(ledger, ANNA)
        ledger.fail(0, ANNA, 0, f"error {attempt}")
    errors = ledger.history_of(0).errors
    assert len(errors) == MAX_KEPT_ERRORS
    assert errors[-1] == f"error {MAX_KEPT_ERRORS + 4}"
    assert ledger.history_of(0).attempts == MAX_KEPT_ERRORS + 5


@pytest.mark.parametrize(("delay", "waits"), [(None, 5.0), (0.0, 0.0), (7.0, 7.0)])
def test_a_delayed_retry_waits_as_long_as_said(delay: float | None, waits: float) -> None:
    ledger = make(retry_delay_seconds=5, max_attempts=10)
    ledger.end_at(1)
    take(ledger, ANNA, now=100)
    ledger.fail(100, ANNA, 0, "no", delay_seconds=delay)
    assert ledger.queued_count == 1
    if waits:
        assert ledger.next_due_at() == 100 + waits
        assert ledger.offer(100 + waits - 0.01, 1) is None
    assert take(ledger, BERT, now=100 + waits).attempt == 2


def test_younger_lines_go_on_while_an_older_one_is_delayed() -> None:
    ledger = make(retry_delay_seconds=5)
    take(ledger, ANNA)
    ledger.fail(0, ANNA, 0, "no")
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


# --- stale holders -------------------------------------------------------------------------------


@pytest.mark.parametrize("line", [0, 1, 2, 7])
def test_a_stale_fail_changes_nothing(line: int) -> None:
    ledger = make()
    take(ledger, ANNA)
    ledger.settle(ANNA, range(1))  # 0 settled, 1 another's, 2 queued, 7 fresh
    take(ledger, BERT)
    take(ledger, CARL)
    ledger.release(0, CARL)
    before = (ledger.base, ledger.leased_count, ledger.queued_count, ledger.history_of(line))
    assert ledger.fail(0, ANNA, line, "no", retry=False) is None
    after = (ledger.base, ledger.leased_count, ledger.queued_count, ledger.history_of(line))
    assert before == after


def test_a_fail_with_an_older_lease_of_the_same_holder_is_stale() -> None:
    ledger = make()
    first = take(ledger, ANNA)
    ledger.release(0, ANNA)
    second = take(ledger, ANNA)
    assert ledger.fail(0, ANNA, 0, "no", lease_number=first.number) is None
    assert ledger.fail(0, ANNA, 0, "no", lease_number=second.number) is not None


def test_a_stale_release_changes_nothing() -> None:
    ledger = make()
    take(ledger, ANNA, 2)
    assert ledger.release(0, BERT, [0, 1, 5]) == 0
    assert ledger.release(0, BERT) == 0
    assert lines_of(ledger, 0, 1) == [ANNA, ANNA]


def test_a_stale_extend_changes_nothing() -> None:
    ledger = make()
    lease = take(ledger, ANNA)
    assert ledger.extend(5, BERT, lease.number) is None
    assert ledger.extend(5, ANNA, lease.number + 1) is None
    assert ledger.next_due_at() == 10
    ledger.settle(ANNA, range(1))
    assert ledger.extend(5, ANNA, lease.number) is None


def test_release_gives_back_some_lines_and_costs_nothing() -> None:
    ledger = make()
    take(ledger, ANNA, 4)
    assert ledger.release(0, ANNA, [1, 1, 3]) == 2
    assert lines_of(ledger, 0, 1, 2, 3) == [ANNA, None, ANNA, None]
    again = take(ledger, BERT)
    assert (again.lines, again.attempt, again.history) == (range(1, 2), 1, FRESH)


def test_release_does_not_wait_for_the_retry_delay() -> None:
    ledger = make(retry_delay_seconds=60)
    take(ledger, ANNA)
    ledger.release(0, ANNA, [0])
    assert take(ledger, BERT).lines == range(1)


# --- time ----------------------------------------------------------------------------------------


def test_a_lease_that_runs_out_is_an_attempt() -> None:
    ledger = make()
    take(ledger, ANNA, 2)
    assert ledger.next_due_at() == 10
    assert ledger.expire(9.99) == ()
    assert ledger.leased_count == 2
    assert ledger.expire(10) == ()
    assert (ledger.leased_count, ledger.queued_count) == (0, 2)
    again = take(ledger, BERT, 2, now=10)
    assert (again.attempt, again.history.losses) == (2, 0)
    assert again.history.errors == ("no answer within the lease of 10 seconds",)


def test_a_lease_that_runs_out_waits_for_the_retry_delay() -> None:
    ledger = make(retry_delay_seconds=5)
    ledger.end_at(1)
    take(ledger, ANNA)
    ledger.expire(10)
    assert ledger.offer(14, 1) is None
    assert take(ledger, BERT, now=15).lines == range(1)


def test_the_last_lease_that_runs_out_rejects_all_its_lines() -> None:
    ledger = make(max_attempts=1)
    take(ledger, ANNA, 5)
    ledger.settle(ANNA, range(2, 3))
    rejected = ledger.expire(10)
    assert [one.lines for one in rejected] == [range(2), range(3, 5)]
    assert all(one.history.attempts == 1 for one in rejected)
    assert ledger.base == 5
    assert ledger.expire(10) == ()


def test_extend_renews_one_lease_or_all() -> None:
    ledger = make()
    first, second = take(ledger, ANNA), take(ledger, ANNA)
    assert ledger.extend(4, ANNA, second.number) == []
    assert ledger.next_due_at() == 10
    ledger.expire(10)
    assert ledger.lease_of(0) is None
    assert ledger.lease_of(1) is second
    assert not ledger.is_idle
    assert first.lines == range(1)
    take(ledger, ANNA, now=10)
    ledger.extend(12, ANNA)
    assert ledger.next_due_at() == 22


def test_extend_tells_what_is_lost_once() -> None:
    ledger = make()
    take(ledger, ANNA, 3)
    ledger.settle(ANNA, range(1, 2))
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
    ledger.settle(ANNA, range(3))
    take(ledger, ANNA)
    ledger.fail(0, ANNA, 3, "no")
    ledger.release(0, ANNA)
    assert ledger.extend(0, ANNA) == []


def test_what_is_lost_is_remembered_within_bounds() -> None:
    ledger = make(max_attempts=1_000)
    take(ledger, ANNA, 4 * MAX_LOST_RANGES)
    for line in range(0, 4 * MAX_LOST_RANGES, 2):
        ledger.settle(BERT, range(line, line + 1))
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


# --- connections that drop -----------------------------------------------------------------------


def test_a_dropped_connection_is_a_loss_and_no_attempt() -> None:
    ledger = make()
    take(ledger, ANNA, 2)
    ledger.lose(1, ANNA, 2)
    assert ledger.next_due_at() == 3
    assert lines_of(ledger, 0, 1) == [ANNA, ANNA], "within the grace period they are still hers"
    assert ledger.expire(3) == ()
    again = take(ledger, BERT, 2, now=3)
    assert (again.attempt, again.history.losses, again.history.errors) == (1, 1, ())


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
    assert ledger.settle(ANNA, range(1)) == (range(1),)
    assert ledger.queued_count == 1


def drop(ledger: Ledger, count: int) -> None:
    """Lease ``count`` lines and lose the connection."""
    take(ledger, ANNA, count)
    ledger.lose(0, ANNA, 0)
    ledger.expire(0)


def test_a_line_lost_twice_is_leased_alone() -> None:
    ledger = make()
    for _ in range(ALONE_AFTER_LOSSES):
        drop(ledger, 3)
    assert [take(ledger, ANNA).lines for _ in range(3)] == [range(at, at + 1) for at in range(3)]
    assert take(ledger, ANNA, 5).lines == range(3, 8), "the others are not"


def test_a_single_line_cannot_be_leased_with_its_neighbours_by_asking_for_more() -> None:
    ledger = make()
    for _ in range(ALONE_AFTER_LOSSES):
        drop(ledger, 3)
    offer = ledger.offer(0, 100)
    assert offer is not None
    assert offer.count == 1


def test_the_line_that_kills_its_workers_is_given_up() -> None:
    ledger = make(max_losses=4)
    for _ in range(2):
        drop(ledger, 2)
    drop(ledger, 1)
    take(ledger, ANNA)
    ledger.lose(0, ANNA, 0)
    (rejected,) = ledger.expire(0)
    assert rejected.lines == range(1)
    assert rejected.history.losses == 4
    assert rejected.history.errors == ("its workers were lost 4 times",)
    assert ledger.base == 1
    assert ledger.history_of(1).losses == 2, "its neighbour is innocent"


def test_lines_lost_together_are_never_given_up_together() -> None:
    ledger = make(max_losses=1)
    drop(ledger, 3)
    assert (ledger.base, ledger.queued_count) == (0, 3)


def test_the_many_losses_of_a_busy_line_are_no_attempts() -> None:
    ledger = make(max_losses=10, max_attempts=1)
    for _ in range(9):
        drop(ledger, 1)
    assert take(ledger, ANNA).attempt == 1


# --- restart -------------------------------------------------------------------------------------


def test_a_restart_goes_on_where_the_output_ends() -> None:
    ledger = make(base=5, is_resumed=True)
    ledger.restore([range(6, 8), range(9, 10)])
    assert (ledger.base, ledger.frontier, ledger.ahead_count) == (5, 5, 3)
    assert [take(ledger, ANNA).lines.start for _ in range(3)] == [5, 8, 10]  # type: ignore[union-attr]
    assert ledger.settle(ANNA, range(5, 6)) == (range(5, 6),)
    assert ledger.base == 8


def test_a_restart_accepts_results_of_lines_a_former_ledger_gave_out() -> None:
    ledger = make(base=5, is_resumed=True, window=10)
    assert ledger.was_given_out(5 + WINDOW - 1), "the former one's window may have been larger"
    assert not ledger.was_given_out(5 + WINDOW)
    larger = make(base=5, is_resumed=True, window=WINDOW + 10)
    assert larger.was_given_out(5 + WINDOW + 9)
    assert not larger.was_given_out(5 + WINDOW + 10)
    assert ledger.settle(ANNA, range(7, 9)) == (range(7, 9),)
    assert ledger.settle(ANNA, range(7, 8)) == ()
    offer = ledger.offer(0, 10)
    assert offer is not None
    assert (offer.first, offer.count) == (5, 2), "what is settled is not given out again"
    assert not make(base=5).was_given_out(5), "a job begun anew gave nothing out before"


def test_results_of_a_former_ledger_may_move_the_base_past_the_frontier() -> None:
    ledger = make(base=5, is_resumed=True)
    ledger.settle(ANNA, range(5, 9))
    assert (ledger.base, ledger.frontier, ledger.queued_count) == (9, 9, 0)
    assert take(ledger, ANNA).lines == range(9, 10)


def test_what_was_settled_from_the_base_on_counts_at_once() -> None:
    ledger = make(base=5, is_resumed=True)
    ledger.restore([range(5, 8)])
    assert (ledger.base, ledger.ahead_count) == (8, 0)


# --- memory --------------------------------------------------------------------------------------


def table_bytes(ledger: Ledger) -> int:
    """Measure what is kept for each line."""
    return sys.getsizeof(ledger._table._settled) + sys.getsizeof(ledger._table._owner)


def test_a_lease_of_ten_thousand_lines_is_one_small_object() -> None:
    ledger = make()
    small, large = take(ledger, ANNA), take(ledger, ANNA, 10_000)
    sizes = [sys.getsizeof(lease) + sys.getsizeof(lease.lines) for lease in (small, large)]
    assert sizes[0] == sizes[1] < 250
    assert ledger.lease_count(ANNA) == 2


def test_a_large_lease_that_comes_back_is_one_entry() -> None:
    ledger = make()
    take(ledger, ANNA, 10_000)
    ledger.expire(10)
    assert len(ledger._queue) == 1
    assert take(ledger, BERT, 10_000, now=10).lines == range(10_000)


@pytest.mark.slow
def test_a_million_lines_ahead_cost_nine_bytes_each() -> None:
    ledger = make(window=2_000_000)
    for _ in range(101):
        take(ledger, ANNA, 10_000)
    for first in range(1, 1_000_001, 10_000):
        ledger.settle(ANNA, range(first, first + 10_000))
    assert ledger.ahead_count == 1_000_000
    assert table_bytes(ledger) < 10.5 * 1_000_000, "nine, and what growing tables keep in reserve"


def test_leases_are_found_after_the_owner_table_moved() -> None:
    ledger = make()
    leases = [take(ledger, ANNA, 10_000) for _ in range(MIN_TRIM // 10_000 + 4)]
    for lease in leases[:-2]:
        ledger.settle(ANNA, range(lease.lines[0], lease.lines[0] + 10_000))  # type: ignore[index]
    assert ledger.base > MIN_TRIM
    edges = [(line, leases[at]) for at in (-2, -1) for line in leases[at].lines]
    assert len(edges) == 20_000
    for line, lease in edges[::9_999]:
        assert ledger.lease_of(line) is lease
    assert table_bytes(ledger) < 20 * 20_000, "and what is behind the base is given back"


def test_memory_follows_the_window_and_not_the_input() -> None:
    ledger = make()
    for _ in range(4 * MIN_TRIM // 1_000):
        ledger.settle(ANNA, take(ledger, ANNA, 1_000).lines)  # type: ignore[arg-type]
    assert ledger.base > 3 * MIN_TRIM
    assert table_bytes(ledger) < 2 * 9 * MIN_TRIM
    lease = take(ledger, ANNA, 10)
    assert ledger.lease_of(ledger.base + 9) is lease, "the owner table moved with the base"
