"""Somebody else's hand in the files of a running job: found at the next durable point.

Alignment is the promise: whatever is done to the output, the server must not go on as if nothing
were, and must leave the file as it found it.
"""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from processes import Plain, invoke, numbers, serving
from storage_helpers import CrashFiles, settings_for

from trioline.config import Fsync, JobSettings
from trioline.errors import DiskFull, StorageError
from trioline.storage import Entry, Job, Rejection, Results

LINES = 8
DURABLE = 4
"""Lines at the durable point before the change."""


def entry(line: int) -> Entry:
    if line % 4 == 1:
        return Rejection(line, b'{"id":%d}\n' % line)
    return Results(line, 1, b'"answer %d"\n' % line)


def opened(folder: Path, fsync: Fsync) -> tuple[Job, JobSettings]:
    """A job at a durable point, with one line more behind it."""
    settings = settings_for(folder, fsync=fsync)
    settings.input.write_bytes(numbers(LINES))
    job = Job.open(settings)
    job.commit([entry(line) for line in range(DURABLE)])
    job.sync(job.source.offset_of(DURABLE))
    job.commit([entry(DURABLE)])
    return job, settings


def write_at(path: Path, offset: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


def replace(path: Path) -> None:
    copy = path.with_name("copy")
    shutil.copyfile(path, copy)
    copy.replace(path)


CHANGES: dict[str, Callable[[Path], object]] = {
    "edited in place": lambda path: write_at(path, 3, b"X"),
    "edited to another length": lambda path: path.write_bytes(b"{" + path.read_bytes()),
    "cut": lambda path: os.truncate(path, path.stat().st_size - 5),
    "cut deeper than the durable point": lambda path: os.truncate(path, 6),
    "emptied": lambda path: path.write_bytes(b""),
    "extended": lambda path: write_at(path, path.stat().st_size, b"more\n"),
    "replaced by a copy": replace,
    "deleted": Path.unlink,
    "moved": lambda path: path.rename(path.with_name("elsewhere")),
}


@pytest.mark.parametrize("fsync", [Fsync.ALWAYS, Fsync.INTERVAL])
@pytest.mark.parametrize("name", ["out", "out.rejected"])
@pytest.mark.parametrize("change", CHANGES)
def test_a_change_is_found_at_the_next_durable_point(
    tmp_path: Path, change: str, name: str, fsync: Fsync
) -> None:
    job, settings = opened(tmp_path, fsync)
    path = tmp_path / name
    CHANGES[change](path)
    left = path.read_bytes() if path.exists() else None
    with pytest.raises(StorageError, match="changed by somebody else") as caught:
        job.sync(job.source.offset_of(DURABLE + 1))
    assert caught.value.path == str(path)
    with pytest.raises(StorageError, match="changed by somebody else"):
        job.commit([entry(5)])
    job.close()
    assert (path.read_bytes() if path.exists() else None) == left
    assert settings.state.exists()
    check_advice(settings, str(caught.value))


def check_advice(settings: JobSettings, said: str) -> None:
    """What is said first is what helps: the same command, if it does, and a repair if not."""
    is_mended = "Start the same command again: it takes" in said
    assert is_mended != (f"see what `trioline repair {settings.output}` can save" in said)
    assert is_mended != ("--fresh" in said)
    if is_mended:
        Job.open(settings).close()
        given, output = settings.input.read_bytes(), settings.output.read_bytes()
        assert output.count(b"\n") <= given.count(b"\n")
    else:
        with pytest.raises(StorageError):
            Job.open(settings)


@pytest.mark.parametrize("fsync", [Fsync.ALWAYS, Fsync.INTERVAL])
@pytest.mark.parametrize("name", ["out", "out.rejected"])
@pytest.mark.parametrize("change", ["cut", "cut deeper than the durable point", "emptied"])
def test_nothing_is_written_behind_a_cut(
    tmp_path: Path, change: str, name: str, fsync: Fsync
) -> None:
    """It would make the length right again, with zeros where lines were."""
    job, _ = opened(tmp_path, fsync)
    path = tmp_path / name
    CHANGES[change](path)
    left = path.read_bytes()
    with pytest.raises(StorageError, match="changed by somebody else") as caught:
        job.commit([entry(line) for line in range(DURABLE + 1, LINES)])
    assert caught.value.path == str(path)
    assert path.read_bytes() == left
    job.close()
    check_advice(job.settings, str(caught.value))


# --- between the acknowledgement and the durable point --------------------------------------------


BEHIND: list[Entry] = [
    Results(DURABLE, 1, b"true\n"),
    Rejection(DURABLE + 1, b'{"id":5,"errors":["true"]}\n'),
]
"""Acknowledged, and not yet at a durable point."""
BEHIND_ALL: list[Entry] = [Results(0, 1, b"true\n"), Rejection(1, b'{"id":1,"errors":["true"]}\n')]


def edited_behind(folder: Path, fsync: Fsync, name: str) -> tuple[Job, JobSettings]:
    """A job in which an acknowledged answer was edited before its durable point."""
    settings = settings_for(folder, fsync=fsync)
    settings.input.write_bytes(numbers(LINES))
    job = Job.open(settings)
    job.commit([entry(line) for line in range(DURABLE)])
    job.sync(job.source.offset_of(DURABLE))
    job.commit(BEHIND)
    path = folder / name
    path.write_bytes(path.read_bytes().replace(b"true", b"lies"))
    return job, settings


@pytest.mark.parametrize("fsync", Fsync)
@pytest.mark.parametrize("name", ["out", "out.rejected"])
@pytest.mark.parametrize("is_over", [False, True])
def test_an_answer_edited_right_after_it_was_acknowledged_is_not_summed_up(
    tmp_path: Path, name: str, fsync: Fsync, *, is_over: bool
) -> None:
    job, settings = edited_behind(tmp_path, fsync, name)
    end = LINES if is_over else DURABLE + 2
    if is_over:
        job.commit([Results(line, 1, b"%d\n" % line) for line in range(DURABLE + 2, LINES)])
    path, state = tmp_path / name, settings.state / "checkpoint"
    left = path.read_bytes(), state.read_bytes()
    with pytest.raises(StorageError, match=r"changed by somebody else: bytes") as caught:
        (job.finish if is_over else job.sync)(job.source.offset_of(end))
    assert caught.value.path == str(path)
    job.close()
    assert (path.read_bytes(), state.read_bytes()) == left
    assert "Start the same command again" in str(caught.value)
    check_advice(settings, str(caught.value))


@pytest.mark.parametrize("fsync", Fsync)
@pytest.mark.parametrize("name", ["out", "out.rejected"])
def test_the_true_answers_come_back_from_the_journal(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], name: str, fsync: Fsync
) -> None:
    """Or are computed again, where only the output had them."""
    job, settings = edited_behind(tmp_path, fsync, name)
    with pytest.raises(StorageError, match="changed by somebody else"):
        job.sync(job.source.offset_of(DURABLE + 2))
    job.close()
    is_lost = fsync is not Fsync.ALWAYS and name == "out"
    counted = "1 that a start takes from the journal; 1 that were done are" if is_lost else "2 that"
    said = invoke("repair", "--yes", settings.output, capture=capfd.readouterr)
    assert said.code == 0
    assert said.stdout.startswith(f"Nothing is damaged: {DURABLE} lines hold, and {counted}")
    again = Job.open(settings)
    assert again.written_count == (DURABLE if is_lost else DURABLE + 2)
    if is_lost:
        again.commit(BEHIND[:1])
    again.commit([Results(line, 1, b"%d\n" % line) for line in range(DURABLE + 2, LINES)])
    again.finish(again.source.offset_of(LINES))
    again.close()
    assert b"lies" not in settings.output.read_bytes() + settings.rejected.read_bytes()
    assert settings.output.read_bytes().splitlines()[DURABLE] == b"true"
    assert b'"true"' in settings.rejected.read_bytes()


