"""A small scripted server for tests of the client: real sockets, a thread a connection.

It leases the lines of a list and keeps everything in memory. A test can look at all that came
in, hold replies back, drop connections at a chosen request, refuse, or answer with its own bytes.
It runs in threads, so that it serves clients of every kind: trio, asyncio, blocking.
"""

from __future__ import annotations

import contextlib
import select
import socket
import threading
from collections import Counter, defaultdict, deque
from collections.abc import Callable
from types import TracebackType

import attrs

from trioline.client.item import Outcome
from trioline.errors import ErrorCode
from trioline.wire.codec import encode_reply, is_json, work_items
from trioline.wire.envelope import open_envelope
from trioline.wire.framing import Framer
from trioline.wire.messages import (
    Bye,
    Complete,
    Done,
    DoneLines,
    DoneReply,
    Drain,
    DrainReply,
    Extend,
    ExtendReply,
    Fail,
    FailReply,
    Form,
    Get,
    Hello,
    HelloReply,
    Okay,
    Refusal,
    Release,
    ReleaseReply,
    Request,
    Retry,
    Set,
    SetReply,
    Work,
    WorkLines,
)

DEADLINE_SECONDS = 10.0
"""For anything a test waits for: never reached unless something is wrong."""

FINAL = " (final)"
"""Behind the text of a failure that is not to be tried again."""


@attrs.frozen
class Received:
    """One request that came in."""

    connection: int
    request: Request
    body: bytes = b""

    @property
    def op(self) -> str:
        return self.request.op


