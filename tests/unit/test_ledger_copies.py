"""Second copies of late leases: who gets one and when, and what becomes of both."""

from __future__ import annotations

import pytest
from ledger_helpers import ANNA, BERT, CARL, lines_of, make, take

from trioline.ledger import Expired, Failure, HolderId, Lease, Ledger, Offer, Rejected, Tried
from trioline.ledger.pace import MIN_LEASES

DORA = HolderId(4)
LATE = 6.0
"""Twice what the leases before took."""


def paced(seconds: float = 3.0, leases: int = MIN_LEASES, **changes: float) -> Ledger:
    """Make a ledger that has seen some leases of one line, each of which took ``seconds``."""
    ledger = make(0, is_resumed=False, **({"hedge": 2.0, "lease_timeout_seconds": 100.0} | changes))
    for line in range(leases):
        take(ledger, DORA, now=-seconds)
        ledger.settle(0, DORA, range(line, line + 1))
    ledger.end_at(leases)
    return ledger


def late(count: int, **changes: float) -> tuple[Ledger, Lease]:
    """Make a ledger in which ANNA holds the last lines since 0."""
    ledger = paced(3.0 / count, MIN_LEASES, **changes)
    ledger.end_at(MIN_LEASES + count)
    return ledger, take(ledger, ANNA, count)


def copy(ledger: Ledger, holder: HolderId, count: int = 1, now: float = LATE) -> Lease:
    """Lease a copy of the next ``count`` late lines; there must be so many in one offer."""
    offer = ledger.offer_copy(now, holder, count)
    assert offer is not None
    assert offer.count == count
    return ledger.lease(now, holder, offer, count)


def state(ledger: Ledger) -> tuple[int, int, int]:
    """Count the lines leased, those of them with a copy, and those that wait."""
    return ledger.leased_count, ledger.hedged_count, ledger.queued_count


# --- who gets one, and when ----------------------------------------------------------------------


def test_a_late_lease_is_offered_to_another_as_well() -> None:
    ledger, lease = late(2)
    offer = ledger.offer_copy(LATE, BERT, 10)
    assert offer == Offer(10, 2, lease.history, lease)
    assert state(ledger) == (2, 0, 0), "an offer changes nothing"
    second = ledger.lease(LATE, BERT, offer, 2)
    assert (second.lines, second.attempt, second.original) == (range(10, 12), 1, lease)
    assert lines_of(ledger, 10, 11) == [ANNA, ANNA]
    assert state(ledger) == (2, 2, 0), "no line counts twice"
    assert (ledger.holds(ANNA), ledger.holds(BERT), ledger.lease_count(BERT)) == (2, 2, 1)


def test_it_is_late_at_twice_the_usual_time() -> None:
    ledger, _ = late(1)
    assert ledger.offer_copy(LATE - 0.01, BERT, 1) is None
    assert ledger.offer_copy(LATE, BERT, 1) is not None


def test_no_lease_is_late_within_a_second() -> None:
    ledger = paced(0.001)
    ledger.end_at(MIN_LEASES + 1)
    take(ledger, ANNA)
    assert ledger.offer_copy(0.99, BERT, 1) is None
    assert ledger.offer_copy(1.0, BERT, 1) is not None


def test_the_lines_of_a_lost_worker_have_no_copy_but_go_back_soon() -> None:
    ledger, _ = late(1)
    ledger.lose(LATE, ANNA, grace_seconds=10)
    assert ledger.offer_copy(LATE, BERT, 1) is None, "it may kill BERT as well, in no time"
    ledger.reattach(LATE + 1, ANNA)
    assert ledger.offer_copy(LATE + 1, BERT, 1) is not None


def test_a_line_that_kills_its_workers_is_given_up_though_others_have_nothing_to_do() -> None:
    ledger = paced(1.0, max_losses=3)
    ledger.end_at(MIN_LEASES + 1)
    killed, now = 0, 0.0
    while not ledger.is_settled and killed < 100:
        ledger.expire(now)
        holder = HolderId(100 + killed)
        offer = ledger.offer(now, 1) or ledger.offer_copy(now, holder, 1)
        if offer is not None:
            ledger.lease(now, holder, offer, 1)
            ledger.lose(now, holder, grace_seconds=10)
            killed += 1
        now += 1.0
    assert killed == 3


