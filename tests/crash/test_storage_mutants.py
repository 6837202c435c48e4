"""A test of the crash tests: each step of commit and recovery left out, or out of order, is caught.

Each mutant is the real code with one step changed from outside. ``MAX_SEEDS`` trials must find it;
the same trials find nothing in the code as it is. Where a step is covered by another one, so that
leaving it out alone changes nothing, the test says so and leaves out both.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import pytest
from crash_trial import find_failing_seed

from trioline.storage import recovery
from trioline.storage.ahead import AheadIndex
from trioline.storage.answers import Answers
from trioline.storage.checkpoint import SLOT_SPACING_BYTES, Checkpoint, CheckpointFile
from trioline.storage.files import File
from trioline.storage.frames import Frame, Kind
from trioline.storage.job import Job
from trioline.storage.journal import Journal
from trioline.storage.output import GrowingFile
from trioline.storage.point import Point
from trioline.storage.segment import Segment
from trioline.storage.tried import TriedIndex

MAX_SEEDS = 1_000
"""Each is found by one trial in 30 to 300: to miss one needs bad luck of e^-10 or less."""

Mutant = Callable[[], contextlib.AbstractContextManager[object]]


def nothing(*_: object, **__: object) -> None:
    """Takes a step's place."""


def without(owner: type, method: str) -> Mutant:
    """The step is left out wherever it is."""
    return lambda: mock.patch.object(owner, method, nothing)


def without_during(outer: tuple[type, str], inner: tuple[type, str]) -> Mutant:
    """The inner step is left out while the outer one is under way."""
    wrapped: Callable[..., object] = getattr(*outer)

    def call(*args: object, **kwargs: object) -> object:
        with mock.patch.object(*inner, nothing):
            return wrapped(*args, **kwargs)

    return lambda: mock.patch.object(*outer, call)


@contextlib.contextmanager
def acknowledged_before_the_sync() -> Iterator[None]:
    """Each commit is synced when the next one comes."""
    commit, sync = Job.commit, Journal.sync

    def early(job: Job, entries: Any) -> None:  # noqa: ANN401 - passed on
        sync(job._journal)
        with mock.patch.object(Journal, "sync", nothing):
            commit(job, entries)

    with mock.patch.object(Job, "commit", early):
        yield


@contextlib.contextmanager
def segment_names_not_synced() -> Iterator[None]:
    room = Journal._segment_with_room

    def unnamed(journal: Journal) -> Segment:
        segment = room(journal)
        journal._is_folder_synced = True
        return segment

    with mock.patch.object(Journal, "_segment_with_room", unnamed):
        yield


@contextlib.contextmanager
def checkpoint_before_the_output() -> Iterator[None]:
    make, sync = Point.make, Answers.sync

    def reversed_order(point: Point) -> None:
        with mock.patch.object(Answers, "sync", nothing):
            make(point)
        sync(point._answers)

    with mock.patch.object(Point, "make", reversed_order):
        yield


@contextlib.contextmanager
def checkpoint_not_synced() -> Iterator[None]:
    def write(slots: CheckpointFile, checkpoint: Checkpoint) -> None:
        at = (checkpoint.sequence & 1) * SLOT_SPACING_BYTES
        slots._file.write(checkpoint.pack(), at)

    with mock.patch.object(CheckpointFile, "write", write):
        yield


@contextlib.contextmanager
def one_slot_only() -> Iterator[None]:
    def write(slots: CheckpointFile, checkpoint: Checkpoint) -> None:
        slots._file.write(checkpoint.pack(), 0)
        slots._file.sync()

    with mock.patch.object(CheckpointFile, "write", write):
        yield


@contextlib.contextmanager
def journal_dropped_too_early() -> Iterator[None]:
    """The journal goes as soon as its lines are written, before a checkpoint covers them."""
    make = Point.make

    def dropping(point: Point) -> None:
        point._journal.drop(point._covered)
        point._covered = []
        make(point)

    with mock.patch.object(Point, "make", dropping):
        yield


@contextlib.contextmanager
def journal_dropped_too_far() -> Iterator[None]:
    """What was appended beside a durable point goes by what its checkpoint covers."""
    end = Point.end

    def dropping(point: Point) -> None:
        point._covered = point._journal.covered(point._reached.line_count)
        end(point)

    with mock.patch.object(Point, "end", dropping):
        yield


@contextlib.contextmanager
def written_beside_a_sync_counts_as_synced() -> Iterator[None]:
    def sync(file: GrowingFile, *, force: bool = False) -> None:
        if force or file._synced_count != file._change_count:
            file._file.sync()
            file._synced_count = file._change_count

    with mock.patch.object(GrowingFile, "sync", sync):
        yield


@contextlib.contextmanager
def all_of(*mutants: Mutant) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        for mutant in mutants:
            stack.enter_context(mutant())
        yield


@contextlib.contextmanager
def no_folder_sync_at_the_begin() -> Iterator[None]:
    with mock.patch.object(recovery, "sync_folders", nothing):
        yield