class FakeServer:
    """A context manager: serves while its body runs.

    Attributes:
        lines: What is to be answered; may grow, with ``close_when_done`` False until the end.
        results: The outcomes per line, first one first (result bytes, or the failure's text).
        log: All requests in the order they came.
        drop: Ops at which the connection is dropped, each once: before the request is carried
            out (``"done"``) or after it, without its reply (``"done!"``).
        refuse: What to answer the next request of an op with, instead of carrying it out.
        gates: Ops whose replies wait until the event is set.
        bad_results: Result bytes that are refused with ``bad-result``.
    """

    def __init__(
        self,
        lines: list[bytes],
        *,
        lease_timeout: float = 900.0,
        max_attempts: int = 3,
        max_batch: int = 10_000,
        token: str | None = None,
    ) -> None:
        self.lines = lines
        self.send_home: str | None = None
        """The reason of the ``complete`` that every ``get`` is answered with from now on."""
        self.is_open = False
        """Whether more lines may come: no ``complete`` until it is False."""
        self.results: dict[int, list[bytes | str]] = defaultdict(list)
        self.settled: set[int] = set()
        self.attempts: Counter[int] = Counter()
        self.holder: dict[int, str] = {}
        self.log: list[Received] = []
        self.drop: list[str] = []
        self.refuse: dict[str, deque[Refusal]] = defaultdict(deque)
        self.answer: dict[str, Callable[[Request], bytes]] = {}
        self.gates: dict[str, threading.Event] = {}
        self.bad_results: set[bytes] = set()
        self.names: list[str | None] = []
        """Of the workers that said hello."""
        self.known_sessions: set[str] = set()
        self.lost: set[int] = set()
        """To be named as lost in the next reply to ``extend``, besides those taken away."""
        self.lease_timeout = lease_timeout
        self.max_attempts = max_attempts
        self.max_batch = max_batch
        self.token = token
        self.connections = 0
        self.port = 0
        self._changed = threading.Condition()
        self._sockets: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self._listener: socket.socket | None = None
        self._is_over = False
        self._leases = 0

    # --- for tests --------------------------------------------------------------------------------

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def count(self, op: str) -> int:
        return sum(1 for each in list(self.log) if each.op == op)

    def wait_for(self, condition: Callable[[], bool]) -> None:
        """Block until it holds; looked at whenever a request has been carried out."""
        with self._changed:
            assert self._changed.wait_for(condition, DEADLINE_SECONDS), "it never came true"

    def listen(self) -> None:
        """Accept connections, on the same port as before if there was one."""
        listener = socket.create_server(("127.0.0.1", self.port))
        self.port = listener.getsockname()[1]
        self._listener = listener
        self._spawn(self._accept, listener)

    def stop_listening(self) -> None:
        """Refuse new connections."""
        if self._listener is not None:
            with contextlib.suppress(OSError):
                self._listener.shutdown(socket.SHUT_RDWR)
            self._listener.close()

    def hang_up(self, *, listen: bool = True) -> None:
        """Drop all connections; without ``listen`` refuse new ones."""
        if not listen:
            self.stop_listening()
        for each in list(self._sockets):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def add_lines(self, lines: list[bytes]) -> None:
        with self._changed:
            self.lines += lines
            self._changed.notify_all()

    def lose(self, number: int) -> None:
        """Take a line away from its holder, as if its lease had run out."""
        with self._changed:
            self.holder[number] = "someone else"

    def __enter__(self) -> FakeServer:
        self.listen()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._is_over = True
        for gate in self.gates.values():
            gate.set()
        self.hang_up(listen=False)
        for thread in self._threads:
            thread.join(DEADLINE_SECONDS)

    # --- connections ------------------------------------------------------------------------------

    def _spawn(self, target: Callable[[socket.socket], None], sock: socket.socket) -> None:
        thread = threading.Thread(target=target, args=(sock,), daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                sock, _ = listener.accept()
            except OSError:
                return
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._sockets.add(sock)
            self._spawn(self._serve, sock)

    def _serve(self, sock: socket.socket) -> None:
        self.connections += 1
        peer = _Peer(self, sock, self.connections)
        with contextlib.suppress(OSError), sock:
            peer.serve()
        self._sockets.discard(sock)

    # --- what requests do -------------------------------------------------------------------------

    def free(self) -> list[int]:
        return [
            number
            for number in range(len(self.lines))
            if number not in self.settled and number not in self.holder
        ]

    def lease(self, request: Get, session: str) -> tuple[object, bytes] | None:
        if self.send_home is not None:
            return Complete(reason=self.send_home), b""
        free = self.free()
        if not free:
            over = not self.is_open and len(self.settled) == len(self.lines)
            return (Complete(), b"") if over else None
        first = free[0]
        count = 1
        most = min(request.max, self.max_batch)
        while (
            count < min(most, len(free))
            and free[count] == first + count
            and self._same(first, free[count])
        ):
            count += 1
        self._leases += 1
        numbers = range(first, first + count)
        self.holder.update(dict.fromkeys(numbers, session))
        attempt = self.attempts[first] + 1
        if request.form is Form.ITEMS:
            lines = [self.lines[number] for number in numbers]
            items = work_items(numbers, lines, attempt, text=False)
            work = Work(lease=self._leases, lease_timeout=self.lease_timeout, items=items)
            return work, b""
        block = b"".join(self.lines[number] + b"\n" for number in numbers)
        reply = WorkLines(
            lease=self._leases,
            lease_timeout=self.lease_timeout,
            first=first,
            count=count,
            bytes=len(block),
            attempt=attempt,
        )
        return reply, block

    def _same(self, one: int, other: int) -> bool:
        return self.attempts[one] == self.attempts[other]

    def settle(self, rows: list[tuple[int, Outcome | str]]) -> object:
        for number, outcome in rows:
            if outcome in self.bad_results:
                return Refusal(error=ErrorCode.BAD_RESULT, message=f"Line {number}: no good.")
            if isinstance(outcome, bytes) and not is_json(outcome):
                return Refusal(error=ErrorCode.BAD_RESULT, message=f"Line {number}: not JSON.")
        accepted = duplicate = failed = 0
        for number, outcome in rows:
            self.holder.pop(number, None)
            if number in self.settled:
                duplicate += 1
                continue
            if isinstance(outcome, bytes):
                self.results[number].append(outcome)
                self.settled.add(number)
                accepted += 1
            else:
                self._fail(number, str(outcome), retry=not str(outcome).endswith(FINAL))
                failed += 1
        return DoneReply(accepted=accepted, duplicate=duplicate, failed=failed)

    def _fail(self, number: int, text: str, *, retry: bool = True) -> None:
        self.results[number].append(text)
        self.attempts[number] += 1
        if self.attempts[number] >= self.max_attempts or not retry:
            self.settled.add(number)

    def fail(self, row: Fail) -> object:
        self.holder.pop(row.id, None)
        self._fail(row.id, row.error, retry=row.retry)
        state = "rejected" if row.id in self.settled else "queued"
        return FailReply(
            state=state,  # type: ignore[arg-type]  # a Literal
            attempt=self.attempts[row.id],
            max_attempts=self.max_attempts,
        )


class _Peer:
    """One connection's side of the server."""

    def __init__(self, server: FakeServer, sock: socket.socket, number: int) -> None:
        self.server = server
        self.sock = sock
        self.number = number
        self.framer = Framer()
        self.session = f"session-{number}"
        self.held_ever: set[int] = set()

    def serve(self) -> None:
        while (received := self._next()) is not None:
            server = self.server
            with server._changed:
                server.log.append(received)
                server._changed.notify_all()
            if received.op in server.drop:
                server.drop.remove(received.op)
                return
            reply = self._reply(received)
            gate = server.gates.get(received.op)
            if gate is not None:
                gate.wait(DEADLINE_SECONDS)
            with server._changed:
                server._changed.notify_all()
            if received.op + "!" in server.drop:
                server.drop.remove(received.op + "!")
                return
            self.sock.sendall(reply)
            if received.op == "bye" or b'"auth-' in reply or b'"version"' in reply:
                return

    def _next(self) -> Received | None:
        line = self._take(self.framer.next_message)
        if line is None:
            return None
        request = open_envelope(line).request()
        body = b""
        if isinstance(request, DoneLines):
            count = request.count
            body = self._take(lambda: self.framer.next_block(count)) or b""
        return Received(self.number, request, body)

    def _take(self, ask: Callable[[], bytes | None]) -> bytes | None:
        while (found := ask()) is None:
            data = self.sock.recv(1 << 20)
            if not data:
                return None
            self.framer.feed(data)
        return found

    def _reply(self, received: Received) -> bytes:
        server = self.server
        if server.refuse[received.op]:
            return encode_reply(server.refuse[received.op].popleft())
        if received.op in server.answer:
            return server.answer[received.op](received.request)
        if isinstance(received.request, Get):
            return self._get(received.request)
        with server._changed:
            return encode_reply(self._carry_out(received))

    def _get(self, request: Get) -> bytes:
        """Wait for lines, the end, or a further request."""
        left = request.wait
        while True:
            more, _, _ = select.select([self.sock], [], [], 0)
            with self.server._changed:
                found = self.server.lease(request, self.session)
                if found is not None:
                    reply, body = found
                    self._remember(reply)
                    return encode_reply(reply) + body
            if more or not self.framer.is_between_messages or left <= 0 or self.server._is_over:
                return encode_reply(Retry(retry_in=0.01))
            select.select([self.sock], [], [], 0.01)
            left -= 0.01

    def _remember(self, reply: object) -> None:
        if isinstance(reply, WorkLines):
            self.held_ever.update(range(reply.first, reply.first + reply.count))
        elif isinstance(reply, Work):
            self.held_ever.update(item.id for item in reply.items)

    def _held(self) -> list[int]:
        return [n for n, holder in self.server.holder.items() if holder == self.session]

    def _carry_out(self, received: Received) -> object:
        server, request = self.server, received.request
        match request:
            case Hello():
                return self._hello(request)
            case Done():
                return server.settle(_rows(request))
            case DoneLines():
                lines = received.body.split(b"\n")[:-1]
                return server.settle(list(enumerate(lines, request.first)))
            case Fail():
                return server.fail(request)
            case Release():
                held = self._held()
                ids = held if request.ids is None else [n for n in request.ids if n in held]
                for number in ids:
                    del server.holder[number]
                return ReleaseReply(released=len(ids))
            case Extend():
                lost = self.held_ever - set(self._held()) - server.settled
                self.held_ever -= lost
                lost |= server.lost
                server.lost.clear()
                return ExtendReply(lease_timeout=server.lease_timeout, lost=sorted(lost))
            case Bye():
                for number in self._held():
                    del server.holder[number]
                return Okay()
            case Drain():
                return DrainReply(connections=server.names.count(request.worker))
            case Set():
                hedge = request.hedge if request.hedge is not True else 2.0
                return SetReply(
                    lease_timeout=1.0, max_attempts=1, paused=False, hedge=float(hedge or 0)
                )
            case _:
                return Okay()

    def _hello(self, request: Hello) -> object:
        server = self.server
        if server.token is not None and request.token != server.token:
            return Refusal(error=ErrorCode.AUTH_FAILED, message="The token is wrong.")
        if request.session in server.known_sessions:
            self.session = request.session or ""
            self.held_ever.update(self._held())
        server.names.append(request.worker)
        server.known_sessions.add(self.session)
        return HelloReply(
            protocol=1,
            server="fake/1",
            session=self.session,
            job="fake",
            lease_timeout=server.lease_timeout,
            max_batch=server.max_batch,
            max_line=64 * 1024 * 1024,
            stages=["main"],
        )


def _rows(request: Done) -> list[tuple[int, Outcome | str]]:
    rows: list[tuple[int, Outcome | str]] = []
    for row in request.results:
        if isinstance(row.error, str):
            rows.append((row.id, row.error if row.retry else row.error + FINAL))
        elif isinstance(row.line, str):
            rows.append((row.id, row.line.encode()))
        else:
            rows.append((row.id, bytes(row.result)))  # type: ignore[arg-type]  # it is set
    return rows
