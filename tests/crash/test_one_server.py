"""One server at a time, also where the lock was taken away from the one that runs.

Nothing that either server acknowledged may be lost, and the one that lost its lock acknowledges
nothing more and leaves the other's lines alone.
"""

from __future__ import annotations

import contextlib
import errno
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from processes import Plain, numbers, serving
from storage_helpers import AtCall, CrashFiles, input_of, settings_for

from trioline.config import Fsync, JobSettings
from trioline.errors import JobLocked, StorageError, UsageError
from trioline.storage import Entry, Job, Rejection, Results

FOLDER = Path("/d")
LINES = 12


def entry(line: int, who: str) -> Entry:
    if line % 5 == 3:
        return Rejection(line, b'{"id":%d}\n' % line)
    return Results(line, 1, b'"%d by %s"\n' % (line, who.encode()))


def expected(line: int, who: str) -> bytes:
    made = entry(line, who)
    return made.data if isinstance(made, Results) else b"null\n"


def offset(job: Job) -> int:
    return job.source.offset_of(job.written_count)


def open_lines(job: Job) -> list[int]:
    settled = {*range(job.written_count), *(line for part in job.ahead() for line in part)}
    return [line for line in range(LINES) if line not in settled]


class Two:
    """Two servers on one disk without locks; the owner file of the first one is removed."""

    def __init__(self, seed: int, fsync: Fsync) -> None:
        self.rng = random.Random(seed)
        self.files = CrashFiles()
        self.files.fail = lambda call, _path, _count: errno.ENOLCK if call == "lock" else None
        self.settings = settings_for(FOLDER, fsync=fsync)
        self.files.put(self.settings.input, input_of(LINES))
        self.segment_bytes = self.rng.choice((40, 1 << 20))
        self.acknowledged: dict[int, str] = {}

    def open(self) -> Job:
        return Job.open(self.settings, self.files, segment_bytes=self.segment_bytes)

    def work(self, job: Job, who: str, count: int) -> None:
        lines = open_lines(job)
        self.rng.shuffle(lines)
        for line in lines[:count]:
            job.commit([entry(line, who)])
            self.acknowledged[line] = who
            if self.rng.random() < 0.3:
                job.sync(offset(job))

    def try_on(self, job: Job) -> None:
        """Whatever the one that lost its lock does next: it ends, and nothing has changed."""
        before = {path: self.files.get(path) for path in self.files.paths()}
        line = self.rng.choice(open_lines(job))
        calls: list[Callable[[], None]] = [
            lambda: job.commit([entry(line, "stale")]),
            lambda: job.sync(offset(job)),
        ]
        with pytest.raises(StorageError):
            self.rng.choice(calls)()
        with pytest.raises(StorageError):
            job.commit([entry(line, "stale")])
        assert {path: self.files.get(path) for path in self.files.paths()} == before


@pytest.mark.parametrize("fsync", Fsync)
def test_two_jobs_interleaved_lose_nothing(fsync: Fsync) -> None:
    for seed in range(60):
        two = Two(seed, fsync)
        first = two.open()
        two.work(first, "first", two.rng.randrange(6))
        two.files.unlink(two.settings.state / "owner")
        second = two.open()
        assert second.written_count + second.ahead_count == len(two.acknowledged)
        two.work(second, "second", two.rng.randrange(1, 5))
        two.try_on(first)
        two.work(second, "second", LINES)
        if two.rng.random() < 0.5:
            second.sync(offset(second))
        first.close()
        second.close()
        third = two.open()
        assert not open_lines(third)
        third.finish(offset(third))
        third.close()
        assert two.files.get(two.settings.output) == b"".join(
            expected(line, two.acknowledged[line]) for line in range(LINES)
        ), seed
        assert two.files.open_count == 0


@pytest.mark.parametrize("fsync", Fsync)
def test_a_lock_removed_at_any_system_call_lets_nobody_in(fsync: Fsync) -> None:
    """Where there are locks the output is held, too; what was not acknowledged may still count."""
    settings = settings_for(FOLDER, fsync=fsync)
    for at in range(1, 60):
        files = CrashFiles()
        files.put(settings.input, input_of(LINES))
        job = Job.open(settings, files)
        acknowledged: list[int] = []
        intruder = Intruder(files, settings, at)
        with pytest.raises(StorageError):
            work_in_order(job, acknowledged)
        job.close()
        assert intruder.was_refused
        again = Job.open(settings, files)
        assert again.written_count in (len(acknowledged), len(acknowledged) + 1)
        again.close()


