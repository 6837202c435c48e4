"""Damage to a job in the midst of a retry: what is started next does its work, or refuses.

Every byte of every file of the job, the retry's own ones included, is changed in turn, in memory.
Then a retry, a start, a verification and a repair either end as they should, or with one sentence:
never with another exception, and never with another line in the place of one.
"""

from __future__ import annotations

import datetime
from collections import Counter
from collections.abc import Callable

import pytest
from damage_helpers import CHANGES, Contents, contents
from retry_helpers import FOLDER, LINES, NEW, OLD, finished_job, retry_all, run_again
from storage_helpers import Crash, CrashFiles

from trioline.errors import StorageError, UsageError
from trioline.storage import Job
from trioline.storage.files import Disk
from trioline.storage.repair.given import Given
from trioline.storage.repair.mending import mend, open_once
from trioline.storage.repair.plan import examine
from trioline.storage.retry.retry import Retry
from trioline.storage.retry_files import RetryFiles
from trioline.storage.verify.verification import find_subject, verify

FILES, SETTINGS = finished_job()
DATA = contents(FILES)
NOW = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
FOLDERS = (FOLDER, SETTINGS.state, SETTINGS.state / "retry", RetryFiles(SETTINGS).results_state)


def files_with(data: Contents) -> CrashFiles:
    files = CrashFiles(FOLDERS)
    for path, content in data.items():
        files.put(path, content)
    return files


def half_run() -> Contents:
    files = files_with(DATA)
    retry = Retry.open(SETTINGS, files)
    run_again(retry, files, until=2)
    return contents(files)


def all_run() -> Contents:
    files = files_with(DATA)
    retry = Retry.open(SETTINGS, files)
    run_again(retry, files)
    return contents(files)


def in_the_swap() -> Contents:
    """One file of three has its new content."""
    files = files_with(all_run())
    retry = Retry.open(SETTINGS, files)
    renamed: list[int] = []

    def crash(call: str, *_: object) -> None:
        if call == "rename" and files.has(RetryFiles(SETTINGS).swap):
            renamed.append(1)
            if len(renamed) == 2:
                raise Crash

    files.fail = crash
    with pytest.raises(Crash):
        retry.put_in_place()
    return contents(files)


def retried(files: CrashFiles) -> None:
    retry_all(files, SETTINGS)
    assert files.get(SETTINGS.output) == NEW


def served(files: CrashFiles) -> None:
    job = Job.open(SETTINGS, files)
    assert job.is_finished
    assert job.written_count == LINES
    job.close()


def verified(files: CrashFiles) -> None:
    report = verify(find_subject(Disk(files), SETTINGS), lambda _: (), files=files)
    if report.holds:
        for path in (SETTINGS.input, SETTINGS.output, SETTINGS.rejected):
            assert files.get(path) == DATA[path]


def repaired(files: CrashFiles) -> None:
    disk = Disk(files)
    plan = examine(disk, Given(output=SETTINGS.output, input=SETTINGS.input))
    if plan.is_needed:
        mend(disk, plan, NOW)
        written, ahead, _ = open_once(disk, plan)
        assert written + ahead <= LINES
        assert OLD.startswith(files.get(SETTINGS.output))


@pytest.mark.slow
@pytest.mark.parametrize("then", [retried, served, verified, repaired])
@pytest.mark.parametrize("stopped", [half_run, all_run, in_the_swap])
def test_every_byte_of_every_file(
    stopped: Callable[[], Contents], then: Callable[[CrashFiles], None], is_big: bool
) -> None:
    data = stopped()
    counts: Counter[str] = Counter()
    for path, original in data.items():
        step = 1 if is_big else max(1, len(original) // 12)
        for number, change in enumerate(CHANGES):
            for at in range(number % step, len(original), step):
                damaged = change(original, at)
                if damaged == original:
                    continue
                try:
                    then(files_with({**data, path: damaged}))
                except (StorageError, UsageError) as error:
                    counts[type(error).__name__] += 1
                except BaseException as error:
                    error.add_note(f"{path} {change.__name__} at {at}")
                    raise
                else:
                    counts["done"] += 1
    print(stopped.__name__, then.__name__, dict(counts))
