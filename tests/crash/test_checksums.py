"""Jobs that crash at random operations: at every restart their checksums prove what is written."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from storage_helpers import Crash, CrashFiles, input_of, settings_for

from trioline.config import Fsync
from trioline.storage import Entry, Job, Rejection, Results, encode_record
from trioline.storage.files import Disk
from trioline.storage.verify.verification import find_subject, verify

FOLDER = Path("/d")
LINES = 200
MAX_CRASHES = 4


class Trial:
    """One job over some crashes; all that happens follows from the seed."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.settings = settings_for(FOLDER, fsync=list(Fsync)[seed % 3])
        self.files = CrashFiles()
        self.input = input_of(LINES)[: -(seed % 2) or None]
        self.files.put(self.settings.input, self.input)
        self.life = 0

    def run(self) -> None:
        for self.life in range(MAX_CRASHES):
            self.files.call_count, self.files.crash_at = 0, self.rng.randrange(1, 100)
            self.files.crash_after = self.rng.random() < 0.5
            try:
                self.work()
            except Crash:
                if self.rng.random() < 0.3:
                    self.files.kill()
                else:
                    self.files.lose_power(self.rng)
        self.files.kill()
        self.work()
        assert self.verified() == LINES

    def work(self) -> None:
        job = Job.open(self.settings, self.files)
        assert self.verified() == job.written_count
        if not job.is_finished:
            settled = set(range(job.written_count)).union(*job.ahead())
            missing = [line for line in range(LINES) if line not in settled]
            while missing:
                count = self.rng.choice((1, 10, 70))
                lines, missing = missing[:count], missing[count:]
                self.rng.shuffle(lines)
                job.commit([self.entry(line) for line in lines])
                if self.rng.random() < 0.5:
                    job.sync(job.source.offset_of(job.written_count))
                    assert self.verified() == job.written_count
            job.finish(job.source.offset_of(LINES))
        job.close()

    def entry(self, line: int) -> Entry:
        if self.rng.random() < 0.1:
            text = self.input.split(b"\n")[line]
            record = encode_record(line, text, attempts=1, losses=0, errors=["no"])
            return Rejection(line, record)
        return Results(line, 1, b'"%d in %d"\n' % (line, self.life))

    def verified(self) -> int:
        """How many lines are proved: all of them must be."""
        subject = find_subject(Disk(self.files), self.settings)
        report = verify(subject, lambda _: (), files=self.files)
        assert report.holds, report.findings
        assert report.is_proved
        return report.line_count


@pytest.mark.parametrize("block", range(10))
def test_what_is_durable_is_proved_after_every_crash(block: int) -> None:
    for seed in range(block * 20, block * 20 + 20):
        Trial(seed).run()
