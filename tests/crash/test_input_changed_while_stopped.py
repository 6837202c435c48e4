"""An input that is edited while no server runs, with lines of it answered ahead of their turn.

Their answers wait in the journal, where no table of checksums speaks for them.
"""

from __future__ import annotations

import errno
import os
import random
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import pytest
from damage_helpers import contents
from processes import Plain, invoke, serving, trioline
from repair_helpers import answered, line_of, mend_all
from storage_helpers import Crash, CrashFiles, settings_for

from trioline.config import Fsync, JobSettings
from trioline.errors import DiskFull, StorageError
from trioline.storage import Job, Rejection, encode_record, input_ahead
from trioline.storage.checkpoint import Checkpoint
from trioline.storage.files import Disk
from trioline.storage.frames import HEADER_BYTES
from trioline.storage.repair.given import Given
from trioline.storage.verify.findings import Report
from trioline.storage.verify.verification import find_subject, verify

FOLDER = Path("/d")
LINES = 320
STUCK = 10
"""The line that all the others wait for."""
BLOCK = 64


pytestmark = pytest.mark.usefixtures("small_ends")


def text_of(lines: int = LINES) -> bytes:
    return b"".join(line_of(number) + b"\n" for number in range(lines))


def is_aligned(output: bytes, text: bytes) -> bool:
    wanted = b"".join(entry.data for entry in answered(range(LINES), text))
    return output == wanted


def edited(text: bytes, line: int) -> bytes:
    return text.replace(line_of(line), line_of(line).upper())


def put(files: CrashFiles, settings: JobSettings, text: bytes) -> None:
    """Place an input, as somebody does who edits one."""
    time = zlib.crc32(text)
    files.put(settings.input, text)
    files.set_times(settings.input, time, time)


def sync(job: Job) -> None:
    job.sync(job.source.offset_of(job.written_count))


def stuck_job(files: CrashFiles, fsync: Fsync = Fsync.ALWAYS) -> JobSettings:
    """A job that was stopped with much ahead of line ``STUCK``, but nothing of the third block."""
    settings = settings_for(FOLDER, fsync=fsync)
    put(files, settings, text_of())
    job = Job.open(settings, files)
    job.commit(answered(range(STUCK), text_of()))
    for lines in (range(STUCK + 1, 128), range(192, 200), range(200, 250)):
        job.commit(answered(lines, text_of()))
        sync(job)
    job.close()
    return settings


def finish(files: CrashFiles, settings: JobSettings) -> set[int]:
    """Do the rest; returns what that was."""
    job = Job.open(settings, files)
    open_lines = set(range(job.written_count, LINES)).difference(*job.ahead())
    job.commit(answered(sorted(open_lines), files.get(settings.input)))
    job.finish(job.source.offset_of(LINES))
    job.close()
    return open_lines


def verified(files: CrashFiles, settings: JobSettings) -> Report:
    return verify(find_subject(Disk(files), settings), lambda _: (), files=files)


@pytest.mark.parametrize("fsync", Fsync)
@pytest.mark.parametrize("line", [STUCK + 1, 100, 192, 249])
@pytest.mark.parametrize("restarts", [0, 2])
def test_an_edited_line_whose_answer_waits_is_found_and_named(
    fsync: Fsync, line: int, restarts: int
) -> None:
    files = CrashFiles()
    settings = stuck_job(files, fsync)
    for _ in range(restarts):
        Job.open(settings, files).close()
    put(files, settings, edited(text_of(), line))
    before = contents(files)
    with pytest.raises(StorageError) as caught:
        Job.open(settings, files)
    first = line // BLOCK * BLOCK
    text = str(caught.value)
    assert f"/d/in: lines {first} to {first + 63} (line " in text
    known = max(first, STUCK)
    assert f"(line {known} begins at byte {text_of().index(line_of(known)):,})" in text
    assert "`trioline repair /d/out`" in text
    assert caught.value.path == str(settings.input)
    assert contents(files) == before
    put(files, settings, text_of())
    finish(files, settings)
    assert verified(files, settings).holds
    assert is_aligned(files.get(settings.output), text_of())


def test_an_edit_that_moves_all_later_lines_is_found() -> None:
    files = CrashFiles()
    settings = stuck_job(files)
    put(files, settings, text_of().replace(b"\nline 070", b" line 070"))
    with pytest.raises(StorageError, match=r"lines 64 to 127 .*nor are 1 later blocks of 64"):
        Job.open(settings, files)


def test_a_rejected_line_ahead_of_its_turn_is_held_against_the_input_too() -> None:
    files = CrashFiles()
    settings = settings_for(FOLDER)
    put(files, settings, text_of())
    job = Job.open(settings, files)
    record = encode_record(100, line_of(100), attempts=1, losses=0, errors=["no"])
    job.commit([Rejection(100, record)])
    sync(job)
    job.close()
    put(files, settings, edited(text_of(), 100))
    with pytest.raises(StorageError, match="lines 64 to 127"):
        Job.open(settings, files)


