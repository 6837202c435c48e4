"""A repair of a job whose input was edited while it was stopped: no old answer comes back.

What the journal has of the edited blocks is dropped, wherever they lie; all other lines are kept.
"""

from __future__ import annotations

from unittest import mock

import pytest
from damage_helpers import FOLDER, STATE, Contents, contents, files_with, flipped
from repair_helpers import JOB, answered, line_of, mend_all, repaired
from storage_helpers import CrashFiles, settings_for

from trioline.config import Fsync, JobSettings
from trioline.storage import Job, Rejection, encode_record
from trioline.storage.files import Disk
from trioline.storage.repair.plan import examine
from trioline.storage.repair.salvage import Piece
from trioline.storage.verify.verification import find_subject, verify

LINES = 700
DAMAGED = set(range(64, 128))
"""The block of the output that is damaged; the journal may have some of it."""
INPUT, OUTPUT, REJECTED = FOLDER / "in", FOLDER / "out", FOLDER / "out.rejected"


pytestmark = pytest.mark.usefixtures("small_ends")


def text_of(lines: int = LINES) -> bytes:
    return b"".join(line_of(number) + b"\n" for number in range(lines))


def begun(
    settings: JobSettings,
    durable: int,
    *ahead: range,
    behind: range = range(0),
    lines: int = LINES,
    time: int = 0,
) -> Contents:
    """A job that was killed with a durable point, lines ahead of it, and some in turn behind it."""
    files, text = CrashFiles(), text_of(lines)
    files.put(INPUT, text)
    files.set_times(INPUT, time, time)
    job = Job.open(settings, files, segment_bytes=2_000)
    for first in range(0, durable, 50):
        job.commit(answered(range(first, min(first + 50, durable)), text))
    for some in ahead:
        job.commit(answered(some, text))
    job.sync(job.source.offset_of(job.written_count))
    if behind:
        job.commit(answered(behind, text))
    files.kill()
    return contents(files)


def edited(data: Contents, *lines: int) -> Contents:
    text = data[INPUT]
    for line in lines:
        text = text.replace(line_of(line), line_of(line).upper())
    return {**data, INPUT: text}


def finish(files: CrashFiles, settings: JobSettings) -> set[int]:
    """Do the rest, and hold all of it against the input as it is; returns what was open."""
    text = files.get(INPUT)
    count = text.count(b"\n")
    job = Job.open(settings, files)
    open_lines = set(range(job.written_count, count)).difference(*job.ahead())
    if open_lines:
        job.commit(answered(sorted(open_lines), text))
    job.finish(job.source.offset_of(count))
    job.close()
    wanted = answered(range(count), text)
    found = files.get(OUTPUT).splitlines(keepends=True)
    assert [at for at in range(count) if found[at] != wanted[at].data] == []
    assert len(found) == count
    assert verify(find_subject(Disk(files), settings), lambda _: (), files=files).is_proved
    return open_lines


def mended(data: Contents, settings: JobSettings) -> set[int]:
    """What a repair leaves open: as many lines as it announced."""
    files, plan = repaired(data)
    open_lines = finish(files, settings)
    assert len(open_lines) == plan.counts.open
    return open_lines


@pytest.mark.parametrize("is_restarted", [False, True])
@pytest.mark.parametrize("ahead", [range(600, 600), range(600, 620)])
@pytest.mark.parametrize("line", [5, 330, 447, 448, 460])
def test_the_answers_of_a_changed_block_are_dropped_and_no_others(
    settings: JobSettings, line: int, ahead: range, is_restarted: bool
) -> None:
    data = edited(begun(settings, 500, *[ahead] * bool(ahead)), line)
    if is_restarted:
        files = files_with(data)
        Job.open(settings, files).close()
        data = contents(files)
    first = line // 64 * 64
    changed = set(range(first, min(first + 64, 500)))
    assert mended(data, settings) == changed | set(range(500, LINES)) - set(ahead)


def test_changes_below_the_durable_point_and_ahead_of_it(settings: JobSettings) -> None:
    data = edited(begun(settings, 200, range(300, 340), range(400, 420)), 70, 310)
    files, plan = repaired(data)
    assert plan.found == (
        "/d/in was changed in lines 64 to 127",
        "/d/in was changed in lines 256 to 319, of which there are answers",
    )
    kept = {*range(320, 340), *range(400, 420)}
    wanted = set(range(64, 128)) | set(range(200, LINES)) - kept
    told = [step for step in plan.steps if "from the journal" in step]
    assert told == ["drop the answers of these lines from the journal: 20 lines"]
    assert finish(files, settings) == wanted
    assert plan.counts.open == len(wanted)