@pytest.mark.parametrize("fsync", Fsync)
@pytest.mark.parametrize("name", ["out", "out.rejected"])
def test_what_a_start_puts_into_the_files_is_held_against_them_too(fsync: Fsync, name: str) -> None:
    """Lines that it adopts, or takes from the journal, edited before its checkpoint."""
    settings = settings_for(Path("/d"), fsync=fsync)
    files = CrashFiles()
    files.put(settings.input, numbers(LINES))
    job = Job.open(settings, files)
    job.commit(BEHIND_ALL)
    files.kill()
    path, edits = settings.output.with_name(name), [b"lies"]

    def edit_before_the_sync(call: str, at: Path, _count: int) -> None:
        if (call, at) == ("truncate", path) and edits:
            fd = files.open(path, os.O_RDWR)
            files.pwrite(fd, edits.pop(), files.get(path).index(b"true"))

    files.fail = edit_before_the_sync
    before = files.get(settings.state / "checkpoint")
    with pytest.raises(StorageError, match="changed by somebody else: bytes 0 to"):
        Job.open(settings, files)
    assert not edits
    assert files.get(settings.state / "checkpoint") == before


def test_a_commit_that_was_taken_back_is_no_edit() -> None:
    settings = settings_for(Path("/d"))
    files = CrashFiles()
    files.put(settings.input, numbers(LINES))
    job = Job.open(settings, files)
    job.commit([entry(0)])
    is_full = [True]
    files.fail = lambda call, path, _: (
        errno.ENOSPC if (call, path) == ("pwrite", settings.rejected) and is_full else None
    )
    for _ in range(2):
        with pytest.raises(DiskFull):
            job.commit([entry(1), entry(2)])
    job.sync(job.source.offset_of(1))
    is_full.clear()
    job.commit([Results(1, 2, b"another\nanswer\n")])
    job.sync(job.source.offset_of(3))
    job.close()
    assert files.get(settings.output) == b'"answer 0"\nanother\nanswer\n'


