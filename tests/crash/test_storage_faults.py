"""Every system call of a short job fails, at every place where it is made, once and for ever.

What must follow is the table in ``files``: no room is waited for and changes nothing; anything else
is final, names the file, and leaves a job that the same command takes further.
"""

from __future__ import annotations

import contextlib
import errno
import os
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pytest
from storage_helpers import CrashFiles, settings_for

from trioline.config import Fsync, JobSettings
from trioline.errors import DiskFull, StorageError, UsageError
from trioline.storage import Entry, Job, Rejection, Results, Tried

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
GONE = (errno.EIO, errno.EROFS, errno.ESTALE)
TAKES_ROOM = ("pwrite", "create", "mkdir", "rename")
SYNCS = ("sync", "sync_folder")
OTHERS = (
    "open",
    "close",
    "pread",
    "truncate",
    "lock",
    "fstat",
    "stat",
    "is_writable",
    "unlink",
    "listdir",
)
CODES = {
    **dict.fromkeys(TAKES_ROOM, FULL + GONE),
    **dict.fromkeys(SYNCS, (errno.EIO, errno.ENOSPC, errno.EDQUOT)),
    **dict.fromkeys(OTHERS, (errno.EIO, errno.ESTALE)),
}
INPUT = b"0\n1\n2\n3\n4\n5\n6\n7\n"
OUTPUT = b'"a"\n"b"\nnull\n"d"\n"e"\n"f"\nnull\n"h"\n'
REJECTED = b'{"id":2}\n{"id":6}\n'
TOO_OFTEN = 4
"""So often a call finds the disk full before there is room again."""
T = TypeVar("T")


class Fault:
    """The nth call of a kind fails, or that and all after it."""

    def __init__(self, call: str, at: int, code: int, *, for_ever: bool) -> None:
        self.call, self.at, self.code, self.for_ever = call, at, code, for_ever
        self.count = 0
        self.path: Path | None = None
        """Of the call that failed last."""

    def __call__(self, call: str, path: Path, _count: int) -> int | None:
        if call != self.call:
            return None
        self.count += 1
        if self.count == self.at or (self.for_ever and self.count > self.at):
            self.path = path
            return self.code
        return None


class Ended(Exception):
    """The job ended with a final error, as it should."""


