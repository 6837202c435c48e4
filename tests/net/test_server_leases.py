"""Budgets, probation, second copies, deadlines, the breaker: a real server and real sockets.

The server's clock runs a hundred times faster than the wall's, so that half a minute is over soon.
"""

from __future__ import annotations

import contextlib
import json
import logging
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio
import trio.testing
from storage_helpers import settings_for

from trioline.config import Fsync, LeaseSettings, ServerSettings
from trioline.ledger.breaker import CANARY_SECONDS, SAME_ERROR_LINES
from trioline.ledger.pace import MIN_LEASES
from trioline.ledger.standings import FIRST_ASIDE_SECONDS, MIN_LINES
from trioline.server.app import Server
from trioline.storage import Job

RATE = 100.0
DEADLINE_SECONDS = 20.0 * RATE


@pytest.fixture
def clock() -> trio.testing.MockClock:
    """Time that flies."""
    return trio.testing.MockClock(rate=RATE)


class Peer:
    """A plain connection."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self._buffer = b""

    async def send(self, **request: object) -> None:
        await self.stream.send_all(json.dumps(request).encode() + b"\n")

    async def reply(self) -> dict[str, Any]:
        while b"\n" not in self._buffer:
            data = await self.stream.receive_some()
            assert data, "the server has closed the connection"
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        reply: dict[str, Any] = json.loads(line)
        return reply

    async def ask(self, **request: object) -> dict[str, Any]:
        await self.send(**request)
        return await self.reply()

    async def get(self, count: int = 1, wait: float = 900) -> list[int]:
        """Lease lines; there must be some."""
        reply = await self.ask(op="get", max=count, wait=wait)
        assert reply["status"] == "work", reply
        return [item["id"] for item in reply["items"]]

    async def done(self, *lines: int) -> dict[str, Any]:
        return await self.ask(op="done", results=[{"id": n, "result": n} for n in lines])

    async def fail(self, line: int, error: str = "no", **more: object) -> dict[str, Any]:
        return await self.ask(op="fail", id=line, error=error, **more)

    async def status(self) -> dict[str, Any]:
        return await self.ask(op="status")


class Site:
    """A served job: where to connect, and how it ends."""

    def __init__(
        self, folder: Path, server: Server, port: int, streams: contextlib.AsyncExitStack
    ) -> None:
        self.folder = folder
        self.server = server
        self._port = port
        self._streams = streams

    async def connect(
        self, name: str | None = None, host: str = "127.0.0.1", **hello: object
    ) -> Peer:
        stream = await trio.open_tcp_stream("127.0.0.1", self._port, local_address=host)
        peer = Peer(await self._streams.enter_async_context(stream))
        if name is not None:
            assert (await peer.ask(op="hello", worker=name, **hello))["ok"]
        return peer

    def output(self) -> list[str]:
        return (self.folder / "out").read_text(encoding="utf-8").splitlines()

    def rejected(self) -> list[dict[str, Any]]:
        text = (self.folder / "out.rejected").read_text(encoding="utf-8")
        return [json.loads(line) for line in text.splitlines()]


@contextlib.asynccontextmanager
async def served(folder: Path, count: int, **leases: object) -> AsyncIterator[Site]:
    """Serve a job of ``count`` lines; it is stopped at the end."""
    settings = attrs.evolve(settings_for(folder, fsync=Fsync.NEVER), max_line_bytes=1 << 20)
    settings.input.write_bytes(b"".join(b"%d\n" % n for n in range(count)))
    job = Job.open(settings)
    server = Server(
        job,
        LeaseSettings(**leases),  # type: ignore[arg-type]
        ServerSettings(port=0, linger_seconds=50, drain_seconds=0),
    )
    with contextlib.closing(job), trio.fail_after(DEADLINE_SECONDS):
        async with trio.open_nursery() as nursery, contextlib.AsyncExitStack() as streams:
            (address,) = await nursery.start(server.run)
            assert address.port is not None
            yield Site(folder, server, address.port, streams)
            server.stop()
            server.stop()


# --- budgets -------------------------------------------------------------------------------------


async def test_attempts_and_errors_survive_a_restart(
    tmp_path: Path, clock: trio.testing.MockClock
) -> None:
    async with served(tmp_path, 3) as site:
        peer = await site.connect()
        assert await peer.get(3) == [0, 1, 2]
        assert (await peer.fail(1, "first"))["attempt"] == 1
        assert await peer.get() == [1]
        assert (await peer.fail(1, "second"))["attempt"] == 2
        assert (await peer.ask(op="bye"))["ok"], "lost together, they would be on probation"
    async with served(tmp_path, 3) as site:
        peer = await site.connect()
        assert await peer.get(2) == [0]
        reply = await peer.ask(op="get", max=2, wait=900)
        assert [(item["id"], item["attempt"]) for item in reply["items"]] == [(1, 3)]
        assert (await peer.fail(1, "third"))["state"] == "rejected"
        assert await peer.get() == [2]
        await peer.done(0, 2)
        assert (await peer.ask(op="get", wait=900))["status"] == "complete"
    assert site.output() == ["0", "null", "2"]
    (record,) = site.rejected()
    assert (record["id"], record["errors"]) == (1, ["first", "second", "third"])


async def test_probation_and_unanswered_leases_survive_a_restart(
    tmp_path: Path, clock: trio.testing.MockClock
) -> None:
    async with served(tmp_path, 8, lease_timeout_seconds=60, grace_seconds=0) as site:
        doomed, silent, other = [await site.connect() for _ in range(3)]
        assert await doomed.get(4) == [0, 1, 2, 3]
        assert await silent.get(4) == [4, 5, 6, 7]
        await doomed.stream.aclose()
        assert await other.get(8) == [0, 1], "half of four"
        await other.ask(op="release")
        while (await other.status())["leased"]:  # noqa: ASYNC110 - another process would poll, too
            await trio.sleep(5)
    async with served(tmp_path, 8) as site:
        one, two, three = [await site.connect() for _ in range(3)]
        assert await one.get(8) == [0, 1]
        assert (await one.ask(op="get", max=8))["status"] == "retry", "nothing beside them"
        assert await two.get(8) == [2, 3]
        reply = await three.ask(op="get", max=8)
        assert [(item["id"], item["attempt"]) for item in reply["items"]] == [(4, 2), (5, 2)]


async def test_a_line_that_kills_its_workers_is_found_and_no_other_is_blamed(
    tmp_path: Path, clock: trio.testing.MockClock
) -> None:
    async with served(tmp_path, 100, grace_seconds=0, max_losses=3) as site:
        killed = 0
        while True:
            peer = await site.connect()
            while (reply := await peer.ask(op="get", max=100, wait=900))["status"] == "work":
                held = [item["id"] for item in reply["items"]]
                if 37 in held:
                    killed += 1
                    await peer.stream.aclose()
                    break
                await peer.done(*held)
            else:
                break
        assert reply["status"] == "complete"
    assert killed <= 7 + 3, "the logarithm of 100, and three times alone"
    assert site.output() == [str(n) if n != 37 else "null" for n in range(100)]
    (record,) = site.rejected()
    assert (record["id"], record["losses"]) == (37, 3)


async def test_who_let_a_lease_run_out_gets_nothing_before_it_says_a_word(
    tmp_path: Path, clock: trio.testing.MockClock
) -> None:
    async with served(tmp_path, 1, lease_timeout_seconds=20) as site:
        silent, other = await site.connect(), await site.connect()
        await silent.get()
        await silent.send(op="get", wait=900)
        assert await other.get() == [0], "though the other one has waited for longer"
        assert (await silent.reply())["status"] == "retry"


async def test_a_stale_holder_changes_nothing_but_its_late_result_wins(
    tmp_path: Path, clock: trio.testing.MockClock
) -> None:
    async with served(tmp_path, 2, lease_timeout_seconds=20, hedge=0.0) as site:
        stale, present = await site.connect(), await site.connect()
        lease = (await stale.ask(op="get"))["lease"]
        assert await present.get() == [1]
        while (await present.ask(op="extend"))["ok"] and (await present.status())["leased"] == 2:  # noqa: ASYNC110 - as above
            await trio.sleep(2)
        assert await present.get() == [0]
        assert (await stale.fail(0))["error"] == "not-held"
        assert (await stale.ask(op="release", ids=[0]))["error"] == "not-held"
        assert (await stale.ask(op="extend", lease=lease))["error"] == "not-held"
        assert (await stale.ask(op="extend"))["lost"] == [0]
        assert (await stale.done(0))["accepted"] == 1
        assert (await present.ask(op="extend"))["lost"] == [0]
        assert (await present.done(0))["duplicate"] == 1


async def test_what_the_dead_are_given_is_not_held_against_its_lines(
    tmp_path: Path, clock: trio.testing.MockClock
) -> None:
    """A client that was killed while its get waited looks like one that has half-closed."""
    async with served(tmp_path, 1, max_losses=1, grace_seconds=1) as site:
        holder = await site.connect()
        await holder.get()
        for name in ("one", "two", "three"):
            dead = await site.connect(name)
            await dead.send(op="get", wait=900)
            await dead.stream.send_eof()
        while (await holder.status())["connections"] < 4:  # noqa: ASYNC110 - as above
            await trio.sleep(1)
        await holder.ask(op="release")
        assert await holder.get(wait=3_000) == [0]
        await holder.done(0)
    assert site.output() == ["0"]


# --- caps ----------------------------------------------------------------------------------------


async def test_one_name_holds_no_more_than_it_may(
    tmp_path: Path, clock: trio.testing.MockClock
) -> None:
    async with served(tmp_path, 50, max_held=10) as site:
        one, two = await site.connect("gpu-1"), await site.connect("gpu-1")
        other, nameless = await site.connect("gpu-2"), await site.connect()
        assert len(await one.get(6)) == 6
        assert len(await two.get(50)) == 4
        reply = await one.ask(op="get", wait=900)
        assert (reply["error"], "holds 10 lines" in reply["message"]) == ("too-many", True)
        assert len(await other.get(50)) == 10
        assert len(await nameless.get(50)) == 10
        await two.done(6)
        assert len(await one.get(50)) == 1


async def test_what_waits_for_its_worker_to_come_back_counts_as_held(
    tmp_path: Path, clock: trio.testing.MockClock
) -> None:
    async with served(tmp_path, 50, max_held=10) as site:
        gone = await site.connect("gpu-1", detach=True)
        assert len(await gone.get(8)) == 8
        await gone.stream.aclose()
        back = await site.connect("gpu-1")
        while (await back.status())["connections"] > 1:  # noqa: ASYNC110 - as above
            await trio.sleep(1)
        assert len(await back.get(50)) == 2
        assert (await back.ask(op="get"))["error"] == "too-many"


# --- second copies -------------------------------------------------------------------------------


async def warm_up(peer: Peer, count: int = MIN_LEASES) -> None:
    """Let the server learn what lines take."""
    for _ in range(count):
        await peer.done(*await peer.get())


async def test_an_idle_worker_gets_a_copy_of_what_is_late(
    tmp_path: Path, clock: trio.testing.MockClock
) -> None:
    async with served(tmp_path, MIN_LEASES + 2) as site:
        slow, idle, third = [await site.connect(name) for name in ("slow", "idle", "third")]
        await warm_up(idle)
        late = await slow.get(2)
        assert await idle.get(1) == late[:1], "waits until it is late, and gets the oldest"
        assert await third.get(8) == late[1:], "never a third copy"
        status = await idle.status()
        assert (status["hedged"], status["leased"], status["head"]["worker"]) == (2, 2, "slow")
        assert (await idle.done(late[0]))["accepted"] == 1
        assert (await slow.ask(op="extend"))["lost"] == late[:1]
        assert (await slow.done(*late))["accepted"] == 1, "the other one is done"
        assert (await third.ask(op="extend"))["lost"] == late[1:]
        assert (await third.ask(op="get", wait=900))["status"] == "complete"
    assert site.output() == [str(n) for n in range(MIN_LEASES + 2)]


async def test_a_copy_is_for_another_worker_not_for_another_connection_of_the_same(
    tmp_path: Path, clock: trio.testing.MockClock
) -> None:
    async with served(tmp_path, MIN_LEASES + 1) as site:
        slow, same, other = [await site.connect(name) for name in ("gpu-1", "gpu-1", "gpu-2")]
        await warm_up(same)
        late = await slow.get()
        await same.send(op="get", wait=900)
        await trio.sleep(5)
        assert await other.get() == late, "though the other one has waited for longer"


async def test_a_full_window_is_freed_by_a_copy_of_its_first_line(
    tmp_path: Path, clock: trio.testing.MockClock
) -> None:
    async with served(tmp_path, MIN_LEASES + 20, window=5) as site:
        stuck, idle = await site.connect(), await site.connect()
        await warm_up(idle)
        (first,) = await stuck.get()
        ahead = await idle.get(4)
        await idle.done(*ahead)
        assert await idle.get(4) == [first], "the window is full behind it"
        await idle.done(first)
        assert len(await idle.get(4)) == 4


@pytest.mark.parametrize("how", ["option", "set"])
async def test_hedging_can_be_switched_off(
    tmp_path: Path, clock: trio.testing.MockClock, how: str
) -> None:
    async with served(tmp_path, MIN_LEASES + 1, hedge=0.0 if how == "option" else 2.0) as site:
        slow, idle = await site.connect(), await site.connect()
        if how == "set":
            assert (await idle.ask(op="set", hedge=False))["hedge"] == 0
        await warm_up(idle)
        (late,) = await slow.get()
        assert (await idle.ask(op="get", wait=30))["status"] == "retry"
        assert (await idle.ask(op="set", hedge=True))["hedge"] == 2
        assert await idle.get() == [late]


# --- deadlines and drains ------------------------------------------------------------------------


async def test_near_its_deadline_a_worker_gets_only_what_fits(
    tmp_path: Path, clock: trio.testing.MockClock
) -> None:
    async with served(tmp_path, 1_000) as site:
        pace = await site.connect()
        for _ in range(MIN_LEASES):
            (line,) = await pace.get()
            await trio.sleep(10)
            await pace.done(line)
        for seconds, least, most in ((900, 60, 90), (55, 3, 5)):
            # The wall's clock, of which the server's runs far ahead, counts at hello alone.
            worker = await site.connect("spot", deadline=time.time() + seconds)
            assert least <= len(await worker.get(200)) <= most
        short = await site.connect("short", deadline=time.time() + 5)
        assert await short.ask(op="get", wait=900) == {
            "ok": True,
            "status": "complete",
            "reason": "deadline",
        }


async def test_a_deadline_leaves_room_for_lines_side_by_side(
    tmp_path: Path, clock: trio.testing.MockClock
) -> None:
    async with served(tmp_path, 100) as site:
        peers = [await site.connect() for _ in range(MIN_LEASES)]
        held = [await peer.get() for peer in peers]
        await trio.sleep(60)
        for peer, lines in zip(peers, held, strict=True):
            await peer.done(*lines)
        worker = await site.connect("spot", deadline=time.time() + 250)
        for _ in range(8):
            assert len(await worker.get()) == 1, "eight at a time, a minute each"


async def test_a_worker_that_waits_hears_when_it_is_too_late_for_it(
    tmp_path: Path, clock: trio.testing.MockClock
) -> None:
    async with served(tmp_path, 1) as site:
        holder = await site.connect()
        await holder.get()
        worker = await site.connect("spot", deadline=time.time() + 60)
        reply = await worker.ask(op="get", wait=3_600)
        assert (reply["status"], reply["reason"]) == ("complete", "deadline")
        assert trio.current_time() < 600


async def test_a_drained_worker_finishes_what_it_holds_and_goes(
    tmp_path: Path, clock: trio.testing.MockClock
) -> None:
    async with served(tmp_path, 5) as site:
        boss = await site.connect()
        first, second = await site.connect("gpu-7"), await site.connect("gpu-7")
        session = (await (stays := await site.connect()).ask(op="hello", worker="gpu-7"))["session"]
        held = await first.get(2)
        assert await stays.get(3) == [2, 3, 4]
        await second.send(op="get", wait=900)
        await stays.send(op="get", wait=900)
        assert (await boss.ask(op="drain", worker="gpu-7"))["connections"] == 3
        assert (await second.reply())["reason"] == "drain"
        assert (await stays.reply())["reason"] == "drain"
        assert (await first.done(*held))["accepted"] == 2
        assert (await first.ask(op="get"))["status"] == "complete"
        assert {row["draining"] for row in (await boss.status())["workers"]} == {True}
        await stays.stream.aclose()
        back = await site.connect("gpu-7", session=session)
        assert (await back.ask(op="get"))["reason"] == "drain", "its session is told, too"
        assert (await back.done(2, 3, 4))["accepted"] == 3
        assert (await boss.ask(op="drain", worker="nobody"))["connections"] == 0


async def test_a_drain_reaches_who_is_away_and_who_said_no_name(
    tmp_path: Path, clock: trio.testing.MockClock
) -> None:
    async with served(tmp_path, 5) as site:
        boss, nameless = await site.connect(), await site.connect()
        away = await site.connect()
        session = (await away.ask(op="hello", worker="gpu-8", detach=True))["session"]
        assert await away.get(2) == [0, 1]
        await away.stream.aclose()
        while (await boss.status())["connections"] > 2:  # noqa: ASYNC110 - as above
            await trio.sleep(1)
        assert (await boss.ask(op="drain", worker="gpu-8"))["connections"] == 0
        back = await site.connect("gpu-8", session=session)
        assert (await back.ask(op="get"))["reason"] == "drain"
        await nameless.get()
        (address,) = [
            row["name"] for row in (await boss.status())["workers"] if row["name"] != "gpu-8"
        ]
        assert (await boss.ask(op="drain", worker=address))["connections"] == 1
        assert (await nameless.ask(op="get"))["reason"] == "drain"


# --- the breaker ---------------------------------------------------------------------------------


async def test_when_too_much_fails_leasing_pauses_until_a_canary_succeeds(
    tmp_path: Path, clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with served(tmp_path, 500) as site:
        worker, other = await site.connect("gpu-1"), await site.connect("gpu-2")
        for number in range(100):
            held = (await worker.get())[0]
            await worker.fail(held, f"the service is down {'.' * number}", delay=3_600)
        status = await other.status()
        assert status["state"] == "halted"
        assert status["halt"].startswith("100 of the last 100 lines failed: the service is down ..")
        assert (await other.ask(op="get"))["status"] == "retry"
        asked_at = trio.current_time()
        (canary,) = await other.get(10)
        assert trio.current_time() - asked_at > CANARY_SECONDS / 2
        assert canary == 100, "rather one that never failed"
        await other.fail(canary, delay=3_600)
        assert (await other.status())["state"] == "halted"
        (canary,) = await other.get(10)
        await other.done(canary)
        assert (await other.status())["state"] == "running"
        assert len(await other.get(10)) == 10
    messages = [record.getMessage() for record in caplog.records if record.levelno > logging.INFO]
    assert [text.split(":")[0] for text in messages] == [
        "Leasing pauses",
        "A canary line succeeded",
    ]


async def test_one_error_from_every_worker_opens_the_breaker(
    tmp_path: Path, clock: trio.testing.MockClock
) -> None:
    async with served(tmp_path, 2_000) as site:
        worker, other = await site.connect("gpu-1"), await site.connect("gpu-2")
        for peer in (worker, other):
            await peer.done(*await peer.get(500))
        for number in range(SAME_ERROR_LINES):
            peer = (worker, other)[number % 2]
            await peer.fail((await peer.get())[0], f"no model at /models/{number}", delay=3_600)
        assert (await worker.status())["halt"].startswith("the last 50 lines failed alike: no mod")
        assert (await worker.ask(op="set", paused=False))["ok"]
        assert (await worker.status())["state"] == "running"


async def test_final_failures_and_a_halt_of_never_open_nothing(
    tmp_path: Path, clock: trio.testing.MockClock
) -> None:
    async with served(tmp_path, 300) as site:
        worker = await site.connect("gpu-1")
        for _ in range(150):
            await worker.fail((await worker.get())[0], "too long", retry=False)
        assert (await worker.status())["state"] == "running"
    folder = tmp_path / "never"
    folder.mkdir()
    async with served(folder, 300, halt=None) as site:
        worker = await site.connect("gpu-1")
        for _ in range(150):
            await worker.fail((await worker.get())[0], delay=3_600)
        assert (await worker.status())["state"] == "running"


# --- workers that are set aside ------------------------------------------------------------------


async def test_a_worker_that_fails_far_more_than_the_others_is_set_aside(
    tmp_path: Path, clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with served(tmp_path, 500, halt=None) as site:
        good, bad = await site.connect("good"), await site.connect("bad")
        await good.done(*await good.get(50))
        for _ in range(MIN_LINES):
            await bad.fail((await bad.get())[0], "no GPU", delay=3_600)
        reply = await bad.ask(op="get", wait=900)
        assert reply["status"] == "retry"
        assert FIRST_ASIDE_SECONDS / 2 < reply["retry_in"] <= FIRST_ASIDE_SECONDS
        (row,) = [row for row in (await good.status())["workers"] if row["name"] == "bad"]
        assert 0 < row["aside_seconds"] <= FIRST_ASIDE_SECONDS
        assert len(await good.get(5)) == 5
        await trio.sleep(reply["retry_in"])
        (line,) = await bad.get(10)
        await bad.fail(line, "no GPU", delay=3_600)
        again = await bad.ask(op="get")
        assert again["retry_in"] > FIRST_ASIDE_SECONDS, "longer each time"
        await trio.sleep(again["retry_in"])
        await bad.done(*await bad.get(10))
        assert len(await bad.get(10)) == 10
    said = [text for text in caplog.messages if "is set aside" in text]
    assert [text.split(":")[0] for text in said] == [
        "Worker bad is set aside for 30 seconds",
        "Worker bad is set aside for 60 seconds",
    ]


async def test_a_host_whose_workers_all_fail_is_set_aside_with_whoever_comes_from_it(
    tmp_path: Path, clock: trio.testing.MockClock
) -> None:
    async with served(tmp_path, 500, halt=None) as site:
        good = await site.connect("good")
        await good.done(*await good.get(50))
        for number in range(MIN_LINES):  # each too short a time to be known itself
            bad = await site.connect(f"bad-{number}", host="127.0.0.2")
            await bad.fail((await bad.get())[0], "no GPU", delay=3_600)
        new = await site.connect("new", host="127.0.0.2")
        reply = await new.ask(op="get", wait=900)
        assert reply["status"] == "retry"
        assert FIRST_ASIDE_SECONDS / 2 < reply["retry_in"] <= FIRST_ASIDE_SECONDS
        assert len(await good.get(5)) == 5


async def test_the_only_worker_is_never_set_aside(
    tmp_path: Path, clock: trio.testing.MockClock
) -> None:
    async with served(tmp_path, 500, halt=None) as site:
        good, bad = await site.connect("good"), await site.connect("bad")
        await good.done(*await good.get(50))
        await good.stream.aclose()
        while (await bad.status())["connections"] > 1:  # noqa: ASYNC110 - as above
            await trio.sleep(1)
        for _ in range(3 * MIN_LINES):
            await bad.fail((await bad.get())[0], "no GPU", delay=3_600)
        assert (await bad.ask(op="get"))["status"] == "work"


async def test_who_is_set_aside_works_when_it_is_the_last_one_left(
    tmp_path: Path, clock: trio.testing.MockClock
) -> None:
    async with served(tmp_path, 500, halt=None) as site:
        good, bad = await site.connect("good"), await site.connect("bad")
        await good.done(*await good.get(50))
        for _ in range(MIN_LINES):
            await bad.fail((await bad.get())[0], "no GPU", delay=3_600)
        assert (await bad.ask(op="get"))["status"] == "retry"
        await good.ask(op="bye")
        while (await bad.status())["connections"] > 1:  # noqa: ASYNC110 - as above
            await trio.sleep(1)
        assert len(await bad.get(10, wait=0)) == 1, "on trial"
        (row,) = (await bad.status())["workers"]
        assert row["aside_seconds"] is None


async def test_a_result_of_what_it_held_ends_its_time_aside(
    tmp_path: Path, clock: trio.testing.MockClock
) -> None:
    async with served(tmp_path, 500, halt=None) as site:
        good, bad = await site.connect("good"), await site.connect("bad")
        await good.done(*await good.get(50))
        held = await bad.get(MIN_LINES + 1)
        for line in held[1:]:
            await bad.fail(line, "no GPU", delay=3_600)
        assert (await bad.ask(op="get"))["status"] == "retry"
        await bad.done(held[0])
        assert len(await bad.get(10, wait=0)) == 10
