"""A job of many blocks, and what a repair is held against: it does what it announced."""

from __future__ import annotations

import datetime
import functools
import random
import zlib
from collections.abc import Iterable, Iterator
from itertools import count

import attrs
from damage_helpers import FOLDER, STATE, Contents, contents, files_with
from storage_helpers import Crash, CrashFiles, input_line, input_of, settings_for

from trioline.config import Fsync, JobSettings
from trioline.storage.entries import Rejection, Results
from trioline.storage.files import Disk
from trioline.storage.job import Job
from trioline.storage.rejected import encode_record
from trioline.storage.repair.given import Given
from trioline.storage.repair.mending import mend, open_once
from trioline.storage.repair.plan import Plan, examine

NOW = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
JOB = Given(output=FOLDER / "out")
COPIES = STATE / "damaged-20260101T000000.000000Z"
LONG = 700
"""Lines of the long job; the last block is not complete."""
LONG_REJECTED = frozenset({5, 130, 131, 300, 650})


def line_of(number: int) -> bytes:
    """A line of a small input that is to be edited."""
    return b"line %03d of some" % number


def answered(numbers: Iterable[int], text: bytes) -> list[Results]:
    """What a worker makes of lines: each answer tells what its line was."""
    lines = text.split(b"\n")
    return [Results(at, 1, b'"%d %08x"\n' % (at, zlib.crc32(lines[at]))) for at in numbers]


def mend_all(files: CrashFiles, job: Given = JOB) -> Plan:
    """What the command does; the plan says whether anything was needed."""
    disk = Disk(files)
    plan = examine(disk, job)
    if plan.is_needed:
        mend(disk, plan, NOW)
        assert open_once(disk, plan) == (plan.counts.written, plan.counts.ahead, None)
    return plan


def repaired(data: Contents, job: Given = JOB) -> tuple[CrashFiles, Plan]:
    """Examine, which changes nothing, and mend, after which nothing is left to do."""
    files = files_with(data)
    examine(Disk(files), job)
    assert contents(files) == data
    plan = mend_all(files, job)
    assert not examine(Disk(files), job).is_needed
    return files, plan


def long_entry(line: int) -> Results | Rejection:
    if line in LONG_REJECTED:
        content = input_line(line)
        return Rejection(line, encode_record(line, content, attempts=1, losses=0, errors=["no"]))
    return Results(line, 1, b'{"n":%d,"is":"%s"}\n' % (line, b"ab" * (line % 5)))


def _result(line: int) -> bytes:
    entry = long_entry(line)
    return b"null\n" if isinstance(entry, Rejection) else entry.data


LONG_RESULTS = tuple(_result(line) for line in range(LONG))


@functools.cache
def long_job(*, fsync: Fsync, is_done: bool) -> Contents:
    """A job of eleven blocks: finished, or killed with lines ahead and unsynced ones."""
    files = CrashFiles()
    files.put(FOLDER / "in", input_of(LONG))
    job = Job.open(settings_for(FOLDER, fsync=fsync), files, segment_bytes=5_000)
    for first in range(0, LONG if is_done else 500, 50):
        job.commit([long_entry(line) for line in range(first, first + 50)])
        if first % 150 == 0:
            job.sync(job.source.offset_of(job.written_count))
    if is_done:
        job.finish(job.source.offset_of(LONG))
    else:
        job.commit([long_entry(line) for line in range(640, 660)])
    files.kill()
    return contents(files)


def redo(files: CrashFiles, settings: JobSettings) -> set[int]:
    """Do the rest of the long job; returns the lines that were open."""
    job = Job.open(settings, files)
    held = {line for part in job.ahead() for line in part}
    missing = set(range(job.written_count, LONG)) - held
    if missing:
        job.commit([long_entry(line) for line in sorted(missing)])
    if not job.is_finished:
        job.finish(job.source.offset_of(LONG))
    job.close()
    return missing


@attrs.frozen
class Edit:
    """Some bytes of a file replaced by others."""

    at: float
    """How far into the file, from 0 to 1."""
    removed: int
    put: bytes

    def apply(self, data: bytes) -> bytes:
        """The file after it."""
        at = int(self.at * len(data))
        return data[:at] + self.put + data[at + self.removed :]

    def lines(self, data: bytes) -> set[int]:
        """The lines that it touches."""
        at = int(self.at * len(data))
        first = data.count(b"\n", 0, at)
        return set(range(first, data.count(b"\n", 0, at + self.removed) + 1))


def mended_after_kills(damaged: Contents, job: Given, rng: random.Random) -> Iterator[CrashFiles]:
    """Kill a repair at each of its calls, or cut the power there, and repair once more."""
    for call in count(1):
        files = files_with(damaged)
        files.crash_at, files.crash_after = files.call_count + call, bool(call % 2)
        try:
            mend_all(files, job)
        except Crash:
            files.lose_power(rng) if call % 3 else files.kill()
        else:
            return
        mend_all(files, job)
        yield files
