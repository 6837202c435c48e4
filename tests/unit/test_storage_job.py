"""A job on the disk: made, refused, resumed, full, failed, finished."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import attrs
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from storage_helpers import CrashFiles, input_of, settings_for

from trioline.config import Fsync, JobSettings
from trioline.errors import DiskFull, JobLocked, JobMismatch, StorageError, UsageError
from trioline.storage import Entry, Job, Rejection, Results, Tried, encode_record
from trioline.storage.system import OsFiles

MEMORY = Path("/d")
Change = Callable[[JobSettings], JobSettings | None]


@pytest.fixture
def settings(tmp_path: Path) -> JobSettings:
    (tmp_path / "in").write_bytes(input_of(20))
    return settings_for(tmp_path)


def memory_job(fsync: Fsync, count: int = 20) -> tuple[CrashFiles, JobSettings]:
    files = CrashFiles()
    files.put(MEMORY / "in", input_of(count))
    return files, settings_for(MEMORY, fsync=fsync)


def answer(line: int) -> bytes:
    return b'"answer %d"\n' % line


def results(first: int, end: int) -> Results:
    return Results(first, end - first, b"".join(map(answer, range(first, end))))


def rejection(line: int) -> Rejection:
    return Rejection(line, encode_record(line, b"x", attempts=3, losses=0, errors=["no"]))


def sync(job: Job) -> None:
    job.sync(job.source.offset_of(job.written_count))


def finish(job: Job) -> None:
    job.finish(job.source.offset_of(job.written_count))


def ahead(job: Job) -> list[int]:
    return [line for part in job.ahead() for line in part]


# --- a job's life -------------------------------------------------------------------------------


@pytest.mark.parametrize("fsync", Fsync)
def test_from_the_first_line_to_the_end(tmp_path: Path, fsync: Fsync) -> None:
    (tmp_path / "in").write_bytes(input_of(20))
    settings = settings_for(tmp_path, fsync=fsync)
    job = Job.open(settings)
    assert not job.is_resumed
    assert len(job.public_id) == 32
    job.commit([results(5, 9), rejection(3)])
    assert (job.written_count, ahead(job)) == (0, [3, 5, 6, 7, 8])
    assert (job.rejected_count, job.rejected_ahead_count) == (0, 1)
    job.commit([results(0, 2), results(4, 5), rejection(2), results(12, 13)])
    assert (job.written_count, ahead(job)) == (9, [12])
    assert (job.rejected_count, job.rejected_ahead_count) == (2, 0)
    assert job.unsynced_bytes > 0
    sync(job)
    assert job.unsynced_bytes == 0
    job.commit([results(9, 12), results(13, 20)])
    assert job.source.read(20, 1, 100).split() == []
    finish(job)
    assert job.is_finished
    job.close()
    job.close()
    expected = [b"null\n" if line in (2, 3) else answer(line) for line in range(20)]
    assert settings.output.read_bytes() == b"".join(expected)
    records = settings.rejected.read_bytes().splitlines()
    assert [json.loads(record)["id"] for record in records] == [2, 3]
    assert not [name for name in os.listdir(settings.state) if name.startswith("journal")]


@pytest.mark.parametrize("fsync", Fsync)
def test_a_resumed_job_is_where_it_was(tmp_path: Path, fsync: Fsync) -> None:
    (tmp_path / "in").write_bytes(input_of(20))
    settings = settings_for(tmp_path, fsync=fsync)
    job = Job.open(settings)
    job.commit([results(0, 4), results(6, 8), rejection(9)])
    job.close()
    again = Job.open(settings)
    assert again.is_resumed
    assert not again.is_finished
    assert again.public_id == job.public_id
    assert (again.written_count, ahead(again)) == (4, [6, 7, 9])
    assert again.rejected_ahead_count == 1
    assert again.source.read(4, 1, 100).split() == [b"line 4 ...."]
    again.commit([results(4, 6), results(8, 9)])
    assert (again.written_count, again.rejected_count) == (10, 1)
    again.close()


@pytest.mark.parametrize("fsync", Fsync)
def test_restarts_before_any_durable_point_leave_no_segments_behind(fsync: Fsync) -> None:
    files, settings = memory_job(fsync)
    for line in range(15):
        job = Job.open(settings, files)
        job.commit([results(line, line + 1)])
        files.kill()
        assert len([path for path in files.paths() if path.name.startswith("journal")]) <= 2


def test_a_finished_job_is_not_written_again(settings: JobSettings) -> None:
    job = Job.open(settings)
    job.commit([results(0, 20)])
    finish(job)
    job.close()
    before = {p: p.read_bytes() for p in settings.state.parent.rglob("*") if p.is_file()}
    again = Job.open(settings)
    assert again.is_finished
    assert again.is_resumed
    assert again.written_count == 20
    assert again.source.at_end
    again.close()
    assert {p: p.read_bytes() for p in settings.state.parent.rglob("*") if p.is_file()} == before


def test_an_empty_input_is_a_job_of_no_lines(settings: JobSettings) -> None:
    settings.input.write_bytes(b"")
    job = Job.open(settings)
    assert job.source.at_end
    assert job.source.known_count == 0
    finish(job)
    job.close()
    assert settings.output.read_bytes() == b""


@pytest.mark.slow
@pytest.mark.parametrize("fsync", Fsync)
@given(seed=st.integers(0, 2**32))
@hypothesis_settings(max_examples=25, deadline=None)
def test_any_order_with_kills_gives_the_naive_output(
    tmp_path_factory: pytest.TempPathFactory, fsync: Fsync, seed: int
) -> None:
    rng = random.Random(seed)
    folder = tmp_path_factory.mktemp("any")
    (folder / "in").write_bytes(input_of(60))
    open_lines = set(range(60))
    job = Job.open(settings_for(folder, fsync=fsync), segment_bytes=200)
    while open_lines:
        entries: list[Entry] = []
        for line in rng.sample(sorted(open_lines), min(len(open_lines), rng.randint(1, 12))):
            entries.append(rejection(line) if line % 7 == 0 else results(line, line + 1))
            open_lines.discard(line)
        job.commit(entries)
        if rng.random() < 0.3:
            sync(job)
        if rng.random() < 0.3:
            # What kill -9 leaves: the files as they are now, opened by nobody.
            copy = folder.with_name(folder.name + "k")
            shutil.copytree(folder, copy)
            job.close()
            folder = copy
            job = Job.open(settings_for(folder, fsync=fsync), segment_bytes=200)
        assert set(range(job.written_count)) | set(ahead(job)) == set(range(60)) - open_lines
    finish(job)
    job.close()
    expected = [answer(line) if line % 7 else b"null\n" for line in range(60)]
    assert (folder / "out").read_bytes() == b"".join(expected)


@pytest.mark.parametrize("fsync", Fsync)
def test_lines_that_a_power_loss_took_are_acknowledged_again_for_good(fsync: Fsync) -> None:
    """The journal's frame of them was kept, and a commit that begins with them has a larger one."""
    files, settings = memory_job(fsync)
    job = Job.open(settings, files)
    job.commit([results(0, 4)])
    files.kill()
    files.put(settings.output, b"")
    job = Job.open(settings, files)
    job.commit([results(job.written_count, 9)])
    files.kill()
    job = Job.open(settings, files)
    assert job.written_count == 9
    assert files.get(settings.output) == results(0, 9).data
    job.close()


