"""Frames prove what they are; segments end, go, and are damaged."""

from __future__ import annotations

import errno
import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from storage_helpers import CrashFiles

from trioline.errors import DiskFull, StorageError
from trioline.storage.entries import Entry, Rejection, Results, Tried
from trioline.storage.files import Disk
from trioline.storage.frames import FRAME_BYTES, HEADER_BYTES, Frame, Kind, frames_from
from trioline.storage.journal import Journal, Mark
from trioline.storage.system import OsFiles

FOLDER = Path("/d")
RUN = b"r" * 16
NOTHING = Mark(0, 0, 0)


def results(first: int, count: int = 1, text: bytes = b"ok") -> Frame:
    return Frame(Kind.RESULTS, first, count, (text + b"\n") * count)


def open_journal(files: CrashFiles, segment_bytes: int = 1 << 20, run: bytes = RUN) -> Journal:
    return Journal(Disk(files), FOLDER, run, segment_bytes=segment_bytes)


def replayed(files: CrashFiles, durable: Mark = NOTHING, run: bytes = RUN) -> list[Frame]:
    journal = open_journal(files, run=run)
    frames = [frame for frame, _place in journal.replay(durable)]
    if not journal.has_gaps:  # whoever has some takes them out first
        journal.end_replay()
    journal.close()
    return frames


def segment(number: int) -> Path:
    return FOLDER / f"journal-{number:08}"


def test_frames_come_back_by_place_and_in_order() -> None:
    files = CrashFiles()
    journal = open_journal(files)
    frames = [results(5, 3), Frame(Kind.REJECTED, 9, 1, b"{}\n"), results(0)]
    places = journal.append(frames)
    assert [journal.read(place) for place in reversed(places)] == frames[::-1]
    journal.close()
    assert replayed(files) == frames


def test_many_segments_come_back_and_few_are_open() -> None:
    files = CrashFiles()
    journal = open_journal(files, segment_bytes=1)
    places = [journal.append([results(line)])[0] for line in range(100)]
    assert [journal.read(place).first for place in places] == list(range(100))
    assert files.open_count < 20
    assert journal.newest == 100
    journal.close()
    assert [frame.first for frame in replayed(files)] == list(range(100))


def test_a_segment_kept_longer_than_it_is() -> None:
    """Zeros behind its frames are never taken for what comes to stand there, nor left behind."""
    files = CrashFiles()
    journal = Journal(Disk(files), FOLDER, RUN, segment_bytes=400, is_synced_often=True)
    frames = [results(line) for line in range(20)]
    places = []
    for frame in frames:
        places += journal.append([frame])
        assert journal.read(places[-1]) == frame
        assert len(files.get(segment(journal.newest))) > journal.newest_bytes
    assert [journal.read(place) for place in places] == frames
    assert journal.newest > 1
    for number in range(1, journal.newest):
        assert not files.get(segment(number)).endswith(b"\0")
    left = replayed(files)
    journal.trim()
    assert len(files.get(segment(journal.newest))) == journal.newest_bytes
    journal.close()
    assert left == replayed(files) == frames


def test_a_segment_without_room_to_be_longer_is_written_all_the_same() -> None:
    files = CrashFiles()
    files.fail = lambda call, _path, _count: errno.EFBIG if call == "truncate" else None
    journal = Journal(Disk(files), FOLDER, RUN, segment_bytes=1 << 20, is_synced_often=True)
    (place,) = journal.append([results(3)])
    journal.trim()
    assert journal.read(place) == results(3)
    assert len(files.get(segment(1))) == journal.newest_bytes
    journal.close()


@given(cut=st.integers(0, 200), flip=st.integers(0, 7))
@settings(max_examples=60, deadline=None)
def test_a_flipped_bit_in_the_newest_segment_costs_its_frame(cut: int, flip: int) -> None:
    files = CrashFiles()
    journal = open_journal(files)
    frames = [results(line, text=b"x" * line) for line in range(5)]
    places = journal.append(frames)
    journal.close()
    before = files.get(segment(1))
    data = bytearray(before)
    at = cut % len(data)
    data[at] ^= 1 << flip
    files.put(segment(1), bytes(data))
    bad = sum(1 for place in places[1:] if place & 0xFFFFFFFF <= at)
    good = frames[:bad] + frames[bad + 1 :]
    files.put(FOLDER / "out", b"")
    journal = Journal(Disk(files), FOLDER, RUN, segment_bytes=1)
    assert [frame for frame, _place in journal.replay(NOTHING)] == good
    assert journal.has_gaps
    journal.close()


