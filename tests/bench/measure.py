"""The processes of a measurement: started, let go together, weighed, and ended by their ids.

A process that takes part says ``ready`` on stdout, begins when a line comes on its stdin, and
reports ``LINES BEGIN END`` in the end, by the clock that all processes of a machine share.
"""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import attrs

BENCH = Path(__file__).parent
ROOT = BENCH.parents[1]
LEAN_PYTHON = (sys.executable, "-S", "-E")
"""Starts in a tenth of the time: for scripts that import nothing but the standard library."""
DEADLINE_SECONDS = 600.0
"""For anything that is waited for: never reached unless something is wrong."""
SAID_CHARS = 300


class Failed(Exception):
    """A measurement came to nothing; the message says why."""


class Skipped(Failed):
    """A measurement needs what is not installed here."""


@attrs.frozen(kw_only=True)
class Sample:
    """What one round of one cell gave."""

    lines: int
    seconds: float
    server_seconds: float | None = None
    """User and system time of the server in between; None where there is no server."""
    server_bytes: int | None = None
    """The most memory that the server ever had resident."""

    @property
    def speed(self) -> float:
        """Lines a second."""
        return self.lines / self.seconds

    @property
    def server_seconds_per_million(self) -> float | None:
        """Of processor time, a million lines."""
        return None if self.server_seconds is None else self.server_seconds / self.lines * 1e6


@attrs.frozen
class Report:
    """What a process said in the end."""

    lines: int
    begin_at: float
    end_at: float


class Child:
    """A process of a measurement.

    Args:
        arguments: The command.
        folder: Where it runs.
        environment: Beside what is inherited.
    """

    def __init__(
        self,
        arguments: Sequence[str | Path],
        folder: Path,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.name = " ".join(map(str, arguments))
        inherited = {name: os.environ[name] for name in os.environ if name[:9] != "TRIOLINE_"}
        self._said = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the process
        self._popen = subprocess.Popen(
            list(map(str, arguments)),
            cwd=folder,
            env={**inherited, "PYTHONPATH": f"{ROOT}:{BENCH}", **(environment or {})},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            bufsize=0,
        )
        self._unread = b""

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._popen.pid

    def line(self) -> str:
        """Read one line of its stdout.

        Raises:
            Failed: It ended, or stayed silent.
        """
        assert self._popen.stdout is not None
        give_up_at = time.monotonic() + DEADLINE_SECONDS
        poll = select.poll()
        poll.register(self._popen.stdout, select.POLLIN)
        while b"\n" not in self._unread:
            ready = poll.poll(max(give_up_at - time.monotonic(), 0) * 1_000)
            data = os.read(self._popen.stdout.fileno(), 4096) if ready else b""
            if not data:
                raise Failed(f"{self.name} {'ended' if ready else 'hangs'}: {self.last_words()}")
            self._unread += data
        line, _, self._unread = self._unread.partition(b"\n")
        return line.decode()

    def begin(self) -> None:
        """Let it go."""
        assert self._popen.stdin is not None
        self._popen.stdin.write(b"\n")

    def report(self) -> Report:
        """Wait for what it says in the end."""
        lines, begin_at, end_at = self.line().split()
        return Report(int(lines), float(begin_at), float(end_at))

    def wait(self) -> None:
        """Wait for its end.

        Raises:
            Failed: It failed, or hangs.
        """
        try:
            code = self._popen.wait(DEADLINE_SECONDS)
        except subprocess.TimeoutExpired:
            raise Failed(f"{self.name} hangs: {self.last_words()}") from None
        if code:
            raise Failed(f"{self.name} ended with {code}: {self.last_words()}")

    def kill(self) -> None:
        """End it at once; idempotent."""
        self._popen.kill()
        self._popen.wait()
        for stream in (self._popen.stdin, self._popen.stdout, self._said):
            assert stream is not None
            stream.close()

    def processor_seconds(self) -> float:
        """User and system time of its threads so far; of those that ended nothing."""
        tasks = Path(f"/proc/{self.pid}/task").glob("*/schedstat")
        return sum(int(task.read_text(encoding="ascii").split()[0]) for task in tasks) / 1e9

    def resident_bytes(self) -> int:
        """Memory that it has now."""
        return self._status("VmRSS")

    def peak_bytes(self) -> int:
        """The most memory that it ever had."""
        return self._status("VmHWM")

    def _status(self, name: str) -> int:
        text = Path(f"/proc/{self.pid}/status").read_text(encoding="utf-8")
        return int(text.partition(f"{name}:")[2].split()[0]) * 1024

    def last_words(self) -> str:
        """The end of its stderr."""
        self._said.seek(0)
        return self._said.read().decode(errors="replace").strip()[-SAID_CHARS:]


@contextlib.contextmanager
def started(
    *arguments: str | Path, folder: Path, environment: Mapping[str, str] | None = None
) -> Iterator[Child]:
    """Start a process; it is killed at the end where it still runs."""
    child = Child(arguments, folder, environment)
    try:
        yield child
    finally:
        child.kill()


def script(name: str) -> Sequence[str | Path]:
    """The command for a script of this folder that needs the standard library only."""
    return (*LEAN_PYTHON, BENCH / name)


def race(children: Sequence[Child], reporting: Sequence[Child]) -> list[Report]:
    """Let processes go together and wait for the reports of some."""
    for child in children:
        if (word := child.line()) != "ready":
            raise Failed(f"{child.name} said {word!r}, not ready")
    for child in children:
        child.begin()
    return [child.report() for child in reporting]


def weigh(server: Child | None, children: Sequence[Child], reporting: Sequence[Child]) -> Sample:
    """Let processes go together; from the first one's begin to the last one's end."""
    before = server.processor_seconds() if server else 0.0
    try:
        reports = race(children, reporting)
    except Failed as failed:
        words = server.last_words() if server else ""
        raise Failed(f"{failed} (the server: {words or 'nothing'})") from failed
    return Sample(
        lines=sum(report.lines for report in reports),
        seconds=max(one.end_at for one in reports) - min(one.begin_at for one in reports),
        server_seconds=server.processor_seconds() - before if server else None,
        server_bytes=server.peak_bytes() if server else None,
    )
