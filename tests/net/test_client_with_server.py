"""The client and the real server together, as processes and through real sockets."""

from __future__ import annotations

import functools
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest
from backends import both_backends, run

from trioline.client.blocking import Client
from trioline.client.each import each_function
from trioline.client.item import Item, Raw
from trioline.client.pool import exec_function
from trioline.client.worker import WorkerSummary, run_worker

COUNT = 3_000


class Job:
    """A served file; ``start`` may be called again after a kill."""

    def __init__(self, folder: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.input, self.output = folder / "in.jsonl", folder / "out.jsonl"
        self.input.write_bytes(b"".join(b'{"n":%d}\n' % n for n in range(COUNT)))
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def start(self) -> None:
        command = [sys.executable, "-m", "trioline", "serve", str(self.input), str(self.output)]
        options = ["--port", str(self.port), "--linger", "1", "--quiet"]
        self._process = subprocess.Popen([*command, *options], stdout=subprocess.PIPE)
        assert self._process.stdout is not None
        assert self._process.stdout.readline().startswith(b"trioline listening")

    def kill(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._end(self._process)

    def finish(self) -> int:
        assert self._process is not None
        status = self._process.wait(20)
        self._end(self._process)
        return status

    def close(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self.kill()

    def _end(self, process: subprocess.Popen[bytes]) -> None:
        process.wait()
        if process.stdout is not None:
            process.stdout.close()

    def is_right(self, answer: Callable[[int], bytes]) -> bool:
        expected = b"".join(answer(number) + b"\n" for number in range(COUNT))
        return self.output.read_bytes() == expected


@pytest.fixture
def job(tmp_path: Path) -> Iterator[Job]:
    made = Job(tmp_path)
    made.start()
    yield made
    made.close()


async def twice(item: Item) -> Any:  # noqa: ANN401 - whatever the line holds
    return 2 * item.data["n"]


def even(number: int) -> bytes:
    return b"%d" % (2 * number)


@pytest.mark.slow
@both_backends
def test_a_worker_does_the_job(backend: str, job: Job) -> None:
    summary = run(backend, functools.partial(run_worker, twice, job.address, concurrency=4))
    assert (summary.complete, summary.done, summary.failed) == (True, COUNT, 0)
    assert job.finish() == 0
    assert job.is_right(even)


@pytest.mark.slow
@both_backends
def test_a_worker_goes_on_after_the_server_was_killed(backend: str, job: Job) -> None:
    async def main() -> WorkerSummary:
        killed = False

        async def answer(item: Item) -> Any:  # noqa: ANN401
            nonlocal killed
            if item.id >= COUNT // 2 and not killed:
                killed = True
                await anyio.to_thread.run_sync(job.kill)
                await anyio.to_thread.run_sync(job.start)
            return 2 * item.data["n"]

        return await run_worker(answer, job.address, concurrency=4, batch=50)

    summary = run(backend, main)
    assert summary.complete
    assert job.finish() == 0
    assert job.is_right(even)


@pytest.mark.slow
def test_a_client_goes_on_after_the_server_was_killed(job: Job) -> None:
    killed = False
    with Client(job.address, batch=50) as client:
        for item in client:
            if item.id == COUNT // 2 and not killed:
                killed = True
                job.kill()
                job.start()
            client.done(item, 2 * item.data["n"])
    assert job.finish() == 0
    assert job.is_right(even)


@pytest.mark.slow
@both_backends
def test_shell_commands_do_the_job(backend: str, job: Job) -> None:
    async def main() -> None:
        async with exec_function("sed -u 's/n/m/'") as function:
            await run_worker(function, job.address, concurrency=2)

    run(backend, main)
    assert job.finish() == 0
    assert job.is_right(lambda number: b'{"m":%d}' % number)


@pytest.mark.slow
@both_backends
def test_workers_of_all_kinds_share_a_job(backend: str, job: Job) -> None:
    async def copy(item: Item) -> Raw:
        return Raw(item.raw)

    def plain() -> None:
        with Client(job.address) as client:
            for item in client:
                client.done(item, item.data)

    async def main() -> None:
        async with (
            exec_function("cat") as cat,
            each_function("cat") as each,
            anyio.create_task_group() as tasks,
        ):
            tasks.start_soon(functools.partial(run_worker, cat, job.address))
            tasks.start_soon(run_worker, each, job.address)
            tasks.start_soon(run_worker, copy, job.address)
            tasks.start_soon(anyio.to_thread.run_sync, plain)

    run(backend, main)
    assert job.finish() == 0
    assert job.is_right(lambda number: b'{"n":%d}' % number)
