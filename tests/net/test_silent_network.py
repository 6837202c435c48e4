"""A network that goes silent: nothing arrives any more, and nobody says so.

Two network namespaces stand for two machines, a veth pair for the cable between them.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest
from processes import Plain, numbers, serving, started, wait_until

FOUND_SECONDS = 65.0
"""About a minute, on a busy machine."""
GRACE_SECONDS = 2.0
TOKEN = "silence-is-not-golden"
HELD = """
import pathlib, time

def answer(item):
    pathlib.Path("begun").touch()
    while not pathlib.Path("go").exists():
        time.sleep(0.01)
    return ["late", item.data]
"""


def ip(*arguments: str) -> None:
    """Run ``ip``."""
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"ip {' '.join(arguments)}: {done.stderr}"


@attrs.frozen
class Machine:
    """A network of its own."""

    name: str
    host: str

    @property
    def within(self) -> tuple[str, ...]:
        """Runs a command on it."""
        return ("ip", "netns", "exec", self.name)

    def plug(self, *, is_in: bool) -> None:
        """Put the cable in, or pull it: the other side's stays in."""
        ip("-n", self.name, "link", "set", "cable", "up" if is_in else "down")


@pytest.fixture
def machines(is_big: bool) -> Iterator[tuple[Machine, Machine]]:
    """Two machines with a cable between them."""
    if not is_big:
        pytest.skip("it takes more than a minute: give --big")
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        pytest.skip("only root makes network namespaces")
    if shutil.which("ip") is None:
        pytest.skip("there is no ip here (package iproute2)")
    here, there = (
        Machine(f"trioline-{os.getpid()}-{number}", f"10.200.77.{number}") for number in (1, 2)
    )
    made = subprocess.run(["ip", "netns", "add", here.name], capture_output=True, check=False)
    if made.returncode:
        pytest.skip(f"network namespaces are not allowed here: {made.stderr.decode().strip()}")
    try:
        ip("netns", "add", there.name)
        end = ("name", "cable", "netns", there.name)
        ip("-n", here.name, "link", "add", "cable", "type", "veth", "peer", *end)
        for machine in (here, there):
            ip("-n", machine.name, "addr", "add", f"{machine.host}/24", "dev", "cable")
            ip("-n", machine.name, "link", "set", "lo", "up")
            machine.plug(is_in=True)
        yield here, there
    finally:
        for machine in (here, there):
            subprocess.run(["ip", "netns", "del", machine.name], capture_output=True, check=False)


@pytest.mark.slow
def test_both_sides_find_out_within_about_a_minute_and_the_job_goes_on(
    machines: tuple[Machine, Machine], tmp_path: Path
) -> None:
    here, there = machines
    (tmp_path / "in").write_bytes(numbers(1))
    (tmp_path / "token").write_text(TOKEN, encoding="utf-8")
    (tmp_path / "held.py").write_text(HELD, encoding="utf-8")
    listen = ("--host", here.host, "--port", "0", "--unix", "socket", "--token-file", "token")
    options = ("--grace", str(GRACE_SECONDS), "--hedge", "0")
    serve = ("in", "out", *listen, *options)
    with serving(*serve, cwd=tmp_path, within=here.within) as server:
        work = ("work", server.address, "held:answer", "--token-file", "token")
        with started(*work, cwd=tmp_path, within=there.within) as worker:
            wait_until((tmp_path / "begun").exists, "the line is leased")
            with Plain(str(tmp_path / "socket")) as other:
                assert other.ask(op="hello", token=TOKEN)["ok"]
                there.plug(is_in=False)
                cut_at = time.monotonic()
                assert other.get_lines(1) == (0, [b"0"])
                seconds = {"server": time.monotonic() - cut_at}
            wait_until(lambda: "was lost" in worker.stderr, "the worker notices", FOUND_SECONDS)
            seconds["worker"] = time.monotonic() - cut_at
            there.plug(is_in=True)
            wait_until(lambda: len(server_workers(tmp_path)) == 1, "it comes back")
            seconds["worker back"] = time.monotonic() - cut_at
            (tmp_path / "go").touch()
            assert worker.wait().code == 0, worker.stderr
    assert (tmp_path / "out").read_bytes() == b'["late",0]\n'
    print(", ".join(f"{who} after {passed:.1f} s" for who, passed in seconds.items()))
    assert seconds["server"] < FOUND_SECONDS + GRACE_SECONDS
    assert seconds["worker"] < FOUND_SECONDS


def server_workers(folder: Path) -> list[str]:
    """The names of the workers that are there."""
    with Plain(str(folder / "socket")) as plain:
        assert plain.ask(op="hello", token=TOKEN, worker="")["ok"]
        return [row["name"] for row in plain.ask(op="status")["workers"]]
