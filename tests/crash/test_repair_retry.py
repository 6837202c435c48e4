"""A repair while a retry is under way: the retry goes on exactly, or says that it cannot."""

from __future__ import annotations

import pytest
from damage_helpers import contents
from repair_helpers import mend_all
from retry_helpers import (
    LINES,
    NEW,
    OLD,
    finished_job,
    record,
    retry_all,
    run_again,
)
from storage_helpers import CrashFiles

from trioline.config import JobSettings
from trioline.errors import StorageError
from trioline.storage import Job, Rejection, Results
from trioline.storage.files import Disk
from trioline.storage.repair.given import Given
from trioline.storage.repair.plan import Plan
from trioline.storage.retry.retry import Retry
from trioline.storage.retry_files import RetryFiles, clear

SECOND_BLOCK = range(64, 128)
"""Line 64 of it is rejected."""


def begun(until: int | None) -> tuple[CrashFiles, JobSettings]:
    """A retry that was stopped, with some of its lines done."""
    files, settings = finished_job()
    retry = Retry.open(settings, files)
    run_again(retry, files, until=until)
    retry.close()
    return files, settings


def edited(files: CrashFiles, settings: JobSettings) -> Plan:
    """Repair an output of which line 100 was edited."""
    output = files.get(settings.output)
    files.put(settings.output, output.replace(b'"100 ', b'"??? '))
    return mend_all(files, Given(output=settings.output, input=settings.input))


def redo(files: CrashFiles, settings: JobSettings, *rejected: int) -> None:
    """Compute the block again, with answers and errors that are longer this time."""
    job = Job.open(settings, files)
    assert job.written_count == SECOND_BLOCK.start
    entries: list[Results | Rejection] = [
        record(files, settings, line, "once more")
        if line in rejected
        else Results(line, 1, b'"longer %d"\n' % line)
        for line in SECOND_BLOCK
    ]
    job.commit(entries)
    job.finish(job.source.offset_of(LINES))
    job.close()


def expected(*, line_64: bytes) -> bytes:
    lines = NEW.splitlines(keepends=True)
    lines[64:128] = [b'"longer %d"\n' % line for line in SECOND_BLOCK]
    return b"".join([*lines[:64], line_64, *lines[65:]])


@pytest.mark.parametrize("until", [0, 2, 4, None])
def test_a_retry_of_the_same_lines_goes_on(until: int | None) -> None:
    files, settings = begun(until)
    done = files.get(RetryFiles(settings).results_state / "checkpoint")
    plan = edited(files, settings)
    assert plan.counts.open == len(SECOND_BLOCK)
    assert files.get(RetryFiles(settings).results_state / "checkpoint") == done
    redo(files, settings, 64)
    again = Retry.open(settings, files)
    job = Job.open(again.settings, files)
    assert job.written_count == (5 if until is None else until)
    job.close()
    again.close()
    assert retry_all(files, settings) == 2
    assert files.get(settings.output) == expected(line_64=b'"64 again"\n')


@pytest.mark.parametrize("rejected", [(), (64, 70), (70,)])
def test_a_retry_of_other_lines_is_refused_and_touches_nothing(rejected: tuple[int, ...]) -> None:
    files, settings = begun(until=None)
    edited(files, settings)
    redo(files, settings, *rejected)
    before = contents(files)
    with pytest.raises(StorageError, match="of other lines than those that are rejected now"):
        Retry.open(settings, files)
    assert contents(files) == before
    clear(Disk(files), RetryFiles(settings))
    assert retry_all(files, settings) == 2
    for line, text in enumerate(files.get(settings.output).splitlines(keepends=True)):
        if line not in SECOND_BLOCK:
            assert text == NEW.splitlines(keepends=True)[line]
        else:
            assert text == b'"%d again"\n' % line if line in rejected else b'"longer %d"\n' % line