@pytest.mark.parametrize("edited", [2, 6])
def test_a_region_that_was_changed_is_not_taken_up(edited: int) -> None:
    files, settings = memory_job(Fsync.NEVER)
    job = Job.open(settings, files)
    job.commit([results(0, 4)])
    job.commit([results(4, 9)])
    files.kill()
    files.put(
        settings.output, results(0, 9).data.replace(answer(edited), b'"another%d"\n' % edited)
    )
    job = Job.open(settings, files)
    assert job.written_count == (0 if edited < 4 else 4)
    job.close()


# --- what was tried before ----------------------------------------------------------------------


def tried(job: Job) -> list[tuple[range, bytes]]:
    return list(job.tried())


@pytest.mark.parametrize("fsync", Fsync)
def test_what_was_tried_survives_until_its_line_is_settled(tmp_path: Path, fsync: Fsync) -> None:
    (tmp_path / "in").write_bytes(input_of(20))
    settings = settings_for(tmp_path, fsync=fsync)
    job = Job.open(settings)
    job.commit([Tried(0, 3, b"a"), Tried(8, 1, b"b"), results(5, 6), Tried(10, 4, b"")])
    assert (job.written_count, ahead(job), job.rejected_ahead_count) == (0, [5], 0)
    job.commit([results(0, 1), Tried(2, 1, b"c"), rejection(11)])
    assert (job.written_count, job.output_bytes) == (1, len(answer(0)))
    sync(job)
    job.close()
    for _ in range(2):
        job = Job.open(settings)
        assert (job.written_count, ahead(job)) == (1, [5, 11])
        assert tried(job) == [
            (range(1, 2), b"a"),
            (range(2, 3), b"c"),
            (range(8, 9), b"b"),
            (range(10, 11), b""),
            (range(12, 14), b""),
        ]
        assert tried(job) == [], "it is handed over once"
        job.close()
    job = Job.open(settings)
    job.commit([results(1, 5), results(6, 11), rejection(12), results(13, 20)])
    job.close()
    job = Job.open(settings)
    assert tried(job) == []
    finish(job)
    job.close()
    assert not [name for name in os.listdir(settings.state) if name.startswith("journal")]


