"""What a repair takes away of the ends of files: announced, and copied once."""

from __future__ import annotations

from damage_helpers import STATE, Contents, contents, inverted
from repair_helpers import COPIES, LONG, LONG_RESULTS, long_entry, redo, repaired
from storage_helpers import CrashFiles, input_of

from trioline.config import JobSettings
from trioline.storage.job import Job

SEGMENT = STATE / "journal-00000001"
DONE = 150
MORE = b'"more"\n' * 3


def begun(settings: JobSettings) -> Contents:
    """A job that was killed behind its durable point, and lost the table of checksums."""
    files = CrashFiles()
    files.put(settings.input, input_of(LONG))
    job = Job.open(settings, files)
    for end in (DONE, 300):
        job.commit([long_entry(line) for line in range(end - DONE, end)])
        if end == DONE:
            job.sync(job.source.offset_of(DONE))
    length = job.journal_bytes
    files.kill()
    data = contents(files)
    del data[STATE / "checksums"]
    return {**data, SEGMENT: data[SEGMENT][:length]}


def test_an_end_that_nothing_knows_of_is_cut_as_announced(settings: JobSettings) -> None:
    data = begun(settings)
    end = sum(map(len, LONG_RESULTS[:DONE]))
    files, plan = repaired({**data, settings.output: data[settings.output] + MORE})
    assert f"cut /d/out at byte {end}, where the checkpoint ends" in " ".join(plan.steps)
    assert not plan.is_journal_damaged
    assert files.get(COPIES / f"out-from-{end}").endswith(MORE)
    assert not [path for path in files.paths() if ".cut-" in path.name]
    assert redo(files, settings) == set(range(300, LONG))
    assert files.get(settings.output) == b"".join(LONG_RESULTS)


def test_a_bad_end_of_the_journal_is_announced(settings: JobSettings) -> None:
    data = begun(settings)
    damaged = inverted(data[SEGMENT], len(data[SEGMENT]) - 1)
    files, plan = repaired({**data, SEGMENT: damaged})
    assert f"to {len(damaged)} at its end are not what was to be written" in " ".join(plan.found)
    assert f"{SEGMENT}: keep its good frames" in plan.steps
    assert plan.is_journal_damaged
    assert files.get(COPIES / SEGMENT.name) == damaged
    assert not [path for path in files.paths() if ".damaged-" in path.name]
    assert redo(files, settings) == set(range(DONE, LONG))
    assert files.get(settings.output) == b"".join(LONG_RESULTS)
