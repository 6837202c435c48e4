"""Power lost, or the process killed, at every operation of a retry: the old job, or the new one."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator

import pytest
from retry_helpers import (
    FAIL_AGAIN,
    FOLDER,
    LINES,
    NEW,
    OLD,
    answer,
    finished_job,
    retry_all,
    run_again,
)
from storage_helpers import Crash, CrashFiles, settings_for

from trioline.config import JobSettings
from trioline.errors import StorageError, UsageError
from trioline.storage import Job, Results
from trioline.storage.checkpoint import CheckpointFile
from trioline.storage.files import Disk
from trioline.storage.repair.given import Given
from trioline.storage.repair.plan import examine
from trioline.storage.retry.retry import Retry
from trioline.storage.retry_files import RetryFiles
from trioline.storage.verify.verification import find_subject, verify


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
    assert report.is_proved
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


def test_an_output_changed_under_a_retry_stops_it_before_anything_is_replaced() -> None:
    files, settings = finished_job()
    changed = files.get(settings.output).replace(b'"10 ', b'"01 ')
    with contextlib.closing(Retry.open(settings, files)) as retry:
        run_again(retry, files)
        files.put(settings.output, changed)
        with pytest.raises(StorageError, match="checksums do not hold"):
            retry.put_in_place()
    assert files.get(settings.output) == changed
    files.put(settings.output, OLD)
    assert retry_all(files, settings) == 2  # the results were kept
    assert files.get(settings.output) == NEW


@pytest.mark.parametrize("is_resumed", [False, True])
@pytest.mark.parametrize(
    ("name", "old", "new", "where"),
    [
        ("out", b'"10 ', b'"01 ', "/d/out: lines 0 to 63 "),
        ("out", b'null\n"7 ', b'"xy"\n"7 ', "/d/out: lines 0 to 63 "),
        ("in", b"line 70 ", b"line 07 ", "/d/in: lines 64 to 127 "),
        ("out.rejected", b"line 64 ", b"line 46 ", "its record of line 64 "),
        ("out.rejected", b'"id":64', b'"id":65', "its record of line 65 "),
        ("out.rejected", b'"id":6,', b'"id":4,', ": its line 2 "),
    ],
)
def test_what_was_changed_is_named_before_any_line_is_run_again(
    name: str, old: bytes, new: bytes, where: str, *, is_resumed: bool
) -> None:
    # So long that the sum of the input's ends, which any start looks at, does not tell.
    files, settings = finished_job(b"." * 20_000)
    if is_resumed:
        Retry.open(settings, files).close()
    before = files.get(FOLDER / name)
    files.put(FOLDER / name, before.replace(old, new, 1))
    damaged = {path: files.get(path) for path in files.paths() if path.name != "lock"}
    assert damaged[FOLDER / name] != before
    with pytest.raises(StorageError) as caught:
        Retry.open(settings, files)
    sentence = str(caught.value)
    assert where in sentence
    assert "no line was run again" in sentence
    assert "trioline repair /d/out" in sentence
    assert {path: files.get(path) for path in damaged} == damaged
    assert files.open_count == 0
    files.put(FOLDER / name, before)
    assert retry_all(files, settings) == len(FAIL_AGAIN)


@pytest.mark.parametrize("power", [False, True])
def test_nothing_of_a_retry_is_left(*, power: bool) -> None:
    """Whatever it was stopped at: the next one leaves no file and no folder behind."""
    files, settings = finished_job()
    before = set(files.paths())
    for at in (10**9, *range(1, 150)):
        for stopped, _ in crashed_at(at, power=power, after=True):
            files = stopped
            retry_all(files, settings)
        if at == 10**9:
            retry_all(files, settings)
        retry_all(files, settings)  # where the lines had gone, their folder may have come back
        assert set(files.paths()) == before
        assert Disk(files).stat(settings.state / "retry") is None


def test_what_somebody_else_put_beside_a_retry_stays() -> None:
    files, settings = finished_job()
    retry = RetryFiles(settings)
    Retry.open(settings, files).close()
    files.mkdir(retry.folder / "mine")
    files.put(retry.folder / "mine" / "notes", b"1")
    retry_all(files, settings)
    assert files.get(settings.output) == NEW
    assert files.get(retry.folder / "mine" / "notes") == b"1"


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