@pytest.mark.parametrize("fsync", Fsync)
def test_one_commit_may_hold_all_that_became_of_a_line(fsync: Fsync) -> None:
    """Several messages share a commit: a line may fail in one, fail again, and be done."""
    files, settings = memory_job(fsync)
    job = Job.open(settings, files)
    events: list[Entry] = [Tried(0, 10, b"first"), Tried(4, 3, b"second"), results(0, 2)]
    job.commit([*events, results(5, 6), rejection(8), Tried(9, 1, b"third")])
    assert (job.written_count, ahead(job)) == (2, [5, 8])
    sync(job)
    files.lose_power(random.Random(0))
    again = Job.open(settings, files)
    assert (again.written_count, ahead(again)) == (2, [5, 8])
    assert tried(again) == [
        (range(2, 4), b"first"),
        (range(4, 5), b"second"),
        (range(6, 7), b"second"),
        (range(7, 8), b"first"),
        (range(9, 10), b"third"),
    ]
    again.close()


@pytest.mark.parametrize("fsync", Fsync)
def test_what_was_tried_keeps_its_segment_until_the_line_is_durable(fsync: Fsync) -> None:
    files, settings = memory_job(fsync)
    job = Job.open(settings, files, segment_bytes=1)
    job.commit([Tried(6, 1, b"6" * 25_000)])
    for line in range(5):
        job.commit([results(line, line + 1)])
        sync(job)
    assert files.has(settings.state / "journal-00000001")
    files.lose_power(random.Random(0))
    job = Job.open(settings, files, segment_bytes=1)
    assert tried(job) == [(range(6, 7), b"6" * 25_000)]
    job.commit([results(5, 8)])
    sync(job)
    assert not files.has(settings.state / "journal-00000001")
    job.close()


@pytest.mark.parametrize("fsync", Fsync)
def test_a_full_disk_takes_back_what_was_tried_and_nothing_else(fsync: Fsync) -> None:
    """Also where a settled line lies among those that were tried."""
    files, settings = memory_job(fsync)
    job = Job.open(settings, files)
    job.commit([results(5, 6), Tried(4, 1, b"old")])
    files.fail = FailAt({"pwrite"}, 1, errno.ENOSPC)
    before = picture(files)
    with pytest.raises(DiskFull):
        job.commit([Tried(4, 3, b"new")])
    assert picture(files) == before
    assert ahead(job) == [5]
    files.kill()
    again = Job.open(settings, files)
    assert tried(again) == [(range(4, 5), b"old")]
    again.commit([Tried(4, 3, b"new")])
    again.close()
    again = Job.open(settings, files)
    assert tried(again) == [(range(4, 5), b"new"), (range(6, 7), b"new")]
    again.close()


def test_what_was_tried_costs_one_sync_under_always() -> None:
    files, settings = memory_job(Fsync.ALWAYS)
    job = Job.open(settings, files)
    job.commit([results(0, 1)])
    calls: list[str] = []
    files.fail = lambda call, _path, _count: calls.append(call)
    job.commit([Tried(3, 1, b"x"), results(5, 6)])
    assert calls == ["pwrite", "sync", "stat"]  # the last of the lock, before the answer
    job.close()


# --- broken calls -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "entries",
    [[results(0, 1)], [results(6, 7)], [results(4, 6)], [Tried(3, 1, b"")], [Tried(4, 2, b"")]],
)
def test_a_line_is_never_settled_twice(settings: JobSettings, entries: list[Entry]) -> None:
    job = Job.open(settings)
    job.commit([results(0, 4), results(5, 7)])
    with pytest.raises(ValueError, match="settled already"):
        job.commit(entries)
    assert (job.written_count, ahead(job)) == (4, [5, 6])
    job.close()


# --- refusals -----------------------------------------------------------------------------------


def _no_input(settings: JobSettings) -> None:
    settings.input.unlink()


def _folder_input(settings: JobSettings) -> None:
    settings.input.unlink()
    settings.input.mkdir()


def _pipe_input(settings: JobSettings) -> None:
    settings.input.unlink()
    os.mkfifo(settings.input)


def _folder_output(settings: JobSettings) -> None:
    settings.output.mkdir()


def _filled_output(settings: JobSettings) -> None:
    settings.output.write_bytes(b"mine\n")


def _filled_rejected(settings: JobSettings) -> None:
    settings.rejected.write_bytes(b"mine\n")


