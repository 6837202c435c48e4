"""Workers on plain sockets: as lean as clients can be in Python.

    python tests/bench/plain_worker.py HOST:PORT BATCH [lines|items] [CONNECTIONS] [LINES]

Every input line is its own result. ``done`` and the next ``get`` go out in one send. Replies are
not parsed further than is needed, which the lines of ``inputs`` permit: they hold nothing that
looks like an envelope. With CONNECTIONS one process serves that many at a time (lines form, batches
that one read brings). With LINES it leaves after so many, holding nothing.

It says ``ready``, begins at a line (or the end) of its stdin, and reports lines, begin and end.
"""

from __future__ import annotations

import io
import re
import select
import socket
import sys
import time
from collections.abc import Callable

GET = b'{"op":"get","max":%d,"wait":60,"form":"%b"}\n'
DONE = b'{"op":"done","first":%d,"count":%d,"bytes":%d}\n'
COMPLETE = b'{"ok":true,"status":"complete"'
WORK = re.compile(rb'\{"ok":true,"status":"work",.*"first":(\d+),"count":(\d+),"bytes":(\d+)')
ITEMS_BEGIN, ITEMS_END = b'"items":[', b"]}\n"
RECEIVE_BYTES = 1 << 20
SMALL_RECEIVE_BYTES = 64 * 1024
"""The C library maps and unmaps larger memory each time."""

Report = tuple[int, float]
"""How many lines were answered, and when the last answer was acknowledged."""


def connect(address: str) -> socket.socket:
    """Connect to ``HOST:PORT``."""
    host, _, port = address.rpartition(":")
    sock = socket.create_connection((host, int(port)))
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


def reader(sock: socket.socket) -> io.BufferedReader:
    """Read a socket through a buffer that is large enough."""
    return io.BufferedReader(socket.SocketIO(sock, "r"), RECEIVE_BYTES)


def accepted(count: int) -> bytes:
    """How the acknowledgement of ``count`` new results begins."""
    return b'{"ok":true,"accepted":%d,' % count


def work_lines(sock: socket.socket, batch: int, limit: float) -> Report:
    """Answer lines until the job is complete, or so many are answered."""
    stream = reader(sock)
    get = GET % (batch, b"lines")
    answered, acknowledged_at = 0, time.monotonic()
    sock.sendall(get)
    while (work := WORK.match(reply := stream.readline())) is not None:
        first, count, size = map(int, work.groups())
        body = stream.read(size)
        last = answered + count >= limit
        sock.sendall(b"".join((DONE % (first, count, size), body, b"" if last else get)))
        acknowledgement = stream.readline()
        assert acknowledgement.startswith(accepted(count)), acknowledgement
        acknowledged_at = time.monotonic()
        answered += count
        if last:
            return answered, acknowledged_at
    assert reply.startswith(COMPLETE), reply
    return answered, acknowledged_at


def work_items(sock: socket.socket, batch: int, limit: float) -> Report:
    """Answer items until the job is complete; ``limit`` is for the other form."""
    stream = reader(sock)
    get = GET % (batch, b"items")
    answered, acknowledged_at = 0, time.monotonic()
    sock.sendall(get)
    while (begin := (reply := stream.readline()).find(ITEMS_BEGIN)) >= 0:
        items = reply[begin + len(ITEMS_BEGIN) : -len(ITEMS_END)]
        count = items.count(b',"attempt":')
        results = items.replace(b',"attempt":1}', b"}").replace(b',"data":', b',"result":')
        sock.sendall(b"".join((b'{"op":"done","results":[', results, b"]}\n", get)))
        acknowledgement = stream.readline()
        assert acknowledgement.startswith(accepted(count)), acknowledgement
        acknowledged_at = time.monotonic()
        answered += count
    assert reply.startswith(COMPLETE), reply
    return answered, acknowledged_at


def work_many(socks: list[socket.socket], batch: int) -> Report:
    """Answer lines on many connections, each with one request under way."""
    poll = select.epoll()
    get = GET % (batch, b"lines")
    by_fd = {sock.fileno(): sock for sock in socks}
    unread = dict.fromkeys(by_fd, b"")
    answered, acknowledged_at = 0, time.monotonic()
    for fd, sock in by_fd.items():
        poll.register(fd, select.EPOLLIN)
        sock.sendall(get)
    while by_fd:
        for fd, _ in poll.poll():
            data = unread[fd] + by_fd[fd].recv(SMALL_RECEIVE_BYTES)
            if data.startswith(b'{"ok":true,"accepted"'):
                acknowledged_at = time.monotonic()
                data = data[data.index(b"\n") + 1 :]
            head = data.find(b"\n") + 1
            if data.startswith(COMPLETE):
                poll.unregister(fd)
                del by_fd[fd]
            elif head and (work := WORK.match(data)) is not None:
                first, count, size = map(int, work.groups())
                if len(data) == head + size:
                    by_fd[fd].sendall(b"".join((DONE % (first, count, size), data[head:], get)))
                    answered += count
                    data = b""
            unread[fd] = data
    return answered, acknowledged_at


def take_part(work: Callable[[], Report]) -> None:
    """Wait for the word, work and report."""
    print("ready", flush=True)
    sys.stdin.readline()
    begin_at = time.monotonic()
    answered, acknowledged_at = work()
    print(answered, begin_at, acknowledged_at, flush=True)


def main(
    address: str, batch: str, form: str = "lines", connections: str = "1", limit: str = "inf"
) -> None:
    """Do what the command line says."""
    socks = [connect(address) for _ in range(int(connections))]
    if len(socks) > 1:
        take_part(lambda: work_many(socks, int(batch)))
    else:
        work = {"lines": work_lines, "items": work_items}[form]
        take_part(lambda: work(socks[0], int(batch), float(limit)))


if __name__ == "__main__":
    main(*sys.argv[1:])
