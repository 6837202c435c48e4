"""What must not grow with the job or with the connections, and how long things take to start."""

from __future__ import annotations

import contextlib
import select
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence

from jobs import TRIOLINE, Place, Site, ask, serve, with_plain_workers
from lone import time_trips
from measure import DEADLINE_SECONDS, ROOT, Child, Failed, script, started
from plain_worker import connect
from table import machine_text, markdown, megabytes, number

FULL_LINES, QUICK_LINES = (100_000, 1_000_000, 10_000_000), (10_000, 100_000)
FULL_IDLE, QUICK_IDLE = 10_000, 500
BATCH = 1_000
STARTS = 5
TRIPS = 1_000
WAKES = 20
LOOK_SECONDS = 0.05
IDLE_SHARE = 0.02

Row = tuple[str, str]
"""What it is, and the figure."""


def flat_table(place: Place, *, is_quick: bool) -> str:
    """Measure it all; the result is a table."""
    counts = QUICK_LINES if is_quick else FULL_LINES
    rows: list[Row] = [("", "")]
    parts: Sequence[Callable[[], Iterator[Row]]] = (
        lambda: by_length(place, counts),
        lambda: resumes(place, (counts[0], counts[-1])),
        lambda: idle_connections(place, QUICK_IDLE if is_quick else FULL_IDLE),
        lambda: starts(place),
    )
    for part in parts:
        try:
            for row in part():
                print(*row, sep=": ", file=sys.stderr)
                rows.append(row)
        except Failed as failed:
            rows.append((str(failed), "-"))
    return f"{machine_text()}\n\n{markdown(rows)}\n"


def by_length(place: Place, counts: Sequence[int]) -> Iterator[Row]:
    """Speed and memory of jobs of several lengths, and of the floor, which says what of it is the
    machine's."""
    for count in counts:
        source = place.inputs.file(count)
        for name, serving in (
            ("floor", place.floor(source, "none")),
            ("trioline, interval", place.trioline(source, "--fsync", "interval")),
        ):
            with serving as site:
                sample = with_plain_workers(site, BATCH)
            assert sample.server_seconds_per_million is not None
            yield (
                f"{number(count)} lines, batch {BATCH}, {name}",
                f"{number(sample.speed)} lines/s, {sample.server_seconds_per_million:.2f} server "
                f"s/M lines, {megabytes(sample.server_bytes)} MB",
            )


def resumes(place: Place, counts: Sequence[int]) -> Iterator[Row]:
    """How long a start takes until it listens, fresh, and after a kill with so many lines done."""
    for count in counts:
        source = place.inputs.file(count + BATCH)
        with place.folder() as folder:
            begin_at = time.monotonic()
            with serve(source, folder, "--fsync", "interval") as site:
                fresh_seconds = time.monotonic() - begin_at
                _do(site, count)
            times = []
            for _ in range(STARTS):
                begin_at = time.monotonic()
                with serve(source, folder, "--fsync", "interval") as site:
                    times.append(time.monotonic() - begin_at)
                    status = site.ask(op="status")
                if status["written"] != count:
                    raise Failed(f"{status['written']} lines are there after a kill, not {count}")
        yield (
            f"serve until it listens with {number(count)} lines done",
            f"{statistics.median(times):.2f} s (fresh {fresh_seconds:.2f} s)",
        )


def _do(site: Site, count: int) -> None:
    words = (site.address, str(BATCH), "lines", "1", str(count))
    with started(*script("plain_worker.py"), *words, folder=site.folder) as worker:
        worker.line()
        worker.begin()
        worker.report()


def idle_connections(place: Place, count: int) -> Iterator[Row]:
    """What connections cost that do nothing, and whom they hinder."""
    # No second copies: late lines would be given to all of them who wait.
    options = ("--fsync", "interval", "--hedge", "0")
    with place.trioline(place.inputs.file(10 * TRIPS), *options) as site:
        before_bytes = site.server.resident_bytes()
        alone = time_trips(site, TRIPS, "apart")
        with contextlib.ExitStack() as stack:
            socks = [stack.enter_context(connect(site.address)) for _ in range(count)]
            for sock in socks:
                _ping(sock)
            idle_bytes = site.server.resident_bytes()
            among = time_trips(site, TRIPS, "apart")
            wakes = _time_wakes(site, socks)
            waiting_bytes = site.server.resident_bytes()
    yield (
        f"memory with no connection / {count:,} idle ones / all waiting for work",
        " / ".join(f"{megabytes(value)} MB" for value in (before_bytes, idle_bytes, waiting_bytes)),
    )
    yield (
        "round trip of one alone / among them",
        f"p50 {alone.p50_ms:.2f} / {among.p50_ms:.2f} ms, "
        f"p99 {alone.p99_ms:.2f} / {among.p99_ms:.2f} ms",
    )
    yield (
        f"a line that comes back reaches one of {count:,} that wait",
        f"median {statistics.median(wakes) * 1e3:.1f} ms, longest {max(wakes) * 1e3:.1f} ms",
    )


def _ping(sock: socket.socket) -> None:
    sock.sendall(b'{"op":"ping"}\n')
    sock.recv(100)


def _time_wakes(site: Site, socks: Sequence[socket.socket]) -> list[float]:
    """Hold every line, let the others wait, and give one line back at a time."""
    times = []
    poll = select.epoll()
    with connect(site.address) as holder, holder.makefile("rb") as stream:
        held: list[int] = []
        while items := ask(holder, stream.readline, op="get", max=10_000).get("items"):
            held += [item["id"] for item in items]
        for sock in socks:
            poll.register(sock, select.EPOLLIN)
            sock.sendall(b'{"op":"get","wait":600}\n')
        _wait_idle(site.server)
        for line in held[:WAKES]:
            begin_at = time.monotonic()
            ask(holder, stream.readline, op="release", ids=[line])
            woken = poll.poll(DEADLINE_SECONDS)
            times.append(time.monotonic() - begin_at)
            for fd, _ in woken:
                poll.unregister(fd)
            if len(woken) != 1:
                raise Failed(f"{len(woken)} connections heard of one line that came back")
    return times


def _wait_idle(server: Child) -> None:
    """Wait until a server has done all there is."""
    before, now = -1.0, server.processor_seconds()
    deadline = time.monotonic() + DEADLINE_SECONDS
    while now - before > IDLE_SHARE * LOOK_SECONDS:
        if time.monotonic() > deadline:
            raise Failed(f"the server is not idle after {DEADLINE_SECONDS:g} seconds")
        time.sleep(LOOK_SECONDS)
        before, now = now, server.processor_seconds()


def starts(place: Place) -> Iterator[Row]:
    """How long commands take to start."""
    bare = statistics.median(_run_seconds(TRIOLINE[0], "-c", "pass") for _ in range(STARTS))
    help_ = statistics.median(_run_seconds(*TRIOLINE, "--help") for _ in range(STARTS))
    yield "python -c pass", f"{bare:.2f} s"
    yield "trioline --help", f"{help_:.2f} s"
    times = []
    for _ in range(STARTS):
        begin_at = time.monotonic()
        with place.trioline(place.inputs.file(BATCH)):
            times.append(time.monotonic() - begin_at)
    yield "trioline serve until it listens, a fresh job", f"{statistics.median(times):.2f} s"


def _run_seconds(*command: str) -> float:
    begin_at = time.monotonic()
    subprocess.run(command, cwd=ROOT, stdout=subprocess.DEVNULL, check=True)
    return time.monotonic() - begin_at
