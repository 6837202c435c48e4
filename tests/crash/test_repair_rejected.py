"""What a repair keeps of a rejected file: each record that holds, and no line is forgotten."""

from __future__ import annotations

import functools
import json
import random
from itertools import count

import attrs
import pytest
from damage_helpers import FOLDER, STATE, Contents, contents, files_with
from repair_helpers import COPIES, JOB, mend_all, mended_after_kills, repaired
from storage_helpers import Crash, CrashFiles, input_line, input_of, settings_for

from trioline.errors import StorageError
from trioline.storage.entries import Entry, Rejection, Results
from trioline.storage.files import Disk
from trioline.storage.job import Job
from trioline.storage.rejected import encode_record
from trioline.storage.repair.plan import Plan, examine
from trioline.storage.repair.records import DOUBTFUL, LOST
from trioline.storage.verify.verification import find_subject, verify

LINES = 300
REJECTED = range(0, LINES, 3)
NULL = 100
"""A line whose result is what the placeholder is."""
SETTINGS = settings_for(FOLDER)
OUT, REJECTS = SETTINGS.output, SETTINGS.rejected


def entry(line: int, *, null: int | None = None) -> Entry:
    if line in REJECTED:
        content = input_line(line)
        return Rejection(line, encode_record(line, content, attempts=1, losses=0, errors=["no"]))
    return Results(line, 1, b"null\n" if line == null else b"%d\n" % line)


@functools.cache
def job_of(
    *, done: int = LINES, null: int | None = None, started_at: int | None = None
) -> Contents:
    """A job of 300 lines, a third of them rejected: finished, or killed in its course.

    Where it was started again at a line, the journal has nothing from before that.
    """
    files = CrashFiles()
    files.put(SETTINGS.input, input_of(LINES))
    job = Job.open(SETTINGS, files)
    for first in range(0, done, 50):
        if first == started_at:
            job.close()
            job = Job.open(SETTINGS, files)
        job.commit([entry(line, null=null) for line in range(first, first + 50)])
        job.sync(job.source.offset_of(job.written_count))
    if done == LINES:
        job.finish(job.source.offset_of(LINES))
    files.kill()
    return contents(files)


def without(data: Contents, name: str) -> Contents:
    return {path: content for path, content in data.items() if path.name != name}


def with_record(data: Contents, number: int, old: bytes, new: bytes) -> Contents:
    """One record edited."""
    records = data[REJECTS].splitlines(keepends=True)
    assert old in records[number]
    records[number] = records[number].replace(old, new)
    return {**data, REJECTS: b"".join(records)}


def records(files: CrashFiles) -> dict[int, list[str]]:
    """What the rejected file says of each line: its errors."""
    found = [json.loads(line) for line in files.get(REJECTS).splitlines()]
    return {record["id"]: record["errors"] for record in found}


def redo(files: CrashFiles) -> None:
    """Do what is left of a job."""
    job = Job.open(SETTINGS, files)
    held = {line for part in job.ahead() for line in part}
    if missing := set(range(job.written_count, LINES)) - held:
        job.commit([entry(line) for line in sorted(missing)])
    if not job.is_finished:
        job.finish(job.source.offset_of(LINES))
    job.close()


def check_proved(files: CrashFiles, *, is_assumed: bool = False) -> None:
    """The lines are; what the records say of attempts and errors may have been taken as it was."""
    report = verify(find_subject(Disk(files), SETTINGS), lambda _: (), files=files)
    assert report.is_proved, report.findings
    texts = [finding.text for finding in report.findings]
    assert len(texts) == is_assumed, texts
    assert all(
        "what its records say of attempts and errors is not proved" in text for text in texts
    )


def said(plan: Plan) -> str:
    return " ".join([*plan.found, *plan.steps])


BROKEN = [
    (b"{", b"x"),
    (b'"line"', b'"lime"'),
    (b"line 3", b"line 4"),
    (b'"id":3', b'"id":4'),
    (b'"id":3', b'"id":0'),
    (b"line 3", b"line \xff"),
]


