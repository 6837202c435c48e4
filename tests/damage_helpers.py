"""A small job in memory, the ways to damage it, and the rule that a restart must keep."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import attrs
from storage_helpers import CrashFiles, input_line, input_of, settings_for

from trioline.config import Fsync, JobSettings
from trioline.errors import StorageError, UsageError
from trioline.storage.entries import Entry, Rejection, Results
from trioline.storage.job import Job
from trioline.storage.rejected import encode_record

FOLDER = Path("/d")
STATE = FOLDER / "out.trioline"
SEGMENT_BYTES = 150
"""So that a small job has several segments."""
LINES = 40
REJECTED = frozenset({3, 17, 30})
IN_TURN = 12
"""Lines written at the last durable point; ahead of it are those below."""
AHEAD = (range(15, 22), range(25, 28), range(30, 31), range(34, 36))
SOME_ZEROS = 100
"""Of those that a segment may have behind its frames."""
Contents = dict[Path, bytes]
Change = Callable[[bytes, int], bytes]


def flipped(data: bytes, at: int) -> bytes:
    """One bit is another one; which differs from byte to byte."""
    return data[:at] + bytes([data[at] ^ (1 << at % 8)]) + data[at + 1 :]


def inverted(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 255]) + data[at + 1 :]


def zeroed(data: bytes, at: int) -> bytes:
    """From here to the end of the sector nothing arrived."""
    end = min(len(data), at // 512 * 512 + 512)
    return data[:at] + bytes(end - at) + data[end:]


def cut(data: bytes, at: int) -> bytes:
    return data[:at]


def removed(data: bytes, at: int) -> bytes:
    """One byte is gone, all later ones have moved."""
    return data[:at] + data[at + 1 :]


CHANGES = (flipped, inverted, zeroed, cut, removed)


def answer(line: int) -> bytes:
    return b'{"id":%d,"is":"%s"}\n' % (line, b"ab" * (line % 5))


def entry(line: int) -> Entry:
    if line in REJECTED:
        content = input_line(line)
        return Rejection(line, encode_record(line, content, attempts=3, losses=0, errors=["no"]))
    return Results(line, 1, answer(line))


ORACLE = b"".join(b"null\n" if line in REJECTED else answer(line) for line in range(LINES))


def opened(files: CrashFiles, settings: JobSettings) -> Job:
    return Job.open(settings, files, segment_bytes=SEGMENT_BYTES)


def sync(job: Job) -> None:
    job.sync(job.source.offset_of(job.written_count))


def finish(files: CrashFiles, settings: JobSettings) -> set[int]:
    """Do the rest of a job; returns the lines that were not there."""
    job = opened(files, settings)
    held = {line for part in job.ahead() for line in part}
    missing = set(range(job.written_count, LINES)) - held
    if missing:
        job.commit([entry(line) for line in sorted(missing)])
    if not job.is_finished:
        job.finish(job.source.offset_of(LINES))
    job.close()
    return missing


def contents(files: CrashFiles) -> Contents:
    return {path: files.get(path) for path in files.paths() if path.name != "lock"}


def files_with(data: Contents) -> CrashFiles:
    files = CrashFiles((FOLDER, STATE))
    for path, content in data.items():
        files.put(path, content)
    return files


def half_done(fsync: Fsync, *, after: bool = True) -> Contents:
    """A job that was killed: durable up to a point, and (``after``) more behind it."""
    files = CrashFiles()
    files.put(FOLDER / "in", input_of(LINES))
    job = opened(files, settings_for(FOLDER, fsync=fsync))
    for lines in (range(2, 5), range(2), range(8, 10), range(34, 36), range(5, 8), range(30, 31)):
        job.commit([entry(line) for line in lines])
    sync(job)
    for lines in (range(10, IN_TURN), range(15, 22), range(25, 28)):
        job.commit([entry(line) for line in lines])
    sync(job)
    if after:
        job.commit([entry(line) for line in (12, 14, 23)])
        job.commit([entry(line) for line in (13, 29)])
    files.kill()
    return contents(files)


def all_done(fsync: Fsync) -> Contents:
    files = files_with(half_done(fsync))
    finish(files, settings_for(FOLDER, fsync=fsync))
    return contents(files)


DURABLE = set(range(IN_TURN)) | {line for lines in AHEAD for line in lines}


@attrs.frozen
class Verdict:
    """What a restart did with a damaged job."""

    how: str
    sentence: str = ""


def judge(data: Contents, settings: JobSettings, *, durable: set[int]) -> Verdict:
    """Restart a damaged job and hold what happens against the rule."""
    files = files_with(data)
    try:
        missing = finish(files, settings)
    except (StorageError, UsageError) as error:
        verdict = Verdict(type(error).__name__, str(error))
    else:
        check_finished(files, settings)
        lost = missing & durable
        assert not lost, f"durable lines {sorted(lost)} were dropped without a word"
        return Verdict("recovered")
    assert contents(files) == data, f"touched on refusal: {verdict}"
    assert "\n" not in verdict.sentence
    if verdict.how == "StorageError":
        assert "trioline repair" in verdict.sentence
    return verdict


def check_finished(files: CrashFiles, settings: JobSettings) -> None:
    """The output is the oracle's, and each rejected line has its record."""
    assert files.get(settings.output) == ORACLE
    records = [int(re.findall(rb'"id":(\d+)', line)[0]) for line in records_of(files, settings)]
    assert records == sorted(REJECTED)


def records_of(files: CrashFiles, settings: JobSettings) -> list[bytes]:
    return list(files.get(settings.rejected).splitlines())


def length_of(data: bytes) -> int:
    """How long a file is, without most of the zeros at its end."""
    return min(len(data), len(data.rstrip(b"\0")) + SOME_ZEROS)


def verdicts(
    data: Contents, path: Path, settings: JobSettings, *, durable: set[int], step: int = 1
) -> Counter[str]:
    """Change every byte of one file in every way; of zeros behind its end, some."""
    counts: Counter[str] = Counter()
    original = data[path]
    for change in CHANGES:
        for at in range(0, length_of(original), step):
            damaged = change(original, at)
            if damaged == original:
                counts["same"] += 1
                continue
            try:
                verdict = judge({**data, path: damaged}, settings, durable=durable)
            except BaseException as error:
                error.add_note(f"{path.name} {change.__name__} at {at}")
                raise
            counts[verdict.how] += 1
            if verdict.how == "StorageError":
                assert path.name in verdict.sentence or str(path.parent) in verdict.sentence
    return counts


def paths_of(data: Contents) -> Iterator[Path]:
    yield from (path for path in data if path.name != "in")
