"""Memory and disk stay bounded, however far the work runs ahead of a line that is stuck.

Real server, plain sockets. ``--big`` runs them at full size and prints what was measured.
"""

from __future__ import annotations

import contextlib
import random
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import attrs
import pytest
import trio
import trio.testing
from processes import DEADLINE_SECONDS, Plain, Serve, numbers, serving
from storage_helpers import settings_for

from trioline.config import Fsync
from trioline.server.writer import Batch, Writer
from trioline.storage.entries import Entry, Results
from trioline.storage.job import Job

pytestmark = pytest.mark.slow

JOB = ("in", "out", "--quiet", "--linger", "0")
INTERVAL = ("--fsync", "interval")
RESULT_BYTES = 1_024
BATCH = 1_000
MEMORY_BYTES = 100 * 1024 * 1024
"""The server may grow by this at a million lines ahead; by its share of it at fewer."""
FIXED_BYTES = 24 * 1024 * 1024
"""Buffers that are there whatever the number of lines."""
MAX_JOURNAL_SHARE = 1.10
MAX_PAUSE_SECONDS = 2.0
END_SECONDS = 600.0


@attrs.define
class Memory:
    """A process's memory, in bytes."""

    resident: int
    highest: int

    @classmethod
    def of(cls, pid: int) -> Memory:
        fields = dict(
            line.split(":", 1)
            for line in Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
        )
        kib = [int(fields[name].split()[0]) for name in ("VmRSS", "VmHWM")]
        return cls(kib[0] * 1024, kib[1] * 1024)


def journal_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("out.trioline/journal-*"))


def result(line: int) -> bytes:
    return b'"%s"' % (b"%d " % line).ljust(RESULT_BYTES - 3, b".")


def wide(first: int, count: int) -> list[bytes]:
    return [result(line) for line in range(first, first + count)]


def narrow(first: int, count: int) -> list[bytes]:
    return [b"%d" % line for line in range(first, first + count)]


@contextlib.contextmanager
def longest_pause(port: int) -> Iterator[list[float]]:
    """Ping the server all the while; gives the longest time that it took to answer."""
    pauses = [0.0]
    is_over = threading.Event()

    def ping() -> None:
        with Plain(port) as plain:
            while not is_over.wait(0.01):
                begin = time.monotonic()
                plain.ask(op="ping")
                pauses[0] = max(pauses[0], time.monotonic() - begin)

    thread = threading.Thread(target=ping)
    thread.start()
    try:
        yield pauses
    finally:
        is_over.set()
        thread.join()


def check_output(path: Path, lines: Iterable[bytes]) -> None:
    with path.open("rb") as file:
        for number, line in enumerate(lines):
            assert file.readline() == line + b"\n", number
        assert not file.read(1)


def check_end(serve: Serve, folder: Path, lines: Iterable[bytes]) -> None:
    """The job ended well, its journal is gone, and its output is the oracle's."""
    assert serve.wait(END_SECONDS).code == 0, serve.stderr
    assert journal_bytes(folder) == 0
    check_output(folder / "out", lines)


@pytest.mark.parametrize("fsync", ["always", "interval"])
def test_a_stuck_line_costs_neither_memory_nor_order(
    tmp_path: Path, is_big: bool, fsync: str
) -> None:
    count = 1_000_000 if is_big else 100_000
    (tmp_path / "in").write_bytes(numbers(count + 1))
    begin = time.monotonic()
    with (
        serving(*JOB, "--fsync", fsync, "--window", str(count + 1), cwd=tmp_path) as serve,
        Plain(serve.port) as stuck,
        Plain(serve.port) as worker,
    ):
        assert stuck.get_lines(1) == (0, [b"0"])
        before = Memory.of(serve.pid)
        for first in range(1, count + 1, BATCH):
            work = worker.get_lines(BATCH)
            assert work is not None
            assert (work[0], len(work[1])) == (first, BATCH)
            assert worker.done_lines(first, wide(first, BATCH))["accepted"] == BATCH
        ahead, disk = Memory.of(serve.pid), journal_bytes(tmp_path)
        filled = time.monotonic()
        status = serve.status()
        assert (status["written"], status["ahead"]) == (0, count)
        with longest_pause(serve.port) as pauses:
            assert stuck.done_lines(0, [result(0)])["accepted"] == 1
        flushed = time.monotonic()
        after = Memory.of(serve.pid)
        assert (tmp_path / "out").stat().st_size == (count + 1) * RESULT_BYTES
        check_end(serve, tmp_path, (result(line) for line in range(count + 1)))
    grown = [memory.highest - before.resident for memory in (ahead, after)]
    print(
        f"\n{fsync}: {count:,} results of 1 KB ahead in {filled - begin:.1f} s: memory "
        f"+{(ahead.resident - before.resident) / 1e6:.1f} MB (highest +{grown[0] / 1e6:.1f}, with "
        f"the flush +{grown[1] / 1e6:.1f}), journal {disk / 1e6:,.1f} MB; flushed in "
        f"{flushed - filled:.2f} s, longest pause {pauses[0]:.3f} s"
    )
    assert max(grown) < FIXED_BYTES + MEMORY_BYTES * count // 1_000_000
    assert disk <= count * RESULT_BYTES * MAX_JOURNAL_SHARE
    assert pauses[0] < MAX_PAUSE_SECONDS


