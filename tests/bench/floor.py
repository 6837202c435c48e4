"""The floor: a bare epoll loop that reads, hands out, collects and writes, and promises nothing.

    python tests/bench/floor.py INPUT OUTPUT none|sync|check

It speaks just enough of the protocol for ``plain_worker`` in lines form. No leases, no attempts,
nothing checked, nothing to go on from: what is faster than this is not written in Python. With
``sync`` all results of one round of the loop share one fdatasync before they are acknowledged, into
a file that has its length and its blocks already: where a file grows, each sync also waits for the
file system's own journal, several times as long. With ``check`` each line is checked to be JSON,
and all is summed up twice: what no server is spared whose files can be proved.
"""

from __future__ import annotations

import os
import re
import select
import socket
import sys
import zlib
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import BinaryIO

GET = re.compile(rb'\{"op":"get","max":(\d+)')
DONE = re.compile(rb'\{"op":"done","first":(\d+),"count":(\d+),"bytes":(\d+)')
COMPLETE = b'{"ok":true,"status":"complete"}\n'
WORK = (
    b'{"ok":true,"status":"work","lease":1,"lease_timeout":900,"first":%d,"count":%d,"bytes":%d}\n'
)
ACCEPTED = b'{"ok":true,"accepted":%d,"duplicate":0,"failed":0}\n'
READ_BYTES = 1 << 20
SMALL_RECEIVE_BYTES, RECEIVE_BYTES = 64 * 1024, 256 * 1024
"""Taken from a socket: the larger piece where the smaller one was full, as the C library maps and
unmaps larger memory each time, which takes longer than all else about a short message."""
MAX_PIECES = 1_024
"""Written in one call: the system takes no more."""


class Peer:
    """One connection: what came and is not handled, what is to go."""

    __slots__ = ("replies", "size", "sock", "unread", "unsent")

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sock = sock
        self.size = SMALL_RECEIVE_BYTES
        self.unread = bytearray()
        self.replies: list[bytes] = []
        self.unsent: bytes | memoryview = b""


class Floor:
    """The loop.

    Args:
        source: The input, at its begin.
        output: The file descriptor of the output.
        is_synced: Whether to sync before answering.
        check: Called with each batch of results.
    """

    def __init__(
        self, source: BinaryIO, output: int, *, is_synced: bool, check: Callable[[bytearray], None]
    ) -> None:
        self._source = source
        self._output = output
        self._is_synced = is_synced
        self._check = check
        self._given_count = self._written_count = 0
        self._is_given_out = False
        self._ahead: dict[int, tuple[int, bytearray]] = {}
        self._in_turn: list[bytearray] = []
        self._waiting: list[Peer] = []
        self._peers: dict[int, Peer] = {}
        self._poll = select.epoll()

    def run(self, listener: socket.socket) -> None:
        """Serve for ever."""
        self._poll.register(listener, select.EPOLLIN)
        while True:
            heard: list[Peer] = []
            for fd, _ in self._poll.poll():
                peer = self._peers.get(fd)
                if peer is None:
                    self._accept(listener)
                elif peer.unsent:
                    self._send(peer)
                else:
                    self._receive(peer)
                    heard.append(peer)
            while self._in_turn:
                os.writev(self._output, self._in_turn[:MAX_PIECES])
                del self._in_turn[:MAX_PIECES]
            if self._is_synced and any(map(_has_acknowledgement, heard)):
                os.fdatasync(self._output)
            for peer in heard:
                self._send(peer)
            if self._is_given_out and self._written_count == self._given_count:
                self._tell_complete()

    def _accept(self, listener: socket.socket) -> None:
        sock, _ = listener.accept()
        self._peers[sock.fileno()] = Peer(sock)
        self._poll.register(sock, select.EPOLLIN)

    def _receive(self, peer: Peer) -> None:
        data = peer.sock.recv(peer.size)
        is_much = len(data) >= SMALL_RECEIVE_BYTES
        peer.size = RECEIVE_BYTES if is_much else SMALL_RECEIVE_BYTES
        if not data:
            self._poll.unregister(peer.sock)
            del self._peers[peer.sock.fileno()]
            peer.sock.close()
            return
        unread = peer.unread
        unread += data
        while head := unread.find(b"\n") + 1:
            envelope = bytes(unread[:head])
            done = DONE.match(envelope)
            if done is None:
                self._give(peer, envelope)
                del unread[:head]
                continue
            first, count, size = map(int, done.groups())
            if len(unread) < head + size:
                return
            body = unread[head : head + size]
            self._check(body)
            self._collect(first, count, body)
            peer.replies.append(ACCEPTED % count)
            del unread[: head + size]

    def _give(self, peer: Peer, request: bytes) -> None:
        get = GET.match(request)
        assert get is not None, request
        lines = list(islice(self._source, int(get[1])))
        if not lines:
            self._is_given_out = True
            self._waiting.append(peer)
            return
        body = b"".join(lines)
        peer.replies += (WORK % (self._given_count, len(lines), len(body)), body)
        self._given_count += len(lines)

    def _collect(self, first: int, count: int, body: bytearray) -> None:
        self._ahead[first] = (count, body)
        while self._written_count in self._ahead:
            count, body = self._ahead.pop(self._written_count)
            self._in_turn.append(body)
            self._written_count += count

    def _send(self, peer: Peer) -> None:
        data = peer.unsent or b"".join(peer.replies)
        peer.replies.clear()
        if data:
            try:
                sent = peer.sock.send(data)
            except BlockingIOError:
                sent = 0
            was_waiting = bool(peer.unsent)
            peer.unsent = memoryview(data)[sent:] if sent < len(data) else b""
            if bool(peer.unsent) != was_waiting:
                self._poll.modify(peer.sock, select.EPOLLOUT if peer.unsent else select.EPOLLIN)

    def _tell_complete(self) -> None:
        for peer in self._waiting:
            peer.replies.append(COMPLETE)
            self._send(peer)
        self._waiting.clear()


def _has_acknowledgement(peer: Peer) -> bool:
    return bool(peer.replies) and peer.replies[0].startswith(b'{"ok":true,"accepted"')


def fill(descriptor: int, size: int) -> None:
    """Give a file its length and its blocks, safely, and go back to its begin."""
    for start in range(0, size, READ_BYTES):
        os.write(descriptor, bytes(min(READ_BYTES, size - start)))
    os.fsync(descriptor)
    os.lseek(descriptor, 0, os.SEEK_SET)


def believe(_: bytearray) -> None:
    """Take results as they are."""


def checker() -> Callable[[bytearray], None]:
    """What holds results against what they have to be."""
    from trioline.wire.codec import find_bad_json  # the bare loop goes without

    def check(body: bytearray) -> None:
        assert find_bad_json(bytes(body)) is None
        for _ in range(2):
            zlib.crc32(body)

    return check


def main(source: str, output: str, policy: str) -> None:
    """Do what the command line says; prints the address."""
    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    is_synced = policy == "sync"
    if is_synced:
        fill(descriptor, Path(source).stat().st_size)
    listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
    print(f"127.0.0.1:{listener.getsockname()[1]}", flush=True)
    with Path(source).open("rb", buffering=READ_BYTES) as lines:
        check = checker() if policy == "check" else believe
        Floor(lines, descriptor, is_synced=is_synced, check=check).run(listener)


if __name__ == "__main__":
    main(*sys.argv[1:])
