"""The way out for lines that are not proved: exactly they are opened again, and then proved."""

from __future__ import annotations

import os
import random
from pathlib import Path

import attrs
import pytest
from damage_helpers import STATE, Contents, contents, files_with
from processes import invoke, numbers, trioline
from repair_helpers import (
    COPIES,
    JOB,
    LONG,
    LONG_REJECTED,
    LONG_RESULTS,
    answered,
    long_entry,
    mend_all,
    mended_after_kills,
    redo,
    repaired,
)
from storage_helpers import CrashFiles, input_of, settings_for

from trioline.config import JobSettings
from trioline.storage.files import Disk
from trioline.storage.job import Job
from trioline.storage.repair.plan import examine
from trioline.storage.verify.findings import Report
from trioline.storage.verify.verification import find_subject, verify

AGAIN = attrs.evolve(JOB, recomputes_unproved=True)
OUTPUT = b"".join(LONG_RESULTS)


def report(files: CrashFiles, settings: JobSettings) -> Report:
    return verify(find_subject(Disk(files), settings), lambda _: (), files=files)


def begun(settings: JobSettings) -> Contents:
    """A job that was killed with 150 lines written and some ahead, and lost its checkpoint.

    Started again at line 134, it has a journal only from there on.
    """
    files = CrashFiles()
    files.put(settings.input, input_of(LONG))
    job = Job.open(settings, files)
    job.commit([long_entry(line) for line in range(134)])
    job.sync(job.source.offset_of(134))
    job.close()
    job = Job.open(settings, files)
    job.commit([long_entry(line) for line in [*range(134, 150), *range(300, 310)]])
    job.sync(job.source.offset_of(150))
    files.kill()
    data = contents(files)
    del data[STATE / "checkpoint"]
    return data


def unproved(settings: JobSettings, *, is_done: bool) -> Contents:
    """A job of which the lines 128 to 133 were taken by their form alone."""
    files, plan = repaired(begun(settings))
    assert plan.assumed == range(128, 134)
    if is_done:
        redo(files, settings)
    files.kill()
    return {path: data for path, data in contents(files).items() if path.parent != COPIES}


@pytest.mark.parametrize("is_done", [False, True])
def test_exactly_the_lines_that_are_not_proved_are_computed_again(
    settings: JobSettings, *, is_done: bool
) -> None:
    data = unproved(settings, is_done=is_done)
    others = set() if is_done else {*range(150, 300), *range(310, LONG)}
    files, plan = repaired(data, AGAIN)
    assert plan.counts.open == 6 + len(others)
    assert plan.counts.redone == 6
    before = data[settings.output]
    begin, end = (sum(map(len, LONG_RESULTS[:line])) for line in (128, 134))
    assert files.get(COPIES / f"out-from-{begin}").startswith(before[begin:end])
    assert redo(files, settings) == {*range(128, 134), *others}
    assert report(files, settings).is_proved
    assert files.get(settings.output) == OUTPUT
    records = files.get(settings.rejected).splitlines()
    assert len(records) == len(LONG_REJECTED)


def test_without_the_option_nothing_is_done_again(settings: JobSettings) -> None:
    files = files_with(unproved(settings, is_done=True))
    assert not mend_all(files).is_needed
    (finding,) = (found for found in report(files, settings).findings if found.line is not None)
    assert "`trioline repair /d/out --recompute-unproved --yes`" in finding.text
    assert (finding.line, finding.last_line) == (128, 133)


def test_with_nothing_to_prove_nothing_is_done(settings: JobSettings) -> None:
    files, _ = repaired(unproved(settings, is_done=True), AGAIN)
    redo(files, settings)
    plan = mend_all(files, AGAIN)
    assert not plan.is_needed
    assert plan.counts.open == 0


def test_what_would_be_kept_by_its_form_is_not(settings: JobSettings) -> None:
    """One repair does both: it mends the damage, and opens what nothing speaks for."""
    files, plan = repaired(begun(settings), AGAIN)
    assert not plan.assumed
    assert redo(files, settings) == {*range(128, 134), *range(150, 300), *range(310, LONG)}
    assert report(files, settings).is_proved
    assert files.get(settings.output) == OUTPUT


