"""What a retry takes and what it refuses, and what verification says of odd states."""

from __future__ import annotations

import errno
import itertools
import os
import re
from pathlib import Path

import attrs
import pytest
from storage_helpers import CrashFiles, settings_for

from trioline.config import JobSettings
from trioline.errors import DiskFull, JobLocked, JobMismatch, StorageError, UsageError
from trioline.storage import Job, Rejection, Results, encode_record
from trioline.storage.files import Disk
from trioline.storage.retry.retry import Retry
from trioline.storage.retry_files import RetryFiles
from trioline.storage.verify.pieces import READ_BYTES, pieces
from trioline.storage.verify.verification import find_subject, verify

FOLDER = Path("/d")
LONG = b"y" * 3_000_000
LINES = [b'{"a":1}', b"", b"\xff\r", LONG, b'"last"']


def make(*, is_finished: bool = True, text: bool = False) -> tuple[CrashFiles, JobSettings]:
    """A job in which all but line 0 were rejected; its last line has no newline."""
    files = CrashFiles()
    settings = settings_for(FOLDER, text=text)
    files.put(settings.input, b"\n".join(LINES))
    job = Job.open(settings, files)
    job.commit([Results(0, 1, b"1\n")])
    for line, content in enumerate(LINES[1:], 1):
        told = len(content) if content is LONG else content
        record = encode_record(line, told, attempts=1, losses=0, errors=["no"])
        job.commit([Rejection(line, record)])
    if is_finished:
        job.finish(job.source.offset_of(len(LINES)))
    else:
        job.sync(job.source.offset_of(len(LINES)))
    job.close()
    return files, settings


def answer_all(retry: Retry, files: CrashFiles, results: bytes) -> None:
    """Run all four lines of a retry again, to its end."""
    job = Job.open(retry.settings, files)
    job.commit([Results(0, 4, results)])
    job.finish(job.source.offset_of(4))
    job.close()


def test_the_lines_come_from_the_input_byte_for_byte() -> None:
    files, settings = make()
    retry = Retry.open(settings, files)
    assert retry.line_count == 4
    assert retry.numbers is not None
    assert list(retry.numbers) == [1, 2, 3, 4]
    assert files.get(retry.settings.input) == b"".join(line + b"\n" for line in LINES[1:])
    assert not retry.is_served
    retry.close()
    assert files.open_count == 0


@pytest.mark.parametrize("text", [False, True])
def test_results_take_the_places_of_placeholders(*, text: bool) -> None:
    files, settings = make(text=text)
    retry = Retry.open(settings, files)
    job = Job.open(retry.settings, files)
    assert job.settings.text is text
    job.commit([Results(0, 4, b"22\n333\n4\n55555\n")])
    job.finish(job.source.offset_of(4))
    job.close()
    assert retry.is_served
    assert retry.put_in_place() == 0
    retry.close()
    assert files.get(settings.output) == b"1\n22\n333\n4\n55555\n"
    assert files.get(settings.rejected) == b""
    report = verify(find_subject(Disk(files), settings), lambda _: (), files=files)
    assert report.holds
    assert (report.rejected_count, report.is_proved) == (0, True)
    assert Retry.open(settings, files).line_count == 0


def test_it_holds_the_jobs_lock() -> None:
    files, settings = make()
    retry = Retry.open(settings, files)
    with pytest.raises(JobLocked):
        Job.open(settings, files)
    retry.close()
    Job.open(settings, files).close()


def test_without_its_lock_it_lets_nobody_in_and_replaces_nothing() -> None:
    files, settings = make()
    retry = Retry.open(settings, files)
    answer_all(retry, files, b"22\n333\n4\n55555\n")
    files.unlink(settings.state / "lock")
    with pytest.raises(JobLocked, match="at work on /d/out"):
        Job.open(attrs.evolve(settings, fresh=True), files)
    before = files.get(settings.output)
    with pytest.raises(StorageError, match="lock was moved or removed"):
        retry.put_in_place()
    assert files.get(settings.output) == before
    retry.close()
    again = Retry.open(settings, files)
    assert again.put_in_place() == 0
    again.close()


def test_what_cannot_be_retried_is_refused_and_nothing_is_left_open() -> None:
    files, settings = make(is_finished=False)
    with pytest.raises(UsageError, match="is not over"):
        Retry.open(settings, files)
    with pytest.raises(UsageError, match="There is no job"):
        Retry.open(attrs.evolve(settings, output=FOLDER / "other"), files)
    with pytest.raises(JobMismatch, match="with that option as the job has it") as option:
        Retry.open(attrs.evolve(settings, text=True), files)
    text = files.get(settings.input)
    for edited in (text[:-2] + b'!"', text + b"!"):
        files.put(settings.input, edited)
        with pytest.raises(JobMismatch, match="Put the input back as it was") as given:
            Retry.open(settings, files)
        for said in (str(option.value), str(given.value)):
            assert "--fresh" not in said
            assert "another output" not in said
    assert files.open_count == 0


