"""Damage between good frames of the newest segment, and an output that is longer than is known.

Neither may be refused, as a loss of power leaves the same; neither may go by without a word.
"""

from __future__ import annotations

import os
import random
import re
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from storage_helpers import Crash, CrashFiles, input_of, settings_for

from trioline.config import Fsync, JobSettings
from trioline.errors import DiskFull, StorageError
from trioline.storage import Job, Results, Tried, kept
from trioline.storage.frames import HEADER_BYTES, Kind

FOLDER = Path("/d")
STATE = FOLDER / "out.trioline"
SEGMENT = STATE / "journal-00000001"
LINES = 20
PIECE = 2
"""Lines in a commit."""


def answer(line: int) -> bytes:
    return b'"%d %s"\n' % (line, b"x" * line)


def answers(first: int, end: int) -> bytes:
    return b"".join(map(answer, range(first, end)))


def killed(settings: JobSettings, *, behind: int = 0) -> tuple[CrashFiles, int]:
    """A job whose lines were answered and never made durable; from line ``behind`` on."""
    files = CrashFiles()
    files.put(settings.input, input_of(LINES))
    job = Job.open(settings, files)
    tried = Tried(LINES - 1, 1, b"{}")
    for first in range(behind, LINES, PIECE):
        job.commit([Results(first, PIECE, answers(first, first + PIECE)), tried])
    length = job.journal_bytes
    files.kill()
    return files, length