@pytest.mark.parametrize("byte", range(8, 16))
def test_a_flipped_length_asks_for_no_memory(tmp_path: Path, byte: int) -> None:
    journal = Journal(Disk(OsFiles()), tmp_path, RUN, segment_bytes=1 << 20)
    journal.append([results(1)])
    journal.close()
    path = tmp_path / "journal-00000001"
    data = bytearray(path.read_bytes())
    data[byte] ^= 0x7F
    path.write_bytes(data)
    journal = Journal(Disk(OsFiles()), tmp_path, RUN, segment_bytes=1 << 20)
    assert list(journal.replay(NOTHING)) == []
    journal.close()


def test_what_was_cut_back_is_not_read_again() -> None:
    journal = open_journal(CrashFiles())
    mark = journal.mark()
    (place,) = journal.append([results(1, text=b"old")])
    assert journal.read(place).payload == b"old\n"
    journal.cut_back(mark)
    assert journal.append([results(1, text=b"new")]) == [place]
    assert journal.read(place).payload == b"new\n"
    journal.close()


@pytest.mark.parametrize("tail", [b"\0" * 4_096, b"\0"])
def test_zeros_behind_the_last_frame_are_cut_off(tail: bytes) -> None:
    files = CrashFiles()
    journal = open_journal(files)
    journal.append([results(1)])
    journal.close()
    whole = files.get(segment(1))
    files.put(segment(1), whole + tail)
    assert len(replayed(files)) == 1
    assert files.get(segment(1)) == whole


@pytest.mark.parametrize("tail", [b"\xff" * 100, b"x" * HEADER_BYTES])
def test_anything_else_behind_the_last_frame_is_a_gap(tail: bytes) -> None:
    files = CrashFiles()
    journal = open_journal(files)
    journal.append([results(1)])
    journal.close()
    files.put(segment(1), files.get(segment(1)) + tail)
    journal = open_journal(files)
    assert len(list(journal.replay(NOTHING))) == 1
    assert journal.has_gaps
    with pytest.raises(StorageError, match="journal-00000001 is damaged at byte"):
        journal.end_replay()
    journal.close()


def test_a_bad_frame_in_an_earlier_segment_stops() -> None:
    files = CrashFiles()
    journal = open_journal(files, segment_bytes=1)
    journal.append([results(1)])
    journal.append([results(2)])
    journal.close()
    data = files.get(segment(1))
    files.put(segment(1), data[:-1])
    with pytest.raises(StorageError, match="journal-00000001 is damaged at byte 0"):
        replayed(files)
    assert files.get(segment(1)) == data[:-1]


def test_a_bad_frame_below_what_was_certain_stops() -> None:
    files = CrashFiles()
    journal = open_journal(files)
    journal.append([results(1)])
    durable = journal.mark()
    journal.append([results(2)])
    journal.close()
    files.put(segment(1), files.get(segment(1))[:-1])
    assert len(replayed(files, durable)) == 1
    files.put(segment(1), files.get(segment(1))[: durable.length - 1])
    with pytest.raises(StorageError, match="is damaged at byte 0"):
        replayed(files, durable)


def test_a_missing_segment_is_named() -> None:
    with pytest.raises(StorageError, match="journal-00000003 is missing"):
        replayed(CrashFiles(), Mark(3, 1, 0))


@pytest.mark.parametrize(("run", "number"), [(b"s" * 16, 1), (RUN, 2)])
def test_frames_of_another_run_or_segment_are_not_valid(run: bytes, number: int) -> None:
    files = CrashFiles()
    journal = open_journal(files)
    journal.append([results(1)])
    journal.close()
    data = files.get(segment(1))
    files.unlink(segment(1))
    files.put(segment(number), data)
    assert replayed(files, Mark(number, 0, 0), run=run) == []