@pytest.mark.parametrize("fsync", Fsync)
@pytest.mark.parametrize("line", [STUCK, 130, 260])
def test_an_edited_line_of_a_block_without_answers_is_handed_out_as_it_is(
    fsync: Fsync, line: int
) -> None:
    """Also where its block was recorded: the record is made anew before anything is answered."""
    files = CrashFiles()
    settings = stuck_job(files, fsync)
    now = edited(text_of(), line)
    put(files, settings, now)
    if line == STUCK:  # its block has answers
        with pytest.raises(StorageError, match="lines 0 to 63"):
            Job.open(settings, files)
        return
    for at in (line, line + 1):
        job = Job.open(settings, files)
        job.commit(answered([at], now))
        job.close()  # no durable point
    assert len(finish(files, settings)) == LINES - STUCK - (127 - STUCK) - 58 - 2
    assert verified(files, settings).holds
    assert is_aligned(files.get(settings.output), now)


@pytest.mark.parametrize("fsync", Fsync)
@pytest.mark.parametrize("line", [100, 249])
def test_a_repair_has_only_the_lines_of_its_block_answered_again(fsync: Fsync, line: int) -> None:
    files = CrashFiles()
    settings = stuck_job(files, fsync)
    now = edited(text_of(), line)
    put(files, settings, now)
    plan = mend_all(files, Given(output=settings.output))
    first = line // BLOCK * BLOCK
    assert (
        f"was changed in lines {first} to {first + 63}, of which there are answers"
        in (plan.found[0])
    )
    redone = {100: set(range(64, 128)), 249: set(range(192, 250))}[line]
    assert plan.counts.redone == len(redone)
    assert plan.counts.open == LINES - STUCK - (127 - STUCK) - 58 + len(redone)
    assert redone <= finish(files, settings)
    assert verified(files, settings).holds
    assert is_aligned(files.get(settings.output), now)


def test_what_was_recorded_of_lines_that_the_output_has_is_no_more_asked_for() -> None:
    """It may be in a segment that is still needed; `verify` has its own sums of these lines."""
    files = CrashFiles()
    settings = stuck_job(files)
    job = Job.open(settings, files)
    job.commit(answered([STUCK], text_of()))
    sync(job)
    job.commit(answered([140], text_of()))
    sync(job)
    job.close()
    put(files, settings, edited(text_of(), 70))
    finish(files, settings)
    (finding,) = verified(files, settings).findings
    assert (finding.line, finding.last_line) == (64, 127)


def test_what_a_full_disk_kept_from_the_journal_is_recorded_when_there_is_room() -> None:
    files = CrashFiles()
    settings = settings_for(FOLDER)
    put(files, settings, text_of())
    job = Job.open(settings, files)
    job.commit(answered(range(100, 110), text_of()))
    files.fail = lambda call, path, _: (
        errno.ENOSPC if call == "pwrite" and path.name.startswith("journal") else None
    )
    for _ in range(2):
        with pytest.raises(DiskFull):
            sync(job)
    files.fail = None
    sync(job)
    job.close()
    put(files, settings, edited(text_of(), 105))
    with pytest.raises(StorageError, match="lines 64 to 127"):
        Job.open(settings, files)


def test_nothing_is_recorded_while_nothing_is_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    files = CrashFiles()
    settings = settings_for(FOLDER, fsync=Fsync.ALWAYS)
    put(files, settings, text_of())
    monkeypatch.setattr(input_ahead, "sums_from", lambda *_: map(pytest.fail, ["it was read"]))
    job = Job.open(settings, files)
    for first in range(0, LINES, 40):
        job.commit(answered(range(first, first + 40), text_of()))
        written = job.journal_bytes
        sync(job)
        assert job.journal_bytes in (written, 0)
    job.close()


def test_the_input_is_read_once_for_what_is_ahead() -> None:
    files = CrashFiles()
    settings = stuck_job(files)
    size = 0
    job = Job.open(settings, files)
    for at in range(250, 300):
        job.commit(answered([at], text_of()))
        sync(job)
        size += job.journal_bytes - size
    frames = 50 * (HEADER_BYTES + 15) + HEADER_BYTES + 4 * 2
    assert job.journal_bytes <= size <= frames + 4_200
    job.close()


# --- what was answered since the last durable point -----------------------------------------------


def killed_job(folder: Path) -> JobSettings:
    """A job that was killed with lines behind the last durable point, in turn and ahead."""
    settings = settings_for(folder, fsync=Fsync.INTERVAL)
    settings.input.write_bytes(text_of())
    job = Job.open(settings)
    job.commit(answered([*range(70), *range(100, 120)], text_of()))
    sync(job)
    job.commit(answered([*range(70, 80), *range(130, 140)], text_of()))
    job.close()
    return settings


