"""Whatever is edited in a job's files is found; what is as it was holds."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from hypothesis import assume, given
from hypothesis import strategies as st
from storage_helpers import CrashFiles, settings_for

from trioline.storage import Job, Rejection, Results, encode_record
from trioline.storage.checksums import ENTRY_BYTES, Proof
from trioline.storage.files import Disk
from trioline.storage.verify.findings import Report
from trioline.storage.verify.verification import find_subject, verify
from trioline.wire.codec import is_json

FOLDER = Path("/d")
SETTINGS = settings_for(FOLDER)
contents = st.sampled_from([b"", b"a", b"bb bb", b"\r", b"\0", b"\xff", b"x" * 200])


def bad_lines(block: bytes) -> Iterator[int]:
    lines = block[:-1].split(b"\n")
    return (place for place, line in enumerate(lines) if not is_json(line))


@st.composite
def jobs(draw: st.DrawFn, min_done: int = 0) -> CrashFiles:
    """A job, finished or not, with some rejected lines; without findings."""
    files = CrashFiles()
    lines = draw(st.lists(contents, min_size=min_done + 2, max_size=150))
    files.put(SETTINGS.input, b"\n".join(lines) + draw(st.sampled_from([b"", b"\n"])))
    text = files.get(SETTINGS.input)
    count = text.count(b"\n") + (text[-1:] not in (b"", b"\n"))
    done = draw(st.integers(min_done, count))
    numbers = st.integers(0, max(done - 1, 0))
    rejected = draw(st.sets(numbers, max_size=5))
    job = Job.open(SETTINGS, files)
    for line in range(done):
        if line in rejected:
            record = encode_record(line, lines[line], attempts=1, losses=0, errors=["é"])
            job.commit([Rejection(line, record)])
        else:
            job.commit([Results(line, 1, b'{"n":%d}\n' % (line % 7))])
        if line % 50 == 20:
            job.sync(job.source.offset_of(job.written_count))
    (job.finish if done == count else job.sync)(job.source.offset_of(done))
    job.close()
    return files


def look_at(files: CrashFiles) -> Report:
    return verify(find_subject(Disk(files), SETTINGS), bad_lines, files=files)


@given(jobs())
def test_a_job_as_it_was_written_holds(files: CrashFiles) -> None:
    report = look_at(files)
    assert report.holds, report.findings
    assert report.output_lines == report.input_lines == report.line_count
    assert report.is_proved
    assert files.open_count == 0


@given(
    jobs(),
    st.sampled_from([SETTINGS.input, SETTINGS.output, SETTINGS.rejected]),
    st.integers(0, 1 << 20),
    st.integers(0, 3),
    st.binary(max_size=3),
)
def test_any_edit_of_what_was_written_is_found(
    files: CrashFiles, path: Path, at: int, cut: int, put: bytes
) -> None:
    subject = find_subject(Disk(files), SETTINGS)
    assert subject.run is not None
    written = {
        SETTINGS.input: subject.run.input_bytes,
        SETTINGS.output: subject.last.output_bytes,
        SETTINGS.rejected: subject.last.rejected_bytes,
    }[path]
    before = files.get(path)
    assume(written > 0)
    at %= written
    after = before[:at] + put + before[at + cut :]
    assume(after != before)
    files.put(path, after)
    report = look_at(files)
    assert not report.holds
    assert {finding.path for finding in report.findings} == {str(path)}
    assert report.is_proved or path != SETTINGS.rejected


@given(jobs(), st.integers(0, 1 << 20), st.integers(0, 3), st.binary(max_size=3))
def test_any_edit_of_the_table_is_told_from_one_of_the_files(
    files: CrashFiles, at: int, cut: int, put: bytes
) -> None:
    path = SETTINGS.state / "checksums"
    last = find_subject(Disk(files), SETTINGS).last
    before, needed = files.get(path), Proof.of_output(last).block_count * ENTRY_BYTES
    at %= len(before) + 1
    after = before[:at] + put + before[at + cut :]
    files.put(path, after)
    report = look_at(files)
    assert report.is_proved
    assert report.holds == (after[:needed] == before[:needed])
    assert {finding.path for finding in report.findings} <= {str(path)}


@given(jobs(min_done=2), st.data())
def test_two_lines_that_changed_places_are_found_within_their_blocks(
    files: CrashFiles, data: st.DataObject
) -> None:
    lines = files.get(SETTINGS.output).splitlines(keepends=True)
    assume(len(lines) > 1)
    one, two = data.draw(st.lists(st.integers(0, len(lines) - 1), min_size=2, max_size=2))
    assume(lines[one] != lines[two])
    lines[one], lines[two] = lines[two], lines[one]
    files.put(SETTINGS.output, b"".join(lines))
    report = look_at(files)
    assert not report.holds
    blocks = [f for f in report.findings if f.last_line is not None]
    for line in (one, two):
        assert any((f.line or 0) <= line <= (f.last_line or 0) for f in blocks)
    assert all((f.last_line or 0) - (f.line or 0) < 64 * 3 for f in blocks)


@given(jobs(min_done=1), st.data())
def test_broken_json_is_named_by_its_line(files: CrashFiles, data: st.DataObject) -> None:
    lines = files.get(SETTINGS.output).splitlines(keepends=True)
    line = data.draw(st.integers(0, len(lines) - 1))
    lines[line] = lines[line][:-2] + b"{\n"
    files.put(SETTINGS.output, b"".join(lines))
    found = [f for f in look_at(files).findings if f.line == line and f.last_line is None]
    assert found
    assert found[0].byte == len(b"".join(lines[:line]))
