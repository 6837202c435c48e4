"""A real server, killed at random moments under workers on plain sockets, and started again.

``--kills=200`` asks for more of them. What was acknowledged must never be given out again, must be
in the output with the very bytes that were acknowledged, and nothing may be there twice.
"""

from __future__ import annotations

import contextlib
import random
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

import pytest
from processes import DEADLINE_SECONDS, Plain, Serve, numbers, serving, wait_until

WORKERS = 3
LINES = 4_000
LINES_PER_KILL = 500
"""More than are done between two kills: the job must not be over before the last one."""


class SocketWorker:
    """Leases lines, hands them in in random order, sends again what was not acknowledged.

    Each result has a number of its own, so that one computed twice is told from one sent twice.
    """

    def __init__(self, name: str, port: int, seed: int, shared: Shared) -> None:
        self._name = name
        self._port = port
        self._random = random.Random(seed)
        self._shared = shared
        self._unanswered: list[tuple[int, list[bytes]]] = []
        self._made = 0
        self.problems: list[str] = []
        self.thread = threading.Thread(target=self._run, name=name, daemon=True)

    def _run(self) -> None:
        while not self._shared.is_over.is_set():
            try:
                with Plain(self._port) as plain:
                    plain.ask(op="hello", worker=self._name)
                    self._work(plain)
            except (OSError, EOFError):
                time.sleep(0.01)  # the server was killed: try again
            except AssertionError as error:
                self.problems.append(repr(error))
                return

    def _work(self, plain: Plain) -> None:
        self._hand_in(plain)
        while not self._shared.is_over.is_set():
            asked_at = self._shared.now()
            is_slow = self._shared.is_slow.is_set()
            work = plain.get_lines(self._random.randint(1, 10 if is_slow else 500), wait=0.2)
            if work is None:
                self._shared.is_over.set()
                return
            first, lines = work
            self._shared.check_new(first, lines, asked_at)
            if is_slow:
                time.sleep(self._random.uniform(0, 0.02))
            pieces = self._in_pieces(first, lines)
            self._random.shuffle(pieces)
            self._unanswered = pieces
            self._hand_in(plain)

    def _in_pieces(self, first: int, lines: list[bytes]) -> list[tuple[int, list[bytes]]]:
        pieces = []
        while lines:
            count = self._random.randint(1, len(lines))
            results = []
            for line in lines[:count]:
                self._made += 1
                results.append(b'[%s,"%s",%d]' % (line, self._name.encode(), self._made))
            pieces.append((first, results))
            first, lines = first + count, lines[count:]
        return pieces

    def _hand_in(self, plain: Plain) -> None:
        while self._unanswered:
            first, results = self._unanswered[-1]
            reply = plain.done_lines(first, results)
            assert reply["ok"], reply
            self._shared.acknowledge(first, results, reply["accepted"])
            self._unanswered.pop()


class Shared:
    """What was acknowledged to any worker."""

    def __init__(self) -> None:
        self.is_over = threading.Event()
        self.is_slow = threading.Event()
        self.lock = threading.Lock()
        self.acknowledged: dict[int, bytes | None] = {}
        """By line: the result, where it is known that this one was taken; None: one was."""
        self._at: dict[int, int] = {}

    def now(self) -> int:
        """How much had been acknowledged: the clock of this test."""
        with self.lock:
            return len(self.acknowledged)

    def check_new(self, first: int, lines: list[bytes], asked_at: int) -> None:
        """What was acknowledged before it was asked for is not given out again."""
        with self.lock:
            for number, line in enumerate(lines, first):
                assert line == b"%d" % number
                assert self._at.get(number, asked_at) >= asked_at, f"line {number} came again"

    def acknowledge(self, first: int, results: list[bytes], accepted: int) -> None:
        """Note an acknowledgement; the same line is never taken twice."""
        with self.lock:
            for number, result in enumerate(results, first):
                known = result if accepted == len(results) else None
                before = self.acknowledged.get(number)
                assert known is None or before is None, f"line {number} was taken twice"
                self._at.setdefault(number, len(self.acknowledged))
                self.acknowledged[number] = before or known


class Crew:
    """The workers of one test."""

    def __init__(self, port: int, seed: int) -> None:
        self.shared = Shared()
        self.workers = [
            SocketWorker(f"worker-{number}", port, seed + number, self.shared)
            for number in range(WORKERS)
        ]

    def __enter__(self) -> Crew:
        self.shared.is_slow.set()
        for worker in self.workers:
            worker.thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.shared.is_over.set()
        for worker in self.workers:
            worker.thread.join(DEADLINE_SECONDS)

    def check(self) -> None:
        """No worker has seen anything wrong."""
        assert [problem for worker in self.workers for problem in worker.problems] == []

    def finish(self) -> None:
        """Do the rest at full speed."""
        self.shared.is_slow.clear()
        wait_until(
            lambda: self.shared.is_over.is_set() or any(w.problems for w in self.workers),
            "the job's end",
        )
        self.check()


@contextlib.contextmanager
def restarting(folder: Path, *arguments: str) -> Iterator[Restarting]:
    """A server on one port that can be started again and again."""
    with serving("in", "out", *arguments, cwd=folder) as first:
        servers = Restarting(folder, arguments, first)
        try:
            yield servers
        finally:
            servers.now.kill()