@pytest.mark.parametrize("fsync", [Fsync.ALWAYS, Fsync.INTERVAL])
def test_an_edit_is_told_of_though_only_the_first_slot_is_whole(fsync: Fsync) -> None:
    """The job was killed, and its newest slot damaged, within its first second."""
    files, settings = CrashFiles(), settings_for(FOLDER, fsync=fsync)
    put(files, settings, text_of())
    job = Job.open(settings, files)
    job.commit(answered(range(150), text_of()))
    job.commit(answered(range(200, 210), text_of()))
    files.kill()
    checkpoint = settings.state / "checkpoint"
    slots = files.get(checkpoint)
    files.put(checkpoint, slots[:4096] + bytes(len(slots) - 4096))
    put(files, settings, edited(text_of(), 100))
    job = Job.open(settings, files)
    assert job.warning is not None
    job.close()
    finish(files, settings)
    report = verified(files, settings)
    output, text = files.get(settings.output), files.get(settings.input)
    assert not report.is_proved or is_aligned(output, text)


def finish_on_disk(settings: JobSettings) -> None:
    job = Job.open(settings)
    open_lines = set(range(job.written_count, LINES)).difference(*job.ahead())
    job.commit(answered(sorted(open_lines), settings.input.read_bytes()))
    job.finish(job.source.offset_of(LINES))
    job.close()


def touch(path: Path) -> None:
    os.utime(path, ns=(1, 1))


def edit_in_secret(path: Path) -> None:
    """The size and the time of modification stay."""
    times = path.stat().st_mtime_ns
    with path.open("r+b") as file:
        file.seek(path.read_bytes().index(line_of(135)))
        file.write(line_of(135).upper())
    os.utime(path, ns=(times, times))


@pytest.mark.parametrize("change", [touch, edit_in_secret])
def test_what_no_durable_point_recorded_is_not_proved_once_the_input_was_touched(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], change: Callable[[Path], object]
) -> None:
    settings = killed_job(tmp_path)
    change(settings.input)
    job = Job.open(settings)
    assert job.warning is not None
    assert "Of lines 70 to 139 nothing recorded what they were" in job.warning
    job.close()
    finish_on_disk(settings)
    told = invoke("verify", settings.input, settings.output, capture=capfd.readouterr)
    assert told.code == 1
    assert f"{settings.output}: lines 70 to 139 are not proved" in told.stdout
    assert "the input was written to, touched or copied after they were answered" in told.stdout


