"""One lone worker that times each line: ``python tests/bench/round_trip.py HOST:PORT COUNT FORM``.

FORM is ``together``, ``done`` and the next ``get`` in one send as workers do it, or ``apart``, a
``get`` and its reply, then a ``done`` and its reply. It begins at a line of its stdin and prints
the time of each in microseconds.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from itertools import islice
from typing import BinaryIO

from plain_worker import DONE, GET, WORK, accepted, connect, reader

GET_ONE = GET % (1, b"lines")

Send = Callable[[bytes], None]


def together(send: Send, stream: BinaryIO) -> Iterator[float]:
    """Hand a line in and take the next one; gives how many seconds each such trip took."""
    send(GET_ONE)
    done = take(stream)
    while done:
        begin_at = time.perf_counter()
        send(done + GET_ONE)
        acknowledge(stream)
        done = take(stream)
        yield time.perf_counter() - begin_at


def apart(send: Send, stream: BinaryIO) -> Iterator[float]:
    """Take a line, then hand it in; gives how many seconds each took."""
    while True:
        begin_at = time.perf_counter()
        send(GET_ONE)
        if not (done := take(stream)):
            return
        send(done)
        acknowledge(stream)
        yield time.perf_counter() - begin_at


def take(stream: BinaryIO) -> bytes:
    """Read a reply with work; gives the ``done`` for it, nothing where there is no work."""
    work = WORK.match(stream.readline())
    if work is None:
        return b""
    first, count, size = map(int, work.groups())
    return (DONE % (first, count, size)) + stream.read(size)


def acknowledge(stream: BinaryIO) -> None:
    """Read the reply to a ``done`` of one line."""
    acknowledgement = stream.readline()
    assert acknowledgement.startswith(accepted(1)), acknowledgement


def main(address: str, count: str, form: str) -> None:
    """Do what the command line says."""
    sock = connect(address)
    stream = reader(sock)
    trips = {"together": together, "apart": apart}[form]
    print("ready", flush=True)
    sys.stdin.readline()
    times = list(islice(trips(sock.sendall, stream), int(count)))
    print(*(f"{seconds * 1e6:.0f}" for seconds in times), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
