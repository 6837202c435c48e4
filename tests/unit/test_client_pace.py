from __future__ import annotations

import itertools

import pytest

from trioline.client.pace import FIRST_STEP, STALL_SECONDS, Pace


def adaptive(concurrency: int = 1, *, many: bool = False) -> Pace:
    return Pace(concurrency=concurrency, batch=None, many=many, max_batch=1_000)


def test_it_starts_with_a_line_a_place() -> None:
    assert adaptive(4).wanted(idle=4, queued=0) == 4


def test_slow_lines_are_never_hoarded() -> None:
    pace = adaptive(2)
    for _ in range(10):
        pace.record(2, 2 * 600.0)
        assert pace.wanted(idle=0, queued=0) == 0
        assert pace.wanted(idle=1, queued=0) == 1


def test_quick_lines_come_in_growing_numbers_up_to_the_most() -> None:
    pace = adaptive()
    sizes = []
    for _ in range(12):
        pace.record(100, 0.001)
        sizes.append(pace.wanted(idle=1, queued=0))
    assert sizes[0] == 1 + FIRST_STEP
    assert all(after <= 2 * before + FIRST_STEP for before, after in itertools.pairwise(sizes))
    assert sizes[-1] == 1_000


def test_about_a_second_of_work_is_in_hand() -> None:
    pace = adaptive(4)
    for _ in range(20):
        pace.record(4, 4 * 0.1)
        wanted = pace.wanted(idle=0, queued=0)
    assert wanted in (39, 40)


def test_it_shrinks_when_lines_become_slow() -> None:
    pace = adaptive()
    for _ in range(12):
        pace.record(100, 0.001)
        pace.wanted(idle=1, queued=0)
    for _ in range(12):
        pace.record(1, 10.0)
        wanted = pace.wanted(idle=1, queued=0)
    assert wanted == 1


@pytest.mark.parametrize("batch", [None, 8])
def test_nothing_is_asked_for_while_all_that_is_at_work_hangs(batch: int | None) -> None:
    pace = Pace(concurrency=2, batch=batch, many=False)
    assert pace.wanted(idle=1, queued=0, stalled_seconds=100.0) > 0, "one place can work"
    assert pace.wanted(idle=0, queued=0, stalled_seconds=STALL_SECONDS) == 0


def test_it_does_not_ask_for_each_line() -> None:
    pace = adaptive()
    for _ in range(20):
        pace.record(100, 1.0)
        pace.wanted(idle=0, queued=0)
    assert pace.spare in (99, 100)
    assert pace.wanted(idle=0, queued=60) == 0
    assert pace.wanted(idle=0, queued=40) == pace.spare - 40
    assert pace.low == pace.spare // 2


def test_a_fixed_batch_is_asked_for_as_it_is() -> None:
    pace = Pace(concurrency=1, batch=100, many=False)
    assert pace.wanted(idle=1, queued=0) == 100
    assert pace.wanted(idle=0, queued=99) == 0
    assert pace.wanted(idle=0, queued=50) == 100


def test_a_batch_of_one_leaves_nothing_lying_about() -> None:
    pace = Pace(concurrency=1, batch=1, many=False)
    assert pace.wanted(idle=1, queued=0) == 1
    assert pace.wanted(idle=0, queued=0) == 0


def test_many_hands_out_whole_batches_and_prepares_the_next() -> None:
    pace = Pace(concurrency=1, batch=32, many=True)
    assert pace.unit == 32
    assert pace.wanted(idle=0, queued=0) == 32


def test_many_finds_its_own_batch() -> None:
    pace = adaptive(many=True)
    units = []
    for _ in range(12):
        units.append(pace.unit)
        pace.record(pace.unit, pace.unit * 0.02)
        pace.wanted(idle=1, queued=0)
    assert units[:4] == [1, 2, 4, 8]
    assert units[-1] in (49, 50)


def test_the_servers_limit_holds() -> None:
    pace = Pace(concurrency=8, batch=500, many=True, max_batch=100)
    assert pace.wanted(idle=8, queued=0) == 100


def quick(concurrency: int = 1) -> Pace:
    """A pace that has seen thousands of quick lines."""
    pace = adaptive(concurrency)
    for _ in range(20):
        pace.record(100, 0.1)
        pace.wanted(idle=0, queued=0)
    return pace


def test_what_a_second_or_so_will_take_is_kept() -> None:
    assert quick().surplus(queued=1_000, stalled_seconds=0.0) == 0
    assert quick().surplus(queued=1_000, stalled_seconds=4.9) == 0, "a pause of the network, say"
    assert quick().surplus(queued=0, stalled_seconds=60.0) == 0


def test_lines_that_turn_slow_are_given_back_but_for_a_seconds_work() -> None:
    pace = quick(4)
    pace.record(1, 0.4)  # 0.2 s a line from now on
    assert pace.surplus(queued=1_000, stalled_seconds=0.0) == 1_000 - 19
    assert pace.surplus(queued=19, stalled_seconds=0.0) == 0
    assert pace.wanted(idle=0, queued=0) < 20


def test_one_line_that_does_not_end_gives_back_all_behind_it() -> None:
    pace = quick()
    assert pace.surplus(queued=1_000, stalled_seconds=5.0) == 1_000
    assert pace.wanted(idle=0, queued=0) == 0, "nor are they leased again"
    for _ in range(20):
        pace.record(100, 0.1)
        wanted = pace.wanted(idle=0, queued=0)
    assert wanted > 500, "until lines are quick again"


def test_a_batch_of_the_users_own_is_kept() -> None:
    pace = Pace(concurrency=1, batch=100, many=False)
    pace.record(1, 60.0)
    assert pace.surplus(queued=100, stalled_seconds=60.0) == 0
