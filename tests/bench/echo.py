"""The physical limit: the bytes of a batch to a worker and back, and nothing else.

    python tests/bench/echo.py serve WORKERS BYTES COUNT
    python tests/bench/echo.py work HOST:PORT BYTES

A send is answered before the next one to the same worker, as with a ``get`` and a ``done``.
"""

from __future__ import annotations

import select
import socket
import sys
import time

from plain_worker import connect


def serve(worker_count: int, size: int, count: int) -> None:
    """Send ``count`` messages to the workers, and take them back."""
    listener = socket.create_server(("127.0.0.1", 0))
    print(f"127.0.0.1:{listener.getsockname()[1]}", flush=True)
    socks = [listener.accept()[0] for _ in range(worker_count)]
    by_fd = {sock.fileno(): sock for sock in socks}
    poll = select.epoll()
    for sock in socks:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        poll.register(sock, select.EPOLLIN)
    message = b"." * size
    missing = dict.fromkeys(by_fd, size)
    print("ready", flush=True)
    sys.stdin.readline()
    begin_at = time.monotonic()
    for sock in socks:
        sock.sendall(message)
    sent, back = worker_count, 0
    while back < count:
        for fd, _ in poll.poll():
            missing[fd] -= len(by_fd[fd].recv(missing[fd]))
            if missing[fd] == 0:
                missing[fd] = size
                back += 1
                if sent < count:
                    by_fd[fd].sendall(message)
                    sent += 1
    print(count, begin_at, time.monotonic(), flush=True)
    sys.stdin.readline()  # who asked looks at what it took yet


def work(address: str, size: int) -> None:
    """Send back what comes, once it is all there."""
    sock = connect(address)
    message = memoryview(bytearray(size))
    while True:
        here = 0
        while here < size:
            got = sock.recv_into(message[here:])
            if not got:
                return
            here += got
        sock.sendall(message)


def main(role: str, *arguments: str) -> None:
    """Do what the command line says."""
    if role == "serve":
        serve(*map(int, arguments))
    else:
        work(arguments[0], int(arguments[1]))


if __name__ == "__main__":
    main(*sys.argv[1:])