def test_the_window_stops_the_work(tmp_path: Path) -> None:
    """What the window does not let out is waited for; it moves on with the line that was stuck."""
    (tmp_path / "in").write_bytes(numbers(30))
    with (
        serving(*JOB, "--window", "10", cwd=tmp_path) as serve,
        Plain(serve.port) as stuck,
        Plain(serve.port) as worker,
    ):
        assert stuck.get_lines(1) == (0, [b"0"])
        work = worker.get_lines(100)
        assert work is not None
        assert (work[0], len(work[1])) == (1, 9)
        worker.done_lines(*work)
        assert worker.ask(op="get", max=100)["status"] == "retry"
        assert worker.ask(op="get", max=100, wait=0.1)["status"] == "retry"
        assert serve.status()["ahead"] == 9
        stuck.done_lines(0, [b"0"])
        work = worker.get_lines(100)
        assert work is not None
        assert (work[0], len(work[1])) == (10, 10)
        worker.done_lines(*work)
        last = worker.get_lines(100)
        assert last is not None
        worker.done_lines(*last)
        check_end(serve, tmp_path, narrow(0, 30))


def in_pieces(count: int, order: str) -> list[range]:
    """All lines but 0, cut into pieces of any length, in an order that is the worst or any."""
    rng = random.Random(1)
    pieces = []
    begin = 1
    while begin < count:
        end = min(count, begin + rng.randint(1, 2 * BATCH))
        pieces.append(range(begin, end))
        begin = end
    if order == "reverse":
        pieces.reverse()
    else:
        rng.shuffle(pieces)
    return [*pieces, range(1)]


async def test_what_a_small_commit_sets_free_is_written_in_a_thread(tmp_path: Path) -> None:
    """A million lines take seconds: in place nobody would be heard for as long."""
    (tmp_path / "in").write_bytes(numbers(3_000))
    in_thread: list[bool] = []

    class Watched(Job):
        def commit(self, entries: Sequence[Entry]) -> None:
            in_thread.append(threading.current_thread() is not threading.main_thread())
            super().commit(entries)

    with contextlib.closing(Watched.open(settings_for(tmp_path, fsync=Fsync.NEVER))) as job:
        writer = Writer(job, on_commit=lambda: None, is_over=lambda: False)
        with trio.fail_after(DEADLINE_SECONDS):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(writer.run)
                for first, count in ((1, 2_500), (2_600, 1), (0, 1)):
                    data = b"0\n" * count
                    writer.submit(Batch([Results(first, count, data)], len(data)))
                    await trio.testing.wait_all_tasks_blocked()
                writer.close()
        assert in_thread == [False, False, True]
        assert (job.written_count, job.ahead_count) == (2_501, 1)


@pytest.mark.parametrize(("order", "bytes_a_line"), [("reverse", 25), ("random", 25)])
def test_any_order_over_many_short_lines(
    tmp_path: Path, is_big: bool, order: str, bytes_a_line: int
) -> None:
    """At random a lease is settled inside, and from then on keeps its lines one by one."""
    count = 10_000_000 if is_big else 200_000
    (tmp_path / "in").write_bytes(numbers(count))
    begin = time.monotonic()
    with (
        serving(
            *JOB, *INTERVAL, "--window", str(count), "--max-held", str(count), cwd=tmp_path
        ) as serve,
        Plain(serve.port) as worker,
    ):
        before = Memory.of(serve.pid)
        leased = 0
        while leased < count:
            work = worker.get_lines(10_000)
            assert work is not None
            leased += len(work[1])
        *pieces, last = in_pieces(count, order)
        for piece in pieces:
            reply = worker.done_lines(piece.start, narrow(piece.start, len(piece)))
            assert reply["accepted"] == len(piece)
        ahead, disk = Memory.of(serve.pid), journal_bytes(tmp_path)
        filled = time.monotonic()
        with longest_pause(serve.port) as pauses:
            worker.done_lines(last.start, narrow(0, 1))
        flushed = time.monotonic()
        after = Memory.of(serve.pid)
        worker.close()
        check_end(serve, tmp_path, (b"%d" % line for line in range(count)))
    size = sum(len(b"%d\n" % line) for line in range(count))
    grown = max(memory.highest - before.resident for memory in (ahead, after))
    print(
        f"\n{order}: {count:,} short lines in {filled - begin:.1f} s: memory +{grown / 1e6:.1f} MB,"
        f" journal {disk / 1e6:,.1f} MB for {size / 1e6:,.1f} MB; flushed in "
        f"{flushed - filled:.2f} s, longest pause {pauses[0]:.3f} s"
    )
    assert grown < FIXED_BYTES + bytes_a_line * count
    assert disk <= size * MAX_JOURNAL_SHARE
    assert pauses[0] < MAX_PAUSE_SECONDS
