"""Damage while the server was stopped: repaired exactly by a restart, or refused untouched.

Every byte of a small job's state is flipped, zeroed and cut away in turn, in memory. A restart may
go on (then nothing that was durable is lost, and the finished output is the oracle's), or refuse
with one sentence that names the file and the way out (then every byte is as it was). Nothing else.
"""

from __future__ import annotations

import datetime
import random
import re
import struct
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import attrs
import pytest
from storage_helpers import CrashFiles, input_of, settings_for

from trioline.config import Fsync, JobSettings
from trioline.errors import JobMismatch, StorageError, UsageError
from trioline.storage.checkpoint import SLOT_BYTES, SLOT_SPACING_BYTES
from trioline.storage.entries import Entry, Rejection, Results
from trioline.storage.files import Disk
from trioline.storage.frames import HEADER_BYTES, seed_of
from trioline.storage.job import Job
from trioline.storage.rejected import encode_record
from trioline.storage.repair import Given, Plan, examine, mend, open_once

FOLDER = Path("/d")
STATE = FOLDER / "out.trioline"
SEGMENT_BYTES = 150
"""So that a small job has several segments."""
LINES = 40
REJECTED = frozenset({3, 17, 30})
IN_TURN = 12
"""Lines written at the last durable point; ahead of it are those below."""
AHEAD = (range(15, 22), range(25, 28), range(30, 31), range(34, 36))
NOW = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
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
        return Rejection(line, encode_record(line, b"x", attempts=3, losses=0, errors=["no"]))
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
        assert contents(files) == data, f"touched on refusal: {error}"
        sentence = str(error)
        assert "\n" not in sentence
        assert (
            "trioline repair" in sentence or isinstance(error, UsageError) or "Use the" in sentence
        )
        return Verdict(type(error).__name__, sentence)
    assert files.get(settings.output) == ORACLE
    records = [int(re.findall(rb'"id":(\d+)', line)[0]) for line in records_of(files, settings)]
    assert records == sorted(REJECTED)
    lost = missing & durable
    assert not lost, f"durable lines {sorted(lost)} were dropped without a word"
    return Verdict("recovered")


def records_of(files: CrashFiles, settings: JobSettings) -> list[bytes]:
    return files.get(settings.rejected).splitlines()


def verdicts(
    data: Contents, path: Path, settings: JobSettings, *, durable: set[int], step: int = 1
) -> Counter[str]:
    """Change every byte of one file in every way."""
    counts: Counter[str] = Counter()
    original = data[path]
    for change in CHANGES:
        for at in range(0, len(original), step):
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


@pytest.fixture(params=[Fsync.ALWAYS, Fsync.INTERVAL])
def fsync(request: pytest.FixtureRequest) -> Fsync:
    policy: Fsync = request.param
    return policy


# --- every byte ------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("done", [False, True])
def test_every_byte_of_the_checkpoint(fsync: Fsync, done: bool) -> None:
    """One slot may be hit in any way: the other one holds, and nothing is lost."""
    data = all_done(fsync) if done else half_done(fsync)
    durable = set(range(LINES)) if done else DURABLE
    path = STATE / "checkpoint"
    original = data[path]
    settings = settings_for(FOLDER, fsync=fsync)
    for change in (flipped, inverted, zeroed):
        for slot in (0, SLOT_SPACING_BYTES):
            for at in range(slot, slot + SLOT_BYTES):
                damaged = {**data, path: change(original, at)}
                assert judge(damaged, settings, durable=durable).how == "recovered"
    for at in range(0, len(original), 7):  # mostly room between the slots
        assert judge({**data, path: cut(original, at)}, settings, durable=durable).how == (
            "StorageError" if at < SLOT_BYTES else "recovered"
        )
    for at in (*range(SLOT_BYTES, SLOT_SPACING_BYTES, 61), *range(5_000, 8_192, 61)):
        damaged = {**data, path: inverted(original, at)}
        assert judge(damaged, settings, durable=durable).how == "recovered"


@pytest.mark.slow
def test_every_byte_of_the_journal(fsync: Fsync) -> None:
    data = half_done(fsync)
    settings = settings_for(FOLDER, fsync=fsync)
    segments = [path for path in data if path.name.startswith("journal")]
    assert len(segments) > 3
    counts: Counter[str] = Counter()
    for path in segments:
        counts += verdicts(data, path, settings, durable=DURABLE)
    assert set(counts) <= {"same", "recovered", "StorageError"}
    assert counts["StorageError"] > counts["recovered"] > 0
    print(fsync, counts)


