"""What a repair doubts of an input that was touched: said at once, and kept by a kill."""

from __future__ import annotations

import random

import attrs
import pytest
from damage_helpers import FOLDER, STATE, contents
from repair_helpers import JOB, NOW, answered, line_of, mended_after_kills
from storage_helpers import CrashFiles, settings_for

from trioline.config import JobSettings
from trioline.storage.checkpoint import Checkpoint
from trioline.storage.files import Disk
from trioline.storage.job import Job
from trioline.storage.repair.given import Given
from trioline.storage.repair.mending import mend, open_once
from trioline.storage.repair.plan import Plan, examine
from trioline.storage.verify.findings import Report
from trioline.storage.verify.verification import find_subject, verify

AGAIN = attrs.evolve(JOB, recomputes_unproved=True)
LINES = 400
INPUT = FOLDER / "in"
TEXT = b"".join(line_of(number) + b"\n" for number in range(LINES))


pytestmark = pytest.mark.usefixtures("small_ends")


def begun(settings: JobSettings, *behind: range) -> CrashFiles:
    """A job with 150 lines and some ahead at its durable point, and others ``behind`` it."""
    files = CrashFiles()
    files.put(INPUT, TEXT)
    files.set_times(INPUT, 1, 1)
    job = Job.open(settings, files)
    job.commit(answered([*range(150), *range(330, 340)], TEXT))
    job.sync(job.source.offset_of(150))
    for lines in behind:
        job.commit(answered(lines, TEXT))
    files.kill()
    return files


def edit(files: CrashFiles, *lines: int) -> None:
    text = files.get(INPUT)
    for line in lines:
        text = text.replace(line_of(line), line_of(line).upper())
    files.put(INPUT, text)
    files.set_times(INPUT, 2, 2)


def mend_once(files: CrashFiles, job: Given = JOB) -> Plan:
    disk = Disk(files)
    plan = examine(disk, job)
    mend(disk, plan, NOW)
    open_once(disk, plan)
    return plan


def last_of(files: CrashFiles) -> Checkpoint:
    return find_subject(Disk(files), settings_for(FOLDER)).last


def doubted(files: CrashFiles) -> range:
    return range(last_of(files).assumed_first, last_of(files).assumed_end)


def finish(files: CrashFiles, settings: JobSettings) -> Report:
    """Do the rest of a job, and verify it."""
    job = Job.open(settings, files)
    open_lines = set(range(job.written_count, LINES)).difference(*job.ahead())
    job.commit(answered(sorted(open_lines), files.get(INPUT)))
    job.finish(job.source.offset_of(LINES))
    job.close()
    return verify(find_subject(Disk(files), settings), lambda _: (), files=files)


def test_lines_ahead_that_the_journal_proves_are_not_doubted(settings: JobSettings) -> None:
    """Also where the output is cut to before the blocks that the journal has sums of."""
    files = begun(settings)
    edit(files, 70)
    plan = mend_once(files)
    assert not plan.assumed
    assert not doubted(files)
    assert not examine(Disk(files), AGAIN).is_needed
    assert finish(files, settings).is_proved


def test_lines_ahead_of_which_the_journal_lost_the_sums_are(settings: JobSettings) -> None:
    files = begun(settings)
    journal = STATE / "journal-00000001"
    data = files.get(journal)
    files.put(journal, data[:-1] + bytes([data[-1] ^ 1]))  # the sums come last
    edit(files)
    plan = mend_once(files)
    assert plan.assumed == doubted(files) == range(330, 340)
    assert any("after some of the lines 330 to 339 were answered" in told for told in plan.found)


def test_what_is_doubted_only_now_is_computed_again_with_the_rest(settings: JobSettings) -> None:
    """No start had the time to doubt it; one repair is enough."""
    files = begun(settings, range(150, 160), range(200, 203))
    edit(files, 70)
    plan = mend_once(files, AGAIN)
    assert "have lines 150 to 202 computed again" in plan.steps
    assert plan.counts.redone == 64 + 13
    assert not examine(Disk(files), AGAIN).is_needed
    assert finish(files, settings).is_proved


def test_what_would_be_doubted_is_computed_again_without_any_damage(settings: JobSettings) -> None:
    files = begun(settings, range(150, 160))
    edit(files)
    assert not examine(Disk(files), JOB).is_needed
    plan = mend_once(files, AGAIN)
    assert plan.found == ("/d/out: lines 150 to 159 are not proved",)
    assert finish(files, settings).is_proved


def test_an_input_that_is_edited_during_a_repair_is_doubted(settings: JobSettings) -> None:
    files = begun(settings)
    edit(files, 70)
    disk = Disk(files)
    plan = examine(disk, JOB)
    files.put(INPUT, files.get(INPUT).replace(line_of(100), line_of(100).upper()))
    files.set_times(INPUT, 3, 3)
    mend(disk, plan, NOW)
    open_once(disk, plan)
    assert 100 in doubted(files)


@pytest.mark.slow
@pytest.mark.parametrize("job", [JOB, AGAIN])
def test_a_kill_makes_nothing_less_doubtful(settings: JobSettings, job: Given) -> None:
    """Frames behind the durable point move before it, as those before them lose lines."""
    files, kills = begun(settings, range(200, 240), range(150, 160), range(300, 305)), 0
    edit(files, 335)
    wanted = range(150, 305) if job is JOB else range(0)
    for mended in mended_after_kills(contents(files), job, random.Random(1)):
        kills += 1
        assert doubted(mended) == wanted
    assert kills > 20


def test_only_what_was_doubted_is_computed_again_not_what_is_between(settings: JobSettings) -> None:
    files = begun(settings, range(150, 160))
    edit(files)
    job = Job.open(settings, files)  # doubts the lines 150 to 159
    job.commit(answered(range(160, 250), TEXT))
    job.sync(job.source.offset_of(250))
    job.commit(answered(range(250, 260), TEXT))
    files.kill()
    files.set_times(INPUT, 3, 3)
    plan = mend_once(files, AGAIN)
    assert "have lines 150 to 159, lines 250 to 259 computed again" in plan.steps
    assert not examine(Disk(files), AGAIN).is_needed
    assert finish(files, settings).is_proved
