"""What a start refuses, ``trioline repair`` mends, or says that it cannot be mended."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import attrs
import pytest
from damage_helpers import (
    CHANGES,
    FOLDER,
    LINES,
    STATE,
    Contents,
    all_done,
    answer,
    check_finished,
    contents,
    cut,
    entry,
    files_with,
    finish,
    flipped,
    half_done,
    inverted,
    judge,
    length_of,
    paths_of,
)
from processes import Plain, invoke, numbers, serving, trioline
from processes import contents as on_disk
from repair_helpers import (
    COPIES,
    JOB,
    LONG,
    LONG_RESULTS,
    long_entry,
    long_job,
    mend_all,
    mended_after_kills,
    redo,
    repaired,
)
from storage_helpers import CrashFiles, input_of, settings_for

from trioline.config import Fsync, JobSettings
from trioline.errors import StorageError, UsageError
from trioline.storage.checkpoint import SLOT_BYTES, SLOT_SPACING_BYTES
from trioline.storage.checksums import BLOCK_LINES, ENTRY_BYTES
from trioline.storage.entries import Results, Tried
from trioline.storage.files import Disk
from trioline.storage.frames import HEADER_BYTES
from trioline.storage.job import Job
from trioline.storage.repair.plan import Counts, examine
from trioline.storage.verify.verification import find_subject, verify


@pytest.fixture(params=[Fsync.ALWAYS, Fsync.INTERVAL])
def fsync(request: pytest.FixtureRequest) -> Fsync:
    policy: Fsync = request.param
    return policy


def outcome(damaged: Contents, settings: JobSettings) -> tuple[str, int]:
    """What became of damage: repaired, nothing to do, or refused by an error's name."""
    verdict = judge(damaged, settings, durable=set())
    try:
        files = files_with(damaged)
        plan = mend_all(files, attrs.evolve(JOB, input=settings.input))
    except (StorageError, UsageError) as error:
        how = type(error).__name__
    else:
        missing = finish(files, settings)
        check_finished(files, settings)
        assert not plan.is_needed or len(missing) == plan.counts.open
        assert plan.is_needed or verdict.how == "recovered", verdict
        return ("repaired" if plan.is_needed else "nothing"), len(missing)
    assert verdict.how != "recovered", how
    return how, 0


def places(name: str, length: int, *, is_big: bool) -> list[int]:
    """The bytes of a file to be damaged; of a checkpoint's padding some are enough."""
    if not is_big:
        return list(range(0, length, {"checkpoint": 331, "run.json": 17}.get(name, 13)))
    slots = (range(SLOT_BYTES), range(SLOT_SPACING_BYTES, SLOT_SPACING_BYTES + SLOT_BYTES))
    is_padded = name == "checkpoint"
    return [
        at
        for at in range(length)
        if not is_padded or at % 97 == 0 or any(at in slot for slot in slots)
    ]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["checkpoint", "checksums", "run.json", "out", "journal"])
@pytest.mark.parametrize("done", [False, True])
def test_what_a_start_refuses_is_mended(fsync: Fsync, name: str, done: bool, is_big: bool) -> None:
    data = all_done(fsync) if done else half_done(fsync)
    settings = settings_for(FOLDER, fsync=fsync)
    counts: Counter[str] = Counter()
    for path in paths_of(data):
        for change in CHANGES if path.name.startswith(name) else ():
            for at in places(name, length_of(data[path]), is_big=is_big):
                how, redone = outcome({**data, path: change(data[path], at)}, settings)
                counts[how] += 1
                counts["recomputed"] += redone
    print(fsync, name, "finished" if done else "half done", dict(counts))
    assert set(counts) <= {"repaired", "nothing", "NewerFormat", "recomputed"}
    assert counts["repaired"] > 0 or not data_of(data, name)
    if done and name != "out":
        assert counts["recomputed"] == 0


def data_of(data: Contents, name: str) -> bytes:
    """All that is in the files whose names begin so."""
    return b"".join(content for path, content in data.items() if path.name.startswith(name))


