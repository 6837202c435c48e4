"""The table of checksums: what it says is what the files say, however they came to be."""

from __future__ import annotations

import errno
import os
import zlib
from array import array
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from storage_helpers import CrashFiles, input_of, settings_for

from trioline.config import Fsync
from trioline.errors import DiskFull, StorageError
from trioline.storage import Job, Results
from trioline.storage.checksums import BLOCK_LINES, CHECKSUMS_NAME, UNKNOWN, Entry, Table, Tally
from trioline.storage.files import Disk
from trioline.storage.verify.verification import find_subject, verify

FOLDER = Path("/d")


def sums_of(data: bytes) -> list[int]:
    """The sums of all blocks, the last one included, in the plainest way."""
    lines = data.split(b"\n")
    lines = [line + b"\n" for line in lines[:-1]] + ([lines[-1]] if lines[-1] else [])
    return [
        zlib.crc32(b"".join(lines[first : first + BLOCK_LINES]))
        for first in range(0, len(lines), BLOCK_LINES)
    ]


def table_of(files: CrashFiles, count: int) -> list[Entry]:
    settings = settings_for(FOLDER)
    table = Table.open(Disk(files), settings.state / CHECKSUMS_NAME)
    assert table is not None
    entries = table.read(0, count)
    table.close()
    return entries


def entries_of(files: CrashFiles) -> list[Entry]:
    settings = settings_for(FOLDER)
    pairs = zip(
        sums_of(files.get(settings.input)), sums_of(files.get(settings.output)), strict=True
    )
    return [Entry(*pair) for pair in pairs]


def results(first: int, end: int) -> Results:
    return Results(first, end - first, b"".join(b"%d\n" % line for line in range(first, end)))


texts = st.lists(st.sampled_from([b"", b"a", b"bb" * 40, b"\r", b"\0"]), max_size=300).map(
    b"\n".join
)


@given(texts, st.lists(st.integers(0, 5_000), max_size=6))
def test_however_the_bytes_are_cut_the_sums_are_the_same(text: bytes, cuts: list[int]) -> None:
    tally = Tally()
    ends = sorted(min(cut, len(text)) for cut in cuts)
    for begin, end in zip([0, *ends], [*ends, len(text)], strict=True):
        tally.feed(text[begin:end])
    tally.end()
    assert tally.line_count == text.count(b"\n") + (text[-1:] not in (b"", b"\n"))
    tally.end_block()
    assert list(tally.sums) == sums_of(text)


@given(texts, st.integers(0, 300))
def test_it_goes_on_from_the_middle_of_a_block(text: bytes, line: int) -> None:
    text += b"\n"
    parts = text.split(b"\n")
    line = min(line, len(parts) - 1)
    before = b"".join(part + b"\n" for part in parts[:line])
    first = Tally()
    first.feed(before)
    second = Tally(first.line_count, first.crc)
    second.feed(text[len(before) :])
    second.end()
    second.end_block()
    assert [*first.sums, *second.sums] == sums_of(text)


@pytest.mark.parametrize("fsync", Fsync)
@pytest.mark.parametrize("count", [1, 63, 64, 65, 128, 300])
def test_a_jobs_table_is_right_at_every_durable_point(count: int, fsync: Fsync) -> None:
    files = CrashFiles()
    settings = settings_for(FOLDER, fsync=fsync)
    files.put(settings.input, input_of(count)[:-1])  # the last line has no newline
    for end in (*range(7, count, 50), count):
        job = Job.open(settings, files)
        for line in range(job.written_count, end, 13):
            job.commit([results(line, min(line + 13, end))])
            job.sync(job.source.offset_of(job.written_count))
            whole = job.written_count // BLOCK_LINES
            lines = files.get(settings.input).splitlines(keepends=True)[: whole * BLOCK_LINES]
            known = [entry.input_crc for entry in table_of(files, whole)]
            assert known == sums_of(b"".join(lines))
        job.close()
    job = Job.open(settings, files)
    job.finish(job.source.offset_of(count))
    job.close()
    assert table_of(files, len(entries_of(files))) == entries_of(files)
    assert files.open_count == 0


