"""The least that a server of this kind has to be: tasks of trio, JSON messages, checked results.

    python tests/bench/bare_trio.py INPUT OUTPUT trio|trio-sync

Each connection is a task, and one more commits what has come together: the results to the output,
and to a journal where they are. Messages are read and written by msgspec, each result line is
checked to be JSON, and what is written is summed up. There are no leases: nothing comes back,
nobody is refused, no job is gone on with. So it says what trio and the protocol leave for all else.
With ``trio-sync`` the journal has the results themselves, and is synced before they are answered,
in place, which no server may do that has others to serve.
"""

from __future__ import annotations

import functools
import os
import struct
import sys
import zlib
from pathlib import Path
from typing import BinaryIO

import msgspec
import trio

from trioline.wire.codec import find_bad_json

READ_BYTES = 64 * 1024
SMALL_RECEIVE_BYTES, RECEIVE_BYTES = 64 * 1024, 256 * 1024
PLACE, CRC = struct.Struct("<QQQQI"), struct.Struct("<I")
COMPLETE = b'{"ok":true,"status":"complete"}\n'


class Message(msgspec.Struct):
    """A ``get``, or a ``done`` in lines form."""

    op: str
    max: int = 1
    first: int = 0
    count: int = 0
    bytes: int = 0


class Work(msgspec.Struct, kw_only=True):
    """The reply to a ``get``; its lines follow."""

    ok: bool = True
    status: str = "work"
    lease: int
    lease_timeout: int = 900
    first: int
    count: int
    bytes: int


class Accepted(msgspec.Struct, kw_only=True):
    """The reply to a ``done``."""

    ok: bool = True
    accepted: int
    duplicate: int = 0
    failed: int = 0


decode = msgspec.json.Decoder(Message).decode
encode = msgspec.json.Encoder().encode


class Peer:
    """One connection.

    Args:
        stream: Its socket.
    """

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self.replies: list[bytes] = []
        self.owed = 0  # results of it that are not committed yet

    async def receive(self, size: int) -> bytes:
        """Take what has come."""
        await trio.lowlevel.wait_readable(self.stream.socket)
        return os.read(self.stream.socket.fileno(), size)

    async def send(self) -> None:
        """Send what is ready, unless something before it is not."""
        if self.owed or not self.replies:
            return
        replies, self.replies = self.replies, []
        try:
            sent = os.writev(self.stream.socket.fileno(), replies)
        except BlockingIOError:
            sent = 0
        if sent < sum(map(len, replies)):
            await self.stream.send_all(b"".join(replies)[sent:])


class Server:
    """All there is.

    Args:
        source: The input, at its begin.
        output: The file descriptor of the output.
        journal: That of a file that says where results are, or has them.
        is_synced: Whether to sync before answering.
    """

    def __init__(self, source: BinaryIO, output: int, journal: int, *, is_synced: bool) -> None:
        self._source = source
        self._output = output
        self._journal = journal
        self._is_synced = is_synced
        self._lines: list[bytes] = []
        self._at = 0
        self._given_count = self._written_count = 0
        self._output_bytes = self._journal_bytes = 0
        self._queue: list[tuple[Peer, Message, bytes]] = []
        self._ahead: dict[int, tuple[int, bytes]] = {}
        self._news = trio.lowlevel.ParkingLot()
        self._waiting: list[Peer] = []

    async def serve(self, stream: trio.SocketStream) -> None:
        """Serve one connection until it is closed."""
        peer, unread, size = Peer(stream), b"", SMALL_RECEIVE_BYTES
        while data := await peer.receive(size):
            size = RECEIVE_BYTES if len(data) >= SMALL_RECEIVE_BYTES else SMALL_RECEIVE_BYTES
            unread = unread + data if unread else data
            while head := unread.find(b"\n") + 1:
                message = decode(unread[:head])
                end = head + message.bytes
                if len(unread) < end:
                    break
                if message.op == "done":
                    self._take(peer, message, unread[head:end])
                else:
                    self._give(peer, message.max)
                unread = unread[end:]
            await peer.send()

    def _take(self, peer: Peer, message: Message, results: bytes) -> None:
        assert find_bad_json(results) is None
        peer.owed += 1
        self._queue.append((peer, message, results))
        self._news.unpark()

    def _give(self, peer: Peer, count: int) -> None:
        lines = self._read(count)
        if not lines:
            self._waiting.append(peer)
            self._news.unpark()
            return
        first = self._given_count
        size = sum(map(len, lines)) + len(lines)
        reply = encode(Work(lease=first, first=first, count=len(lines), bytes=size))
        peer.replies.append(b"\n".join((reply, *lines, b"")))
        self._given_count += len(lines)

    def _read(self, count: int) -> list[bytes]:
        while len(self._lines) - self._at < count:
            chunk = self._source.read(READ_BYTES)
            if not chunk:
                break
            more = (chunk + self._source.readline()).split(b"\n")
            self._lines = self._lines[self._at :] + more[:-1]
            self._at = 0
        lines = self._lines[self._at : self._at + count]
        self._at += len(lines)
        return lines

    async def commit(self) -> None:
        """Write what has come, and answer, for ever."""
        while True:
            if not self._queue:
                await self._news.park()
            queue, self._queue = self._queue, []
            for _, message, results in queue:
                self._ahead[message.first] = (message.count, results)
            self._write()
            for peer, message, _ in queue:
                peer.replies.insert(0, encode(Accepted(accepted=message.count)) + b"\n")
                peer.owed -= 1
                await peer.send()
            if self._waiting and self._written_count == self._given_count:
                for peer in self._waiting:
                    peer.replies.append(COMPLETE)
                    await peer.send()
                self._waiting.clear()

    def _write(self) -> None:
        first, pieces = self._written_count, []
        while found := self._ahead.pop(self._written_count, None):
            count, results = found
            pieces.append(results)
            self._written_count += count
        if not pieces:
            return
        data = b"".join(pieces)
        stop, crc = self._written_count, zlib.crc32(data)
        place = PLACE.pack(first, stop, self._output_bytes, len(data), crc)
        frame = CRC.pack(zlib.crc32(place)) + place
        if self._is_synced:
            frame += data
            os.pwrite(self._journal, frame, self._journal_bytes)
            os.fdatasync(self._journal)
            os.pwrite(self._output, data, self._output_bytes)
        else:
            os.pwrite(self._output, data, self._output_bytes)
            os.pwrite(self._journal, frame, self._journal_bytes)
        self._output_bytes += len(data)
        self._journal_bytes += len(frame)


async def serve(server: Server) -> None:
    """Serve for ever; prints the address."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.commit)
        listen = functools.partial(trio.serve_tcp, server.serve, 0, host="127.0.0.1")
        (listener,) = await nursery.start(listen)
        print(f"127.0.0.1:{listener.socket.getsockname()[1]}", flush=True)


def main(source: str, output: str, policy: str) -> None:
    """Do what the command line says."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
    with Path(source).open("rb", buffering=0) as lines:
        journal = os.open(output + ".journal", flags)
        is_synced = policy == "trio-sync"
        trio.run(serve, Server(lines, os.open(output, flags), journal, is_synced=is_synced))


if __name__ == "__main__":
    main(*sys.argv[1:])