@pytest.mark.parametrize("ahead", [range(230, 260), range(300, 310)])
def test_what_is_saved_ends_where_a_changed_block_begins(
    settings: JobSettings, ahead: range
) -> None:
    """Else it would be held against what the journal knows of the block, and refused."""
    data = edited(begun(settings, 203, ahead), 218)
    data[OUTPUT] = flipped(data[OUTPUT], 70 * len(data[OUTPUT]) // 203)
    kept = [line for line in ahead if line > 255]
    assert mended(data, settings) - DAMAGED == set(range(192, LINES)) - set(kept)


def test_lines_before_the_durable_point_stay_where_only_the_rest_of_their_block_changed(
    settings: JobSettings,
) -> None:
    data = edited(begun(settings, 203, range(230, 260)), 218)
    assert mended(data, settings) == set(range(203, LINES)) - set(range(256, 260))


@pytest.mark.parametrize("changed", [(300,), (400,), (470,), (300, 470), (330, 400)])
def test_lines_handed_in_together_with_those_of_a_changed_block_are_kept(
    settings: JobSettings, changed: tuple[int, ...]
) -> None:
    """Some lie in front of it, some behind it, or both; not all of them are results."""
    files, text = CrashFiles(), text_of()
    files.put(INPUT, text)
    job = Job.open(settings, files)
    record = encode_record(350, line_of(350), attempts=1, losses=0, errors=["no"])
    rejection = Rejection(350, record)
    job.commit([*answered([*range(200), *range(290, 350), *range(351, 480)], text), rejection])
    job.sync(job.source.offset_of(job.written_count))
    files.kill()
    files, plan = repaired(edited(contents(files), *changed))
    blocks = {line // 64 for line in changed}
    dropped = {line for line in range(290, 480) if line // 64 in blocks}
    assert f"drop the answers of these lines from the journal: {len(dropped)} lines" in plan.steps
    job = Job.open(settings, files)
    assert set().union(*job.ahead()) == set(range(290, 480)) - dropped
    assert job.rejected_count + sum(350 in part for part in job.ahead()) == (350 not in dropped)
    job.commit(answered(range(200, 290), files.get(INPUT)))
    if dropped:
        job.commit(answered(sorted(dropped), files.get(INPUT)))
    output = files.get(OUTPUT).splitlines(keepends=True)
    wanted = answered(range(480), files.get(INPUT))
    others = [line for line in range(480) if output[line] != wanted[line].data]
    assert others == ([] if 350 in dropped else [350])
    assert 350 in dropped or files.get(REJECTED) == record
    job.close()


def test_lines_whose_places_the_journal_tells_are_kept_beside_a_changed_block() -> None:
    """They are in the output already, behind the durable point, and were handed in together."""
    settings = settings_for(FOLDER, fsync=Fsync.INTERVAL)
    files, text = CrashFiles(), text_of()
    files.put(INPUT, text)
    job = Job.open(settings, files)
    job.commit(answered(range(100), text))
    job.commit(answered(range(290, 300), text))
    job.sync(job.source.offset_of(job.written_count))
    job.commit(answered(range(100, 290), text))
    files.kill()
    assert mended(edited(contents(files), 260), settings) == {*range(256, 320), *range(300, LINES)}


def test_the_record_of_such_a_line_comes_back_from_the_journal(settings: JobSettings) -> None:
    files = CrashFiles()
    files.put(INPUT, text_of())
    job = Job.open(settings, files)
    record = encode_record(195, line_of(195), attempts=1, losses=0, errors=["no"])
    job.commit(answered(range(1, 195), text_of()))
    job.commit([Rejection(195, record)])
    job.commit(answered([*range(196, 203), *range(230, 260)], text_of()))
    job.commit(answered([0], text_of()))
    job.sync(job.source.offset_of(job.written_count))
    files.kill()
    data = edited(contents(files), 218)
    data[REJECTED] = b""
    files, plan = repaired(data)
    assert plan.counts.written == 203
    assert files.get(REJECTED) == record


@pytest.mark.parametrize("line", [70, 198, 310])
def test_with_both_slots_lost(settings: JobSettings, line: int) -> None:
    data = edited(begun(settings, 200, range(300, 340), range(400, 420)), line)
    del data[STATE / "checkpoint"]
    files = files_with(data)
    plan = mend_all(files)
    job = Job.open(settings, files)
    open_lines = set(range(job.written_count, LINES)).difference(*job.ahead())
    job.close()
    assert set(range(line // 64 * 64, line // 64 * 64 + 64)) <= open_lines
    assert len(open_lines) == plan.counts.open


def test_an_input_that_has_fewer_lines_now(settings: JobSettings) -> None:
    data = begun(settings, 641, lines=641)
    data[INPUT] = data[INPUT].replace(b"\nline 630", b" line 630")
    assert mended(data, settings) == set(range(576, 640))


def test_a_line_that_grew_moves_no_later_one(settings: JobSettings) -> None:
    """The durable point begins at another byte then."""
    data = begun(settings, 200, range(300, 340), range(400, 420))
    text = data[INPUT].replace(line_of(70), line_of(70) + b"s")
    data[INPUT] = text.replace(line_of(550), line_of(550)[:-1])
    wanted = set(range(64, 128)) | set(range(200, LINES))
    assert mended(data, settings) == wanted - set(range(300, 340)) - set(range(400, 420))


def test_what_was_recorded_of_a_block_is_not_asked_where_the_table_has_it(
    settings: JobSettings,
) -> None:
    """A block was edited before any of its lines was answered; its first record may still lie."""
    files = CrashFiles()
    files.put(INPUT, text_of())
    job = Job.open(settings, files)
    job.commit(answered(range(300, 340), text_of()))
    job.sync(0)
    files.kill()
    data = edited(contents(files), 200)
    files = files_with(data)
    job = Job.open(settings, files)
    job.commit(answered(range(290), data[INPUT]))
    job.sync(job.source.offset_of(job.written_count))
    files.kill()
    data = contents(files)
    data[OUTPUT] = flipped(data[OUTPUT], 70 * len(data[OUTPUT]) // 290)
    assert mended(data, settings) - DAMAGED == set(range(290, LINES)) - set(range(300, 340))


def test_planning_compares_no_frame_with_all_the_others() -> None:
    settings = settings_for(FOLDER)
    text = text_of(2_000)
    files = CrashFiles()
    files.put(INPUT, text)
    job = Job.open(settings, files)
    for line in range(64, 2_000):
        job.commit(answered([line], text))
    job.sync(0)
    files.kill()
    data = contents(files)
    lines = data[INPUT].split(b"\n")
    for at in range(64, 1_900):
        if at // 64 % 2:
            lines[at] = lines[at].upper()
    data[INPUT] = b"\n".join(lines)
    same = Piece.__eq__
    with mock.patch.object(Piece, "__eq__", autospec=True, side_effect=same) as compared:
        plan = examine(Disk(files_with(data)), JOB)
    assert plan.is_needed
    assert compared.call_count < 3_000


def unproved(files: CrashFiles, settings: JobSettings) -> list[tuple[int | None, int | None]]:
    """Do the rest; the lines that are not called proved then."""
    job = Job.open(settings, files)
    open_lines = set(range(job.written_count, LINES)).difference(*job.ahead())
    job.commit(answered(sorted(open_lines), files.get(INPUT)))
    job.finish(job.source.offset_of(LINES))
    job.close()
    report = verify(find_subject(Disk(files), settings), lambda _: (), files=files)
    return [(found.line, found.last_line) for found in report.findings]


@pytest.mark.parametrize("is_told", [False, True], ids=["not told yet", "told by a start"])
def test_nothing_kept_is_proved_where_the_checkpoint_is_lost_and_the_input_was_touched(
    settings: JobSettings, is_told: bool
) -> None:
    """Only the checkpoint knew how far the input was recorded, and which lines were in doubt."""
    data = begun(settings, 130, behind=range(130, 260), time=1)
    files = files_with(edited(data, 200))
    files.set_times(INPUT, 2, 2)
    if is_told:
        job = Job.open(settings, files)
        assert "Of lines 130 to 259 nothing recorded" in str(job.warning)
        job.sync(job.source.offset_of(job.written_count))
        job.close()
    files.unlink(STATE / "checkpoint")
    plan = mend_all(files)
    assert plan.found[-1] == (
        "/d/in may have been changed after some of the lines 0 to 259 were answered:"
        " `trioline verify` will not call them proved"
    )
    assert unproved(files, settings) == [(0, 259)]


def test_all_is_proved_where_the_checkpoint_is_lost_and_nobody_touched_the_input(
    settings: JobSettings,
) -> None:
    files = files_with(begun(settings, 130, behind=range(130, 260), time=1))
    files.set_times(INPUT, 1, 1)
    files.unlink(STATE / "checkpoint")
    mend_all(files)
    assert unproved(files, settings) == []