@pytest.mark.parametrize("is_checkpoint_lost", [True, False])
@pytest.mark.parametrize(("old", "new"), BROKEN)
def test_only_the_record_that_does_not_hold_is_made_anew(
    old: bytes, new: bytes, is_checkpoint_lost: bool
) -> None:
    data = with_record(job_of(), 1, old, new)
    if is_checkpoint_lost:
        data = without(data, "checkpoint")
    files, plan = repaired(data)
    assert "99 records kept" in said(plan)
    assert "make records for 1 placeholder without one" in said(plan)
    redo(files)
    told = DOUBTFUL if is_checkpoint_lost else LOST
    assert records(files) == {line: ["no"] if line != 3 else [told] for line in REJECTED}
    check_proved(files, is_assumed=True)


@pytest.mark.parametrize("is_checkpoint_lost", [True, False])
def test_the_last_record_is_held_against_its_line_like_any_other(is_checkpoint_lost: bool) -> None:
    data = with_record(job_of(), 99, b'"line"', b'"lime"')
    files, _ = repaired(without(data, "checkpoint") if is_checkpoint_lost else data)
    redo(files)
    told = DOUBTFUL if is_checkpoint_lost else LOST
    assert records(files) == {line: ["no"] if line != 297 else [told] for line in REJECTED}
    check_proved(files, is_assumed=True)


def test_a_rejected_line_behind_damage_is_not_forgotten() -> None:
    """It goes to the journal; so does its record, or one that says that it was lost."""
    data = without(with_record(job_of(), 80, b'"line"', b'"lime"'), "checkpoint")
    output = data[OUT].replace(b"\n100\n", b"\n101\n")
    files, plan = repaired({**data, OUT: output})
    assert plan.base.lines == 64
    assert "make records for 1 placeholder without one" in said(plan)
    redo(files)
    assert records(files) == {line: ["no"] if line != 240 else [DOUBTFUL] for line in REJECTED}
    check_proved(files, is_assumed=True)


@pytest.mark.parametrize("done", [LINES, 150])
def test_an_edited_record_that_still_holds_is_said(done: int) -> None:
    data = with_record(job_of(done=done, started_at=100), 1, b'"no"', b'"ok"')
    files = files_with(data)
    assert not verify(find_subject(Disk(files), SETTINGS), lambda _: (), files=files).holds
    told = r"out\.rejected.* bytes 0 to \d+ .*trioline repair.*in lines 1 to \d+ .*ids 0 to \d+\.$"
    with pytest.raises(StorageError, match=told):
        Job.open(SETTINGS, files)
    assert contents(files) == data
    files, plan = repaired(data)
    assert f"what {100 if done == LINES else 34} records of it" in said(plan)
    assert "`trioline verify` will tell" in said(plan)
    assert "make records" not in said(plan)
    redo(files)
    assert list(records(files)) == list(REJECTED)
    check_proved(files, is_assumed=True)


def test_an_edited_record_that_the_journal_has_is_put_back() -> None:
    data = job_of(done=150)
    at = 49  # of the newest segment
    edited = with_record(data, at, b'"no"', b'"ok"')
    byte = len(b"".join(data[REJECTS].splitlines(keepends=True)[:at]))
    for damaged in (edited, without(edited, "checkpoint")):
        files, plan = repaired(damaged)
        assert f"{REJECTS}: the record of line 147 (byte {byte:,})" in said(plan)
        assert files.get(REJECTS) == data[REJECTS]
        assert files.get(COPIES / "out.rejected") == edited[REJECTS]
        redo(files)
        check_proved(files)


def test_what_is_not_proved_of_records_stays_so_until_they_are_tried_again() -> None:
    data = with_record(job_of(done=150, started_at=100), 1, b'"no"', b'"ok"')
    files, _ = repaired(data)
    redo(files)
    check_proved(files, is_assumed=True)
    redo(files)
    check_proved(files, is_assumed=True)
    assert not examine(Disk(files), JOB).is_needed


@pytest.mark.parametrize("done", [LINES, 150])
def test_a_result_like_the_placeholder_gets_no_record_where_the_checkpoint_is_lost(
    done: int,
) -> None:
    """The file has no gap where its record would be; so it is at any place of a damaged file."""
    data = without(job_of(done=done, null=98, started_at=100), "checkpoint")
    files, plan = repaired(data)
    assert "make records" not in said(plan)
    assert "1 line from line 98 on may be a result or a placeholder" in said(plan)
    files, plan = repaired(with_record(data, 1, b'"line"', b'"lime"'))
    assert "make records for 1 placeholder without one" in said(plan)
    redo(files)
    assert records(files) == {line: ["no"] if line != 3 else [DOUBTFUL] for line in REJECTED}


