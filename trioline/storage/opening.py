"""Before a job: are the named files what a job needs, and is there one already?

All that can be refused is refused before the first file is made or changed.
"""

from __future__ import annotations

import datetime
import os
import uuid
from pathlib import Path

import attrs

from trioline._version import __version__
from trioline.config import JobSettings
from trioline.errors import StorageError, UsageError
from trioline.storage.checkpoint import Checkpoint, CheckpointFile
from trioline.storage.checksums import CHECKSUMS_NAME
from trioline.storage.claims import are_same, check_claims, claim, is_mark, release
from trioline.storage.damage import damaged
from trioline.storage.files import Disk
from trioline.storage.journal import taken_over
from trioline.storage.lock import Lock
from trioline.storage.retry_files import RetryFiles, clear
from trioline.storage.run import RUN_NAME, Run, make_run, write_run
from trioline.storage.segment import is_segment, number_of
from trioline.storage.system import Stat

CHECKPOINT_NAME = "checkpoint"
LOCK_NAME = "lock"


def check_paths(disk: Disk, settings: JobSettings) -> int:
    """Hold the named files against what a job needs; nothing is made or changed.

    Returns:
        The input's size in bytes.

    Raises:
        UsageError: One of them cannot be used as it is.
    """
    for path in (settings.input, settings.output, settings.rejected):
        _check_name(path)
    given = _check_input(disk, settings.input)
    for path, option in ((settings.output, "the output"), (settings.rejected, "--rejected")):
        _check_target(disk, path, option, given, settings.input)
    if are_same(disk, settings.output, settings.rejected):
        raise UsageError(
            f"{settings.output} is named as the output and as --rejected: name two files."
        )
    state = disk.stat(settings.state)
    if state is not None and not state.is_folder:
        if is_mark(disk, settings.state):
            check_claims(disk, settings, None)
        raise UsageError(
            f"{settings.state} is no folder, but the job's state belongs there: move it away."
        )
    if state is not None and not disk.is_writable(settings.state):
        raise UsageError(f"{settings.state} is not writable: check its permissions.")
    return given.size


def _check_name(path: Path) -> None:
    try:
        str(path).encode()
    except UnicodeEncodeError as error:
        # It is kept as JSON, in run.json and in marks.
        problem = f"The path {str(path)!r} is not UTF-8: give the file a name that is."
        raise UsageError(problem) from error


def _check_input(disk: Disk, path: Path) -> Stat:
    given = disk.stat(path)
    if given is None:
        raise UsageError(f"The input {path} does not exist: check the path.")
    if given.is_folder:
        raise UsageError(f"The input {path} is a folder: name a file of lines.")
    if not given.is_file:
        raise UsageError(
            f"The input {path} is no regular file: a pipe cannot be read again after a crash. Write"
            " it to a file first."
        )
    try:
        disk.open(path, os.O_RDONLY).close()
    except StorageError as error:
        raise UsageError(f"The input {path} cannot be read: check its permissions.") from error
    return given


def _check_target(disk: Disk, path: Path, option: str, given: Stat, input_path: Path) -> None:
    folder = disk.stat(path.parent)
    if folder is None or not folder.is_folder:
        raise UsageError(f"There is no folder {path.parent} for {option} {path}: make it first.")
    if not disk.is_writable(path.parent):
        raise UsageError(f"The folder {path.parent} of {option} {path} is not writable.")
    found = disk.stat(path)
    if found is None:
        return
    if found.is_folder:
        raise UsageError(f"{path}, given for {option}, is a folder: name a file.")
    if not found.is_file:
        raise UsageError(f"{path}, given for {option}, is no regular file: name one.")
    if found.is_same(given):
        raise UsageError(f"{path}, given for {option}, is the input {input_path} itself.")
    if not disk.is_writable(path):
        raise UsageError(f"{path}, given for {option}, is not writable: check its permissions.")


def check_unclaimed(disk: Disk, settings: JobSettings) -> None:
    """Where no job is: refuse files that something else has put there.

    Raises:
        UsageError: Output or rejected file are another job's, or are not empty.
        StorageError: There was a job, but what describes it is gone.
    """
    # Sizes first: another server, just making its job, fills them only after run.json is there.
    filled = [path for path in (settings.output, settings.rejected) if disk.size(path)]
    if disk.stat(settings.state / RUN_NAME) is not None:
        return
    check_claims(disk, settings, None)
    names = disk.names(settings.state)
    if any(is_segment(name) for name in names) or (filled and CHECKPOINT_NAME in names):
        path = settings.state / RUN_NAME
        what = "is missing, but a job was here"
        raise damaged(path, what, settings.output, is_known=False)
    if filled:
        raise UsageError(
            f"{filled[0]} exists and is not this job's: move it away or choose another. Nothing was"
            " touched."
        )
    for path in (settings.output, settings.rejected):
        found = disk.stat(path)
        if found is not None and found.link_count > 1:
            raise UsageError(
                f"{path} has several names (hard links), and may be another job's by one of them:"
                " choose another file. Nothing was touched."
            )