def test_it_is_announced(settings: JobSettings) -> None:
    files = files_with(unproved(settings, is_done=True))
    plan = examine(Disk(files), AGAIN)
    begin = sum(map(len, LONG_RESULTS[:128]))
    assert plan.found == ("/d/out: lines 128 to 133 are not proved",)
    assert plan.steps[:2] == (
        "have lines 128 to 133 computed again",
        f"cut /d/out at byte {begin:,}, and go on from line 128",
    )


def test_answers_that_wait_for_their_turn_are_opened_too(settings: JobSettings) -> None:
    """The input was touched between two servers: of what was not recorded nothing tells."""
    files = CrashFiles()
    text = input_of(LONG)
    files.put(settings.input, text)
    files.set_times(settings.input, 1, 1)
    job = Job.open(settings, files)
    job.commit(answered([*range(70), *range(100, 120)], text))
    job.sync(job.source.offset_of(70))
    job.commit(answered([*range(70, 80), *range(130, 140)], text))
    files.kill()
    files.set_times(settings.input, 2, 2)
    job = Job.open(settings, files)
    assert "lines 70 to 139 nothing recorded" in (job.warning or "")
    assert f"trioline repair {settings.output} --recompute-unproved" in (job.warning or "")
    files.kill()
    files, plan = repaired(contents(files), AGAIN)
    assert plan.found == ("/d/out: lines 70 to 139 are not proved",)
    assert plan.counts.redone == 40
    job = Job.open(settings, files)
    assert job.written_count == 70
    assert not list(job.ahead())
    job.commit(answered(range(70, LONG), text))
    job.finish(job.source.offset_of(LONG))
    job.close()
    assert report(files, settings).is_proved


@pytest.mark.slow
@pytest.mark.parametrize("is_done", [False, True])
def test_a_kill_at_any_call_leaves_it_to_be_done_again(
    settings: JobSettings, *, is_done: bool
) -> None:
    data, kills = unproved(settings, is_done=is_done), 0
    for files in mended_after_kills(data, AGAIN, random.Random(1)):
        kills += 1
        open_lines = redo(files, settings)
        assert set(range(128, 134)) <= open_lines
        assert report(files, settings).is_proved
        assert files.get(settings.output) == OUTPUT
    assert kills > 20


def test_the_commands_lead_to_each_other(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """From what verify says to an output that is proved."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in").write_bytes(numbers(300))
    run = ("run", "in", "out", "--each", "cat", "-j", "1", "--linger", "0.1", "--quiet")
    settings = settings_for(tmp_path)
    job = Job.open(settings)
    job.commit(answered(range(300), numbers(300)))
    job.finish(job.source.offset_of(300))
    job.close()
    for name in ("checkpoint", "checksums"):
        os.unlink(tmp_path / "out.trioline" / name)
    capture = capfd.readouterr
    told = invoke("repair", "out", "--yes", capture=capture)
    assert (told.code, "run the job's command once more, it ends at once" in told.stdout) == (
        0,
        True,
    )
    assert trioline(*run, cwd=tmp_path).code == 0
    told = invoke("verify", "in", "out", capture=capture)
    assert told.code == 1
    assert "lines 0 to 299 are not proved" in told.stdout
    assert "`trioline repair out --recompute-unproved --yes`" in told.stdout
    told = invoke("repair", "out", capture=capture)
    assert told.code == 0
    assert "lines 0 to 299 are not proved: --recompute-unproved has them" in told.stdout
    told = invoke("repair", "out", "--recompute-unproved", capture=capture)
    assert told.code == 1
    assert "300 are to be computed: 300 were done before" in told.stdout
    assert invoke("repair", "out", "--recompute-unproved", "--yes", capture=capture).code == 0
    assert trioline(*run, cwd=tmp_path).code == 0
    assert invoke("verify", "in", "out", capture=capture).code == 0
    assert (tmp_path / "out").read_bytes() == numbers(300)
