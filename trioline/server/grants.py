"""Gives lines out: at once where there are some, to those who wait as soon as there are."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from typing import assert_never

import trio

from trioline.config import (
    MAX_BATCH,
    MAX_HELD_LEASES,
    MAX_LEASE_BYTES,
    MAX_WAIT_SECONDS,
)
from trioline.deadlines import Deadlines
from trioline.errors import ErrorCode, RemoteProtocolError
from trioline.ledger import HolderId, Lease, Ledger, Offer
from trioline.ledger.breaker import Breaker
from trioline.server.limits import Aside, Full, Leave, Limits
from trioline.server.outbox import Slot
from trioline.server.peers import Peer, Waiter
from trioline.server.writer import Batch, Writer
from trioline.storage.job import Job
from trioline.storage.source import InputLineTooLong, Lines
from trioline.wire.codec import Ref, encode_refusal, encode_reply, work_items
from trioline.wire.messages import Complete, Form, Get, Retry, Work, WorkLines

STAGE = "main"
"""The only stage there is."""
LAST_COMMIT_SECONDS = 5.0
"""How long a ``get`` that does not wait is held where every line is settled but not yet safe."""
MAX_COPIES = 100
"""Second copies given out at a time to those who wait."""
RETRY_IN_SECONDS = 1.0
"""The hint in ``retry``; who asks with ``wait`` does not need it."""


class Grants:
    """The giving side of the ledger.

    Args:
        job: For the input's lines.
        ledger: Decides which.
        writer: Takes the records of lines that cannot be given out at all.
        limits: Say who may have how much.
        breaker: Says whether anything is given out at all.
        notice: Called with an instant at which something falls due.
        changed: Where the server waits for a change, once this is stopped.
    """

    def __init__(
        self,
        *,
        job: Job,
        ledger: Ledger,
        writer: Writer,
        limits: Limits,
        breaker: Breaker,
        notice: Callable[[float], None],
        changed: trio.lowlevel.ParkingLot,
    ) -> None:
        self._job = job
        self._ledger = ledger
        self._writer = writer
        self._limits = limits
        self._breaker = breaker
        self._notice = notice
        self._changed = changed
        self._waiters: Deadlines[Waiter] = Deadlines()
        self._parted: Deadlines[Waiter] = Deadlines()  # said all they had to say: served last
        self.is_stopped = False
        """The server is leaving: nothing is given out any more."""
        self.is_complete = False
        """Every line's result is written: workers may go home."""

    def next_due_at(self) -> float | None:
        """When the next wait is over; None where nobody waits."""
        instants = (self._waiters.next_due_at(), self._parted.next_due_at())
        return min((instant for instant in instants if instant is not None), default=None)

    def get(self, peer: Peer, request: Get, ref: Ref, slot: Slot) -> None:
        """Fill the slot now, or when there is work, or when the wait is over.

        Raises:
            RemoteProtocolError: The request is refused.
        """
        if request.stage not in (None, STAGE):
            raise RemoteProtocolError(
                ErrorCode.BAD_REQUEST, f"There is no stage {request.stage!r}; hello names them."
            )
        if self._ledger.lease_count(peer.holder) >= MAX_HELD_LEASES:
            raise RemoteProtocolError(
                ErrorCode.TOO_MANY,
                f"This connection holds {MAX_HELD_LEASES} leases; answer or release some first.",
            )
        waiter = Waiter(peer, request, ref, slot)
        if self.is_complete:
            slot.fill(encode_reply(Complete(), ref))
            return
        # Who waits already comes first: what is there now is nothing for them. Copies are for them.
        reply = self._reply(waiter, with_copies=not self._waiters.started)
        if reply is not None:
            slot.fill(reply)
        elif self._ledger.is_settled:  # only the last commit is missing: complete in a moment
            self._wait(waiter, max(LAST_COMMIT_SECONDS, min(request.wait, MAX_WAIT_SECONDS)))
        elif self.is_stopped or request.wait == 0:
            slot.fill(_retry(waiter))
        else:
            left = self._limits.seconds_left(peer)
            longest = MAX_WAIT_SECONDS if left is None else min(left, MAX_WAIT_SECONDS)
            self._wait(waiter, min(request.wait, longest))

    def _wait(self, waiter: Waiter, seconds: float) -> None:
        now = trio.current_time()
        waiter.peer.waiter = waiter
        self._waiters.start(waiter, seconds, now)
        self._notice(now + seconds)

    def step_back(self, peer: Peer) -> None:
        """Let all others who wait be served before a peer that may be gone."""
        if peer.waiter is not None:
            now = trio.current_time()
            self._parted.start(peer.waiter, self._waiters.due_at(peer.waiter) - now, now)
            self._waiters.stop(peer.waiter)

    def end_wait(self, peer: Peer) -> None:
        """Answer a peer's waiting ``get``, if it has one, with ``retry``."""
        if peer.waiter is not None:
            self._answer(peer.waiter, self._last_word(peer.waiter))

    def end_due_waits(self, now: float) -> None:
        """Answer those whose wait is over."""
        for waiter in (*self._waiters.due(now), *self._parted.due(now)):
            self._answer(waiter, self._last_word(waiter))

    def stop(self) -> None:
        """Give nothing out any more, and tell those who wait."""
        self.is_stopped = True
        for waiter in (*self._waiters.started, *self._parted.started):
            self._answer(waiter, _retry(waiter))

    def complete(self) -> None:
        """Tell those who wait, and all who will ask, that the job is over."""
        self.is_complete = True
        for waiter in (*self._waiters.started, *self._parted.started):
            self._answer(waiter, encode_reply(Complete(), waiter.ref))

    def feed(self) -> None:
        """Give work to those who wait, as far as there is some; to be called after any change."""
        if self.is_stopped:
            self._changed.unpark_all()
        if not (self._waiters.started or self._parted.started):
            return
        while (waiter := self._waiters.first() or self._parted.first()) is not None:
            reply = self._reply(waiter, with_copies=False)
            if reply is None:
                break
            self._answer(waiter, reply)
        else:
            return
        # Mostly there is nothing for anybody. But lines on probation are not for everybody.
        now = trio.current_time()
        is_closed = self.is_stopped or self._writer.is_disk_full or self._breaker.reason is not None
        if not is_closed and self._ledger.offer(now, 1) is not None:
            for waiter in (*self._waiters.started, *self._parted.started):
                reply = self._reply(waiter, with_copies=False)
                if reply is not None:
                    self._answer(waiter, reply)

    def feed_copies(self) -> None:
        """Give those who still wait second copies of what is late; to be called now and then."""
        fruitless = set[str]()  # names; what two of them cannot get is for nobody
        for waiter in list(itertools.islice(self._waiters.started, MAX_COPIES)):
            label = waiter.peer.label
            if label in fruitless:
                continue
            reply = self._reply(waiter, with_copies=True)
            if reply is not None:
                self._answer(waiter, reply)
                continue
            fruitless.add(label)
            if len(fruitless) > 1:
                return

    def _answer(self, waiter: Waiter, reply: bytes) -> None:
        self._waiters.stop(waiter)
        self._parted.stop(waiter)
        waiter.peer.waiter = None
        waiter.slot.fill(reply)

    def _last_word(self, waiter: Waiter) -> bytes:
        """What a ``get`` is told that has waited long enough."""
        limit = self._limits.of(waiter.peer, trio.current_time())
        return _retry(waiter) if isinstance(limit, int) else _word(limit, waiter.ref)

    def _reply(self, waiter: Waiter, *, with_copies: bool) -> bytes | None:
        """Answer a ``get`` with lines, or with why there are none for it; None: it has to wait."""
        now = trio.current_time()
        limit = self._limits.of(waiter.peer, now)
        if not isinstance(limit, int):
            return _word(limit, waiter.ref)
        if self.is_stopped or self._writer.is_disk_full:
            return None
        count = min(waiter.request.max, MAX_BATCH, limit)
        holder = waiter.peer.holder
        if self._breaker.reason is not None:
            if not self._breaker.is_canary_due(now):
                return None
            found = self.find_lines(now, holder, 1, fresh_first=True)
        else:
            found = self.find_lines(now, holder, count)
            if found is None and with_copies:
                found = self._find_copies(now, waiter.peer, count)
        return None if found is None else self._lend(now, waiter, *found)

    def _lend(self, now: float, waiter: Waiter, offer: Offer, lines: Lines) -> bytes:
        if waiter.request.form is Form.LINES and self._job.numbers is not None:
            lines = lines.first(self._job.numbers.run_at(offer.first, lines.count))
        lease = self._ledger.lease(now, waiter.peer.holder, offer, lines.count)
        lease.is_blameless = waiter.peer.has_hung_up
        self._limits.lent(waiter.peer, lease.count)
        if self._breaker.reason is not None:
            self._breaker.gave_canary(now, offer.first)
        self._notice(now + lease.timeout_seconds)
        if waiter.request.form is Form.LINES:
            first = self._job.number_of(offer.first)
            return encode_reply(_work_lines(lease, first, lines), waiter.ref, lines.data)
        numbers = self._numbers(range(offer.first, offer.first + lease.count))
        work = _work(lease, numbers, lines, text=self._job.settings.text)
        return encode_reply(work, waiter.ref)

    def _numbers(self, lines: range) -> Iterable[int]:
        """The lines' numbers on the wire; mostly they are the lines, and nothing is to be done."""
        return lines if self._job.numbers is None else map(self._job.number_of, lines)

    def _find_copies(self, now: float, peer: Peer, max_count: int) -> tuple[Offer, Lines] | None:
        offer = self._ledger.offer_copy(now, peer.holder, max_count)
        # Another connection of the same worker may well hang, too.
        if offer is None or offer.original is None:
            return None
        if self._limits.is_alike(peer, offer.original.holder):
            return None
        return offer, self._job.source.read(offer.first, offer.count, MAX_LEASE_BYTES)

    def find_lines(
        self, now: float, holder: HolderId, max_count: int, *, fresh_first: bool = False
    ) -> tuple[Offer, Lines] | None:
        """Find lines to give out, and learn on the way where the input ends.

        Lines too long to be sent are rejected, not passed over in silence.
        """
        source, ledger = self._job.source, self._ledger
        while (offer := ledger.offer(now, max_count, holder, fresh_first=fresh_first)) is not None:
            try:
                lines = source.read(offer.first, offer.count, MAX_LEASE_BYTES)
            except InputLineTooLong as too_long:
                rejected = ledger.reject_unreadable(offer.first, str(too_long))
                self._writer.submit(Batch((), 0, (rejected,)))
                return None  # the commit will call for more
            if ledger.total is None and source.at_end:
                ledger.end_at(source.known_count)
            if lines.count:
                return offer, lines
        return None


def _word(limit: Leave | Aside | Full, ref: Ref) -> bytes:
    match limit:
        case Leave(reason):
            return encode_reply(Complete(reason=reason), ref)
        case Aside(seconds):
            return encode_reply(Retry(retry_in=round(seconds, 3)), ref)
        case Full(max_held):
            refusal = RemoteProtocolError(
                ErrorCode.TOO_MANY,
                f"This worker holds {max_held} lines; answer or release some first.",
            )
            return encode_refusal(refusal, ref)
        case _:
            assert_never(limit)


def _retry(waiter: Waiter) -> bytes:
    return encode_reply(Retry(retry_in=RETRY_IN_SECONDS), waiter.ref)


def _work_lines(lease: Lease, first: int, lines: Lines) -> WorkLines:
    return WorkLines(
        lease=lease.number,
        lease_timeout=lease.timeout_seconds,
        first=first,
        count=lease.count,
        bytes=len(lines.data),
        attempt=lease.attempt,
    )


def _work(lease: Lease, numbers: Iterable[int], lines: Lines, *, text: bool) -> Work:
    items = work_items(numbers, lines.split(), lease.attempt, text=text)
    return Work(lease=lease.number, lease_timeout=lease.timeout_seconds, items=items)