def test_a_gap_behind_the_durable_point_is_named() -> None:
    files = CrashFiles()
    journal = open_journal(files)
    journal.append([results(1)])
    journal.close()
    files.put(segment(3), files.get(segment(1)))
    with pytest.raises(StorageError, match="journal-00000002 is missing"):
        replayed(files)


def test_a_full_disk_leaves_the_journal_as_it_was() -> None:
    files = CrashFiles()
    journal = open_journal(files)
    journal.append([results(1)])
    before, mark = files.get(segment(1)), journal.mark()
    files.short_writes = random.Random(1)
    writes = iter([None, None, errno.ENOSPC])
    files.fail = lambda call, _path, _count: next(writes, None) if call == "pwrite" else None
    with pytest.raises(DiskFull):
        journal.append([results(2, text=b"x" * 5_000)])
    assert files.get(segment(1)) == before
    assert journal.mark() == mark
    journal.append([results(3)])
    journal.close()
    assert [frame.first for frame in replayed(files)] == [1, 3]


def test_a_server_appends_only_to_segments_that_it_made() -> None:
    files = CrashFiles()
    first = open_journal(files)
    first.append([results(0)])
    second = open_journal(files)
    assert second.is_segment_full
    second.append([results(1)])
    first.append([results(0, text=b"more")])  # a server that is alive after all
    second.append([results(2)])
    assert second.newest == 2
    for journal in (first, second):
        journal.close()
    assert [frame.first for frame in replayed(files)] == [0, 0, 1, 2]


def test_two_servers_never_make_the_same_segment() -> None:
    files = CrashFiles()
    first, second = open_journal(files, segment_bytes=1), open_journal(files)
    first.append([results(0)])
    with pytest.raises(StorageError, match="Another server has taken over /d,"):
        second.append([results(1)])
    for journal in (first, second):
        journal.close()


def test_segments_go_when_all_in_them_is_durable() -> None:
    files = CrashFiles()
    journal = open_journal(files, segment_bytes=1)
    for line in (1, 0, 5, 2):
        journal.append([results(line)])
    journal.drop(journal.covered(3))
    assert journal.size_bytes == 2 * len(files.get(segment(4)))
    assert sorted(files.listdir(FOLDER)) == ["journal-00000003", "journal-00000004"]
    journal.drop_all()
    assert journal.size_bytes == 0
    assert files.listdir(FOLDER) == []
    journal.close()


def test_neighbours_share_a_frame_up_to_its_limit() -> None:
    big = b"x" * (FRAME_BYTES // 2) + b"\n"
    entries: list[Entry] = [
        Rejection(3, b"{}\n"),
        Results(2, 1, b"c\n"),
        Results(0, 2, b"a\nb\n"),
        Results(4, 1, b"e\n"),
        *(Results(line, 1, big) for line in (7, 8, 9)),
    ]
    frames = frames_from(entries)
    assert [(frame.first, frame.count) for frame in frames] == [
        (0, 3),
        (3, 1),
        (4, 1),
        (7, 1),
        (8, 1),
        (9, 1),
    ]
    assert frames[0].payload == b"a\nb\nc\n"


def test_what_was_tried_comes_last_in_the_order_it_came_in() -> None:
    entries: list[Entry] = [
        Tried(9, 1, b"a"),
        Tried(0, 3, b"b"),
        Results(2, 1, b"c\n"),
        Tried(1, 1, b"c"),
        Results(1, 1, b"b\n"),
    ]
    assert [(frame.first, frame.count, frame.payload) for frame in frames_from(entries)] == [
        (1, 2, b"b\nc\n"),
        (9, 1, b"a"),
        (0, 3, b"b"),
        (1, 1, b"c"),
    ]


@pytest.mark.parametrize(
    "entries",
    [
        [Results(0, 1, b"a")],
        [Results(0, 1, b"a\nb\n")],
        [Results(0, 2, b"a\n")],
        [Results(0, 0, b"")],
        [Rejection(0, b"{}")],
        [Results(0, 2, b"a\nb\n"), Results(1, 1, b"b\n")],
        [Rejection(4, b"{}\n"), Results(4, 1, b"b\n")],
        [Tried(4, 0, b"")],
    ],
)
def test_entries_that_would_shift_the_output_are_refused(entries: list[Entry]) -> None:
    with pytest.raises(ValueError, match="line"):
        frames_from(entries)
