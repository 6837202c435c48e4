"""Makes the frozen snapshot that ``status`` and the progress displays show."""

from __future__ import annotations

import itertools
from collections import deque

import trio

from trioline.config import MAX_STATUS_WORKERS
from trioline.ledger import Ledger
from trioline.server.grants import Grants
from trioline.server.health import Health
from trioline.server.limits import is_anybody_free
from trioline.server.peers import Peer, Peers
from trioline.server.writer import Writer
from trioline.snapshot import Head, Snapshot, WorkerRow
from trioline.storage.job import Job

SAMPLE_SECONDS = 1.0
RATE_SAMPLES = 60
"""The rate is over the last minute."""


class Statistics:
    """Reads everybody's state, changes nobody's."""

    def __init__(
        self,
        *,
        job: Job,
        ledger: Ledger,
        writer: Writer,
        grants: Grants,
        peers: Peers,
        health: Health,
    ) -> None:
        self._job = job
        self._ledger = ledger
        self._writer = writer
        self._grants = grants
        self._peers = peers
        self._health = health
        self._started_at = trio.current_time()
        self._samples: deque[tuple[float, int]] = deque(maxlen=RATE_SAMPLES)
        self.sample(self._started_at)

    def sample(self, now: float) -> None:
        """Note how far the job is, once a second at the most."""
        if self._samples and now - self._samples[-1][0] < SAMPLE_SECONDS:
            return
        self._samples.append((now, self._settled_count()))

    def snapshot(self) -> Snapshot:
        """See the job as it is now."""
        job, ledger = self._job, self._ledger
        now = trio.current_time()
        rate = self._rate(now)
        progress = self._progress()
        return Snapshot(
            job=job.public_id,
            state=self._state(),
            total=ledger.total,
            written=job.written_count,
            ahead=self._settled_count() - job.written_count,
            leased=ledger.leased_count,
            queued=ledger.queued_count,
            rejected=job.rejected_count + job.rejected_ahead_count,
            rate=round(rate, 3),
            eta=self._eta(rate, progress),
            progress=progress,
            elapsed=round(now - self._started_at, 3),
            head=self._head(now),
            workers=self._workers(now),
            connections=len(self._peers),
            lease_timeout=ledger.lease_timeout_seconds,
            max_attempts=ledger.budgets.max_attempts,
            paused=ledger.paused,
            hedge=ledger.hedging.factor,
            hedged=ledger.hedged_count,
            halt=self._health.breaker.reason,
        )

    def _settled_count(self) -> int:
        return self._ledger.base + self._ledger.ahead_count

    def _state(self) -> str:
        if self._grants.is_complete:
            return "complete"
        if self._grants.is_stopped:
            return "draining"
        if self._writer.is_disk_full:
            return "disk-full"
        if self._ledger.paused:
            return "paused"
        return "running" if self._health.breaker.reason is None else "halted"

    def _rate(self, now: float) -> float:
        then, count = self._samples[0]
        return (self._settled_count() - count) / (now - then) if now > then else 0.0

    def _progress(self) -> float:
        source = self._job.source
        if source.size_bytes == 0:
            return 1.0
        return round(source.offset_of(self._job.written_count) / source.size_bytes, 6)

    def _eta(self, rate: float, progress: float) -> float | None:
        settled = self._settled_count()
        if self._ledger.total is not None:
            left = float(self._ledger.total - settled)
        elif progress > 0:  # suppose that the rest of the lines are as long as those so far
            left = max(0.0, self._job.written_count / progress - settled)
        else:
            return None
        if left == 0:
            return 0.0
        return round(left / rate, 1) if rate > 0 else None

    def _head(self, now: float) -> Head | None:
        ledger = self._ledger
        if ledger.is_settled or ledger.base >= ledger.frontier:
            return None
        lease = ledger.lease_of(ledger.base)
        return Head(
            id=self._job.number_of(ledger.base),
            state="queued" if lease is None else "leased",
            attempt=ledger.history_of(ledger.base).attempts + 1,
            worker=None if lease is None else self._peers.names().get(lease.holder),
            held_seconds=None if lease is None else round(now - lease.granted_at, 3),
        )

    def _workers(self, now: float) -> tuple[WorkerRow, ...]:
        workers = (peer for peer in self._peers.connected() if self._is_worker(peer))
        has_others = is_anybody_free(self._peers, self._health, now)
        rows = [
            WorkerRow(
                name=peer.label,
                leased=self._ledger.holds(peer.holder),
                done=peer.done_count,
                failed=peer.failed_count,
                connected_seconds=round(now - peer.connected_at, 3),
                note=peer.note,
                draining=peer.is_draining,
                aside_seconds=(
                    round(self._health.aside_seconds(peer, now), 3) or None if has_others else None
                ),
                deadline_seconds=(
                    None if peer.leave_at is None else round(max(0.0, peer.leave_at - now), 3)
                ),
            )
            for peer in itertools.islice(workers, MAX_STATUS_WORKERS)
        ]
        return tuple(sorted(rows, key=lambda row: (-row.leased, -row.done, row.name)))

    def _is_worker(self, peer: Peer) -> bool:
        has_name = peer.name not in (None, peer.address)  # not one who only asks for the status
        return bool(
            has_name or peer.done_count or peer.failed_count or self._ledger.holds(peer.holder)
        )