def test_nothing_is_late_where_nothing_is_usual() -> None:
    ledger = paced(leases=MIN_LEASES - 1)
    ledger.end_at(MIN_LEASES)
    take(ledger, ANNA)
    assert ledger.offer_copy(90, BERT, 1) is None


def test_nobody_gets_a_copy_of_its_own_lease() -> None:
    ledger, _ = late(1)
    assert ledger.offer_copy(LATE, ANNA, 1) is None


def test_a_line_has_one_copy_at_the_most() -> None:
    ledger, _ = late(3)
    assert copy(ledger, BERT, 2).lines == range(10, 12)
    assert copy(ledger, CARL, 1).lines == range(12, 13)
    assert ledger.offer_copy(LATE, CARL, 3) is None
    assert state(ledger) == (3, 3, 0)


def test_what_is_settled_is_not_copied() -> None:
    ledger, _ = late(5)
    ledger.settle(1, ANNA, range(12, 13))
    copy(ledger, BERT, 1)
    assert copy(ledger, CARL, 1).lines == range(11, 12)
    assert copy(ledger, CARL, 2).lines == range(13, 15)


def test_the_oldest_late_lease_is_copied_first() -> None:
    ledger = paced(3)
    ledger.end_at(MIN_LEASES + 2)
    take(ledger, ANNA, now=0)
    take(ledger, ANNA, now=1)
    assert copy(ledger, BERT, now=9).lines == range(10, 11)
    assert copy(ledger, BERT, now=9).lines == range(11, 12)


def test_a_copy_of_lines_on_probation_is_no_larger_than_another_lease_of_them() -> None:
    ledger, _ = late(8)
    ledger.lose(0, ANNA, 0)
    ledger.expire(0)
    take(ledger, ANNA, 4)
    offer = ledger.offer_copy(50, BERT, 8)
    assert offer is not None
    assert offer.count == 4
    ledger.release(0, ANNA)


def test_there_are_no_copies_while_paused() -> None:
    ledger, _ = late(1)
    ledger.paused = True
    assert ledger.offer_copy(LATE, BERT, 1) is None


def test_there_are_no_copies_where_they_are_switched_off() -> None:
    ledger, _ = late(1)
    ledger.hedging.factor = 0
    assert ledger.offer_copy(90, BERT, 1) is None


# --- the first result counts ---------------------------------------------------------------------


@pytest.mark.parametrize(("first", "second"), [(ANNA, BERT), (BERT, ANNA)])
def test_the_first_result_counts_and_the_other_hears_of_it(
    first: HolderId, second: HolderId
) -> None:
    ledger, _ = late(2)
    copy(ledger, BERT, 2)
    assert ledger.settle(7, first, range(10, 11)) == (range(10, 11),)
    assert ledger.settle(7, second, range(10, 11)) == ()
    assert (ledger.holds(ANNA), ledger.holds(BERT)) == (1, 1)
    assert ledger.extend(7, first) == []
    assert ledger.extend(7, second) == [10]
    ledger.settle(7, first, range(11, 12))
    assert ledger.is_settled
    assert ledger.is_idle
    assert ledger.next_due_at() is None
    assert (ledger.lease_count(ANNA), ledger.lease_count(BERT)) == (0, 0)


def test_a_strangers_late_result_ends_both() -> None:
    ledger, _ = late(1)
    copy(ledger, BERT)
    ledger.settle(7, CARL, range(10, 11))
    assert (ledger.extend(7, ANNA), ledger.extend(7, BERT)) == ([10], [10])
    assert ledger.is_idle


# --- the copy ends -------------------------------------------------------------------------------


def test_a_copy_that_fails_costs_nothing_and_there_is_no_other() -> None:
    ledger, lease = late(2, max_attempts=1)
    second = copy(ledger, BERT, 2)
    assert ledger.fail(7, BERT, 10, "no", lease_number=second.number) == Failure(0, None)
    assert state(ledger) == (2, 1, 0)
    assert ledger.lease_of(10) is lease
    ledger.fail(7, BERT, 11, "no")
    assert ledger.offer_copy(50, CARL, 2) is None
    assert ledger.next_due_at() == 100
    assert ledger.history_of(10).attempts == 0


