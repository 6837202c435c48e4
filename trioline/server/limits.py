"""Who may have how much now, and who should rather wait, give something back, or go home."""

from __future__ import annotations

import attrs
import trio

from trioline.config import MAX_BATCH
from trioline.ledger import HolderId, Ledger
from trioline.server.health import Health
from trioline.server.peers import Peer, Peers

FITTING_SHARE = 0.9
"""Near its deadline a worker gets what so many of the recent leases would have answered in time."""


@attrs.frozen
class Leave:
    """It should finish what it holds and go."""

    reason: str
    """``drain`` or ``deadline``."""


@attrs.frozen
class Aside:
    """It fails far more than the others: it gets nothing for a while."""

    seconds: float


@attrs.frozen
class Full:
    """Its name holds as many lines as one may."""

    max_held: int


def is_anybody_free(peers: Peers, health: Health, now: float) -> bool:
    """Whether a worker is there that may have work: else those who are set aside have to do it."""
    return any(not health.aside_seconds(peer, now) for peer in peers.workers())


class Limits:
    """What stands between a peer and what it asks for.

    Args:
        ledger: Knows how long lines take.
        peers: Know who holds how much.
        health: Knows who is set aside.
        max_held: Lines that one worker name may hold.
    """

    def __init__(self, ledger: Ledger, peers: Peers, health: Health, max_held: int) -> None:
        self._ledger = ledger
        self._peers = peers
        self._health = health
        self._max_held = max_held

    def of(self, peer: Peer, now: float) -> int | Leave | Aside | Full:
        """How many lines a peer may have in one lease, at least 1, or why it may not."""
        if peer.is_draining:
            return Leave("drain")
        fitting = MAX_BATCH if peer.leave_at is None else self._fitting(peer.leave_at - now)
        if fitting <= 0:
            return Leave("deadline")
        if self._health.has_outcasts:
            aside = self._health.aside_seconds(peer, now)
            if aside and is_anybody_free(self._peers, self._health, now):
                return Aside(aside)
            if self._health.is_on_trial(peer):
                fitting = 1
        room = self._peers.room(peer, self._max_held)
        return min(room, fitting) if room else Full(self._max_held)

    def lent(self, peer: Peer, count: int) -> None:
        """Note that a peer was given lines."""
        self._peers.lent(peer, count)

    def is_alike(self, peer: Peer, holder: HolderId) -> bool:
        """Whether a holder has a peer's name."""
        return self._peers.is_alike(peer, holder)

    def _fitting(self, left: float) -> int:
        """How many lines that are begun now a peer can answer before it is killed."""
        # What it holds may lie side by side with what it gets: each line only has to end in time.
        fitting = self._ledger.pace.fitting_count(left, FITTING_SHARE) if left > 0 else 0
        return MAX_BATCH if fitting is None else min(fitting, MAX_BATCH)

    def seconds_left(self, peer: Peer) -> float | None:
        """Until a peer gets nothing more before its deadline; None: it has none."""
        if peer.leave_at is None:
            return None
        needed = self._ledger.pace.needed_seconds(1, FITTING_SHARE) or 0.0
        return max(0.0, peer.leave_at - needed - trio.current_time())
