"""Two jobs that are given one file, for rejected lines or the output: the second one is refused.

Also while the first one is stopped, over, or thrown away by hand; and whatever instant ends the
making of either, by kill or power loss.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable
from pathlib import Path

import attrs
import pytest
from repair_helpers import mend_all
from storage_helpers import AtCall, Crash, CrashFiles, input_of, settings_for

from trioline.config import JobSettings
from trioline.errors import JobLocked, UsageError
from trioline.storage import Job, Rejection, Results, encode_record
from trioline.storage.opening import CHECKPOINT_NAME
from trioline.storage.repair.given import Given
from trioline.storage.retry.retry import Retry
from trioline.storage.run import RUN_NAME

FOLDER = Path("/d")
SHARED = FOLDER / "shared"
MARK = FOLDER / "shared.trioline"
FIRST = attrs.evolve(settings_for(FOLDER), rejected=SHARED)
SECOND = attrs.evolve(FIRST, output=FOLDER / "other")
OTHER = Given(output=SECOND.output)
LINES = 3
CHANGES = {"create", "pwrite", "truncate", "rename", "unlink", "mkdir", "rmdir"}


def rejection(text: str, line: int = 0) -> Rejection:
    return Rejection(line, encode_record(line, b"x", attempts=1, losses=0, errors=[text]))


@pytest.fixture
def files() -> CrashFiles:
    made = CrashFiles()
    made.put(FIRST.input, input_of(LINES))
    return made


def reject(files: CrashFiles, settings: JobSettings, text: str) -> bytes:
    """Begin a job, or go on; a line is rejected, and the server is killed."""
    job = Job.open(settings, files)
    job.commit([rejection(text, job.written_count)])
    files.kill()
    return files.get(settings.rejected)


def all_of(files: CrashFiles) -> dict[Path, bytes]:
    return {path: files.get(path) for path in files.paths() if path.name != "lock"}


def watched(files: CrashFiles) -> list[str]:
    """The names of all calls from now on."""
    calls: list[str] = []
    files.fail = lambda call, _path, _count: calls.append(call)
    return calls


def check_refused(files: CrashFiles, settings: JobSettings, sentence: str) -> None:
    """It is refused, and nothing is touched, also with --fresh; one to be made takes no step."""
    for fresh in (False, True):
        before = all_of(files)
        steps = watched(files)
        with pytest.raises(UsageError, match=sentence):
            Job.open(attrs.evolve(settings, fresh=fresh), files)
        assert all_of(files) == before
        assert not files.open_count
        assert files.has(settings.state / RUN_NAME) or not CHANGES.intersection(steps)


# --- the second one is made -----------------------------------------------------------------------


def made_only(files: CrashFiles) -> None:
    Job.open(FIRST, files).close()


def stopped(files: CrashFiles) -> None:
    reject(files, FIRST, "first")


def over(files: CrashFiles) -> None:
    job = Job.open(FIRST, files)
    job.commit([Results(0, LINES, b"1\n" * LINES)])
    job.finish(job.source.offset_of(LINES))
    job.close()


def removed(files: CrashFiles) -> None:
    reject(files, FIRST, "first")
    for path in files.paths():
        if path == FIRST.output or path.parent == FIRST.state:
            files.unlink(path)


NAMED = r"/d/shared has the rejected lines of the job with the output /d/out"


@pytest.mark.parametrize(
    ("begin", "sentence"),
    [
        (made_only, f"{NAMED}: name another file for --rejected"),
        (stopped, f"{NAMED}: name another"),
        (over, f"{NAMED}: name another"),
        (removed, f"{NAMED}, which is not there .*or move /d/shared and /d/shared.trioline away"),
    ],
)
def test_another_jobs_rejected_file_is_refused(
    files: CrashFiles, begin: Callable[[CrashFiles], None], sentence: str
) -> None:
    begin(files)
    check_refused(files, SECOND, sentence)
    check_refused(files, attrs.evolve(SECOND, output=SHARED, rejected=FOLDER / "r"), "shared")
    assert not files.has(SECOND.output)
    if begin is not removed:
        Job.open(FIRST, files).close()


def test_another_jobs_rejected_file_is_refused_that_has_its_outputs_name(
    files: CrashFiles,
) -> None:
    first = settings_for(FOLDER)
    Job.open(first, files).close()
    sentence = "/d/out.rejected has the rejected lines of the job with the output /d/out"
    check_refused(files, attrs.evolve(SECOND, rejected=first.rejected), sentence)
    check_refused(files, attrs.evolve(SECOND, output=first.rejected), sentence)
    assert reject(files, first, "first")


def test_another_jobs_output_is_refused(files: CrashFiles) -> None:
    Job.open(FIRST, files).close()
    reverse = attrs.evolve(SECOND, rejected=FIRST.output)
    check_refused(files, reverse, "/d/out is the output of another job: name another file")


def test_a_name_that_a_rejected_file_would_get_is_refused(files: CrashFiles) -> None:
    Job.open(attrs.evolve(FIRST, rejected=FOLDER / "other.rejected"), files).close()
    second = attrs.evolve(SECOND, rejected=FOLDER / "other.rejected")
    check_refused(files, second, "other.rejected has the rejected lines .* /d/out: name")


def test_a_running_jobs_file_is_refused(files: CrashFiles) -> None:
    first = Job.open(FIRST, files)
    with pytest.raises(UsageError, match=NAMED):
        Job.open(SECOND, files)
    first.commit([rejection("first")])
    first.close()
    assert b"first" in files.get(SHARED)


def test_a_mark_that_cannot_be_read_is_respected(files: CrashFiles) -> None:
    before = reject(files, FIRST, "first")
    files.put(MARK, b"\0")
    sentence = r"shared.trioline, which says whose it is, cannot be read \(remove that if"
    check_refused(files, FIRST, sentence)
    files.unlink(MARK)
    Job.open(FIRST, files).close()
    assert files.get(SHARED) == before
    check_refused(files, SECOND, NAMED)


# --- both are there: the marks were removed by hand -----------------------------------------------


@pytest.mark.parametrize("owner", [FIRST, SECOND])
def test_a_job_does_not_go_on_with_a_file_that_is_another_ones(
    files: CrashFiles, owner: JobSettings
) -> None:
    for settings in (FIRST, SECOND):
        Job.open(settings, files).close()
        files.unlink(MARK)
    other = SECOND if owner is FIRST else FIRST
    before = reject(files, owner, "owner")
    check_refused(files, other, f"the output {owner.output}: this job cannot go on. Begin it anew")
    assert reject(files, owner, "again").startswith(before)


def test_a_job_does_not_go_on_where_another_server_writes(files: CrashFiles) -> None:
    for settings in (FIRST, SECOND):
        Job.open(settings, files).close()
        files.unlink(MARK)
    first = Job.open(FIRST, files)
    for fresh in (False, True):
        with pytest.raises((JobLocked, UsageError), match="/d/shared"):
            Job.open(attrs.evolve(SECOND, fresh=fresh), files)
    first.commit([rejection("first")])
    first.close()


# --- what belongs to nobody -----------------------------------------------------------------------


def test_a_job_that_is_thrown_away_lets_its_file_go(files: CrashFiles) -> None:
    reject(files, FIRST, "first")
    Job.open(attrs.evolve(FIRST, rejected=FOLDER / "new", fresh=True), files).close()
    assert not files.has(SHARED)
    assert not files.has(MARK)
    reject(files, SECOND, "second")


@pytest.mark.parametrize("rejected", ["shared", "other.rejected"])
def test_an_empty_file_of_a_job_that_is_gone_is_taken(files: CrashFiles, rejected: str) -> None:
    shared = FOLDER / rejected
    Job.open(attrs.evolve(FIRST, rejected=shared), files).close()
    for path in files.paths():
        if path.parent == FIRST.state:
            files.unlink(path)
    second = attrs.evolve(SECOND, rejected=shared)
    before = reject(files, second, "second")
    Job.open(second, files).close()
    assert files.get(shared) == before


# --- repair and retry ----------------------------------------------------------------------------


def test_a_repair_that_knows_no_job_keeps_its_file(files: CrashFiles) -> None:
    reject(files, FIRST, "first")
    for name in (RUN_NAME, CHECKPOINT_NAME):
        files.unlink(FIRST.state / name)
    plan = mend_all(files, Given(output=FIRST.output, input=FIRST.input, rejected=SHARED))
    assert plan.is_needed
    Job.open(FIRST, files).close()
    check_refused(files, SECOND, NAMED)


@pytest.mark.parametrize("open_other", [Retry.open, lambda _, files: mend_all(files, OTHER)])
def test_another_jobs_file_is_neither_repaired_nor_retried(
    files: CrashFiles, open_other: Callable[[JobSettings, CrashFiles], object]
) -> None:
    Job.open(SECOND, files).close()
    files.unlink(MARK)
    reject(files, FIRST, "first")
    before = all_of(files)
    with pytest.raises(UsageError, match=NAMED):
        open_other(SECOND, files)
    assert all_of(files) == before


# --- at any instant -------------------------------------------------------------------------------


def end(files: CrashFiles, seed: int | None) -> None:
    if seed is None:
        files.kill()
    else:
        files.lose_power(random.Random(seed))


@pytest.mark.parametrize("power", [False, True])
def test_of_two_that_are_made_again_and_again_one_has_the_file(*, power: bool) -> None:
    """Each is ended at each call of its beginning; then the one that is there goes on."""
    owners = set()
    for at in range(1, 60):
        for then in range(1, 60, 3):
            files = CrashFiles()
            files.put(FIRST.input, input_of(LINES))
            for settings, crash_at in ((FIRST, at), (SECOND, then)):
                files.call_count, files.crash_at = 0, crash_at
                with contextlib.suppress(Crash, UsageError):
                    Job.open(settings, files)
                end(files, at * 60 + then if power else None)
            owner = FIRST if files.has(FIRST.state / RUN_NAME) else SECOND
            owners.add(owner.output)
            before = reject(files, owner, "owner")
            check_refused(files, SECOND if owner is FIRST else FIRST, f"output {owner.output}")
            assert reject(files, owner, "again").startswith(before)
    assert len(owners) == 2


@pytest.mark.parametrize("power", [False, True])
def test_what_ends_a_job_being_thrown_away_leaves_no_file_to_two(*, power: bool) -> None:
    fresh = attrs.evolve(FIRST, rejected=FOLDER / "new", fresh=True)
    taken = 0
    for at in range(1, 100):
        files = CrashFiles()
        files.put(FIRST.input, input_of(LINES))
        reject(files, FIRST, "first")
        files.call_count, files.crash_at = 0, at
        with contextlib.suppress(Crash):
            Job.open(fresh, files)
        ended = files.call_count >= at
        end(files, at if power else None)
        try:
            before = reject(files, SECOND, "second")
        except UsageError:
            before = b""
        taken += bool(before)
        with contextlib.suppress(UsageError):  # the file to be thrown away is the other one's now
            Job.open(fresh, files).close()
        if before:
            assert reject(files, SECOND, "again").startswith(before)
        if not ended:
            break
    assert not ended
    assert taken


def test_two_jobs_made_at_once_leave_one(files: CrashFiles) -> None:
    """The other one opens, and rejects a line, at any call of the first one's beginning."""
    opened = 0
    for at in range(1, 300):
        files = CrashFiles()
        files.put(FIRST.input, input_of(LINES))
        other = Other(files, SECOND, at)
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
            assert b"other" in files.get(SHARED)
            other.job.sync(other.job.source.offset_of(1))
            other.job.close()
        files.fail = None
        assert not files.open_count
        if other.calls.count < at:
            break
    assert opened > 10


class Other:
    """Opens a second job at the nth system call."""

    def __init__(self, files: CrashFiles, settings: JobSettings, at: int) -> None:
        self.files, self.settings = files, settings
        self.job: Job | None = None
        self.calls = AtCall(files, at, self._open)

    def _open(self) -> None:
        try:
            self.job = Job.open(self.settings, self.files)
            self.job.commit([rejection("other")])
        except (JobLocked, UsageError):
            assert self.job is None