# --- what describes the job ----------------------------------------------------------------------


@pytest.mark.parametrize("name", ["run.json", "checksums", "checkpoint"])
@pytest.mark.parametrize("change", [replace, Path.unlink])
def test_a_file_that_only_a_start_needs_is_missed_at_the_next_durable_point(
    tmp_path: Path, name: str, change: Callable[[Path], None]
) -> None:
    job, settings = opened(tmp_path, Fsync.ALWAYS)
    path = settings.state / name
    change(path)
    with pytest.raises(StorageError, match="removed while the job ran") as caught:
        job.sync(job.source.offset_of(DURABLE + 1))
    assert caught.value.path == str(path)
    assert f"`trioline repair {settings.output}`" in str(caught.value)
    job.close()


@pytest.mark.parametrize("fsync", Fsync)
def test_a_removed_journal_is_said_to_be_missing_as_by_the_next_start(
    tmp_path: Path, fsync: Fsync
) -> None:
    """That start refuses, too: nobody is sent to it."""
    job, settings = opened(tmp_path, fsync)
    path = settings.state / "journal-00000001"
    path.unlink()
    with pytest.raises(StorageError) as running:
        job.sync(job.source.offset_of(DURABLE + 1))
    job.close()
    with pytest.raises(StorageError) as starting:
        Job.open(settings)
    assert str(running.value) == str(starting.value)
    assert f"{path} is missing." in str(running.value)
    assert f"`trioline repair {settings.output}`" in str(running.value)


def test_a_moved_state_is_found_at_the_next_durable_point(tmp_path: Path) -> None:
    job, settings = opened(tmp_path, Fsync.ALWAYS)
    settings.state.rename(tmp_path / "elsewhere")
    with pytest.raises(StorageError, match="moved or removed while the job ran") as caught:
        job.sync(job.source.offset_of(DURABLE + 1))
    assert caught.value.path == str(settings.state)
    assert "Put it back" in str(caught.value)
    assert "Nothing acknowledged is lost" not in str(caught.value)
    job.close()


# --- the input ----------------------------------------------------------------------------------


@pytest.mark.parametrize("change", ["edited in place", "cut", "extended", "replaced by a copy"])
@pytest.mark.parametrize("is_stuck", [True, False])
def test_an_input_edited_after_its_line_was_answered_is_found(
    tmp_path: Path, change: str, *, is_stuck: bool
) -> None:
    """Before the durable point that sums it up, and also while line 0 keeps all from being so."""
    settings = settings_for(tmp_path)
    settings.input.write_bytes(numbers(LINES))
    job = Job.open(settings)
    job.commit([entry(line) for line in range(is_stuck, LINES - 1)])
    offset = job.source.offset_of(job.written_count)
    CHANGES[change](settings.input)
    with pytest.raises(
        StorageError, match=r"in (was changed, replaced or touched|has changed) while"
    ) as caught:
        job.sync(offset)
    assert caught.value.path == str(settings.input)
    job.close()


