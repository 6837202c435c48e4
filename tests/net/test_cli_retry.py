"""``trioline verify`` and ``trioline retry`` as people run them: real processes, real kills."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from processes import Plain, Serve, contents, numbers, serving, started, trioline, wait_until

COUNT = 300
BAD = range(3, COUNT, 50)
"""Lines that fail the first time; the last one of them also later."""
LARGE = 20_000
"""Bytes of a result, more than any file has that serving its job still writes at the end."""
QUICK = ("--linger", "0.1")
PICKY = """
import os
def answer(item):
    if item.data % 50 == 3 and (item.data > 200 or not os.path.exists("fixed")):
        raise ValueError("bad")
    return item.data ** 2
"""


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished job with some rejected lines, to be copied."""
    folder = tmp_path_factory.mktemp("finished")
    (folder / "in").write_bytes(numbers(COUNT))
    (folder / "picky.py").write_text(PICKY, encoding="utf-8")
    ended = trioline("run", "in", "out", "picky:answer", "-j", "2", *QUICK, cwd=folder)
    assert ended.code == 3, ended.stderr
    return folder


@pytest.fixture
def folder(finished: Path, tmp_path: Path) -> Path:
    """A copy of it for each test."""
    return shutil.copytree(finished, tmp_path, dirs_exist_ok=True)


@contextmanager
def retrying(folder: Path, *arguments: str) -> Iterator[Serve]:
    """A ``trioline retry`` that listens."""
    serve = Serve(["in", "out", "--port", "0", *QUICK, *arguments], folder, command="retry")
    try:
        serve.wait_listening()
        yield serve
    finally:
        serve.kill()


def results(folder: Path) -> list[object]:
    return [json.loads(line) for line in (folder / "out").read_bytes().splitlines()]


def rejected_ids(folder: Path) -> list[int]:
    return [json.loads(line)["id"] for line in (folder / "out.rejected").read_bytes().splitlines()]


def test_a_jobs_alignment_is_proved_and_what_breaks_it_named(folder: Path) -> None:
    ended = trioline("verify", "in", "out", cwd=folder)
    assert ended.code == 0, ended.stdout
    assert f"All {COUNT} lines of out answer those of in, {len(BAD)} of them" in ended.stdout
    lines = (folder / "out").read_bytes().splitlines(keepends=True)
    lines[100], lines[101] = lines[101], lines[100]
    (folder / "out").write_bytes(b"".join(lines))
    ended = trioline("verify", "in", "out", cwd=folder)
    assert ended.code == 1
    assert ended.stdout.startswith("out: lines 64 to 127 (from byte ")
    assert ended.stdout.count("\n") == 2
    assert "see what `trioline repair out` can save" in ended.stdout
    ended = trioline("verify", "in", "out", "--json", cwd=folder)
    assert ended.code == 1
    report = json.loads(ended.stdout)
    assert (report["ok"], report["finding_count"], report["rejected_count"]) == (False, 1, len(BAD))
    assert (report["findings"][0]["line"], report["findings"][0]["last_line"]) == (64, 127)


def test_a_lost_table_is_named_and_the_files_are_proved_even_so(folder: Path) -> None:
    (folder / "out.trioline" / "checksums").unlink()
    ended = trioline("verify", "in", "out", cwd=folder)
    assert ended.code == 1
    table, even_so = ended.stdout.splitlines()
    assert table.startswith("out.trioline/checksums is missing. `trioline repair out` makes it")
    assert even_so.startswith(f"The {COUNT} lines that the job has written to out answer those of")
    assert trioline("serve", "in", "out", cwd=folder).code == 74
    assert trioline("repair", "out", "--yes", cwd=folder).code == 0
    ended = trioline("verify", "in", "out", cwd=folder)
    assert ended.code == 0, ended.stdout


def test_lines_that_a_repair_took_by_their_form_are_not_proved(folder: Path) -> None:
    for name in ("checkpoint", "checksums"):
        (folder / "out.trioline" / name).unlink()
    told = trioline("repair", "out", "--yes", cwd=folder)
    assert told.code == 0
    assert f"nothing is left to prove some of the lines 0 to {COUNT - 1}: they" in told.stdout
    ended = trioline("verify", "in", "out", cwd=folder)
    assert ended.code == 1
    assert f"lines 0 to {COUNT - 1} are not proved" in ended.stdout
    assert "answer those" not in ended.stdout


