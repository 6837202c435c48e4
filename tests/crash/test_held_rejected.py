"""A repair and a retry hold the file of rejected lines: no other job's server is at it meanwhile.

The mark that keeps other jobs off is removed by hand, so that nothing but the lock is left.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import attrs
import processes
import pytest
from processes import Process, Serve, numbers, serving, trioline, wait_until
from retry_helpers import finished_job, run_again
from storage_helpers import Crash, settings_for

from trioline.errors import JobLocked
from trioline.storage import Job
from trioline.storage.files import Disk
from trioline.storage.lock import Lock
from trioline.storage.retry.retry import Retry

ODD_TRIOLINE = Path(__file__).with_name("odd_trioline.py")
OTHER = ("in", "two", "--rejected", "bad", "--quiet")
RETRY = ("in", "one", "--rejected", "bad", "--quiet")
AT_WORK = "another server is at work on"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A finished job with two rejected lines; its file, without a mark, is another job's, too."""
    (tmp_path / "in").write_bytes(numbers(2))
    other = attrs.evolve(settings_for(tmp_path), output=tmp_path / "two", rejected=tmp_path / "bad")
    Job.open(other).close()
    (tmp_path / "bad.trioline").unlink()
    options = ("--rejected", "bad", "--max-attempts", "1", "--quiet", "--each", "false")
    assert trioline("run", "in", "one", *options, cwd=tmp_path).code == 3
    (tmp_path / "bad.trioline").unlink()
    return tmp_path


def check_locked(folder: Path, *command: str) -> None:
    before = (folder / "bad").read_bytes()
    ended = trioline(*command, cwd=folder)
    assert ended.code == 1, ended.stderr
    assert AT_WORK in ended.stderr
    assert "bad" in ended.stderr
    assert (folder / "bad").read_bytes() == before


@pytest.mark.slow
def test_nobody_begins_while_a_repair_is_at_the_file(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "switch").write_text("hang", encoding="ascii")
    (folder / "one").write_bytes(b"damaged\n")
    paths = [str(Path(__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {"ODD_DISK": str(folder / "switch"), "PYTHONPATH": os.pathsep.join(paths)}
    with monkeypatch.context() as patched:
        patched.setattr(processes, "PROGRAM", (sys.executable, str(ODD_TRIOLINE)))
        repair = Process(("repair", "one", "--yes"), folder, environment)
    try:
        copies = (folder / "one.trioline").glob
        wait_until(lambda: [*copies("damaged-*")] or not repair.is_running, "the first copy")
        check_locked(folder, "serve", *OTHER)
        (folder / "switch").write_text("", encoding="ascii")
        ended = repair.wait()
    finally:
        repair.kill()
    assert ended.code == 0, ended.stderr


@pytest.mark.slow
def test_nobody_begins_while_a_retry_is_at_the_file(folder: Path) -> None:
    retry = Serve(RETRY, folder, command="retry")
    try:
        retry.wait_listening()
        check_locked(folder, "serve", *OTHER)
    finally:
        retry.kill()


@pytest.mark.slow
def test_a_file_that_a_server_is_at_is_neither_repaired_nor_retried(folder: Path) -> None:
    (folder / "bad").rename(folder / "kept")
    with serving(*OTHER, cwd=folder) as other:
        check_locked(folder, "repair", "one", "--yes")
        check_locked(folder, "retry", *RETRY)
        other.kill()


def test_what_a_retry_puts_in_place_is_held() -> None:
    """It was killed in its last step, and goes on with files that were not there before."""
    files, settings = finished_job()
    retry = Retry.open(settings, files)
    run_again(retry, files)
    files.fail = lambda call, path, _count: end_at_once(call, path.name)
    with pytest.raises(Crash):
        retry.put_in_place()
    files.fail = None
    files.kill()
    again = Retry.open(settings, files)
    other = Lock(Disk(files), settings.input.with_name("lock"))
    for path in (settings.output, settings.rejected):
        with pytest.raises(JobLocked, match=AT_WORK):
            other.hold(path)
    other.close()
    again.close()


def end_at_once(call: str, name: str) -> None:
    if call == "rename" and name == ".out.trioline-new":
        raise Crash