def test_a_lock_removed_while_a_job_is_made_leaves_one_job() -> None:
    """A second server comes at any system call of the first one's beginning, and goes to work."""
    settings = settings_for(FOLDER)
    came = 0
    for at in range(1, 200):
        files = CrashFiles()
        files.put(settings.input, input_of(LINES))
        second = Second(files, settings, at)
        try:
            first = Job.open(settings, files)
        except (StorageError, JobLocked, UsageError):
            pass
        else:
            assert second.job is None
            first.close()
        if second.job is not None:
            came += 1
            second.job.commit([entry(1, "second")])
            second.job.sync(offset(second.job))
            files.kill()
            again = Job.open(settings, files)
            assert again.written_count == 2
            assert files.get(settings.output) == expected(0, "second") + expected(1, "second")
            again.close()
        if second.calls.count < at:
            break
    assert came > 20


class Second:
    """Removes the lock at the nth system call, and starts a second server."""

    def __init__(self, files: CrashFiles, settings: JobSettings, at: int) -> None:
        self.files, self.settings = files, settings
        self.job: Job | None = None
        self.calls = AtCall(files, at, self._start)

    def _start(self) -> None:
        if self.files.has(self.settings.state / "lock"):
            self.files.unlink(self.settings.state / "lock")
        with contextlib.suppress(JobLocked):
            self.job = Job.open(self.settings, self.files)
            self.job.commit([entry(0, "second")])


def work_in_order(job: Job, acknowledged: list[int]) -> None:
    for line in range(LINES):
        job.commit([entry(line, "first")])
        acknowledged.append(line)
        job.sync(offset(job))


class Intruder:
    """Removes the lock at the nth system call, and starts a second server then."""

    def __init__(self, files: CrashFiles, settings: JobSettings, at: int) -> None:
        self.files, self.settings = files, settings
        self.was_refused = False
        AtCall(files, at, self._start)

    def _start(self) -> None:
        self.files.fail = None
        self.files.unlink(self.settings.state / "lock")
        with pytest.raises(JobLocked, match="at work on /d/out"):
            Job.open(self.settings, self.files)
        self.was_refused = True


# --- real servers ---------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("fsync", ["always", "interval"])
def test_a_server_without_its_lock_ends_and_no_other_comes_before(
    tmp_path: Path, fsync: str
) -> None:
    (tmp_path / "in").write_bytes(numbers(4))
    command = ("in", "out", "--quiet", "--fsync", fsync)
    with serving(*command, cwd=tmp_path) as first, Plain(first.port) as plain:
        plain.get_lines(4)
        assert plain.done_lines(0, [b"1"])["ok"]
        (tmp_path / "out.trioline" / "lock").unlink()
        with pytest.raises(JobLocked, match="at work on"):
            Job.open(settings_for(tmp_path))
        with pytest.raises(EOFError):
            plain.done_lines(1, [b"2"])
        ended = first.wait()
    assert ended.code == 74
    assert "lock was moved or removed while the job ran" in ended.stderr
    with serving(*command, cwd=tmp_path) as second, Plain(second.port) as plain:
        while (lines := plain.get_lines(4)) is not None:
            number, texts = lines
            plain.done_lines(number, texts)
        assert second.stop().code == 0
    assert (tmp_path / "out").read_bytes().splitlines()[0] == b"1"
    assert len((tmp_path / "out").read_bytes().splitlines()) == 4


@pytest.mark.slow
@pytest.mark.parametrize("fsync", ["always", "interval"])
def test_two_servers_where_all_that_is_held_was_replaced(tmp_path: Path, fsync: str) -> None:
    """All is done to let a second one in: what it acknowledged stays, and the first one ends."""
    (tmp_path / "in").write_bytes(numbers(6))
    command = ("in", "out", "--quiet", "--fsync", fsync)
    with serving(*command, cwd=tmp_path) as first, Plain(first.port) as stale:
        stale.get_lines(6)
        assert stale.done_lines(0, [b"10"])["ok"]
        for name in ("out", "out.rejected"):
            shutil.copyfile(tmp_path / name, tmp_path / "copy")
            (tmp_path / "copy").replace(tmp_path / name)
        (tmp_path / "out.trioline" / "lock").unlink()
        at_once = ("--linger", "0")
        with serving(*command, *at_once, cwd=tmp_path) as second, Plain(second.port) as plain:
            plain.get_lines(6)
            assert plain.done_lines(1, [b"11", b"12"])["ok"]
            with pytest.raises((EOFError, OSError)):
                stale.done_lines(1, [b"91", b"92", b"93"])
            assert first.wait().code == 74
            assert plain.done_lines(3, [b"13", b"14", b"15"])["ok"]
            assert second.wait().code == 0
    assert (tmp_path / "out").read_bytes() == b"10\n11\n12\n13\n14\n15\n"
