"""A worker on a plain socket, lines form: as lean as a client can be in Python.

    python tests/bench/plain_worker.py HOST:PORT BATCH

Every input line is its own result. ``done`` and the next ``get`` go out in one send.
"""

from __future__ import annotations

import json
import socket
import sys


def work(host: str, port: int, batch: int) -> int:
    """Answer lines until the job is complete; returns how many."""
    answered = 0
    with socket.create_connection((host, port)) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        stream = sock.makefile("rb", buffering=1 << 20)
        get = b'{"op":"get","max":%d,"wait":30,"form":"lines"}\n' % batch
        sock.sendall(get)
        while True:
            reply = json.loads(stream.readline())
            if reply["status"] == "complete":
                return answered
            if reply["status"] == "retry":
                sock.sendall(get)
                continue
            body = stream.read(reply["bytes"])
            done = b'{"op":"done","first":%d,"count":%d,"bytes":%d}\n' % (
                reply["first"],
                reply["count"],
                reply["bytes"],
            )
            sock.sendall(b"".join((done, body, get)))
            acknowledgement = json.loads(stream.readline())
            assert acknowledgement["ok"], acknowledgement
            answered += acknowledgement["accepted"]


if __name__ == "__main__":
    address, batch_text = sys.argv[1:]
    host_text, _, port_text = address.rpartition(":")
    print(work(host_text, int(port_text), int(batch_text)))
