"""Power lost at each system call while a job is made, or thrown away for a new one."""

from __future__ import annotations

import random
from pathlib import Path

import attrs
import pytest
from storage_helpers import Crash, CrashFiles, input_of, settings_for

from trioline.config import JobSettings
from trioline.errors import StorageError
from trioline.storage import Job, Results

FOLDER = Path("/d")
REJECTED = ["out.rejected", "bad"]


def open_and_crash(files: CrashFiles, settings: JobSettings, at: int) -> bool:
    """Open the job and lose power at a call; False when opening takes fewer calls."""
    files.call_count = 0
    files.crash_at = at
    try:
        Job.open(settings, files)
    except Crash:
        files.lose_power(random.Random(at))
        return True
    files.kill()
    return False


@pytest.mark.parametrize("rejected", REJECTED)
def test_a_job_that_was_half_made_is_made_again(rejected: str) -> None:
    settings = attrs.evolve(settings_for(FOLDER), rejected=FOLDER / rejected)
    for at in range(1, 100):
        files = CrashFiles()
        files.put(settings.input, input_of(3))
        crashed = open_and_crash(files, settings, at)
        job = Job.open(settings, files)
        job.commit([Results(0, 3, b"1\n2\n3\n")])
        job.finish(job.source.offset_of(3))
        job.close()
        assert files.get(settings.output) == b"1\n2\n3\n"
        if not crashed:
            break
    assert at > 15


@pytest.mark.parametrize("rejected", REJECTED)
@pytest.mark.parametrize("is_finished", [False, True])
def test_a_job_that_was_half_thrown_away_is_never_taken_for_a_whole_one(
    rejected: str, *, is_finished: bool
) -> None:
    settings = attrs.evolve(settings_for(FOLDER), rejected=FOLDER / rejected)
    fresh = attrs.evolve(settings, fresh=True)
    refused = 0
    for at in range(1, 100):
        files = CrashFiles()
        files.put(settings.input, input_of(3))
        old = Job.open(settings, files)
        old.commit([Results(0, 3, b"1\n2\n3\n")] if is_finished else [Results(1, 1, b"2\n")])
        if is_finished:
            old.finish(old.source.offset_of(3))
        old.close()
        crashed = open_and_crash(files, fresh, at)
        refused += not is_whole(files, settings, old.public_id)
        files.kill()
        job = Job.open(fresh, files)
        assert (job.written_count, job.ahead_count) == (0, 0)
        assert job.public_id != old.public_id
        job.close()
        if not crashed:
            break
    assert at > 20
    assert refused > 0


def is_whole(files: CrashFiles, settings: JobSettings, old_id: str) -> bool:
    """Whether the same command without --fresh goes on; if so, with all or with nothing."""
    try:
        job = Job.open(settings, files)
    except StorageError:
        return False
    if job.public_id == old_id:
        assert job.written_count + job.ahead_count > 0
    else:
        assert (job.written_count, job.ahead_count) == (0, 0)
    job.close()
    return True
