"""Carries requests out: between the ledger, which decides, and the files, which remember.

Everything here is synchronous, so that nothing comes between reading and changing the ledger.
A request's reply is put into its slot: now, or when its commit or its wait is over.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import assert_never

import trio

from trioline.config import (
    MAX_RESULTS,
    MAX_TEXT_CHARS,
)
from trioline.errors import ErrorCode, RemoteProtocolError, StorageError
from trioline.ledger import Failure, Ledger, Rejected, Tried
from trioline.server.control import Control, printable
from trioline.server.grants import Grants
from trioline.server.health import Health
from trioline.server.histories import remember
from trioline.server.numbering import inward
from trioline.server.outbox import Slot
from trioline.server.peers import Peer, Peers
from trioline.server.results import CheckedResults, check_block, check_rows
from trioline.server.statistics import Statistics
from trioline.server.writer import Batch, Writer
from trioline.storage.job import Entry, Job
from trioline.wire.codec import Ref, encode_refusal, encode_reply
from trioline.wire.envelope import Envelope
from trioline.wire.messages import (
    Bye,
    Done,
    DoneLines,
    DoneReply,
    Drain,
    Extend,
    ExtendReply,
    Fail,
    FailReply,
    Get,
    Hello,
    Note,
    Okay,
    Ping,
    Release,
    ReleaseReply,
    Request,
    Set,
    Status,
)

log = logging.getLogger("trioline.server")


PlainRequest = Hello | Release | Extend | Note | Status | Set | Drain | Ping | Bye
"""What is answered at once."""


class Dispatch:
    """The requests of all connections.

    Args:
        job: For the input and the job's id.
        ledger: The state.
        control: Carries out what is about a connection or the whole job.
        writer: Takes results and rejections.
        grants: Gives lines out.
        peers: Who is connected.
        health: Told of every outcome.
        statistics: Answers ``status``.
        notice: Called with an instant at which something falls due.
    """

    def __init__(
        self,
        *,
        job: Job,
        ledger: Ledger,
        control: Control,
        writer: Writer,
        grants: Grants,
        peers: Peers,
        health: Health,
        statistics: Statistics,
        notice: Callable[[float], None],
    ) -> None:
        self._job = job
        self._ledger = ledger
        self._control = control
        self._writer = writer
        self._grants = grants
        self._peers = peers
        self._health = health
        self._statistics = statistics
        self._notice = notice

    def hang_up(self, peer: Peer) -> None:
        """Note that a peer will say nothing more."""
        now = trio.current_time()
        self._peers.hang_up(peer, now)
        self._grants.step_back(peer)
        self._notice(now + self._peers.grace_seconds(peer))

    def end_wait(self, peer: Peer) -> None:
        """Answer a peer's waiting ``get``, if it has one: something else came from it."""
        self._grants.end_wait(peer)

    def handle(self, peer: Peer, envelope: Envelope, block: bytes | None, slot: Slot) -> None:
        """Carry one request out; what is wrong with it becomes its reply.

        Args:
            peer: Who asks.
            envelope: The request.
            block: The raw lines behind it; None where there are none.
            slot: Where the reply goes.

        Raises:
            RemoteProtocolError: The connection is to be closed; its reply is in the slot.
        """
        if peer.waiter is not None:
            self._grants.end_wait(peer)
        try:
            if not peer.is_welcome and envelope.op != Hello.op:
                raise RemoteProtocolError(
                    ErrorCode.AUTH_REQUIRED, "This server wants a token: say hello with it first."
                )
            self._carry_out(peer, envelope.request(), envelope.ref, block, slot)
        except RemoteProtocolError as error:
            slot.fill(encode_refusal(error, envelope.ref))
            if error.is_fatal:
                raise
        except StorageError:
            raise
        except Exception:
            log.exception("%s: a bug in carrying %s out", peer.label, envelope.op)
            bug = RemoteProtocolError(
                ErrorCode.INTERNAL, "A bug in the server: its log has more. Please report it."
            )
            slot.fill(encode_refusal(bug, envelope.ref))

    def _carry_out(
        self, peer: Peer, request: Request, ref: Ref, block: bytes | None, slot: Slot
    ) -> None:
        if self._job.numbers is not None:
            request = inward(request, self._job.numbers)
        match request:
            case Get():
                self._grants.get(peer, request, ref, slot)
            case DoneLines():
                self._done_lines(peer, request, ref, block, slot)
            case Done():
                self._done(peer, request, ref, slot)
            case Fail():
                self._fail(peer, request, ref, slot)
            case _:
                slot.fill(encode_reply(self._answer(peer, request), ref))

    def _answer(self, peer: Peer, request: PlainRequest) -> object:
        """Carry out what can be answered at once."""
        match request:
            case Hello():
                return self._control.hello(peer, request)
            case Release():
                return self._release(peer, request)
            case Extend():
                return self._extend(peer, request)
            case Note():
                peer.note = printable(request.text[:MAX_TEXT_CHARS])
                return Okay()
            case Status():
                return self._statistics.snapshot()
            case Set():
                return self._control.set(request)
            case Drain():
                return self._control.drain(request)
            case Ping():
                return Okay()
            case Bye():
                self._peers.leave(peer, trio.current_time())
                self._grants.feed()
                return Okay()
            case _:
                assert_never(request)

    # --- results ---------------------------------------------------------------------------------

    def _done_lines(
        self, peer: Peer, request: DoneLines, ref: Ref, block: bytes | None, slot: Slot
    ) -> None:
        assert block is not None
        if request.bytes is not None and request.bytes != len(block):
            raise RemoteProtocolError(
                ErrorCode.BAD_REQUEST,
                f"The {request.count} lines are {len(block)} bytes, not {request.bytes}.",
            )
        lines = range(request.first, request.first + request.count)
        self._check_given_out(lines.stop - 1)
        results = check_block(lines, block, self._job.number_of, text=self._job.settings.text)
        self._settle(peer, results, ref, slot)

    def _done(self, peer: Peer, request: Done, ref: Ref, slot: Slot) -> None:
        if len(request.results) > MAX_RESULTS:
            raise RemoteProtocolError(
                ErrorCode.TOO_LARGE, f"One done takes at most {MAX_RESULTS} results."
            )
        if request.results:
            self._check_given_out(max([row.id for row in request.results]))
        results = check_rows(request.results, self._job.number_of, text=self._job.settings.text)
        self._settle(peer, results, ref, slot)

    def _check_given_out(self, line: int) -> None:
        # Beyond the frontier it may have been given out before a restart: then it must exist.
        ledger = self._ledger
        if line < ledger.frontier:
            return
        if not (ledger.was_given_out(line) and self._job.source.scan(line + 1)):
            raise RemoteProtocolError(
                ErrorCode.UNKNOWN_ID, f"Line {line} was never given out; nothing was taken."
            )

    def _settle(self, peer: Peer, results: CheckedResults, ref: Ref, slot: Slot) -> None:
        now = trio.current_time()
        accepted = 0
        news: list[range] = []
        entries: list[Entry] = []
        failures: list[Failure] = []
        for run in results.runs:
            new = self._ledger.settle(now, peer.holder, run)
            news += new
            for part in new:
                accepted += len(part)
                entries.append(results.entry(part))
        if accepted:
            peer.done_count += accepted
            self._health.succeeded(peer, news, accepted)
        for line, error in results.errors.items():
            failure = self._count_failure(now, peer, line, error.text, retry=error.retry)
            if failure is not None:
                failures.append(failure)
        failed = len(failures)
        duplicate = results.row_count - accepted - failed
        reply = DoneReply(accepted=accepted, duplicate=duplicate, failed=failed)
        self._submit(entries, results.size_bytes, failures, slot, encode_reply(reply, ref))

    def _fail(self, peer: Peer, request: Fail, ref: Ref, slot: Slot) -> None:
        failure = self._count_failure(
            trio.current_time(),
            peer,
            request.id,
            request.error[:MAX_TEXT_CHARS],
            retry=request.retry,
            delay_seconds=request.delay,
            lease_number=request.lease,
        )
        if failure is None:
            raise RemoteProtocolError(
                ErrorCode.NOT_HELD,
                f"Line {self._job.number_of(request.id)} is not held by this connection.",
            )
        reply = FailReply(
            state="rejected" if isinstance(failure.effect, Rejected) else "queued",
            attempt=failure.attempt,
            max_attempts=self._ledger.budgets.max_attempts,
        )
        self._submit([], 0, [failure], slot, encode_reply(reply, ref))

    def _count_failure(
        self,
        now: float,
        peer: Peer,
        line: int,
        error: str,
        *,
        retry: bool,
        delay_seconds: float | None = None,
        lease_number: int | None = None,
    ) -> Failure | None:
        failure = self._ledger.fail(
            now,
            peer.holder,
            line,
            error,
            retry=retry,
            delay_seconds=delay_seconds,
            lease_number=lease_number,
        )
        if failure is not None:
            peer.failed_count += 1
            self._health.failed(
                peer, line, printable(error), attempt=failure.attempt, is_final=not retry
            )
        return failure

    def _submit(
        self,
        entries: list[Entry],
        size_bytes: int,
        failures: Sequence[Failure],
        slot: Slot,
        reply: bytes,
    ) -> None:
        rejected: list[Rejected] = []
        for failure in failures:
            if isinstance(failure.effect, Tried):
                entries.append(tried := remember(failure.effect))
                size_bytes += len(tried.history)
            elif isinstance(failure.effect, Rejected):
                rejected.append(failure.effect)
        self._writer.submit(Batch(entries, size_bytes, rejected, slot, reply))
        self._grants.feed()

    # --- leases ----------------------------------------------------------------------------------

    def _release(self, peer: Peer, request: Release) -> ReleaseReply:
        released = self._ledger.release(trio.current_time(), peer.holder, request.ids)
        if request.ids and not released:
            raise RemoteProtocolError(
                ErrorCode.NOT_HELD, "None of these lines is held by this connection."
            )
        self._grants.feed()
        return ReleaseReply(released=released)

    def _extend(self, peer: Peer, request: Extend) -> ExtendReply:
        lost = self._ledger.extend(trio.current_time(), peer.holder, request.lease)
        if lost is None:
            raise RemoteProtocolError(
                ErrorCode.NOT_HELD, f"Lease {request.lease} is not held by this connection."
            )
        return ExtendReply(
            lease_timeout=self._ledger.lease_timeout_seconds,
            lost=[self._job.number_of(line) for line in lost],
        )