def test_a_running_job_is_looked_at_without_being_disturbed(tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(numbers(COUNT))
    with serving("in", "out", cwd=tmp_path) as serve, Plain(serve.port) as worker:
        work = worker.get_lines(200)
        assert work is not None
        worker.done_lines(work[0], work[1][:150])
        wait_until(
            lambda: "The 150 lines" in trioline("verify", "in", "out", cwd=tmp_path).stdout,
            "the durable point",
        )
        ended = trioline("verify", "in", "out", cwd=tmp_path)
        assert ended.code == 0
        assert "The job is not over." in ended.stdout
        assert worker.done_lines(150, work[1][150:])["accepted"] == 50


def test_verify_says_what_it_needs(tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(b"1\n")
    ended = trioline("verify", "in", "out", cwd=tmp_path)
    assert ended.code == 2
    assert "out is no job's output" in ended.stderr


def test_a_retry_with_workers_of_its_own(folder: Path) -> None:
    (folder / "fixed").touch()
    command = ("retry", "in", "out", "picky:answer", "-j", "1", *QUICK)
    ended = trioline(*command, cwd=folder)
    assert ended.code == 3, ended.stderr
    assert "2 lines failed again: see out.rejected." in ended.stderr
    assert rejected_ids(folder) == [203, 253]
    expected = [None if line in (203, 253) else line**2 for line in range(COUNT)]
    assert results(folder) == expected
    assert trioline("verify", "in", "out", cwd=folder).code == 0
    ended = trioline("retry", "in", "out", "--each", "echo 7", "-j", "1", *QUICK, cwd=folder)
    assert ended.code == 0, ended.stderr
    assert "No line of out is rejected any more." in ended.stderr
    expected[203] = expected[253] = 7
    assert results(folder) == expected
    assert rejected_ids(folder) == []
    assert trioline("verify", "in", "out", cwd=folder).code == 0
    ended = trioline("retry", "in", "out", cwd=folder)
    assert ended.code == 0
    assert "there is nothing to retry" in ended.stderr


def test_a_retry_leaves_the_files_as_they_were_but_for_their_content(folder: Path) -> None:
    """Their modes and owners, links to them, and nothing beside them."""
    (folder / "elsewhere").mkdir()
    link = folder / "elsewhere" / "answers"
    link.symlink_to("../out")
    is_root = os.geteuid() == 0
    paths = [folder / name for name in ("out", "out.rejected", "out.trioline/checksums")]
    for path, mode in zip(paths, (0o600, 0o660, 0o646), strict=True):
        path.chmod(mode)
        if is_root:
            os.chown(path, 12_345, 23_456)
    before = {path: path.stat() for path in paths}
    names = sorted(path.relative_to(folder) for path in folder.rglob("[a-z]*"))
    ended = trioline("retry", "in", link, "--exec", "cat", "-j", "1", *QUICK, cwd=folder)
    assert ended.code == 0, ended.stderr
    for path in paths:
        now, then = path.stat(), before[path]
        assert now.st_ino != then.st_ino
        assert (now.st_mode, now.st_uid, now.st_gid) == (then.st_mode, then.st_uid, then.st_gid)
    assert sorted(path.relative_to(folder) for path in folder.rglob("[a-z]*")) == names
    assert link.is_symlink()
    assert [results(folder)[line] for line in BAD] == list(BAD)


def test_what_was_changed_is_named_before_anybody_works(folder: Path) -> None:
    lines = (folder / "out").read_bytes().splitlines(keepends=True)
    lines[100], lines[101] = lines[101], lines[100]
    (folder / "out").write_bytes(b"".join(lines))
    before = contents(folder)
    ended = trioline("retry", "in", "out", "--each", "touch worked", "-j", "1", cwd=folder)
    assert ended.code == 74
    assert "out: lines 64 to 127 (from byte " in ended.stderr
    assert "`trioline repair out`" in ended.stderr
    assert contents(folder) == before
    assert trioline("repair", "out", "--yes", cwd=folder).code == 0
    for command in ("run", "retry"):
        trioline(command, "in", "out", "--exec", "cat", "-j", "1", *QUICK, cwd=folder)
    assert trioline("verify", "in", "out", cwd=folder).code == 0
    assert rejected_ids(folder) == []


def test_workers_see_the_inputs_line_numbers(folder: Path) -> None:
    with retrying(folder) as retry, Plain(retry.port) as worker:
        items = worker.get_items(2)
        assert items is not None
        assert [(item["id"], item["data"]) for item in items] == [(3, 3), (53, 53)]
        refused = worker.ask(op="done", results=[{"id": 4, "result": 1}])
        assert refused["error"] == "unknown-id"
        refused = worker.ask(op="done", results=[{"id": 53, "line": "{"}])
        assert (refused["error"], "line 53" in refused["message"]) == ("bad-result", True)
        failed = worker.ask(op="fail", id=3, error="never", retry=False)
        assert failed["state"] == "rejected"
        assert worker.ask(op="done", results=[{"id": 53, "result": 1}])["accepted"] == 1
        assert worker.get_lines(10) == (103, [b"103"])
        assert worker.ask(op="release", ids=[103])["released"] == 1
        assert retry.status()["head"]["id"] == 103
        for line in BAD[2:]:
            assert worker.get_lines(10) == (line, [b"%d" % line])
            assert worker.done_lines(line, [b"%d" % line])["accepted"] == 1
        assert retry.wait().code == 3
    assert rejected_ids(folder) == [3]
    record = json.loads((folder / "out.rejected").read_bytes())
    assert (record["line"], record["errors"]) == ("3", ["never"])
    assert trioline("verify", "in", "out", cwd=folder).code == 0


def test_a_killed_retry_goes_on_and_the_job_is_whole_meanwhile(folder: Path) -> None:
    before = (folder / "out").read_bytes()
    with retrying(folder) as retry, Plain(retry.port) as worker:
        work = worker.get_items(3)
        assert work is not None
        rows = [{"id": item["id"], "result": "first"} for item in work]
        assert worker.ask(op="done", results=rows)["accepted"] == 3
        locked = trioline("serve", "in", "out", "--port", "0", cwd=folder)
        assert locked.code == 1
        retry.send(signal.SIGKILL)
        retry.wait()
    assert (folder / "out").read_bytes() == before
    assert trioline("verify", "in", "out", cwd=folder).code == 0
    assert trioline("serve", "in", "out", "--port", "0", cwd=folder).code == 3
    with retrying(folder) as retry, Plain(retry.port) as worker:
        assert retry.status()["written"] == 3
        while (work := worker.get_items(10)) is not None:
            rows = [{"id": item["id"], "result": "second"} for item in work]
            worker.ask(op="done", results=rows)
        assert retry.wait().code == 0
    found = results(folder)
    assert [found[line] for line in BAD] == ["first"] * 3 + ["second"] * 3
    assert trioline("verify", "in", "out", cwd=folder).code == 0


def test_a_retry_goes_on_after_a_repair_of_its_job(folder: Path) -> None:
    with retrying(folder) as retry, Plain(retry.port) as worker:
        work = worker.get_items(3)
        assert work is not None
        worker.ask(op="done", results=[{"id": item["id"], "result": "kept"} for item in work])
        retry.send(signal.SIGKILL)
        retry.wait()
    output = (folder / "out").read_bytes()
    (folder / "out").write_bytes(output.replace(b"\n10000\n", b"\n10001\n"))
    refused = trioline("retry", "in", "out", "--port", "0", cwd=folder)
    assert (refused.code, "trioline repair out" in refused.stderr) == (74, True)
    mended = trioline("repair", "out", "--yes", cwd=folder)
    assert "the same `trioline retry` goes on with its results" in mended.stdout, mended
    ended = trioline("run", "in", "out", "picky:answer", "-j", "1", *QUICK, cwd=folder)
    assert (ended.code, (folder / "out").read_bytes()) == (3, output)
    with retrying(folder) as retry, Plain(retry.port) as worker:
        while (work := worker.get_items(10)) is not None:
            worker.ask(op="done", results=[{"id": item["id"], "result": "new"} for item in work])
        assert retry.wait().code == 0
    found = results(folder)
    assert [found[line] for line in BAD] == ["kept"] * 3 + ["new"] * 3
    assert trioline("verify", "in", "out", cwd=folder).code == 0


def test_what_cannot_be_retried_is_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "in2").write_bytes(numbers(5))
    with serving("in2", "out2", cwd=tmp_path) as serve:
        serve.stop()
    ended = trioline("retry", "in2", "out2", cwd=tmp_path)
    assert ended.code == 2
    assert "is not over" in ended.stderr
    ended = trioline("retry", "in2", "out", cwd=folder)
    assert ended.code == 2
    ended = trioline("retry", "in", "none", cwd=folder)
    assert (ended.code, "There is no job" in ended.stderr) == (2, True)


def test_a_stop_signal_ends_a_retry_and_its_command_goes_on(folder: Path) -> None:
    with started("retry", "in", "out", "--port", "0", cwd=folder) as process:
        wait_until(lambda: process.stdout, "the listening line")
        assert process.stop().code == 4
    ended = trioline("retry", "in", "out", "--exec", "cat", "-j", "1", *QUICK, cwd=folder)
    assert ended.code == 0, ended.stderr
    assert [results(folder)[line] for line in BAD] == list(BAD)


@pytest.mark.slow
@pytest.mark.parametrize("is_stopped", [False, True])
def test_the_last_step_waits_for_room_as_all_others(folder: Path, *, is_stopped: bool) -> None:
    """A signal ends the wait, and the same command goes on with that step."""
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with retrying(folder, "--linger", "1") as retry:
        with Plain(retry.port) as worker:
            items = worker.get_items(len(BAD))
            assert items is not None
            rows = [{"id": item["id"], "result": "x" * LARGE} for item in items]
            assert worker.ask(op="done", results=rows)["accepted"] == len(BAD)
        resource.prlimit(retry.pid, resource.RLIMIT_FSIZE, (LARGE, hard))
        retry.wait_said(".out.trioline-new cannot be written")
        if is_stopped:
            assert retry.stop().code == 4
            assert "Stopped before the end: the same command goes on.\n" in retry.stderr
            assert "\n\n" not in retry.stderr
        else:
            resource.prlimit(retry.pid, resource.RLIMIT_FSIZE, (hard, hard))
            assert retry.wait().code == 0
            assert "There is room again" in retry.stderr
    if is_stopped:
        assert trioline("retry", "in", "out", "--exec", "cat", "-j", "1", cwd=folder).code == 0
    assert len(results(folder)) == COUNT
    assert rejected_ids(folder) == []
    assert trioline("verify", "in", "out", cwd=folder).code == 0
