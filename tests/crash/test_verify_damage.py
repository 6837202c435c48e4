"""What ``trioline verify`` says when what it holds the files against is itself damaged or lost.

Every byte of the table is changed in turn: that is never taken for an edit of input or output, and
never overlooked where it matters; a start refuses what it can see at once, and repair mends it all.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterator

import attrs
import pytest
from damage_helpers import CHANGES, FOLDER, STATE, Contents, contents, cut, files_with, flipped
from storage_helpers import CrashFiles, input_of, settings_for

from trioline.errors import StorageError, UsageError
from trioline.storage import Job, Rejection, Results, encode_record
from trioline.storage.files import Disk
from trioline.storage.repair.given import Given
from trioline.storage.repair.mending import mend, open_once
from trioline.storage.repair.plan import examine
from trioline.storage.retry.retry import Retry
from trioline.storage.verify.findings import Report
from trioline.storage.verify.verification import find_subject, verify
from trioline.wire.codec import is_json

SETTINGS = settings_for(FOLDER)
JOB = Given(output=SETTINGS.output, input=SETTINGS.input)
TABLE, CHECKPOINT, RUN = (STATE / name for name in ("checksums", "checkpoint", "run.json"))
LINES = 200
REJECTED = frozenset({3, 70, 71, 140, 150})
NOW = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)


def job_with(done: int) -> Contents:
    """A job of which so many lines are durable."""
    files = CrashFiles()
    files.put(SETTINGS.input, input_of(LINES))
    job = Job.open(SETTINGS, files)
    work_on(job, done)
    job.close()
    return contents(files)


def work_on(job: Job, end: int) -> None:
    lines = input_of(LINES).splitlines()
    for line in range(job.written_count, end):
        if line in REJECTED:
            record = encode_record(line, lines[line], attempts=1, losses=0, errors=["no"])
            job.commit([Rejection(line, record)])
        else:
            job.commit([Results(line, 1, b'{"n":%d}\n' % line)])
        if line % 40 == 0:
            job.sync(job.source.offset_of(job.written_count))
    (job.finish if end == LINES else job.sync)(job.source.offset_of(end))


def bad_lines(block: bytes) -> Iterator[int]:
    return (place for place, line in enumerate(block[:-1].split(b"\n")) if not is_json(line))


def look_at(data: Contents) -> Report:
    """Verify, which changes nothing."""
    files = files_with(data)
    report = verify(find_subject(Disk(files), SETTINGS), bad_lines, files=files)
    assert contents(files) == data
    assert files.open_count == 0
    return report


def repaired(data: Contents) -> Contents:
    files = files_with(data)
    plan = examine(Disk(files), JOB)
    assert plan.is_needed
    copies = mend(Disk(files), plan, NOW)
    open_once(Disk(files), plan)
    assert not examine(Disk(files), JOB).is_needed
    return {path: content for path, content in contents(files).items() if path.parent != copies}


def without(data: Contents, *paths: object) -> Contents:
    return {path: content for path, content in data.items() if path not in paths}


@pytest.fixture(params=[150, LINES])
def done(request: pytest.FixtureRequest) -> int:
    count: int = request.param
    return count


def tables(data: Contents) -> Iterator[Contents]:
    """The job with each byte of its table changed in each way; and without one."""
    yield without(data, TABLE)
    original = data[TABLE]
    for change in CHANGES:
        for at in range(len(original)):
            yield {**data, TABLE: change(original, at)}


# --- the table -----------------------------------------------------------------------------------


def test_every_byte_of_the_table_is_told_from_the_files(done: int) -> None:
    data = job_with(done)
    assert look_at(data).holds
    assert len(data[TABLE]) == 8 * (done // 64 + (done == LINES))
    for damaged in tables(data):
        report = look_at(damaged)
        assert report.is_proved
        (finding,) = report.findings
        assert finding.path == str(TABLE)
        assert finding.text.startswith(str(TABLE))
        assert "`trioline repair /d/out` makes it anew" in finding.text


def test_the_damaged_byte_is_named_to_its_sum(done: int) -> None:
    data = job_with(done)
    for at in range(len(data[TABLE])):
        (finding,) = look_at({**data, TABLE: flipped(data[TABLE], at)}).findings
        assert finding.byte == at // 4 * 4
        assert f"is damaged at byte {at // 4 * 4}. " in finding.text
        (finding,) = look_at({**data, TABLE: cut(data[TABLE], at)}).findings
        assert f"ends at byte {at}, but the job has {len(data[TABLE])} bytes" in finding.text


def test_what_is_behind_the_safe_entries_does_not_matter(done: int) -> None:
    data = job_with(done)
    assert look_at({**data, TABLE: data[TABLE] + b"x" * 100}).holds


def test_a_start_refuses_a_table_that_is_short(done: int) -> None:
    data = job_with(done)
    for damaged in (without(data, TABLE), *({**data, TABLE: data[TABLE][:at]} for at in (0, 15))):
        files = files_with(damaged)
        with pytest.raises(StorageError, match=r"checksums (is missing|ends at byte).*repair"):
            Job.open(SETTINGS, files)
        assert contents(files) == damaged


def test_a_repair_makes_the_table_as_it_was(done: int) -> None:
    data = job_with(done)
    for damaged in tables(data):
        mended = repaired(damaged)
        assert mended[TABLE] == data[TABLE]
        assert mended[SETTINGS.output] == data[SETTINGS.output]
        assert look_at(mended).holds


def test_a_server_that_went_on_over_a_damaged_table_spreads_nothing() -> None:
    data = job_with(150)
    files = files_with({**data, TABLE: flipped(data[TABLE], 5)})
    job = Job.open(SETTINGS, files)
    work_on(job, LINES)
    job.close()
    (finding,) = look_at(contents(files)).findings
    assert (finding.path, finding.byte) == (str(TABLE), 4)
    assert repaired(contents(files))[TABLE] == job_with(LINES)[TABLE]


# --- the table and a file ------------------------------------------------------------------------


def test_an_edit_is_named_beside_a_damaged_table() -> None:
    data = job_with(LINES)
    edited = data[SETTINGS.output].replace(b'{"n":130}', b'{"n":131}')
    one = {**data, SETTINGS.output: edited, TABLE: flipped(data[TABLE], 0)}
    report = look_at(one)
    assert not report.is_proved
    assert [(f.path, f.line) for f in report.findings] == [
        (str(SETTINGS.output), 128),
        (str(TABLE), None),
    ]
    assert "unless" not in report.findings[0].text  # it is the input's sum that is damaged
    both = look_at({**one, TABLE: flipped(data[TABLE], 4)})
    found = [f for f in both.findings if f.path == str(SETTINGS.output)]
    assert [f.line for f in found] == [0, 128]
    assert all("unless it is their checksums that are damaged" in f.text for f in found)


@pytest.mark.parametrize("name", ["in", "out"])
def test_an_edit_is_found_without_the_table(name: str) -> None:
    data = job_with(LINES)
    edited = {**data, FOLDER / name: flipped(data[FOLDER / name], 1_000)}
    for damaged, first in ((without(edited, TABLE), 0), ({**edited, TABLE: data[TABLE][:9]}, 64)):
        report = look_at(damaged)
        assert not report.is_proved
        texts = [f.text for f in report.findings if f.path == str(FOLDER / name)]
        assert any(f"its lines {first} to 199 are not proved" in text for text in texts)


def test_an_edit_that_was_put_into_the_table_too_is_found() -> None:
    data = job_with(LINES)
    edited = data[SETTINGS.output].replace(b'{"n":130}', b'{"n":131}')
    forged = files_with({**data, SETTINGS.output: edited})
    lines = input_of(LINES).splitlines(keepends=True)
    other = CrashFiles()
    other.put(SETTINGS.input, b"".join(lines))
    job = Job.open(SETTINGS, other)
    job.commit([Results(0, LINES, edited)])
    job.finish(job.source.offset_of(LINES))
    job.close()
    forged.put(TABLE, other.get(TABLE))
    report = look_at(contents(forged))
    assert not report.is_proved
    assert "its table of checksums was changed with it" in report.findings[0].text


# --- the rejected file ---------------------------------------------------------------------------


def test_every_byte_of_the_rejected_file_counts(done: int) -> None:
    data = job_with(done)
    original = data[SETTINGS.rejected]
    for at in range(len(original)):
        report = look_at({**data, SETTINGS.rejected: flipped(original, at)})
        (finding,) = report.findings
        assert finding.path == str(SETTINGS.rejected)
        assert "is not what the job wrote" in finding.text
        assert report.is_proved


def test_an_edit_far_from_the_end_of_the_rejected_file_is_found() -> None:
    files = CrashFiles()
    files.put(SETTINGS.input, input_of(LINES))
    job = Job.open(SETTINGS, files)
    lines = input_of(LINES).splitlines()
    for line, text in enumerate(lines):
        record = encode_record(line, text, attempts=1, losses=0, errors=["no"])
        job.commit([Rejection(line, record)])
    job.finish(job.source.offset_of(LINES))
    job.close()
    data = contents(files)
    edited = data[SETTINGS.rejected].replace(b'"no"', b'"on"', 1)
    assert edited[-4_096:] == data[SETTINGS.rejected][-4_096:]
    (finding,) = look_at({**data, SETTINGS.rejected: edited}).findings
    assert "is not what the job wrote in its first" in finding.text
    # A repair of something else does not pass it over: it says what is no longer proved.
    both = {**data, SETTINGS.rejected: edited, TABLE: b""}
    found = examine(Disk(files_with(both)), JOB).found
    assert any("are not what the job wrote" in sentence for sentence in found)
    (finding,) = look_at(repaired(both)).findings
    assert "what its records say of attempts and errors is not proved" in finding.text


def test_one_wrong_number_is_told_once() -> None:
    data = job_with(LINES)
    wrong = data[SETTINGS.rejected].replace(b'"id":3,', b'"id":9,')
    (finding,) = look_at({**data, SETTINGS.rejected: wrong}).findings
    assert finding.text.endswith(
        ": its record of line 9 is not of that line (and 1 more that do not fit)."
    )
    late = data[SETTINGS.rejected].replace(b'"id":3,', b'"id":199,')
    report = look_at({**data, SETTINGS.rejected: late})
    assert ": its line 1 (byte " in report.findings[0].text
    assert "has the record of line 70 after that of line 199 (and " in report.findings[0].text
    assert "goes on after byte" in report.findings[1].text
    assert report.finding_count == 2


# --- what describes the job ----------------------------------------------------------------------


@pytest.mark.parametrize("how", ["missing", "damaged"])
def test_without_its_run_the_files_are_proved_nevertheless(done: int, how: str) -> None:
    data = job_with(done)
    damaged = without(data, RUN) if how == "missing" else {**data, RUN: data[RUN][:-9]}
    report = look_at(damaged)
    (finding,) = report.findings
    assert finding.path == str(RUN)
    assert finding.text.startswith(f"{RUN} is {how}")
    assert "trioline repair" in finding.text
    assert report.is_proved
    edited = {**damaged, SETTINGS.output: flipped(data[SETTINGS.output], 700)}
    found = look_at(edited).findings
    assert [f.path for f in found] == [str(RUN), str(SETTINGS.output)]


@pytest.mark.parametrize("how", ["missing", "damaged", "missing with the run"])
def test_without_its_checkpoint_the_table_proves_what_it_can(done: int, how: str) -> None:
    data = job_with(done)
    damaged = {**data, CHECKPOINT: bytes(8_192)} if how == "damaged" else without(data, CHECKPOINT)
    if how == "missing with the run":
        damaged = without(damaged, RUN)
        if done == LINES:  # nothing is left of a job but its table
            with pytest.raises(UsageError, match=r"no job's output: .*run.json is not there"):
                look_at(damaged)
            return
    with pytest.raises(StorageError) as caught:
        look_at(damaged)
    text = str(caught.value)
    assert text.startswith(f"{CHECKPOINT} is {how.split()[0]}")
    assert "trioline repair" in text
    whole = done // 64 * 64
    assert f"only the first {whole} lines of {SETTINGS.output} are proved to answer those" in text
    with pytest.raises(StorageError, match="only the first 64 lines"):
        look_at({**damaged, SETTINGS.output: flipped(data[SETTINGS.output], 900)})
    with pytest.raises(StorageError, match="Until then nothing is proved"):
        look_at(without(damaged, TABLE))


# --- after a repair ------------------------------------------------------------------------------


def without_journal(data: Contents) -> Contents:
    return {path: content for path, content in data.items() if "journal-" not in path.name}


def test_what_a_repair_took_by_its_form_is_never_said_to_be_proved() -> None:
    data = without_journal(job_with(150))
    mended = repaired(without(data, CHECKPOINT, TABLE))
    for _ in range(2):
        report = look_at(mended)
        assert not report.is_proved
        finding, records = report.findings
        assert (finding.path, finding.line) == (str(SETTINGS.output), 0)
        assert "attempts and errors is not proved" in records.text
        assert "a repair took some of them by their form alone" in finding.text
        files = files_with(mended)
        job = Job.open(SETTINGS, files)
        work_on(job, LINES)
        job.close()
        mended = contents(files)
    retry = Retry.open(SETTINGS, files_with(mended))  # what is only not proved is no damage
    assert retry.line_count > 0
    retry.close()


def test_a_repair_that_has_table_and_journal_assumes_nothing() -> None:
    assert not look_at(repaired(without(job_with(150), CHECKPOINT))).findings


def test_lines_that_a_short_table_does_not_know_are_kept_by_their_form_and_said() -> None:
    data = job_with(LINES)
    output = data[SETTINGS.output]
    end = output.index(b'{"n":190}')
    damaged = {**data, SETTINGS.output: output[: end + 3], TABLE: data[TABLE][:19]}
    plan = examine(Disk(files_with(damaged)), JOB)
    assert f"{TABLE} ends at byte 19, but 32 were safe" in plan.found
    assert "nothing is left to prove some of the lines 128 to 189: they are kept by" in (
        " ".join(plan.found)
    )
    assert (plan.counts.written, plan.assumed) == (190, range(128, 190))
    report = look_at(repaired(damaged))
    assert not report.holds
    assert [(f.line, f.last_line) for f in report.findings] == [(128, 189)]


def test_lines_kept_by_their_form_behind_a_bad_block_are_never_said_to_be_proved() -> None:
    data = job_with(LINES)
    edited = data[SETTINGS.output].replace(b'{"n":65}', b'{"n":66}')
    mended = repaired({**data, SETTINGS.output: edited, TABLE: data[TABLE][:-8]})
    for again in (mended, repaired({**mended, TABLE: b""})):
        files = files_with(again)
        job = Job.open(SETTINGS, files)
        assert list(job.ahead()) == [range(128, LINES)]
        for line in set(range(64, 128)) - REJECTED:
            job.commit([Results(line, 1, b'{"n":%d}\n' % line)])
        for line in (70, 71):
            text = input_of(LINES).splitlines()[line]
            record = encode_record(line, text, attempts=1, losses=0, errors=["no"])
            job.commit([Rejection(line, record)])
        job.finish(job.source.offset_of(LINES))
        job.close()
        assert files.get(SETTINGS.output) == data[SETTINGS.output]
        report = look_at(contents(files))
        assert not report.holds
        assert [(f.line, f.last_line) for f in report.findings] == [(192, 199)]


@pytest.mark.parametrize("at", range(0, 32, 4))
def test_an_entry_that_was_flipped_costs_at_most_its_own_block(at: int) -> None:
    """Beside a bad block nothing tells whether the entry or its lines are other ones."""
    data = job_with(LINES)
    edited = data[SETTINGS.output].replace(b'{"n":65}', b'{"n":66}')
    damaged = {**data, SETTINGS.output: edited, TABLE: flipped(data[TABLE], at)}
    plan = examine(Disk(files_with(damaged)), JOB)
    is_output = at % 8 == 4
    blocks = {1, at // 8} if is_output else {1}
    assert plan.counts.open == sum(min(64, LINES - 64 * block) for block in blocks)
    assert not plan.assumed
    alone = examine(Disk(files_with({**damaged, SETTINGS.output: data[SETTINGS.output]})), JOB)
    assert (alone.counts.open, alone.counts.written) == (0, LINES)


def test_a_repair_never_takes_another_input_for_the_one_that_was_answered() -> None:
    data = job_with(LINES)
    given = attrs.evolve(JOB, input=SETTINGS.input)
    edited = {**without(data, RUN, TABLE), SETTINGS.input: flipped(data[SETTINGS.input], 700)}
    for table in ({}, {TABLE: data[TABLE]}):
        with pytest.raises(StorageError, match="was changed after its lines were answered"):
            examine(Disk(files_with({**edited, **table})), given)


def test_a_shortened_input_is_said_once() -> None:
    data = job_with(LINES)
    text = data[SETTINGS.input]
    files = files_with({**data, SETTINGS.input: text[:-20]})
    report = verify(find_subject(Disk(files), SETTINGS), bad_lines, files=files)
    sizes = [found.text for found in report.findings if f"{len(text) - 20:,}" in found.text]
    assert sizes == [
        f"/d/in ends at byte {len(text) - 20:,}; the job has {len(text):,} bytes in it."
    ]