def test_placeholders_without_a_rejected_file_get_records_that_doubt() -> None:
    data = without(without(job_of(null=NULL), "checkpoint"), "out.rejected")
    files, plan = repaired(data)
    assert "make records for 101 placeholders without one" in said(plan)
    redo(files)
    assert set(records(files)) == {*REJECTED, NULL}
    assert all(errors == [DOUBTFUL] for errors in records(files).values())


@pytest.mark.parametrize("done", [LINES, 150])
def test_records_that_may_be_of_results_are_not_proved(done: int) -> None:
    """More placeholders are without one than were rejected: which ones nothing tells."""
    data = without(job_of(done=done, null=98, started_at=100), "out.rejected")
    files, plan = repaired(data)
    assert "which ones nothing tells" in said(plan)
    redo(files)
    assert 98 in records(files)
    check_proved(files, is_assumed=True)


def test_an_edit_is_said_where_something_else_is_damaged() -> None:
    data = with_record(job_of(), 1, b'"id":3', b'"id":4')
    output = data[OUT].replace(b"\n100\n", b"\n101\n")
    files, plan = repaired({**data, OUT: output})
    assert f"{REJECTS}: bytes 0 to" in said(plan)
    redo(files)
    assert records(files) == {line: ["no"] if line != 3 else [DOUBTFUL] for line in REJECTED}
    check_proved(files, is_assumed=True)


def lost_with_a_block() -> Contents:
    """Without the rejected file, and with a damaged block of the output."""
    data = without(job_of(null=NULL), "out.rejected")
    return {**data, OUT: data[OUT].replace(b"\n1\n", b"\n0\n", 1)}


def test_where_lines_are_done_again_lost_records_may_be_theirs() -> None:
    files, plan = repaired(lost_with_a_block())
    assert "79 placeholders without one, of which 79 at most were rejected lines" in said(plan)
    redo(files)
    assert records(files)[NULL] == [DOUBTFUL]
    check_proved(files, is_assumed=True)


def test_a_placeholder_that_may_be_one_of_those_is_not_proved() -> None:
    """Its record was cut out, and left no gap: that is where a line is done again."""
    data = job_of()
    kept = data[REJECTS].splitlines(keepends=True)
    kept[1] = kept[1].replace(b'"line"', b'"lime"')  # of line 3
    output = data[OUT].replace(b"\n1\n", b"\n0\n", 1)
    files, plan = repaired({**data, REJECTS: b"".join(kept[:22]), OUT: output})
    redo(files)
    assert "make records" not in said(plan)
    check_proved(files, is_assumed=True)


def test_a_kill_makes_no_record_less_doubtful() -> None:
    kills = 0
    for files in mended_after_kills(lost_with_a_block(), JOB, random.Random(1)):
        kills += 1
        redo(files)
        assert records(files)[NULL] == [DOUBTFUL]
        check_proved(files, is_assumed=True)
    assert kills > 20


def test_a_result_like_the_placeholder_gets_no_record() -> None:
    """As many records hold as there were, so that it is none of the rejected lines."""
    data = job_of(null=NULL)
    files, plan = repaired({**data, REJECTS: b"\n" + data[REJECTS]})
    assert "make records" not in said(plan)
    redo(files)
    assert list(records(files)) == list(REJECTED)
    damaged_too = {
        **data,
        REJECTS: data[REJECTS] + b"\n",
        OUT: data[OUT].replace(b"\n1\n", b"\n0\n", 1),
    }
    files, plan = repaired(damaged_too)
    assert "make records" not in said(plan)


def test_how_many_of_the_placeholders_were_rejected_lines_is_said() -> None:
    data = with_record(job_of(null=NULL), 33, b'"line"', b'"lime"')  # of line 99
    _, plan = repaired(data)
    assert "2 placeholders without one, of which 1 were rejected lines" in said(plan)
    _, plan = repaired(without(data, "checkpoint"))
    assert "2 placeholders without one, which may be results like any other" in said(plan)
    _, plan = repaired(with_record(job_of(null=NULL), 1, b'"line"', b'"lime"'))
    assert "1 placeholder without one, which say that the first was lost" in said(plan)


def test_a_result_that_the_journal_knows_gets_no_record() -> None:
    data = job_of(done=150, null=NULL)
    files, plan = repaired(without(data, "checkpoint"))
    assert "make records" not in said(plan)
    redo(files)
    assert list(records(files)) == list(REJECTED)


