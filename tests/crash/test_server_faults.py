"""A server on a disk that is full, breaks, or does not answer; its peers on real sockets."""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import trio
from odd_files import OddFiles
from storage_helpers import settings_for

from trioline.config import Fsync, LeaseSettings, ServerSettings
from trioline.errors import DiskFull, StorageError
from trioline.server import full_disk, writer
from trioline.server.app import Outcome, Server
from trioline.storage import Job, Results

LINES = 6
DEADLINE_SECONDS = 20.0
SOON_SECONDS = 0.15
"""For what must not happen: so long it is watched."""
SYNCED = [Fsync.ALWAYS, Fsync.INTERVAL]


class Peer:
    """A plain connection."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream
        self._buffer = b""

    async def send(self, **request: object) -> None:
        await self._stream.send_all(json.dumps(request).encode() + b"\n")

    async def reply(self) -> dict[str, Any] | None:
        """The next reply; None when the server has closed the connection."""
        while b"\n" not in self._buffer:
            try:
                data = await self._stream.receive_some()
            except trio.BrokenResourceError:
                data = b""
            if not data:
                return None
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        reply: dict[str, Any] = json.loads(line)
        return reply

    async def ask(self, **request: object) -> dict[str, Any]:
        await self.send(**request)
        reply = await self.reply()
        assert reply is not None
        return reply

    async def get(self, count: int = 1) -> list[int]:
        """Lease lines."""
        reply = await self.ask(op="get", max=count, wait=DEADLINE_SECONDS)
        return [item["id"] for item in reply["items"]]

    async def send_done(self, *lines: int) -> None:
        await self.send(op="done", results=[{"id": n, "result": n * n} for n in lines])

    async def wait_state(self, state: str) -> None:
        while (await self.ask(op="status"))["state"] != state:  # noqa: ASYNC110 - polled
            await trio.sleep(0.01)

    async def hears_nothing(self) -> bool:
        with trio.move_on_after(SOON_SECONDS) as scope:
            await self.reply()
        return scope.cancelled_caught


async def until(condition: Callable[[], bool]) -> None:
    """Look again and again: what is waited for comes from a thread, or is a line in a log."""
    while not condition():  # noqa: ASYNC110 - there is no event
        await trio.sleep(0.005)


class Place:
    """A job in a folder, and how its server's run ended."""

    def __init__(self, folder: Path, fsync: Fsync, *, segment_bytes: int = 1 << 20) -> None:
        self.settings = settings_for(folder, fsync=fsync)
        self.settings.input.write_bytes(b"".join(b"%d\n" % n for n in range(LINES)))
        self.files = OddFiles()
        self.segment_bytes = segment_bytes
        self.lease_timeout_seconds = 900.0
        self.outcome: Outcome | None = None
        self.errors: list[StorageError] = []

    @contextlib.asynccontextmanager
    async def serve(self) -> AsyncIterator[tuple[Server, Callable[[], Any]]]:
        """Serve the job; gives the server, and what makes a connection to it.

        At the end the server must end by itself, within the deadline.
        """
        job = Job.open(self.settings, self.files, segment_bytes=self.segment_bytes)
        leases = LeaseSettings(lease_timeout_seconds=self.lease_timeout_seconds)
        server = Server(job, leases, ServerSettings(port=0, linger_seconds=0.1))
        with contextlib.closing(job), trio.fail_after(DEADLINE_SECONDS):
            async with trio.open_nursery() as nursery, contextlib.AsyncExitStack() as streams:
                addresses = await nursery.start(self._run, server)

                async def connect() -> Peer:
                    port = addresses[0].port
                    stream = await trio.open_tcp_stream("127.0.0.1", port)
                    return Peer(await streams.enter_async_context(stream))

                try:
                    yield server, connect
                finally:
                    self.files.answers.set()

    async def _run(self, server: Server, *, task_status: trio.TaskStatus[Any]) -> None:
        try:
            self.outcome = await server.run(task_status=task_status)
        except* StorageError as group:
            self.errors = _leaves(group)

    def finish(self) -> list[int]:
        """Go on with a healthy disk, and say which lines were there.

        The output is right in the end.
        """
        job = Job.open(self.settings)
        there = [*range(job.written_count), *(n for part in job.ahead() for n in part)]
        job.commit([Results(n, 1, b"%d\n" % (n * n)) for n in range(LINES) if n not in there])
        job.finish(job.source.offset_of(LINES))
        job.close()
        assert self.settings.output.read_bytes() == b"".join(
            b"%d\n" % (n * n) for n in range(LINES)
        )
        assert not self.settings.rejected.read_bytes()
        return there


