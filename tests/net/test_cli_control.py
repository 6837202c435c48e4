"""``trioline drain`` and what ``trioline set`` says of hedging, against a scripted server."""

from __future__ import annotations

from pathlib import Path

import pytest
from fake_server import FakeServer
from processes import trioline

from trioline.snapshot import Snapshot, WorkerRow
from trioline.wire.codec import encode_reply
from trioline.wire.messages import Drain, Set


def status_of(*names: str) -> bytes:
    """A reply to ``status`` with these workers."""
    rows = [
        WorkerRow(name=name, leased=0, done=0, failed=0, connected_seconds=0.0, note=None)
        for name in names
    ]
    snapshot = Snapshot(
        job="j",
        state="running",
        total=None,
        written=0,
        ahead=0,
        leased=0,
        queued=0,
        rejected=0,
        rate=0.0,
        eta=None,
        progress=0.0,
        elapsed=0.0,
        head=None,
        workers=tuple(rows),
        connections=len(rows),
        lease_timeout=1.0,
        max_attempts=1,
        paused=False,
    )
    return encode_reply(snapshot)


def test_a_worker_is_told_to_go_home(tmp_path: Path) -> None:
    with FakeServer([b"1"]) as server:
        server.names = ["gpu-07", "gpu-07", "gpu-08"]
        one = trioline("drain", server.address, "gpu-08", cwd=tmp_path)
        environment = {"TRIOLINE_ADDRESS": server.address}
        two = trioline("drain", "gpu-07", cwd=tmp_path, environment=environment)
        told = [each.request.worker for each in server.log if isinstance(each.request, Drain)]
    assert (one.code, one.stdout) == (0, "gpu-08: 1 connection told to go home\n")
    assert (two.code, two.stdout) == (0, "gpu-07: 2 connections told to go home\n")
    assert told == ["gpu-08", "gpu-07"]


@pytest.mark.parametrize(
    ("names", "there"),
    [(("b", "a", "b"), "those there are: a, b."), ((), "there is none.")],
)
def test_where_nobody_has_that_name_it_says_who_is_there(
    names: tuple[str, ...], there: str, tmp_path: Path
) -> None:
    with FakeServer([b"1"]) as server:
        server.answer["status"] = lambda _request: status_of(*names)
        finished = trioline("drain", server.address, "gpu-09", cwd=tmp_path)
    assert finished.code == 1
    assert f"No worker named 'gpu-09' is connected; {there}\n" in finished.stderr


@pytest.mark.parametrize("arguments", [(), ("localhost:1",), ("localhost:1", "a", "b")])
def test_drain_wants_an_address_and_a_name(arguments: tuple[str, ...], tmp_path: Path) -> None:
    finished = trioline("drain", *arguments, cwd=tmp_path)
    assert finished.code == 2
    assert "trioline drain host:7766 gpu-07" in finished.stderr


@pytest.mark.parametrize(
    ("setting", "sent", "shown"),
    [
        ("hedge=3.5", 3.5, "hedge=3.5"),
        ("hedge=0", 0.0, "hedge=off"),
        ("hedge=off", False, "hedge=off"),
        ("hedge=on", True, "hedge=2"),
    ],
)
def test_hedging_is_set(setting: str, sent: float | bool, shown: str, tmp_path: Path) -> None:
    with FakeServer([b"1"]) as server:
        finished = trioline("set", server.address, setting, cwd=tmp_path)
        (request,) = [each.request for each in server.log if isinstance(each.request, Set)]
    assert (finished.code, finished.stdout.split()[-1]) == (0, shown)
    assert request.hedge is sent if isinstance(sent, bool) else request.hedge == sent


@pytest.mark.parametrize("setting", ["hedge=-1", "hedge=nan", "hedge=2000000", "hedge=yes"])
def test_hedging_is_a_number_or_a_switch(setting: str, tmp_path: Path) -> None:
    finished = trioline("set", "localhost:1", setting, cwd=tmp_path)
    assert finished.code == 2
    assert "hedge=K|on|off" in finished.stderr