def _linked(settings: JobSettings) -> None:
    settings.output.hardlink_to(settings.input)


def _elsewhere(settings: JobSettings) -> JobSettings:
    return attrs.evolve(settings, output=settings.output.parent / "no" / "out")


def _input_as_rejected(settings: JobSettings) -> JobSettings:
    return attrs.evolve(settings, rejected=settings.input)


def _output_as_rejected(settings: JobSettings) -> JobSettings:
    return attrs.evolve(settings, rejected=settings.output)


def _state_is_file(settings: JobSettings) -> None:
    settings.state.write_bytes(b"")


def _fresh_filled(settings: JobSettings) -> JobSettings:
    settings.output.write_bytes(b"mine\n")
    return attrs.evolve(settings, fresh=True)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (_no_input, "in does not exist"),
        (_folder_input, "in is a folder"),
        (_pipe_input, "in is no regular file"),
        (_folder_output, "out, given for the output, is a folder"),
        (_filled_output, "out exists and is not this job's"),
        (_filled_rejected, "out.rejected exists and is not this job's"),
        (_fresh_filled, "out exists and is not this job's"),
        (_linked, "out, given for the output, is the input"),
        (_elsewhere, "There is no folder .*no for the output"),
        (_input_as_rejected, "in, given for --rejected, is the input"),
        (_output_as_rejected, "name two files"),
        (_state_is_file, "out.trioline is no folder"),
    ],
)
def test_what_cannot_be_used_is_refused_untouched(
    settings: JobSettings, change: Change, sentence: str
) -> None:
    settings = change(settings) or settings
    folder = settings.input.parent
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    with pytest.raises(UsageError, match=sentence):
        Job.open(settings)
    assert {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()} == before
    assert not settings.state.is_dir()


def test_an_empty_output_is_taken(settings: JobSettings) -> None:
    settings.output.touch()
    Job.open(settings).close()


def test_two_servers_are_one_too_many(settings: JobSettings) -> None:
    job = Job.open(settings)
    with pytest.raises(
        JobLocked, match=f"process {os.getpid()} on .* is at work on .*out.trioline"
    ):
        Job.open(settings)
    job.close()
    Job.open(settings).close()


def _longer_input(settings: JobSettings) -> None:
    with settings.input.open("ab") as file:
        file.write(b"more\n")


def _other_input(settings: JobSettings) -> None:
    settings.input.write_bytes(settings.input.read_bytes().replace(b"line 7", b"LINE 7"))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (_longer_input, r"whose input had \d+ bytes .*; the input named now has \d+"),
        (_other_input, "with another input of the same length"),
        (lambda s: attrs.evolve(s, text=True), "without --text; this has it"),
        (
            lambda s: attrs.evolve(s, placeholder=b"{}"),
            "with --placeholder null; this command has '{}'",
        ),
        (
            lambda s: attrs.evolve(s, rejected=s.output.with_name("bad")),
            "with --rejected .*out.rejected; this command has .*bad",
        ),
    ],
)
def test_another_command_is_a_mismatch(
    settings: JobSettings, change: Change, sentence: str
) -> None:
    job = Job.open(settings)
    job.commit([results(0, 3)])
    job.close()
    changed = change(settings) or settings
    with pytest.raises(JobMismatch, match=f"{sentence}.*--fresh"):
        Job.open(changed)
    assert settings.output.read_bytes() == b"".join(map(answer, range(3)))


def test_fresh_begins_anew_with_another_input(settings: JobSettings) -> None:
    job = Job.open(settings)
    job.commit([results(0, 3), rejection(3), results(9, 10)])
    job.close()
    _other_input(settings)
    other = attrs.evolve(settings, fresh=True, rejected=settings.output.with_name("bad"))
    again = Job.open(other)
    assert not again.is_resumed
    assert again.public_id != job.public_id
    assert (again.written_count, again.ahead_count, again.journal_bytes) == (0, 0, 0)
    again.close()
    assert settings.output.read_bytes() == b""
    assert not settings.rejected.exists()


def _rejected_as_input(settings: JobSettings) -> JobSettings:
    return attrs.evolve(settings, input=settings.rejected, rejected=settings.output.with_name("b"))


