"""What a batch costs the server, counted: a guard against slow decay that no busy machine disturbs.

A real server on a real socket, with one client that sends a ``done`` and the next ``get`` together.
The bounds are about half as much again as what was counted when they were set. Who goes over one
looks where the new calls come from; who goes far below one lowers it.
"""

from __future__ import annotations

import contextlib
import json
import re
import sys
import tracemalloc
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import attrs
import pytest
import trio
import trio.testing
from storage_helpers import settings_for

from trioline.config import Fsync, LeaseSettings, ServerSettings
from trioline.server.app import Server
from trioline.storage import Job, OsFiles
from trioline.storage.system import Stat

DEADLINE_SECONDS = 20.0
WARM_UP = 5
ROUNDS = 20
LINE = b'{"prompt":"%d %b"}\n'
BATCH_COSTS = {
    "call": 540,  # of Python's functions and C's, in the server's tasks, trio's own included
    "step": 3,  # of tasks
    "recv": 1.5,
    "send": 1.5,
    "pread": 5,
    "pwrite": 3,
    "stat": 3,
    "sync": 0.5,  # now and then
}
SYNCED_BATCH_COSTS = {**BATCH_COSTS, "step": 4.5, "sync": 1.5}
"""With a hop to a thread and back."""
SOCKET_CALLS = {"recv": "recv", "read": "recv", "send": "send", "writev": "send"}
"""A file's data is neither read nor written by these."""
WAITING = 50
WAKING_STEPS = 8
SETTLE_SECONDS = 0.02
BYTES_A_LEASED_LINE = 10
WORK = re.compile(rb'"first":(\d+),"count":(\d+),"bytes":(\d+)')


class Client:
    """A lean client that does one batch a call."""

    def __init__(self, stream: trio.SocketStream, form: str, batch: int) -> None:
        self._stream = stream
        self._is_items = form == "items"
        self._get = b'{"op":"get","max":%d,"wait":10,"form":"%b"}\n' % (batch, form.encode())

    async def begin(self) -> None:
        """Lease the first batch."""
        await self._stream.send_all(self._get)
        self._work = await self._read(line_count=1)

    async def exchange(self) -> None:
        """Hand a batch in and lease the next one."""
        await self._stream.send_all(self._done() + self._get)
        replies = await self._read(line_count=2)
        acknowledgement, _, self._work = replies.partition(b"\n")
        assert acknowledgement.startswith(b'{"ok":true,"accepted":'), acknowledgement

    def _done(self) -> bytes:
        envelope, _, body = self._work.partition(b"\n")
        if self._is_items:
            items = json.loads(envelope)["items"]
            results = [{"id": item["id"], "result": item["data"]} for item in items]
            return json.dumps({"op": "done", "results": results}).encode() + b"\n"
        first, count, size = map(int, WORK.search(envelope).groups())  # type: ignore[union-attr]
        assert len(body) == size
        return b'{"op":"done","first":%d,"count":%d,"bytes":%d}\n%b' % (first, count, size, body)

    async def _read(self, *, line_count: int) -> bytes:
        data = b""
        while not self._is_whole(data, line_count):
            more = await self._stream.receive_some(1 << 20)
            assert more, f"the server closed the connection: {data[:200]!r}"
            data += more
        return data

    def _is_whole(self, data: bytes, line_count: int) -> bool:
        if data.count(b"\n") < line_count:
            return False
        head = b"\n".join(data.split(b"\n", line_count)[:line_count]) + b"\n"
        work = WORK.search(head)
        return work is None or len(data) == len(head) + int(work[3])


class CountingFiles(OsFiles):
    """Counts the system calls of storage by name, in whatever thread they are made."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()

    def pread(self, fd: int, count: int, offset: int) -> bytes:
        self.counts["pread"] += 1
        return super().pread(fd, count, offset)

    def pwrite(self, fd: int, data: bytes | memoryview, offset: int) -> int:
        self.counts["pwrite"] += 1
        return super().pwrite(fd, data, offset)

    def sync(self, fd: int) -> None:
        self.counts["sync"] += 1
        super().sync(fd)

    def fstat(self, fd: int) -> Stat:
        self.counts["stat"] += 1
        return super().fstat(fd)

    def size(self, fd: int) -> int:
        self.counts["stat"] += 1
        return super().size(fd)

    def stat(self, path: Path) -> Stat:
        self.counts["stat"] += 1
        return super().stat(path)

    def identity(self, path: str) -> tuple[int, int]:
        self.counts["stat"] += 1
        return super().identity(path)


class Steps(trio.abc.Instrument):
    """Counts what other tasks than the present one do: their steps, and calls in them by name."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self._client = trio.lowlevel.current_task()

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        if task is not self._client:
            self.counts["step"] += 1
            sys.setprofile(self._called)

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        sys.setprofile(None)

    def _called(self, frame: FrameType, event: str, argument: Any) -> None:  # noqa: ANN401
        if event in ("call", "c_call"):
            self.counts["call"] += 1
        if event == "c_call" and argument.__name__ in SOCKET_CALLS:
            self.counts[SOCKET_CALLS[argument.__name__]] += 1