@contextlib.contextmanager
def no_folder_sync_with_the_journal() -> Iterator[None]:
    def sync_files_only(journal: Journal) -> None:
        for segment in journal._segments.values():
            segment.sync(force=True)
            segment.close()

    with mock.patch.object(Journal, "sync_all", sync_files_only):
        yield


def no_folder_syncs_in_recovery() -> contextlib.AbstractContextManager[object]:
    return all_of(no_folder_sync_at_the_begin, no_folder_sync_with_the_journal)


def no_file_syncs_in_recovery() -> contextlib.AbstractContextManager[object]:
    """What is read was never synced: the server before ours had been killed before it did."""
    return all_of(
        without_during((Journal, "sync_all"), (File, "sync")),
        without_during((Answers, "end_replay"), (GrowingFile, "sync")),
        lambda: mock.patch.object(recovery, "_open_answers", _open_answers_unsynced),
    )


def _open_answers_unsynced(*args: Any) -> Answers:  # noqa: ANN401 - passed on
    with mock.patch.object(GrowingFile, "sync", nothing):
        return _open_answers(*args)


_open_answers = recovery._open_answers


@contextlib.contextmanager
def output_not_cut_in_recovery() -> Iterator[None]:
    def end_replay(answers: Answers) -> None:
        answers.flush()
        answers.sync()

    with mock.patch.object(Answers, "end_replay", end_replay):
        yield


@contextlib.contextmanager
def journal_not_cut_in_recovery() -> Iterator[None]:
    with mock.patch.object(Journal, "end_replay", nothing):
        yield


@contextlib.contextmanager
def segments_dropped_with_what_was_tried() -> Iterator[None]:
    """What was tried does not count for where a segment ends."""
    append = Journal.append

    def uncounted(journal: Journal, frames: list[Frame]) -> list[int]:
        before = journal.mark()
        places = append(journal, frames)
        if frames:
            segment = journal._segments[journal.newest]
            ends = [frame.end for frame in frames if frame.kind is not Kind.TRIED]
            segment.top = max([before.top if segment.number == before.segment else 0, *ends])
        return places

    with mock.patch.object(Journal, "append", uncounted):
        yield


@contextlib.contextmanager
def settled_lines_tried_again() -> Iterator[None]:
    take = TriedIndex.take

    def take_all(tried: TriedIndex, *_: object) -> Iterator[tuple[range, bytes]]:
        return take(tried, 0, AheadIndex())

    with mock.patch.object(TriedIndex, "take", take_all):
        yield


MUTANTS: dict[str, Mutant] = {
    "acknowledged before the fsync": acknowledged_before_the_sync,
    "no fsync of the journal": without_during((Journal, "sync"), (Segment, "sync")),
    "no fsync of the folder of a new segment": segment_names_not_synced,
    "no fsync of a segment before its successor": without_during(
        (Journal, "_segment_with_room"), (Segment, "sync")
    ),
    "checkpoint before the fsync of the output": checkpoint_before_the_output,
    "no fsync of the output": without(Answers, "sync"),
    "no fsync of the checkpoint": checkpoint_not_synced,
    "one slot only": one_slot_only,
    "journal dropped before the checkpoint covers it": journal_dropped_too_early,
    "journal dropped beyond where the checkpoint was begun": journal_dropped_too_far,
    "what is written beside a sync counts as synced": written_beside_a_sync_counts_as_synced,
    "no fsync of folders in recovery": no_folder_syncs_in_recovery,
    "no fsync of files in recovery": no_file_syncs_in_recovery,
    "output not cut in recovery": output_not_cut_in_recovery,
    "journal not cut in recovery": journal_not_cut_in_recovery,
    "what was tried not read again": without(TriedIndex, "put"),
    "the first of what was tried kept": without_during((TriedIndex, "put"), (AheadIndex, "remove")),
    "segments dropped with what was tried": segments_dropped_with_what_was_tried,
    "settled lines tried again": settled_lines_tried_again,
}


@pytest.mark.parametrize("name", MUTANTS)
def test_a_mutant_is_caught(name: str) -> None:
    with MUTANTS[name]():
        seed = find_failing_seed(range(MAX_SEEDS))
    assert seed is not None, f"{MAX_SEEDS} trials do not notice: {name}"


@pytest.mark.parametrize("one", [no_folder_sync_at_the_begin, no_folder_sync_with_the_journal])
def test_either_folder_sync_in_recovery_is_enough(one: Mutant) -> None:
    """Left out alone, neither is missed: this is why the mutant leaves out both.

    Both come before the first acknowledgement of the new process, which is the first instant at
    which the name of a segment that was made, and not synced, by a killed process counts; and both
    sync the state folder, which is where such a segment is. The output's name was synced before
    ``run.json`` came to be.
    """
    with no_folder_syncs_in_recovery():
        seed = find_failing_seed(range(MAX_SEEDS))
    assert seed is not None
    with one():
        assert find_failing_seed(range(seed, seed + 30)) is None