def _foreign_rejected(settings: JobSettings) -> JobSettings:
    other = settings.output.with_name("b")
    other.write_bytes(b"mine\n")
    return attrs.evolve(settings, rejected=other)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (_rejected_as_input, "holds the rejected lines of the job that --fresh would"),
        (_foreign_rejected, "b exists and is not this job's"),
    ],
)
def test_fresh_throws_away_nothing_that_is_needed(
    settings: JobSettings, change: Callable[[JobSettings], JobSettings], sentence: str
) -> None:
    job = Job.open(settings)
    job.commit([results(0, 3), rejection(3)])
    job.close()
    changed = attrs.evolve(change(settings), fresh=True)
    before = {p: p.read_bytes() for p in settings.input.parent.rglob("*") if p.is_file()}
    with pytest.raises(UsageError, match=sentence):
        Job.open(changed)
    after = {p: p.read_bytes() for p in settings.input.parent.rglob("*") if p.is_file()}
    assert before == after


def test_all_of_it_may_be_moved_together(tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    old.mkdir()
    (old / "in").write_bytes(input_of(20))
    job = Job.open(settings_for(old))
    job.commit([results(0, 3)])
    job.close()
    old.rename(new)
    again = Job.open(settings_for(new))
    assert again.written_count == 3
    again.close()


def test_all_of_it_may_be_renamed_together(settings: JobSettings) -> None:
    job = Job.open(settings)
    job.commit([results(0, 3), rejection(3)])
    job.close()
    new = settings.output.with_name("new")
    for path in (settings.output, settings.rejected, settings.state):
        path.rename(path.with_name(path.name.replace("out", "new")))
    renamed = attrs.evolve(settings, output=new, rejected=new.with_name("new.rejected"))
    again = Job.open(renamed)
    assert (again.is_resumed, again.written_count) == (True, 4)
    again.close()


# --- other names of one file ----------------------------------------------------------------------


def _linked_to(target: Path, name: str) -> Path:
    link = target.with_name(name)
    link.symlink_to(target)
    return link


def test_a_symbolic_link_to_the_output_leads_to_its_job(settings: JobSettings) -> None:
    link = _linked_to(settings.output, "link")  # of a file that is still to be made
    job = Job.open(attrs.evolve(settings, output=link))
    job.commit([results(0, 3)])
    assert settings.state.is_dir()
    assert not link.with_name("link.trioline").exists()
    with pytest.raises(JobLocked):
        Job.open(settings)
    job.close()
    again = Job.open(settings)
    assert again.written_count == 3
    again.close()
    fresh = Job.open(attrs.evolve(settings, output=link, fresh=True))
    assert fresh.written_count == 0
    fresh.close()
    assert link.is_symlink()
    assert settings.output.read_bytes() == b""


def test_the_folder_of_the_real_output_is_synced(tmp_path: Path) -> None:
    real = tmp_path / "real"
    real.mkdir()
    (tmp_path / "in").write_bytes(input_of(3))
    (tmp_path / "out").symlink_to(real / "answers")
    synced = []

    class Watched(OsFiles):
        def sync_folder(self, path: Path) -> None:
            synced.append(path)
            super().sync_folder(path)

    Job.open(settings_for(tmp_path), Watched()).close()
    assert real in synced
    assert (real / "answers.trioline").is_dir()


def test_two_hard_links_are_one_output(settings: JobSettings) -> None:
    other = settings.output.with_name("other")
    second = attrs.evolve(settings, output=other, rejected=other.with_name("other.rejected"))
    Job.open(second).close()
    job = Job.open(settings)
    other.unlink()
    other.hardlink_to(settings.output)
    with pytest.raises(JobLocked, match=r"at work on .*other, perhaps by another of its names"):
        Job.open(second)
    job.close()


@pytest.mark.parametrize("name", ["out", "out.rejected"])
def test_a_job_begins_with_no_file_that_has_another_name(settings: JobSettings, name: str) -> None:
    other = settings.output.with_name("other")
    other.touch()
    settings.output.with_name(name).hardlink_to(other)
    with pytest.raises(UsageError, match=f"{name} has several names .hard links."):
        Job.open(settings)
    assert not settings.state.exists()


@pytest.mark.parametrize("kind", ["symbolic", "hard", "dangling", "input"])
def test_the_rejected_file_is_one_of_its_own(settings: JobSettings, kind: str) -> None:
    link = settings.output.with_name("link")
    if kind != "dangling":
        settings.output.touch()
    if kind == "hard":
        link.hardlink_to(settings.output)
    else:
        link.symlink_to(settings.input if kind == "input" else settings.output)
    sentence = "is the input" if kind == "input" else "name two files"
    with pytest.raises(UsageError, match=sentence):
        Job.open(attrs.evolve(settings, rejected=link))
    assert not settings.state.exists()


# --- the input while the job is made --------------------------------------------------------------


def _grow(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"more\n")


def _replace(path: Path) -> None:
    copy = path.with_name("copy")
    shutil.copyfile(path, copy)
    copy.replace(path)


@pytest.mark.parametrize("change", [_grow, _replace])
@pytest.mark.parametrize("is_new", [True, False])
def test_an_input_that_changes_while_the_job_opens_is_found(
    settings: JobSettings, change: Callable[[Path], None], *, is_new: bool
) -> None:
    class Changed(OsFiles):
        """Another one's hand, just before the journal is looked for."""

        def listdir(self, path: Path) -> list[str]:
            if (settings.state / "run.json").exists() and not done:
                done.append(True)
                change(settings.input)
            return super().listdir(path)

    done: list[bool] = []
    if not is_new:
        Job.open(settings).close()
    with pytest.raises(StorageError, match="in was replaced, changed or touched while the job"):
        Job.open(settings, Changed())


@pytest.mark.parametrize("code", [errno.EMFILE, errno.ENFILE])
def test_no_file_descriptors_left_is_said_and_loses_nothing(code: int) -> None:
    files, settings = memory_job(Fsync.ALWAYS)
    job = Job.open(settings, files)
    job.commit([results(1, 3)])
    job.close()
    job = Job.open(settings, files)
    files.fail = lambda call, path, _count: (
        code if call == "create" and path.name.startswith("journal") else None
    )
    with pytest.raises(StorageError, match=r"[Tt]oo many open files.*this process may have \d+"):
        job.commit([results(0, 1)])
    job.close()
    files.fail = None
    again = Job.open(settings, files)
    assert (again.written_count, ahead(again)) == (0, [1, 2])
    again.close()


# --- damage -------------------------------------------------------------------------------------


def damage_output_short(settings: JobSettings) -> None:
    os.truncate(settings.output, 5)


def damage_output_tail(settings: JobSettings) -> None:
    data = settings.output.read_bytes()
    settings.output.write_bytes(data[:-2] + b"?\n")


def damage_output_gone(settings: JobSettings) -> None:
    settings.output.unlink()


def damage_rejected_short(settings: JobSettings) -> None:
    os.truncate(settings.rejected, 5)


def damage_checkpoint(settings: JobSettings) -> None:
    (settings.state / "checkpoint").write_bytes(bytes(8_192))


def damage_checkpoint_gone(settings: JobSettings) -> None:
    (settings.state / "checkpoint").unlink()


def damage_run(settings: JobSettings) -> None:
    (settings.state / "run.json").write_bytes(b'{"format":1,')


def damage_run_gone(settings: JobSettings) -> None:
    (settings.state / "run.json").unlink()
    settings.output.unlink()
    settings.rejected.unlink()


def damage_run_newer(settings: JobSettings) -> None:
    (settings.state / "run.json").write_bytes(b'{"format":2,"what":"ever"}')


def damage_journal(settings: JobSettings) -> None:
    path = settings.state / "journal-00000001"
    path.write_bytes(path.read_bytes()[:-1])


def damage_journal_gone(settings: JobSettings) -> None:
    (settings.state / "journal-00000001").unlink()


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (damage_output_short, "out was changed.*ends at byte 5, but .* bytes were safe"),
        (damage_output_tail, "out was changed.*bytes 0 to .* are not what was written"),
        (damage_output_gone, "out is missing"),
        (damage_rejected_short, "out.rejected was changed.*ends at byte 5"),
        (damage_checkpoint, "checkpoint is damaged: neither of its two slots"),
        (damage_checkpoint_gone, "checkpoint is missing.*trioline repair"),
        (damage_run, "run.json is damaged"),
        (damage_run_gone, "run.json is missing, but a job was here"),
        (damage_run_newer, "run.json has format 2, and this version of trioline knows 1"),
        (damage_journal, "journal-00000001 is damaged at byte"),
        (damage_journal_gone, "journal-00000001 is missing"),
    ],
)
def test_damage_stops_and_is_left_as_it_is(
    settings: JobSettings, damage: Callable[[JobSettings], None], sentence: str
) -> None:
    job = Job.open(settings)
    job.commit([results(0, 3), rejection(3), results(9, 10)])
    sync(job)
    job.close()
    damage(settings)
    before = {p: p.read_bytes() for p in settings.input.parent.rglob("*") if p.is_file()}
    with pytest.raises(StorageError, match=sentence):
        Job.open(settings)
    after = {p: p.read_bytes() for p in settings.input.parent.rglob("*") if p.is_file()}
    assert after == before


