"""Lines that something happened to in company: the one at fault is found, no other is blamed."""

from __future__ import annotations

import math

import pytest
from ledger_helpers import ANNA, BERT, CARL, make, take

from trioline.ledger import History, Ledger, Rejected, Tried


def drop(ledger: Ledger, count: int) -> None:
    """Lease ``count`` lines and lose the connection."""
    take(ledger, ANNA, count)
    ledger.lose(0, ANNA, 0)
    ledger.expire(0)


def work_on(ledger: Ledger, batch: int, killer: int) -> tuple[int, int, list[Rejected]]:
    """Do all the work; whoever gets ``killer`` is lost.

    Returns:
        How often that was in company, how often alone, and what was given up.
    """
    together, alone, rejected, now = 0, 0, list[Rejected](), 0.0
    while not ledger.is_settled:
        offer = ledger.offer(now, batch)
        if offer is None:
            now = ledger.next_due_at() or now  # a line that is lost alone again and again waits
            continue
        lease = ledger.lease(now, ANNA, offer, offer.count)
        assert isinstance(lease.lines, range)
        if killer not in lease.lines:
            ledger.settle(now, ANNA, lease.lines)
            continue
        together, alone = together + (len(lease.lines) > 1), alone + (len(lease.lines) == 1)
        ledger.lose(now, ANNA, 0)
        (expired,) = ledger.expire(now)
        rejected += [one for one in expired.effects if isinstance(one, Rejected)]
    return together, alone, rejected


@pytest.mark.parametrize("killer", [0, 1, 4_999, 5_000, 7_777, 9_999])
def test_a_killer_among_ten_thousand_lines_is_found_by_halving(killer: int) -> None:
    ledger = make(max_losses=3)
    ledger.end_at(10_000)
    together, alone, (rejected,) = work_on(ledger, 10_000, killer)
    assert together <= math.ceil(math.log2(10_000))
    assert alone == 3
    assert rejected.lines == range(killer, killer + 1)
    assert rejected.history.losses == 3
    assert rejected.history.attempts == 1, "only what gave it up"
    assert ledger.is_settled


