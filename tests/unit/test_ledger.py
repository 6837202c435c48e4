"""Each rule of a line's life where all goes well, one by one."""

from __future__ import annotations

import pytest
from ledger_helpers import ANNA, BERT, CARL, lines_of, make, take

from trioline.ledger import FRESH

# --- giving out -----------------------------------------------------------------------------------


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
    ledger.settle(0, ANNA, range(1, 4))
    assert ledger.offer(0, 1) is None, "line 0 holds the window"
    ledger.settle(0, ANNA, range(1))
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
    assert ledger.settle(0, ANNA, range(1, 2)) == (range(1, 2),), "results are still taken"
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
    ledger.settle(0, ANNA, range(1))
    assert ledger.base == 2


def test_an_unreadable_first_line_moves_the_base() -> None:
    ledger = make()
    ledger.end_at(1)
    ledger.reject_unreadable(0, "70 MB long")
    assert (ledger.base, ledger.frontier, ledger.is_settled) == (1, 1, True)


# --- results --------------------------------------------------------------------------------------


def test_a_result_settles_its_line_and_ends_its_lease() -> None:
    ledger = make()
    ledger.end_at(2)
    take(ledger, ANNA, 2)
    assert ledger.settle(0, ANNA, range(2)) == (range(2),)
    assert (ledger.base, ledger.leased_count, ledger.ahead_count) == (2, 0, 0)
    assert ledger.is_settled
    assert ledger.is_idle
    assert ledger.next_due_at() is None


def test_the_second_result_is_a_duplicate() -> None:
    ledger = make()
    take(ledger, ANNA, 3)
    assert ledger.settle(0, ANNA, range(1, 2)) == (range(1, 2),)
    assert ledger.settle(0, BERT, range(1, 2)) == ()
    assert ledger.settle(0, ANNA, range(3)) == (range(1), range(2, 3)), "only the others are new"
    assert ledger.settle(0, ANNA, range(3)) == (), "below base, too"
    assert ledger.base == 3


def test_results_ahead_of_their_turn_wait() -> None:
    ledger = make()
    take(ledger, ANNA, 4)
    ledger.settle(0, ANNA, range(2, 4))
    assert (ledger.base, ledger.ahead_count) == (0, 2)
    ledger.settle(0, ANNA, range(2))
    assert (ledger.base, ledger.ahead_count) == (4, 0)


def test_a_late_result_wins_if_it_is_first() -> None:
    ledger = make()
    take(ledger, ANNA)
    ledger.expire(10)
    again = take(ledger, BERT, now=10)
    assert ledger.settle(0, ANNA, range(1)) == (range(1),)
    assert ledger.lease_of(0) is None
    assert not again.lines
    assert ledger.settle(0, BERT, range(1)) == ()
    assert ledger.extend(11, BERT) == [0], "and the present holder hears of it"


def test_a_late_result_of_a_queued_line_takes_it_from_the_queue() -> None:
    ledger = make()
    take(ledger, ANNA, 3)
    ledger.expire(10)
    ledger.settle(0, ANNA, range(1, 2))
    assert take(ledger, BERT, now=10).lines == range(1)
    assert take(ledger, BERT, now=10).lines == range(2, 3)
    assert take(ledger, BERT, now=10).lines == range(3, 4)


def test_a_late_result_of_a_delayed_line_wins_too() -> None:
    ledger = make(retry_delay_seconds=5)
    take(ledger, ANNA)
    ledger.fail(0, ANNA, 0, "no")
    assert ledger.settle(0, ANNA, range(1)) == (range(1),)
    ledger.expire(5)
    assert take(ledger, BERT, now=6).lines == range(1, 2)


def test_a_lease_splits_when_its_lines_are_settled_one_by_one() -> None:
    ledger = make()
    lease = take(ledger, ANNA, 6)
    kept: list[object] = []
    for line in (0, 5, 2):
        ledger.settle(0, ANNA, range(line, line + 1))
        kept.append(lease.lines if isinstance(lease.lines, range) else list(lease.lines))
    assert kept == [range(1, 6), range(1, 5), [1, 3, 4]], "a range while it can be one"
    assert ledger.holds(ANNA) == ledger.leased_count == 3
    assert lines_of(ledger, 0, 1, 2, 3, 4, 5) == [None, ANNA, None, ANNA, ANNA, None]
    ledger.settle(0, ANNA, range(6))
    assert ledger.is_idle
    assert ledger.base == 6


def test_a_split_lease_comes_back_in_whole_ranges() -> None:
    ledger = make()
    take(ledger, ANNA, 6)
    ledger.settle(0, ANNA, range(2, 3))
    ledger.release(0, ANNA)
    assert take(ledger, BERT, 2).lines == range(2)
    assert take(ledger, BERT, 3).lines == range(3, 6)


def test_one_message_may_settle_lines_of_several_leases() -> None:
    ledger = make()
    take(ledger, ANNA, 2)
    take(ledger, BERT, 2)
    assert ledger.settle(0, ANNA, range(4)) == (range(4),)
    assert ledger.is_idle
    assert ledger.extend(0, BERT) == [2, 3]
    assert ledger.extend(0, ANNA) == []


def test_which_results_can_be_meant() -> None:
    ledger = make()
    take(ledger, ANNA, 2)
    assert ledger.was_given_out(1)
    assert not ledger.was_given_out(2)


# --- stale holders --------------------------------------------------------------------------------


@pytest.mark.parametrize("line", [0, 1, 2, 7])
def test_a_stale_fail_changes_nothing(line: int) -> None:
    ledger = make()
    take(ledger, ANNA)
    ledger.settle(0, ANNA, range(1))  # 0 settled, 1 another's, 2 queued, 7 fresh
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
    ledger.settle(0, ANNA, range(1))
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
