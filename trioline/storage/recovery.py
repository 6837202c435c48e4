"""From files to a job that can go on, whatever the last server was at when it ended.

The steps: sync the files before trusting them; read the checkpoint; hold the output against it;
replay the journal, and take out what is bad in its midst; cut off what nothing vouches for, with a
copy; sync; write a checkpoint of a new epoch. All before the cutting only writes again what was
there, so a crash inside changes nothing.
"""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

import attrs

from trioline.config import Fsync, JobSettings
from trioline.errors import StorageError
from trioline.storage.ahead import AheadIndex
from trioline.storage.answers import Answers
from trioline.storage.checkpoint import Checkpoint, CheckpointFile
from trioline.storage.covering import Checksums, replaced
from trioline.storage.damage import damaged
from trioline.storage.doubts import check_input, doubt, offset_of
from trioline.storage.files import Disk
from trioline.storage.frames import Kind
from trioline.storage.journal import Journal, Mark
from trioline.storage.kept import keep_tail
from trioline.storage.merge import Merge
from trioline.storage.opening import CHECKPOINT_NAME, sync_folders
from trioline.storage.output import GrowingFile
from trioline.storage.point import Point
from trioline.storage.rejected import where_in
from trioline.storage.run import Run
from trioline.storage.source import Source
from trioline.storage.standing import Standing
from trioline.storage.state import State
from trioline.storage.system import Stat
from trioline.storage.tried import TriedIndex

_WHOLE_BYTES = 16 * 1024 * 1024
"""A rejected file up to here is read as a whole by a start, which so takes no longer for it than
some hundredths of a second; of a longer one the end."""


def recover(
    disk: Disk,
    settings: JobSettings,
    run: Run,
    segment_bytes: int,
    *,
    given: Stat | None = None,
    is_mended: bool = False,
) -> State:
    """Open a job's files and bring them to where the last server was.

    Args:
        given: The input that was held against ``run``; None: nobody changes it meanwhile.
        is_mended: Whether this is the end of a repair: what it held against the input, the journal
            is to have of the lines ahead.

    Raises:
        StorageError: A file is missing or is not what was written.
    """
    with contextlib.ExitStack() as opened:
        sync_folders(disk, settings)
        state = _open_files(disk, settings, run, segment_bytes, given, opened)
        state.checksums.check(state.last)
        if state.last.finished:
            state = _take_up_finished(state)
        else:
            state = _replay(state)
            warnings = []
            if state.journal.has_gaps:
                warnings = [state.journal.take_out_gaps()]
                opened.close()
                state = _open_files(disk, settings, run, segment_bytes, given, opened)
                state = _replay(state)
            warnings += _end_replay(disk, settings, state)
            state = doubt(state)
            state = _with_warnings(state, warnings)
            state = _go_on(disk, settings, run, state, opened, is_mended=is_mended)
        opened.pop_all()
    return state


def _open_files(
    disk: Disk,
    settings: JobSettings,
    run: Run,
    segment_bytes: int,
    given: Stat | None,
    opened: contextlib.ExitStack,
) -> State:
    """Open all there is, as the last checkpoint has it."""
    path = settings.state / CHECKPOINT_NAME
    if disk.stat(path) is None:
        raise damaged(path, "is missing", settings.output)
    checkpoints = CheckpointFile(disk, path)
    opened.callback(checkpoints.close)
    checkpoints.sync()
    last = checkpoints.read(run.id_bytes)
    answers = _open_answers(disk, settings, last)
    opened.callback(answers.close)
    journal = Journal(
        disk,
        settings.state,
        run.id_bytes,
        segment_bytes=segment_bytes,
        is_synced_often=settings.fsync is Fsync.ALWAYS,
    )
    opened.callback(journal.close)
    source = _open_source(disk, settings, run, given, last.line_count, last.input_offset)
    opened.callback(source.close)
    checksums = Checksums(
        disk,
        settings.state,
        settings.input,
        answers.output,
        answers.rejected,
        source.stat,
    )
    opened.callback(checksums.close)
    return State(
        checkpoints=checkpoints,
        last=last,
        answers=answers,
        journal=journal,
        ahead=AheadIndex(),
        tried=TriedIndex(journal),
        checksums=checksums,
        source=source,
        standing=Standing(disk, settings),
    )


def _take_up_finished(state: State) -> State:
    """Hold a job that is over against its checkpoint, which it may have in one slot only."""
    state.answers.output.check_end()
    state.answers.rejected.check_end()
    last = state.last
    if not state.checkpoints.is_doubled(last):
        last = state.checkpoints.repeat(last)
    state.journal.drop_all()
    return attrs.evolve(state, last=last)