@pytest.mark.parametrize("count", [2, 3, 5, 7, 1_023, 1_024, 1_025])
def test_any_number_of_lines_is_halved_down_to_one(count: int) -> None:
    for killer in {0, count // 2, count - 1}:
        ledger = make(max_losses=1)
        ledger.end_at(count)
        together, alone, (rejected,) = work_on(ledger, count, killer)
        assert together <= math.ceil(math.log2(count))
        assert (alone, rejected.lines) == (1, range(killer, killer + 1))


def test_each_loss_in_company_halves_and_costs_nothing() -> None:
    ledger = make()
    take(ledger, ANNA, 9)
    ledger.lose(0, ANNA, 0)
    (expired,) = ledger.expire(0)
    assert expired.effects == (Tried(range(9), History(max_together=5)),)
    drop(ledger, 5)
    assert ledger.history_of(0) == History(max_together=3)
    assert ledger.history_of(5) == History(max_together=5)


def test_what_counts_is_how_many_lines_were_still_leased() -> None:
    ledger = make()
    take(ledger, ANNA, 9)
    ledger.settle(0, ANNA, range(2, 9))
    ledger.lose(0, ANNA, 0)
    ledger.expire(0)
    assert ledger.history_of(0) == History(max_together=1)


def test_a_line_on_probation_is_not_leased_with_more_by_asking_for_more() -> None:
    ledger = make()
    drop(ledger, 3)
    offer = ledger.offer(0, 100)
    assert offer is not None
    assert offer.count == 2
    assert ledger.lease(0, ANNA, offer, 1).history.max_together == 2


def test_the_neighbours_of_lines_on_probation_are_not() -> None:
    ledger = make()
    drop(ledger, 2)
    assert [take(ledger, BERT).lines for _ in range(2)] == [range(1), range(1, 2)]
    assert take(ledger, BERT, 5).lines == range(2, 7)


def test_lines_given_back_stay_on_probation() -> None:
    ledger = make()
    drop(ledger, 8)
    take(ledger, BERT, 4)
    ledger.release(0, BERT)
    assert ledger.history_of(0) == History(max_together=4)


def test_lines_lost_together_are_never_given_up_together() -> None:
    ledger = make(max_losses=1)
    drop(ledger, 3)
    assert (ledger.base, ledger.queued_count) == (0, 3)


def test_losses_are_no_attempts() -> None:
    ledger = make(max_losses=10, max_attempts=1)
    for _ in range(9):
        drop(ledger, 1)
    assert take(ledger, ANNA).attempt == 1


def hang(ledger: Ledger, batch: int, hanging: int) -> tuple[dict[int, int], list[Rejected]]:
    """Do all the work; the lease that has ``hanging`` runs out.

    Returns:
        How often each line was in a lease that ran out, and what was given up.
    """
    now, times, rejected = 0.0, dict.fromkeys(range(batch), 0), []
    while (offer := ledger.offer(now, batch)) is not None:
        lease = ledger.lease(now, ANNA, offer, offer.count)
        assert isinstance(lease.lines, range)
        if hanging not in lease.lines:
            ledger.settle(now, ANNA, lease.lines)
            continue
        for line in lease.lines:
            times[line] += 1
        now += 10
        (expired,) = ledger.expire(now)
        rejected += [one for one in expired.effects if isinstance(one, Rejected)]
    return times, rejected


@pytest.mark.parametrize("max_attempts", [2, 3, 5])
def test_a_line_that_hangs_its_lease_is_the_only_one_given_up(max_attempts: int) -> None:
    ledger = make(max_attempts=max_attempts)
    ledger.end_at(1_000)
    times, (rejected,) = hang(ledger, 1_000, 333)
    assert rejected.lines == range(333, 334)
    assert rejected.history.attempts == times[333] == max_attempts
    assert max(count for line, count in times.items() if line != 333) < max_attempts
    assert ledger.is_settled


def test_the_last_attempt_after_leases_that_ran_out_is_alone() -> None:
    ledger = make(max_attempts=3)
    take(ledger, ANNA, 8)
    ledger.expire(10)
    assert ledger.history_of(0).max_together == 4
    take(ledger, ANNA, 4, now=10)
    ledger.expire(20)
    assert ledger.history_of(4).max_together == 4
    offer = ledger.offer(20, 100)
    assert offer is not None
    assert offer.count == 1


def test_what_counts_is_all_that_the_holder_has_not_how_it_was_leased() -> None:
    """A worker that does eight lines side by side may have leased them one by one."""
    ledger = make(max_losses=1, max_attempts=2)
    ledger.end_at(8)
    for line in range(8):
        assert take(ledger, ANNA).lines == range(line, line + 1)
    ledger.lose(0, ANNA, 0)
    assert all(isinstance(one.effects[0], Tried) for one in ledger.expire(0))
    assert {ledger.history_of(line) for line in range(8)} == {History(max_together=4)}
    for count, now in ((4, 0.0), (1, 10.0)):
        held = 0
        while (offer := ledger.offer(now, 1, BERT)) is not None:
            ledger.lease(now, BERT, offer, 1)
            held += 1
        assert held == count, "and no others beside them"
        effects = [effect for one in ledger.expire(now + 10) for effect in one.effects]
        assert {type(effect) for effect in effects} == {Tried if count > 1 else Rejected}


def test_lines_on_probation_go_to_who_holds_little_and_others_go_on() -> None:
    ledger = make()
    take(ledger, BERT, 3)
    drop(ledger, 2)
    offer = ledger.offer(0, 5, CARL)
    assert offer is not None
    assert (offer.first, offer.count) == (3, 1)
    ledger.lease(0, CARL, offer, 1)
    assert ledger.offer(0, 5, CARL) is None
    ledger.settle(0, CARL, range(3, 4))
    again = ledger.offer(0, 5, CARL)
    assert again is not None
    assert (again.first, again.count) == (4, 1)


def test_where_all_hold_too_many_one_is_kept_free_for_each_range_on_probation() -> None:
    ledger = make()
    take(ledger, BERT, 3)
    take(ledger, CARL, 3)
    drop(ledger, 2)
    assert ledger.offer(0, 5, BERT) is None, "it is to answer what it has"
    offer = ledger.offer(0, 5, CARL)
    assert offer is not None
    assert (offer.first, offer.count) == (8, 5), "one volunteer will do"
    ledger.settle(0, BERT, range(3))
    offer = ledger.offer(0, 5, BERT)
    assert offer is not None
    assert (offer.first, offer.count) == (6, 1)
    ledger.lease(0, BERT, offer, 1)
    assert ledger.offer(0, 5, CARL) is None, "the next one"
    ledger.lose(0, CARL, 9)
    assert ledger.offer(0, 5, CARL) is None, "and again, where it still asks"