class Restarting:
    """The same server, again and again."""

    def __init__(self, folder: Path, arguments: tuple[str, ...], first: Serve) -> None:
        self.now = first
        self.port = first.port
        self._folder = folder
        self._arguments = arguments

    def again(self) -> None:
        """Start it with the same command, on the same port."""
        self.now.kill()
        self.now = Serve(["in", "out", *self._arguments, "--port", str(self.port)], self._folder)
        self.now.wait_listening()


def check_output(folder: Path, shared: Shared, *, lines: int | None = None) -> None:
    """Whole lines, in order, each with the bytes that were acknowledged; all of them at the end."""
    with shared.lock:
        acknowledged = dict(shared.acknowledged)
        content = (folder / "out").read_bytes()
    assert content.endswith(b"\n") or not content
    answers = content.split(b"\n")[:-1]
    for number, line in enumerate(answers):
        assert line.startswith(b"[%d," % number), (number, line)
        assert acknowledged.get(number) in (None, line), number
    if lines is not None:
        assert len(answers) == lines
        assert (folder / "out.rejected").read_bytes() == b""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "in").write_bytes(numbers(LINES))
    return tmp_path


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    """Of this run; printed where a test fails."""
    drawn = random.SystemRandom().randrange(1_000_000)
    print(f"seed {drawn}")
    return drawn


@pytest.mark.slow
@pytest.mark.parametrize("fsync", ["always", "interval"])
def test_killed_at_random_moments(
    fsync: str, folder: Path, seed: int, pytestconfig: pytest.Config
) -> None:
    kills = -(-int(pytestconfig.getoption("--kills")) // 2)
    lines = LINES + kills * LINES_PER_KILL
    (folder / "in").write_bytes(numbers(lines))
    rounds = random.Random(seed)
    arguments = ("--fsync", fsync, "--linger", "20", "--max-attempts", "1", "--window", "2000")
    left = kills
    with restarting(folder, *arguments) as servers, Crew(servers.port, seed) as crew:
        while left:
            time.sleep(rounds.uniform(0, 0.15))  # the random moment
            assert not crew.shared.is_over.is_set(), "done before the last kill: no test"
            servers.now.send(signal.SIGKILL)
            servers.now.wait()
            left -= 1
            with crew.shared.lock:
                count = len(crew.shared.acknowledged)
            servers.again()
            status = servers.now.status()
            assert status["written"] + status["ahead"] >= count
            check_output(folder, crew.shared)
            crew.check()
        crew.finish()
        assert servers.now.stop().code == 0
        check_output(folder, crew.shared, lines=lines)


@pytest.mark.parametrize(
    ("number", "signals"),
    [(signal.SIGINT, 1), (signal.SIGINT, 2), (signal.SIGINT, 3), (signal.SIGTERM, 2)],
)
def test_signals_at_random_moments(
    number: signal.Signals, signals: int, folder: Path, seed: int
) -> None:
    rounds = random.Random(seed)
    with restarting(folder, "--linger", "20") as servers, Crew(servers.port, seed) as crew:
        time.sleep(rounds.uniform(0, 0.2))  # the random moment
        for _ in range(signals):
            if servers.now.is_running:
                servers.now.send(number)
            time.sleep(rounds.uniform(0, 0.02))
        finished = servers.now.wait()
        assert finished.code == 4, finished.stderr
        assert "Traceback" not in finished.stderr
        servers.again()
        check_output(folder, crew.shared)
        crew.finish()
        assert servers.now.stop().code == 0
        check_output(folder, crew.shared, lines=LINES)


def test_the_first_signal_waits_for_what_is_worked_on(folder: Path) -> None:
    with serving("in", "out", "--drain", "20", cwd=folder) as serve:
        with Plain(serve.port) as slow, Plain(serve.port) as idle:
            assert slow.get_lines(5) is not None
            serve.send(signal.SIGINT)
            serve.wait_said("finishing what is under way")
            wait_until(lambda: idle.ask(op="get")["status"] == "retry", "no new leases")
            assert slow.done_lines(0, [b"%d" % line for line in range(5)])["accepted"] == 5
        assert serve.wait(15).code == 4
    assert (folder / "out").read_bytes() == numbers(5)


@pytest.mark.parametrize("seconds", [0.6, 1.1, pytest.param(6.0, marks=pytest.mark.slow)])
def test_a_server_that_stood_still_takes_no_leases_away(seconds: float, folder: Path) -> None:
    timeout = min(seconds * 0.8, 2.0)
    arguments = ("--max-attempts", "1", "--lease-timeout", str(timeout), "--linger", "0")
    with serving("in", "out", *arguments, cwd=folder) as serve, Plain(serve.port) as plain:
        work = plain.get_lines(LINES)
        assert work is not None
        serve.send(signal.SIGSTOP)
        time.sleep(seconds)  # longer than the lease: that is the test
        serve.send(signal.SIGCONT)
        before = serve.status()["elapsed"]
        serve.wait_status(lambda status: status["elapsed"] > before + timeout / 2, "sweeps")
        status = serve.status()
        assert (status["rejected"], status["leased"], status["queued"]) == (0, LINES, 0)
        assert plain.done_lines(*work)["accepted"] == LINES
        assert serve.wait().code == 0
    assert (folder / "out").read_bytes() == numbers(LINES)
