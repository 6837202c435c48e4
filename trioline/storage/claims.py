"""Whose a file is: one job's, also while that job is stopped or over.

A job knows of a rejected file only how much of it is its own, and cuts off the rest when it starts;
so two jobs with one file would cut off each other's records. What belongs to ``FILE`` is beside it
as ``FILE.trioline``: of an output a folder, its job's state; of a rejected file that has not its
output's name a mark, which says whose it is. A mark is on the disk before ``run.json`` is, and goes
after it. Without ``run.json`` and without records it means nothing any more: what it spoke of was
never made, or was thrown away.
"""

from __future__ import annotations

import os
from pathlib import Path

import attrs
import msgspec

from trioline.config import REJECTED_SUFFIX, JobSettings
from trioline.errors import StorageError, UsageError
from trioline.storage.damage import STATE_SUFFIX
from trioline.storage.files import Disk
from trioline.storage.run import RUN_NAME, Run, read_run

_MAX_BYTES = 16_384


@attrs.frozen(kw_only=True)
class Mark:
    """Whose a rejected file is."""

    job: str
    """Its public id: who may read the mark's folder is not to know the run id."""
    output: str
    """The job's, relative to the mark's folder, so that all may be moved together."""


@attrs.frozen
class _Owner:
    what: str
    """What the file is to it, as the end of a sentence."""
    is_gone: bool = False


def claim_path(path: Path) -> Path:
    """Where it is said whose a file is: an output's state, or a rejected file's mark."""
    return path.with_name(path.name + STATE_SUFFIX)


def is_mark(disk: Disk, path: Path) -> bool:
    """Whether a file is a mark."""
    mark = _read(disk, path)
    return mark is not None and mark.job != ""


def are_same(disk: Disk, one: Path, other: Path) -> bool:
    """Whether two paths lead to one file, or would, were it there."""
    if os.path.realpath(one) == os.path.realpath(other):
        return True
    found, second = disk.stat(one), disk.stat(other)
    return found is not None and second is not None and found.is_same(second)


def marked_files(disk: Disk, output: Path, job: str | None) -> list[Path]:
    """The rejected files in an output's folder whose marks name it (and the job, if given)."""
    found = []
    for name in sorted(disk.names(output.parent)):
        path = output.with_name(name.removesuffix(STATE_SUFFIX) or name)
        if not name.endswith(STATE_SUFFIX) or path.name == name:
            continue
        mark = _read(disk, claim_path(path))
        if mark is None or not mark.job or job not in (None, mark.job):
            continue
        if are_same(disk, _named(path, mark), output):
            found.append(path)
    return found


def check_claims(disk: Disk, settings: JobSettings, run: Run | None) -> None:
    """Refuse files that are another job's. Nothing is touched.

    Args:
        run: The job, where it is made already.

    Raises:
        UsageError: Output or rejected file are another job's, or nobody can tell.
    """
    for path, option in ((settings.output, "OUTPUT"), (settings.rejected, "--rejected")):
        owner = _owner_by_name(disk, path, settings) or _owner_by_mark(disk, path, settings, run)
        if owner is None:
            continue
        way_out = f"name another file for {option}"
        if run is not None:
            way_out = "this job cannot go on. Begin it anew with another OUTPUT and --rejected"
        if owner.is_gone:
            way_out += f", or move {path} and {claim_path(path)} away"
        raise UsageError(f"{path} {owner.what}: {way_out}. Nothing was touched.")


def claim(disk: Disk, settings: JobSettings, run: Run) -> None:
    """Say whose the rejected file is; on the disk when its folder is synced.

    Raises:
        UsageError: As ``check_claims``.
    """
    check_claims(disk, settings, run)
    path = claim_path(settings.rejected)
    if run.rejected is None:
        disk.unlink(path)  # what is there means nothing: else it had been refused
        return
    mark = Mark(job=run.public_id, output=_relative(settings.output, path.parent))
    if _read(disk, path) != mark:
        new = path.with_name(path.name + ".new")
        disk.write_whole(new, msgspec.json.encode(mark) + b"\n")
        disk.rename(new, path)


def release(disk: Disk, settings: JobSettings, run: Run) -> None:
    """Remove the mark of a job that was thrown away, ``run.json`` included."""
    path = claim_path(run.rejected_path(settings.output))
    mark = _read(disk, path)
    if mark is not None and mark.job == run.public_id:
        disk.unlink(path)


def _owner_by_name(disk: Disk, path: Path, settings: JobSettings) -> _Owner | None:
    """Another job whose file it is by its name alone."""
    if path != settings.output and disk.stat(claim_path(path) / RUN_NAME) is not None:
        return _Owner("is the output of another job")
    name = path.name.removesuffix(REJECTED_SUFFIX)
    if name in (path.name, "", ".", ".."):
        return None
    output = path.with_name(name)
    if are_same(disk, output, settings.output) or not _has(disk, output, path):
        return None
    return _Owner(_belongs_to(output))


def _owner_by_mark(disk: Disk, path: Path, settings: JobSettings, run: Run | None) -> _Owner | None:
    """Another job that a file's mark names."""
    mark = _read(disk, claim_path(path))
    if mark is None:
        return None
    if not mark.job:
        what = f"may be another job's: {claim_path(path)}, which says whose it is, cannot be read"
        return _Owner(f"{what} (remove that if it is surely this one's)", is_gone=True)
    output = _named(path, mark)
    is_alive = _has(disk, output, path, mark.job)
    is_named = run is not None and run.public_id == mark.job
    if are_same(disk, output, settings.output):
        is_ours = is_named or not _is_made(disk, settings)
    else:
        is_ours = is_named and not is_alive  # it was renamed; not copied
    if is_ours or not (is_alive or disk.size(path)):
        return None
    gone = "" if is_alive else ", which is not there any more"
    return _Owner(_belongs_to(output) + gone, is_gone=not is_alive)


def _belongs_to(output: Path) -> str:
    return f"has the rejected lines of the job with the output {output}"


def _has(disk: Disk, output: Path, path: Path, job: str | None = None) -> bool:
    """Whether there is a job with this output (and public id), and ``path`` its rejected file."""
    try:
        run = read_run(disk, claim_path(output))
    except StorageError:
        return True  # there is one, and what it is nobody can tell
    if run is None or job not in (None, run.public_id):
        return False
    return are_same(disk, run.rejected_path(output), path)


def _is_made(disk: Disk, settings: JobSettings) -> bool:
    try:
        return read_run(disk, settings.state) is not None
    except StorageError:
        return False  # `trioline repair` is at it


def _relative(path: Path, folder: Path) -> str:
    """A path as seen from a folder, whatever links lead to either."""
    return os.path.relpath(os.path.realpath(path), os.path.realpath(folder))


def _named(path: Path, mark: Mark) -> Path:
    """The output that the mark of a rejected file names, whatever links lead to that file."""
    return Path(os.path.normpath(os.path.realpath(path.parent) + "/" + mark.output))


def _read(disk: Disk, path: Path) -> Mark | None:
    """Read a mark; None where there is none, and one without an id where it cannot be read."""
    found = disk.stat(path)
    if found is None or found.is_folder:
        return None
    try:
        return msgspec.json.decode(disk.read_whole(path, _MAX_BYTES), type=Mark)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return Mark(job="", output="")