def test_an_output_longer_than_the_checkpoint_is_cut(settings: JobSettings) -> None:
    job = Job.open(settings)
    job.commit([results(0, 3)])
    sync(job)
    job.close()
    with settings.output.open("ab") as file:
        file.write(b'"torn')
    Job.open(settings).close()
    assert settings.output.read_bytes() == b"".join(map(answer, range(3)))


@pytest.mark.parametrize("fsync", [Fsync.INTERVAL, Fsync.NEVER])
def test_lines_that_did_not_reach_the_disk_are_done_again(tmp_path: Path, fsync: Fsync) -> None:
    (tmp_path / "in").write_bytes(input_of(20))
    settings = settings_for(tmp_path, fsync=fsync)
    job = Job.open(settings)
    job.commit([results(0, 3)])
    sync(job)
    job.commit([results(3, 5)])
    job.commit([results(5, 7), results(8, 9)])
    job.close()
    # The journal says that lines 3 and 4 are in the output; a power loss left zeros there.
    safe = len(b"".join(map(answer, range(3))))
    data = bytearray(settings.output.read_bytes())
    data[safe : safe + 20] = bytes(20)
    settings.output.write_bytes(data)
    again = Job.open(settings)
    assert (again.written_count, ahead(again)) == (3, [8])
    assert settings.output.read_bytes() == bytes(data[:safe])
    again.commit([results(3, 8)])
    assert again.written_count == 9
    again.close()
    assert settings.output.read_bytes() == b"".join(map(answer, range(9)))