def test_it_is_proved_where_nobody_touched_the_input(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    settings = killed_job(tmp_path)
    job = Job.open(settings)
    assert job.warning is None
    job.close()
    finish_on_disk(settings)
    assert invoke("verify", settings.input, settings.output, capture=capfd.readouterr).code == 0


def test_what_was_recorded_is_proved_though_the_input_was_touched(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    settings = killed_job(tmp_path)
    job = Job.open(settings)
    job.commit(answered([150], text_of()))
    sync(job)
    job.close()
    touch(settings.input)
    job = Job.open(settings)
    assert job.warning is not None
    assert "nothing recorded" not in job.warning
    job.close()
    finish_on_disk(settings)
    assert invoke("verify", settings.input, settings.output, capture=capfd.readouterr).code == 0


def test_an_edit_in_secret_while_it_runs_is_found_when_the_lines_turn_comes(tmp_path: Path) -> None:
    settings = settings_for(tmp_path)
    settings.input.write_bytes(text_of())
    job = Job.open(settings)
    job.commit(answered(range(1, 200), text_of()))
    sync(job)
    edit_in_secret(settings.input)
    job.commit(answered([0], text_of()))
    with pytest.raises(StorageError, match="in was changed, replaced or touched while the job ran"):
        sync(job)
    job.close()


# --- as its user sees it --------------------------------------------------------------------------


@pytest.mark.slow
def test_a_server_refuses_an_edited_input_and_a_repair_helps(tmp_path: Path) -> None:
    """An edit far from both ends, where no hash of the input sees it."""
    lines = [b"%d" % number * 20_000 for number in range(100, 200)]
    (tmp_path / "in").write_bytes(b"\n".join(lines) + b"\n")
    serve = "serve", "in", "out", "--quiet"
    with serving(*serve[1:], "--drain", "0", cwd=tmp_path) as first, Plain(first.port) as plain:
        assert plain.get_lines(1) == (0, lines[:1])
        answer_all(plain, 49)
        assert first.stop().code == 4
    with (tmp_path / "in").open("r+b") as file:
        file.seek(60_001 * 40)
        file.write(b"777777")
    refused = trioline(*serve, cwd=tmp_path)
    assert refused.code == 74
    assert "in: lines 0 to 63 (line 0 begins at byte 0) are not as they were" in refused.stderr
    mended = trioline("repair", "out", "--yes", cwd=tmp_path)
    assert mended.code == 0, mended
    assert "49 were done before" in mended.stdout
    with serving(*serve[1:], "--linger", "0", cwd=tmp_path) as second, Plain(second.port) as plain:
        answer_all(plain, 100)
        assert second.wait().code == 0
    verified = trioline("verify", "in", "out", cwd=tmp_path)
    assert verified.code == 0, verified
    answers = (tmp_path / "out").read_bytes().splitlines()
    assert answers == [b"777" if at == 40 else b"%d" % (at + 100) for at in range(100)]


def answer_all(plain: Plain, count: int) -> None:
    """Answer so many lines, one by one, with what they begin with."""
    for _ in range(count):
        work = plain.get_lines(1)
        assert work is not None
        plain.done_lines(work[0], [work[1][0][:3]])


# --- by chance ------------------------------------------------------------------------------------


class Trial:
    """A job that is killed at random operations, its input edited in between.

    Whatever comes: where all is said to be proved, each answer is that of its line as it is.
    """

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.settings = settings_for(FOLDER, fsync=list(Fsync)[seed % 3])
        self.files = CrashFiles()
        self.text = text_of()
        self.time = 1
        self.files.put(self.settings.input, self.text)
        self.files.set_times(self.settings.input, 1, 1)

    def run(self) -> str:
        """Returns how it ended."""
        for _ in range(3):
            self.files.call_count, self.files.crash_at = 0, self.rng.randrange(1, 80)
            try:
                if self.work(is_last=False):
                    break
            except Crash:
                pass
            except StorageError as error:
                return self.refused(error)
            if self.rng.random() < 0.5:
                self.files.kill()
            else:
                self.files.lose_power(self.rng)
            if self.rng.random() < 0.7:
                self.edit()
        self.files.kill()
        try:
            self.work(is_last=True)
        except StorageError as error:
            return self.refused(error)
        return self.end()

    def refused(self, error: StorageError) -> str:
        """A repair is the way out, and leaves nothing that is not so."""
        assert str(error).startswith("/d/in"), error
        self.files.kill()
        mend_all(self.files, Given(output=self.settings.output))
        self.work(is_last=True)
        return f"refused, {self.end()}"

    def end(self) -> str:
        report = verified(self.files, self.settings)
        output = self.files.get(self.settings.output).splitlines(keepends=True)
        wanted = [entry.data for entry in answered(range(LINES), self.text)]
        wrong = [line for line in range(LINES) if output[line] != wanted[line]]
        named = [(found.line, found.last_line) for found in report.findings]
        for line in wrong:
            assert any(a is not None and b is not None and a <= line <= b for a, b in named), line
        return f"{'not ' if wrong else ''}aligned, {'' if report.holds else 'not '}proved"

    def edit(self) -> None:
        self.time += 1
        line = self.rng.randrange(20, LINES - 20)
        self.text = self.text.replace(
            line_of(line), bytes(self.rng.sample(b"abcdefghijklmnop", 16))
        )
        self.files.put(self.settings.input, self.text)
        is_secret = self.rng.random() < 0.5
        self.files.set_times(self.settings.input, 1 if is_secret else self.time, self.time)

    def work(self, *, is_last: bool) -> bool:
        job = Job.open(self.settings, self.files)
        missing = sorted(set(range(job.written_count, LINES)).difference(*job.ahead()))
        stuck = not is_last and bool(missing) and self.rng.random() < 0.8
        if stuck:
            del missing[self.rng.randrange(len(missing)) // self.rng.choice((1, 4))]
        while missing:
            begin, count = self.rng.randrange(len(missing)), self.rng.choice((1, 5, 30))
            lines = missing[begin : begin + count]
            del missing[begin : begin + count]
            job.commit(answered(lines, self.text))
            if self.rng.random() < 0.4:
                sync(job)
        if not stuck and not job.is_finished:
            job.finish(job.source.offset_of(LINES))
        job.close()
        return not stuck


@pytest.mark.parametrize("block", range(4))
def test_what_is_said_to_be_proved_is_aligned_whatever_is_edited(block: int) -> None:
    ends = Counter(Trial(seed).run() for seed in range(block * 100, block * 100 + 100))
    print(ends)
    assert ends["aligned, proved"]
    assert ends["refused, aligned, proved"]


def test_the_trials_notice_where_nothing_is_doubted() -> None:
    with mock.patch.object(Checkpoint, "doubting", lambda last, _: last):
        assert any(is_fooled(seed) for seed in range(400))


def is_fooled(seed: int) -> bool:
    try:
        Trial(seed).run()
    except AssertionError:
        return True
    return False