def test_whoever_holds_the_copy_may_reject() -> None:
    ledger, _ = late(2)
    copy(ledger, BERT, 2)
    failure = ledger.fail(7, BERT, 10, "bad prompt", retry=False)
    assert failure is not None
    assert isinstance(failure.effect, Rejected)
    assert failure.effect.history.errors == ("bad prompt",)
    assert (ledger.extend(7, ANNA), ledger.extend(7, BERT)) == ([10], [])
    assert state(ledger) == (1, 1, 0)


def test_a_copy_that_is_given_back_may_go_to_another() -> None:
    ledger, _ = late(2)
    copy(ledger, BERT, 2)
    assert ledger.release(7, BERT, [11]) == 1
    assert copy(ledger, CARL, now=7).lines == range(11, 12)
    assert ledger.release(7, BERT) == 1
    assert state(ledger) == (2, 1, 0)


@pytest.mark.parametrize("is_lost", [True, False])
def test_a_copy_that_is_lost_or_runs_out_changes_nothing(is_lost: bool) -> None:
    ledger, lease = late(2, max_losses=2, max_attempts=1)
    ledger.lease_timeout_seconds = 1
    second = copy(ledger, BERT, 2)
    if is_lost:
        ledger.lose(LATE, BERT, 0)
    assert ledger.expire(7) == (Expired(second, (range(10, 12),), ()),)
    assert state(ledger) == (2, 0, 0)
    assert ledger.lease_of(10) is lease
    assert ledger.extend(7, BERT) == [10, 11]
    if is_lost:
        assert copy(ledger, CARL, 2, now=7).lines == range(10, 12)
    else:
        assert ledger.offer_copy(7, CARL, 2) is None, "what went unanswered twice is not copied"


def lose_copies(ledger: Ledger, count: int) -> tuple[Expired, ...]:
    """Let as many workers die as had copies of all that is late; tell what the last one ended."""
    expired: tuple[Expired, ...] = ()
    for number in range(count):
        holder = HolderId(100 + number)
        offer = ledger.offer_copy(LATE, holder, 10)
        assert offer is not None
        ledger.lease(LATE, holder, offer, offer.count)
        ledger.lose(LATE, holder, 0)
        expired = ledger.expire(LATE)
    return expired


def test_lines_whose_copies_kill_are_taken_from_whoever_hangs_on_them() -> None:
    ledger, lease = late(4, max_losses=3)
    lose_copies(ledger, 2)
    assert lines_of(ledger, 10, 13) == [ANNA, ANNA]
    (last,) = lose_copies(ledger, 1)
    assert last.effects == (Tried(range(10, 14), lease.history.in_company(4)),)
    assert state(ledger) == (0, 0, 4)
    assert ledger.extend(LATE, ANNA) == [10, 11, 12, 13]
    assert take(ledger, BERT, 2, now=LATE).lines == range(10, 12), "in halves, to find out which"


def test_a_line_alone_whose_copies_kill_loses_a_worker_more() -> None:
    ledger, _ = late(1, max_losses=2)
    (last,) = lose_copies(ledger, 2)
    (effect,) = last.effects
    assert (type(effect), effect.history.losses) == (Tried, 1)
    ledger, _ = late(1, max_losses=1)
    (last,) = lose_copies(ledger, 1)
    (effect,) = last.effects
    assert (type(effect), effect.lines) == (Rejected, range(10, 11))


def test_the_original_may_be_due_with_the_last_copy_that_it_may_cost() -> None:
    ledger, _ = late(1, max_losses=2, lease_timeout_seconds=LATE + 1)
    lose_copies(ledger, 1)
    second = copy(ledger, BERT)
    ledger.lose(LATE, BERT, 1)
    (last,) = ledger.expire(LATE + 1)
    assert (last.lease, len(last.effects)) == (second, 1)


# --- the original ends ---------------------------------------------------------------------------