@attrs.frozen
class Site:
    """A served job."""

    port: int
    files: CountingFiles


@contextlib.asynccontextmanager
async def served(folder: Path, fsync: Fsync, count: int) -> AsyncIterator[Site]:
    """Serve a job of ``count`` lines of 190 bytes; it is stopped at the end."""
    settings = attrs.evolve(settings_for(folder, fsync=fsync), max_line_bytes=1 << 20)
    settings.input.write_bytes(
        b"".join(LINE % (n, b"." * (176 - len(str(n)))) for n in range(count))
    )
    files = CountingFiles()
    job = Job.open(settings, files)
    server = Server(job, LeaseSettings(), ServerSettings(port=0, drain_seconds=0))
    with contextlib.closing(job), trio.fail_after(DEADLINE_SECONDS):
        async with trio.open_nursery() as nursery:
            (address,) = await nursery.start(server.run)
            assert address.port is not None
            yield Site(address.port, files)
            server.stop()


@contextlib.contextmanager
def counting() -> Iterator[Steps]:
    """Count what the server's tasks do."""
    steps = Steps()
    trio.lowlevel.add_instrument(steps)
    try:
        yield steps
    finally:
        trio.lowlevel.remove_instrument(steps)


async def cost_of_batch(folder: Path, fsync: Fsync, form: str, batch: int) -> dict[str, float]:
    """What one batch makes the server do, on average."""
    async with (
        served(folder, fsync, (WARM_UP + ROUNDS + 1) * batch) as site,
        await trio.open_tcp_stream("127.0.0.1", site.port) as stream,
    ):
        client = Client(stream, form, batch)
        await client.begin()
        for _ in range(WARM_UP):
            await client.exchange()
        site.files.counts.clear()
        with counting() as steps:
            for _ in range(ROUNDS):
                await client.exchange()
        both = steps.counts + site.files.counts
    return {name: number / ROUNDS for name, number in both.items()}


@pytest.mark.parametrize("form", ["lines", "items"])
@pytest.mark.parametrize("fsync", list(Fsync))
async def test_what_a_batch_costs(tmp_path: Path, fsync: Fsync, form: str) -> None:
    bounds = SYNCED_BATCH_COSTS if fsync is Fsync.ALWAYS else BATCH_COSTS
    costs = await cost_of_batch(tmp_path, fsync, form, 1)
    assert {"call", "step", "recv", "send", "pwrite"} <= set(costs)
    assert {name: cost for name, cost in costs.items() if cost > bounds[name]} == {}


@pytest.mark.parametrize(("form", "calls_a_line"), [("lines", 0.2), ("items", 5)])
async def test_what_a_further_line_costs(tmp_path: Path, form: str, calls_a_line: float) -> None:
    batch = 200
    costs = await cost_of_batch(tmp_path, Fsync.NEVER, form, batch)
    calls = costs.pop("call")
    assert calls <= BATCH_COSTS["call"] + calls_a_line * batch
    assert {name: cost for name, cost in costs.items() if cost > BATCH_COSTS[name]} == {}


async def test_a_line_that_comes_back_wakes_one_of_many(tmp_path: Path) -> None:
    async with served(tmp_path, Fsync.NEVER, 1) as site, contextlib.AsyncExitStack() as stack:

        async def connect() -> trio.SocketStream:
            stream = await trio.open_tcp_stream("127.0.0.1", site.port)
            return await stack.enter_async_context(stream)

        holder = await connect()
        await holder.send_all(b'{"op":"get"}\n')
        await holder.receive_some()
        for _ in range(WAITING):
            await (await connect()).send_all(b'{"op":"get","wait":10}\n')
        await trio.testing.wait_all_tasks_blocked(SETTLE_SECONDS)
        with counting() as steps:
            await holder.send_all(b'{"op":"release"}\n')
            await trio.testing.wait_all_tasks_blocked(SETTLE_SECONDS)
    assert steps.counts["send"] == 2, "the reply, and the line"
    assert steps.counts["step"] <= WAKING_STEPS


async def test_what_the_server_remembers_of_leased_lines(tmp_path: Path) -> None:
    batch, leases = 1_000, 20
    async with (
        served(tmp_path, Fsync.NEVER, (leases + 2) * batch) as site,
        await trio.open_tcp_stream("127.0.0.1", site.port) as stream,
    ):
        client = Client(stream, "lines", batch)
        await client.begin()
        tracemalloc.start()
        try:
            await client.begin()
            await trio.testing.wait_all_tasks_blocked()
            before, _ = tracemalloc.get_traced_memory()
            for _ in range(leases):
                await client.begin()
            await trio.testing.wait_all_tasks_blocked()
            after, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert (after - before) / (leases * batch) <= BYTES_A_LEASED_LINE