class Play:
    """A short job with ahead lines, rejections, several segments and durable points.

    Args:
        fault: What fails.
    """

    def __init__(self, settings: JobSettings, fault: Fault | None) -> None:
        self.settings = settings
        self.fault = fault
        self.files = CrashFiles()
        self.files.put(settings.input, INPUT)
        self.files.fail = fault
        self.acknowledged: set[int] = set()
        self.kept: dict[int, bytes] = {}
        """What was tried with a line, acknowledged."""
        self.full_count = 0

    def run(self) -> None:
        """Play the job to its end.

        Raises:
            Ended: A call failed for good.
        """
        job = self.call(None, self.open)
        self.commit(job, results(3, b'"d"\n'), Rejection(6, b'{"id":6}\n'))
        self.commit(job, results(0, b'"a"\n"b"\n'))
        self.sync(job)
        self.commit(job, Rejection(2, b'{"id":2}\n'), results(7, b'"h"\n'), Tried(4, 2, b"x"))
        self.sync(job)
        self.commit(job, results(4, b'"e"\n"f"\n'))
        assert job.written_count == 8
        offset = self.offset(job)
        self.call(job, lambda: job.finish(offset))
        self.call(None, job.close)
        assert self.files.open_count == 0

    def open(self) -> Job:
        return Job.open(self.settings, self.files, segment_bytes=100)

    def commit(self, job: Job, *entries: Entry) -> None:
        self.call(job, lambda: job.commit(entries))
        for entry in entries:
            count = 1 if isinstance(entry, Rejection) else entry.count
            lines = range(entry.first, entry.first + count)
            if isinstance(entry, Tried):
                self.kept.update(dict.fromkeys(lines, entry.history))
            else:
                self.acknowledged.update(lines)

    def sync(self, job: Job) -> None:
        offset = self.offset(job)
        self.call(job, lambda: job.sync(offset))

    def offset(self, job: Job) -> int:
        # Reading the input is not the job's business: its errors end whoever reads.
        return self.call(None, lambda: job.source.offset_of(job.written_count))

    def call(self, job: Job | None, step: Callable[[], T]) -> T:
        """Make a step, as often as it finds the disk full; there is room at some time."""
        before = self.counts(job)
        for _ in range(TOO_OFTEN):
            try:
                return step()
            except DiskFull as full:
                self.full_count += 1
                self.check_full(full)
                assert self.counts(job) == before
            except (StorageError, UsageError) as error:
                self.check_final(error, job, step)
                raise Ended from error
        assert self.fault is not None
        assert self.fault.for_ever
        self.files.fail = None
        return step()

    def counts(self, job: Job | None) -> tuple[object, ...]:
        """What a full disk must not change."""
        if job is None:
            return ()
        files = (self.settings.output, self.settings.rejected)
        contents = [self.files.get(path) for path in files if self.files.has(path)]
        ahead = [line for part in job.ahead() for line in part]
        return (job.written_count, job.rejected_count, job.output_bytes, ahead, contents)

    def check_full(self, full: DiskFull) -> None:
        assert self.fault is not None
        assert self.fault.call in TAKES_ROOM
        assert self.fault.code in FULL
        assert full.path == str(self.fault.path)
        assert str(self.fault.path) in str(full)
        assert os.strerror(self.fault.code) in str(full)

    def check_final(
        self, error: StorageError | UsageError, job: Job | None, step: Callable[[], object]
    ) -> None:
        assert self.fault is not None
        assert self.fault.call not in TAKES_ROOM or self.fault.code not in FULL
        assert str(self.fault.path) in str(error)
        if isinstance(error, UsageError):
            assert not self.acknowledged, "it cannot be the command's fault any more"
            return
        assert error.path == str(self.fault.path)
        if job is None:
            return
        # Never again: not when the call would be repeated, and not when there is nothing wrong now.
        self.files.fail = None
        before = self.files.call_count
        for again in (step, lambda: job.commit([]), lambda: job.sync(0)):
            with pytest.raises(StorageError) as caught:
                again()
            assert caught.value is error
        assert self.files.call_count == before, "it went on after a final error"
        with contextlib.suppress(StorageError):
            job.close()
        assert self.files.open_count == 0

    def restart(self) -> None:
        """The same command again, with all well: what was acknowledged is there; it ends right."""
        self.files.fail = None
        self.files.kill()
        job = self.open()
        settled = {*range(job.written_count), *(line for part in job.ahead() for line in part)}
        assert settled >= self.acknowledged
        tried = {line: history for lines, history in job.tried() for line in lines}
        assert settled.isdisjoint(tried)
        assert self.kept.items() <= {**self.kept, **tried}.items()
        assert settled.union(tried) >= set(self.kept)
        content = self.files.get(self.settings.output)
        assert OUTPUT.startswith(content)
        assert content.count(b"\n") == job.written_count
        for line in sorted(set(range(8)) - settled):
            job.commit([ENTRIES[line]])
        job.finish(job.source.offset_of(8))
        job.close()


def results(first: int, data: bytes) -> Results:
    return Results(first, data.count(b"\n"), data)


ENTRIES: list[Entry] = [
    results(line, answer) if answer != b"null\n" else Rejection(line, b'{"id":%d}\n' % line)
    for line, answer in enumerate(OUTPUT.splitlines(keepends=True))
]


def settings(fsync: Fsync) -> JobSettings:
    return settings_for(Path("/d"), fsync=fsync)


def check_end(play: Play) -> None:
    assert play.files.get(play.settings.output) == OUTPUT
    assert play.files.get(play.settings.rejected) == REJECTED


@pytest.mark.parametrize("fsync", [Fsync.ALWAYS, Fsync.INTERVAL])
@pytest.mark.parametrize("call", CODES)
def test_every_call_may_fail(call: str, fsync: Fsync) -> None:
    """At every place until there is no such call any more, with every errno, once and for ever."""
    ended: Counter[str] = Counter()
    for code in CODES[call]:
        for for_ever in (False, True):
            at = 1
            while True:
                fault = Fault(call, at, code, for_ever=for_ever)
                play = Play(settings(fsync), fault)
                try:
                    play.run()
                    ended["waited" if play.full_count else "went on"] += 1
                except Ended:
                    ended["final"] += 1
                if fault.path is None:
                    break
                if play.full_count and not for_ever:
                    assert play.full_count == 1
                play.restart()
                check_end(play)
                at += 1
    expected = {"final", "waited", "went on"} if call in TAKES_ROOM else {"final", "went on"}
    assert set(ended) == expected
    if call in SYNCS:
        # The only good end is that of the play without a fault, one for each errno and each way.
        assert ended["went on"] == 2 * len(CODES[call])


@pytest.mark.parametrize("fsync", Fsync)
def test_a_play_without_faults_makes_every_call(fsync: Fsync) -> None:
    made: Counter[str] = Counter()

    def note(call: str, _path: Path, _count: int) -> None:
        made[call] += 1

    play = Play(settings(fsync), None)
    play.files.fail = note
    play.run()
    check_end(play)
    assert set(made) == set(CODES)


