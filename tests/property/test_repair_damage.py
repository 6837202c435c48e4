"""What a repair announces is what it does, and no result that still proves itself is lost."""

from __future__ import annotations

import re

from damage_helpers import FOLDER, STATE, Contents
from hypothesis import example, given
from hypothesis import strategies as st
from repair_helpers import LONG, LONG_REJECTED, LONG_RESULTS, Edit, long_job, redo, repaired
from storage_helpers import CrashFiles, settings_for

from trioline.config import Fsync
from trioline.errors import StorageError
from trioline.storage.checksums import BLOCK_LINES
from trioline.storage.files import Disk
from trioline.storage.verify.verification import find_subject, verify

OUTPUT = FOLDER / "out"
edits = st.builds(
    Edit,
    st.floats(0, 1, exclude_max=True),
    st.sampled_from([0, 1, 1, 1, 3, 60, 500, 4_000]),
    st.sampled_from([b"", b"x", b"\n", b"y\nz\n", bytes(60), bytes(500), b"\n" * 100]),
)
fsyncs = st.sampled_from([Fsync.ALWAYS, Fsync.INTERVAL])


def check_whole(files: CrashFiles) -> None:
    assert files.get(OUTPUT).splitlines(keepends=True) == list(LONG_RESULTS)
    records = files.get(FOLDER / "out.rejected").splitlines()
    assert [int(re.findall(rb'"id":(\d+)', record)[0]) for record in records] == sorted(
        LONG_REJECTED
    )


# The last block, of fewer lines, is found from the end.
@example([Edit(0.625, 4_000, b"")], Fsync.ALWAYS, True)
def damaged(draw: st.DataObject, job: Contents, *spared: str) -> Contents:
    """A job with up to three of its files damaged, but for some; the input is none of them."""
    data = dict(job)
    paths = sorted(path for path in data if path.name not in ("in", "run.json", *spared))
    for path in draw.draw(st.sets(st.sampled_from(paths), min_size=1, max_size=3)):
        how = draw.draw(st.sampled_from(["gone", "empty", "cut", "edited"]))
        if how == "gone":
            del data[path]
        elif how == "edited":
            data[path] = draw.draw(edits).apply(data[path])
        else:
            end = int(len(data[path]) * draw.draw(st.floats(0, 1))) if how == "cut" else 0
            data[path] = data[path][:end]
    return data


@given(st.lists(edits, min_size=1, max_size=3), fsyncs, st.booleans())
def test_only_the_blocks_that_were_edited_are_open(
    made: list[Edit], fsync: Fsync, is_done: bool
) -> None:
    data = dict(long_job(fsync=fsync, is_done=is_done))
    before = data[OUTPUT]
    touched: set[int] = set()
    for edit in made:
        if len(made) == 1:
            touched = {line // BLOCK_LINES for line in edit.lines(before)}
        data[OUTPUT] = edit.apply(data[OUTPUT])
    files, plan = repaired(data)
    missing = redo(files, settings_for(FOLDER, fsync=fsync))
    check_whole(files)
    if plan.is_needed:
        assert len(missing) == plan.counts.open
        if len(made) == 1 and is_done:
            assert {line // BLOCK_LINES for line in missing} <= touched


@given(st.data(), fsyncs, st.booleans())
def test_what_is_announced_is_what_is_done(
    draw: st.DataObject, fsync: Fsync, is_done: bool
) -> None:
    data = damaged(draw, long_job(fsync=fsync, is_done=is_done), "checksums")
    files, plan = repaired(data)
    counts = plan.counts
    assert counts.written + counts.ahead + counts.open == LONG
    missing = redo(files, settings_for(FOLDER, fsync=fsync))
    if plan.is_needed:
        assert len(missing) == counts.open
        known = 0 if plan.last is None else plan.last.line_count
        assert counts.redone >= len([line for line in missing if line < known])
    is_same = files.get(OUTPUT).splitlines(keepends=True) == list(LONG_RESULTS)
    assert is_same or plan.assumed


@given(st.data(), fsyncs, st.booleans())
def test_what_is_not_what_it_was_is_never_proved_by_a_repair(
    draw: st.DataObject, fsync: Fsync, is_done: bool
) -> None:
    settings = settings_for(FOLDER, fsync=fsync)
    data = damaged(draw, long_job(fsync=fsync, is_done=is_done))
    try:
        files, plan = repaired(data)
    except StorageError as error:
        refusal = str(error)
    else:
        refusal = ""
    if refusal:
        assert "cannot be repaired" in refusal
        return
    redo(files, settings)
    report = verify(find_subject(Disk(files), settings), lambda _: (), files=files)
    is_same = files.get(OUTPUT).splitlines(keepends=True) == list(LONG_RESULTS)
    assert is_same or not report.is_proved
    assert report.is_proved or plan.assumed


@given(fsyncs, st.booleans(), st.floats(0, 1), st.booleans())
def test_a_lost_table_costs_nothing(
    fsync: Fsync, is_done: bool, kept: float, is_there: bool
) -> None:
    data = dict(long_job(fsync=fsync, is_done=is_done))
    path = STATE / "checksums"
    whole = data.pop(path)
    short = whole[: int(kept * len(whole))] if is_there else b""
    if is_there:
        data[path] = short
    files, plan = repaired(data)
    assert plan.is_needed == (len(short) < len(whole))
    assert not plan.is_needed or files.get(path)[: len(whole)] == whole
    missing = redo(files, settings_for(FOLDER, fsync=fsync))
    assert not missing or not is_done
    check_whole(files)
