"""Power lost, or the process killed, at every operation of a retry: the old job, or the new one."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from storage_helpers import Crash, CrashFiles, input_of, settings_for

from trioline.config import JobSettings
from trioline.errors import StorageError, UsageError
from trioline.storage import Job, Rejection, Results, encode_record
from trioline.storage.checkpoint import CheckpointFile
from trioline.storage.files import Disk
from trioline.storage.repair.plan import Given, examine
from trioline.storage.retry.retry import Retry
from trioline.storage.retry_files import RetryFiles
from trioline.storage.verify.verification import find_subject, verify

FOLDER = Path("/d")
LINES = 130
REJECTED = (0, 5, 6, 64, 129)
FAIL_AGAIN = (6, 129)


def answer(line: int) -> bytes:
    return b'"%d %s"\n' % (line, b"." * 60)


def record(files: CrashFiles, settings: JobSettings, line: int, error: str) -> Rejection:
    text = files.get(settings.input).split(b"\n")[line]
    return Rejection(line, encode_record(line, text, attempts=1, losses=0, errors=[error]))


def finished_job() -> tuple[CrashFiles, JobSettings]:
    files = CrashFiles()
    settings = settings_for(FOLDER)
    files.put(settings.input, input_of(LINES))
    job = Job.open(settings, files)
    job.commit(
        [
            record(files, settings, line, "first")
            if line in REJECTED
            else Results(line, 1, answer(line))
            for line in range(LINES)
        ]
    )
    job.finish(job.source.offset_of(LINES))
    job.close()
    return files, settings


def retry_all(files: CrashFiles, settings: JobSettings) -> int:
    """A whole retry, as the command does it; returns how many lines failed again."""
    retry = Retry.open(settings, files)
    if not retry.line_count:
        retry.close()
        return 0
    assert retry.numbers is not None
    if not retry.is_served:
        job = Job.open(retry.settings, files)
        for place, line in enumerate(retry.numbers):
            if place < job.written_count or any(place in lines for lines in job.ahead()):
                continue
            if line in FAIL_AGAIN:
                again = record(files, settings, line, "again")
                job.commit([Rejection(place, again.record)])
            else:
                job.commit([Results(place, 1, b'"%d again"\n' % line)])
        job.finish(job.source.offset_of(retry.line_count))
        job.close()
    left = retry.put_in_place()
    retry.close()
    return left


OLD = b"".join(b"null\n" if line in REJECTED else answer(line) for line in range(LINES))
NEW = b"".join(
    b"null\n"
    if line in FAIL_AGAIN
    else b'"%d again"\n' % line
    if line in REJECTED
    else answer(line)
    for line in range(LINES)
)


def check_whole(files: CrashFiles, settings: JobSettings) -> bool:
    """The job is the old one or the new one, whole; returns whether it says what to do instead."""
    try:
        subject = find_subject(Disk(files), settings)
    except UsageError as error:
        assert "trioline retry /d/in /d/out" in str(error)  # noqa: PT017 - either way is right
        with pytest.raises(UsageError, match="trioline retry /d/in /d/out"):
            Job.open(settings, files)
        files.kill()
        return True
    report = verify(subject, lambda _: (), files=files)
    assert report.holds, report.findings
    assert report.unsummed_lines == 0
    assert files.get(settings.output) == (OLD if report.rejected_count == 5 else NEW)
    job = Job.open(settings, files)
    assert job.is_finished
    assert job.rejected_count == report.rejected_count
    job.close()
    return False


def crashed_at(at: int, *, power: bool, after: bool) -> Iterator[tuple[CrashFiles, JobSettings]]:
    files, settings = finished_job()
    files.call_count, files.crash_at, files.crash_after = 0, at, after
    try:
        retry_all(files, settings)
    except Crash:
        if power:
            files.lose_power(random.Random(at))
        else:
            files.kill()
        yield files, settings


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("power", [False, True])
def test_a_crash_at_any_operation_leaves_a_whole_job_and_the_retry_goes_on(
    *, power: bool, after: bool
) -> None:
    told = 0
    at = 0
    while True:
        at += 1
        crashed = list(crashed_at(at, power=power, after=after))
        if not crashed:
            break
        files, settings = crashed[0]
        told += check_whole(files, settings)
        left = retry_all(files, settings)
        if files.get(settings.output) == NEW and left != len(FAIL_AGAIN):
            pytest.fail(f"after operation {at}: {left} lines are said to have failed")
        assert files.get(settings.output) == NEW
        assert not check_whole(files, settings)
        with contextlib.closing(
            CheckpointFile(Disk(files), settings.state / "checkpoint")
        ) as slots:
            assert [slot and slot.rejected_count for slot in slots.slots()] == [len(FAIL_AGAIN)] * 2
        ids = [line.split(b",")[0] for line in files.get(settings.rejected).splitlines()]
        assert ids == [b'{"id":%d' % line for line in FAIL_AGAIN]
        assert files.open_count == 0
    assert at > 100
    assert told > 5


@pytest.mark.parametrize("seed", range(40))
def test_crashes_upon_crashes(seed: int) -> None:
    rng = random.Random(seed)
    files, settings = finished_job()
    for _ in range(4):
        files.call_count, files.crash_at = 0, rng.randrange(1, 150)
        files.crash_after = rng.random() < 0.5
        try:
            retry_all(files, settings)
        except Crash:
            if rng.random() < 0.5:
                files.kill()
            else:
                files.lose_power(rng)
        files.crash_at = None
        check_whole(files, settings)
    retry_all(files, settings)
    assert files.get(settings.output) == NEW
    assert not check_whole(files, settings)


@pytest.mark.parametrize("power", [False, True])
def test_a_job_thrown_away_in_the_midst_of_a_retry_leaves_nothing_of_it(*, power: bool) -> None:
    for at in range(1, 150, 3):
        for files, settings in crashed_at(at, power=power, after=False):
            job = Job.open(settings_for(FOLDER, fresh=True), files)
            assert (job.written_count, job.is_resumed) == (0, False)
            job.commit([Results(line, 1, answer(line)) for line in range(LINES)])
            job.finish(job.source.offset_of(LINES))
            job.close()
            assert retry_all(files, settings) == 0
            left = [*files.listdir(FOLDER), *Disk(files).names(settings.state / "retry")]
            assert not [name for name in left if "new" in name or name in ("lines", "plan.json")]


def test_a_changed_output_stops_the_retry_before_anything_is_replaced() -> None:
    files, settings = finished_job()
    changed = files.get(settings.output).replace(b'"10 ', b'"01 ')
    files.put(settings.output, changed)
    with pytest.raises(StorageError, match="checksums do not hold"):
        retry_all(files, settings)
    files.kill()
    assert files.get(settings.output) == changed
    files.put(settings.output, OLD)
    assert retry_all(files, settings) == 2  # the results were kept
    assert files.get(settings.output) == NEW


def stopped_in_the_swap() -> Iterator[tuple[CrashFiles, JobSettings]]:
    """Jobs whose retry was killed at each operation of its swap."""
    at = 0
    while crashed := list(crashed_at(at := at + 1, power=False, after=False)):
        files, settings = crashed[0]
        if Disk(files).stat(RetryFiles(settings).swap) is not None:
            yield files, settings


def test_repair_leaves_a_job_in_the_midst_of_a_swap_alone() -> None:
    count = 0
    for files, settings in stopped_in_the_swap():
        before = files.get(settings.output)
        with pytest.raises(UsageError, match="trioline retry"):
            examine(Disk(files), Given(output=settings.output))
        assert files.get(settings.output) == before
        count += 1
    assert count > 5


def test_a_swap_whose_new_files_are_lost_is_refused_and_changes_nothing() -> None:
    refused = 0
    for files, settings in stopped_in_the_swap():
        disk = Disk(files)
        new_files = [new for new, _ in RetryFiles(settings).replacements()[:2]]
        lost = [new for new in new_files if disk.stat(new) is not None]
        for new in lost:
            disk.unlink(new)
        if not lost:
            continue
        checkpoint = files.get(settings.state / "checkpoint")
        with pytest.raises(StorageError, match="is not what a retry had made"):
            retry_all(files, settings)
        assert files.get(settings.state / "checkpoint") == checkpoint
        assert disk.stat(RetryFiles(settings).swap) is not None
        refused += 1
    assert refused > 2