@pytest.mark.slow
def test_every_byte_of_what_describes_the_job(fsync: Fsync) -> None:
    data = half_done(fsync)
    settings = settings_for(FOLDER, fsync=fsync)
    counts = verdicts(data, STATE / "run.json", settings, durable=DURABLE)
    assert set(counts) <= {"same", "recovered", "StorageError", "JobMismatch"}
    assert counts["StorageError"] > 100
    print(fsync, counts)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["out", "out.rejected"])
@pytest.mark.parametrize("done", [False, True])
def test_every_byte_of_what_was_written(fsync: Fsync, name: str, done: bool) -> None:
    """Up to the durable point every change is seen; behind it the journal knows better."""
    data = all_done(fsync) if done else half_done(fsync)
    settings = settings_for(FOLDER, fsync=fsync)
    counts = verdicts(data, FOLDER / name, settings, durable=set(range(LINES)) if done else DURABLE)
    assert set(counts) <= {"same", "recovered", "StorageError"}
    assert counts["StorageError"] > 0
    assert done == (counts["recovered"] == 0) or name == "out.rejected"
    print(fsync, name, counts)


# --- whole files -----------------------------------------------------------------------------------


def paths_of(data: Contents) -> Iterator[Path]:
    yield from (path for path in data if path.name != "in")


@pytest.mark.parametrize("done", [False, True])
def test_every_file_deleted_emptied_or_grown(fsync: Fsync, done: bool) -> None:
    data = all_done(fsync) if done else half_done(fsync)
    durable = set(range(LINES)) if done else DURABLE
    settings = settings_for(FOLDER, fsync=fsync)
    newest = max((path for path in data if path.name.startswith("journal")), default=None)
    for path in paths_of(data):
        without = {other: content for other, content in data.items() if other != path}
        for damaged in (without, {**data, path: b""}):
            verdict = judge(damaged, settings, durable=durable)
            if path not in (newest, FOLDER / "out.rejected"):
                assert verdict.how == "StorageError", (path, verdict)
        for more in (b"x", b'{"id":0}\n' * 3, bytes(5_000)):
            verdict = judge({**data, path: data[path] + more}, settings, durable=durable)
            assert verdict.how in ("recovered", "StorageError"), (path, verdict)


def test_a_deleted_segment_is_missed(fsync: Fsync) -> None:
    """Numbers may have gaps, as segments go one by one: their length in all is what tells."""
    data = half_done(fsync)
    segments = sorted(path for path in data if path.name.startswith("journal"))
    for path in segments[:-1]:
        without = {other: content for other, content in data.items() if other != path}
        verdict = judge(without, settings_for(FOLDER, fsync=fsync), durable=DURABLE)
        assert verdict.how == "StorageError", path


def test_an_output_that_is_another_file(fsync: Fsync) -> None:
    data = half_done(fsync)
    verdict = judge(
        {**data, FOLDER / "out": b'{"mine":1}\n' * 100},
        settings_for(FOLDER, fsync=fsync),
        durable=DURABLE,
    )
    assert verdict.how == "StorageError"
    assert "/d/out was changed by somebody else: bytes 0 to" in verdict.sentence
    assert "trioline repair /d/out" in verdict.sentence


# --- leftovers -------------------------------------------------------------------------------------


def test_journal_segments_of_another_run(fsync: Fsync) -> None:
    """They have other seeds: as the newest segment one is as good as torn, else it is damage."""
    data, other = half_done(fsync), half_done(fsync)
    settings = settings_for(FOLDER, fsync=fsync)
    theirs = [path for path in other if path.name.startswith("journal")]
    for path in theirs:
        for number in (int(path.name[8:]), 99):
            name = path.with_name(f"journal-{number:08}")
            verdict = judge({**data, name: other[path]}, settings, durable=DURABLE)
            assert verdict.how in ("recovered", "StorageError")
    everything = {**data, **{path: other[path] for path in theirs}}
    assert judge(everything, settings, durable=DURABLE).how == "StorageError"


@pytest.mark.parametrize("name", ["checkpoint", "run.json"])
def test_state_of_another_run(fsync: Fsync, name: str) -> None:
    data, other = half_done(fsync), half_done(fsync)
    damaged = {**data, STATE / name: other[STATE / name]}
    verdict = judge(damaged, settings_for(FOLDER, fsync=fsync), durable=DURABLE)
    assert verdict.how == "StorageError"
    assert "checkpoint belongs to another job than the files beside it" in verdict.sentence


