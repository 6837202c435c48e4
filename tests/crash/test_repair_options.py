"""With ``run.json`` lost the files say what the job's options were, whatever the command says."""

from __future__ import annotations

from pathlib import Path

import attrs
import pytest
from damage_helpers import FOLDER, STATE, Contents, contents, files_with
from repair_helpers import JOB, repaired
from storage_helpers import CrashFiles, input_line, input_of, settings_for

from trioline.config import JobSettings
from trioline.errors import UsageError
from trioline.storage.entries import Entry, Rejection, Results
from trioline.storage.files import Disk
from trioline.storage.job import Job
from trioline.storage.rejected import encode_record
from trioline.storage.repair.given import Given, find_rejected
from trioline.storage.repair.plan import examine
from trioline.storage.run import RUN_NAME, read_run
from trioline.storage.verify.verification import find_subject, verify

LINES = 200
REJECTED = 70
KNOWN = attrs.evolve(JOB, input=FOLDER / "in")


def job_of(
    *,
    text: bool = False,
    placeholder: bytes = b"null",
    is_rejecting: bool = True,
    rejected: str = "out.rejected",
) -> tuple[Contents, JobSettings]:
    """A finished job, of one rejected line."""
    settings = attrs.evolve(settings_for(FOLDER, text=text), placeholder=placeholder)
    settings = attrs.evolve(settings, rejected=FOLDER / rejected)
    files = CrashFiles()
    files.put(settings.input, input_of(LINES))
    job = Job.open(settings, files)
    job.commit([_entry(line, text, is_rejecting) for line in range(LINES)])
    job.finish(job.source.offset_of(LINES))
    files.kill()
    return contents(files), settings


def _entry(line: int, text: bool, is_rejecting: bool) -> Entry:
    if line == REJECTED and is_rejecting:
        content = input_line(line)
        return Rejection(line, encode_record(line, content, attempts=1, losses=0, errors=["no"]))
    return Results(line, 1, b"%d words\n" % line if text and line > 3 else b"%d\n" % line)


def without(data: Contents, *names: str) -> Contents:
    return {path: content for path, content in data.items() if path.name not in names}


LOST = [(RUN_NAME,), (RUN_NAME, "checkpoint"), (RUN_NAME, "checkpoint", "checksums")]


def check_the_same(data: Contents, job: Given, settings: JobSettings) -> None:
    files, plan = repaired(data, job)
    run = read_run(Disk(files), STATE)
    assert run is not None
    assert (run.text, run.placeholder.encode()) == (settings.text, settings.placeholder)
    assert plan.base.rejected_count == 1
    assert plan.counts.open == 0
    Job.open(settings, files).close()


@pytest.mark.parametrize("lost", LOST)
@pytest.mark.parametrize("given", [None, b'{"failed":true}'])
def test_the_placeholder_is_read_where_a_record_is(
    lost: tuple[str, ...], given: bytes | None
) -> None:
    data, settings = job_of(placeholder=b'{"failed":true}')
    job = attrs.evolve(KNOWN, placeholder=given)
    check_the_same(without(data, *lost), job, settings)


@pytest.mark.parametrize("lost", LOST)
def test_another_placeholder_is_refused_with_its_place(lost: tuple[str, ...]) -> None:
    data, _ = job_of(placeholder=b"0")
    damaged = without(data, *lost)
    byte = len(b"".join(data[FOLDER / "out"].splitlines(keepends=True)[:REJECTED]))
    files = files_with(damaged)
    with pytest.raises(UsageError) as refused:
        examine(Disk(files), attrs.evolve(KNOWN, placeholder=b"null"))
    said = str(refused.value)
    assert f"line {REJECTED} of /d/out (byte {byte}) is '0'" in said
    assert "say --placeholder 0" in said
    assert contents(files) == damaged


@pytest.mark.parametrize("lost", LOST[:2])
@pytest.mark.parametrize("given", [None, True])
def test_a_line_that_is_no_json_tells_of_text(lost: tuple[str, ...], given: bool | None) -> None:
    data, settings = job_of(text=True, placeholder=b"")
    check_the_same(without(data, *lost), attrs.evolve(KNOWN, text=given), settings)


