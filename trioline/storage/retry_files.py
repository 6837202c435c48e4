"""What a retry keeps in ``OUTPUT.trioline/retry/``, and how all of it goes.

``plan.json`` is there while rejected lines are run again. ``swap.json`` is there while their
results are put in their places: from then on there is only the way forward.
"""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TypeVar

import attrs
import msgspec

from trioline.config import JobSettings, behind_links
from trioline.errors import StorageError, UsageError
from trioline.storage.damage import RETRY_FOLDER, RETRY_RESULTS
from trioline.storage.files import Disk
from trioline.storage.run import RUN_NAME

_MAX_BYTES = 1024 * 1024
_Kind = TypeVar("_Kind")


@attrs.frozen
class RetryFiles:
    """Where everything is."""

    settings: JobSettings
    """Of the job whose rejected lines are run again."""

    @property
    def folder(self) -> Path:
        """All but the new files is in here."""
        return self.settings.state / RETRY_FOLDER

    @property
    def lines(self) -> Path:
        """The rejected lines of the input."""
        return self.folder / "lines"

    @property
    def numbers(self) -> Path:
        """Their numbers."""
        return self.folder / "numbers"

    @property
    def plan(self) -> Path:
        """Says that lines and numbers are whole."""
        return self.folder / "plan.json"

    @property
    def swap(self) -> Path:
        """Says that the new files are whole, and take the places of the old ones."""
        return self.folder / "swap.json"

    @property
    def results(self) -> Path:
        """The output of the job that runs them again."""
        return self.folder / RETRY_RESULTS

    @property
    def rejected(self) -> Path:
        """The records of those that failed again."""
        return self.folder / "results.rejected"

    @property
    def results_state(self) -> Path:
        """That job's state."""
        return self.folder / "results.trioline"

    def replacements(self) -> list[tuple[Path, Path]]:
        """The new files and whose places they take: output, rejected file, checksums."""
        state = self.settings.state
        places = [self.settings.output, self.settings.rejected, state / "checksums"]
        return [(beside(path), path) for path in map(behind_links, places)]


def beside(path: Path) -> Path:
    """Where a file is written that is to take the place of another one."""
    return path.with_name(f".{path.name}.trioline-new")


@attrs.frozen(kw_only=True)
class Plan:
    """Which lines of which job are run again; how they lie in its files does not matter."""

    run_id: str
    lines_crc: int
    numbers_crc: int
    """crc32 of what was prepared for it."""


@attrs.frozen(kw_only=True)
class Swap:
    """What is true when the new files are in their places."""

    checkpoint: bytes
    """A slot."""


def is_under_way(disk: Disk, files: RetryFiles) -> bool:
    """Whether lines are being run again; the plan comes before their job, and may be lost."""
    return any(disk.stat(path) is not None for path in (files.plan, files.results_state / RUN_NAME))


def read_plan(disk: Disk, files: RetryFiles) -> Plan | None:
    """Read the plan; None where there is none."""
    return _read(disk, files.plan, Plan)


def read_swap(disk: Disk, files: RetryFiles) -> Swap | None:
    """Read the swap; None where there is none."""
    return _read(disk, files.swap, Swap)


def write_record(disk: Disk, path: Path, record: Plan | Swap) -> None:
    """Write one of them whole or not at all, and return when it is on the disk."""
    new = path.with_name(path.name + ".new")
    disk.write_whole(new, msgspec.json.encode(record) + b"\n")
    disk.rename(new, path)
    disk.sync_folder(path.parent)


def damaged(files: RetryFiles, path: Path, what: str) -> StorageError:
    """The error for what only the retry needs: the way out is to do without."""
    return StorageError(
        f"{path} {what}. Nothing was touched. Put it back from a copy, or remove {files.folder}:"
        " then the same command runs all rejected lines anew.",
        path,
    )


def check_no_swap(disk: Disk, settings: JobSettings) -> None:
    """Refuse to look at a job whose files are just being replaced.

    Raises:
        UsageError: A retry was interrupted in its last step.
    """
    if disk.stat(RetryFiles(settings).swap) is not None:
        names = f"{shlex.quote(str(settings.input))} {shlex.quote(str(settings.output))}"
        raise UsageError(
            f"A retry was stopped while it put its results into {settings.output}: start `trioline"
            f" retry {names}` again, it ends that at once."
        )


def clear(disk: Disk, files: RetryFiles) -> None:
    """Remove all of it, first what says that there is something, last what says how to go on."""
    if disk.stat(files.folder) is None:
        return
    disk.unlink(files.plan)
    disk.sync_folder(files.folder)
    for new, _ in files.replacements():
        if disk.stat(new) is not None:
            disk.unlink(new)
            disk.sync_folder(new.parent)
    for folder in (files.results_state, files.folder):
        for name in disk.names(folder):
            found = disk.stat(folder / name)
            if found is not None and found.is_file and folder / name != files.swap:
                disk.unlink(folder / name)
        if disk.stat(folder) is not None:
            disk.sync_folder(folder)  # else what came back might pass for the next retry's
    disk.unlink(files.swap)
    disk.sync_folder(files.folder)
    for folder in (files.results_state, files.folder):
        disk.remove_folder(folder)
    disk.sync_folder(files.settings.state)


def _read(disk: Disk, path: Path, kind: type[_Kind]) -> _Kind | None:
    if disk.stat(path) is None:
        return None
    try:
        return msgspec.json.decode(disk.read_whole(path, _MAX_BYTES), type=kind)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise StorageError(
            f"{path} is damaged: {error}. It was left as it is. Put it back from a copy.", path
        ) from error
