"""Somebody else's hand in the files of a running job: found at the next durable point.

Alignment is the promise: whatever is done to the output, the server must not go on as if nothing
were, and must leave the file as it found it.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from processes import Plain, numbers, serving
from storage_helpers import settings_for

from trioline.config import Fsync, JobSettings
from trioline.errors import StorageError
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


@pytest.mark.parametrize("name", ["out.trioline", "out.trioline/checkpoint"])
def test_a_moved_state_is_found_at_the_next_durable_point(tmp_path: Path, name: str) -> None:
    job, settings = opened(tmp_path, Fsync.ALWAYS)
    (tmp_path / name).rename(tmp_path / "elsewhere")
    with pytest.raises(StorageError, match="moved or removed while the job ran") as caught:
        job.sync(job.source.offset_of(DURABLE + 1))
    assert caught.value.path == str(settings.state)
    job.close()


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