def test_that_it_was_no_job_of_text_is_refused_with_the_place() -> None:
    data, _ = job_of(text=True, placeholder=b"")
    with pytest.raises(UsageError, match=r"line 4 of /d/out \(byte 8\) is '4 words'"):
        examine(Disk(files_with(without(data, RUN_NAME))), attrs.evolve(KNOWN, text=False))


def test_a_line_that_is_no_json_is_asked_about_where_no_checksum_proves_it() -> None:
    data, settings = job_of(text=True, placeholder=b"")
    damaged = without(data, *LOST[2])
    with pytest.raises(UsageError, match=r"line 4 of /d/out \(byte 8\).*--text.*--no-text"):
        examine(Disk(files_with(damaged)), KNOWN)
    check_the_same(damaged, attrs.evolve(KNOWN, text=True), settings)
    data, settings = job_of(is_rejecting=False)
    damaged = without(data, *LOST[2])
    damaged[settings.output] = damaged[settings.output].replace(b"\n4\n", b"\n!\n", 1)
    plan = examine(Disk(files_with(damaged)), attrs.evolve(KNOWN, text=False))
    assert plan.base.lines == 4


def test_a_damaged_line_tells_nothing_where_others_are_proved() -> None:
    data, settings = job_of(placeholder=b"0")
    output = data[settings.output].replace(b"\n70\n", b"\n!!\n", 1).replace(b"\n3\n", b"\n!\n", 1)
    _, plan = repaired({**without(data, RUN_NAME), settings.output: output}, KNOWN)
    assert plan.settings.placeholder == b"0"
    assert not plan.settings.text


def test_what_run_json_has_otherwise_is_refused() -> None:
    data, _ = job_of()
    for other in (attrs.evolve(JOB, placeholder=b"0"), attrs.evolve(JOB, text=True)):
        with pytest.raises(UsageError, match=r"is not what /d/out\.trioline/run\.json has"):
            examine(Disk(files_with(data)), other)


def test_a_rejected_file_of_somebody_else_is_refused() -> None:
    data, _ = job_of()
    damaged = {**without(data, RUN_NAME), FOLDER / "notes": b"mine\n"}
    with pytest.raises(UsageError, match="/d/notes, given for --rejected, has no record"):
        examine(Disk(files_with(damaged)), attrs.evolve(KNOWN, rejected=FOLDER / "notes"))


@pytest.mark.parametrize("lost", LOST)
@pytest.mark.parametrize("given", [None, FOLDER / "bad"])
def test_the_rejected_file_is_the_one_with_the_mark(
    lost: tuple[str, ...], given: Path | None
) -> None:
    data, settings = job_of(rejected="bad")
    damaged = without(data, *lost)
    check_the_same(damaged, attrs.evolve(KNOWN, rejected=given), settings)
    files, plan = repaired(damaged, attrs.evolve(KNOWN, rejected=given))
    assert files.get(settings.rejected) == data[settings.rejected]
    assert not files.has(FOLDER / "out.rejected")
    assert any(step.endswith("--rejected /d/bad") for step in plan.steps)
    assert find_rejected(Disk(files_with(damaged)), KNOWN) == settings.rejected


@pytest.mark.parametrize("lost", LOST)
@pytest.mark.parametrize("name", ["out.rejected", "other"])
def test_a_rejected_file_that_the_mark_contradicts_is_refused(
    lost: tuple[str, ...], name: str
) -> None:
    data, _ = job_of(rejected="bad")
    damaged = without(data, *lost)
    with pytest.raises(
        UsageError, match=r"/d/bad\.trioline says that /d/bad is\. .*--rejected /d/bad"
    ):
        examine(Disk(files_with(damaged)), attrs.evolve(KNOWN, rejected=FOLDER / name))


def test_two_marked_files_are_asked_about() -> None:
    data, settings = job_of(rejected="bad")
    damaged = without(data, *LOST[1])
    damaged[FOLDER / "worse.trioline"] = b'{"job":"1","output":"out"}'
    with pytest.raises(UsageError, match=r"/d/bad and /d/worse are marked .* --rejected which"):
        examine(Disk(files_with(damaged)), KNOWN)
    check_the_same(damaged, attrs.evolve(KNOWN, rejected=settings.rejected), settings)
    others = {
        **without(data, RUN_NAME),
        FOLDER / "worse.trioline": damaged.pop(FOLDER / "worse.trioline"),
    }
    check_the_same(others, KNOWN, settings)  # the checkpoint tells them apart