def test_a_full_disk_changes_nothing_and_the_sync_is_repeated() -> None:
    files = CrashFiles()
    settings = settings_for(FOLDER)
    files.put(settings.input, input_of(130))
    job = Job.open(settings, files)
    job.commit([results(0, 130)])
    files.fail = lambda call, path, _: (
        errno.ENOSPC if call == "pwrite" and path.name == CHECKSUMS_NAME else None
    )
    with pytest.raises(DiskFull):
        job.finish(job.source.offset_of(130))
    files.fail = None
    job.finish(job.source.offset_of(130))
    job.close()
    assert table_of(files, 3) == entries_of(files)


def test_a_finish_that_is_repeated_for_a_full_disk_counts_its_last_block_once() -> None:
    files = CrashFiles()
    settings = settings_for(FOLDER)
    files.put(settings.input, input_of(130))
    job = Job.open(settings, files)
    job.commit([results(0, 130)])
    writes: list[Path] = []

    def full_the_second_time(call: str, path: Path, _count: int) -> int | None:
        if call == "pwrite" and path.name == "checkpoint":
            writes.append(path)
        return errno.ENOSPC if len(writes) == 2 else None

    files.fail = full_the_second_time
    with pytest.raises(DiskFull):
        job.finish(job.source.offset_of(130))
    files.fail = None
    job.finish(job.source.offset_of(130))
    job.close()
    report = verify(find_subject(Disk(files), settings), lambda _: (), files=files)
    assert report.holds, report.findings


def test_the_entries_are_safe_before_the_checkpoint_that_counts_on_them() -> None:
    files = CrashFiles()
    settings = settings_for(FOLDER)
    files.put(settings.input, input_of(130))
    job = Job.open(settings, files)
    job.commit([results(0, 130)])
    calls: list[tuple[str, str]] = []

    def note(call: str, path: Path, _count: int) -> None:
        calls.append((call, path.name))

    files.fail = note
    job.sync(job.source.offset_of(130))
    job.close()
    assert calls.index(("sync", CHECKSUMS_NAME)) < calls.index(("pwrite", "checkpoint"))


def test_an_input_that_changes_under_the_job_is_noticed() -> None:
    files = CrashFiles()
    settings = settings_for(FOLDER)
    files.put(settings.input, input_of(130))
    job = Job.open(settings, files)
    job.commit([results(0, 130)])
    offset = job.source.offset_of(130)
    fd = files.open(settings.input, os.O_RDWR)
    files.pwrite(fd, input_of(130).replace(b"\n", b" ", 1), 0)
    files.close(fd)
    with pytest.raises(StorageError, match=r"/d/in has changed.*129 lines where 130 were"):
        job.sync(offset)
    job.close()


def test_an_input_that_is_replaced_before_the_first_durable_point_is_noticed() -> None:
    files = CrashFiles()
    settings = settings_for(FOLDER)
    files.put(settings.input, input_of(130))
    job = Job.open(settings, files)
    job.commit([results(0, 130)])
    offset = job.source.offset_of(130)
    files.put(settings.input, input_of(130).replace(b"line", b"LINE"))
    with pytest.raises(StorageError, match="/d/in was changed, replaced or touched while"):
        job.sync(offset)
    job.close()


def test_a_table_is_read_beyond_its_end_as_unknown() -> None:
    files = CrashFiles()
    files.put(FOLDER / "t", b"\1\0\0\0\2\0\0\0\3\0\0")
    table = Table.open(Disk(files), FOLDER / "t")
    assert table is not None
    assert table.read(0, 3) == [Entry(1, 2), UNKNOWN, UNKNOWN]
    assert not UNKNOWN.is_known
    assert Table.open(Disk(files), FOLDER / "none") is None
    table.close()


def test_entries_are_little_endian() -> None:
    files = CrashFiles()
    files.put(FOLDER / "t", b"")
    with Disk(files).open(FOLDER / "t", 2) as file:
        Table(file).write(1, array("I", [1]), array("I", [0x01020304]))
    assert files.get(FOLDER / "t") == bytes(8) + b"\1\0\0\0\4\3\2\1"
