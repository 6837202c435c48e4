"""Signals at any moment: the exit code is always the one that the README names."""

from __future__ import annotations

import signal
import socket
import sys
import time
from pathlib import Path

import pytest
from processes import Plain, Process, numbers, serving, started

from trioline.config import JobSettings
from trioline.storage import Job

LINES = 20
BETWEEN_SECONDS = 0.0005


def burst(process: Process, number: signal.Signals) -> int:
    """Send a signal again and again until the process has ended; returns its code."""
    while process.is_running:
        process.send(number)
        time.sleep(BETWEEN_SECONDS)
    return process.wait().code


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_to_the_very_end_do_not_change_the_code(
    tmp_path: Path, number: signal.Signals
) -> None:
    (tmp_path / "in").write_bytes(numbers(LINES))
    for _ in range(10):
        with serving("in", "out", cwd=tmp_path) as serve:
            serve.send(number)
            while serve.is_running and "the same command goes on" not in serve.stderr:
                pass  # what is aimed at are the few milliseconds after it
            assert burst(serve, number) == 4, serve.stderr
            assert "Traceback" not in serve.stderr


@pytest.mark.slow
def test_the_code_says_whether_the_job_is_over(tmp_path: Path) -> None:
    """Wherever the first, second and third signal meet the end of the job."""
    codes = set()
    for trial in range(10):
        folder = tmp_path / str(trial)
        folder.mkdir()
        (folder / "in").write_bytes(numbers(LINES))
        with serving("in", "out", "--linger", "0", cwd=folder) as serve:
            with Plain(serve.port) as plain:
                assert plain.get_lines(LINES) is not None
                plain.done_lines(0, [b"0"] * LINES)
            time.sleep(trial * 0.005)
            code = burst(serve, signal.SIGTERM)
        assert "Traceback" not in serve.stderr
        files = [folder / name for name in ("in", "out", "out.rejected")]
        job = Job.open(JobSettings(input=files[0], output=files[1], rejected=files[2]))
        job.close()
        if code == 0:
            assert job.is_finished
        else:  # a third signal does not wait for what is just being written
            assert code == 4
            assert "SIGTERM: finishing" in serve.stderr
        codes.add(code)
    assert 0 in codes


NO_ROOM = """
import os, resource, signal, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
signal.signal(signal.SIGINT, signal.SIG_IGN)
os.execvp(sys.argv[1], sys.argv[1:])
"""
"""Begins a command as a shell does with ``&``, and no checkpoint has room."""


@pytest.mark.slow
@pytest.mark.parametrize("command", ["serve", "run"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_start_that_waits_for_room_is_stopped_as_a_server_is(
    tmp_path: Path, command: str, number: signal.Signals
) -> None:
    (tmp_path / "in").write_bytes(numbers(LINES))
    work = ("--exec", "cat") if command == "run" else ("--port", "0")
    within = (sys.executable, "-c", NO_ROOM)
    with started(command, "in", "out", *work, cwd=tmp_path, within=within) as start:
        start.wait_said("goes on by itself when there is room")
        stopped = start.stop(number)
    assert stopped.code == 4
    assert stopped.stderr.endswith(" Stopped before the end: the same command goes on.\n")
    assert stopped.stderr.count("\n") == 2


def test_a_signal_ends_a_command_that_waits_for_an_answer(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        with (
            started("status", f"127.0.0.1:{port}", cwd=tmp_path) as status,
            silent.accept()[0] as connection,
        ):
            assert connection.recv(1)
            ended = status.stop()
    assert ended.code == 4
    assert "Traceback" not in ended.stderr