@pytest.mark.parametrize("lost", LOST)
def test_another_rejected_file_than_the_one_with_the_records_is_refused(
    lost: tuple[str, ...],
) -> None:
    data, _ = job_of()
    files = files_with(without(data, *lost))
    with pytest.raises(UsageError, match=r"/d/bad, .*: /d/out\.rejected has its records"):
        examine(Disk(files), attrs.evolve(KNOWN, rejected=FOLDER / "bad"))


@pytest.mark.parametrize("lost", LOST[:2])
def test_another_input_is_refused(lost: tuple[str, ...]) -> None:
    data, _ = job_of()
    damaged = {**without(data, *lost), FOLDER / "other": b"other\n" * LINES}
    files = files_with(damaged)
    with pytest.raises(UsageError, match="/d/other is not the input"):
        examine(Disk(files), attrs.evolve(KNOWN, input=FOLDER / "other"))
    assert contents(files) == damaged


REJECTED_LOST = [(RUN_NAME, "out.rejected"), (RUN_NAME, "bad", "bad.trioline")]


@pytest.mark.parametrize("lost", REJECTED_LOST)
@pytest.mark.parametrize("text", [False, True])
def test_rejected_lines_without_a_record_are_asked_about(
    lost: tuple[str, ...], *, text: bool
) -> None:
    """Else their placeholders would pass for answers."""
    placeholder = b"N/A" if text else b'{"bad":1}'
    data, settings = job_of(
        text=text, placeholder=placeholder, rejected=lost[1].removesuffix(".trioline")
    )
    damaged = without(data, *lost)
    with pytest.raises(UsageError, match=r"1 line of this job .*--rejected, .*--placeholder"):
        examine(Disk(files_with(damaged)), KNOWN)
    for said in (
        attrs.evolve(KNOWN, placeholder=b'"x"'),
        attrs.evolve(KNOWN, rejected=FOLDER / "out.rejected"),
    ):
        with pytest.raises(UsageError, match=r"1 line of this job .*is in 0 places of /d/out:"):
            examine(Disk(files_with(damaged)), said)
    if lost[1] == "bad":
        kept = {**damaged, settings.rejected: data[settings.rejected]}
        check_the_same(kept, attrs.evolve(KNOWN, rejected=settings.rejected), settings)
    files, plan = repaired(damaged, attrs.evolve(KNOWN, placeholder=placeholder))
    assert "make records for 1 placeholder" in " ".join(plan.steps)
    assert not is_proved(files, settings)


def test_a_placeholder_may_be_among_the_lines_that_are_lost() -> None:
    data, settings = job_of(placeholder=b"0")
    damaged = without(data, RUN_NAME, "out.rejected")
    damaged[settings.output] = b"".join(data[settings.output].splitlines(keepends=True)[1:64])
    with pytest.raises(UsageError, match="say with --placeholder what stands there"):
        examine(Disk(files_with(damaged)), attrs.evolve(KNOWN, rejected=FOLDER / "out.rejected"))
    _, plan = repaired(damaged, attrs.evolve(KNOWN, placeholder=b"0"))
    assert plan.settings.placeholder == b"0"


@pytest.mark.parametrize("names", [("out.rejected",), ()])
def test_that_no_line_was_rejected_is_not_proved_where_nothing_tells(
    names: tuple[str, ...],
) -> None:
    data, settings = job_of(placeholder=b'{"bad":1}')
    damaged = {**data, settings.rejected: b""}
    files, _ = repaired(without(damaged, RUN_NAME, "checkpoint", *names), KNOWN)
    assert not is_proved(files, settings)


def is_proved(files: CrashFiles, settings: JobSettings) -> bool:
    given = attrs.evolve(settings, rejected=FOLDER / "out.rejected")
    return verify(find_subject(Disk(files), given), lambda _: (), files=files).holds
