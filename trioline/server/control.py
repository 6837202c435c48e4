"""What a peer says of itself, and what is said of the whole job: hello, set, drain."""

from __future__ import annotations

import secrets
import time

import trio

from trioline._version import __version__
from trioline.config import (
    HEDGE,
    MAX_BATCH,
    MAX_NAME_CHARS,
    PROTOCOL_VERSION,
    ServerSettings,
)
from trioline.errors import ErrorCode, RemoteProtocolError
from trioline.ledger import Ledger
from trioline.server.grants import STAGE, Grants
from trioline.server.health import Health
from trioline.server.peers import Peer, Peers
from trioline.storage.job import Job
from trioline.wire.messages import Drain, DrainReply, Hello, HelloReply, Set, SetReply


class Control:
    """Carries these out.

    Args:
        job: For its id and limits.
        ledger: What ``set`` changes.
        settings: For the token.
        grants: Told what that changes for those who wait.
        peers: Who is connected.
        health: Told that somebody says the job should go on.
    """

    def __init__(
        self,
        *,
        job: Job,
        ledger: Ledger,
        settings: ServerSettings,
        grants: Grants,
        peers: Peers,
        health: Health,
    ) -> None:
        self._job = job
        self._ledger = ledger
        self._settings = settings
        self._grants = grants
        self._peers = peers
        self._health = health

    def hello(self, peer: Peer, request: Hello) -> HelloReply:
        """Let a peer in, under its name and with the session it knows of.

        Raises:
            RemoteProtocolError: ``VERSION``, ``AUTH_FAILED``, or ``BAD_REQUEST`` for a second one.
        """
        if request.protocol != PROTOCOL_VERSION:
            raise RemoteProtocolError(
                ErrorCode.VERSION,
                f"This server speaks protocol {PROTOCOL_VERSION}, not {request.protocol}.",
            )
        token = self._settings.token
        if token is not None and not secrets.compare_digest(
            (request.token or "").encode(), token.encode()
        ):
            raise RemoteProtocolError(
                ErrorCode.AUTH_FAILED, "That is not this server's token: see its --token-file."
            )
        if peer.name is not None:
            raise RemoteProtocolError(ErrorCode.BAD_REQUEST, "hello was said already.")
        peer.is_welcome = True
        self._peers.introduce(peer, printable(request.worker or peer.address)[:MAX_NAME_CHARS])
        peer.detach = request.detach
        if request.deadline is not None:
            # An instant of the wall clock: what is left of it is all that counts from here on.
            peer.leave_at = trio.current_time() + request.deadline - time.time()
        former = self._peers.connected_with(request.session)
        if former is not None:
            self._grants.end_wait(former)  # nobody reads there any more
        self._peers.attach(peer, request.session, trio.current_time())
        self._grants.feed()
        return HelloReply(
            protocol=PROTOCOL_VERSION,
            server=f"trioline/{__version__}",
            session=peer.session or "",
            job=self._job.public_id,
            lease_timeout=self._ledger.lease_timeout_seconds,
            max_batch=MAX_BATCH,
            max_line=self._job.settings.max_line_bytes,
            stages=[STAGE],
        )

    def set(self, request: Set) -> SetReply:
        """Change settings of the running job."""
        ledger = self._ledger
        if request.lease_timeout is not None:
            ledger.lease_timeout_seconds = request.lease_timeout
        if request.max_attempts is not None:
            ledger.budgets.max_attempts = request.max_attempts
        if request.hedge is not None:
            ledger.hedging.factor = _factor(request.hedge)
        if request.paused is not None:
            ledger.paused = request.paused
            if not request.paused:
                self._health.resume()
        self._grants.feed()
        return SetReply(
            lease_timeout=ledger.lease_timeout_seconds,
            max_attempts=ledger.budgets.max_attempts,
            paused=ledger.paused,
            hedge=ledger.hedging.factor,
        )

    def drain(self, request: Drain) -> DrainReply:
        """Tell every connection of a worker to finish what it holds and go home."""
        told = self._peers.drain(request.worker)
        for peer in told:
            self._grants.end_wait(peer)
        return DrainReply(connections=len(told))


def _factor(hedge: float | bool) -> float:
    if isinstance(hedge, bool):
        return HEDGE if hedge else 0.0
    return hedge


def printable(text: str) -> str:
    """What a terminal may be shown: a peer's escape sequences are none of its business."""
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)
