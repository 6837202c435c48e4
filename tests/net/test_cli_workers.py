"""``trioline work`` against a real server: all ways to work, to fail and to end."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import trio
from fake_server import FakeServer
from processes import (
    Finished,
    Plain,
    Serve,
    numbers,
    serving,
    started,
    trioline,
    wait_until,
)

from trioline.cli import children

COUNT = 60
SQUARES = b"".join(b"%d\n" % number**2 for number in range(COUNT))

FUNCTIONS = """
import asyncio, os, pathlib, signal, sys, time
import trioline

def square(item):
    return item.data ** 2

async def square_async(item):
    return item.data ** 2

def square_many(items):
    return [item.data ** 2 for item in items]

async def square_many_async(items):
    return [item.data ** 2 for item in items]

class Squarer:
    def __call__(self, item):
        return item.data ** 2

squarer = Squarer()

def slow(item):
    pathlib.Path(f"begun-{os.getpid()}").touch()
    time.sleep(60)

async def slow_async(item):
    import trio
    pathlib.Path(f"begun-{os.getpid()}").touch()
    await trio.sleep(60)

def slowly(item):
    time.sleep(0.005)
    return item.data ** 2

def dies_once(item):
    if item.id == 30 and not pathlib.Path("died").exists():
        pathlib.Path("died").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return item.data ** 2

def odd(item):
    print("printed by the function")
    match item.id:
        case 0: raise ValueError("no such luck")
        case 1: return None
        case 2: return float("nan")
        case 3: return {1, 2}
        case 4: return b"bytes"
        case 5: return "x" * 20_000_000
        case 6: sys.exit(5)
        case 7: raise trioline.Reject("not this one")
        case 8: return object()
        case 9: return trioline.Raw(b'{"raw":  1}')
        case 10: return trioline.Raw(b"no json")
        case 11: return "\\ud800"
        case 12: raise KeyError
        case 13: return "two\\nlines"
        case 14: raise KeyboardInterrupt
        case 15: raise GeneratorExit
        case 16: raise asyncio.CancelledError

async def odd_async(item):
    return odd(item)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with an input of numbers and a module of functions."""
    (tmp_path / "in").write_bytes(numbers(COUNT))
    (tmp_path / "functions.py").write_text(FUNCTIONS)
    return tmp_path


def records(folder: Path) -> dict[int, dict[str, object]]:
    """The rejected file by line number."""
    lines = (folder / "out.rejected").read_text("utf-8").splitlines()
    return {record["id"]: record for record in map(json.loads, lines)}


def work(serve: Serve, folder: Path, *arguments: str) -> Finished:
    finished = trioline("work", serve.address, *arguments, cwd=folder)
    assert "Traceback" not in finished.stderr
    return finished


# --- ways to work ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        ("functions:square",),
        ("functions:square", "--concurrency", "4"),
        ("functions:square", "--batch", "1"),
        ("functions:square", "--processes", "3"),
        ("functions:square_async", "--concurrency", "50"),
        ("functions:square_many", "--many", "--batch", "7"),
        ("functions:square_many_async", "--many"),
        ("functions:squarer",),
        ("--exec", "while read n; do echo $((n * n)); done"),
        ("--exec", "while read n; do echo $((n * n)); done", "--concurrency", "3"),
        ("--each", "read n; printf %s $((n * n))", "--concurrency", "4"),
    ],
    ids=" ".join,
)
def test_ways_to_work(arguments: tuple[str, ...], folder: Path) -> None:
    with serving("in", "out", "--linger", "20", cwd=folder) as serve:
        finished = work(serve, folder, *arguments)
        assert finished.code == 0, finished.stderr
        assert finished.stdout == ""
        assert serve.stop().code == 0
    assert (folder / "out").read_bytes() == SQUARES
    said = finished.stderr.splitlines()
    assert all(line.endswith("; the job is complete.") for line in said), said
    done = [int(line.split()[2]) for line in said]
    assert sum(done) == COUNT
    assert len(done) == (3 if "--processes" in arguments else 1)


def test_the_environment_says_where(folder: Path) -> None:
    (folder / "token").write_text("secret\n")
    with serving("in", "out", "--linger", "20", "--token-file", "token", cwd=folder) as serve:
        environment = {"TRIOLINE_ADDRESS": serve.address, "TRIOLINE_TOKEN_FILE": "token"}
        finished = trioline(
            *("work", "functions:square", "--processes", "2"), cwd=folder, environment=environment
        )
        assert finished.code == 0, finished.stderr
        assert serve.stop().code == 0
    assert (folder / "out").read_bytes() == SQUARES


def test_text_lines(folder: Path) -> None:
    (folder / "in").write_bytes(b"one\n\ntwo\r\n\xff\nthree")
    (folder / "texts.py").write_text("def upper(item):\n    return item.raw.upper()\n")
    with serving("in", "out", "--text", "--linger", "20", cwd=folder) as serve:
        finished = work(serve, folder, "texts:upper", "--text")
        assert finished.code == 0
        assert serve.stop().code == 3  # bytes that are no UTF-8 are no result
    assert (folder / "out").read_bytes() == b"ONE\n\nTWO\r\n\nTHREE\n"
    assert list(records(folder)) == [3]


def test_a_name_for_status(folder: Path) -> None:
    with (
        serving("in", "out", cwd=folder) as serve,
        started(
            *("work", serve.address, "functions:slow", "--name", "gpu-07"), cwd=folder
        ) as worker,
    ):
        serve.wait_status(lambda status: status["leased"], "a lease")
        assert [row["name"] for row in serve.status()["workers"]] == ["gpu-07"]
        worker.kill()


# --- commands that go wrong -----------------------------------------------------------------------

DIES = """
while read n; do
    if [ $n = 30 ] && [ ! -e died ]; then touch died; exit 9; fi
    echo $((n * n))