def frames_in(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Offset, length and kind of each frame."""
    at = 0
    while data[at : at + 1] and data[at + 12]:
        kind, length = struct.unpack_from("<B3xQ", data, at + 12)
        yield at, HEADER_BYTES + length, kind
        at += HEADER_BYTES + length


def copy_of(name: str, content: bytes) -> Path:
    return STATE / f"{name}-{zlib.crc32(content):08x}"


def settled(job: Job) -> set[int]:
    return set(range(job.written_count)).union(*job.ahead())


def spoil(files: CrashFiles, at: int, new: bytes | None = None) -> bytes:
    """Write into the newest segment; None: a byte that is another one there."""
    data = files.get(SEGMENT)
    new = bytes([data[at] ^ 255]) if new is None else new
    files.put(SEGMENT, data[:at] + new + data[at + len(new) :])
    return files.get(SEGMENT)


def finish(job: Job) -> None:
    """Do what is missing, as another worker would."""
    for line in sorted(set(range(LINES)) - settled(job)):
        job.commit([Results(line, 1, b'"again"\n')])
    job.finish(job.source.offset_of(LINES))
    job.close()


@pytest.mark.parametrize("fsync", Fsync)
@pytest.mark.parametrize("behind", [0, 4], ids=["in turn", "ahead"])
@pytest.mark.parametrize("where", ["mark", "kind", "length", "payload"])
def test_one_bad_byte_costs_one_frame(fsync: Fsync, behind: int, where: str) -> None:
    settings = settings_for(FOLDER, fsync=fsync)
    files, length = killed(settings, behind=behind)
    settling = [frame for frame in frames_in(files.get(SEGMENT)[:length]) if frame[2] != Kind.TRIED]
    at, size, _ = settling[3]
    offset = {"mark": at + 3, "kind": at + 12, "length": at + 18, "payload": at + size - 3}[where]
    as_it_was = spoil(files, offset)
    lost = set(range(behind + 3 * PIECE, behind + 4 * PIECE))

    job = Job.open(settings, files)
    assert settled(job) == set(range(behind, LINES)) - lost
    assert job.warning is not None
    assert f"Bytes {at:,} to {at + size:,} of {SEGMENT} are not" in job.warning
    copy = FOLDER / re.findall(r"copy of the whole file is (\S+)\.", job.warning)[0]
    assert files.get(copy) == as_it_was
    job.close()

    job = Job.open(settings, files)  # the gap is gone, and is no damage now
    assert job.warning is None
    assert settled(job) == set(range(behind, LINES)) - lost
    finish(job)
    again = lost | set(range(behind))
    expected = [b'"again"\n' if line in again else answer(line) for line in range(LINES)]
    assert files.get(settings.output) == b"".join(expected)


def test_bad_frames_at_several_places() -> None:
    settings = settings_for(FOLDER)
    files, length = killed(settings, behind=2)
    frames = list(frames_in(files.get(SEGMENT)[:length]))
    for at, size, _ in (frames[4], frames[10], frames[-1]):
        spoil(files, at, bytes(size))
    job = Job.open(settings, files)
    assert settled(job) == set(range(2, LINES)) - {6, 7, 12, 13}
    assert job.warning is not None
    assert f"{frames[4][0]:,} to {frames[5][0]:,}, {frames[10][0]:,} to" in job.warning
    job.close()


@pytest.mark.parametrize("text", [False, True])
@pytest.mark.parametrize("cut_bytes", [0, 40], ids=["flipped", "torn"])
def test_a_bad_end_is_told_and_kept(text: bool, cut_bytes: int) -> None:
    """Its lines may have been acknowledged: nothing tells damage from what a crash left."""
    settings = settings_for(FOLDER, text=text)
    files, length = killed(settings, behind=4)
    data = files.get(SEGMENT)[:length]
    *_, (at, size, _) = (one for one in frames_in(data) if one[2] == Kind.RESULTS)
    files.put(SEGMENT, data[: at + size - cut_bytes])
    as_it_was = spoil(files, at + HEADER_BYTES)

    job = Job.open(settings, files)
    assert settled(job) == set(range(4, LINES - PIECE))
    assert f"Bytes {at:,} to " in str(job.warning)
    assert files.get(copy_of(f"{SEGMENT.name}.damaged-{at}", as_it_was)) == as_it_was
    job.close()
    job = Job.open(settings, files)
    assert job.warning is None
    job.close()


def test_zeros_behind_the_last_frame_are_no_gap() -> None:
    settings = settings_for(FOLDER)
    files, length = killed(settings)
    files.put(SEGMENT, files.get(SEGMENT)[:length] + bytes(5_000))
    job = Job.open(settings, files)
    assert job.warning is None
    assert not [path for path in files.paths() if "damaged" in path.name]
    job.close()


@pytest.mark.parametrize("fsync", [Fsync.ALWAYS, Fsync.INTERVAL])
@pytest.mark.parametrize("seed", range(4))
def test_crashes_at_any_call_of_a_start_with_a_gap(fsync: Fsync, seed: int) -> None:
    """Two of them, one after the other: with the power lost, what was not synced may be gone."""
    settings = settings_for(FOLDER, fsync=fsync)
    whole, length = killed(settings)
    frames = [one for one in frames_in(whole.get(SEGMENT)[:length]) if one[2] != Kind.TRIED]
    contents = {path: whole.get(path) for path in whole.paths()}
    rng, call, crashed = random.Random(seed), 0, True
    while crashed:
        call += 1
        files = CrashFiles((FOLDER, STATE))
        for path, content in contents.items():
            files.put(path, content)
        spoil(files, frames[2][0] + HEADER_BYTES)
        crashed = has_crashed(settings, files, call, rng)
        has_crashed(settings, files, rng.randint(1, call), rng)
        job = Job.open(settings, files)
        assert settled(job) == set(range(LINES)) - {4, 5}, call
        job.close()
    assert call > 20


def has_crashed(settings: JobSettings, files: CrashFiles, call: int, rng: random.Random) -> bool:
    """Let a start end at a call."""
    files.call_count, files.crash_at, files.crash_after = 0, call, rng.random() < 0.5
    try:
        Job.open(settings, files).close()
    except Crash:
        if rng.random() < 0.3:
            files.kill()
        else:
            files.lose_power(rng)
        return True
    files.kill()
    return False


# --- an output that is longer than is known -------------------------------------------------------


@pytest.mark.parametrize("fsync", Fsync)
def test_lines_that_nothing_knows_of_are_cut_with_a_word_and_a_copy(fsync: Fsync) -> None:
    settings = settings_for(FOLDER, fsync=fsync)
    files, _ = killed(settings, behind=4)
    files.put(settings.output, answers(0, 4) + b'"to')
    job = Job.open(settings, files)
    assert job.written_count == 0
    size = len(answers(0, 4)) + 3
    copy = copy_of(f"out.cut-0-{size}", answers(0, 4) + b'"to')
    assert job.warning is not None
    assert f"{settings.output} had {size} bytes (4 whole lines) behind byte 0" in job.warning
    assert str(copy) in job.warning
    assert files.get(copy) == answers(0, 4) + b'"to'
    job.close()


def test_a_copy_does_not_take_the_place_of_another_one() -> None:
    """Of the same bytes of the same file, which once more are not what was written."""
    settings = settings_for(FOLDER)
    files, _ = killed(settings, behind=4)
    for text in (b'"one"\n', b'"two"\n', b'"one"\n'):
        begin = len(files.get(settings.output))
        files.put(settings.output, files.get(settings.output) + text)
        Job.open(settings, files).close()
        assert len(files.get(settings.output)) == begin
    copies = [path for path in files.paths() if ".cut-" in path.name]
    assert {files.get(path) for path in copies} == {b'"one"\n', b'"two"\n'}
    assert len(copies) == 2


def test_a_part_of_a_line_is_said_and_not_copied() -> None:
    settings = settings_for(FOLDER)
    files, _ = killed(settings, behind=4)
    files.put(settings.output, b'"par')
    job = Job.open(settings, files)
    assert job.warning is not None
    assert "had 4 bytes (0 whole lines) behind byte 0" in job.warning
    assert not [path for path in files.paths() if "cut" in path.name]
    job.close()


def test_an_old_state_put_back_loses_no_line_without_a_copy() -> None:
    settings = settings_for(FOLDER)
    files, _ = killed(settings)
    job = Job.open(settings, files)
    old = {path: files.get(path) for path in files.paths() if path.parent == STATE}
    job.close()
    files = CrashFiles((FOLDER, STATE))
    for path, content in old.items():
        files.put(path, content)
    files.put(settings.input, input_of(LINES))
    files.put(settings.rejected, b"")
    more = b'"more"\n' * 3
    files.put(settings.output, answers(0, LINES) + more)
    job = Job.open(settings, files)
    begin = len(answers(0, LINES))
    assert files.get(copy_of(f"out.cut-{begin}-{begin + len(more)}", more)) == more
    job.close()


def test_without_room_for_the_copy_nothing_is_cut() -> None:
    settings = settings_for(FOLDER)
    files, _ = killed(settings, behind=4)
    files.put(settings.output, answers(0, 4))

    def full(call: str, path: Path, _count: int) -> int | None:
        return 28 if call == "pwrite" and ".cut-" in path.name else None

    files.fail = full
    size = len(answers(0, 4))
    with pytest.raises(DiskFull, match=f"Make room.* copy of {size} bytes"):
        Job.open(settings, files)
    assert files.get(settings.output) == answers(0, 4)
    assert not [path for path in files.paths() if "cut" in path.name]


def test_a_crash_loop_leaves_a_stated_number_of_copies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The newest of them, and all that are longer than a crash can leave."""
    settings = settings_for(tmp_path)
    settings.input.write_bytes(input_of(LINES))
    Job.open(settings).close()
    monkeypatch.setattr(kept, "CRASH_BYTES", 50 * len(answer(0)))
    made = []
    for count in (60, *range(1, 30)):
        content = answer(0) * count
        settings.output.write_bytes(content)
        Job.open(settings).close()
        made.append(settings.state / copy_of(f"out.cut-0-{len(content)}", content).name)
        os.utime(made[-1], (count, count))
        assert made[-1].read_bytes() == content
    left = {path for path in made if path.exists()}
    assert left == {made[0], *made[-kept.MAX_COPIES :]}


def test_damage_below_what_was_durable_is_refused() -> None:
    settings = settings_for(FOLDER)
    files, length = killed(settings, behind=4)
    job = Job.open(settings, files)
    job.sync(0)
    files.kill()
    before = spoil(files, next(frames_in(files.get(SEGMENT)[:length]))[0] + HEADER_BYTES)
    with pytest.raises(StorageError, match="trioline repair"):
        Job.open(settings, files)
    assert files.get(SEGMENT) == before
