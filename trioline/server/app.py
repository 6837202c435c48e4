"""The task tree: what starts when, and what stops in which order.

::

    outer nursery          writer, sweeper
     └─ connections        a task each; another one while a reply waits for its peer to read on
         └─ listeners      accept

Stopping walks it inside out: no more connections, no more leases, wait for what is being worked
on, let the last replies go, commit, end.
"""

from __future__ import annotations

import enum
import logging
from collections.abc import Sequence

import trio

from trioline.config import SERVER_STALL_SECONDS, Address, LeaseSettings, ServerSettings
from trioline.errors import ErrorCode, RemoteProtocolError, StorageError
from trioline.ledger import Ledger, Rejected, Tried
from trioline.server.connection import Connection
from trioline.server.control import Control
from trioline.server.dispatch import Dispatch
from trioline.server.grants import Grants
from trioline.server.health import Health
from trioline.server.histories import recall, remember
from trioline.server.limits import Limits
from trioline.server.listeners import (
    address_of,
    open_listeners,
    peer_name,
    watch_for_silence,
)
from trioline.server.peers import Peer, Peers
from trioline.server.statistics import Statistics
from trioline.server.sweeper import Sweeper
from trioline.server.writer import Batch, Writer
from trioline.snapshot import Snapshot
from trioline.storage.job import Job
from trioline.wire.codec import encode_refusal

log = logging.getLogger("trioline.server")

MIN_STALL_SECONDS = 0.1
"""Sweeps of a busy server are that late."""
LAST_REPLIES_SECONDS = 2.0
"""At the end, for replies on their way to peers that read them."""


class Outcome(enum.Enum):
    """How a server's run ended."""

    COMPLETE = "complete"
    STOPPED = "stopped"
    """Before the end: start it again and it goes on."""