def test_what_is_said_of_an_input_touched_while_it_runs_can_be_followed(tmp_path: Path) -> None:
    """Nobody can take back a touch."""
    job, settings = opened(tmp_path, Fsync.ALWAYS)
    os.utime(settings.input, ns=(1, 1))
    told = "If it is as it was, start the same command again; if not, put it back first"
    with pytest.raises(StorageError, match=told):
        job.sync(job.source.offset_of(DURABLE + 1))
    job.close()
    again = Job.open(settings)
    again.sync(again.source.offset_of(DURABLE + 1))
    again.close()


def test_an_input_touched_while_stopped_is_said(tmp_path: Path) -> None:
    job, settings = opened(tmp_path, Fsync.ALWAYS)
    job.close()
    Job.open(settings).close()
    os.utime(settings.input, ns=(1, 1))
    again = Job.open(settings)
    assert again.warning is not None
    assert str(settings.input) in again.warning
    assert "the 5 lines that were answered before may answer another text" in again.warning
    assert "mode, owner or links" in again.warning
    assert f"see what `trioline repair {settings.output}` has answered again" in again.warning
    assert "--fresh" not in again.warning
    again.sync(again.source.offset_of(DURABLE + 1))
    again.close()
    same = Job.open(settings)
    assert same.warning is None
    same.close()


@pytest.mark.parametrize("fsync", [Fsync.ALWAYS, Fsync.INTERVAL])
@pytest.mark.parametrize("is_killed", [False, True], ids=["ended", "killed"])
@pytest.mark.parametrize("is_repaired", [False, True], ids=["started", "repaired"])
def test_an_answer_of_an_edited_line_is_not_proved_when_the_line_is_put_back(
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    fsync: Fsync,
    is_killed: bool,
    is_repaired: bool,
) -> None:
    """Its block was recorded before the edit, for a neighbour ahead of its turn."""
    settings = settings_for(tmp_path, fsync=fsync)
    settings.input.write_bytes(numbers(LINES))
    job = Job.open(settings)
    job.commit([Results(5, 1, b"5\n")])
    job.sync(0)
    write_at(settings.input, 2 * 3, b"X")
    job.commit([Results(3, 1, b'"X"\n')])
    if not is_killed:
        with pytest.raises(StorageError, match="put it back first"):
            job.sync(0)
    job.close()
    write_at(settings.input, 2 * 3, b"3")
    if is_repaired:
        (settings.state / "checksums").unlink()
        assert invoke("repair", settings.output, "--yes", capture=capfd.readouterr).code == 0
    job = Job.open(settings)
    if not is_repaired:
        assert "Of lines 3 to 3 nothing recorded what they were" in str(job.warning)
    job.commit([Results(line, 1, b"%d\n" % line) for line in (0, 1, 2, 4, 6, 7)])
    job.finish(job.source.offset_of(LINES))
    job.close()
    told = invoke("verify", settings.input, settings.output, capture=capfd.readouterr)
    assert told.code == 1
    assert "lines 3 to 3 are not proved" in told.stdout


def test_nothing_is_vouched_for_where_the_inputs_end_is_another(tmp_path: Path) -> None:
    job, settings = opened(tmp_path, Fsync.ALWAYS)
    job.close()
    write_at(settings.input, settings.input.stat().st_size - 2, b"X")
    paths = str(settings.input), str(settings.output)
    told = subprocess.run(
        [sys.executable, "-m", "trioline", "verify", *paths],
        capture_output=True,
        text=True,
        check=False,
    )
    assert told.returncode == 1
    assert "its ends differ" in told.stdout
    assert "even so" not in told.stdout


def test_an_input_touched_before_anything_is_answered_is_none_of_our_business(
    tmp_path: Path,
) -> None:
    settings = settings_for(tmp_path)
    settings.input.write_bytes(numbers(LINES))
    Job.open(settings).close()
    os.utime(settings.input, ns=(1, 1))
    again = Job.open(settings)
    assert again.warning is None
    again.close()


@pytest.mark.slow
@pytest.mark.parametrize("change", ["extended", "deleted"])
def test_a_server_ends_with_74(tmp_path: Path, change: str) -> None:
    (tmp_path / "in").write_bytes(numbers(LINES))
    with serving("in", "out", "--quiet", cwd=tmp_path) as serve, Plain(serve.port) as plain:
        plain.get_lines(2)
        plain.done_lines(0, [b"1"])
        CHANGES[change](tmp_path / "out")
        ended = serve.wait()
    assert ended.code == 74
    sentence = ended.stderr.strip()
    assert "\n" not in sentence
    assert "out was changed by somebody else" in sentence
