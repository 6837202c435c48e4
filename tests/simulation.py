"""A whole job in virtual time: the real ledger and the real worker's pace, simulated work.

``python tests/simulation.py`` prints what a job takes with and without each precaution.
"""

from __future__ import annotations

import argparse
import heapq
import itertools
import math
import random
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial

import attrs
from simulation_plan import VARIANTS, Outcome, Plan

from trioline.client.pace import Pace, renewal_seconds
from trioline.config import LeaseSettings
from trioline.ledger import History, HolderId, Lease, Ledger, Offer, Rejected
from trioline.ledger.budgets import Budgets, Verdict

TICK_SECONDS = 1.0
"""The server's sweeps and the workers' chores."""
RESTART_SECONDS = 10.0
"""Until a worker that a line killed is started again."""
REPLACEMENT_SECONDS = 60.0
"""Until one that was preempted has its place taken, in half of all cases."""
HORIZON_SECONDS = 3_000.0
"""A job that is not over by then never will be."""


class Undivided(Budgets):
    """As if nobody knew of probation: each line pays for the loss of its worker."""

    def lost(self, past: History, count: int, line: int) -> Verdict:
        """Take every line for the only one."""
        verdict = super().lost(past, 1, line)
        return attrs.evolve(verdict, history=attrs.evolve(verdict.history, max_together=None))


@attrs.define(eq=False)
class Worker:
    """As ``run_worker`` with an async function and a concurrency of one."""

    holder: HolderId
    pace: Pace
    hangs_at: float | None = None
    queue: deque[int] = attrs.Factory(deque)
    running: int | None = None
    began_at: float = 0.0
    renewed_at: float = 0.0
    wanted: int = 0
    """Asked for in a ``get`` that waits."""
    is_hung: bool = False
    is_gone: bool = False


