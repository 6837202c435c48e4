"""Real ``trioline`` processes and plain-socket workers, for tests of whole programs.

Whatever is started here is ended by its process id, and nothing is waited for without a deadline.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import attrs

from trioline.cli.main import run

DEADLINE_SECONDS = 30.0
"""For anything a test waits for: never reached unless something is wrong."""
INVOKE_SECONDS = 10.0
"""For a command that is to be refused."""
ROOT = Path(__file__).parents[1]
PROGRAM = (sys.executable, "-m", "trioline")

SQUARE = "def square(item):\n    return item.data ** 2\n"


def wait_until(
    condition: Callable[[], object], what: str, seconds: float = DEADLINE_SECONDS
) -> None:
    """Look again and again until a condition holds.

    Raises:
        AssertionError: It never did.
    """
    give_up_at = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < give_up_at, f"not within {seconds:g} s: {what}"
        time.sleep(0.005)


def numbers(count: int) -> bytes:
    """An input file's content: 0 to count - 1, a line each."""
    return b"".join(b"%d\n" % number for number in range(count))


def contents(folder: Path) -> dict[str, tuple[int, bytes]]:
    """All files below a folder with times and bytes, but for locks, which every try writes."""
    return {
        str(path.relative_to(folder)): (
            path.lstat().st_mtime_ns if path.is_file() else 0,
            path.read_bytes() if path.is_file() else b"",
        )
        for path in sorted(folder.rglob("*"))
        if path.name != "lock" and path.suffix not in (".stdout", ".stderr")
    }


# --- processes ------------------------------------------------------------------------------------


@attrs.frozen
class Finished:
    """How a command ended."""

    code: int
    stdout: str
    stderr: str


class Process:
    """A running ``trioline``; its output goes to files, so that it never waits for a reader.

    Args:
        arguments: The command and its options.
        folder: Where it runs.
        environment: Variables to add.
        within: A command that takes another one and becomes it.
    """

    def __init__(
        self,
        arguments: Sequence[str | Path],
        folder: Path,
        environment: Mapping[str, str] | None = None,
        within: Sequence[str] = (),
    ) -> None:
        stem = f".{time.monotonic_ns()}"
        self._files = [folder / f"{stem}.stdout", folder / f"{stem}.stderr"]
        inherited = {name: os.environ[name] for name in os.environ if name[:9] != "TRIOLINE_"}
        with self._files[0].open("wb") as out, self._files[1].open("wb") as err:
            self._popen = subprocess.Popen(
                [*within, *PROGRAM, *map(str, arguments)],
                cwd=folder,
                env={**inherited, **(environment or {})},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
            )

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._popen.pid

    @property
    def is_running(self) -> bool:
        """Whether it has not ended yet."""
        return self._popen.poll() is None

    @property
    def stdout(self) -> str:
        """What it has printed so far."""
        return self._files[0].read_text(encoding="utf-8")

    @property
    def stderr(self) -> str:
        """What it has said so far."""
        return self._files[1].read_text(encoding="utf-8")

    def send(self, number: signal.Signals) -> None:
        """Send it a signal."""
        self._popen.send_signal(number)

    def wait(self, seconds: float = DEADLINE_SECONDS) -> Finished:
        """Wait for its end."""
        try:
            code = self._popen.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(
                f"still running after {seconds:g} s: {self._popen.args!r}\n{self.stderr}"
            ) from None
        return Finished(code, self.stdout, self.stderr)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> Finished:
        """Send it a signal and wait for its end."""
        self.send(number)
        return self.wait()

    def kill(self) -> None:
        """End it at once; idempotent."""
        self._popen.kill()
        self._popen.wait()

    def wait_said(self, text: str) -> None:
        """Wait until stderr has a text in it."""
        wait_until(lambda: text in self.stderr or not self.is_running, text)
        assert text in self.stderr, self.stderr


@contextlib.contextmanager
def started(
    *arguments: str | Path,
    cwd: Path,
    environment: Mapping[str, str] | None = None,
    within: Sequence[str] = (),
) -> Iterator[Process]:
    """Start a command; it is killed at the end where it still runs."""
    process = Process(arguments, cwd, environment, within)
    try:
        yield process
    finally:
        process.kill()


def trioline(
    *arguments: str | Path, cwd: Path, environment: Mapping[str, str] | None = None
) -> Finished:
    """Run a command to its end."""
    with started(*arguments, cwd=cwd, environment=environment) as process:
        return process.wait()