def test_a_finished_output_that_grew_is_named(settings: JobSettings) -> None:
    job = Job.open(settings)
    job.commit([results(0, 20)])
    finish(job)
    job.close()
    with settings.output.open("ab") as file:
        file.write(b"more\n")
    with pytest.raises(StorageError, match="the job ended it at byte"):
        Job.open(settings)


def _append_to_output(settings: JobSettings) -> None:
    with settings.output.open("ab") as file:
        file.write(b"x")


def _replace_output(settings: JobSettings) -> None:
    shutil.copy(settings.output, settings.output.with_name("copy"))
    settings.output.with_name("copy").rename(settings.output)


def _remove_state(settings: JobSettings) -> None:
    shutil.rmtree(settings.state)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (_append_to_output, "it has .* bytes instead of"),
        (_replace_output, "moved, replaced or removed"),
        (damage_output_gone, "moved, replaced or removed"),
        (damage_output_short, "it has 5 bytes instead of"),
        (damage_rejected_short, "out.rejected was changed.*it has 5 bytes"),
        (_remove_state, "out.trioline was moved or removed .* Put it back, .* only there"),
    ],
)
def test_changes_under_a_running_job_end_it(
    settings: JobSettings, change: Callable[[JobSettings], None], sentence: str
) -> None:
    job = Job.open(settings)
    job.commit([results(0, 3)])
    change(settings)
    with pytest.raises(StorageError, match=sentence):
        sync(job)
    with pytest.raises(StorageError, match=sentence):
        job.commit([results(3, 4)])
    job.close()


def test_a_job_that_was_taken_over_ends(settings: JobSettings) -> None:
    job = Job.open(settings)
    job._lock.close()
    other = Job.open(settings)
    with pytest.raises(StorageError, match="Another server has taken over"):
        sync(job)
    job.close()
    other.close()


# --- errors of the disk -------------------------------------------------------------------------


class FailAt:
    """Fails one call of those named, the nth, with one errno."""

    def __init__(self, calls: set[str], at: int, code: int) -> None:
        self.calls, self.left, self.code = calls, at, code
        self.failed = False

    def __call__(self, call: str, _path: Path, _count: int) -> int | None:
        if call not in self.calls:
            return None
        self.left -= 1
        self.failed = self.failed or self.left == 0
        return self.code if self.left == 0 else None


def picture(files: CrashFiles) -> dict[Path, bytes]:
    """What counts of all files: a segment may have zeros behind its frames, or be empty."""
    journal = {path for path in files.paths() if path.name.startswith("journal")}
    contents = {
        path: files.get(path).rstrip(b"\0" if path in journal else b"") for path in files.paths()
    }
    return {path: content for path, content in contents.items() if content or path not in journal}


@pytest.mark.parametrize("fsync", Fsync)
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk_changes_nothing_and_the_call_may_be_repeated(fsync: Fsync, code: int) -> None:
    entries: list[Entry] = [results(0, 2), rejection(2), results(3, 4), results(6, 7), rejection(8)]
    failures = 0
    for at in range(1, 12):
        files, settings = memory_job(fsync)
        files.short_writes = random.Random(at)
        job = Job.open(settings, files, segment_bytes=100)
        job.commit([results(4, 6), rejection(7)])
        before = picture(files)
        counts = (job.written_count, ahead(job), job.rejected_ahead_count, job.output_bytes)
        files.fail = fail = FailAt({"pwrite", "create"}, at, code)
        if fail_raised(job, entries):
            failures += 1
            assert picture(files) == before
            assert counts == (
                job.written_count,
                ahead(job),
                job.rejected_ahead_count,
                job.output_bytes,
            )
            job.commit(entries)
        assert fail.failed
        assert (job.written_count, job.rejected_count, ahead(job)) == (9, 3, [])
        sync(job)
        job.close()
        again = Job.open(settings, files)
        assert (again.written_count, again.rejected_count) == (9, 3)
        again.close()
    assert failures > 5


