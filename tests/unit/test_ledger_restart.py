"""What another run takes over, and what the ledger costs in memory."""

from __future__ import annotations

import sys

import pytest
from ledger_helpers import ANNA, BERT, make, take

from trioline.config import WINDOW
from trioline.ledger import Ledger
from trioline.ledger.rows import LineSet
from trioline.ledger.table import MIN_TRIM

# --- restart --------------------------------------------------------------------------------------


def test_a_restart_goes_on_where_the_output_ends() -> None:
    ledger = make(base=5, is_resumed=True)
    ledger.restore([range(6, 8), range(9, 10)])
    assert (ledger.base, ledger.frontier, ledger.ahead_count) == (5, 5, 3)
    assert [take(ledger, ANNA).lines.start for _ in range(3)] == [5, 8, 10]  # type: ignore[union-attr]
    assert ledger.settle(0, ANNA, range(5, 6)) == (range(5, 6),)
    assert ledger.base == 8


def test_a_restart_accepts_results_of_lines_a_former_ledger_gave_out() -> None:
    ledger = make(base=5, is_resumed=True, window=10)
    assert ledger.was_given_out(5 + WINDOW - 1), "the former one's window may have been larger"
    assert not ledger.was_given_out(5 + WINDOW)
    larger = make(base=5, is_resumed=True, window=WINDOW + 10)
    assert larger.was_given_out(5 + WINDOW + 9)
    assert not larger.was_given_out(5 + WINDOW + 10)
    assert ledger.settle(0, ANNA, range(7, 9)) == (range(7, 9),)
    assert ledger.settle(0, ANNA, range(7, 8)) == ()
    offer = ledger.offer(0, 10)
    assert offer is not None
    assert (offer.first, offer.count) == (5, 2), "what is settled is not given out again"
    assert not make(base=5).was_given_out(5), "a job begun anew gave nothing out before"


def test_results_of_a_former_ledger_may_move_the_base_past_the_frontier() -> None:
    ledger = make(base=5, is_resumed=True)
    ledger.settle(0, ANNA, range(5, 9))
    assert (ledger.base, ledger.frontier, ledger.queued_count) == (9, 9, 0)
    assert take(ledger, ANNA).lines == range(9, 10)


def test_what_was_settled_from_the_base_on_counts_at_once() -> None:
    ledger = make(base=5, is_resumed=True)
    ledger.restore([range(5, 8)])
    assert (ledger.base, ledger.ahead_count) == (8, 0)


# --- memory ---------------------------------------------------------------------------------------


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
    assert ledger._backlog.count == 1
    assert take(ledger, BERT, 5_000, now=10).lines == range(5_000)
    assert ledger._backlog.count == 1


@pytest.mark.slow
def test_a_million_lines_ahead_cost_nine_bytes_each() -> None:
    ledger = make(window=2_000_000)
    for _ in range(101):
        take(ledger, ANNA, 10_000)
    for first in range(1, 1_000_001, 10_000):
        ledger.settle(0, ANNA, range(first, first + 10_000))
    assert ledger.ahead_count == 1_000_000
    assert table_bytes(ledger) < 10.5 * 1_000_000, "nine, and what growing tables keep in reserve"


def test_leases_are_found_after_the_owner_table_moved() -> None:
    ledger = make()
    leases = [take(ledger, ANNA, 10_000) for _ in range(MIN_TRIM // 10_000 + 4)]
    for lease in leases[:-2]:
        ledger.settle(0, ANNA, range(lease.lines[0], lease.lines[0] + 10_000))  # type: ignore[index]
    assert ledger.base > MIN_TRIM
    edges = [(line, leases[at]) for at in (-2, -1) for line in leases[at].lines]
    assert len(edges) == 20_000
    for line, lease in edges[::9_999]:
        assert ledger.lease_of(line) is lease
    assert table_bytes(ledger) < 20 * 20_000, "and what is behind the base is given back"


def test_memory_follows_the_window_and_not_the_input() -> None:
    ledger = make()
    for _ in range(4 * MIN_TRIM // 1_000):
        ledger.settle(0, ANNA, take(ledger, ANNA, 1_000).lines)  # type: ignore[arg-type]
    assert ledger.base > 3 * MIN_TRIM
    assert table_bytes(ledger) < 2 * 9 * MIN_TRIM
    lease = take(ledger, ANNA, 10)
    assert ledger.lease_of(ledger.base + 9) is lease, "the owner table moved with the base"


def test_a_set_of_lines_is_read_in_ranges() -> None:
    lines = LineSet.of([range(3, 5), range(7, 8), range(9, 12)])
    assert list(lines.runs()) == [range(3, 5), range(7, 8), range(9, 12)]
    assert list(lines.runs(range(4, 10))) == [range(4, 5), range(7, 8), range(9, 10)]
    for outside in (range(3), range(12, 20), range(5, 7), range(4, 4)):
        assert list(lines.runs(outside)) == []
    lines.remove(range(9, 12))
    assert list(lines.runs(range(100))) == [range(3, 5), range(7, 8)]
    assert list(lines) == [3, 4, 7]
