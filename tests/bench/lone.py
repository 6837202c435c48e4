"""How long a lone worker waits for a line's round trip, idle and beside others."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import attrs
from jobs import FLOOR_POLICY, Place, Site, plain_workers
from measure import Child, Failed, script, started

BUSY_CONNECTIONS = 64
BUSY_LINES_A_TRIP = 300
"""So many lines the busy connections get for each of the lone one's, at the most."""


@attrs.frozen
class Trips:
    """How long round trips took."""

    p50_ms: float
    p99_ms: float


def time_trips(site: Site, count: int, form: str) -> Trips:
    """Time the round trips of a lone worker."""
    command = (*script("round_trip.py"), site.address, str(count), form)
    with started(*command, folder=site.folder) as lone:
        return read_trips(lone)


def read_trips(lone: Child) -> Trips:
    """Let a lone worker go, and sum up its times."""
    lone.line()
    lone.begin()
    times = sorted(map(float, lone.line().split()))
    if not times:
        raise Failed("the lone worker got no line: the others had done all of them")
    return Trips(times[len(times) // 2] / 1e3, times[len(times) * 99 // 100] / 1e3)


def idle_trips(place: Place, policy: str, count: int, form: str, *, is_floor: bool) -> Trips:
    """Time them where nobody else is connected."""
    source = place.inputs.file(count + 1)
    if is_floor:
        with place.floor(source, FLOOR_POLICY[policy]) as site:
            return time_trips(site, count, form)
    with place.trioline(source, "--fsync", policy) as site:
        return time_trips(site, count, form)


def busy_trips(place: Place, policy: str, count: int, *, is_floor: bool) -> Trips:
    """Time them beside 64 connections that take and hand in a line at a time."""
    source = place.inputs.file(count * BUSY_LINES_A_TRIP)
    with contextlib.ExitStack() as stack:
        if is_floor:
            site = stack.enter_context(place.floor(source, FLOOR_POLICY[policy]))
        else:
            site = stack.enter_context(place.trioline(source, "--fsync", policy))
        stack.enter_context(_busy(site))
        return time_trips(site, count, "together")


@contextlib.contextmanager
def _busy(site: Site) -> Iterator[None]:
    with plain_workers(site, 1, "lines", BUSY_CONNECTIONS // 2) as workers:
        for worker in workers:
            worker.line()
            worker.begin()
        yield
