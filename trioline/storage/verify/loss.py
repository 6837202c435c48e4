"""What a job was, when a part of what describes it is lost: what can be proved even so."""

from __future__ import annotations

import contextlib
import os
from shlex import quote

from trioline.config import JobSettings
from trioline.errors import StorageError, UsageError
from trioline.storage.checkpoint import Checkpoint, CheckpointFile
from trioline.storage.checksums import CHECKSUMS_NAME, Table, agreeing_lines
from trioline.storage.damage import NewerFormat, damaged
from trioline.storage.files import Disk
from trioline.storage.opening import CHECKPOINT_NAME
from trioline.storage.retry_files import check_no_swap
from trioline.storage.run import RUN_NAME, Run, read_run
from trioline.storage.segment import is_segment


def find_run(disk: Disk, settings: JobSettings) -> tuple[Run | None, str | None]:
    """Read what the job is; or the sentence that says how that was lost.

    Raises:
        UsageError: There was no job.
    """
    path = settings.state / RUN_NAME
    try:
        run = read_run(disk, settings.state)
    except NewerFormat:
        raise
    except StorageError as error:
        return None, str(error)
    if run is not None:
        return run, None
    names = disk.names(settings.state) if disk.stat(settings.state) is not None else []
    if CHECKPOINT_NAME not in names and not any(is_segment(name) for name in names):
        raise UsageError(_no_job(disk, settings))
    return None, str(damaged(path, "is missing", settings.output, is_known=False))


def _no_job(disk: Disk, settings: JobSettings) -> str:
    output, state = settings.output, settings.state
    text = f"{output} is no job's output: {state / RUN_NAME} is not there. Check the path."
    if disk.stat(output) is None:
        return text
    command = f"trioline repair {quote(str(output))} --input {quote(str(settings.input))}"
    return (
        f"{text} If {state} was lost, make an empty folder of that name: then `{command}` says what"
        " it can keep of the lines."
    )


def read_last(disk: Disk, settings: JobSettings, run: Run | None) -> Checkpoint:
    """Read the newest checkpoint: of any run, where it is not known which.

    Raises:
        StorageError: There is none; the sentence says what the table proves without it.
    """
    check_no_swap(disk, settings)
    path = settings.state / CHECKPOINT_NAME
    try:
        if disk.stat(path) is None:
            raise damaged(path, "is missing", settings.output)
        with contextlib.closing(CheckpointFile(disk, path, os.O_RDONLY)) as file:
            slots = [slot for slot in file.slots() if slot is not None]
            run_id = run.id_bytes if run is not None else slots[0].run_id if slots else b""
            return file.read(run_id)
    except NewerFormat:
        raise
    except StorageError as error:
        raise StorageError(f"{error} {_proved_without(disk, settings)}", path) from error


def _proved_without(disk: Disk, settings: JobSettings) -> str:
    """Say what the table proves by itself."""
    count = 0
    with contextlib.ExitStack() as opened:
        table = Table.open(disk, settings.state / CHECKSUMS_NAME)
        if table is not None and all(disk.stat(p) for p in (settings.input, settings.output)):
            opened.callback(table.close)
            files = [disk.open(p, os.O_RDONLY) for p in (settings.input, settings.output)]
            for file in files:
                opened.callback(file.close)
            count = agreeing_lines(table, files[0].read, files[1].read)
    if not count:
        return "Until then nothing is proved."
    return (
        f"Until then only the first {count:,} lines of {settings.output} are proved to answer those"
        f" of {settings.input}, by the table of checksums."
    )
