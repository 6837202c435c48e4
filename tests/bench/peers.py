"""The neighbours at the same whole job: input file, two workers that echo, output file in order.

Each raises ``Skipped`` where it is not installed. They are found on the PATH, RQ and Dask in the
interpreter that is named.
"""

from __future__ import annotations

import contextlib
import functools
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from inputs import LINE_BYTES, check_same
from jobs import WORKERS, Place
from measure import BENCH, DEADLINE_SECONDS, Child, Failed, Sample, Skipped, script, started, weigh

BEANSTALK_JOB_BYTES = 100_000_000
LOOK_SECONDS = 0.01


def program(name: str) -> str:
    """Find a program.

    Raises:
        Skipped: It is not installed.
    """
    path = shutil.which(name)
    if path is None:
        raise Skipped(f"{name} is not installed")
    return path


@functools.cache
def version(*command: str) -> str:
    """The first line that a program says of itself; "" where there is none."""
    try:
        said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return ""
    return said.stdout.partition("\n")[0]


@contextlib.contextmanager
def listening(folder: Path, *command: str) -> Iterator[tuple[Child, int]]:
    """Start a server on a free port, which is put where its command says ``PORT``."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
    words = [word.replace("PORT", str(port)) for word in command]
    with started(*words, folder=folder) as server:
        give_up_at = time.monotonic() + DEADLINE_SECONDS
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                break
            if time.monotonic() > give_up_at:
                raise Failed(f"{server.name} does not listen: {server.last_words()}")
            time.sleep(LOOK_SECONDS)
        yield server, port


def redis_server(folder: Path) -> contextlib.AbstractContextManager[tuple[Child, int]]:
    """Start Redis with nothing durable."""
    quiet = ("--save", "", "--appendonly", "no", "--logfile", "log", "--bind", "127.0.0.1")
    return listening(folder, program("redis-server"), "--port", "PORT", *quiet)


def beanstalkd(folder: Path) -> contextlib.AbstractContextManager[tuple[Child, int]]:
    """Start beanstalkd with its binlog synced each 50 ms."""
    binlog = ("-b", str(folder), "-f", "50", "-z", str(BEANSTALK_JOB_BYTES))
    return listening(folder, program("beanstalkd"), "-l", "127.0.0.1", "-p", "PORT", *binlog)


SERVERS = {"redis": redis_server, "beanstalkd": beanstalkd}


def queue_job(
    place: Place,
    kind: str,
    count: int,
    *,
    lines_a_job: int = 1,
    jobs_a_take: int = 1,
    sends: str = "together",
    line_bytes: int = LINE_BYTES,
) -> Sample:
    """Do the job through Redis lists or beanstalkd; ``sends`` as ``queues`` has it."""
    source = place.inputs.file(count, line_bytes)
    with place.folder() as folder, SERVERS[kind](folder) as (server, port):
        output = folder / "output"
        roles: Sequence[tuple[object, ...]] = (
            ("feed", source, lines_a_job),
            ("collect", output, -(-count // lines_a_job)),
            *([("work", jobs_a_take, sends)] * WORKERS),
        )
        with contextlib.ExitStack() as stack:
            children = [
                stack.enter_context(
                    started(*script("queues.py"), kind, str(port), *map(str, role), folder=folder)
                )
                for role in roles
            ]
            both = weigh(server, children, children[:2])
        check_same(source, output)
        return Sample(
            lines=count,
            seconds=both.seconds,
            server_seconds=both.server_seconds,
            server_bytes=both.server_bytes,
        )


def parallel_job(place: Place, count: int, *options: str) -> Sample:
    """Do the job with GNU parallel, its start included."""
    command = [program("parallel"), "--will-cite", "-k", "-j", str(WORKERS), *options]
    source = place.inputs.file(count)
    with place.folder() as folder, source.open("rb") as stdin:
        output = folder / "output"
        with output.open("wb") as stdout:
            begin_at = time.monotonic()
            subprocess.run(
                command,
                cwd=folder,
                stdin=stdin,
                stdout=stdout,
                check=True,
                timeout=DEADLINE_SECONDS,
            )
        sample = Sample(lines=count, seconds=time.monotonic() - begin_at)
        check_same(source, output)
    return sample


def python_job(place: Place, python: str, kind: str, count: int, lines_a_job: int) -> Sample:
    """Do the job with RQ or Dask."""
    module = {"rq": "rq", "dask": "distributed"}[kind]
    if not version(python, "-c", f"import {module}; print({module}.__version__)"):
        raise Skipped(f"{python} has no {module}: name one that does with --peers-python")
    source = place.inputs.file(count)
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(place.folder())
        server, port = stack.enter_context(redis_server(folder)) if kind == "rq" else (None, 0)
        output = folder / "output"
        arguments = (kind, str(port), source, output, str(lines_a_job))
        command = (python, BENCH / "python_queues.py", *arguments)
        child = stack.enter_context(started(*command, folder=folder))
        sample = weigh(server, [child], [child])
        check_same(source, output)
    return sample


def echo_job(place: Place, batch: int, count: int) -> Sample:
    """Send the same bytes to two workers and back: the physical limit."""
    messages = max(count // batch, WORKERS)
    size = str(batch * LINE_BYTES)
    with place.folder() as folder, contextlib.ExitStack() as stack:
        command = (*script("echo.py"), "serve", str(WORKERS), size, str(messages))
        server = stack.enter_context(started(*command, folder=folder))
        work = (*script("echo.py"), "work", server.line(), size)
        for _ in range(WORKERS):
            stack.enter_context(started(*work, folder=folder))
        one = weigh(server, [server], [server])
    assert one.server_seconds is not None
    return Sample(
        lines=messages * batch,
        seconds=one.seconds,
        server_seconds=one.server_seconds,
        server_bytes=one.server_bytes,
    )
