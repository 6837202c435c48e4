"""The same job through a queue server: ``queues.py redis|beanstalkd PORT feed|work|collect …``.

    … feed INPUT LINES_A_JOB
    … work JOBS_A_TAKE apart|together
    … collect OUTPUT JOBS

One process feeds the input as jobs (``NUMBER`` and a newline, then lines), workers move jobs from
queue ``in`` to queue ``out``, one process puts them in order. Plain sockets. A worker's results and
its next take go out apart, each with its answer, as programs do it; or together in one send.
"""

from __future__ import annotations

import sys
import time
from itertools import islice
from pathlib import Path
from typing import Protocol

from plain_worker import connect, reader

FEED_LINES = 1_000
"""Put with one send."""
COLLECT_JOBS = 10


class Queue(Protocol):
    """What the three roles need of a queue server."""

    def put(self, name: str, jobs: list[bytes]) -> None:
        """Add jobs to a queue."""

    def exchange(self, results: list[bytes], name: str, count: int) -> list[bytes]:
        """Put results, let go of what was taken before, and take jobs, at least one."""


class RedisLists:
    """Lists; what a worker took is nowhere else."""

    def __init__(self, port: int) -> None:
        self._sock = connect(f"127.0.0.1:{port}")
        self._stream = reader(self._sock)

    def put(self, name: str, jobs: list[bytes]) -> None:
        """RPUSH."""
        self._sock.sendall(_resp(b"RPUSH", name.encode(), *jobs))
        self._read_number()

    def exchange(self, results: list[bytes], name: str, count: int) -> list[bytes]:
        """RPUSH, and BLMPOP behind it."""
        push = _resp(b"RPUSH", b"out", *results) if results else b""
        pop = _resp(b"BLMPOP", b"0", b"1", name.encode(), b"LEFT", b"COUNT", b"%d" % count)
        self._sock.sendall(push + pop)
        if results:
            self._read_number()
        self._read_number()  # an array of two: the list's name,
        self._read_bulk()
        return [self._read_bulk() for _ in range(self._read_number())]

    def _read_number(self) -> int:
        reply = self._stream.readline()
        assert reply[:1] in b":*$", reply
        return int(reply[1:])

    def _read_bulk(self) -> bytes:
        return self._stream.read(self._read_number() + 2)[:-2]


def _resp(*words: bytes) -> bytes:
    return b"".join((b"*%d\r\n" % len(words), *(b"$%d\r\n%b\r\n" % (len(w), w) for w in words)))


class Beanstalk:
    """Tubes; what a worker took is reserved until its results are in."""

    def __init__(self, port: int) -> None:
        self._sock = connect(f"127.0.0.1:{port}")
        self._stream = reader(self._sock)
        self._taken: list[bytes] = []
        self._watched = ""

    def put(self, name: str, jobs: list[bytes]) -> None:
        """Use and put."""
        self._sock.sendall(b"use %b\r\n%b" % (name.encode(), _puts(jobs)))
        self._expect(b"USING", 1)
        self._expect(b"INSERTED", len(jobs))

    def exchange(self, results: list[bytes], name: str, count: int) -> list[bytes]:
        """Put, delete, and reserve."""
        if name != self._watched:
            self._watched = name
            watch = (b"watch %b" % name.encode(), b"ignore default", b"use out")
            self._sock.sendall(b"\r\n".join(watch) + b"\r\n")
            self._expect(b"WATCHING", 2)
            self._expect(b"USING", 1)
        deletes = b"".join(b"delete %b\r\n" % number for number in self._taken)
        self._sock.sendall(_puts(results) + deletes + b"reserve\r\n" * count)
        self._expect(b"INSERTED", len(results))
        self._expect(b"DELETED", len(self._taken))
        self._taken.clear()
        return [self._read_reserved() for _ in range(count)]

    def _expect(self, word: bytes, times: int) -> None:
        for _ in range(times):
            reply = self._stream.readline()
            assert reply.startswith(word), reply

    def _read_reserved(self) -> bytes:
        word, number, size = self._stream.readline().split()
        assert word == b"RESERVED", word
        self._taken.append(number)
        return self._stream.read(int(size) + 2)[:-2]


def _puts(jobs: list[bytes]) -> bytes:
    return b"".join(b"put 0 0 900 %d\r\n%b\r\n" % (len(job), job) for job in jobs)


QUEUES: dict[str, type[RedisLists] | type[Beanstalk]] = {
    "redis": RedisLists,
    "beanstalkd": Beanstalk,
}


def feed(queue: Queue, source: str, lines_a_job: int) -> int:
    """Put the whole input."""
    first = 0
    with Path(source).open("rb") as stream:
        while lines := list(islice(stream, max(FEED_LINES, lines_a_job))):
            jobs = []
            for start in range(0, len(lines), lines_a_job):
                body = b"".join(lines[start : start + lines_a_job])
                jobs.append(b"%d\n%b" % (first + start, body))
            queue.put("in", jobs)
            first += len(lines)
    return first


def work(queue: Queue, jobs_a_take: int, *, is_apart: bool) -> int:
    """Give back every job, for ever."""
    jobs = queue.exchange([], "in", jobs_a_take)
    while True:
        if is_apart:
            queue.put("out", jobs)
            jobs = []
        jobs = queue.exchange(jobs, "in", jobs_a_take)


def collect(queue: Queue, output: str, job_count: int) -> int:
    """Write the results in the order of the input."""
    ahead: dict[int, bytes] = {}
    turn = 0
    with Path(output).open("wb") as stream:
        while job_count:
            jobs = queue.exchange([], "out", min(COLLECT_JOBS, job_count))
            job_count -= len(jobs)
            for job in jobs:
                number, _, body = job.partition(b"\n")
                ahead[int(number)] = body
            while (ready := ahead.pop(turn, None)) is not None:
                stream.write(ready)
                turn += ready.count(b"\n")
    return turn


def main(kind: str, port: str, role: str, *arguments: str) -> None:
    """Do what the command line says."""
    queue = QUEUES[kind](int(port))
    print("ready", flush=True)
    sys.stdin.readline()
    begin_at = time.monotonic()
    if role == "feed":
        count = feed(queue, arguments[0], int(arguments[1]))
    elif role == "work":
        count = work(queue, int(arguments[0]), is_apart=arguments[1] == "apart")
    else:
        count = collect(queue, arguments[0], int(arguments[1]))
    print(count, begin_at, time.monotonic(), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