class Simulation:
    """One job; ``run`` it once."""

    def __init__(self, plan: Plan, seed: int) -> None:
        chance = random.Random(seed)
        self._plan = plan
        self._chance = chance
        self._now = 0.0
        self._seconds = [
            plan.median_seconds * chance.lognormvariate(0, plan.sigma) for _ in range(plan.lines)
        ]
        settings = LeaseSettings(hedge=plan.hedge)
        self._ledger = Ledger(settings)
        self._ledger.end_at(plan.lines)
        if not plan.bisects:
            self._ledger.budgets.__class__ = Undivided  # the rooms of the ledger share it
        self._holders = (HolderId(number) for number in itertools.count(1))
        self._workers: list[Worker] = []
        self._waiters: deque[Worker] = deque()
        self._events: list[tuple[float, int, Callable[[], object]]] = []
        self._numbers = itertools.count()
        self._living: list[tuple[float, int]] = []
        self._outcome = Outcome(poison=set(chance.sample(range(plan.lines), plan.poison)))

    def run(self) -> Outcome:
        """Simulate it to its end, or to the horizon."""
        self._populate()
        self._at(0.0, self._tick)
        while not self._ledger.is_settled and self._now < HORIZON_SECONDS:
            self._now, _, act = heapq.heappop(self._events)
            act()
            self._feed()
        outcome = self._outcome
        outcome.over_seconds = self._now
        outcome.unsettled = set(range(self._plan.lines)) - set(outcome.settled)
        lines = set(range(self._plan.lines)) - outcome.poison
        needed = [self._seconds[line] for line in lines]
        outcome.useful_seconds = sum(needed)
        outcome.busy_seconds += sum(self._now - worker.began_at for worker in self._at_work())
        outcome.ideal_seconds = max(self._capacity_seconds(sum(needed)), *needed)
        return outcome

    def _at_work(self) -> Iterator[Worker]:
        return (one for one in self._workers if one.running is not None and not one.is_hung)

    def _populate(self) -> None:
        plan, expected = self._plan, sum(self._seconds) / self._plan.workers
        moments = [self._chance.uniform(0, 0.9 * expected) for _ in range(plan.workers)]
        dying = int(plan.workers * plan.dying_share)
        for number, moment in enumerate(moments):
            is_hanging = dying <= number < dying + plan.hung
            worker = self._join(moment if is_hanging else None)
            if number < dying:
                again = REPLACEMENT_SECONDS if number % 2 else None
                self._at(moment, partial(self._die, worker, again))

    def _capacity_seconds(self, needed: float) -> float:
        """When the living workers could have done so much, at the earliest."""
        done, living, then = 0.0, 0, 0.0
        for at, change in [*sorted(self._living), (math.inf, 0)]:
            if living and done + living * (at - then) >= needed:
                return then + (needed - done) / living
            done += living * (at - then)
            living, then = living + change, at
        raise AssertionError("everybody died")

    def _at(self, seconds: float, act: Callable[[], object]) -> None:
        heapq.heappush(self._events, (seconds, next(self._numbers), act))

    # --- workers ----------------------------------------------------------------------------------

    def _join(self, hangs_at: float | None = None) -> Worker:
        pace = Pace(concurrency=1, batch=self._plan.batch, many=False)
        worker = Worker(next(self._holders), pace, hangs_at, renewed_at=self._now)
        self._workers.append(worker)
        self._living.append((self._now, 1))
        self._get(worker)
        return worker

    def _get(self, worker: Worker) -> None:
        """Ask for lines, where some are wanted, as the last request of a connection."""
        if worker.is_gone or (worker.is_hung and not self._plan.hung_renew):
            return
        if worker.wanted:
            self._waiters.remove(worker)
        worker.wanted = worker.pace.wanted(
            idle=int(worker.running is None),
            queued=len(worker.queue),
            stalled_seconds=self._stalled_seconds(worker),
        )
        if worker.wanted and not self._serve(worker, with_copies=True):
            self._waiters.append(worker)

    def _stalled_seconds(self, worker: Worker) -> float:
        return 0.0 if worker.running is None else self._now - worker.began_at

    def _begin(self, worker: Worker) -> None:
        """Work on the next line in hand."""
        worker.running = worker.queue.popleft() if worker.queue else None
        worker.began_at = self._now
        line = worker.running
        if line is None:
            return
        if worker.hangs_at is not None and worker.hangs_at <= self._now:
            worker.is_hung = True
            self._living.append((self._now, -1))
        elif line in self._outcome.poison:
            self._at(self._now + self._seconds[line] / 2, partial(self._kill, worker, line))
        else:
            finish = partial(self._finish, worker, line, self._now)
            self._at(self._now + self._seconds[line], finish)

    def _finish(self, worker: Worker, line: int, began_at: float) -> None:
        if worker.running != line or worker.began_at != began_at or worker.is_gone:
            return  # it was told that another one was quicker, or has died
        worker.pace.record(1, self._now - began_at)
        self._outcome.busy_seconds += self._now - began_at
        for run in self._ledger.settle(self._now, worker.holder, range(line, line + 1)):
            self._outcome.settled.update(run)
            self._outcome.good_seconds = self._now
        self._begin(worker)
        self._get(worker)

    def _kill(self, worker: Worker, line: int) -> None:
        if worker.running == line and not worker.is_gone:
            self._outcome.killed += 1
            self._die(worker, RESTART_SECONDS)

    def _die(self, worker: Worker, again_seconds: float | None) -> None:
        if worker.is_gone:
            return
        if worker.wanted:
            self._waiters.remove(worker)
        if worker.running is not None:
            self._outcome.busy_seconds += self._now - worker.began_at
        worker.is_gone, worker.running, worker.wanted = True, None, 0
        self._workers.remove(worker)
        if not worker.is_hung:
            self._living.append((self._now, -1))
        self._ledger.lose(self._now, worker.holder, self._ledger.grace_seconds)
        if again_seconds is not None:
            self._at(self._now + again_seconds, self._join)

    def _do_chores(self, worker: Worker) -> None:
        queue, stalled_seconds = worker.queue, self._stalled_seconds(worker)
        surplus = worker.pace.surplus(queued=len(queue), stalled_seconds=stalled_seconds)
        if surplus:
            given_back = [queue.pop() for _ in range(surplus)]
            self._ledger.release(self._now, worker.holder, given_back)
        if self._now >= worker.renewed_at + renewal_seconds(self._ledger.lease_timeout_seconds):
            worker.renewed_at = self._now
            self._drop(worker, set(self._ledger.extend(self._now, worker.holder) or ()))
        self._get(worker)

    def _drop(self, worker: Worker, lost: set[int]) -> None:
        worker.queue = deque(line for line in worker.queue if line not in lost)
        if worker.running in lost and not worker.is_hung:
            self._outcome.busy_seconds += self._now - worker.began_at
            self._begin(worker)

    # --- the server -------------------------------------------------------------------------------

    def _tick(self) -> None:
        for expired in self._ledger.expire(self._now):
            for effect in expired.effects:
                if isinstance(effect, Rejected):
                    self._outcome.settled.update(effect.lines)
                    self._outcome.rejected.update(effect.lines)
        self._feed()
        for worker in tuple(self._waiters):
            if self._serve(worker, with_copies=True):
                self._waiters.remove(worker)
        for worker in tuple(self._workers):
            if not worker.is_hung or self._plan.hung_renew:
                self._do_chores(worker)
        due_at = self._ledger.next_due_at() or HORIZON_SECONDS
        self._at(max(self._now, min(self._now + TICK_SECONDS, due_at)), self._tick)

    def _feed(self) -> None:
        for worker in tuple(self._waiters):
            if self._serve(worker, with_copies=False):
                self._waiters.remove(worker)

    def _serve(self, worker: Worker, *, with_copies: bool) -> bool:
        offer = self._ledger.offer(self._now, worker.wanted, worker.holder)
        if offer is None and with_copies:
            offer = self._ledger.offer_copy(self._now, worker.holder, worker.wanted)
            self._outcome.copied += 0 if offer is None else offer.count
        if offer is None:
            return False
        self._hand_over(worker, offer)
        return True

    def _hand_over(self, worker: Worker, offer: Offer) -> None:
        lease: Lease = self._ledger.lease(self._now, worker.holder, offer, offer.count)
        worker.wanted = 0
        worker.queue.extend(lease.lines)
        if worker.running is None:
            self._begin(worker)
        self._at(self._now, partial(self._get, worker))  # it may want more yet


def main() -> None:
    """Print a row for each variant and seed."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--only", default="", help="variants with this in their names")
    arguments = parser.parse_args()
    head = "seed     over     good    ideal  ratio  wasted  copied  killed  rejected  innocent"
    print(f"{'':26}{head}")
    for name, plan in VARIANTS.items():
        if arguments.only not in name:
            continue
        for seed in range(1, arguments.seeds + 1):
            out = Simulation(plan, seed).run()
            good = f"{out.good_seconds:7.0f}" if out.has_all_good else "  never"
            end = f"{out.over_seconds:7.0f}" if not out.unsettled else "  never"
            print(
                f"{name:26}{seed:4}  {end}  {good}  {out.ideal_seconds:7.0f}  {out.ratio:5.2f}"
                f"  {out.wasted:6.1%}  {out.copied:6}  {out.killed:6}  {len(out.rejected):8}"
                f"  {len(out.rejected - out.poison):8}"
            )


if __name__ == "__main__":
    main()