@pytest.mark.parametrize("name", ["run.json", "checkpoint"])
def test_a_job_that_lost_what_describes_it_is_sent_to_repair(name: str) -> None:
    files, settings = make()
    files.unlink(settings.state / name)
    with pytest.raises(StorageError, match=f"{name} is missing.* `trioline repair /d/out`"):
        Retry.open(settings, files)
    assert files.open_count == 0


@pytest.mark.parametrize("name", ["run.json", "checkpoint"])
def test_damage_of_the_retrys_own_files_names_the_folder_to_remove(name: str) -> None:
    """There is no ``retry --fresh``, and ``serve --fresh`` would throw the job itself away."""
    files, settings = make()
    retry = Retry.open(settings, files)
    Job.open(retry.settings, files).close()
    retry.close()
    files.put(retry.settings.state / name, b"")
    retry = Retry.open(settings, files)
    with pytest.raises(
        StorageError, match=r"last resort is to remove /d/out.trioline/retry:"
    ) as it:
        Job.open(retry.settings, files)
    assert "--fresh" not in str(it.value)
    retry.close()


def test_a_damaged_rejected_file_is_named() -> None:
    files, settings = make()
    records = files.get(settings.rejected)
    files.put(settings.rejected, records.replace(b'"id":2', b'"id":1'))
    with pytest.raises(StorageError, match=r"out.rejected"):
        Retry.open(settings, files)
    files.put(settings.rejected, records)
    files.put(settings.output, files.get(settings.output) + b"more\n")
    with pytest.raises(StorageError, match=r"/d/out goes on after byte 22, .*`trioline repair"):
        Retry.open(settings, files)


def test_a_plan_of_another_job_is_not_followed() -> None:
    files, settings = make()
    Retry.open(settings, files).close()
    plan = RetryFiles(settings).plan
    files.put(plan, re.sub(rb'"run_id":"\w+"', b'"run_id":"%s"' % (b"a" * 32), files.get(plan)))
    with pytest.raises(StorageError, match="Remove the folder"):
        Retry.open(settings, files)
    files.put(plan, b"{")
    with pytest.raises(StorageError, match="is damaged"):
        Retry.open(settings, files)


def test_files_cut_under_a_retry_are_named_and_nothing_changes() -> None:
    files, settings = make()
    retry = Retry.open(settings, files)
    assert retry.numbers is not None
    answer_all(retry, files, b"2\n3\n4\n5\n")
    before = files.get(settings.output)
    path = RetryFiles(settings).numbers
    whole = files.get(path)
    for end in (0, 9, 24):
        fd = files.open(path, os.O_RDWR)
        files.truncate(fd, end)
        files.close(fd)
        with pytest.raises(StorageError, match=r"/d/out.trioline/retry/numbers has become shorter"):
            retry.put_in_place()
        with pytest.raises(StorageError, match=r"/d/out.trioline/retry/numbers has become shorter"):
            retry.numbers[3]
        retry.close()
        files.put(path, whole[:end])
        with pytest.raises(StorageError, match=r"retry/numbers is damaged.* remove /d/out.trio"):
            Retry.open(settings, files)
        files.put(path, whole)
        retry = Retry.open(settings, files)
        assert retry.numbers is not None
    results = RetryFiles(settings).results
    for content in (b"2\n3\n4\n", b"2\n3\n4\n6\n", b"2\n3\n4\n5\n6\n"):
        files.put(results, content)
        with pytest.raises(StorageError, match=r"/d/out.trioline/retry/results was changed"):
            retry.put_in_place()
    assert files.get(settings.output) == before
    files.put(results, b"2\n3\n4\n5\n")
    assert retry.put_in_place() == 0
    retry.close()


def test_long_results_that_were_changed_are_named() -> None:
    files, settings = make()
    retry = Retry.open(settings, files)
    job = Job.open(retry.settings, files)
    content = b"2\n3\n4\n" + b"5" * 10_000 + b"\n"
    job.commit([Results(0, 4, content)])
    job.finish(job.source.offset_of(4))
    job.close()
    before = files.get(settings.output)
    files.put(RetryFiles(settings).results, b"3\n2\n4\n" + content[6:])
    with pytest.raises(
        StorageError, match=r"retry/results was changed: .*not what the retry.*remove"
    ):
        retry.put_in_place()
    assert files.get(settings.output) == before
    retry.close()


