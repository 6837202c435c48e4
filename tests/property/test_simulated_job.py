"""A whole job with everything that goes wrong, in virtual time: what is promised, and how long."""

from __future__ import annotations

from typing import Any

import attrs
import pytest
from simulation import Simulation
from simulation_plan import Outcome, Plan

from trioline.config import LeaseSettings

SMALL = Plan(lines=2_500, workers=32, hung=3)
SEEDS = range(1, 4)
MAX_RATIO = {None: 1.5, 8: 1.75}
"""Times the ideal, by batch: one that is fixed leaves more lines with those who hang."""
KILLS = LeaseSettings().max_losses
"""What finding a line out that kills costs, once it is alone."""
KILLS_IN_COMPANY = 8
"""What it costs until it is: halvings, and lines of other leases in the same hand."""


def outcome(seed: int, **changes: Any) -> Outcome:  # noqa: ANN401 - any field of a plan
    """Simulate a small job."""
    return Simulation(attrs.evolve(SMALL, **changes), seed).run()


def check(out: Outcome) -> None:
    """Every line is settled once, and only those are rejected that kill."""
    assert not out.unsettled
    assert set(out.settled.values()) == {1}
    assert out.rejected == out.poison
    assert out.killed <= (KILLS + KILLS_IN_COMPANY) * SMALL.poison


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("batch", [None, 8])
@pytest.mark.parametrize("hung_renew", [True, False])
def test_deaths_hangs_and_lines_that_kill_cost_little(
    seed: int, batch: int | None, hung_renew: bool
) -> None:
    out = outcome(seed, batch=batch, hung_renew=hung_renew)
    check(out)
    assert out.ratio <= MAX_RATIO[batch]
    assert out.wasted <= 0.05


@pytest.mark.parametrize("seed", SEEDS)
def test_lines_that_kill_are_found_out_where_lines_are_quick(seed: int) -> None:
    check(outcome(seed, median_seconds=0.1))


@pytest.mark.parametrize("seed", SEEDS)
def test_without_second_copies_the_lines_of_hung_workers_take_a_lease_timeout(seed: int) -> None:
    out = outcome(seed, hung_renew=False, hedge=0)
    check(out)
    assert out.good_seconds > LeaseSettings().lease_timeout_seconds
    assert out.ratio > 2 * MAX_RATIO[None]


def test_without_second_copies_workers_that_hang_and_renew_hold_the_job_up_for_ever() -> None:
    out = outcome(1, hung_renew=True, hedge=0)
    assert len(out.unsettled) == SMALL.hung, "the lines that they were at"
    assert not out.unsettled & out.poison


@pytest.mark.parametrize("seed", SEEDS)
def test_without_halving_lines_are_rejected_that_did_nothing(seed: int) -> None:
    out = outcome(seed, batch=8, bisects=False)
    assert out.rejected > out.poison
