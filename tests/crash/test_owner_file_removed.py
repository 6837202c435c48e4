"""No locks in the file system, and the owner file of a live server removed at any instant.

The second server begins in the midst of a call of the first one, which then does what it still can
before it looks at its owner file again. What either acknowledged must be in the output.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

import attrs
import pytest
from crash_trial import without_locks
from storage_helpers import CrashFiles, input_of, settings_for

from trioline.config import Fsync, JobSettings
from trioline.errors import StorageError
from trioline.storage import Entry, Job, Rejection, Results

LINES = 8
FIRST_LINES = 3
NULL = b"null\n"


def result(line: int, who: str) -> bytes:
    return NULL if line % 4 == 1 else b'"%d by %s"\n' % (line, who.encode())


@attrs.define(eq=False)
class Trial:
    """Two servers; the second one, whose results are longer or shorter, begins at the nth call."""

    settings: JobSettings
    at: int
    who: str
    is_synced: bool
    files: CrashFiles = attrs.Factory(CrashFiles)
    count: int = 0
    second: Job | None = None
    acknowledged: dict[int, bytes] = attrs.Factory(dict)

    def run(self) -> bool:
        """Whether the second one came before the first one was done."""
        self.files.put(self.settings.input, input_of(LINES))
        self.files.fail = without_locks
        first = self.open()
        self.files.fail = self.intrude
        with contextlib.suppress(StorageError):
            for _ in range(FIRST_LINES):
                self.commit(first, "first", is_synced=self.is_synced)
        self.files.fail = without_locks
        with contextlib.suppress(StorageError):
            first.close()
        return self.second is not None

    def open(self) -> Job:
        return Job.open(self.settings, self.files)

    def intrude(self, call: str, path: Path, count: int) -> int | None:
        self.count += 1
        if self.count == self.at:
            self.files.fail = without_locks
            self.files.unlink(self.settings.state / "owner")
            self.second = self.open()
            for _ in range(2):
                self.commit(self.second, self.who, is_synced=False)
        return without_locks(call, path, count)

    def commit(self, job: Job, who: str, *, is_synced: bool) -> None:
        line = job.written_count
        answer = result(line, who)
        entry: Entry = Results(line, 1, answer)
        if answer == NULL:
            entry = Rejection(line, b'{"id":%d,"by":"%s"}\n' % (line, who.encode()))
        job.commit([entry])
        self.acknowledged[line] = answer
        if is_synced:
            job.sync(job.source.offset_of(line + 1))

    def finish(self, *, is_killed: bool) -> None:
        """Go on with the second one, or a third; what is overwritten is noticed, and had back."""
        job = self.second
        if is_killed or job is None:
            self.files.kill()
            job = self.open()
        try:
            self.finish_with(job)
        except StorageError:
            self.files.kill()
            self.finish_with(self.open())

    def finish_with(self, job: Job) -> None:
        while job.written_count < LINES:
            self.commit(job, "last", is_synced=True)
        job.finish(job.source.offset_of(LINES))
        job.close()


@pytest.mark.parametrize("fsync", Fsync)
@pytest.mark.parametrize("who", ["second", "2"])
@pytest.mark.parametrize("is_synced", [False, True])
@pytest.mark.parametrize("is_killed", [False, True])
def test_an_owner_file_removed_at_any_system_call_loses_nothing(
    fsync: Fsync, who: str, *, is_synced: bool, is_killed: bool
) -> None:
    settings = settings_for(Path("/d"), fsync=fsync)
    for at in range(1, 400):
        trial = Trial(settings, at, who, is_synced)
        if not trial.run():
            break
        trial.finish(is_killed=is_killed)
        lines = trial.files.get(settings.output).splitlines(keepends=True)
        assert len(lines) == LINES
        assert {line: lines[line] for line in trial.acknowledged} == trial.acknowledged, at
        records = trial.files.get(settings.rejected).splitlines()
        assert len(records) == lines.count(NULL)
    assert at > 15
    assert trial.acknowledged.keys() == set(range(FIRST_LINES))