def test_without_room_for_the_copy_nothing_changes_and_nothing_is_left() -> None:
    files, settings = make()
    retry = Retry.open(settings, files)
    answer_all(retry, files, b"2\n3\n4\n5\n")
    before = files.get(settings.output)
    files.fail = lambda call, path, _: (
        errno.ENOSPC if call == "pwrite" and path.name == ".out.trioline-new" else None
    )
    with pytest.raises(DiskFull):
        retry.put_in_place()
    files.fail = None
    assert files.get(settings.output) == before
    assert not files.has(FOLDER / ".out.trioline-new")
    assert retry.put_in_place() == 0
    retry.close()


def test_a_full_disk_anywhere_in_the_last_step_is_gone_on_from() -> None:
    full_at = itertools.count()
    while is_full_at(next(full_at)):
        pass
    assert next(full_at) > 5


def is_full_at(full_at: int) -> bool:
    """Whether that call of the last step, the first being 0, can find the disk full."""
    files, settings = make()
    retry = Retry.open(settings, files)
    answer_all(retry, files, b"2\n3\n4\n5\n")
    seen = itertools.count()
    files.fail = lambda call, path, _: (
        errno.ENOSPC if call in ("rename", "pwrite") and next(seen) == full_at else None
    )
    is_full = False
    try:
        assert retry.put_in_place() == 0
    except DiskFull:
        is_full = True
        assert retry.put_in_place() == 0
    retry.close()
    assert files.open_count == 0
    assert files.get(settings.output) == b"1\n2\n3\n4\n5\n"
    assert files.get(settings.rejected) == b""
    Job.open(settings, files).close()
    return is_full


@pytest.mark.parametrize("held", [1, 100, 1 << 20])
def test_pieces_are_the_file_whatever_its_lines_are(held: int) -> None:
    data = b"a\n\n" + b"b" * (READ_BYTES + 5) + b"\nc\n" + b"d" * (2 * READ_BYTES) + b"\n\ne"
    found = list(pieces(lambda count, at: data[at : at + count], len(data), max_held_bytes=held))
    assert b"".join(piece.data for piece in found) == data
    assert sum(piece.count for piece in found) == 7
    offset = line = 0
    for piece in found:
        assert (piece.offset, piece.first) == (offset, line)
        offset += len(piece.data)
        line += piece.count
        assert piece.is_part or piece.lines() == piece.data.split(b"\n")[: piece.count]


def test_verify_of_what_is_not_there() -> None:
    files, settings = make()
    with pytest.raises(UsageError, match="no job's output"):
        find_subject(Disk(files), attrs.evolve(settings, output=FOLDER / "other"))
    with pytest.raises(UsageError, match="without --text"):
        find_subject(Disk(files), attrs.evolve(settings, text=True))
    subject = find_subject(Disk(files), settings)
    files.unlink(settings.output)
    report = verify(subject, lambda _: (), files=files)
    assert [finding.text for finding in report.findings] == ["/d/out is missing."]


def test_a_record_of_another_line_is_named() -> None:
    files, settings = make()
    files.put(settings.rejected, files.get(settings.rejected).replace(b"last", b"lost"))
    report = verify(find_subject(Disk(files), settings), lambda _: (), files=files)
    (found,) = report.findings
    assert found.path == str(settings.rejected)
    assert found.text.endswith(": its record of line 4 is not of that line.")
    assert report.is_proved


def test_a_result_in_the_place_of_a_placeholder_is_named() -> None:
    files, settings = make()
    files.put(settings.output, files.get(settings.output).replace(b"null", b"true", 1))
    report = verify(find_subject(Disk(files), settings), lambda _: (), files=files)
    block, found = report.findings
    assert (block.line, block.last_line) == (0, 4)
    assert (found.line, found.byte) == (1, 2)
    assert "is not the placeholder" in found.text


def test_a_table_from_before_a_retry_is_told_from_an_edited_output() -> None:
    files, settings = make()
    before = files.get(settings.state / "checksums")
    retry = Retry.open(settings, files)
    answer_all(retry, files, b"22\n333\n4\n55555\n")
    retry.put_in_place()
    retry.close()
    files.put(settings.state / "checksums", before)
    report = verify(find_subject(Disk(files), settings), lambda _: (), files=files)
    (found,) = report.findings
    assert (found.path, found.byte) == (str(settings.state / "checksums"), 4)
    assert report.is_proved


def test_a_retry_puts_nothing_beside_a_damaged_table() -> None:
    files, settings = make()
    retry = Retry.open(settings, files)
    answer_all(retry, files, b"22\n333\n4\n55555\n")
    files.put(settings.state / "checksums", bytes(8))
    with pytest.raises(StorageError, match=r"checksums is not what.*trioline repair"):
        retry.put_in_place()
    retry.close()
    assert b"22" not in files.get(settings.output)


def test_findings_are_told_up_to_a_number_and_then_counted() -> None:
    files, settings = make()
    subject = find_subject(Disk(files), settings)
    report = verify(subject, lambda block: [0] * 50, files=files)
    assert len(report.findings) == 20
    assert report.finding_count == 50
