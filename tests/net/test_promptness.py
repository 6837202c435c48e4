"""What comes back is in another's hands at once: real processes, real sockets, real time."""

from __future__ import annotations

import select
import statistics
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from processes import DEADLINE_SECONDS, Plain, Serve, numbers, serving

PROMPT_SECONDS = 1.0
"""For the slowest of all, on a busy machine: usually it is a millisecond."""
TIMES = 200
WAITING = 1_000
NOTHING_SECONDS = 0.2
"""For replies that must not come."""


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    """Serve a job that gives out one line at a time: nobody gets it until it comes back."""
    (tmp_path / "in").write_bytes(numbers(TIMES))
    options = ("--window", "1", "--hedge", "0", "--fsync", "never", "--linger", "20")
    with serving("in", "out", *options, cwd=tmp_path) as server:
        yield server


def wait_for_work(plain: Plain) -> None:
    """Send a ``get`` that waits, and let the server take it in."""
    plain.send(op="get", wait=DEADLINE_SECONDS)
    assert not select.select([plain], [], [], 0.002)[0]


def check(seconds: list[float]) -> None:
    """Tell (``pytest -rP``) and judge how long it took."""
    p50, longest = (1000 * figure(seconds) for figure in (statistics.median, max))
    print(f"p50 {p50:.2f} ms, max {longest:.2f} ms")
    assert max(seconds) < PROMPT_SECONDS


def test_a_released_line_is_with_whoever_waits_at_once(serve: Serve) -> None:
    seconds = []
    with Plain(serve.port) as holder, Plain(serve.port) as waiting:
        assert holder.get_items(1)
        for _ in range(TIMES):
            wait_for_work(waiting)
            began_at = time.perf_counter()
            holder.send(op="release", ids=[0])
            assert waiting.reply()["status"] == "work"
            seconds.append(time.perf_counter() - began_at)
            assert holder.reply()["released"] == 1
            holder, waiting = waiting, holder
    check(seconds)


def test_a_line_of_a_dropped_connection_is_with_whoever_waits_at_once(serve: Serve) -> None:
    seconds = []
    with Plain(serve.port) as waiting:
        for line in range(TIMES):
            holder = Plain(serve.port)
            assert holder.get_items(1)
            wait_for_work(waiting)
            began_at = time.perf_counter()
            holder.close()
            assert waiting.reply()["items"][0]["id"] == line
            seconds.append(time.perf_counter() - began_at)
            waiting.ask(op="done", results=[{"id": line, "result": line}])
    check(seconds)


@pytest.mark.slow
def test_of_a_thousand_that_wait_one_is_woken(serve: Serve) -> None:
    seconds = []
    with ExitStack() as stack:
        holder = stack.enter_context(Plain(serve.port))
        assert holder.get_items(1)
        waiting, poll = {}, select.poll()
        for _ in range(WAITING):
            one = stack.enter_context(Plain(serve.port))
            one.send(op="get", wait=DEADLINE_SECONDS)
            waiting[one.fileno()] = one
            poll.register(one, select.POLLIN)
        assert not poll.poll(1000 * NOTHING_SECONDS)
        for _ in range(20):
            began_at = time.perf_counter()
            holder.send(op="release", ids=[0])
            ((woken, _event),) = poll.poll(1000 * DEADLINE_SECONDS)
            seconds.append(time.perf_counter() - began_at)
            assert holder.reply()["released"] == 1
            holder = waiting[woken]
            assert holder.reply()["status"] == "work"
            poll.unregister(holder)
        assert not poll.poll(1000 * NOTHING_SECONDS), "nobody else was told anything"
    check(seconds)