def fail_raised(job: Job, entries: list[Entry]) -> bool:
    try:
        job.commit(entries)
    except DiskFull:
        return True
    return False


def test_a_full_disk_at_a_durable_point_may_be_repeated() -> None:
    files, settings = memory_job(Fsync.INTERVAL)
    job = Job.open(settings, files, segment_bytes=1)
    job.commit([results(0, 3)])
    job.commit([results(3, 5)])
    files.fail = FailAt({"pwrite"}, 1, errno.ENOSPC)
    with pytest.raises(DiskFull):
        sync(job)
    assert job.unsynced_bytes > 0
    # Nothing of the journal goes before the checkpoint that covers it is there.
    assert files.has(settings.state / "journal-00000001")
    sync(job)
    assert not files.has(settings.state / "journal-00000001")
    assert job.unsynced_bytes == 0
    files.lose_power(random.Random(0))
    again = Job.open(settings, files)
    assert again.written_count == 5
    again.close()


def test_what_a_given_up_point_was_begun_for_is_not_synced() -> None:
    files, settings = memory_job(Fsync.INTERVAL)
    job = Job.open(settings, files)
    job.commit([results(0, 3)])
    point = job.begin_point(job.source.offset_of(3))
    assert job.unsynced_bytes == 0
    files.fail = FailAt({"pwrite"}, 1, errno.ENOSPC)
    with pytest.raises(DiskFull):
        job.make_point(point)
    job.give_up_point()
    assert job.unsynced_bytes > 0
    sync(job)
    files.lose_power(random.Random(0))
    again = Job.open(settings, files)
    assert again.written_count == 3
    again.close()


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("call", ["sync", "sync_folder"])
def test_an_error_of_fsync_is_final(call: str, code: int) -> None:
    files, settings = memory_job(Fsync.ALWAYS)
    job = Job.open(settings, files)
    files.fail = FailAt({call}, 1, code)
    with pytest.raises(StorageError, match="cannot be synced") as caught:
        job.commit([results(0, 5)])
    assert not isinstance(caught.value, DiskFull)
    with pytest.raises(StorageError, match="cannot be synced"):
        job.commit([results(0, 5)])
    for durable in (sync, finish):
        with pytest.raises(StorageError, match="cannot be synced"):
            durable(job)
    job.close()


@pytest.mark.parametrize("fsync", Fsync)
@pytest.mark.parametrize("code", [errno.EIO, errno.EROFS, errno.ESTALE, errno.ENOSPC])
def test_any_failed_call_leaves_a_job_that_goes_on(fsync: Fsync, code: int) -> None:
    """The nth call fails, for each n; then the same command is started again."""
    calls = {
        "open",
        "create",
        "pread",
        "pwrite",
        "truncate",
        "sync",
        "sync_folder",
        "rename",
        "mkdir",
    }
    for at in range(1, 200):
        files, settings = memory_job(fsync, count=6)
        files.fail = fail = FailAt(calls, at, code)
        acknowledged = attempt_work(files, settings)
        files.kill()
        if not fail.failed:
            assert acknowledged == 4
            break
        job = Job.open(settings, files)
        assert job.written_count + job.ahead_count >= acknowledged
        assert files.get(settings.output) == b"".join(map(answer, range(job.written_count)))
        job.close()
    else:
        pytest.fail("the work never ended")


def attempt_work(files: CrashFiles, settings: JobSettings) -> int:
    acknowledged = 0
    try:
        job = Job.open(settings, files)
        for entries in ([results(0, 1)], [results(2, 3)], [results(1, 2)], [results(3, 4)]):
            job.commit(entries)
            acknowledged += 1
            sync(job)
        job.close()
    except (UsageError, StorageError) as error:
        sentence = str(error)
    else:
        return acknowledged
    assert str(settings.output.parent) in sentence
    return acknowledged


def test_errors_leave_no_file_open() -> None:
    for at in range(1, 60):
        files, settings = memory_job(Fsync.ALWAYS)
        files.fail = FailAt({"pread", "pwrite", "sync", "sync_folder"}, at, errno.EIO)
        with contextlib.suppress(StorageError, UsageError):
            Job.open(settings, files).close()
        assert files.open_count == 0