class OneByte(CrashFiles):
    """Reads and writes a byte at a time."""

    def pread(self, fd: int, count: int, offset: int) -> bytes:
        return super().pread(fd, min(count, 1), offset)

    def pwrite(self, fd: int, data: bytes | memoryview, offset: int) -> int:
        return super().pwrite(fd, memoryview(data)[:1], offset)


@pytest.mark.parametrize("fsync", Fsync)
def test_one_byte_at_a_time_is_enough(fsync: Fsync) -> None:
    play = Play(settings(fsync), None)
    play.files = OneByte()
    play.files.put(play.settings.input, INPUT)
    play.run()
    check_end(play)


@pytest.mark.parametrize("fsync", Fsync)
def test_a_disk_that_fills_within_any_write_changes_nothing(fsync: Fsync) -> None:
    """A byte at a time until there is no room: every commit is cut back from every byte of it."""
    rng = random.Random(1)
    for _ in range(40):
        fault = Fault("pwrite", rng.randrange(9_200, 12_500), errno.ENOSPC, for_ever=True)
        play = Play(settings(fsync), fault)
        play.files = OneByte()
        play.files.put(play.settings.input, INPUT)
        play.files.fail = fault
        play.run()
        assert play.full_count == TOO_OFTEN or fault.path is None
        check_end(play)


@pytest.mark.parametrize("fsync", Fsync)
@pytest.mark.parametrize("call", CODES)
def test_every_call_of_a_recovery_may_fail(call: str, fsync: Fsync) -> None:
    """What was acknowledged stays: also lines that are in the output alone, behind others."""
    ended: Counter[str] = Counter()
    for code in CODES[call]:
        at = 1
        while True:
            play = Play(settings(fsync), None)
            killed = play.open()
            for entries in ([ENTRIES[3], ENTRIES[1]], [ENTRIES[0]], [ENTRIES[2]], [ENTRIES[4]]):
                play.commit(killed, *entries)
            play.files.kill()
            play.files.fail = fault = Fault(call, at, code, for_ever=False)
            sentence = open_sentence(play)
            ended["ended" if sentence else "went on"] += 1
            assert not sentence or str(fault.path) in sentence
            play.restart()
            check_end(play)
            if fault.path is None:
                break
            at += 1
    assert ended["went on"] >= len(CODES[call])
    made_by_recovery = set(CODES) - {"create", "rename", "unlink"}
    assert ended["ended"] > 0 or call not in made_by_recovery


@pytest.mark.parametrize("fsync", Fsync)
@pytest.mark.parametrize("call", TAKES_ROOM)
def test_a_start_may_be_tried_until_there_is_room(call: str, fsync: Fsync) -> None:
    """From any call on, however often, also after a loss of power: what follows is the same."""
    waited = 0
    for seed in range(12):
        at = 1
        while True:
            play = Play(settings(fsync), None)
            killed = play.open()
            for entries in ([ENTRIES[3], ENTRIES[1]], [ENTRIES[0]], [ENTRIES[2]], [ENTRIES[4]]):
                play.commit(killed, *entries)
            if seed:
                play.files.lose_power(random.Random(seed))
            play.files.kill()
            if fsync is not Fsync.ALWAYS and seed:
                play.acknowledged.clear()
                play.kept.clear()
            play.fault = play.files.fail = fault = Fault(call, at, errno.ENOSPC, for_ever=True)
            play.call(None, play.open)
            play.restart()
            check_end(play)
            if fault.path is None:
                break
            waited += play.full_count == TOO_OFTEN
            at += 1
    assert waited or call != "pwrite"


def open_sentence(play: Play) -> str:
    """Open the job; gives what it said if it could not."""
    try:
        play.open()
    except (StorageError, UsageError) as error:
        return str(error)
    return ""


@pytest.mark.parametrize("fsync", [Fsync.ALWAYS, Fsync.INTERVAL])
def test_no_commit_returns_after_a_point_beside_it_has_failed(fsync: Fsync) -> None:
    play = Play(settings(fsync), None)
    job = play.open()
    play.commit(job, ENTRIES[0])
    point = job.begin_point(play.offset(job))

    def fail_beside() -> None:
        if play.files.fail is None:
            play.files.fail = Fault("sync", 1, errno.EIO, for_ever=False)
            with pytest.raises(StorageError):
                job.make_point(point)

    play.files.beside = fail_beside
    with pytest.raises(StorageError) as caught:
        job.commit([ENTRIES[1]])
    assert caught.value.path == str(play.settings.output)
    play.restart()
    check_end(play)
