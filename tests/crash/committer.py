"""A process that does a job's work by itself, to be killed: no server, no workers.

``python committer.py FOLDER FSYNC COUNT`` writes ``done N`` to its stdout when line N's commit has
returned, and ``durable`` after each durable point. Lines come in pairs, the later one first, so
that journal and output are both at work; each fifth one is rejected.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from storage_helpers import settings_for

from trioline.config import Fsync, JobSettings
from trioline.storage import Entry, Job, Rejection, Results

SEGMENT_BYTES = 200
COMMITS_PER_SYNC = 3


def settings(folder: Path, fsync: Fsync) -> JobSettings:
    """Of the job in ``folder``."""
    return settings_for(folder, fsync=fsync)


def answer(line: int) -> bytes:
    """What line ``line`` becomes in the output."""
    return b"null\n" if line % 5 == 4 else b'"%d%s"\n' % (line, b"." * (line % 7 * 20))


def entry(line: int) -> Entry:
    """The same as an entry."""
    if line % 5 == 4:
        return Rejection(line, b'{"id":%d}\n' % line)
    return Results(line, 1, answer(line))


def settled_in(job: Job) -> set[int]:
    """The lines that are done."""
    return {*range(job.written_count), *(line for part in job.ahead() for line in part)}


def go_on(job: Job, count: int, say: int | None = None) -> None:
    """Do what is not done, and finish."""
    settled = settled_in(job)
    lines = [line ^ 1 for line in range(count) if line ^ 1 < count]
    lines += [] if count % 2 == 0 else [count - 1]
    for number, line in enumerate(line for line in lines if line not in settled):
        job.commit([entry(line)])
        _say(say, b"done %d\n" % line)
        if number % COMMITS_PER_SYNC == 2:
            job.sync(job.source.offset_of(job.written_count))
            _say(say, b"durable\n")
    job.finish(job.source.offset_of(count))
    _say(say, b"durable\n")
    job.close()


def _say(fd: int | None, text: bytes) -> None:
    if fd is not None:
        os.write(fd, text)


if __name__ == "__main__":
    where, policy, number_of_lines = sys.argv[1:]
    opened = Job.open(settings(Path(where), Fsync(policy)), segment_bytes=SEGMENT_BYTES)
    go_on(opened, int(number_of_lines), 1)
