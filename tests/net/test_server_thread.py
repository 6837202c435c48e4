"""Calls in a thread: real ones, for what they wake is a real descriptor."""

from __future__ import annotations

import functools
import os
import threading
import time

import pytest
import trio
import trio.testing

from trioline.server.thread import Thread

DEADLINE_SECONDS = 10.0


def failing() -> None:
    raise ValueError("as said")


async def test_calls_give_what_they_return_or_raise() -> None:
    main = threading.get_ident()
    with Thread() as thread, trio.fail_after(DEADLINE_SECONDS):
        for number in range(100):
            assert await thread.call(functools.partial(abs, number)) == number
            with pytest.raises(ValueError, match="as said"):
                await thread.call(failing)
        assert await thread.call(threading.get_ident) != main


async def test_other_tasks_run_meanwhile() -> None:
    go_on = threading.Event()
    with Thread() as thread, trio.fail_after(DEADLINE_SECONDS):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(thread.call, lambda: go_on.wait(DEADLINE_SECONDS))
            await trio.testing.wait_all_tasks_blocked()
            go_on.set()
    assert go_on.is_set()


@pytest.mark.parametrize("is_early", [True, False])
async def test_a_cancelled_call_is_waited_for(*, is_early: bool) -> None:
    go_on, ended = threading.Event(), list[bool]()

    def call() -> None:
        ended.append(go_on.wait(DEADLINE_SECONDS))

    with Thread() as thread, trio.fail_after(DEADLINE_SECONDS):
        async with trio.open_nursery() as nursery:
            if is_early:
                nursery.cancel_scope.cancel()
            nursery.start_soon(thread.call, call)
            with trio.CancelScope(shield=True):
                await trio.testing.wait_all_tasks_blocked()
                nursery.cancel_scope.cancel()
                await trio.testing.wait_all_tasks_blocked()
                assert not ended
                go_on.set()
        assert ended == [True]
        assert await thread.call(lambda: 7) == 7, "nothing of the call before is left"


async def test_an_error_is_raised_also_where_it_is_cancelled() -> None:
    def call() -> None:
        time.sleep(0.001)
        failing()

    with Thread() as thread, trio.CancelScope() as scope:
        scope.cancel()
        with pytest.raises(ValueError, match="as said"):
            await thread.call(call)


async def test_nothing_stays_open() -> None:
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        with Thread() as thread:
            await thread.call(lambda: None)
    assert len(os.listdir("/proc/self/fd")) == before
