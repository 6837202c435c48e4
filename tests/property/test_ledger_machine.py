"""The ledger against a naive model: one dict a line, simple loops, no ranges."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable

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
from trioline.ledger import FRESH, History, HolderId, Lease, Ledger, Offer, Rejected, Tried
from trioline.ledger.budgets import Budgets
from trioline.ledger.hedging import MIN_SECONDS, SHARE
from trioline.ledger.pace import MIN_LEASES
from trioline.ledger.table import MIN_TRIM

HOLDERS = st.integers(1, 3).map(HolderId)
STEPS = st.sampled_from([0.0, 0.5, 1.0, 3.0, 7.0, 30.0])
MOSTLY = st.sampled_from([True, True, True, False])
PICKS = st.integers(0, 1_000_000)
"""Chooses among what there is, by its remainder."""


@attrs.define
class ModelLease:
    """What was given out together; a copy names its original."""

    number: int
    holder: int
    lines: set[int]
    count: int
    granted_at: float
    timeout: float
    due: float
    again: float = attrs.field(default=attrs.Factory(lambda self: self.timeout, takes_self=True))
    """What postponing gives it: its timeout, or the grace that runs."""
    original: int | None = None
    is_lost: bool = False
    company: int = 0
    is_answered: bool = False
    uncopied: set[int] = attrs.Factory(set)
    lost_copies: int = 0


@attrs.define
class Line:
    """One line: ``fresh``, ``leased``, ``queued`` or ``settled``."""

    state: str = "fresh"
    lease: int = 0
    ready_at: float = 0.0
    history: History = FRESH
    times_settled: int = 0


class LedgerMachine(RuleBasedStateMachine):
    """Each rule does one thing to both and compares what came of it."""

    @initialize(
        window=st.integers(4, 40) | st.integers(1, 4),
        max_attempts=st.integers(1, 4),
        max_losses=st.integers(2, 4) | st.just(1),
        delay=st.sampled_from([0.0, 0.0, 2.0]),
        size=st.integers(20, 90) | st.integers(0, 3),
        hedge=st.sampled_from([0.1, 0.1, 2.0, 0.0]),
    )
    def begin(
        self,
        window: int,
        max_attempts: int,
        max_losses: int,
        delay: float,
        size: int,
        hedge: float,
    ) -> None:
        """Start a job; its end is only found later."""
        self.settings = LeaseSettings(
            lease_timeout_seconds=10,
            max_attempts=max_attempts,
            max_losses=max_losses,
            retry_delay_seconds=delay,
            window=window,
            hedge=hedge,
        )
        self.budgets = Budgets(self.settings)
        self.remembered: dict[int, History] = {}
        self.firsts: list[float] = []
        self.wholes: list[float] = []
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
        trioline.ledger.pace.MIN_LEASES = 2

    def teardown(self) -> None:
        """Leave the module as it was."""
        trioline.ledger.table.MIN_TRIM = MIN_TRIM
        trioline.ledger.pace.MIN_LEASES = MIN_LEASES

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

    def copies_of(self, number: int) -> list[ModelLease]:
        return [lease for lease in self.leases.values() if lease.original == number]

    def lease_with(self, line: int, holder: int) -> ModelLease | None:
        """Find the lease, original or copy, with which a holder has a line."""
        mine = (lease for lease in self.held(holder).values() if line in lease.lines)
        return next(mine, None)

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
        self.remembered.pop(at, None)
        for lease in self.leases.values():
            lease.lines.discard(at)
        self.clean()

    def clean(self) -> None:
        """Forget leases without lines."""
        self.leases = {number: it for number, it in self.leases.items() if it.lines}
        self.frontier = max(self.frontier, self.base)

    def tell(self, holder: int, line: int) -> None:
        self.told.setdefault(holder, set()).add(line)

    def queue(self, at: int, delay: float) -> None:
        line = self.lines[at]
        line.state, line.ready_at = "queued", self.now + delay

    def give_up(
        self,
        lease: ModelLease,
        lines: set[int],
        history: History,
        *,
        is_over: bool = False,
        delay: float = 0.0,
    ) -> dict[int, str]:
        """End a lease's hold on lines without a result.

        Returns:
            What becomes known of each line's history.
        """
        lease.lines -= lines
        kept: set[int] = set()
        effects: dict[int, str] = {}
        for copy in self.copies_of(lease.number):
            if copy.lines <= lines:
                kept |= copy.lines
                copy.lost_copies = lease.lost_copies
                if is_over:
                    copy.uncopied = set(copy.lines)
                self.promote(copy)
            for at in copy.lines & (lines - kept):
                self.tell(copy.holder, at)
            copy.lines -= lines - kept
        for at in lines if lease.original is None else ():
            self.lines[at].history = history
            effects[at] = "tried"
            if at not in kept and is_over:
                self.settle_line(at)
                effects[at] = "rejected"
            elif at not in kept:
                self.queue(at, delay)
        self.clean()
        return effects

    def promote(self, copy: ModelLease) -> None:
        """Let a copy take its original's place, after all other originals."""
        copy.original = None
        self.leases[copy.number] = self.leases.pop(copy.number)
        for at in copy.lines:
            self.lines[at].lease = copy.number

    def check_effects(self, effects: Iterable[Rejected | Tried], expected: dict[int, str]) -> None:
        """Compare what was told with what should be, and remember it as a journal does."""
        seen: dict[int, str] = {}
        for one in effects:
            for at in one.lines:
                assert at not in seen
                seen[at] = "tried" if isinstance(one, Tried) else "rejected"
                assert one.history == self.lines[at].history
                if isinstance(one, Tried):
                    self.remembered[at] = one.history
        assert seen == expected

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
        assert offer.count <= (self.lines[offer.first].history.max_together or max_count)
        self.look_for(holder, max_count)
        self.give_out(holder, offer, count)

    def look_for(self, holder: HolderId, max_count: int) -> None:
        """See what a holder is offered: nothing beside lines on probation, nor they beside more."""
        held = [at for lease in self.held(holder).values() for at in lease.lines]
        limits = [self.lines[at].history.max_together for at in held]
        offer = self.ledger.offer(self.now, max_count, holder)
        if offer is not None:
            limits.append(offer.history.max_together)
            room = min((limit for limit in limits if limit is not None), default=10**9)
            assert len(held) + offer.count <= room

    def give_out(self, holder: HolderId, offer: Offer, count: int) -> None:
        """Lease the first lines of an offer."""
        lease = self.ledger.lease(self.now, holder, offer, count)
        assert lease.number > self.last_number
        self.last_number = lease.number
        lines = set(range(offer.first, offer.first + count))
        assert set(lease.lines) == lines
        original = None if offer.original is None else int(offer.original.number)
        self.leases[lease.number] = ModelLease(
            number=lease.number,
            holder=holder,
            lines=lines,
            count=count,
            granted_at=self.now,
            timeout=self.timeout,
            due=self.now + self.timeout,
            original=original,
        )
        for at in lines:
            line = self.lines[at]
            assert offer.history == line.history
            if original is None:
                assert line.state in ("fresh", "queued")
                assert line.ready_at <= self.now
                line.state, line.lease = "leased", lease.number
            else:
                assert line.lease == original
        self.frontier = max(self.frontier, offer.first + count)

    # --- copies ----------------------------------------------------------------------------------

    def is_late(self, lease: ModelLease) -> bool:
        if min(len(self.firsts), len(self.wholes)) < 2:
            return False
        first, whole = (
            sorted(times)[math.ceil(SHARE * len(times)) - 1] for times in (self.firsts, self.wholes)
        )
        mean = sum(self.wholes) / len(self.wholes)
        usual = max(first, whole + (lease.count - 1) * mean)
        return self.now - lease.granted_at >= self.settings.hedge * usual

    def copyable(self, holder: int) -> tuple[int, list[int]] | None:
        """Find the first lines in a row that may have a copy, and their lease."""
        if self.paused or not self.settings.hedge:
            return None
        for lease in self.leases.values():
            if lease.original is not None:
                continue
            if self.now - lease.granted_at < MIN_SECONDS:
                return None
            if lease.is_lost:
                continue
            free = set(lease.lines) - lease.uncopied
            for copy in self.copies_of(lease.number):
                free -= copy.lines
            if lease.holder != holder and self.is_late(lease) and free:
                row = itertools.takewhile(free.__contains__, itertools.count(min(free)))
                return lease.number, list(row)
        return None

    @precondition(lambda self: self.leases)
    @rule(holder=HOLDERS, max_count=st.integers(1, 8), part=PICKS)
    def copy(self, holder: HolderId, max_count: int, part: int) -> None:
        """Take a second copy of late lines, whole or in part, where there are any."""
        expected = self.copyable(holder)
        offer = self.ledger.offer_copy(self.now, holder, max_count)
        if expected is None:
            assert offer is None
            return
        number, row = expected
        assert offer is not None
        assert offer.original is not None
        together = self.lines[row[0]].history.max_together or max_count
        assert (offer.original.number, offer.first) == (number, row[0])
        assert offer.count == min(max_count, len(row), together)
        self.give_out(holder, offer, 1 + part % offer.count)

    @precondition(lambda self: self.leases)
    @rule(max_count=st.integers(1, 8), part=PICKS)
    def copy_a_lot(self, max_count: int, part: int) -> None:
        """Let everybody take copies a while later."""
        self.now += 3.0
        for holder in (1, 2, 3, 1, 2, 3):
            if self.leases:
                self.copy(HolderId(holder), max_count, part)

    # --- giving out, on and on -------------------------------------------------------------------

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
        self.lines[at].history = History(attempts=1, errors=("too long",))
        self.frontier = max(self.frontier, at + 1)
        self.settle_line(at)
        self.check_effects((rejected,), {at: "rejected"})

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
            for lease in self.leases.values():
                if at in lease.lines and lease.holder != holder:
                    self.tell(lease.holder, at)
        self.note_pace(holder, expected)
        for at in expected:
            self.settle_line(at)
        new = self.ledger.settle(self.now, holder, lines)
        assert [line for run in new for line in run] == expected
        assert all(left.stop < right.start for left, right in itertools.pairwise(new))

    def note_pace(self, holder: int, settled: list[int]) -> None:
        """Note how long the holder's own leases took, copies aside."""
        for lease in self.held(holder).values():
            came = [at for at in settled if at in lease.lines]
            if lease.original is not None or not came:
                continue
            seconds = self.now - lease.granted_at
            if not lease.is_answered:
                row = itertools.takewhile(came.__contains__, itertools.count(came[0]))
                self.firsts.append(seconds / len(list(row)))
                lease.is_answered = True
            if len(came) == len(lease.lines):
                self.wholes.append(seconds / lease.count)

    @precondition(lambda self: self.leases)
    @rule(pick=PICKS, part=PICKS, count=st.integers(1, 15))
    def settle_own(self, pick: int, part: int, count: int) -> None:
        """Answer one lease from one of its lines on."""
        number = sorted(self.leases)[pick % len(self.leases)]
        lines = sorted(self.leases[number].lines)
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
        keepers = [lease.holder for lease in self.leases.values() if at in lease.lines]
        if own and keepers:
            holder = HolderId(keepers[pick % len(keepers)])
        lease = self.lease_with(at, holder)
        right = self.lines[at].lease if lease is None else lease.number
        number = {"none": None, "right": right, "wrong": self.last_number + 1}[named]
        failure = self.ledger.fail(
            self.now, holder, at, "no", retry=retry, delay_seconds=delay, lease_number=number
        )
        if lease is None or named == "wrong":
            assert failure is None
            return
        assert failure is not None
        past = self.lines[at].history
        if lease.original is not None and retry:
            assert (failure.attempt, failure.effect) == (past.attempts, None)
            self.leases[lease.original].uncopied.add(at)
            self.give_up(lease, {at}, past)
            return
        assert failure.attempt == past.attempts + 1
        history = attrs.evolve(past, attempts=failure.attempt, errors=(*past.errors, "no")[-10:])
        if retry:
            wait = self.budgets.failed(past, "no", at, delay).delay_seconds
            is_over = history.attempts >= self.max_attempts
            expected = self.give_up(lease, {at}, history, is_over=is_over, delay=wait)
        else:
            self.lines[at].history = history
            for other in self.leases.values():
                if at in other.lines and other.holder != holder:
                    self.tell(other.holder, at)
            self.settle_line(at)
            expected = {at: "rejected"}
        assert failure.effect is not None
        self.check_effects((failure.effect,), expected)

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
        mine = sorted(at for lease in self.held(holder).values() for at in lease.lines)
        among = mine if own else list(range(len(self.lines)))
        asked = mine if picks is None else [among[pick % len(among)] for pick in picks if among]
        expected = set(asked) & set(mine)
        released = self.ledger.release(self.now, holder, None if picks is None else asked)
        assert released == len(expected)
        for lease in self.held(holder).values():
            if given := lease.lines & expected:
                self.give_up(lease, given, self.lines[min(given)].history)

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
        assert lost == sorted(at for at in told if self.lease_with(at, holder) is None)
        if pick is None:
            assert self.ledger.extend(self.now, holder) == []

    def renew(self, number: int) -> None:
        lease = self.leases[number]
        lease.timeout = lease.again = self.timeout
        lease.due, lease.is_lost = self.now + self.timeout, False

    @precondition(lambda self: self.leases)
    @rule(holder=HOLDERS, grace=st.sampled_from([0.0, 2.0, 10.0, 50.0]))
    def lose(self, holder: HolderId, grace: float) -> None:
        """Drop a connection."""
        self.ledger.lose(self.now, holder, grace)
        company = sum(len(lease.lines) for lease in self.held(holder).values())
        for lease in self.held(holder).values():
            if not lease.is_lost:
                lease.is_lost, lease.company = True, company
            if lease.due > self.now + grace:
                lease.due, lease.again = self.now + grace, grace

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
        due = [lease for lease in self.leases.values() if lease.due <= self.now]
        for lease in due:
            if not lease.is_lost:
                held = self.held(lease.holder).values()
                lease.company = sum(len(other.lines) for other in held)
        expired = {int(one.lease.number): one for one in self.ledger.expire(self.now)}
        for lease in sorted(due, key=lambda lease: lease.original is None):
            if not lease.lines:
                continue  # it has ended with the last copy that it may cost
            one = expired.pop(lease.number)
            assert {at for run in one.lines for at in run} == lease.lines
            self.check_effects(one.effects, self.run_out(lease))
        assert not expired
        next_due = self.ledger.next_due_at()
        assert next_due is None or next_due > self.now

    def run_out(self, lease: ModelLease) -> dict[int, str]:
        original = self.leases[lease.original] if lease.original is not None else None
        effects = self.end_in_vain(lease)
        if original is not None and original.lost_copies >= self.settings.max_losses:
            held = self.held(original.holder).values()
            original.is_lost, original.company = True, sum(len(other.lines) for other in held)
            effects = self.end_in_vain(original)
        return effects

    def end_in_vain(self, lease: ModelLease) -> dict[int, str]:
        lines, count = set(lease.lines), lease.company
        past = self.lines[min(lines)].history
        attempts, losses, error, delay, is_over = past.attempts, past.losses, "", 0.0, False
        half = max(1, (count + 1) // 2)
        half = min(half, past.max_together or half)
        for at in lines:
            self.tell(lease.holder, at)
        if lease.original is not None and lease.is_lost:
            self.leases[lease.original].lost_copies += 1
        elif lease.original is not None:
            self.leases[lease.original].uncopied |= lines
        if not lease.is_lost:
            error = f"no answer within the lease of {lease.timeout:g} seconds"
            if count == 1:
                attempts += 1
                half = past.max_together or 0
                is_over = attempts >= self.max_attempts
            else:
                attempts = max(attempts, min(attempts + 1, self.max_attempts - 1))
                half = 1 if attempts >= self.max_attempts - 1 else half
        elif count == 1:
            losses += 1
            is_over = losses >= self.settings.max_losses
            delay = self.budgets.lost(past, 1, min(lines)).delay_seconds
            if is_over:
                attempts += 1
                error = f"its workers were lost {losses} times"
        errors = (*past.errors, error)[-10:] if error else past.errors
        history = History(attempts, losses, errors, half or None)
        return self.give_up(lease, lines, history, is_over=is_over, delay=delay)

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
            lease.due = self.now + lease.again

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
                self.max_attempts = self.ledger.budgets.max_attempts = budget
                self.budgets.max_attempts = budget

    @precondition(lambda self: self.base > 3 and self.now > 115)
    @rule()
    def restart(self) -> None:
        """Kill the server and start it again on what it had settled."""
        base = self.base
        ahead = [range(at, at + 1) for at in self.of_state("settled") if at >= base]
        self.ledger = Ledger(self.settings, base=base, is_resumed=True)
        tried = [Tried(range(at, at + 1), past) for at, past in sorted(self.remembered.items())]
        self.ledger.restore(ahead, tried)
        self.given_out_before = base + max(self.settings.window, WINDOW)
        self.frontier = max([base, *(at + 1 for at in self.remembered)])
        self.leases.clear()
        self.firsts.clear()
        self.wholes.clear()
        self.budgets.max_attempts = self.settings.max_attempts
        self.told.clear()
        self.timeout, self.max_attempts = 10.0, self.settings.max_attempts
        self.ended = self.paused = False
        self.last_number = 0
        for at, line in enumerate(self.lines):
            if line.state != "settled":
                state = "queued" if at < self.frontier else "fresh"
                self.lines[at] = Line(state, history=self.remembered.get(at, FRESH))

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
        assert set(seen) == {it.number for it in self.leases.values() if it.original is None}
        for number, lease in seen.items():
            assert {copy.number: set(copy.lines) for copy in lease.copies} == {
                copy.number: copy.lines for copy in self.copies_of(number)
            }
            copied = [at for copy in lease.copies for at in copy.lines]
            assert len(copied) == len(set(copied))
            assert set(copied) <= set(lease.lines)
            assert all(copy.holder != lease.holder for copy in lease.copies)
        for holder in range(1, 4):
            count = sum(len(lease.lines) for lease in self.held(holder).values())
            assert self.ledger.holds(HolderId(holder)) == count
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
        copied = sum(len(it.lines) for it in self.leases.values() if it.original is not None)
        assert ledger.hedged_count == copied
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
            assert self.ledger.history_of(at) == self.lines[at].history
            assert self.remembered.get(at, FRESH) == self.lines[at].history, "each change is told"
        for at in self.of_state("fresh"):
            assert self.ledger.history_of(at) == FRESH


LedgerMachine.TestCase.settings = settings(max_examples=300, stateful_step_count=50, deadline=None)
TestLedger = LedgerMachine.TestCase