done
"""


def test_a_command_that_dies_on_one_line(folder: Path) -> None:
    with serving("in", "out", "--linger", "20", cwd=folder) as serve:
        finished = work(serve, folder, "--exec", DIES)
        assert finished.code == 0
        assert "ended (exit status 9)" in finished.stderr
        assert "1 attempts failed" in finished.stderr
        assert serve.stop().code == 0
    assert (folder / "out").read_bytes() == SQUARES


DOUBLING = (
    f"{sys.executable} -c 'import os, sys\nfor line in sys.stdin: os.write(1, 2 * line.encode())'"
)
"""Both lines in one write: however fast it is read, they come together."""


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (("--exec", "true"), "the command ended (exit status 0)"),
        (("--exec", DOUBLING, "--batch", "1"), "but printed also"),
        (("--exec", "kill -SEGV $$"), "SIGSEGV"),
        (("--each", "echo bad luck >&2; exit 1"), "exit status 1: bad luck"),
        (("--each", "echo 1; echo 2"), "the command printed 2 lines; one is expected"),
        (("--each", "true"), "the command printed nothing; one line is expected"),
        (("--each", "echo no json"), "JSON"),
        (("--each", "kill -KILL $$"), "SIGKILL"),
    ],
)
def test_commands_that_go_wrong(arguments: tuple[str, ...], error: str, folder: Path) -> None:
    (folder / "in").write_bytes(numbers(3))
    more = ("--linger", "20", "--max-attempts", "1")
    with serving("in", "out", *more, cwd=folder) as serve:
        assert work(serve, folder, *arguments).code == 0
        assert serve.stop().code == 3
    assert (folder / "out").read_bytes() == b"null\n" * 3
    for record in records(folder).values():
        assert error in str(record["errors"])


def test_a_command_that_prints_too_much_is_found_at_the_end(folder: Path) -> None:
    """Its surplus lines come when its answers were taken already: they may be the wrong ones."""
    with serving("in", "out", "--linger", "20", cwd=folder) as serve:
        command = "while read n; do echo $((n * n)); done; echo more"
        finished = work(serve, folder, "--exec", command)
        assert finished.code == 1
        assert "printed lines that nobody had asked for, at least 1 of them" in finished.stderr
        assert "exactly one line for each line it reads" in finished.stderr
        assert serve.stop().code == 0


# --- functions that go wrong ----------------------------------------------------------------------


@pytest.mark.parametrize("name", ["odd", "odd_async"])
def test_functions_that_go_wrong(name: str, folder: Path) -> None:
    (folder / "in").write_bytes(numbers(18))
    more = ("--linger", "20", "--max-attempts", "1", "--max-line", "30000000")
    with serving("in", "out", *more, cwd=folder) as serve:
        finished = work(serve, folder, f"functions:{name}")
        assert finished.code == 0, finished.stderr
        assert finished.stdout == "printed by the function\n" * 18
        assert serve.stop().code == 3
    answers = (folder / "out").read_bytes().split(b"\n")[:-1]
    assert len(answers) == 18
    assert answers[1] == b"null"
    assert answers[5] == b'"' + b"x" * 20_000_000 + b'"'
    assert answers[9] == b'{"raw":  1}'
    assert answers[13] == b'"two\\nlines"'
    failed = records(folder)
    errors = {number: str(record["errors"]) for number, record in failed.items()}
    assert "ValueError: no such luck" in errors[0]
    assert "nan" in errors[2]
    assert "set, which JSON lacks" in errors[3]
    assert "trioline.Raw" in errors[4]
    assert "SystemExit: 5" in errors[6]
    assert "not this one" in errors[7]
    assert "TypeError" in errors[8]
    assert "JSON" in errors[10]
    assert "surrogate" in errors[11]
    assert "KeyError" in errors[12]
    assert "KeyboardInterrupt" in errors[14]
    assert "GeneratorExit" in errors[15]
    assert "CancelledError" in errors[16]
    assert set(failed) == {0, 2, 3, 4, 6, 7, 8, 10, 11, 12, 14, 15, 16}
    assert {answers[number] for number in failed} == {b"null"}


# --- ends -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "more"),
    [
        (signal.SIGTERM, ("functions:slow",)),
        (signal.SIGTERM, ("functions:slow_async",)),
        (signal.SIGINT, ("functions:slow_async",)),
        (signal.SIGTERM, ("--exec", "sleep 60")),
        (signal.SIGTERM, ("--each", "sleep 60")),
    ],
)
def test_a_signal_gives_leases_back_at_once(
    number: signal.Signals, more: tuple[str, ...], folder: Path
) -> None:
    with (
        serving("in", "out", "--grace", "600", cwd=folder) as serve,
        started("work", serve.address, *more, "--drain", "0.1", cwd=folder) as worker,
        Plain(serve.port) as other,
    ):
        serve.wait_status(lambda status: status["leased"], "a lease")
        if more[0].startswith("functions"):
            wait_until(lambda: list(folder.glob("begun-*")), "the function to begin")
        began_at = time.monotonic()
        finished = worker.stop(number)
        assert finished.code == 4
        assert "stopped before the end of the job" in finished.stderr
        assert "Traceback" not in finished.stderr
        got: list[int] = []
        while len(got) < COUNT:
            work_ = other.get_lines(COUNT)
            assert work_ is not None
            got += range(work_[0], work_[0] + len(work_[1]))
        assert sorted(got) == list(range(COUNT))
        assert time.monotonic() - began_at < 15
        assert serve.status()["rejected"] == 0


def test_processes_end_together_at_a_signal(folder: Path) -> None:
    with (
        serving("in", "out", cwd=folder) as serve,
        started(
            *("work", serve.address, "functions:slow", "--processes", "3", "--drain", "0.1"),
            *("--batch", "1"),
            cwd=folder,
        ) as worker,
    ):
        wait_until(lambda: len(list(folder.glob("begun-*"))) == 3, "three processes")
        assert worker.stop().code == 4
        for begun in folder.glob("begun-*"):
            with pytest.raises(ProcessLookupError):
                os.kill(int(begun.name.removeprefix("begun-")), 0)


def test_a_worker_that_is_killed_loses_its_lines_after_the_grace(folder: Path) -> None:
    with (
        serving("in", "out", "--grace", "0.3", "--linger", "20", cwd=folder) as serve,
        started("work", serve.address, "functions:slow", cwd=folder) as worker,
    ):
        wait_until(lambda: list(folder.glob("begun-*")), "the function to begin")
        worker.kill()
        killed_at = time.monotonic()
        assert work(serve, folder, "functions:square").code == 0
        assert time.monotonic() - killed_at < 20
        assert serve.stop().code == 0
    assert (folder / "out").read_bytes() == SQUARES


def test_a_function_that_kills_its_process_costs_no_attempt(folder: Path) -> None:
    more = ("--grace", "0", "--linger", "20", "--max-attempts", "1")
    with serving("in", "out", *more, cwd=folder) as serve:
        finished = work(serve, folder, "functions:dies_once", "--processes", "2")
        assert finished.code == 0
        assert "was killed by SIGKILL; starting it again." in finished.stderr
        assert serve.stop().code == 0
    assert (folder / "out").read_bytes() == SQUARES


def has_written(serve: Serve, count: int) -> Callable[[], bool]:
    return lambda: bool(serve.status()["written"] >= count)


@pytest.mark.parametrize("more", [("--processes", "2"), ("--concurrency", "2")], ids=" ".join)
def test_the_server_is_killed_and_started_again_under_live_workers(
    more: tuple[str, ...], folder: Path
) -> None:
    count = 400
    (folder / "in").write_bytes(numbers(count))
    with serving("in", "out", cwd=folder) as serve:
        port = str(serve.port)
        with started("work", serve.address, "functions:slowly", *more, cwd=folder) as worker:
            for written in (50, 150):
                wait_until(has_written(serve, written), "progress")
                serve.kill()
                serve = Serve(["in", "out", "--port", port, "--linger", "20"], folder)
                serve.wait_listening()
                assert serve.status()["written"] >= written
            try:
                assert worker.wait().code == 0
                assert serve.stop().code == 0
            finally:
                serve.kill()
    assert (folder / "out").read_bytes() == b"".join(b"%d\n" % n**2 for n in range(count))


def test_a_worker_whose_server_stays_away_gives_up(folder: Path) -> None:
    with (
        serving("in", "out", cwd=folder) as serve,
        started(
            *("work", serve.address, "functions:slow_async", "--give-up", "0.5"), cwd=folder
        ) as worker,
    ):
        serve.wait_status(lambda status: status["leased"], "a lease")
        serve.kill()
        finished = worker.wait()
    assert finished.code == 1
    assert "Gave up after 0.5 seconds without a connection" in finished.stderr.splitlines()[-1]
    assert "Traceback" not in finished.stderr


def test_a_complete_job_sends_workers_home(folder: Path) -> None:
    with serving("in", "out", "--linger", "20", cwd=folder) as serve:
        assert work(serve, folder, "functions:square").code == 0
        late = work(serve, folder, "functions:square")
        assert late.code == 0
        assert "0 lines done" in late.stderr
        assert serve.stop().code == 0


@pytest.mark.parametrize(
    ("reason", "said"), [("drain", "drained before"), ("deadline", "its deadline is near")]
)
def test_a_worker_that_is_sent_home_says_why(reason: str, said: str, folder: Path) -> None:
    with FakeServer([b"1"]) as server:
        server.send_home = reason
        finished = trioline("work", server.address, "functions:square", cwd=folder)
    assert finished.code == 0
    assert said in finished.stderr
    assert "the job is complete" not in finished.stderr


def test_the_others_work_on_where_one_process_is_sent_home(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(children, "LATE_SECONDS", 0.0)
    sent_home = [sys.executable, "-c", f"exit({children.EXIT_SENT_HOME})"]
    done = folder / "done"
    other = ["/bin/sh", "-c", f"sleep 0.5; touch {done}; exit $1", "sh"]
    assert trio.run(children.run_workers, [sent_home, [*other, "0"]], 0.0) == 0
    assert done.exists()
    assert trio.run(children.run_workers, [sent_home, [*other, "1"]], 0.0) == 1
    assert trio.run(children.run_workers, [sent_home], 0.0) == 0


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (("functions:slow",), "no result within 0.3 seconds"),
        (("functions:slow_async",), "no result within 0.3 seconds"),
        (("--each", "exec sleep 60"), "no result within 0.3 seconds"),
        (("--exec", "exec sleep 60"), "the command printed nothing for 0.3 seconds"),
    ],
)
def test_work_that_hangs(arguments: tuple[str, ...], error: str, folder: Path) -> None:
    with FakeServer([b"1"], max_attempts=2) as server:
        finished = trioline("work", server.address, *arguments, "--timeout", "0.3", cwd=folder)
        assert finished.code == 0
        assert len(server.results[0]) == 2
        assert all(error in str(result) for result in server.results[0])


@pytest.mark.parametrize("option", ["--exec", "--each"])
def test_a_misspelt_command_costs_the_job_nothing(option: str, folder: Path) -> None:
    with FakeServer([b"1", b"2"]) as server:
        finished = trioline("work", server.address, option, "pyhton x.py", cwd=folder)
        assert finished.code == 1
        said = finished.stderr.splitlines()[-1]
        assert "The command 'pyhton x.py' cannot be run (exit status 127" in said
        assert (server.results, server.holder) == ({}, {})
