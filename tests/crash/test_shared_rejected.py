"""Two jobs that are given one file for their rejected lines: the second one is refused."""

from __future__ import annotations

from pathlib import Path

import attrs
import pytest
from storage_helpers import CrashFiles, input_of, settings_for

from trioline.config import JobSettings
from trioline.errors import JobLocked, UsageError
from trioline.storage import Job, Rejection, encode_record
from trioline.storage.run import RUN_NAME

FOLDER = Path("/d")
FIRST = settings_for(FOLDER)
SECOND = attrs.evolve(FIRST, output=FOLDER / "other")


def rejection(text: str) -> Rejection:
    return Rejection(0, encode_record(0, b"x", attempts=1, losses=0, errors=[text]))


@pytest.fixture
def files() -> CrashFiles:
    made = CrashFiles()
    made.put(FIRST.input, input_of(3))
    return made


def test_the_second_job_is_refused_while_the_file_is_empty(files: CrashFiles) -> None:
    first = Job.open(FIRST, files)
    with pytest.raises(JobLocked, match=r"another server is at work on /d/out\.rejected"):
        Job.open(SECOND, files)
    first.commit([rejection("first")])
    first.sync(first.source.offset_of(1))
    first.close()
    assert b"first" in files.get(FIRST.rejected)
    assert not files.has(SECOND.output)


def test_a_stopped_job_is_refused_while_another_one_writes_there(files: CrashFiles) -> None:
    Job.open(SECOND, files).close()
    first = Job.open(FIRST, files)
    first.commit([rejection("first")])
    before = files.get(FIRST.rejected)
    with pytest.raises(JobLocked, match=r"at work on /d/out\.rejected"):
        Job.open(SECOND, files)
    assert files.get(FIRST.rejected) == before
    first.close()


def test_another_job_is_thrown_away_only_where_nobody_is_at_work(files: CrashFiles) -> None:
    Job.open(SECOND, files).close()
    first = Job.open(FIRST, files)
    fresh = attrs.evolve(SECOND, fresh=True, rejected=FOLDER / "elsewhere")
    with pytest.raises(JobLocked, match=r"at work on /d/out\.rejected"):
        Job.open(fresh, files)
    assert files.has(FIRST.rejected)
    first.close()


def test_two_jobs_made_at_once_leave_one(files: CrashFiles) -> None:
    """The other one opens, and rejects a line, at any call of the first one's beginning."""
    opened = 0
    for at in range(1, 200):
        files = CrashFiles()
        files.put(FIRST.input, input_of(3))
        other = Other(files, SECOND, at)
        files.fail = other
        try:
            first = Job.open(FIRST, files)
        except (JobLocked, UsageError):
            assert other.job is not None
            assert not files.has(FIRST.state / RUN_NAME)
        else:
            assert other.job is None
            opened += 1
            first.close()
        if other.job is not None:
            assert b"other" in files.get(FIRST.rejected)
            other.job.sync(other.job.source.offset_of(1))
            other.job.close()
        files.fail = None
        assert not files.open_count
        if other.count < at:
            break
    assert opened > 10


class Other:
    """Opens a second job at the nth system call."""

    def __init__(self, files: CrashFiles, settings: JobSettings, at: int) -> None:
        self.files, self.settings, self.at = files, settings, at
        self.count = 0
        self.job: Job | None = None

    def __call__(self, _call: str, _path: Path, _count: int) -> None:
        self.count += 1
        if self.count == self.at:
            try:
                self.job = Job.open(self.settings, self.files)
                self.job.commit([rejection("other")])
            except (JobLocked, UsageError):
                assert self.job is None
