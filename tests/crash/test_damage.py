"""Damage while the server was stopped: repaired exactly by a restart, or refused untouched.

Every byte of a small job's state is flipped, zeroed and cut away in turn, in memory. A restart may
go on (then nothing that was durable is lost, and the finished output is the oracle's), or refuse
with one sentence that names the file and the way out (then every byte is as it was). Nothing else.
"""

from __future__ import annotations

import random
import re
import struct
import zlib
from collections import Counter

import pytest
from damage_helpers import (
    CHANGES,
    DURABLE,
    FOLDER,
    LINES,
    STATE,
    all_done,
    cut,
    flipped,
    half_done,
    inverted,
    judge,
    paths_of,
    verdicts,
    zeroed,
)
from storage_helpers import settings_for

from trioline.config import Fsync
from trioline.storage.checkpoint import SLOT_BYTES, SLOT_SPACING_BYTES
from trioline.storage.frames import HEADER_BYTES, mark_of


@pytest.fixture(params=[Fsync.ALWAYS, Fsync.INTERVAL])
def fsync(request: pytest.FixtureRequest) -> Fsync:
    policy: Fsync = request.param
    return policy


# --- every byte ----------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("done", [False, True])
def test_every_byte_of_the_checkpoint(fsync: Fsync, done: bool, is_big: bool) -> None:
    """One slot may be hit in any way: the other one holds, and nothing is lost."""
    data = all_done(fsync) if done else half_done(fsync)
    durable = set(range(LINES)) if done else DURABLE
    path = STATE / "checkpoint"
    original = data[path]
    settings = settings_for(FOLDER, fsync=fsync)

    def how(damaged: bytes) -> str:
        return judge({**data, path: damaged}, settings, durable=durable).how

    for change, step in ((flipped, 1), (inverted, 9), (zeroed, 11)):
        for slot in (0, SLOT_SPACING_BYTES):
            for at in range(slot, slot + SLOT_BYTES, 1 if is_big else step):
                assert how(change(original, at)) == "recovered", (change, at)
    for at in range(0, len(original), 1 if is_big else 41):
        expected = "StorageError" if at < SLOT_BYTES else "recovered"
        assert how(cut(original, at)) == expected, at
    between = (*range(SLOT_BYTES, SLOT_SPACING_BYTES), *range(5_000, 8_192))
    for at in between[:: 1 if is_big else 301]:
        assert how(inverted(original, at)) == "recovered", at


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
    assert set(counts) <= {"same", "recovered", "StorageError", "NewerFormat"}
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


# --- whole files ---------------------------------------------------------------------------------


@pytest.mark.parametrize("done", [False, True])
def test_every_file_deleted_emptied_or_grown(fsync: Fsync, done: bool) -> None:
    data = all_done(fsync) if done else half_done(fsync)
    durable = set(range(LINES)) if done else DURABLE
    settings = settings_for(FOLDER, fsync=fsync)
    newest = max((path.name for path in data if path.name.startswith("journal")), default="")
    for path in paths_of(data):
        without = {other: content for other, content in data.items() if other != path}
        for damaged in (without, {**data, path: b""}):
            verdict = judge(damaged, settings, durable=durable)
            if path.name not in (newest, "checksums", "out.rejected"):
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


# --- leftovers -----------------------------------------------------------------------------------


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
    crc = zlib.crc32(b"new", zlib.crc32(rest))
    mark = mark_of(bytes.fromhex(run_id), int(newest.name[8:]))
    frame = mark + crc.to_bytes(4, "little") + rest + b"new"
    assert len(frame) == HEADER_BYTES + 3
    frames = data[newest].rstrip(b"\0")  # a segment may have zeros behind them
    damaged = {**data, newest: frames + frame}
    verdict = judge(damaged, settings_for(FOLDER, fsync=fsync), durable=DURABLE)
    assert verdict.how == "NewerFormat"
    assert f"{newest} has a frame of kind 9 at byte {len(frames)}" in verdict.sentence
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


# --- many at once --------------------------------------------------------------------------------


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