def test_a_retry_of_a_line_that_reads_otherwise_now_is_refused() -> None:
    """The input is edited, and the repair has the block answered: so the number is the same."""
    files, settings = finished_job(b" " * 20_000)
    retry = Retry.open(settings, files)
    run_again(retry, files)
    retry.close()
    before, text = files.get(settings.input).split(b"\n")[64], b"another text".ljust(20_000)
    given = files.get(settings.input)
    files.put(settings.input, given.replace(before, text.ljust(len(before))))
    assert files.get(settings.input) != given
    mend_all(files, Given(output=settings.output, input=settings.input))
    redo(files, settings, 64)
    with pytest.raises(StorageError, match="of other lines than those that are rejected now"):
        Retry.open(settings, files)


def test_what_becomes_of_a_retry_is_announced() -> None:
    files, settings = begun(until=2)
    (told,) = [step for step in edited(files, settings).steps if "retry" in step]
    assert told == (
        "keep the retry under way in /d/out.trioline/retry: once the job is over again, the same"
        " `trioline retry` goes on with its results if the same lines are rejected then (1 of its 5"
        " lines is computed again first), else it says that they are lost"
    )


@pytest.mark.parametrize("name", ["checksums", "checkpoint"])
def test_what_costs_no_line_costs_no_retry(name: str) -> None:
    files, settings = begun(until=2)
    folder, was = RetryFiles(settings), files.get(settings.output)
    files.put(settings.state / name, files.get(settings.state / name)[:8])
    plan = mend_all(files, Given(output=settings.output, input=settings.input))
    assert [step for step in plan.steps if "retry" in step] == (
        [f"keep the retry under way in {folder.folder}: the same `trioline retry` goes on with it"]
        if plan.base.finished
        else [
            f"keep the retry under way in {folder.folder}: once the job is over again, the same"
            " `trioline retry` goes on with its results if the same lines are rejected then, else"
            " it says that they are lost"
        ]
    )
    assert files.get(settings.output) == was == OLD
    job = Job.open(settings, files)
    if not job.is_finished:
        assert job.written_count == LINES
        job.finish(job.source.offset_of(LINES))
    job.close()
    assert retry_all(files, settings) == 2
    assert files.get(settings.output) == NEW


def test_a_job_that_gets_another_id_loses_its_retry_and_says_so() -> None:
    files, settings = begun(until=None)
    for name in ("run.json", "checkpoint"):
        files.put(settings.state / name, b"")
    plan = mend_all(files, Given(output=settings.output, input=settings.input))
    (told,) = [step for step in plan.steps if "retry" in step]
    assert "its results are lost" in told
    job = Job.open(settings, files)
    job.finish(job.source.offset_of(LINES))
    job.close()
    with pytest.raises(StorageError, match="Remove the folder"):
        Retry.open(settings, files)


def test_without_a_retry_nothing_is_said_of_one() -> None:
    files, settings = finished_job()
    assert not [step for step in edited(files, settings).steps if "retry" in step]


def test_a_retry_that_lost_its_plan_goes_on() -> None:
    """The plan was there before the first result; what it said, the job's files say, too."""
    files, settings = begun(until=2)
    plan = RetryFiles(settings).plan
    was = files.get(plan)
    files.unlink(plan)
    assert [step for step in edited(files, settings).steps if "keep the retry under way" in step]
    redo(files, settings, 64)
    again = Retry.open(settings, files)
    assert files.get(plan) == was
    job = Job.open(again.settings, files)
    assert job.written_count == 2
    job.close()
    again.close()
    assert retry_all(files, settings) == 2


def test_a_retry_without_a_plan_whose_lines_are_others_is_not_thrown_away() -> None:
    files, settings = begun(until=2)
    edited(files, settings)
    redo(files, settings)
    files.unlink(RetryFiles(settings).plan)
    before = contents(files)
    with pytest.raises(
        StorageError, match=r"Nothing was touched\..* remove /d/out\.trioline/retry"
    ):
        Retry.open(settings, files)
    assert contents(files) == before