def test_when_the_original_fails_the_copy_takes_its_place() -> None:
    ledger, _ = late(1, max_attempts=1)
    second = copy(ledger, BERT)
    failure = ledger.fail(7, ANNA, 10, "no")
    assert failure is not None
    assert failure.effect == Tried(range(10, 11), second.history), "not given up: BERT is at it"
    assert second.history.errors == ("no",)
    assert (ledger.lease_of(10), second.original) == (second, None)
    assert state(ledger) == (1, 0, 0)
    failure = ledger.fail(8, BERT, 10, "nor I")
    assert failure is not None
    assert isinstance(failure.effect, Rejected)
    assert failure.effect.history.errors == ("no", "nor I")


def test_when_the_original_runs_out_the_copy_takes_its_place() -> None:
    ledger, lease = late(4)
    second = copy(ledger, BERT, 2)
    (expired,) = ledger.expire(100)
    history = second.history
    assert (expired.lease, expired.lines) == (lease, (range(10, 14),))
    assert expired.effects == (Tried(range(10, 12), history), Tried(range(12, 14), history))
    assert (history.attempts, history.max_together) == (1, 2)
    assert lines_of(ledger, 10, 11, 12, 13) == [BERT, BERT, None, None]
    assert state(ledger) == (2, 0, 2)
    assert ledger.next_due_at() == LATE + 100
    assert ledger.extend(100, ANNA) == [10, 11, 12, 13]


def test_when_the_originals_worker_is_lost_the_copy_takes_its_place() -> None:
    ledger, _ = late(1, max_losses=1)
    second = copy(ledger, BERT)
    ledger.lose(7, ANNA, 0)
    (expired,) = ledger.expire(7)
    assert ledger.lease_of(10) is second
    assert second.history.losses == 1
    assert expired.effects == (Tried(range(10, 11), second.history),)


def test_when_the_original_is_given_back_its_copies_take_its_place() -> None:
    ledger, _ = late(6)
    second, third = copy(ledger, BERT, 2), copy(ledger, CARL, 2)
    assert ledger.release(7, ANNA) == 6
    assert lines_of(ledger, *range(10, 16)) == [BERT, BERT, CARL, CARL, None, None]
    assert (second.original, third.original) == (None, None)
    assert state(ledger) == (4, 0, 2)
    assert ledger.extend(7, BERT) == ledger.extend(7, CARL) == []


def test_a_copy_of_more_lines_than_are_given_back_loses_these() -> None:
    ledger, lease = late(5)
    second, third = copy(ledger, BERT, 2), copy(ledger, CARL, 2)
    assert ledger.release(7, ANNA, [11, 12, 13]) == 3
    assert lines_of(ledger, *range(10, 15)) == [ANNA, None, CARL, CARL, ANNA]
    assert (second.original, third.original) == (lease, None)
    assert ledger.extend(7, BERT) == [11]
    assert state(ledger) == (4, 1, 1)


def test_a_copy_in_its_originals_place_is_copied_as_any_lease() -> None:
    ledger, _ = late(1)
    copy(ledger, BERT)
    ledger.release(7, ANNA)
    assert ledger.offer_copy(LATE + LATE - 0.1, ANNA, 1) is None
    assert copy(ledger, ANNA, now=LATE + LATE).original is ledger.lease_of(10)


def test_a_lost_copy_in_its_originals_place_waits_for_its_holder() -> None:
    ledger, _ = late(1)
    second = copy(ledger, BERT)
    ledger.lose(7, BERT, 2)
    ledger.release(7, ANNA)
    ledger.reattach(8, BERT)
    assert ledger.expire(9) == ()
    assert ledger.lease_of(10) is second


@pytest.mark.parametrize("is_lost", [True, False])
def test_both_at_once_cost_one_attempt_or_loss(is_lost: bool) -> None:
    ledger, lease = late(1)
    second = copy(ledger, BERT)
    if is_lost:
        ledger.lose(7, ANNA, 0)
        ledger.lose(7, BERT, 0)
    expired = ledger.expire(7 if is_lost else 200)
    assert [one.lease for one in expired] == [second, lease]
    history = ledger.history_of(10)
    assert (history.attempts, history.losses) == ((0, 1) if is_lost else (1, 0))
    assert state(ledger) == (0, 0, 1)
    assert ledger.next_due_at() is None