def _leaves(group: BaseExceptionGroup[StorageError]) -> list[StorageError]:
    leaves: list[StorageError] = []
    for error in group.exceptions:
        leaves += _leaves(error) if isinstance(error, BaseExceptionGroup) else [error]
    return leaves


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Less waiting: the tries on a full disk, and the durable points, come soon."""
    monkeypatch.setattr(full_disk, "RETRY_SECONDS", 0.01)
    monkeypatch.setattr(writer, "SYNC_INTERVAL_SECONDS", 0.05)


# --- errors that are final ------------------------------------------------------------------------

FINAL = [
    *(("sync", code) for code in (errno.EIO, errno.ENOSPC, errno.EDQUOT)),
    *(("pwrite", code) for code in (errno.EIO, errno.EROFS, errno.ESTALE)),
]


@pytest.mark.parametrize(("call", "code"), FINAL)
async def test_a_broken_disk_ends_the_server_without_an_answer(
    tmp_path: Path, call: str, code: int
) -> None:
    place = Place(tmp_path, Fsync.ALWAYS)
    async with place.serve() as (_, connect):
        ann, bob = await connect(), await connect()
        assert await ann.get() == [0]
        assert await bob.get() == [1]
        place.files.codes = {call: code}
        await ann.send_done(0)
        assert await ann.reply() is None
        assert await bob.reply() is None
    assert place.outcome is None
    (error,) = place.errors
    assert not isinstance(error, DiskFull)
    assert os.strerror(code) in str(error)
    assert str(place.settings.state) in str(error)
    assert error.path in str(error)
    assert place.files.failed_count == 1, "it was tried again"
    assert set(place.finish()) <= {0}


@pytest.mark.parametrize("fsync", Fsync)
async def test_a_failed_durable_point_ends_the_server(
    tmp_path: Path, fsync: Fsync, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was acknowledged before it is there: the process ended, the system did not."""
    monkeypatch.setattr(writer, "LAZY_SYNC_INTERVAL_SECONDS", 0.05)
    place = Place(tmp_path, fsync)
    async with place.serve() as (_, connect):
        ann = await connect()
        assert await ann.get(3) == [0, 1, 2]
        place.files.codes, place.files.only = {"sync": errno.EIO}, "out"
        await ann.send_done(0, 2)
        reply = await ann.reply()
        assert reply is not None
        assert reply["accepted"] == 2
        assert await ann.reply() is None
    assert [error.path for error in place.errors] == [str(place.settings.output)]
    assert place.files.failed_count == 1
    assert place.finish() == [0, 2]


# --- a full disk ----------------------------------------------------------------------------------


@pytest.mark.parametrize("fsync", Fsync)
async def test_a_full_disk_pauses_the_job_and_it_goes_on_by_itself(
    tmp_path: Path, fsync: Fsync, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "trioline.server")
    place = Place(tmp_path, fsync)
    async with place.serve() as (_, connect):
        ann, bob, eve = [await connect() for _ in range(3)]
        assert await ann.get() == [0]
        place.files.fill()
        await ann.send_done(0)
        assert await ann.hears_nothing()
        assert (await eve.ask(op="status"))["state"] == "disk-full"
        assert (await eve.ask(op="get", max=1))["status"] == "retry"
        await bob.send(op="get", max=1, wait=DEADLINE_SECONDS)
        assert await bob.hears_nothing()
        assert place.files.failed_count > 5
        (warning,) = caplog.messages
        assert "out" in warning
        assert os.strerror(errno.ENOSPC) in warning
        assert "goes on by itself" in warning
        place.files.mend()
        reply = await ann.reply()
        assert reply is not None
        assert reply["accepted"] == 1
        work = await bob.reply()
        assert work is not None
        assert [item["id"] for item in work["items"]] == [1]
        assert (await eve.ask(op="status"))["state"] == "running"
        rest = await ann.get(9)
        await ann.send_done(*rest, 1)
        await ann.reply()
    assert caplog.messages[1:] == ["There is room again: the job goes on."]
    assert place.outcome is Outcome.COMPLETE
    assert len(place.settings.output.read_bytes().splitlines()) == LINES


