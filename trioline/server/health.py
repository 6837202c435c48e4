"""How the work goes: when too much fails, and who fails far more than the others."""

from __future__ import annotations

import logging
from collections.abc import Iterable

import trio

from trioline.config import Halt
from trioline.ledger import Expired
from trioline.ledger.breaker import CANARY_SECONDS, Breaker
from trioline.ledger.standings import Standings
from trioline.server.peers import Peer, Peers

log = logging.getLogger("trioline.server")


class Health:
    """Told of every outcome; says who may have work.

    Args:
        halt: When the breaker opens; None: never.
        peers: Who is there.
    """

    def __init__(self, halt: Halt | None, peers: Peers) -> None:
        self.breaker = Breaker(halt)
        self._peers = peers
        self._workers = Standings()
        self._hosts = Standings()

    def succeeded(self, peer: Peer, runs: Iterable[range], count: int) -> None:
        """Note lines that have their result, ``count`` of them: one or more."""
        self._workers.succeeded(peer.label, count)
        self._hosts.succeeded(peer.host, count)
        if self.breaker.succeeded(runs, count):
            log.warning("A canary line succeeded: the job goes on.")

    def failed(self, peer: Peer, line: int, error: str, *, attempt: int, is_final: bool) -> None:
        """Note a failed attempt.

        What is final, the worker's word on that line alone, says nothing of anybody. Nor does what
        a worker that is set aside still hands in speak of the others' work.
        """
        if is_final:
            return
        now = trio.current_time()
        self._judge(peer, error, now)
        if not self.aside_seconds(peer, now) and self.breaker.failed(
            now,
            line,
            peer.label,
            error,
            attempt=attempt,
            count_workers=lambda: len(self._peers.labels()),
        ):
            log.error(
                "Leasing pauses: %s. One line is tried each %g seconds, and the job goes on by"
                " itself when one succeeds; trioline set ADDRESS paused=false resumes it now.",
                self.breaker.reason,
                CANARY_SECONDS,
            )

    def _judge(self, peer: Peer, error: str, now: float) -> None:
        """Set a worker or a host aside that fails far more than the others."""
        for standings, key, who, present in (
            (self._workers, peer.label, "Worker", self._peers.labels),
            (self._hosts, peer.host, "Host", self._peers.hosts),
        ):
            seconds = standings.failed(key, now, present)
            if seconds is not None:
                log.warning(
                    "%s %s is set aside for %g seconds: it fails far more than the others (%s).",
                    who,
                    key,
                    seconds,
                    error,
                )

    def expired(self, peer: Peer, expired: Expired) -> None:
        """Note a lease that was taken back: where it ran out, its holder counts as having failed.

        A lost connection says nothing against anybody: preemption is daily life.
        """
        if expired.effects and not expired.lease.is_lost:
            first, history = expired.lines[0].start, expired.effects[0].history
            self.failed(peer, first, history.errors[-1], attempt=history.attempts, is_final=False)

    @property
    def has_outcasts(self) -> bool:
        """Whether anybody is set aside or on trial."""
        return bool(self._workers.on_trial or self._hosts.on_trial)

    def aside_seconds(self, peer: Peer, now: float) -> float:
        """For how long a peer gets nothing; 0: it may have work."""
        return max(
            self._workers.aside_seconds(peer.label, now), self._hosts.aside_seconds(peer.host, now)
        )

    def is_on_trial(self, peer: Peer) -> bool:
        """Whether it gets single lines until one succeeds."""
        return peer.label in self._workers.on_trial or peer.host in self._hosts.on_trial

    def resume(self) -> None:
        """Somebody says that the job should go on."""
        if self.breaker.reason is not None:
            self.breaker.close()
            log.warning("Leasing goes on: somebody said so.")
