"""A worker process that stands still for longer than its lease (SIGSTOP), and then goes on.

As a laptop that sleeps, or a machine that swaps. Its lines go to another worker when the lease
ends. What it hands in late is taken where it is the first, and is a duplicate where it is not.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest
from processes import DEADLINE_SECONDS, Plain, Serve, numbers, serving, started, wait_until

COUNT = 6
EARLY = 3
"""So many lines another worker answers meanwhile."""
SERVE = ("--lease-timeout", "0.6", "--max-losses", "50", "--linger", "20")
LATE = """
import pathlib, time

def answer(item):
    pathlib.Path("begun").touch()
    while not pathlib.Path("go").exists():
        time.sleep(0.01)
    return ["late", item.data]
"""
PLAIN = """
import json, pathlib, socket, sys, time

with socket.create_connection(("127.0.0.1", int(sys.argv[1]))) as server:
    stream = server.makefile("rwb")
    def ask(request):
        stream.write(json.dumps(request).encode() + b"\\n")
        stream.flush()
        return json.loads(stream.readline())
    items = ask({"op": "get", "max": 100, "wait": 10})["items"]
    pathlib.Path("begun").touch()
    while not pathlib.Path("go").exists():
        time.sleep(0.01)
    results = [{"id": item["id"], "result": ["late", item["data"]]} for item in items]
    print(json.dumps(ask({"op": "done", "results": results})))
"""


@contextmanager
def bundled(serve: Serve, folder: Path) -> Iterator[int]:
    """A ``trioline work`` that holds all lines; gives its process id."""
    (folder / "late.py").write_text(LATE, encoding="utf-8")
    work = ("work", serve.address, "late:answer", "--batch", str(COUNT), "--concurrency")
    with started(*work, str(COUNT), cwd=folder) as worker:
        yield worker.pid
        assert worker.wait().code == 0, worker.stderr


@contextmanager
def plain(serve: Serve, folder: Path) -> Iterator[int]:
    """A process with nothing but a socket that holds all lines; gives its process id."""
    command = [sys.executable, "-c", PLAIN, str(serve.port)]
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE) as worker:
        try:
            yield worker.pid
            said, _ = worker.communicate(timeout=DEADLINE_SECONDS)
        finally:
            worker.kill()
    reply = json.loads(said)
    assert (reply["accepted"], reply["duplicate"]) == (COUNT - EARLY, EARLY)


@pytest.mark.parametrize("stopped", [bundled, plain])
def test_a_worker_that_stood_still_for_longer_than_its_lease(
    stopped: Callable[[Serve, Path], AbstractContextManager[int]], tmp_path: Path
) -> None:
    (tmp_path / "in").write_bytes(numbers(COUNT))
    with serving("in", "out", *SERVE, cwd=tmp_path) as serve, stopped(serve, tmp_path) as pid:
        wait_until((tmp_path / "begun").exists, "the worker to begin")
        serve.wait_status(lambda status: status["leased"] == COUNT, "all lines to be leased")
        os.kill(pid, signal.SIGSTOP)
        try:
            with Plain(serve.port) as other:
                held = 0
                while held < EARLY:  # waits for the lease's end
                    lines = other.get_lines(EARLY - held)
                    assert lines is not None
                    assert lines[0] == held
                    results = [b'["early",%s]' % line for line in lines[1]]
                    assert other.done_lines(held, results)["accepted"] == len(results)
                    held += len(results)
                status = serve.status()
                assert (status["written"], status["rejected"]) == (EARLY, 0)
                (tmp_path / "go").touch()
                os.kill(pid, signal.SIGCONT)
                serve.wait_status(lambda status: status["written"] == COUNT, "the late results")
                late = other.done_lines(0, [b"0"] * COUNT)
                assert (late["accepted"], late["duplicate"]) == (0, COUNT)
        finally:
            os.kill(pid, signal.SIGCONT)
    expected = ["early"] * EARLY + ["late"] * (COUNT - EARLY)
    found = [json.loads(line) for line in (tmp_path / "out").read_bytes().splitlines()]
    assert found == [[word, line] for line, word in enumerate(expected)]
    assert (tmp_path / "out.rejected").read_bytes() == b""
