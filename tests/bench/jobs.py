"""Whole jobs of trioline and of the floor, with plain workers, and with the bundled ones."""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import attrs
from inputs import LINE_BYTES, Inputs, check_same
from measure import BENCH, DEADLINE_SECONDS, Child, Failed, Sample, script, started, weigh
from plain_worker import connect

WORKERS = 2
TRIOLINE = (sys.executable, "-m", "trioline")
FLOORS = {
    "none": script("floor.py"),
    "sync": script("floor.py"),
    "check": (sys.executable, BENCH / "floor.py"),
    "trio": (sys.executable, BENCH / "bare_trio.py"),
    "trio-sync": (sys.executable, BENCH / "bare_trio.py"),
}
FLOOR_POLICY = {"always": "sync", "interval": "none", "never": "none"}
LOOK_SECONDS = 0.01


@attrs.frozen
class Site:
    """A server that listens, and its files."""

    server: Child
    address: str
    source: Path
    folder: Path

    @property
    def output(self) -> Path:
        """What it writes."""
        return self.folder / "output"

    def ask(self, **request: object) -> dict[str, Any]:
        """Ask a trioline one thing, on a connection of its own."""
        with connect(self.address) as sock, sock.makefile("rb") as stream:
            return ask(sock, stream.readline, **request)


def ask(sock: socket.socket, readline: Callable[[], bytes], **request: object) -> dict[str, Any]:
    """Send one request and read its reply.

    Raises:
        Failed: It is refused.
    """
    sock.sendall(json.dumps(request).encode() + b"\n")
    reply: dict[str, Any] = json.loads(readline())
    if not reply["ok"]:
        raise Failed(f"{request['op']}: {reply['message']}")
    return reply


class Place:
    """Where jobs are run: each in a folder of its own, removed behind it.

    Args:
        folder: On the disk that is to be measured.
        inputs: Their inputs.
    """

    def __init__(self, folder: Path, inputs: Inputs) -> None:
        self.inputs = inputs
        self._folder = folder

    @contextlib.contextmanager
    def folder(self) -> Iterator[Path]:
        """An empty folder."""
        path = Path(tempfile.mkdtemp(dir=self._folder))
        try:
            yield path
        finally:
            shutil.rmtree(path)

    @contextlib.contextmanager
    def trioline(self, source: Path, *options: str | Path) -> Iterator[Site]:
        """Serve an input with trioline."""
        with self.folder() as folder, serve(source, folder, *options) as site:
            yield site

    @contextlib.contextmanager
    def floor(self, source: Path, policy: str) -> Iterator[Site]:
        """Serve an input with the floor."""
        with self.folder() as folder:
            command = (*FLOORS[policy], source, folder / "output", policy)
            with started(*command, folder=folder) as server:
                yield Site(server, server.line(), source, folder)


@contextlib.contextmanager
def serve(source: Path, folder: Path, *options: str | Path) -> Iterator[Site]:
    """Serve an input with trioline, with its files in a folder that stays."""
    command = (*TRIOLINE, "serve", source, folder / "output", "--quiet", "--port", "0")
    with started(*command, "--linger", "60", *options, folder=folder) as server:
        said = server.line()
        yield Site(server, said.rpartition("//")[2], source, folder)


@contextlib.contextmanager
def plain_workers(
    site: Site, batch: int, form: str = "lines", connections: int = 1
) -> Iterator[Sequence[Child]]:
    """Start two plain workers, each with so many connections."""
    command = (*script("plain_worker.py"), site.address, str(batch), form, str(connections))
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(started(*command, folder=site.folder)) for _ in range(WORKERS)]


def with_plain_workers(
    site: Site, batch: int, form: str = "lines", connections: int = WORKERS
) -> Sample:
    """Let two plain workers do a job, and weigh it."""
    with plain_workers(site, batch, form, connections // WORKERS) as workers:
        sample = weigh(site.server, workers, workers)
    check_same(site.source, site.output)
    return sample


def plain_job(
    place: Place,
    policy: str,
    batch: int,
    count: int,
    *,
    form: str = "lines",
    connections: int = WORKERS,
    line_bytes: int = LINE_BYTES,
) -> Sample:
    """Do a job of trioline's with plain workers."""
    source = place.inputs.file(count, line_bytes)
    with place.trioline(source, "--fsync", policy) as site:
        return with_plain_workers(site, batch, form, connections)


def floor_job(
    place: Place,
    policy: str,
    batch: int,
    count: int,
    *,
    connections: int = WORKERS,
    line_bytes: int = LINE_BYTES,
) -> Sample:
    """Do the same with the floor."""
    source = place.inputs.file(count, line_bytes)
    with place.floor(source, policy) as site:
        return with_plain_workers(site, batch, connections=connections)


# --- the bundled worker and the blocking client --------------------------------------------------


def bundled_job(place: Place, policy: str, count: int, *work: str) -> Sample:
    """Do a job with ``trioline work`` in two processes."""
    with place.trioline(place.inputs.file(count), "--fsync", policy) as site:
        command = (*TRIOLINE, "work", site.address, *work, "--quiet", "-j", str(WORKERS))
        site.ask(op="set", paused=True)
        with started(*command, folder=site.folder):
            _wait_connected(site)
            return _until_written(site, count)


def blocking_job(place: Place, policy: str, count: int) -> Sample:
    """Do a job with the blocking client in a plain loop, in two processes."""
    with place.trioline(place.inputs.file(count), "--fsync", policy) as site:
        command = (sys.executable, BENCH / "blocking_worker.py", site.address)
        site.ask(op="set", paused=True)
        with contextlib.ExitStack() as stack:
            for _ in range(WORKERS):
                stack.enter_context(started(*command, folder=site.folder))
            _wait_connected(site)
            return _until_written(site, count)


def _wait_connected(site: Site) -> None:
    """Wait for the workers of a paused job: their start is not what is measured."""
    give_up_at = time.monotonic() + DEADLINE_SECONDS
    while len(site.ask(op="status")["workers"]) < WORKERS:
        if time.monotonic() > give_up_at:
            raise Failed("the workers do not come")
        time.sleep(LOOK_SECONDS)


def _until_written(site: Site, count: int) -> Sample:
    before = site.server.processor_seconds()
    begin_at = time.monotonic()
    with connect(site.address) as sock, sock.makefile("rb") as stream:
        ask(sock, stream.readline, op="set", paused=False)
        while ask(sock, stream.readline, op="status")["written"] < count:
            if time.monotonic() > begin_at + DEADLINE_SECONDS:
                raise Failed("the job does not end")
            time.sleep(LOOK_SECONDS)
    sample = Sample(
        lines=count,
        seconds=time.monotonic() - begin_at,
        server_seconds=site.server.processor_seconds() - before,
        server_bytes=site.server.peak_bytes(),
    )
    check_same(site.source, site.output)
    return sample
