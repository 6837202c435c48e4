"""Jobs that are killed and lose power at random system calls, also while they recover.

After each restart: nothing acknowledged is lost, the output is whole lines in order. At the end: it
is what was acknowledged, each line once.
"""

from __future__ import annotations

import errno
import json
import random
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import pytest
from storage_helpers import Crash, CrashFiles, input_of, settings_for

from trioline.config import Fsync
from trioline.errors import DiskFull
from trioline.storage import Entry, Job, Rejection, Results, encode_record

FOLDER = Path("/d")
MAX_EPOCHS = 4


class Trial:
    """One job, from its start over some crashes to its end."""

    def __init__(self, seed: int, fsync: Fsync) -> None:
        self.rng = random.Random(seed)
        self.settings = settings_for(FOLDER, fsync=fsync)
        self.line_count = self.rng.choice((1, 3, 12, 40))
        self.files = CrashFiles()
        self.files.put(self.settings.input, input_of(self.line_count))
        if self.rng.random() < 0.3:
            self.files.short_writes = self.rng
        if self.rng.random() < 0.3:
            self.files.fail = self.full_at_times
        self.segment_bytes = self.rng.choice((64, 300, 1 << 20))
        self.epoch = 0
        self.acknowledged: dict[int, bytes] = {}
        """Line to output line."""
        self.offered: defaultdict[int, set[bytes]] = defaultdict(set)
        """All that was ever handed in for a line, acknowledged or not."""
        self.safe: dict[int, bytes] = {}
        """What survives power loss."""

    def run(self) -> None:
        for self.epoch in range(MAX_EPOCHS):
            self.files.call_count = 0
            if self.epoch == MAX_EPOCHS - 1:
                self.files.fail = lambda *_: None
            else:
                self.files.crash_at = self.rng.randrange(1, self.rng.choice((12, 40, 150)))
                self.files.crash_after = self.rng.random() < 0.5
            try:
                self.work()
            except (Crash, DiskFull):
                self.crash()
        self.files.kill()
        self.files.fail = lambda *_: None
        self.check_end()

    def crash(self) -> None:
        if self.rng.random() < 0.3:
            self.files.kill()
        else:
            self.files.lose_power(self.rng)
            self.acknowledged = dict(self.safe)

    def work(self) -> None:
        job = Job.open(self.settings, self.files, segment_bytes=self.segment_bytes)
        settled = set(range(job.written_count)) | {line for part in job.ahead() for line in part}
        self.check_restart(job, settled)
        if job.is_finished:
            job.close()
            return
        while missing := [line for line in range(self.line_count) if line not in settled]:
            self.commit(job, self.rng.sample(missing, self.rng.randint(1, min(8, len(missing)))))
            settled = set(range(job.written_count)) | {n for part in job.ahead() for n in part}
            assert set(self.acknowledged) <= settled
            if self.rng.random() < 0.2:
                self.sync(job)
            self.check_output(job)
        assert job.written_count == self.line_count
        while self.is_full(lambda: job.finish(job.source.offset_of(self.line_count))):
            pass
        self.safe = dict(self.acknowledged)
        job.close()

    def commit(self, job: Job, lines: list[int]) -> None:
        answers = {line: self.answer(line) for line in lines}
        for line, answer in answers.items():
            self.offered[line].add(answer)
        entries = [self.entry(line, answer) for line, answer in answers.items()]
        while self.is_full(lambda: job.commit(entries)):
            self.check_output(job)
        self.acknowledged |= answers
        if self.settings.fsync is Fsync.ALWAYS:
            self.safe |= answers

    def sync(self, job: Job) -> None:
        while self.is_full(lambda: job.sync(job.source.offset_of(job.written_count))):
            pass
        self.safe = dict(self.acknowledged)

    def is_full(self, call: Callable[[], None]) -> bool:
        try:
            call()
        except DiskFull:
            return True
        return False

    def full_at_times(self, call: str, _path: Path, _count: int) -> int | None:
        takes_room = call in ("pwrite", "create")
        return errno.ENOSPC if takes_room and self.rng.random() < 0.1 else None

    def answer(self, line: int) -> bytes:
        """Another one in each epoch, so that a line computed again is noticed."""
        if self.rng.random() < 0.15:
            return b"null\n"
        return b'"%d in %d%s"\n' % (line, self.epoch, b"." * self.rng.choice((0, 9, 700)))

    def entry(self, line: int, answer: bytes) -> Entry:
        if answer == b"null\n":
            return Rejection(line, encode_record(line, b"x", attempts=1, losses=0, errors=["no"]))
        return Results(line, 1, answer)

    def check_restart(self, job: Job, settled: set[int]) -> None:
        assert set(self.acknowledged) <= settled
        self.check_output(job)
        # What was durable without having been acknowledged is as good as acknowledged now.
        for line, answer in enumerate(self.output_lines()):
            assert self.acknowledged.setdefault(line, answer) == answer
        # Recovery synced it all.
        self.safe |= self.acknowledged

    def output_lines(self) -> list[bytes]:
        return self.files.get(self.settings.output).splitlines(keepends=True)

    def check_output(self, job: Job) -> None:
        lines = self.output_lines()
        assert len(lines) == job.written_count
        for line, answer in enumerate(lines):
            assert answer.endswith(b"\n")
            assert answer in self.offered[line]
            assert self.acknowledged.get(line, answer) == answer
        records = self.files.get(self.settings.rejected).splitlines()
        rejected = [line for line, answer in enumerate(lines) if answer == b"null\n"]
        assert [json.loads(record)["id"] for record in records] == rejected
        assert job.rejected_count == len(rejected)

    def check_end(self) -> None:
        job = Job.open(self.settings, self.files)
        assert job.is_finished
        assert job.is_resumed
        self.check_output(job)
        lines = self.output_lines()
        assert len(lines) == self.line_count
        assert all(lines[line] == answer for line, answer in self.acknowledged.items())
        assert job.journal_bytes == 0
        job.close()


@pytest.mark.parametrize("fsync", Fsync)
@pytest.mark.parametrize("block", range(20))
def test_acknowledged_lines_outlive_crashes(block: int, fsync: Fsync) -> None:
    for seed in range(block * 10, block * 10 + 10):
        Trial(seed, fsync).run()


@pytest.mark.slow
@pytest.mark.parametrize("fsync", Fsync)
def test_acknowledged_lines_outlive_many_crashes(fsync: Fsync) -> None:
    for seed in range(1_000, 2_000):
        Trial(seed, fsync).run()