def test_every_file_that_is_gone_or_empty(fsync: Fsync) -> None:
    settings = settings_for(FOLDER, fsync=fsync)
    for data in (half_done(fsync), all_done(fsync)):
        for path in paths_of(data):
            without = {other: content for other, content in data.items() if other != path}
            for damaged in (without, {**data, path: b""}):
                assert outcome(damaged, settings)[0] in ("repaired", "nothing"), path


def test_the_good_frames_of_a_damaged_segment_are_kept() -> None:
    settings = settings_for(FOLDER)
    files = files_with({FOLDER / "in": input_of(LINES)})
    job = Job.open(settings, files)
    for line in (5, 7, 9):
        job.commit([entry(line)])
    job.sync(0)
    job.close()
    data, path = contents(files), STATE / "journal-00000001"
    wounded = inverted(data[path], len(data[path]) // 2)
    files, plan = repaired({**data, path: wounded})
    frame_bytes = HEADER_BYTES + len(answer(5))
    assert f"{path} is damaged at byte {frame_bytes}" in " ".join(plan.found)
    assert "3 frames are good" in " ".join(plan.found)
    assert files.get(COPIES / path.name) == wounded
    assert finish(files, settings) == set(range(LINES)) - {5, 9}
    check_finished(files, settings)


def test_what_was_tried_is_kept_and_settles_nothing() -> None:
    """Neither is a line more of the output believed for it, nor one less told as lost."""
    settings = settings_for(FOLDER)
    files = files_with({FOLDER / "in": input_of(LINES)})
    job = Job.open(settings, files)
    job.commit([*(entry(line) for line in range(5)), Tried(0, 10, b"once")])
    job.commit([Tried(9, 1, b"twice")])
    job.sync(job.source.offset_of(5))
    job.close()
    data, path = contents(files), STATE / "journal-00000001"
    wounded = {path: flipped(data[path], 40)}  # in the results of the lines 0 to 2
    output = data[settings.output]
    cut_short = {settings.output: b"".join(output.splitlines(keepends=True)[:2])}
    no_table = {STATE / "checkpoint": bytes(8_192), STATE / "checksums": b""}
    longer = {settings.output: output + answer(5) * 3}
    for change, redone in (
        (wounded, []),
        (wounded | cut_short, [0, 1, 2]),
        (no_table | longer, []),
    ):
        files, plan = repaired({**data, **change})
        assert plan.counts.redone == len(redone)
        job = Job.open(settings, files)
        lines = [*redone, *range(5, 10)]
        assert [line for part, _ in job.tried() for line in part] == lines
        job.close()
        job = Job.open(settings, files)
        assert list(job.tried())[-2:] == [(range(5, 9), b"once"), (range(9, 10), b"twice")]
        job.close()


def test_a_record_that_only_the_journal_has_comes_back() -> None:
    settings = settings_for(FOLDER)
    files = files_with({FOLDER / "in": input_of(LINES)})
    job = Job.open(settings, files)
    job.commit([entry(line) for line in range(6)])  # line 3 is rejected
    files.kill()
    damaged = {
        **contents(files),
        settings.rejected: b"",
        STATE / "checkpoint": bytes(8_192),
    }
    files, plan = repaired(damaged)
    assert plan.base.lines == 3
    assert finish(files, settings) == set(range(6, LINES))
    check_finished(files, settings)
    assert b'"errors":["no"]' in files.get(settings.rejected).splitlines()[0]


def test_both_slots_gone_cost_nothing(fsync: Fsync) -> None:
    data = half_done(fsync)
    settings = settings_for(FOLDER, fsync=fsync)
    baseline = finish(files_with(data), settings)
    files, plan = repaired({**data, STATE / "checkpoint": bytes(8_192)})
    assert "neither of its two slots" in plan.found[0]
    assert finish(files, settings) == baseline


# --- without a checkpoint -------------------------------------------------------------------------


def begun(fsync: Fsync, *, is_restarted: bool = False) -> Contents:
    """A job of which 150 lines are written, two blocks of them in the table.

    Started again at line 134, it has a journal only from there on.
    """
    settings = settings_for(FOLDER, fsync=fsync)
    files = CrashFiles()
    files.put(settings.input, input_of(LONG))
    job = Job.open(settings, files)
    job.commit([long_entry(line) for line in range(134)])
    job.sync(job.source.offset_of(134))
    if is_restarted:
        job.close()
        job = Job.open(settings, files)
    job.commit([long_entry(line) for line in range(134, 150)])
    job.sync(job.source.offset_of(150))
    files.kill()
    data = contents(files)
    del data[STATE / "checkpoint"]
    return data


def is_proved(files: CrashFiles, settings: JobSettings) -> bool:
    return verify(find_subject(Disk(files), settings), lambda _: (), files=files).is_proved


def test_what_the_journal_proves_is_not_kept_by_its_form(fsync: Fsync) -> None:
    settings = settings_for(FOLDER, fsync=fsync)
    files, plan = repaired(begun(fsync))
    assert plan.counts == Counts(written=150, ahead=0, open=LONG - 150, redone=0)
    assert not plan.assumed
    redo(files, settings)
    assert is_proved(files, settings)


def test_only_what_nothing_proves_is_kept_by_its_form(fsync: Fsync) -> None:
    settings = settings_for(FOLDER, fsync=fsync)
    files, plan = repaired(begun(fsync, is_restarted=True))
    assert plan.assumed == range(128, 134)
    redo(files, settings)
    assert not is_proved(files, settings)
    assert files.get(settings.output) == b"".join(LONG_RESULTS)


@pytest.mark.parametrize("is_restarted", [False, True])
def test_what_the_journal_disproves_is_not_kept(fsync: Fsync, is_restarted: bool) -> None:
    """The journal has the result itself under ``always``; else it is computed again."""
    settings = settings_for(FOLDER, fsync=fsync)
    data = begun(fsync, is_restarted=is_restarted)
    lines = data[settings.output].splitlines(keepends=True)
    lines[140] = lines[140].replace(b'"n":140', b'"n":141')
    files, plan = repaired({**data, settings.output: b"".join(lines)})
    line = 140 if fsync is Fsync.ALWAYS else 134
    byte = sum(map(len, lines[:line]))
    assert f"/d/out: line {line} (byte {byte:,}) is not what the journal has of it" in plan.found
    redo(files, settings)
    assert files.get(settings.output) == b"".join(LONG_RESULTS)
    assert is_proved(files, settings) != is_restarted


def test_a_line_put_in_where_no_sum_is_known_is_found_by_what_follows(fsync: Fsync) -> None:
    settings = settings_for(FOLDER, fsync=fsync)
    data = begun(fsync, is_restarted=True)
    lines = data[settings.output].splitlines(keepends=True)
    edited = b"".join([*lines[:129], b'"new"\n', *lines[129:]])
    files, _ = repaired({**data, settings.output: edited})
    redo(files, settings)
    is_whole = files.get(settings.output) == b"".join(LONG_RESULTS)
    assert is_whole == is_proved(files, settings)
    if fsync is Fsync.INTERVAL:
        assert is_whole


# --- blocks --------------------------------------------------------------------------------------


def many(count: int) -> tuple[Contents, JobSettings, bytes]:
    """A finished job of many blocks."""
    files = CrashFiles()
    files.put(FOLDER / "in", input_of(count))
    settings = settings_for(FOLDER)
    job = Job.open(settings, files)
    oracle = b"".join(many_entry(n).data for n in range(count))
    job.commit([Results(0, count, oracle)])
    job.finish(job.source.offset_of(count))
    job.close()
    return contents(files), settings, oracle


def many_entry(line: int) -> Results:
    return Results(line, 1, b'{"n":%d}\n' % line)


@pytest.mark.parametrize("count", [200, 256])
def test_only_the_block_that_was_edited_is_done_again(count: int) -> None:
    data, settings, oracle = many(count)
    at = oracle.index(b'{"n":150}')
    edited = oracle[:at] + b'{"n":151}' + oracle[at + 9 :]
    files, plan = repaired({**data, settings.output: edited})
    assert plan.base.lines == 128
    assert plan.counts == Counts(written=128, ahead=count - 192, open=64, redone=64)
    assert files.get(STATE / "checksums") == data[STATE / "checksums"][: 2 * ENTRY_BYTES]
    copy = COPIES / f"out-from-{plan.base.output_bytes}"
    lines = edited.splitlines(keepends=True)
    assert files.get(copy) == b"".join(lines[128:192])
    job = Job.open(settings, files)
    assert list(job.ahead()) == [range(192, count)]
    begin, end = oracle.index(b'{"n":128}'), oracle.index(b'{"n":192}')
    job.commit([Results(128, 64, oracle[begin:end])])
    job.finish(job.source.offset_of(count))
    job.close()
    assert files.get(settings.output) == oracle
    assert files.get(STATE / "checksums") == data[STATE / "checksums"]


def test_a_cut_output_keeps_its_whole_lines_where_no_sum_is_known() -> None:
    data, settings, oracle = many(200)
    damaged = {**data, settings.output: cut(oracle, 1_000), STATE / "checksums": b""}
    files, plan = repaired(damaged)
    assert plan.base.lines == oracle[:1_000].count(b"\n")
    assert "by their form alone" in " ".join(plan.found)
    assert files.get(settings.output) == oracle[: plan.base.output_bytes]


@pytest.mark.parametrize("lost", [("checksums",), ("checksums", "checkpoint")])
def test_an_edited_output_is_kept_by_its_form_where_nothing_records_what_it_was(
    fsync: Fsync, lost: tuple[str, ...]
) -> None:
    """To lose more must not save more."""
    data, settings, oracle = many(200)
    assert oracle.count(b'{"n":100}') == 1
    damaged = {**data, settings.output: oracle.replace(b'{"n":100}', b'{"n":111}')}
    damaged |= {STATE / name: b"" for name in lost}
    _, plan = repaired(damaged)
    assert "by their form alone" in " ".join(plan.found)
    assert plan.counts.open == 0
    assert 100 in plan.assumed
    _, plan = repaired(damaged, attrs.evolve(JOB, recomputes_unproved=True))
    assert plan.counts.open >= BLOCK_LINES


def test_a_short_table_is_made_anew_and_costs_nothing() -> None:
    data, settings, oracle = many(200)
    table = data[STATE / "checksums"]
    files, plan = repaired({**data, STATE / "checksums": table[: 2 * ENTRY_BYTES]})
    path = STATE / "checksums"
    assert plan.found == (f"{path} ends at byte 16, but 32 were safe",)
    assert plan.steps == (f"make {path} anew from input and output",)
    assert plan.counts == Counts(written=200, ahead=0, open=0, redone=0)
    assert files.get(STATE / "checksums") == table
    assert files.get(settings.output) == oracle


def test_an_entry_of_another_block_moves_no_line() -> None:
    """Eight bytes in the table are an entry more: each block then has the one before it."""
    data, settings, oracle = many(256)
    table = data[STATE / "checksums"]
    damaged = {
        **data,
        STATE / "checksums": table[:8] + table[:8] + table[8:],
        settings.output: oracle.replace(b'{"n":70}', b'{"n":71}'),
    }
    _, plan = repaired(damaged)
    assert plan.assumed == range(64, 256)
    assert plan.counts.open == 0


def test_lines_of_the_input_that_changed_are_answered_anew() -> None:
    # Of an input only the first and the last MiB are looked at by a start.
    files = CrashFiles()
    given = b"".join(b"%04d%s\n" % (line, b"x" * 1_000) for line in range(2_560))
    files.put(FOLDER / "in", given)
    settings = settings_for(FOLDER)
    job = Job.open(settings, files)
    job.commit([Results(0, 2_560, b"".join(b"%d\n" % line for line in range(2_560)))])
    job.finish(job.source.offset_of(2_560))
    job.close()
    _, plan = repaired({**contents(files), FOLDER / "in": inverted(given, 1_300 * 1_005)})
    assert plan.found == ("/d/in was changed in lines 1,280 to 1,343",)
    assert plan.counts == Counts(written=1_280, ahead=2_560 - 1_344, open=64, redone=64)


def test_the_journal_is_named_only_where_it_is_damaged() -> None:
    data = half_done(Fsync.ALWAYS)
    _, plan = repaired({**data, STATE / "checkpoint": bytes(8_192)})
    assert not plan.is_journal_damaged
    oldest = min(path for path in data if path.name.startswith("journal"))
    without = {path: content for path, content in data.items() if path != oldest}
    for damaged in (without, {**data, oldest: cut(data[oldest], 5)}):
        assert repaired(damaged)[1].is_journal_damaged


def test_a_hole_in_the_output_costs_only_what_was_in_it() -> None:
    data = long_job(fsync=Fsync.ALWAYS, is_done=True)
    output = data[FOLDER / "out"]
    _, plan = repaired({**data, FOLDER / "out": output[:2_000] + bytes(6_000) + output[8_000:]})
    lost = output[2_000:8_000].count(b"\n")
    assert lost <= plan.counts.open <= lost + 2 * BLOCK_LINES
    assert plan.counts.written + plan.counts.ahead + plan.counts.open == LONG


def test_an_input_that_is_another_one_is_not_matched() -> None:
    data, settings, _ = many(10)
    damaged = {**data, settings.input: b"other\n" * 10, STATE / "checkpoint": b""}
    with pytest.raises(UsageError, match=r"belongs to a job whose input had.*Put the input back"):
        examine(Disk(files_with(damaged)), JOB)


# --- killed while it mends -----------------------------------------------------------------------


def wounds(data: Contents) -> list[Contents]:
    oldest = min(path for path in data if path.name.startswith("journal"))
    return [
        {**data, STATE / "checkpoint": b""},
        {**data, oldest: inverted(data[oldest], 40)},
        {**data, FOLDER / "out": cut(data[FOLDER / "out"], 60)},
        {**data, FOLDER / "out.rejected": b""},
        {**data, STATE / "run.json": b"{}", oldest: cut(data[oldest], 40)},
    ]


def long_wounds(data: Contents) -> list[Contents]:
    """Of a finished job: blocks that hold behind one that does not, rejected lines among them."""
    output, table = data[FOLDER / "out"], data[STATE / "checksums"]
    edited = {**data, FOLDER / "out": inverted(output, 2_500)}
    return [
        edited,
        {**edited, FOLDER / "out.rejected": b"", STATE / "run.json": b"{}"},
        {**data, STATE / "checksums": table[:20]},
        {**data, STATE / "checksums": table[:-16], FOLDER / "out": output[:2_000] + output[2_700:]},
    ]


@pytest.mark.slow
@pytest.mark.parametrize("wound", range(4))
def test_a_kill_leaves_what_was_kept_or_what_is_saved(fsync: Fsync, wound: int) -> None:
    settings = settings_for(FOLDER, fsync=fsync)
    rng = random.Random(wound)
    job = attrs.evolve(JOB, input=FOLDER / "in", placeholder=b"null")
    damaged = long_wounds(long_job(fsync=fsync, is_done=True))[wound]
    unharmed = redo(repaired(damaged, job)[0], settings)
    assert len(unharmed) < 3 * BLOCK_LINES
    kills = 0
    for files in mended_after_kills(damaged, job, rng):
        kills += 1
        assert redo(files, settings) == unharmed
        assert files.get(settings.output) == b"".join(LONG_RESULTS)
    assert kills > 30


@pytest.mark.slow
def test_a_kill_at_any_call_leaves_it_to_be_mended_again(fsync: Fsync) -> None:
    settings = settings_for(FOLDER, fsync=fsync)
    rng = random.Random(1)
    job = attrs.evolve(JOB, input=FOLDER / "in")
    kills = 0
    for damaged in wounds(half_done(fsync)):
        unharmed = len(finish(repaired(damaged, job)[0], settings))
        for files in mended_after_kills(damaged, job, rng):
            kills += 1
            assert len(finish(files, settings)) == unharmed
            check_finished(files, settings)
    assert kills > 100


# --- the command ---------------------------------------------------------------------------------


@pytest.fixture
def stopped(tmp_path: Path) -> Path:
    """A folder with a job of which 100 of 300 lines are done."""
    (tmp_path / "in").write_bytes(numbers(300))
    with serving("in", "out", cwd=tmp_path) as serve, Plain(serve.port) as plain:
        first, lines = plain.get_lines(100) or (0, [])
        assert plain.done_lines(first, lines)["accepted"] == 100
        serve.stop()
    return tmp_path


def test_the_command_tells_before_it_does(
    stopped: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(stopped)
    capture = capfd.readouterr
    assert (
        invoke("repair", "out", capture=capture).stdout == "Nothing is damaged: 100 lines hold.\n"
    )
    checkpoint = stopped / "out.trioline" / "checkpoint"
    checkpoint.write_bytes(bytes(8_192))
    before = on_disk(stopped)
    refused = invoke("serve", "in", "out", "--port", "0", capture=capture)
    assert refused.code == 74
    assert refused.stderr.count("\n") == 1
    assert f"{checkpoint.relative_to(stopped)} is damaged" in refused.stderr
    assert "trioline repair out" in refused.stderr
    told = invoke("repair", "out", capture=capture)
    assert told.code == 1
    assert "found: out.trioline/checkpoint is damaged" in told.stdout
    assert "Then 100 lines are in the output, 0 wait in the journal" in told.stdout
    assert on_disk(stopped) == before
    done = invoke("repair", "out", "--yes", capture=capture)
    assert (done.code, done.stderr) == (0, "")
    assert "100 lines written" in done.stdout
    assert invoke("repair", "out", capture=capture).code == 0
    with serving("in", "out", cwd=stopped) as serve, Plain(serve.port) as plain:
        while (work := plain.get_lines(1_000)) is not None:
            plain.done_lines(*work)
        assert serve.stop().code == 0
    assert (stopped / "out").read_bytes() == numbers(300)


def test_a_job_that_runs_is_left_alone(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "in").write_bytes(numbers(3))
    monkeypatch.chdir(tmp_path)
    with serving("in", "out", cwd=tmp_path):
        refused = invoke("repair", "out", "--yes", capture=capfd.readouterr)
    assert refused.code == 1
    assert "is at work on out.trioline: stop it first" in refused.stderr


def test_what_is_no_job_is_said(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    refused = invoke("repair", "nothing", capture=capfd.readouterr)
    assert (refused.code, "nothing.trioline is missing" in refused.stderr) == (2, True)
    assert not list(tmp_path.iterdir())
    (tmp_path / "nothing.trioline").touch()
    refused = invoke("repair", "nothing", capture=capfd.readouterr)
    assert (refused.code, "nothing.trioline is no folder" in refused.stderr) == (2, True)


def answer_and_stop(folder: Path, first: int) -> None:
    """Serve ten lines, have three of them answered, and stop."""
    (folder / "in").write_bytes(b"1\n" * 10)
    with serving("in", "out", "--drain", "0", cwd=folder) as server, Plain(server.port) as plain:
        plain.get_lines(10)
        plain.done_lines(first, [b"7"] * 3)
        assert server.stop().code == 4


@pytest.mark.slow
def test_a_journal_that_is_gone_leaves_the_count_open(tmp_path: Path) -> None:
    answer_and_stop(tmp_path, 4)
    for path in (tmp_path / "out.trioline").glob("journal-*"):
        path.unlink()
    told = trioline("repair", "out", cwd=tmp_path)
    assert "to be computed: what was in the journal is not known" in told.stdout, told


@pytest.mark.slow
def test_a_state_folder_that_is_gone_has_a_way_out(tmp_path: Path) -> None:
    answer_and_stop(tmp_path, 0)
    (tmp_path / "out.trioline").rename(tmp_path / "away")
    told = trioline("verify", "in", "out", cwd=tmp_path)
    assert (told.code, "`trioline repair out --input in`" in told.stderr) == (2, True)
    told = trioline("repair", "out", "--yes", cwd=tmp_path)
    assert (told.code, "make an empty one" in told.stderr) == (2, True)
    (tmp_path / "out.trioline").mkdir()
    mended = trioline("repair", "out", "--input", "in", "--yes", cwd=tmp_path)
    assert mended.code == 0, mended
    at_once = ("--linger", "0")
    with serving("in", "out", *at_once, cwd=tmp_path) as server, Plain(server.port) as plain:
        plain.get_lines(10)
        plain.done_lines(3, [b"8"] * 7)
        assert server.wait().code == 0
    assert (tmp_path / "out").read_bytes() == b"7\n" * 3 + b"8\n" * 7