async def test_a_full_disk_is_told_of_now_and_then(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert full_disk.LOG_SECONDS == 30
    monkeypatch.setattr(full_disk, "LOG_SECONDS", 0.2)
    caplog.set_level(logging.WARNING, "trioline.server")
    place = Place(tmp_path, Fsync.ALWAYS)
    async with place.serve() as (server, connect):
        ann = await connect()
        await ann.get()
        place.files.fill()
        begin = trio.current_time()
        await ann.send_done(0)
        await until(lambda: len(caplog.messages) >= 3)
        assert trio.current_time() - begin >= 0.4
        place.files.mend()
        await ann.reply()
        server.stop()


@pytest.mark.parametrize("fsync", SYNCED)
async def test_a_full_disk_at_a_durable_point_is_waited_for(tmp_path: Path, fsync: Fsync) -> None:
    """Also at the last one: the job is not over before its checkpoint says so."""
    place = Place(tmp_path, fsync)
    async with place.serve() as (_, connect):
        ann, bob = await connect(), await connect()
        assert len(await ann.get(LINES)) == LINES
        place.files.fill()
        place.files.only = "checkpoint"
        await ann.send_done(0)
        assert await ann.reply()
        await bob.wait_state("disk-full")
        place.files.mend()
        await bob.wait_state("running")
        place.files.fill()
        await ann.send_done(*range(1, LINES))
        await bob.send(op="get", max=1, wait=DEADLINE_SECONDS)
        assert await bob.hears_nothing()
        place.files.mend()
        reply = await bob.reply()
        assert reply is not None
        assert reply["status"] == "complete"
    assert place.outcome is Outcome.COMPLETE


@pytest.mark.parametrize("fsync", Fsync)
async def test_a_signal_ends_a_server_on_a_full_disk_at_once(
    tmp_path: Path, fsync: Fsync, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing is drained for: no result could be taken. Nothing was answered either."""
    caplog.set_level(logging.WARNING, "trioline.server")
    place = Place(tmp_path, fsync)
    async with place.serve() as (server, connect):
        ann, bob = await connect(), await connect()
        assert await ann.get() == [0]
        assert await bob.get() == [1]
        await ann.send_done(0)
        assert await ann.reply()
        assert await ann.get() == [2]
        place.files.fill()
        await ann.send_done(2)
        assert await ann.hears_nothing()
        begin = trio.current_time()
        server.stop()
        assert await ann.reply() is None
        assert await bob.reply() is None
    assert trio.current_time() - begin < 1
    assert (place.outcome, place.errors) == (Outcome.STOPPED, [])
    assert (
        caplog.messages[-1] == "What could not be written was not acknowledged: it is done again."
    )
    assert place.finish() == [0]


async def test_a_disk_that_fills_while_the_server_drains_ends_the_wait(tmp_path: Path) -> None:
    place = Place(tmp_path, Fsync.ALWAYS)
    async with place.serve() as (server, connect):
        ann, bob = await connect(), await connect()
        assert await ann.get() == [0]
        assert await bob.get() == [1]
        server.stop()
        assert await ann.hears_nothing()
        place.files.fill()
        begin = trio.current_time()
        await ann.send_done(0)
        assert await ann.reply() is None
    assert trio.current_time() - begin < 1
    assert place.outcome is Outcome.STOPPED
    assert place.finish() == []


async def test_room_at_the_last_moment_is_used(tmp_path: Path) -> None:
    place = Place(tmp_path, Fsync.ALWAYS)
    async with place.serve() as (server, connect):
        ann = await connect()
        assert await ann.get() == [0]
        place.files.fill()
        await ann.send_done(0)
        assert await ann.hears_nothing()
        server.stop()
        place.files.mend()
    assert place.outcome is Outcome.STOPPED
    assert place.finish() == [0]


async def test_a_server_on_a_full_disk_can_be_cancelled(tmp_path: Path) -> None:
    """Something else went wrong: it must not wait for room, which may never come."""
    place = Place(tmp_path, Fsync.ALWAYS)
    with trio.CancelScope() as scope:
        async with place.serve() as (_, connect):
            ann = await connect()
            await ann.get()
            place.files.fill()
            await ann.send_done(0)
            assert await ann.hears_nothing()
            scope.cancel()
    assert scope.cancelled_caught
    assert place.finish() == []


class FewSegments(OddFiles):
    """A disk that has room for two segments of the journal."""

    def open(self, path: Path, flags: int) -> int:
        segments = list(path.parent.glob("journal-*"))
        is_new = path.name.startswith("journal-") and path not in segments
        self.codes = {"create": errno.ENOSPC} if is_new and len(segments) == 2 else {}
        return super().open(path, flags)


@pytest.mark.parametrize("sync_bytes", [1, 1 << 30])
@pytest.mark.parametrize("fsync", Fsync)
async def test_a_full_disk_gets_the_room_that_a_durable_point_makes(
    tmp_path: Path, fsync: Fsync, sync_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also that of one that is under way: no commit waits for what only comes behind it."""
    monkeypatch.setattr(writer, "SYNC_INTERVAL_SECONDS", DEADLINE_SECONDS)
    monkeypatch.setattr(writer, "SYNC_INTERVAL_BYTES", sync_bytes)
    place = Place(tmp_path, fsync, segment_bytes=1)
    place.files = FewSegments()
    async with place.serve() as (_, connect):
        ann = await connect()
        assert await ann.get(LINES) == [0, 1, 2, 3, 4, 5]
        for line in range(LINES):
            await ann.send_done(line)
            reply = await ann.reply()
            assert reply is not None
            assert reply["accepted"] == 1
    assert place.outcome is Outcome.COMPLETE


# --- a disk that does not answer ------------------------------------------------------------------


@pytest.mark.parametrize("fsync", Fsync)
async def test_commits_go_on_beside_a_durable_point_until_the_next_one_is_due(
    tmp_path: Path, fsync: Fsync, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "SYNC_INTERVAL_BYTES", 1)  # due after each commit
    place = Place(tmp_path, fsync)
    async with place.serve() as (server, connect):
        ann = await connect()
        assert await ann.get(4) == [0, 1, 2, 3]
        place.files.only = "out"
        place.files.answers.clear()
        await ann.send_done(0)
        assert await ann.reply()
        await until(lambda: place.files.is_waiting)
        await ann.send_done(1)
        assert await ann.reply()
        await ann.send_done(2)
        assert await ann.hears_nothing()
        place.files.answers.set()
        reply = await ann.reply()
        assert reply is not None
        assert reply["accepted"] == 1
        server.stop()
        server.stop()
    assert place.outcome is Outcome.STOPPED
    assert place.finish() == [0, 1, 2]


@pytest.mark.parametrize("fsync", SYNCED)
async def test_while_a_sync_hangs_the_connections_live(tmp_path: Path, fsync: Fsync) -> None:
    """Under ``interval`` it is the sync of a full segment, which comes amid a commit."""
    place = Place(tmp_path, fsync, segment_bytes=1)
    async with place.serve() as (server, connect):
        ann, bob = await connect(), await connect()
        assert await ann.get() == [0]
        await ann.send_done(0)
        assert await ann.reply()
        assert await ann.get() == [1]
        place.files.answers.clear()
        await ann.send_done(1)
        await until(lambda: place.files.is_waiting)
        assert (await bob.ask(op="ping"))["ok"]
        assert await bob.get() == [2]
        assert (await bob.ask(op="extend"))["ok"]
        assert (await bob.ask(op="status"))["state"] == "running"
        assert await ann.hears_nothing()
        place.files.answers.set()
        reply = await ann.reply()
        assert reply is not None
        assert reply["accepted"] == 1
        server.stop()
        server.stop()
    assert place.outcome is Outcome.STOPPED
    assert place.finish() == [0, 1]


async def test_what_came_in_time_does_not_expire_while_a_sync_hangs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither what waits for its commit nor what lies unread since the queue is full."""
    monkeypatch.setattr(writer, "MAX_QUEUED_RESULTS", 1)
    place = Place(tmp_path, Fsync.ALWAYS)
    place.lease_timeout_seconds = 1.0
    async with place.serve() as (_, connect):
        ann, bob = await connect(), await connect()
        assert await ann.get(LINES) == [0, 1, 2, 3, 4, 5]
        place.files.answers.clear()
        for line in range(LINES):
            await ann.send_done(line)
        await until(lambda: place.files.is_waiting)
        await bob.send(op="get", max=LINES, wait=DEADLINE_SECONDS)
        await trio.sleep(2)
        place.files.answers.set()
        replies = [await ann.reply() for _ in range(LINES)]
        assert [reply and reply["accepted"] for reply in replies] == [1] * LINES
        reply = await bob.reply()
        assert reply is not None
        assert reply["status"] == "complete", "lines were given out again"
    assert place.outcome is Outcome.COMPLETE
