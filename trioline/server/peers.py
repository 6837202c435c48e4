"""Who is connected, and who may come back."""

from __future__ import annotations

import itertools
import secrets

import attrs

from trioline.ledger import HolderId, Ledger
from trioline.server.outbox import Slot
from trioline.wire.codec import Ref
from trioline.wire.messages import Get


@attrs.define(eq=False, kw_only=True)
class Peer:
    """One connection, as far as work is concerned."""

    address: str
    holder: HolderId
    connected_at: float
    is_welcome: bool
    """It has shown the token, or there is none."""
    name: str | None = None
    """As said in hello."""
    session: str | None = None
    detach: bool = False
    """Its leases outlive the connection until their timeout."""
    is_leaving: bool = False
    """It said bye: the connection ends after what is owed."""
    done_count: int = 0
    failed_count: int = 0
    note: str | None = None
    waiter: Waiter | None = None
    """Its last request, where that is a ``get`` that waits."""


@attrs.frozen(eq=False)
class Waiter:
    """A ``get`` that waits for work."""

    peer: Peer
    request: Get
    ref: Ref
    slot: Slot


@attrs.define(eq=False)
class Session:
    """What a later connection may take up again."""

    holder: HolderId
    peer: Peer | None
    """None while its connection is gone."""


class Peers:
    """All connections and sessions.

    Sessions are kept while they are connected or hold leases, so there are no more of them than
    connections and leases.
    """

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._connected: set[Peer] = set()
        self._sessions: dict[str, Session] = {}
        self._dropped: set[str] = set()  # sessions without a connection
        self._gone: set[HolderId] = set()  # nobody can take them up again
        self._holders = itertools.count(1)

    def __len__(self) -> int:
        return len(self._connected)

    def connected(self) -> tuple[Peer, ...]:
        """The connections there are."""
        return tuple(self._connected)

    def connect(self, address: str, now: float, *, is_welcome: bool) -> Peer:
        """Take a new connection in."""
        peer = Peer(
            address=address, holder=self._new_holder(), connected_at=now, is_welcome=is_welcome
        )
        self._connected.add(peer)
        return peer

    def disconnect(self, peer: Peer, now: float) -> None:
        """Let a connection go: its leases wait for it if it can come back, else they fall due."""
        self._connected.discard(peer)
        session = self._sessions.get(peer.session or "")
        if session is None:
            self._ledger.lose(now, peer.holder, 0)
            self._gone.add(peer.holder)
            return
        session.peer = None
        self._dropped.add(peer.session or "")
        if not peer.detach:
            self._ledger.lose(now, peer.holder, self._ledger.grace_seconds)

    def hang_up(self, peer: Peer, now: float) -> None:
        """Note that a connection will say nothing more, though it may still be owed replies.

        It cannot hand in what it holds, so its leases are as good as dropped: it may be dead.
        """
        if not peer.detach:
            self._ledger.lose(now, peer.holder, self.grace_seconds(peer))

    def grace_seconds(self, peer: Peer) -> float:
        """How long a connection's leases wait for it to come back; it needs a session for that."""
        return 0.0 if peer.session is None else self._ledger.grace_seconds

    def connected_with(self, known: str | None) -> Peer | None:
        """Find the connection that a session is at."""
        session = self._sessions.get(known or "")
        return None if session is None else session.peer

    def attach(self, peer: Peer, known: str | None, now: float) -> None:
        """Give a connection the session it knows of, where that is still there, else a new one."""
        session = self._sessions.get(known or "")
        if session is None:
            peer.session = secrets.token_urlsafe(12)
            self._sessions[peer.session] = Session(peer.holder, peer)
            return
        self._dropped.discard(known or "")
        if session.peer is not None:  # it died without our hearing of it: it holds nothing now
            session.peer.holder, session.peer.session = self._new_holder(), None
        self._ledger.release(now, peer.holder)
        self._gone.add(peer.holder)
        peer.session, peer.holder, session.peer = known, session.holder, peer
        self._ledger.reattach(now, session.holder)

    def leave(self, peer: Peer, now: float) -> None:
        """End a connection's session for good: what it holds goes back now."""
        self._ledger.release(now, peer.holder)
        self._sessions.pop(peer.session or "", None)
        self._gone.add(peer.holder)
        peer.session = None
        peer.is_leaving = True

    def forget_sessions(self) -> None:
        """Drop the sessions that have nothing to come back for."""
        over = [
            key for key in self._dropped if not self._ledger.lease_count(self._sessions[key].holder)
        ]
        self._dropped.difference_update(over)
        self._gone.update(self._sessions.pop(key).holder for key in over)
        for holder in [holder for holder in self._gone if not self._ledger.lease_count(holder)]:
            self._gone.discard(holder)
            self._ledger.forget(holder)

    def names(self) -> dict[HolderId, str]:
        """Who each holder is, for people."""
        return {peer.holder: peer.name or peer.address for peer in self._connected}

    def _new_holder(self) -> HolderId:
        return HolderId(next(self._holders))