def _go_on(
    disk: Disk,
    settings: JobSettings,
    run: Run,
    state: State,
    opened: contextlib.ExitStack,
    *,
    is_mended: bool,
) -> State:
    """After the replay: the input from where the output ends, and a checkpoint of a new epoch."""
    answers, last = state.answers, state.last
    offset = offset_of(state.source, answers.written_count, settings.state)
    given = state.source.stat
    state.source.close()
    source = _open_source(disk, settings, run, given, answers.written_count, offset)
    opened.callback(source.close)
    ahead_end, epoch = state.ahead.end if is_mended else 0, last.epoch + 1
    # Again where the first one recorded what the input is: that is then safe, too.
    while last.epoch < epoch or state.journal.unsynced() is not None:
        point = Point.begin(state, last, offset, ahead_end=ahead_end, epoch=epoch)
        point.make()
        # Else a server that is killed before each durable point leaves one more segment each time.
        point.end()
        last = point.checkpoint
    return attrs.evolve(state, last=last, source=source)


def _open_answers(disk: Disk, settings: JobSettings, last: Checkpoint) -> Answers:
    with contextlib.ExitStack() as opened:
        output = _open_growing(disk, settings.output, last.output_bytes, settings.output)
        opened.callback(output.close)
        if not last.rejected_bytes and disk.stat(settings.rejected) is None:
            # Nothing was lost with it: the journal has each record that it may have had besides.
            disk.write_whole(settings.rejected, b"")
            disk.sync_folder(settings.rejected.parent)
        rejected = _open_growing(disk, settings.rejected, last.rejected_bytes, settings.output)
        opened.callback(rejected.close)
        for file in (output, rejected):
            file.sync(force=True)
        output.check_begin(last.tail_bytes, last.tail_crc)
        _check_records(disk, rejected, last)
        opened.pop_all()
    return Answers(
        output,
        rejected,
        placeholder=settings.placeholder,
        written_count=last.line_count,
        rejected_count=last.rejected_count,
    )


def _check_records(disk: Disk, rejected: GrowingFile, last: Checkpoint) -> None:
    end = last.rejected_bytes
    begin = end - last.rejected_tail_bytes
    is_whole = end <= _WHOLE_BYTES
    try:
        rejected.check_begin(last.rejected_tail_bytes, last.rejected_tail_crc)
        begin, end = 0, begin
        if is_whole:
            rejected.check_whole(last.rejected_tail_bytes, last.rejected_crc)
    except StorageError as error:
        if not is_whole or disk.size(rejected.path) < last.rejected_bytes:
            raise
        where = where_in(disk.read_whole(rejected.path, _WHOLE_BYTES), begin, end)
        raise StorageError(f"{error} {where}", error.path) from error


def _open_growing(disk: Disk, path: Path, length: int, output: Path) -> GrowingFile:
    if disk.stat(path) is None:
        raise damaged(path, f"is missing, but a job had {length} safe bytes in it", output)
    return GrowingFile(disk, path, length, output=output)


def _open_source(
    disk: Disk, settings: JobSettings, run: Run, given: Stat | None, line: int, offset: int
) -> Source:
    source = Source(
        disk.files,
        settings.input,
        first=line,
        offset=offset,
        max_line_bytes=settings.max_line_bytes,
    )
    is_given = given is None or source.stat.is_unchanged(given)
    if source.size_bytes != run.input_bytes or not is_given:
        source.close()
        raise replaced(settings.input)
    return source


def _replay(state: State) -> State:
    journal, answers, ahead, last = state.journal, state.answers, state.ahead, state.last
    journal.sync_all()
    merge = Merge(answers, journal, ahead)
    durable = Mark(last.journal_segment, last.journal_bytes, 0)
    recent_from = durable.place
    first, end = sys.maxsize, 0
    for frame, place in journal.replay(durable):
        if frame.kind is Kind.INPUT:
            state.checksums.ahead.put(frame)
            continue
        if frame.kind is Kind.TRIED:
            if frame.end > answers.written_count:
                state.tried.put(frame, place)
            continue
        if place >= recent_from:
            first, end = min(first, frame.first), max(end, frame.end)
        merge.apply(frame, place)
    journal.check_complete(last.line_count, last.journal_segment, last.journal_older_bytes)
    check_input(state)
    return attrs.evolve(state, recent=range(first, end))


def _end_replay(disk: Disk, settings: JobSettings, state: State) -> list[str]:
    """Cut off what nothing vouches for; returns what the user should know of that."""
    answers, journal = state.answers, state.journal
    answers.flush()
    kept = [keep_tail(disk, file, settings.state) for file in (answers.output, answers.rejected)]
    answers.end_replay()
    state.ahead.advance(state.last.line_count, answers.written_count)
    journal.end_replay()
    journal.sync_all()
    return [warning for warning in kept if warning is not None]


def _with_warnings(state: State, warnings: list[str]) -> State:
    if state.warning is not None:
        warnings = [*warnings, state.warning]
    return attrs.evolve(state, warning=" ".join(warnings) or None)
