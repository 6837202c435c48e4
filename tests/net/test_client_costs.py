"""What a line costs a worker, counted: a guard against slow decay that no busy machine disturbs.

Counted are the calls of functions, Python's and C's, in all threads of the worker, in a job of many
quick lines with a real server. The bounds are about a third more than what was counted when they
were set. Who goes over one looks where the new calls come from; who goes far below one lowers it.
"""

from __future__ import annotations

import contextlib
import functools
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from backends import both_backends, run
from processes import Serve, serving

import trioline
from trioline.client.pool import exec_function

COUNT = 20_000
CONTENT = b"".join(b'{"n":%d}\n' % number for number in range(COUNT))


class Calls:
    """Calls of functions in the thread of the ``with`` block, and in those that begin meanwhile."""

    def __init__(self) -> None:
        self._count = 0

    @property
    def per_line(self) -> float:
        return self._count / COUNT

    def note(self, frame: FrameType, event: str, argument: Any) -> None:  # noqa: ANN401
        """Be a profile function."""
        if event in ("call", "c_call"):
            self._count += 1

    def __enter__(self) -> Calls:
        threading.setprofile(self.note)
        sys.setprofile(self.note)
        return self

    def __exit__(self, *_: object) -> None:
        sys.setprofile(None)
        threading.setprofile(None)


@contextlib.contextmanager
def served(folder: Path) -> Iterator[Serve]:
    """Serve the job; in the end its output must be what the input is."""
    (folder / "in").write_bytes(CONTENT)
    options = ("--fsync", "never", "--quiet", "--linger", "0.1")
    with serving("in", "out", *options, cwd=folder) as server:
        yield server
        assert server.wait().code == 0
    assert (folder / "out").read_bytes() == CONTENT


async def echo_async(item: trioline.Item) -> trioline.Raw:
    return trioline.Raw(item.raw)


def echo(item: trioline.Item) -> trioline.Raw:
    return trioline.Raw(item.raw)


async def parse(item: trioline.Item) -> dict[str, int]:
    return {"n": item.data["n"]}


async def echo_many(items: list[trioline.Item]) -> list[trioline.Raw]:
    return [trioline.Raw(item.raw) for item in items]


@both_backends
@pytest.mark.parametrize(
    ("function", "many", "bound"),
    [(echo_async, False, 19), (parse, False, 32), (echo_many, True, 24)],
)
def test_what_a_line_costs_an_async_function(
    backend: str, function: Callable[..., Any], many: bool, bound: float, tmp_path: Path
) -> None:
    with served(tmp_path) as server:
        work = functools.partial(trioline.run_worker, function, server.address, many=many)
        with Calls() as calls:
            run(backend, work)
    assert calls.per_line <= bound


@both_backends
def test_what_a_line_costs_a_function_in_threads(backend: str, tmp_path: Path) -> None:
    calls = Calls()

    def function(item: trioline.Item) -> trioline.Raw:
        sys.setprofile(calls.note)  # the thread may be one that was there before
        return echo(item)

    with served(tmp_path) as server, calls:
        run(backend, functools.partial(trioline.run_worker, function, server.address))
    assert calls.per_line <= 22


@both_backends
def test_what_a_line_costs_a_command(backend: str, tmp_path: Path) -> None:
    async def work() -> None:
        async with exec_function("cat") as function:
            await trioline.run_worker(function, server.address)

    with served(tmp_path) as server, Calls() as calls:
        run(backend, work)
    assert calls.per_line <= 5


@pytest.mark.parametrize(("batch", "bound"), [(None, 21), (100, 24)])
def test_what_a_line_costs_a_loop(batch: int | None, bound: float, tmp_path: Path) -> None:
    with (
        served(tmp_path) as server,
        Calls() as calls,
        trioline.Client(server.address, batch=batch) as client,
    ):
        for item in client:
            client.done(item, trioline.Raw(item.raw))
    assert calls.per_line <= bound


def test_names_are_looked_up_once() -> None:
    assert trioline.Raw is vars(trioline)["Raw"]