def test_lines_that_are_rejected_in_part_keep_all_records_without_a_checkpoint() -> None:
    data = without(job_of(done=150), "checkpoint")
    files, plan = repaired(with_record(data, 20, b'"line"', b'"lime"'))
    redo(files)
    assert list(records(files)) == list(REJECTED)
    assert plan.counts.redone == 0


def test_a_rejected_file_of_no_record_may_be_missing() -> None:
    files = CrashFiles()
    files.put(SETTINGS.input, input_of(LINES))
    job = Job.open(SETTINGS, files)
    job.commit([Results(0, LINES, b"1\n" * LINES)])
    job.finish(job.source.offset_of(LINES))
    files.kill()
    files = files_with(without(contents(files), "out.rejected"))
    check_proved(files)
    assert not examine(Disk(files), JOB).is_needed
    redo(files)
    assert files.get(REJECTS) == b""
    check_proved(files)


def test_what_a_crashed_repair_leaves_goes_with_the_job() -> None:
    fresh = attrs.evolve(SETTINGS, fresh=True)
    data = with_record(job_of(done=150), 1, b'"line"', b'"lime"')
    segment = next(path for path in data if path.name.startswith("journal"))
    data[segment] = data[segment][:-9] + b"x" + data[segment][-8:]
    data[STATE / "owner.c0ffee"] = b"{}"
    clean = files_with({SETTINGS.input: input_of(LINES)})
    Job.open(fresh, clean).close()
    kills = 0
    for call in count(1):
        files = files_with(data)
        files.crash_at = files.call_count + call
        try:
            mend_all(files)
        except Crash:
            files.kill()
        else:
            break
        Job.open(fresh, files).close()
        left = {path for path in files.paths() if not path.parent.name.startswith("damaged")}
        assert left == set(clean.paths())
        kills += 1
    assert kills > 50


@pytest.mark.parametrize("moved", [(0, 1), (10, 60)])
@pytest.mark.parametrize("is_output_damaged", [False, True])
def test_records_that_were_moved_are_put_back(
    moved: tuple[int, int], is_output_damaged: bool
) -> None:
    data = job_of()
    swapped = data[REJECTS].splitlines(keepends=True)
    one, other = moved
    swapped[one], swapped[other] = swapped[other], swapped[one]
    damaged = {**data, REJECTS: b"".join(swapped)}
    if is_output_damaged:
        damaged[OUT] = data[OUT].replace(b"\n200\n", b"\n201\n")
    files, _ = repaired(damaged)
    redo(files)
    assert files.get(REJECTS) == data[REJECTS]
    check_proved(files, is_assumed=is_output_damaged)


def test_that_no_line_was_rejected_is_not_proved_by_an_empty_file() -> None:
    data = without(job_of(), "checkpoint")
    files, plan = repaired({**data, REJECTS: b""})
    assert "100 lines from line 0 on may be a result or a placeholder" in said(plan)
    redo(files)
    assert files.get(REJECTS) == b""
    check_proved(files, is_assumed=True)


def test_lines_of_a_block_that_is_not_complete_are_kept_by_their_form() -> None:
    """The table has only complete blocks, and the journal is empty after a repair."""
    files, plan = repaired(with_record(job_of(), 1, b'"no"', b'"ok"'))
    assert plan.counts.open == 0
    files.kill()
    files, plan = repaired(without(outside_copies(files), "checkpoint"))
    assert plan.counts.open == 0
    assert plan.assumed == range(256, LINES)


def outside_copies(files: CrashFiles) -> Contents:
    return {path: data for path, data in contents(files).items() if path.parent != COPIES}


def test_nothing_is_said_against_records_when_all_lines_were_computed_again() -> None:
    files = files_with(without(job_of(), "checkpoint"))
    files.set_times(SETTINGS.input, 2, 2)
    assert mend_all(files).assumed == range(LINES)
    plan = mend_all(files, attrs.evolve(JOB, recomputes_unproved=True))
    assert plan.counts.open == LINES
    redo(files)
    check_proved(files)


def test_records_that_were_made_on_doubt_are_not_proved_by_being_lost_again() -> None:
    """The checkpoint counts them from the first repair on."""
    files, plan = repaired(without(job_of(null=98), "out.rejected"))
    assert "which ones nothing tells" in said(plan)
    files.kill()
    files, plan = repaired(without(outside_copies(files), "out.rejected"))
    redo(files)
    check_proved(files, is_assumed=True)
