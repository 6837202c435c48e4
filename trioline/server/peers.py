"""Who is connected, and who may come back."""

from __future__ import annotations

import itertools
import secrets
from collections.abc import Iterator

import attrs

from trioline.config import MAX_BATCH
from trioline.ledger import HolderId, Ledger
from trioline.server.outbox import Slot
from trioline.wire.codec import Ref
from trioline.wire.messages import Get


@attrs.define(eq=False, kw_only=True)
class Peer:
    """One connection, as far as work is concerned."""

    address: str
    host: str = attrs.field(init=False)
    """Where it runs; a Unix socket is this machine."""
    holder: HolderId
    connected_at: float
    is_welcome: bool
    """It has shown the token, or there is none."""
    name: str | None = None
    """As said in hello."""
    label: str = attrs.field(init=False)
    """What it is called: its name, or its address."""
    session: str | None = None
    detach: bool = False
    """Its leases outlive the connection until their timeout."""
    leave_at: float | None = None
    """When it will be killed, as it said in hello, on this process's clock."""
    is_draining: bool = False
    """It was told to finish what it holds and go."""
    has_hung_up: bool = False
    """It will say nothing more, though it may still read: or it is dead."""
    is_leaving: bool = False
    """It said bye: the connection ends after what is owed."""
    done_count: int = 0
    failed_count: int = 0
    note: str | None = None
    waiter: Waiter | None = None
    """Its last request, where that is a ``get`` that waits."""

    @label.default
    def _address_as_label(self) -> str:
        return self.address

    @host.default
    def _host_of_address(self) -> str:
        host, colon, _ = self.address.rpartition(":")
        return host if colon else "this machine"

    @property
    def is_worker(self) -> bool:
        """Whether it has handed anything in."""
        return bool(self.done_count or self.failed_count)


@attrs.define(eq=False)
class Waiter:
    """A ``get`` that waits for work, if need be. Never changed; to freeze it takes long."""

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
    is_draining: bool = False


class Peers:
    """All connections and sessions.

    Sessions are kept while they are connected or hold leases, so there are no more of them than
    connections and leases.
    """

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._connected: dict[HolderId, Peer] = {}
        self._labels: dict[HolderId, str] = {}  # of all who may hold lines, gone or not
        self._alike: dict[str, set[HolderId]] = {}
        self._held_at_most: dict[str, int] = {}  # by label; what goes back is not subtracted
        self._sessions: dict[str, Session] = {}
        self._dropped: set[str] = set()  # sessions without a connection
        self._gone: set[HolderId] = set()  # nobody can take them up again
        self._holders = itertools.count(1)

    def __len__(self) -> int:
        return len(self._connected)

    def connected(self) -> tuple[Peer, ...]:
        """The connections there are."""
        return tuple(self._connected.values())

    def connect(self, address: str, now: float, *, is_welcome: bool) -> Peer:
        """Take a new connection in."""
        peer = Peer(
            address=address, holder=self._new_holder(), connected_at=now, is_welcome=is_welcome
        )
        self._seat(peer, peer.holder)
        return peer

    def introduce(self, peer: Peer, name: str) -> None:
        """Give a connection the name that it said."""
        peer.name = peer.label = name
        self._label(peer.holder, name)

    def disconnect(self, peer: Peer, now: float) -> None:
        """Let a connection go: its leases wait for it if it can come back, else they fall due."""
        self._connected.pop(peer.holder, None)
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
        peer.has_hung_up = True
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
            session.peer.session = None
            self._seat(session.peer, self._new_holder())
        self._ledger.release(now, peer.holder)
        self._gone.add(peer.holder)
        peer.session, session.peer = known, peer
        self._seat(peer, session.holder)
        peer.is_draining = session.is_draining
        self._ledger.reattach(now, session.holder)

    def leave(self, peer: Peer, now: float) -> None:
        """End a connection's session for good: what it holds goes back now."""
        self._ledger.release(now, peer.holder)
        self._sessions.pop(peer.session or "", None)
        self._gone.add(peer.holder)
        peer.session = None
        peer.is_leaving = True

    def _seat(self, peer: Peer, holder: HolderId) -> None:
        self._connected.pop(peer.holder, None)
        peer.holder = holder
        self._connected[holder] = peer
        self._label(holder, peer.label)

    def _label(self, holder: HolderId, label: str) -> None:
        self._forget_label(holder)
        self._labels[holder] = label
        self._alike.setdefault(label, set()).add(holder)
        self._held_at_most.pop(label, None)  # it may bring leases along

    def _forget_label(self, holder: HolderId) -> None:
        label = self._labels.pop(holder, "")
        alike = self._alike.get(label, set())
        alike.discard(holder)
        if not alike:
            self._alike.pop(label, None)
            self._held_at_most.pop(label, None)

    def forget_sessions(self) -> None:
        """Drop the sessions that have nothing to come back for."""
        over = [
            key for key in self._dropped if not self._ledger.lease_count(self._sessions[key].holder)
        ]
        self._dropped.difference_update(over)
        self._gone.update(self._sessions.pop(key).holder for key in over)
        for holder in [holder for holder in self._gone if not self._ledger.lease_count(holder)]:
            self._gone.discard(holder)
            self._forget_label(holder)
            self._ledger.forget(holder)

    def drain(self, label: str) -> list[Peer]:
        """Tell the workers of a name to go, also those that may come back with their session.

        Args:
            label: Their name; of one that said none, its address.

        Returns:
            Those that are connected.
        """
        holders = self._alike.get(label, set())
        for session in self._sessions.values():
            session.is_draining = session.is_draining or session.holder in holders
        peers = (self._connected.get(holder) for holder in holders)
        told = [peer for peer in peers if peer is not None and not peer.is_leaving]
        for peer in told:
            peer.is_draining = True
        return told

    def room(self, peer: Peer, max_held: int) -> int:
        """How many lines more a peer may hold.

        All of its name share ``max_held``, also those whose connection is gone and leases are not.
        """
        held = self._held_at_most.get(peer.label)
        # Counting lines takes a look at each lease: mostly it need not be done.
        if held is not None and held <= max_held - MAX_BATCH:
            return MAX_BATCH
        held = sum(map(self._ledger.holds, self._alike.get(peer.label, ())))
        self._held_at_most[peer.label] = held
        return min(MAX_BATCH, max(0, max_held - held))

    def lent(self, peer: Peer, count: int) -> None:
        """Note that a peer was given lines."""
        self._held_at_most[peer.label] = self._held_at_most.get(peer.label, 0) + count

    def is_alike(self, peer: Peer, holder: HolderId) -> bool:
        """Whether a holder has a peer's name."""
        return self._labels.get(holder) == peer.label

    def workers(self) -> Iterator[Peer]:
        """Those connections that have handed something in and are not told to go."""
        return (
            peer for peer in self._connected.values() if peer.is_worker and not peer.is_draining
        )

    def labels(self) -> set[str]:
        """The workers that are there."""
        return {peer.label for peer in self._connected.values() if peer.is_worker}

    def hosts(self) -> set[str]:
        """Where they run."""
        return {peer.host for peer in self._connected.values() if peer.is_worker}

    def holding(self, holder: HolderId) -> Peer | None:
        """Find the connection that a holder is at."""
        return self._connected.get(holder)

    def names(self) -> dict[HolderId, str]:
        """Who each holder is, for people."""
        return {peer.holder: peer.label for peer in self._connected.values()}

    def _new_holder(self) -> HolderId:
        return HolderId(next(self._holders))