def check_discard(disk: Disk, settings: JobSettings, run: Run) -> None:
    """Before a job is discarded for another one: hold what would go against what the other needs.

    Raises:
        UsageError: The input is a file of the old job, or the new rejected file is somebody else's.
            Nothing was touched.
    """
    old, new = run.rejected_path(settings.output), settings.rejected
    for path in (old, new):
        check_claims(disk, attrs.evolve(settings, rejected=path), run)
    given, claimed, wanted = disk.stat(settings.input), disk.stat(old), disk.stat(new)
    if claimed is not None and given is not None and claimed.is_same(given):
        raise UsageError(
            f"The input {settings.input} holds the rejected lines of the job that --fresh would"
            " throw away: copy it, or choose another output. Nothing was touched."
        )
    is_ours = wanted is None or (claimed is not None and wanted.is_same(claimed))
    if wanted is not None and wanted.size and not is_ours:
        raise UsageError(
            f"{new} exists and is not this job's: move it away or choose another. Nothing was"
            " touched."
        )


def create(disk: Disk, settings: JobSettings, input_bytes: int, lock: Lock) -> Run:
    """Make a job: everything is on the disk before ``run.json`` says that there is one.

    A crash before that leaves empty files, which the next start takes over.

    Raises:
        JobLocked: Another server, perhaps of another job, has one of the files.
        StorageError: The lock is lost, so that another server may be making the job.
        UsageError: One of them is not empty any more.
    """
    given = disk.stat(settings.input)  # before it is read: what is written to it later shows
    run = make_run(
        disk,
        settings,
        input_bytes,
        run_id=uuid.uuid4().hex,
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        version=__version__,
        given=given,
    )
    files = settings.output, settings.rejected
    for path in files:
        lock.check()
        _make(disk, path)
    lock.hold(*files)
    check_unclaimed(disk, settings)  # what was filled before it was held is another job's
    lock.check()
    disk.write_whole(settings.state / CHECKSUMS_NAME, b"")
    first = Checkpoint(
        run_id=run.id_bytes,
        epoch=0,
        sequence=0,
        line_count=0,
        output_bytes=0,
        rejected_bytes=0,
        rejected_count=0,
        input_offset=0,
        input_mtime_ns=run.input_mtime_ns,
        input_ctime_ns=run.input_ctime_ns,
    )
    _write_first(disk, settings, first, lock)
    lock.check()
    claim(disk, settings, run)
    sync_folders(disk, settings)
    write_run(disk, settings.state, run, lock.check)
    return run


def _write_first(disk: Disk, settings: JobSettings, first: Checkpoint, lock: Lock) -> None:
    path = settings.state / CHECKPOINT_NAME
    lock.check()
    disk.unlink(path)  # of a start that was cut off
    lock.check()
    try:
        CheckpointFile.create(disk, path, first, flags=os.O_EXCL).close()
    except StorageError as error:
        if isinstance(error.__cause__, FileExistsError):
            raise taken_over(settings.state) from error
        raise


def _make(disk: Disk, path: Path) -> None:
    """Make an empty file, unless it is there: what is in it may be another job's."""
    with disk.open(path, os.O_RDWR | os.O_CREAT) as file:
        file.sync()


def discard(disk: Disk, settings: JobSettings, run: Run) -> None:
    """Delete what ``run`` claims, itself last: a crash in between leaves a job to discard again."""
    old = attrs.evolve(settings, rejected=run.rejected_path(settings.output))
    clear(disk, RetryFiles(old))
    disk.unlink(old.output)
    disk.unlink(old.rejected)
    for draft, _ in RetryFiles(old).replacements():
        disk.unlink(draft)
    for name in disk.names(settings.state):
        if _is_claimed(name):
            disk.unlink(settings.state / name)
    sync_folders(disk, settings)
    disk.sync_folder(run.rejected_path(settings.output).parent)
    disk.unlink(settings.state / RUN_NAME)
    disk.sync_folder(settings.state)
    release(disk, settings, run)


def _is_claimed(name: str) -> bool:
    """Whether a file of the state goes with its job; what was killed left parts of some."""
    name = name.removesuffix(".new")
    is_owner = name.startswith("owner.")  # put aside, and so nobody's any more
    return is_segment(name) or is_owner or name in (CHECKPOINT_NAME, CHECKSUMS_NAME)


def fence_journal(disk: Disk, state: Path) -> None:
    """Put a copy in the place of the newest segment.

    Where there are no locks, a server that lost its own may be in the midst of a commit. What it
    still appends is nowhere then, and not before the results of those who come after it.
    """
    newest = max(filter(is_segment, disk.names(state)), key=number_of, default=None)
    if newest is not None:
        new = state / (newest + ".new")
        disk.write_whole(new, disk.read_whole(state / newest, disk.size(state / newest)))
        disk.rename(new, state / newest)
        disk.sync_folder(state)


def sync_folders(disk: Disk, settings: JobSettings) -> None:
    """Return when the names of all the job's files are on the disk."""
    for folder in {settings.output.parent, settings.rejected.parent, settings.state}:
        disk.sync_folder(folder)
