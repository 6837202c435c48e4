"""What is measured, by row and column, each with about so many lines as a second takes."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence

import attrs
from inputs import WIDE_LINE_BYTES
from jobs import Place, blocking_job, bundled_job, floor_job, plain_job
from lone import BUSY_CONNECTIONS, Trips, busy_trips, idle_trips
from measure import Sample
from peers import echo_job, parallel_job, python_job, queue_job
from table import (
    BARE_CROWD,
    BARE_CROWD_SYNC,
    BARE_TRIO,
    BARE_TRIO_SYNC,
    FLOOR,
    FLOOR_CHECK,
    FLOOR_CROWD,
    FLOOR_CROWD_SYNC,
    FLOOR_SYNC,
    FLOOR_WIDE,
)

POLICIES = ("never", "interval", "always")
FLOOR_OF = {"never": FLOOR, "interval": FLOOR, "always": FLOOR_SYNC}
BATCHES = (1, 10, 100, 1000, 10_000)
SPEEDS = dict(zip(BATCHES, (10_000, 80_000, 400_000, 800_000, 800_000), strict=True))
SYNCED_SPEEDS = dict(zip(BATCHES, (2_000, 20_000, 150_000, 600_000, 800_000), strict=True))
ITEMS_SPEEDS = dict(zip(BATCHES, (8_000, 60_000, 250_000, 300_000, 300_000), strict=True))
MAX_LINES = 1_000_000
MIN_BATCHES = 20
TRIPS_A_SECOND = 2_000


@attrs.frozen(eq=False)
class Cell:
    """One thing to measure."""

    row: str
    column: str
    measure: Callable[[], Sample | Trips]
    floor: str | None = None
    """The row that it is measured against."""

    @property
    def name(self) -> str:
        """Of row and column."""
        return f"{self.row}/{self.column}"


class Cells:
    """Makes them.

    Args:
        place: Where they are run.
        seconds: What each should take, about.
        peers_python: The interpreter that has RQ and Dask.
    """

    def __init__(self, place: Place, seconds: float, peers_python: str) -> None:
        self._place = place
        self._seconds = seconds
        self._peers_python = peers_python

    def floors(self) -> Iterator[Cell]:
        """The bare loops, and the bare bytes."""
        floors = {"check": FLOOR, "trio": FLOOR, "trio-sync": FLOOR_SYNC}
        for batch in BATCHES:
            yield self._cell("loopback echo", batch, echo_job, batch, self._lines(SPEEDS, batch))
        for row, policy, speeds in (
            (FLOOR, "none", SPEEDS),
            (FLOOR_CHECK, "check", SPEEDS),
            (FLOOR_SYNC, "sync", SYNCED_SPEEDS),
            (BARE_TRIO, "trio", SPEEDS),
            (BARE_TRIO_SYNC, "trio-sync", SYNCED_SPEEDS),
        ):
            for batch in BATCHES:
                count = self._lines(speeds, batch)
                floor = floors.get(policy)
                yield self._cell(row, batch, floor_job, policy, batch, count, floor=floor)

    def plain(self) -> Iterator[Cell]:
        """Plain workers in both forms."""
        for form in ("lines", "items"):
            for policy in POLICIES:
                speeds = SYNCED_SPEEDS if policy == "always" else SPEEDS
                if form == "items":
                    speeds = {batch: min(speeds[batch], ITEMS_SPEEDS[batch]) for batch in BATCHES}
                for batch in BATCHES:
                    count = self._lines(speeds, batch)
                    job = functools.partial(plain_job, form=form)
                    row = f"{form} form, {policy}"
                    floor = FLOOR_OF[policy]
                    yield self._cell(row, batch, job, policy, batch, count, floor=floor)

    def crowd(self) -> Iterator[Cell]:
        """64 connections at batch 1."""
        count = self._count(20_000)
        for row, policy, floor in (
            (FLOOR_CROWD, "none", None),
            (FLOOR_CROWD_SYNC, "sync", None),
            (BARE_CROWD, "trio", FLOOR_CROWD),
            (BARE_CROWD_SYNC, "trio-sync", FLOOR_CROWD_SYNC),
        ):
            job = functools.partial(floor_job, connections=BUSY_CONNECTIONS)
            yield self._cell(row, 1, job, policy, 1, count, floor=floor)
        for policy in ("interval", "always"):
            floor = FLOOR_CROWD_SYNC if policy == "always" else FLOOR_CROWD
            job = functools.partial(plain_job, connections=BUSY_CONNECTIONS)
            row = f"64 connections, {policy}"
            yield self._cell(row, 1, job, policy, 1, count, floor=floor)

    def wide(self) -> Iterator[Cell]:
        """20 kB lines at batch 10."""
        count = self._count(10_000)
        floor = functools.partial(floor_job, line_bytes=WIDE_LINE_BYTES)
        yield self._cell(FLOOR_WIDE, 10, floor, "none", 10, count)
        lines = functools.partial(plain_job, line_bytes=WIDE_LINE_BYTES)
        row = "20 kB lines, interval"
        yield self._cell(row, 10, lines, "interval", 10, count, floor=FLOOR_WIDE)
        redis = functools.partial(
            queue_job, jobs_a_take=10, sends="apart", line_bytes=WIDE_LINE_BYTES
        )
        yield self._cell("Redis lists, 20 kB lines", 10, redis, "redis", count)

    def clients(self) -> Iterator[Cell]:
        """The bundled worker and the blocking client; the batches are theirs."""
        count = self._count(100_000)
        for row, work in (
            ("bundled worker, async", ("functions:echo_async",)),
            ("bundled worker, sync", ("functions:echo",)),
            ("bundled worker, --exec cat", ("--exec", "cat")),
        ):
            job = functools.partial(bundled_job, self._place, "interval", count, *work)
            yield Cell(row, "own", job)
        yield self._cell("blocking client", 100, blocking_job, "interval", count, floor=FLOOR)

    def peers(self) -> Iterator[Cell]:
        """The neighbours."""
        speeds = {1: 10_000, 10: 60_000, 100: 150_000, 1000: 150_000}
        for row, sends in (("Redis lists", "apart"), ("Redis lists, one send", "together")):
            for batch, speed in speeds.items():
                redis = functools.partial(queue_job, jobs_a_take=batch, sends=sends)
                yield self._cell(row, batch, redis, "redis", self._count(speed, batch))
        for row, kind, batch, speed in (
            ("Redis lists, one send, a batch a value", "redis", 100, 400_000),
            ("beanstalkd", "beanstalkd", 1, 6_000),
            ("beanstalkd", "beanstalkd", 100, 200_000),
        ):
            job = functools.partial(queue_job, lines_a_job=batch)
            yield self._cell(row, batch, job, kind, self._count(speed, batch))
        for batch, speed, options in (
            (1, 300, ("echo",)),
            (100, 8_000, ("--pipe", "-N100", "cat")),
            (1000, 1_000_000, ("--pipe", "--block", "10M", "cat")),
        ):
            count = self._count(speed, batch)
            yield self._cell("GNU parallel", batch, parallel_job, count, *options)
        for row, kind in (("RQ", "rq"), ("Dask", "dask")):
            for batch, speed in ((1, 500), (100, 20_000)):
                count = self._count(speed, batch)
                python = self._peers_python
                yield self._cell(row, batch, python_job, python, kind, count, batch)

    def lone(self) -> Iterator[Cell]:
        """Round trips of one worker; the column says beside whom."""
        count = self._count(TRIPS_A_SECOND)
        for is_floor, name in ((True, "floor"), (False, "trioline")):
            for policy in ("never", "always"):
                for form in ("together", "apart"):
                    row = f"round trip, {name}, {policy}, done and get {form}"
                    idle = functools.partial(idle_trips, is_floor=is_floor)
                    yield self._cell(row, 1, idle, policy, count, form)
                row = f"round trip, {name}, {policy}, together, beside {BUSY_CONNECTIONS} others"
                busy = functools.partial(busy_trips, is_floor=is_floor)
                yield self._cell(row, 1, busy, policy, max(count // 5, 100))

    def _cell(
        self,
        row: str,
        batch: int,
        job: Callable[..., Sample | Trips],
        *arguments: object,
        floor: str | None = None,
    ) -> Cell:
        return Cell(row, str(batch), functools.partial(job, self._place, *arguments), floor)

    def _lines(self, speeds: dict[int, int], batch: int) -> int:
        return self._count(speeds[batch], batch)

    def _count(self, speed: int, batch: int = 1) -> int:
        count = max(int(speed * self._seconds), MIN_BATCHES * batch)
        return min(-(-count // batch) * batch, MAX_LINES)


def all_cells(place: Place, seconds: float, peers_python: str) -> Sequence[Cell]:
    """Everything that a run measures."""
    cells = Cells(place, seconds, peers_python)
    return [
        *cells.floors(),
        *cells.plain(),
        *cells.crowd(),
        *cells.wide(),
        *cells.clients(),
        *cells.peers(),
        *cells.lone(),
    ]
