"""A finished job with rejected lines, in memory, and a whole retry of it."""

from __future__ import annotations

from pathlib import Path

import attrs
from storage_helpers import CrashFiles, input_of, settings_for

from trioline.config import JobSettings
from trioline.storage import Job, Rejection, Results, encode_record
from trioline.storage.retry.retry import Retry

FOLDER = Path("/d")
LINES = 130
REJECTED = (0, 5, 6, 64, 129)
FAIL_AGAIN = (6, 129)


def answer(line: int) -> bytes:
    return b'"%d %s"\n' % (line, b"." * 60)


def record(files: CrashFiles, settings: JobSettings, line: int, error: str) -> Rejection:
    text = files.get(settings.input).split(b"\n")[line]
    return Rejection(line, encode_record(line, text, attempts=1, losses=0, errors=[error]))


def finished_job(padding: bytes = b"") -> tuple[CrashFiles, JobSettings]:
    """A job that is over, with some lines rejected; the input's lines end in ``padding``."""
    files = CrashFiles()
    settings = attrs.evolve(settings_for(FOLDER), max_line_bytes=1 << 20)
    files.put(settings.input, input_of(LINES).replace(b"\n", padding + b"\n"))
    job = Job.open(settings, files)
    job.commit(
        [
            record(files, settings, line, "first")
            if line in REJECTED
            else Results(line, 1, answer(line))
            for line in range(LINES)
        ]
    )
    job.finish(job.source.offset_of(LINES))
    job.close()
    return files, settings


def retry_all(files: CrashFiles, settings: JobSettings) -> int:
    """A whole retry, as the command does it; returns how many lines failed again."""
    retry = Retry.open(settings, files)
    if not retry.line_count:
        retry.close()
        return 0
    if not retry.is_served:
        run_again(retry, files)
    left = retry.put_in_place()
    retry.close()
    return left


def run_again(retry: Retry, files: CrashFiles, *, until: int | None = None) -> None:
    """Do all lines, or those up to a place, that are not done yet."""
    assert retry.numbers is not None
    job = Job.open(retry.settings, files)
    for place, line in enumerate(retry.numbers):
        if place < job.written_count or any(place in lines for lines in job.ahead()):
            continue
        if place == until:
            break
        if line in FAIL_AGAIN:
            (text,) = job.source.read(place, 1, 1).split()
            again = encode_record(line, text, attempts=1, losses=0, errors=["again"])
            job.commit([Rejection(place, again)])
        else:
            job.commit([Results(place, 1, b'"%d again"\n' % line)])
    if until is None and not job.is_finished:
        job.finish(job.source.offset_of(retry.line_count))
    job.close()


OLD = b"".join(b"null\n" if line in REJECTED else answer(line) for line in range(LINES))
NEW = b"".join(
    b"null\n"
    if line in FAIL_AGAIN
    else b'"%d again"\n' % line
    if line in REJECTED
    else answer(line)
    for line in range(LINES)
)
