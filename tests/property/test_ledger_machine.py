"""The ledger against a naive model: one dict a line, simple loops, no ranges."""

from __future__ import annotations

import itertools

import attrs
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

import trioline.ledger
from trioline.config import WINDOW, LeaseSettings
from trioline.ledger import (
    ALONE_AFTER_LOSSES,
    FRESH,
    HolderId,
    Lease,
    Ledger,
    Rejected,
)
from trioline.ledger.table import MIN_TRIM

HOLDERS = st.integers(1, 3).map(HolderId)
STEPS = st.sampled_from([0.0, 0.5, 1.0, 3.0, 7.0, 30.0])
MOSTLY = st.sampled_from([True, True, True, False])
PICKS = st.integers(0, 1_000_000)
"""Chooses among what there is, by its remainder."""


@attrs.define
class ModelLease:
    """What was given out together."""

    holder: int
    timeout: float
    due: float
    is_lost: bool = False


@attrs.define
class Line:
    """One line: ``fresh``, ``leased``, ``queued`` or ``settled``."""

    state: str = "fresh"
    lease: int = 0
    ready_at: float = 0.0
    attempts: int = 0
    losses: int = 0
    errors: tuple[str, ...] = ()
    times_settled: int = 0


class LedgerMachine(RuleBasedStateMachine):
    """Each rule does one thing to both and compares what came of it."""

    @initialize(
        window=st.integers(4, 40) | st.integers(1, 4),
        max_attempts=st.integers(1, 4),
        max_losses=st.integers(2, 4) | st.just(1),
        delay=st.sampled_from([0.0, 0.0, 2.0]),
        size=st.integers(20, 90) | st.integers(0, 3),
    )
    def begin(
        self, window: int, max_attempts: int, max_losses: int, delay: float, size: int
    ) -> None:
        """Start a job; its end is only found later."""
        self.settings = LeaseSettings(
            lease_timeout_seconds=10,
            max_attempts=max_attempts,
            max_losses=max_losses,
            retry_delay_seconds=delay,
            window=window,
        )
        self.ledger = Ledger(self.settings)
        self.lines = [Line() for _ in range(size)]
        self.leases: dict[int, ModelLease] = {}
        self.told: dict[int, set[int]] = {}
        self.now = 100.0
        self.timeout = 10.0
        self.max_attempts = max_attempts
        self.ended = self.paused = False
        self.given_out_before = 0
        self.frontier = 0
        self.last_number = 0

    def __init__(self) -> None:
        super().__init__()
        trioline.ledger.table.MIN_TRIM = 2  # so that the owner table moves within so few lines

    def teardown(self) -> None:
        """Leave the module as it was."""
        trioline.ledger.table.MIN_TRIM = MIN_TRIM

    # --- the model -------------------------------------------------------------------------------

    @property
    def base(self) -> int:
        return next(
            (at for at, line in enumerate(self.lines) if line.state != "settled"), len(self.lines)
        )

    def of_state(self, state: str) -> list[int]:
        return [at for at, line in enumerate(self.lines) if line.state == state]

    def held(self, holder: int) -> dict[int, ModelLease]:
        return {number: lease for number, lease in self.leases.items() if lease.holder == holder}

    def holder_of(self, line: int) -> int | None:
        it = self.lines[line]
        return self.leases[it.lease].holder if it.state == "leased" else None

    def offerable(self) -> int | None:
        """Find the oldest line that may be given out now."""
        if self.paused:
            return None
        for at, line in enumerate(self.lines):
            if line.state == "queued" and line.ready_at <= self.now:
                return at
        return next((at for at in self.of_state("fresh") if self.may_open(at)), None)

    def may_open(self, line: int) -> bool:
        return self.frontier <= line < self.base + self.settings.window

    def settle_line(self, at: int) -> None:
        line = self.lines[at]
        line.state = "settled"
        line.times_settled += 1
        self.clean()

    def clean(self) -> None:
        """Forget leases without lines."""
        alive = {line.lease for line in self.lines if line.state == "leased"}
        self.leases = {number: it for number, it in self.leases.items() if number in alive}
        self.frontier = max(self.frontier, self.base)

    def tell(self, holder: int, line: int) -> None:
        self.told.setdefault(holder, set()).add(line)

    def queue(self, at: int, delay: float) -> None:
        line = self.lines[at]
        line.state, line.ready_at = "queued", self.now + delay

    def check_rejected(self, rejected: tuple[Rejected, ...], expected: set[int]) -> None:
        seen = [line for one in rejected for line in one.lines]
        assert sorted(seen) == sorted(expected)
        for one in rejected:
            for line in one.lines:
                assert one.history.attempts == self.lines[line].attempts
                assert one.history.errors == self.lines[line].errors

    # --- giving out ------------------------------------------------------------------------------

    @precondition(lambda self: self.offerable() is not None)
    @rule(holder=HOLDERS, max_count=st.integers(1, 12), part=PICKS)
    def lease(self, holder: HolderId, max_count: int, part: int) -> None:
        """Take an offer whole or in part."""
        offer = self.ledger.offer(self.now, max_count)
        assert offer is not None
        assert offer.first == self.offerable()
        assert 1 <= offer.count <= max_count
        count = 1 + part % min(offer.count, len(self.lines) - offer.first)
        model = self.lines[offer.first]
        assert count == 1 or model.losses < ALONE_AFTER_LOSSES
        lease = self.ledger.lease(self.now, holder, offer, count)
        assert lease.number > self.last_number
        assert lease.attempt == model.attempts + 1
        self.last_number = lease.number
        self.leases[lease.number] = ModelLease(holder, self.timeout, self.now + self.timeout)
        for at in range(offer.first, offer.first + count):
            line = self.lines[at]
            assert line.state in ("fresh", "queued")
            assert line.ready_at <= self.now
            past = offer.history
            assert (past.attempts, past.losses, past.errors) == (
                line.attempts,
                line.losses,
                line.errors,
            )
            line.state, line.lease = "leased", lease.number
        self.frontier = max(self.frontier, offer.first + count)

    @precondition(lambda self: self.offerable() is not None)
    @rule(holder=HOLDERS, max_count=st.integers(1, 12))
    def lease_a_lot(self, holder: HolderId, max_count: int) -> None:
        """Lease on and on, as far as the window allows."""
        for _ in range(8):
            if self.offerable() is not None:
                self.lease(holder, max_count, max_count - 1)

    def unreadable(self) -> None:
        """Meet a line that cannot be given out."""
        at = self.offerable()
        if at is None or self.lines[at].state != "fresh":
            return
        rejected = self.ledger.reject_unreadable(at, "too long")
        self.lines[at].attempts, self.lines[at].errors = 1, ("too long",)
        self.frontier = max(self.frontier, at + 1)
        self.settle_line(at)
        self.check_rejected((rejected,), {at})

    # --- results ---------------------------------------------------------------------------------

    @precondition(lambda self: self.leases)
    @rule(holder=HOLDERS, first=PICKS, count=st.integers(1, 6))
    def settle(self, holder: HolderId, first: int, count: int) -> None:
        """Send results: of the holder, late, double, or of a stranger."""
        known = min(max(self.frontier, self.given_out_before), len(self.lines))
        if not known:
            return
        first %= known
        lines = range(first, min(first + count, known))
        assert all(self.ledger.was_given_out(line) for line in lines)
        expected = [at for at in lines if self.lines[at].state != "settled"]
        for at in expected:
            keeper = self.holder_of(at)
            if keeper is not None and keeper != holder:
                self.tell(keeper, at)
        for at in expected:
            self.settle_line(at)
        new = self.ledger.settle(holder, lines)
        assert [line for run in new for line in run] == expected
        assert all(left.stop < right.start for left, right in itertools.pairwise(new))

    @precondition(lambda self: self.leases)
    @rule(pick=PICKS, part=PICKS, count=st.integers(1, 15))
    def settle_own(self, pick: int, part: int, count: int) -> None:
        """Answer one lease from one of its lines on."""
        number = sorted(self.leases)[pick % len(self.leases)]
        lines = [at for at in self.of_state("leased") if self.lines[at].lease == number]
        self.settle(HolderId(self.leases[number].holder), lines[part % len(lines)], count)

    # --- failures --------------------------------------------------------------------------------

    @precondition(lambda self: self.leases)
    @rule(
        holder=HOLDERS,
        pick=PICKS,
        retry=MOSTLY,
        delay=st.sampled_from([None, 0.0, 1.0, 5.0]),
        named=st.sampled_from(["none", "none", "right", "wrong"]),
        own=MOSTLY,
    )
    def fail(
        self, holder: HolderId, pick: int, retry: bool, delay: float | None, named: str, own: bool
    ) -> None:
        """Report a failure, rightly or not."""
        leased = self.of_state("leased")
        at = leased[pick % len(leased)] if own and leased else pick % len(self.lines)
        line = self.lines[at]
        keeper = self.holder_of(at)
        if own and keeper is not None:
            holder = HolderId(keeper)
        number = {"none": None, "right": line.lease, "wrong": line.lease + 1}[named]
        failure = self.ledger.fail(
            self.now, holder, at, "no", retry=retry, delay_seconds=delay, lease_number=number
        )
        if keeper != holder or named == "wrong":
            assert failure is None
            return
        assert failure is not None
        line.attempts, line.errors = line.attempts + 1, (*line.errors, "no")[-10:]
        assert failure.attempt == line.attempts
        if not retry or line.attempts >= self.max_attempts:
            self.settle_line(at)
            assert failure.rejected is not None
            self.check_rejected((failure.rejected,), {at})
            return
        assert failure.rejected is None
        self.queue(at, self.settings.retry_delay_seconds if delay is None else delay)
        self.clean()

    @precondition(lambda self: self.leases)
    @rule(picks=st.lists(PICKS, min_size=1, max_size=6), delay=st.sampled_from([None, 0.0, 1.0]))
    def fail_again(self, picks: list[int], delay: float | None) -> None:
        """Fail what is leased, and get some of it again."""
        for pick in picks:
            if self.leases:
                self.fail(HolderId(1), pick, True, delay, "none", True)
            if self.offerable() is not None:
                self.lease(HolderId(1 + pick % 3), 1 + pick % 5, pick)

    @precondition(lambda self: self.leases)
    @rule(holder=HOLDERS, picks=st.none() | st.lists(PICKS, min_size=1, max_size=8), own=MOSTLY)
    def release(self, holder: HolderId, picks: list[int] | None, own: bool) -> None:
        """Give lines back: all, or some, others' among them."""
        mine = [at for at in self.of_state("leased") if self.holder_of(at) == holder]
        among = mine if own else list(range(len(self.lines)))
        asked = mine if picks is None else [among[pick % len(among)] for pick in picks if among]
        expected = set(asked) & set(mine)
        released = self.ledger.release(self.now, holder, None if picks is None else asked)
        assert released == len(expected)
        for at in expected:
            self.queue(at, 0)
        self.clean()

    # --- holders ---------------------------------------------------------------------------------

    @precondition(lambda self: self.leases or self.told)
    @rule(holder=HOLDERS, pick=st.none() | PICKS, stale=st.booleans())
    def extend(self, holder: HolderId, pick: int | None, stale: bool) -> None:
        """Renew one lease, all, or one that is not the holder's."""
        held = self.held(holder)
        if pick is not None and (stale or not held):
            number = 1 + pick % (self.last_number + 2)
            if number not in held:
                assert self.ledger.extend(self.now, holder, number) is None
                return
            chosen: list[int] = [number]
        else:
            chosen = list(held) if pick is None else [sorted(held)[pick % len(held)]]
        lost = self.ledger.extend(self.now, holder, None if pick is None else chosen[0])
        for number in chosen:
            self.renew(number)
        told = self.told.pop(holder, set())
        assert lost == sorted(at for at in told if self.holder_of(at) != holder)
        if pick is None:
            assert self.ledger.extend(self.now, holder) == []

    def renew(self, number: int) -> None:
        lease = self.leases[number]
        lease.timeout, lease.due, lease.is_lost = self.timeout, self.now + self.timeout, False

    @precondition(lambda self: self.leases)
    @rule(holder=HOLDERS, grace=st.sampled_from([0.0, 2.0, 10.0, 50.0]))
    def lose(self, holder: HolderId, grace: float) -> None:
        """Drop a connection."""
        self.ledger.lose(self.now, holder, grace)
        for lease in self.held(holder).values():
            lease.is_lost = True
            if lease.due > self.now + grace:
                lease.due, lease.timeout = self.now + grace, grace

    @precondition(lambda self: any(lease.is_lost for lease in self.leases.values()))
    @rule(holder=HOLDERS)
    def reattach(self, holder: HolderId) -> None:
        """Come back."""
        self.ledger.reattach(self.now, holder)
        for number in self.held(holder):
            self.renew(number)

    @precondition(lambda self: self.told)
    @rule(holder=HOLDERS)
    def forget(self, holder: HolderId) -> None:
        """Go for good."""
        if not self.held(holder):
            self.ledger.forget(holder)
            self.told.pop(holder, None)

    # --- time ------------------------------------------------------------------------------------

    @rule(step=STEPS)
    def wait(self, step: float) -> None:
        """Let time go by without a sweep, as a busy server does."""
        self.now += step

    @rule(step=STEPS)
    def expire(self, step: float) -> None:
        """Sweep."""
        self.now += step
        expected: set[int] = set()
        for number, lease in list(self.leases.items()):
            if lease.due <= self.now:
                expected |= self.run_out(number, lease)
        self.clean()
        self.check_rejected(self.ledger.expire(self.now), expected)
        due = self.ledger.next_due_at()
        assert due is None or due > self.now

    def run_out(self, number: int, lease: ModelLease) -> set[int]:
        lines = [at for at in self.of_state("leased") if self.lines[at].lease == number]
        rejected: set[int] = set()
        for at in lines:
            line = self.lines[at]
            self.tell(lease.holder, at)
            if lease.is_lost:
                line.losses += 1
                is_over = line.losses >= self.settings.max_losses and len(lines) == 1
                error = f"its workers were lost {line.losses} times"
                delay = 0.0
            else:
                is_over = line.attempts + 1 >= self.max_attempts
                error = f"no answer within the lease of {lease.timeout:g} seconds"
                delay = self.settings.retry_delay_seconds
            if is_over or not lease.is_lost:
                line.attempts, line.errors = line.attempts + 1, (*line.errors, error)[-10:]
            if is_over:
                self.settle_line(at)
                rejected.add(at)
            else:
                self.queue(at, delay)
        return rejected

    @precondition(lambda self: self.leases)
    @rule()
    def sleep_until_due(self) -> None:
        """Sweep exactly when the ledger asks for it."""
        due = self.ledger.next_due_at()
        assert due is not None
        self.expire(max(0.0, due - self.now))

    @precondition(lambda self: self.offerable() is not None)
    @rule(holder=HOLDERS, count=st.integers(1, 6))
    def lose_at_once(self, holder: HolderId, count: int) -> None:
        """Drop a connection without grace just after it got lines."""
        self.lease(holder, count, count - 1)
        self.lose(holder, 0.0)
        self.expire(0.0)

    def postpone(self) -> None:
        """Find that the process stood still."""
        self.ledger.postpone(self.now)
        for lease in self.leases.values():
            lease.due = self.now + lease.timeout

    # --- the job ---------------------------------------------------------------------------------

    @rule(
        what=st.sampled_from(["unreadable", "postpone", "pause", "end", "timeout", "attempts"]),
        seconds=st.sampled_from([1.0, 4.0, 10.0, 100.0]),
        budget=st.integers(1, 4),
    )
    def manage(self, what: str, seconds: float, budget: int) -> None:
        """Do what happens seldom."""
        match what:
            case "unreadable":
                self.unreadable()
            case "postpone":
                self.postpone()
            case "pause":
                self.paused = self.ledger.paused = True
                self.oldest_first()
                self.paused = self.ledger.paused = False
            case "end":
                self.ledger.end_at(len(self.lines))
                self.ended = True
            case "timeout":
                self.timeout = self.ledger.lease_timeout_seconds = seconds
            case _:
                self.max_attempts = self.ledger.max_attempts = budget

    @precondition(lambda self: self.base > 3 and self.now > 115)
    @rule()
    def restart(self) -> None:
        """Kill the server and start it again on what it had settled."""
        base = self.base
        ahead = [range(at, at + 1) for at in self.of_state("settled") if at >= base]
        self.ledger = Ledger(self.settings, base=base, is_resumed=True)
        self.ledger.restore(ahead)
        self.given_out_before = base + max(self.settings.window, WINDOW)
        self.frontier = base
        self.leases.clear()
        self.told.clear()
        self.timeout, self.max_attempts = 10.0, self.settings.max_attempts
        self.ended = self.paused = False
        self.last_number = 0
        for at, line in enumerate(self.lines):
            if line.state != "settled":
                self.lines[at] = Line()

    # --- what always holds -----------------------------------------------------------------------

    @invariant()
    def leases_agree(self) -> None:
        """1: no line is leased twice, and no settled line is leased."""
        seen: dict[int, Lease] = {}
        for at in range(len(self.lines)):
            lease = self.ledger.lease_of(at)
            line = self.lines[at]
            assert (lease is not None) == (line.state == "leased")
            if lease is not None:
                assert lease.number == line.lease
                assert at in lease.lines
                seen[lease.number] = lease
        assert set(seen) == set(self.leases)
        for holder in range(1, 4):
            mine = [at for at in self.of_state("leased") if self.holder_of(at) == holder]
            assert self.ledger.holds(HolderId(holder)) == len(mine)
            assert self.ledger.lease_count(HolderId(holder)) == len(self.held(holder))

    @invariant()
    def settled_once(self) -> None:
        """2: no line is settled twice."""
        for line in self.lines:
            assert line.times_settled == (line.state == "settled")

    @invariant()
    def counts_agree(self) -> None:
        """3 and 4: nothing is forgotten; base and frontier are where they should be."""
        base, ledger = self.base, self.ledger
        assert ledger.base == base
        assert ledger.frontier == self.frontier
        assert base <= self.frontier <= base + self.settings.window
        settled = self.of_state("settled")
        leased, queued = self.of_state("leased"), self.of_state("queued")
        assert ledger.ahead_count == sum(at > base for at in settled)
        assert ledger.leased_count == len(leased)
        assert ledger.queued_count == len(queued)
        assert len(settled) + len(leased) + len(queued) + len(self.of_state("fresh")) == len(
            self.lines
        )
        assert ledger.is_idle == (not leased)
        assert ledger.is_settled == (self.ended and len(settled) == len(self.lines))
        known = max(self.frontier, self.given_out_before)
        assert known == 0 or ledger.was_given_out(known - 1)
        assert not ledger.was_given_out(known)

    @invariant()
    def oldest_first(self) -> None:
        """5: what is offered is the oldest line that may be."""
        offer, expected = self.ledger.offer(self.now, 5), self.offerable()
        if expected is not None:
            assert offer is not None
            assert offer.first == expected
        elif offer is not None:
            assert not self.ended
            assert not self.paused
            assert offer.first >= len(self.lines)

    @invariant()
    def due_agrees(self) -> None:
        """The next due instant is not later than any lease's end, nor earlier than any change."""
        due = self.ledger.next_due_at()
        ends = [lease.due for lease in self.leases.values()]
        waits = [
            line.ready_at
            for line in self.lines
            if line.state == "queued" and line.ready_at > self.now
        ]
        if ends or waits:
            assert due is not None
            assert due <= min(ends + waits)
        if ends and not self.ledger.queued_count and not self.ledger.ahead_count:
            assert due is not None

    @invariant()
    def histories_agree(self) -> None:
        """What was tried with a line is remembered exactly."""
        for at in [*self.of_state("queued"), *self.of_state("leased")]:
            line, history = self.lines[at], self.ledger.history_of(at)
            assert (history.attempts, history.losses, history.errors) == (
                line.attempts,
                line.losses,
                line.errors,
            )
        for at in self.of_state("fresh"):
            assert self.ledger.history_of(at) == FRESH


LedgerMachine.TestCase.settings = settings(max_examples=300, stateful_step_count=50, deadline=None)
TestLedger = LedgerMachine.TestCase