def test_a_newer_version_left_a_frame(fsync: Fsync) -> None:
    data = half_done(fsync)
    run_id = re.findall(rb'"run_id":\s*"(\w+)"', data[STATE / "run.json"])[0].decode()
    newest = max(path for path in data if path.name.startswith("journal"))
    rest = struct.pack("<B3xQQQ", 9, 3, 36, 1)
    crc = zlib.crc32(b"new", zlib.crc32(rest, seed_of(bytes.fromhex(run_id), int(newest.name[8:]))))
    frame = crc.to_bytes(4, "little") + rest + b"new"
    assert len(frame) == HEADER_BYTES + 3
    damaged = {**data, newest: data[newest] + frame}
    verdict = judge(damaged, settings_for(FOLDER, fsync=fsync), durable=DURABLE)
    assert verdict.how == "StorageError"
    assert f"{newest} has a frame of kind 9 at byte {len(data[newest])}" in verdict.sentence
    assert "Use the version" in verdict.sentence


def test_a_newer_version_left_a_checkpoint(fsync: Fsync) -> None:
    data = half_done(fsync)
    slot = data[STATE / "checkpoint"][: SLOT_BYTES - 4]
    slot = slot[:8] + struct.pack("<I", 7) + slot[12:]
    slot += struct.pack("<I", zlib.crc32(slot))
    damaged = {**data, STATE / "checkpoint": slot + data[STATE / "checkpoint"][SLOT_BYTES:]}
    verdict = judge(damaged, settings_for(FOLDER, fsync=fsync), durable=DURABLE)
    assert "checkpoint has format 7" in verdict.sentence


def test_a_newer_version_left_the_run(fsync: Fsync) -> None:
    data = half_done(fsync)
    newer = data[STATE / "run.json"].replace(b'"format": 1', b'"format": 2')
    damaged = {**data, STATE / "run.json": newer}
    verdict = judge(damaged, settings_for(FOLDER, fsync=fsync), durable=DURABLE)
    assert "run.json has format 2" in verdict.sentence


# --- many at once ----------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_several_wounds_at_once(fsync: Fsync, seed: int) -> None:
    rng = random.Random(seed)
    data = half_done(fsync)
    settings = settings_for(FOLDER, fsync=fsync)
    paths = [path for path in data if path.name != "in"]
    for _ in range(300):
        damaged = dict(data)
        for path in rng.sample(paths, rng.randint(2, 4)):
            change = rng.choice(CHANGES)
            if damaged[path]:
                damaged[path] = change(damaged[path], rng.randrange(len(damaged[path])))
        judge(damaged, settings, durable=set())


def test_the_mismatch_is_a_usage_error() -> None:
    assert issubclass(JobMismatch, UsageError)


# --- repair ----------------------------------------------------------------------------------------


def repaired(data: Contents, **given: object) -> tuple[CrashFiles, Plan | None]:
    """Examine and mend; the plan is None where there was nothing to do."""
    files = files_with(data)
    disk = Disk(files)
    job = Given(output=FOLDER / "out", **given)  # type: ignore[arg-type] # of each test's choice
    plan = examine(disk, job)
    assert contents(files) == data
    if not plan.is_needed:
        return files, None
    mend(disk, plan, NOW)
    open_once(disk, plan)
    assert not examine(disk, job).is_needed
    return files, plan


def recomputed(files: CrashFiles, settings: JobSettings) -> set[int]:
    """Finish a repaired job, and hold its output against the oracle."""
    missing = finish(files, settings)
    assert files.get(settings.output) == ORACLE
    records = [int(re.findall(rb'"id":(\d+)', line)[0]) for line in records_of(files, settings)]
    assert records == sorted(REJECTED)
    return missing


def repairs(data: Contents, path: Path, settings: JobSettings, step: int) -> Counter[str]:
    """Change a file's bytes in every way; what a start refuses must be repaired, or said."""
    counts: Counter[str] = Counter()
    original = data[path]
    for change in CHANGES:
        for at in range(0, len(original), step):
            damaged = {**data, path: change(original, at)}
            verdict = judge(damaged, settings, durable=set())
            try:
                files, plan = repaired(damaged, input=FOLDER / "in")
                missing = recomputed(files, settings)
            except (StorageError, UsageError) as error:
                assert verdict.how != "recovered", error
                counts[type(error).__name__] += 1
            except BaseException as error:
                error.add_note(f"{path.name} {change.__name__} at {at}: {verdict}")
                raise
            else:
                assert plan is not None or verdict.how == "recovered", verdict
                counts["repaired" if plan else "nothing"] += 1
                counts["recomputed"] += len(missing)
    return counts


@pytest.mark.slow
@pytest.mark.parametrize("name", ["checkpoint", "run.json", "out", "out.rejected", "journal"])
@pytest.mark.parametrize("done", [False, True])
def test_what_a_start_refuses_is_repaired(fsync: Fsync, name: str, done: bool) -> None:
    data = all_done(fsync) if done else half_done(fsync)
    settings = settings_for(FOLDER, fsync=fsync)
    for path in paths_of(data):
        if path.name.startswith(name):
            counts = repairs(data, path, settings, 97 if name == "checkpoint" else 5)
            print(fsync, path.name, done, counts)