class Serve(Process):
    """A ``trioline serve`` (or another command like it) that listens."""

    def __init__(
        self,
        arguments: Sequence[str | Path],
        folder: Path,
        command: str = "serve",
        within: Sequence[str] = (),
    ) -> None:
        listen = [] if {"--port", "--unix"} & set(map(str, arguments)) else ["--port", "0"]
        super().__init__([command, *arguments, *listen], folder, within=within)
        self.addresses: list[str] = []

    def wait_listening(self) -> None:
        """Wait for the line that says where."""
        wait_until(lambda: self.stdout.endswith("\n") or not self.is_running, "the listening line")
        prefix = "trioline listening on "
        assert self.stdout.startswith(prefix), self.stderr
        self.addresses = [line.removeprefix(prefix) for line in self.stdout.splitlines()]

    @property
    def address(self) -> str:
        """Where it listens first."""
        return self.addresses[0]

    @property
    def port(self) -> int:
        """Its TCP port."""
        return int(self.address.rpartition(":")[2])

    def status(self) -> dict[str, Any]:
        """Ask it how the job stands."""
        with Plain(self.port) as plain:
            return plain.ask(op="status")

    def wait_status(self, condition: Callable[[dict[str, Any]], object], what: str) -> None:
        """Wait until the job stands as it should."""
        wait_until(lambda: condition(self.status()), what)


@contextlib.contextmanager
def serving(*arguments: str | Path, cwd: Path, within: Sequence[str] = ()) -> Iterator[Serve]:
    """Start ``trioline serve`` on a free port and wait until it listens."""
    serve = Serve(arguments, cwd, within=within)
    try:
        serve.wait_listening()
        yield serve
    finally:
        serve.kill()


# --- in this process: a hundred wrong commands in the time that one process takes -----------------


def invoke(*arguments: str | Path, capture: Callable[[], tuple[str, str]]) -> Finished:
    """Run a command inside of this process.

    Args:
        capture: ``capfd.readouterr``.
    """
    root, server = logging.getLogger(), logging.getLogger("trioline.server")
    handlers, levels = root.handlers[:], (root.level, server.level)
    stops = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    root.handlers.clear()
    overdue: list[int] = []

    def too_late(number: int, frame: FrameType | None) -> None:
        overdue.append(number)
        signal.raise_signal(signal.SIGINT)  # the way out that leaves nothing half done

    former = signal.signal(signal.SIGALRM, too_late)
    signal.setitimer(signal.ITIMER_REAL, INVOKE_SECONDS, 1.0)
    capture()
    try:
        code = run([str(argument) for argument in arguments])
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, former)
        for number, handler in stops.items():
            signal.signal(number, handler)
        root.handlers[:] = handlers
        root.setLevel(levels[0])
        server.setLevel(levels[1])
    assert not overdue, f"still running: trioline {arguments}"
    return Finished(code, *capture())


# --- plain sockets --------------------------------------------------------------------------------


class Plain:
    """A connection without any helper of trioline's: JSON lines on a socket.

    Raises:
        OSError: The connection is refused, or lost (``EOFError`` where it just ended).
    """

    def __init__(self, target: int | str) -> None:
        if isinstance(target, int):
            self._socket = socket.create_connection(("127.0.0.1", target), DEADLINE_SECONDS)
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        else:
            self._socket = socket.socket(socket.AF_UNIX)
            self._socket.settimeout(DEADLINE_SECONDS)
            self._socket.connect(target)
        self._stream = self._socket.makefile("rb")

    def __enter__(self) -> Plain:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """End the connection."""
        self._stream.close()
        self._socket.close()

    def fileno(self) -> int:
        """For ``select``."""
        return self._socket.fileno()

    def ask(self, body: bytes = b"", **request: object) -> dict[str, Any]:
        """Send one request, with raw lines behind it, and read its reply."""
        self.send(body, **request)
        return self.reply()

    def send(self, body: bytes = b"", **request: object) -> None:
        """Send one request, with raw lines behind it."""
        self._socket.sendall(json.dumps(request).encode() + b"\n" + body)

    def reply(self) -> dict[str, Any]:
        """Read the next reply."""
        line = self._stream.readline()
        if not line.endswith(b"\n"):
            raise EOFError("the server closed the connection")
        reply: dict[str, Any] = json.loads(line)
        return reply

    def get_lines(self, count: int, wait: float = 10) -> tuple[int, list[bytes]] | None:
        """Lease lines in lines form.

        Returns:
            The first line's number and the lines; None when the job is complete.
        """
        while True:
            reply = self.ask(op="get", max=count, wait=wait, form="lines")
            assert reply["ok"], reply
            if reply["status"] == "complete":
                return None
            if reply["status"] == "work":
                body = self._stream.read(reply["bytes"])
                return reply["first"], body.split(b"\n")[:-1]

    def get_items(self, count: int, wait: float = 10) -> list[dict[str, Any]] | None:
        """Lease lines in items form; None when the job is complete."""
        while True:
            reply = self.ask(op="get", max=count, wait=wait)
            assert reply["ok"], reply
            if reply["status"] == "complete":
                return None
            if reply["status"] == "work":
                items: list[dict[str, Any]] = reply["items"]
                return items

    def done_lines(self, first: int, lines: Sequence[bytes]) -> dict[str, Any]:
        """Hand results in, in lines form."""
        body = b"".join(line + b"\n" for line in lines)
        return self.ask(body, op="done", first=first, count=len(lines), bytes=len(body))
