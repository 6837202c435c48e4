"""Real file systems: full, limited, cut off from power; and SIGKILL at each system call.

``--disk-trials`` asks for more kills and power cuts. What this machine does not allow is skipped,
and says why.
"""

from __future__ import annotations

import array
import contextlib
import fcntl
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import committer
import pytest
from processes import (
    DEADLINE_SECONDS,
    ROOT,
    Plain,
    Serve,
    numbers,
    serving,
    started,
    wait_until,
)

from trioline.config import Fsync
from trioline.storage import Job

HERE = Path(__file__).parent
IMPORTED = os.pathsep.join([str(ROOT / "tests"), str(ROOT)])
"""By the committer: the tree under test, wherever another one is installed."""
KIB = 1024
SYSTEM_CALLS = "pwrite64,fdatasync,fsync,ftruncate,mkdir,rename,unlink"
"""All that changes something; also the ones of a new job."""


@contextlib.contextmanager
def mounted(folder: Path, *options: str | Path) -> Iterator[Path]:
    """Mount something there, and unmount it at the end."""
    if os.geteuid() != 0:
        pytest.skip("only root mounts file systems")
    if shutil.which("mount") is None:
        pytest.skip("there is no mount here")
    folder.mkdir(exist_ok=True)
    command: list[str | Path] = ["mount", *options, folder]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    if done.returncode:
        pytest.skip(f"mounting is not allowed here: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        unmount(folder)


def unmount(folder: Path) -> None:
    for option in ("--verbose", "--lazy"):
        command: list[str | Path] = ["umount", option, folder]
        if subprocess.run(command, capture_output=True, timeout=30).returncode == 0:
            return


# --- no room --------------------------------------------------------------------------------------

ANSWER = b'"' + b"." * 2_000 + b'"'
LINES = 200
WAITS = "goes on by itself when there is room"


class Worker(threading.Thread):
    """Answers all lines, some at a time; waits where the server does, and ends where that does."""

    def __init__(self, serve: Serve) -> None:
        super().__init__()
        self.port = serve.port
        self.done_count = 0

    def run(self) -> None:
        with contextlib.suppress(ConnectionError, EOFError), Plain(self.port) as plain:
            while (work := plain.get_lines(5)) is not None:
                first, lines = work
                assert plain.done_lines(first, [ANSWER] * len(lines))["accepted"] == len(lines)
                self.done_count += len(lines)


def check_pause(serve: Serve, make_room: Callable[[], object]) -> None:
    """The job pauses, room is made, it goes on by itself, and ends well."""
    worker = Worker(serve)
    worker.start()
    try:
        serve.wait_status(lambda status: status["state"] == "disk-full", "a full disk")
        done_count = worker.done_count
        assert 0 < done_count < LINES
        time.sleep(0.3)
        assert worker.done_count == done_count
        make_room()
        ended = serve.wait()
    finally:
        serve.kill()
        worker.join()
    assert ended.code == 0
    assert worker.done_count == LINES
    assert ended.stderr.count("goes on by itself when there is room") == 1
    assert ended.stderr.count("There is room again") == 1


@pytest.mark.slow
@pytest.mark.parametrize("fsync", ["always", "interval"])
def test_a_full_file_system_gets_room_again(tmp_path: Path, fsync: str) -> None:
    (tmp_path / "in").write_bytes(numbers(LINES))
    with mounted(tmp_path / "small", "-t", "tmpfs", "-o", "size=2m", "tmpfs") as small:
        filler = small / "filler"
        filler.write_bytes(bytes(1_800 * KIB))
        arguments = ("in", "small/out", "--fsync", fsync, "--linger", "0.5")
        with serving(*arguments, cwd=tmp_path) as serve:
            check_pause(serve, filler.unlink)
        assert (small / "out").read_bytes() == (ANSWER + b"\n") * LINES


@pytest.mark.slow
@pytest.mark.parametrize("fsync", Fsync)
def test_a_job_that_is_killed_on_a_full_file_system_loses_nothing(
    tmp_path: Path, fsync: str
) -> None:
    """A start waits for room where it needs some: nothing that was acknowledged is done again."""
    (tmp_path / "in").write_bytes(numbers(LINES))
    with mounted(tmp_path / "small", "-t", "tmpfs", "-o", "size=2m", "tmpfs") as small:
        filler = small / "filler"
        filler.write_bytes(bytes(1_700 * KIB))
        arguments = ("in", "small/out", "--fsync", fsync, "--linger", "0.5")
        with serving(*arguments, cwd=tmp_path) as serve:
            acknowledged = answer_until_full(serve)
        fill(filler)
        with started("serve", *arguments, "--port", "0", cwd=tmp_path) as start:
            wait_until(lambda: start.stdout or WAITS in start.stderr, "a start")
            assert start.stop().code == 4
        filler.unlink()
        with serving(*arguments, cwd=tmp_path) as serve:
            worker = Worker(serve)
            worker.run()
            ended = serve.wait()
        assert ended.code == 0
        assert worker.done_count == LINES - acknowledged
        assert (small / "out").read_bytes() == (ANSWER + b"\n") * LINES


@pytest.mark.slow
def test_a_first_start_on_a_full_file_system_waits_for_room(tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(numbers(LINES))
    with mounted(tmp_path / "small", "-t", "tmpfs", "-o", "size=2m", "tmpfs") as small:
        filler = small / "filler"
        fill(filler)
        arguments = ("in", "small/out", "--linger", "0.5")
        for number in (signal.SIGTERM, signal.SIGINT):
            with started("serve", *arguments, "--port", "0", cwd=tmp_path) as start:
                start.wait_said(WAITS)
                stopped = start.stop(number)
            assert stopped.code == 4
            assert stopped.stdout == ""
        serve = Serve(arguments, tmp_path)
        try:
            serve.wait_said(WAITS)
            filler.unlink()
            serve.wait_listening()
            Worker(serve).run()
            ended = serve.wait()
        finally:
            serve.kill()
        assert ended.code == 0
        assert "There is room again" in ended.stderr
        assert (small / "out").read_bytes() == (ANSWER + b"\n") * LINES


def fill(filler: Path) -> None:
    """Take all room that is left."""
    with filler.open("ab", buffering=0) as rest, contextlib.suppress(OSError):
        while rest.write(bytes(KIB)):
            pass


def answer_until_full(serve: Serve) -> int:
    """Answer lines until the disk is full, then kill the server; how many were acknowledged."""
    worker = Worker(serve)
    worker.start()
    serve.wait_status(lambda status: status["state"] == "disk-full", "a full disk")
    serve.kill()
    worker.join()
    assert 0 < worker.done_count < LINES
    return worker.done_count


@pytest.mark.slow
def test_a_limit_of_the_file_size_is_a_full_disk(tmp_path: Path) -> None:
    """The system sends SIGXFSZ with it, which would end the process."""
    (tmp_path / "in").write_bytes(numbers(LINES))
    with serving("in", "out", "--fsync", "interval", "--linger", "0.5", cwd=tmp_path) as serve:
        _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.prlimit(serve.pid, resource.RLIMIT_FSIZE, (100 * KIB, hard))
        check_pause(serve, lambda: resource.prlimit(serve.pid, resource.RLIMIT_FSIZE, (hard, hard)))
    assert (tmp_path / "out").read_bytes() == (ANSWER + b"\n") * LINES


# --- the end, at each system call -----------------------------------------------------------------

KILL_LINES = 10


def commit_alone(folder: Path, fsync: Fsync, count: int, *wrapper: str) -> tuple[int, list[str]]:
    """Run the committer in a process; gives its code and what it said."""
    environment = {
        **os.environ,
        "PYTHONPATH": IMPORTED,
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    command = [*wrapper, sys.executable, str(HERE / "committer.py"), str(folder), fsync, str(count)]
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=DEADLINE_SECONDS
    )
    return done.returncode, done.stdout.splitlines()


def check_restart(folder: Path, fsync: Fsync, count: int, expected: set[int]) -> None:
    """What must be there is there; the output ends as it should, each line once."""
    job = Job.open(committer.settings(folder, fsync), segment_bytes=committer.SEGMENT_BYTES)
    settled = committer.settled_in(job)
    missing = expected - settled
    answers = [committer.answer(line) for line in range(count)]
    assert not missing, f"acknowledged and lost: {sorted(missing)}"
    content = (folder / "out").read_bytes()
    assert content == b"".join(answers[: job.written_count])
    if not job.is_finished:
        job.commit([committer.entry(line) for line in range(count) if line not in settled])
        job.finish(job.source.offset_of(count))
    job.close()
    assert (folder / "out").read_bytes() == b"".join(answers)
    records = [b'{"id":%d}\n' % line for line in range(count) if answers[line] == b"null\n"]
    assert (folder / "out.rejected").read_bytes() == b"".join(records)


def lines_of(said: list[str]) -> set[int]:
    return {int(text.removeprefix("done ")) for text in said if text.startswith("done ")}


def require_strace() -> str:
    strace = shutil.which("strace")
    if strace is None:
        pytest.skip("there is no strace here")
    probe = [strace, "-qq", "-e", "trace=none", "true"]
    if subprocess.run(probe, capture_output=True, timeout=30).returncode:
        pytest.skip("tracing processes is not allowed here")
    return strace


@pytest.mark.slow
@pytest.mark.parametrize("fsync", Fsync)
def test_a_kill_at_a_system_call_loses_nothing(
    tmp_path: Path, fsync: Fsync, disk_trials: int
) -> None:
    strace = require_strace()
    calls = tmp_path / "calls"
    trace = (strace, "-qq", "-o", str(calls), "-e", f"trace={SYSTEM_CALLS}")
    count = KILL_LINES

    def new_job() -> Path:
        folder = tmp_path / "job"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        (folder / "in").write_bytes(numbers(count))
        return folder

    folder = new_job()
    code, said = commit_alone(folder, fsync, count, *trace)
    assert (code, len(lines_of(said))) == (0, count)
    names = re.findall(r"^(?:\d+ +)?(\w+)\(", calls.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(names) > 40
    rng = random.Random(fsync)
    chosen = sorted(rng.sample(range(len(names)), min(disk_trials, len(names))))
    killed = 0
    for at in chosen:
        folder = new_job()
        nth = names[: at + 1].count(names[at])
        inject = f"inject={names[at]}:signal=KILL:when={nth}"
        code, said = commit_alone(folder, fsync, count, *trace, "-e", inject)
        killed += code in (-signal.SIGKILL, 128 + signal.SIGKILL)
        check_restart(folder, fsync, count, lines_of(said))
    assert killed == len(chosen)


# --- power ----------------------------------------------------------------------------------------

FS_IOC_SHUTDOWN = 0x8004587D
WITHOUT_THE_LOG = 2
IMAGE_BYTES = 8 * 1024 * KIB
POWER_LINES = 4_000


def cut_power(folder: Path) -> None:
    """Let the file system in ``folder`` take nothing any more, and forget what it had not written.

    Raises:
        OSError: It cannot.
    """
    fd = os.open(folder, os.O_RDONLY)
    try:
        fcntl.ioctl(fd, FS_IOC_SHUTDOWN, array.array("I", [WITHOUT_THE_LOG]))
    finally:
        os.close(fd)


def make_image(path: Path) -> None:
    mkfs = shutil.which("mkfs.ext4") or shutil.which("mkfs.ext4", path="/sbin:/usr/sbin")
    if mkfs is None:
        pytest.skip("there is no mkfs.ext4 here")
    with path.open("wb") as image:
        image.truncate(IMAGE_BYTES)
    subprocess.run([mkfs, "-q", "-F", path], check=True, capture_output=True, timeout=60)


@pytest.mark.slow
@pytest.mark.parametrize("fsync", Fsync)
def test_a_power_cut_loses_nothing_that_was_promised(
    tmp_path: Path, fsync: Fsync, disk_trials: int
) -> None:
    """Under ``interval`` and ``never`` the promise is that of the last durable point."""
    image = tmp_path / "image"
    rng = random.Random(fsync)
    for _ in range(max(1, disk_trials // 12)):
        make_image(image)
        with mounted(tmp_path / "disk", "-o", "loop", image) as disk:
            (disk / "in").write_bytes(numbers(POWER_LINES))
            os.sync()
            lives = rng.choice((1, 2, 3))
            expected: set[int] = set()
            for _ in range(lives):
                said = work_until_power_is_cut(disk, tmp_path / "said", fsync, rng)
                expected |= promised(said, fsync)
                unmount(disk)
                subprocess.run(["mount", "-o", "loop", image, disk], check=True, timeout=30)
                check_prefix(disk, fsync, expected)
            check_restart(disk, fsync, POWER_LINES, expected)


def work_until_power_is_cut(disk: Path, said: Path, fsync: Fsync, rng: random.Random) -> list[str]:
    """What the committer had said when the cut began."""
    wanted = rng.randrange(1, 150)
    environment = {**os.environ, "PYTHONPATH": IMPORTED}
    command = [sys.executable, str(HERE / "committer.py"), str(disk), fsync, str(POWER_LINES)]
    with said.open("wb") as out:
        process = subprocess.Popen(command, env=environment, stdout=out, stderr=subprocess.PIPE)
    try:
        wait_until(lambda: said.read_bytes().count(b"\n") >= wanted, f"{wanted} lines")
        # What is promised while the cut goes on does not count: an fdatasync that the ioctl
        # overtakes may return 0 though its commit never reaches the disk. Without trioline, a loop
        # of pwrite and fdatasync on ext4 lost its last record in 7 of 200 cuts (Linux 6.18), with
        # fsync in 11. Of 2,200 cuts none lost what was promised before the ioctl began.
        before = said.read_bytes()
        try:
            cut_power(disk)
        except OSError as error:
            pytest.skip(f"this file system cannot be shut down: {error.strerror}")
        _, stderr = process.communicate(timeout=DEADLINE_SECONDS)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 1, "it went on without a disk"
    assert b"StorageError" in stderr
    whole, _, _ = before.rpartition(b"\n")
    return whole.decode("ascii").splitlines()


def promised(said: list[str], fsync: Fsync) -> set[int]:
    if fsync is Fsync.ALWAYS:
        return lines_of(said)
    durable = [at for at, text in enumerate(said) if text == "durable"]
    return lines_of(said[: durable[-1]]) if durable else set()


def check_prefix(disk: Path, fsync: Fsync, expected: set[int]) -> None:
    job = Job.open(committer.settings(disk, fsync), segment_bytes=committer.SEGMENT_BYTES)
    missing = expected - committer.settled_in(job)
    job.close()
    assert not missing, f"promised and lost: {sorted(missing)}"