class Server:
    """One job, served. Made and run inside one trio run.

    Args:
        job: Opened; the server does not close it.
        leases: Budgets and times.
        settings: Where to listen and how to end.
    """

    def __init__(self, job: Job, leases: LeaseSettings, settings: ServerSettings) -> None:
        self._job = job
        self._settings = settings
        self._ledger = Ledger(leases, base=job.written_count, is_resumed=job.is_resumed)
        tried = (recall(lines, data) for lines, data in job.tried())
        self._ledger.restore(job.ahead(), tried)
        self._changed = trio.lowlevel.ParkingLot()
        self._sweeper = Sweeper()
        self._writer = Writer(job, on_commit=self._after_commit, is_over=self._is_over)
        self._peers = Peers(self._ledger)
        self._health = Health(leases.halt, self._peers)
        self._grants = Grants(
            job=job,
            ledger=self._ledger,
            writer=self._writer,
            limits=Limits(self._ledger, self._peers, self._health, leases.max_held),
            breaker=self._health.breaker,
            notice=self._sweeper.notice,
            changed=self._changed,
        )
        self._statistics = Statistics(
            job=job,
            ledger=self._ledger,
            writer=self._writer,
            grants=self._grants,
            peers=self._peers,
            health=self._health,
        )
        control = Control(
            job=job,
            ledger=self._ledger,
            settings=settings,
            grants=self._grants,
            peers=self._peers,
            health=self._health,
        )
        self._dispatch = Dispatch(
            job=job,
            ledger=self._ledger,
            control=control,
            writer=self._writer,
            grants=self._grants,
            peers=self._peers,
            health=self._health,
            statistics=self._statistics,
            notice=self._sweeper.notice,
        )
        self._connections: set[Connection] = set()
        self._stop = trio.Event()
        self._stop_now = trio.Event()

    def stop(self) -> None:
        """End before the job does: the first call drains, the second commits and ends."""
        if self._stop.is_set():
            self._stop_now.set()
        self._stop.set()

    def snapshot(self) -> Snapshot:
        """See the job as it is now."""
        return self._statistics.snapshot()

    async def run(
        self, *, task_status: trio.TaskStatus[Sequence[Address]] = trio.TASK_STATUS_IGNORED
    ) -> Outcome:
        """Serve until every line has its result, or ``stop`` is called.

        ``task_status.started`` gets the addresses, once connections are accepted.

        Raises:
            UsageError: An address cannot be listened on.
            StorageError: A file failed, in an exception group; nothing more is acknowledged.

        Cancellation: what was acknowledged is safe. ``stop`` also lets workers finish.
        """
        self._find_end()
        async with open_listeners(self._settings) as listeners, trio.open_nursery() as outer:
            outer.start_soon(self._writer.run, name="writer")
            outer.start_soon(self._sweeper.run, self, name="sweeper")
            outer.start_soon(self._tell_complete, name="end of the job")
            async with trio.open_nursery() as connections:
                await self._listen(listeners, connections, task_status)
                await self._drain()
                connections.cancel_scope.cancel()
            self._writer.close()
            await self._writer.ended.wait()
            outer.cancel_scope.cancel()
        return Outcome.COMPLETE if self._writer.finished.is_set() else Outcome.STOPPED

    # --- the tree --------------------------------------------------------------------------------

    async def _listen(
        self,
        listeners: Sequence[trio.SocketListener],
        connections: trio.Nursery,
        task_status: trio.TaskStatus[Sequence[Address]],
    ) -> None:
        async with trio.open_nursery() as listening:
            for listener in listeners:
                listening.start_soon(self._accept, listener, connections)
            task_status.started([address_of(listener) for listener in listeners])
            await self._wait_over()
            listening.cancel_scope.cancel()

    async def _accept(self, listener: trio.SocketListener, connections: trio.Nursery) -> None:
        await trio.serve_listeners(self._serve, [listener], handler_nursery=connections)

    async def _wait_over(self) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._linger_when_complete, nursery.cancel_scope)
            await self._stop.wait()
            nursery.cancel_scope.cancel()

    async def _linger_when_complete(self, scope: trio.CancelScope) -> None:
        await self._writer.finished.wait()
        await trio.sleep(self._settings.linger_seconds)
        scope.cancel()

    async def _tell_complete(self) -> None:
        await self._writer.finished.wait()
        self._grants.complete()

    async def _drain(self) -> None:
        self._grants.stop()
        async with trio.open_nursery() as nursery:
            nursery.cancel_scope.deadline = trio.current_time() + self._settings.drain_seconds
            nursery.start_soon(self._cancel_at_second_stop, nursery.cancel_scope)
            # On a full disk no result can be taken: whoever has one keeps it for the next server.
            while self._is_worked_on() and not self._writer.is_disk_full:
                await self._changed.park()
            nursery.cancel_scope.cancel()
        with trio.move_on_after(0 if self._writer.is_disk_full else LAST_REPLIES_SECONDS):
            for connection in tuple(self._connections):
                await connection.wait_answered()

    async def _cancel_at_second_stop(self, scope: trio.CancelScope) -> None:
        await self._stop_now.wait()
        scope.cancel()

    def _is_worked_on(self) -> bool:
        return any(self._ledger.lease_count(peer.holder) for peer in self._peers.connected())

    # --- connections -----------------------------------------------------------------------------

    async def _serve(self, stream: trio.SocketStream) -> None:
        """Serve one connection; whatever it does, only a storage error leaves here."""
        if len(self._connections) >= self._settings.max_connections:
            await self._turn_away(stream)
            return
        peer = self._peers.connect(
            peer_name(stream.socket),
            trio.current_time(),
            is_welcome=self._settings.token is None,
        )
        try:
            watch_for_silence(stream.socket)
            async with stream, trio.open_nursery() as nursery:
                await self._run(stream, nursery, peer)
        except* (trio.BrokenResourceError, trio.ClosedResourceError):
            log.info("%s: the connection broke", peer.label)
        except* StorageError:
            raise
        except* Exception:
            log.exception("%s: a bug ended this connection", peer.label)
        finally:
            self._disconnect(peer)

    async def _run(self, stream: trio.SocketStream, nursery: trio.Nursery, peer: Peer) -> None:
        max_line_bytes = self._job.settings.max_line_bytes
        connection = Connection(stream, nursery, peer, self._dispatch, self._writer, max_line_bytes)
        self._connections.add(connection)
        try:
            await connection.run()
        finally:
            self._connections.discard(connection)

    def _disconnect(self, peer: Peer) -> None:
        now = trio.current_time()
        self._grants.end_wait(peer)
        self._peers.disconnect(peer, now)
        self._sweeper.notice(now + self._peers.grace_seconds(peer))
        self._changed.unpark_all()

    async def _turn_away(self, stream: trio.SocketStream) -> None:
        refusal = RemoteProtocolError(
            ErrorCode.TOO_MANY,
            f"This server has its {self._settings.max_connections} connections already.",
        )
        with trio.move_on_after(LAST_REPLIES_SECONDS):
            try:
                async with stream:
                    await stream.send_all(encode_refusal(refusal))
            except trio.BrokenResourceError:
                log.debug("a peer that was turned away did not wait to be told")

    # --- what the others call --------------------------------------------------------------------

    def _find_end(self) -> None:
        # An input without lines, or one whose last results were committed just before a crash.
        source = self._job.source
        source.scan(self._ledger.frontier + 1)
        if source.at_end:
            self._ledger.end_at(source.known_count)

    def _is_over(self) -> bool:
        return self._job.written_count == self._ledger.total and self._ledger.is_settled

    def _after_commit(self) -> None:
        self._grants.feed()

    def next_due_at(self) -> float | None:
        """The next instant with something to ``sweep``."""
        instants = (self._ledger.next_due_at(), self._grants.next_due_at())
        return min((instant for instant in instants if instant is not None), default=None)

    def stall_seconds(self) -> float:
        """How late a sweep is where the whole process must have stood still."""
        half_a_lease = max(self._ledger.lease_timeout_seconds / 2, MIN_STALL_SECONDS)
        return min(half_a_lease, SERVER_STALL_SECONDS)

    async def sweep(self, now: float, *, stood_still: bool) -> None:
        """Do all that is due.

        Cancellation: nothing, or all of it.
        """
        await self._writer.wait_room()
        waited_seconds = trio.current_time() - now
        if stood_still or waited_seconds > self.stall_seconds():
            # Results may have come in time and lie unread: it is not their workers that were slow.
            now += waited_seconds
            self._ledger.postpone(now)
        if not self._grants.is_stopped:  # else it is this server that leaves, not its workers
            self._take_back(now)
        self._grants.feed()
        self._grants.feed_copies()
        self._grants.end_due_waits(now)
        self._peers.forget_sessions()
        self._statistics.sample(now)
        self._changed.unpark_all()

    def _take_back(self, now: float) -> None:
        """Take leases back that ran out, and remember what that did to their lines."""
        expired = self._ledger.expire(now)
        effects = [effect for one in expired for effect in one.effects]
        if effects:
            entries = [remember(effect) for effect in effects if isinstance(effect, Tried)]
            rejected = [effect for effect in effects if isinstance(effect, Rejected)]
            size_bytes = sum(len(entry.history) for entry in entries)
            self._writer.submit(Batch(entries, size_bytes, rejected))
        # However many leases it had, it was silent once.
        for holder, one in {one.lease.holder: one for one in reversed(expired)}.items():
            peer = self._peers.holding(holder)
            if peer is not None:
                # It may stand still: it shall not get the same lines again before it says a word.
                self._grants.end_wait(peer)
                self._health.expired(peer, one)
