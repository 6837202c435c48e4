"""``run.json``: what the job is.

It comes last when a job is made and goes last when it is discarded: whatever lies around without it
was never a job, and is never deleted.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import zlib
from collections.abc import Callable
from pathlib import Path

import attrs
import msgspec

from trioline.config import JobSettings, default_rejected
from trioline.errors import JobMismatch
from trioline.storage.checkpoint import FORMAT
from trioline.storage.damage import damaged, newer, output_of
from trioline.storage.files import Disk
from trioline.storage.system import Stat

RUN_NAME = "run.json"
_MAX_BYTES = 1024 * 1024
_HASHED_BYTES = 1024 * 1024
"""At either end of the input: constant time, whatever its size."""


def public_id_of(run_id: bytes) -> str:
    """What tells a run from others to anybody, and nothing of the run id."""
    return hashlib.blake2b(run_id, digest_size=16).hexdigest()


@attrs.frozen(kw_only=True)
class Run:
    """Who this job is, and what must not change while it goes on."""

    format: int
    run_id: str
    """32 hex digits; told to nobody: who knows it can forge the journal's frames."""
    created: str
    """ISO time, UTC; for people."""
    version: str
    """Of trioline, when the job was made; for people."""
    input: str
    """Where the input was; it may be moved."""
    input_bytes: int
    input_hash: str
    """blake2b of the input's first and last MiB."""
    input_mtime_ns: int
    """When it was written to, as it was when the job was made; 0: not known."""
    input_ctime_ns: int
    """When anything about it changed; 0: not known."""
    text: bool
    placeholder: str
    rejected: str | None
    """Relative to the output's folder, so that all may be moved together; None: by the output's
    name, so that all may be renamed together."""
    crc: int = 0
    """crc32 of this, encoded without it: a flipped bit in a name is damage, not another job."""

    @property
    def id_bytes(self) -> bytes:
        """The run id as 16 bytes."""
        return bytes.fromhex(self.run_id)

    @property
    def public_id(self) -> str:
        """What tells this run from others to anybody, and nothing of the run id."""
        return public_id_of(self.id_bytes)

    def rejected_path(self, output: Path) -> Path:
        """Where this job's rejected lines are."""
        if self.rejected is None:
            return default_rejected(output)
        return output.parent / self.rejected


def relative_rejected(settings: JobSettings) -> str | None:
    """The rejected file as ``Run`` names it."""
    name = os.path.relpath(settings.rejected, settings.output.parent)
    return None if name == default_rejected(settings.output).name else name


def hash_input(disk: Disk, path: Path, size: int) -> str:
    """Hash the first and last MiB of a file."""
    digest = hashlib.blake2b(digest_size=16)
    with disk.open(path, os.O_RDONLY) as file:
        digest.update(file.read(min(size, _HASHED_BYTES), 0))
        rest = min(max(size - _HASHED_BYTES, 0), _HASHED_BYTES)
        digest.update(file.read(rest, size - rest))
    return digest.hexdigest()


def read_run(disk: Disk, folder: Path) -> Run | None:
    """Read ``run.json``; None when there is none.

    Raises:
        StorageError: It does not parse, or is of a newer format. Nothing was touched.
    """
    path = folder / RUN_NAME
    if disk.stat(path) is None:
        return None
    data = disk.read_whole(path, _MAX_BYTES)
    try:
        version = msgspec.json.decode(data, type=_Format).format
        if version != FORMAT:
            raise newer(path, f"has format {version}, and this version of trioline knows {FORMAT}")
        run = msgspec.json.decode(data, type=Run)
        if len(run.id_bytes) != 16:
            raise ValueError(f"run_id {run.run_id!r} has not 32 hex digits")
        if run.crc != _crc(run):
            raise ValueError(f"it has not the crc32 {run.crc} that it names")
    except (msgspec.MsgspecError, ValueError) as error:
        what = f"is damaged: {error}"
        raise damaged(path, what, output_of(folder), is_known=False) from error
    return run


def write_run(disk: Disk, folder: Path, run: Run, check: Callable[[], None] = lambda: None) -> None:
    """Write ``run.json`` whole or not at all, and return when it is on the disk.

    Args:
        check: Called before each step that changes something.
    """
    run = attrs.evolve(run, crc=_crc(run))
    new = folder / (RUN_NAME + ".new")
    check()
    disk.write_whole(new, msgspec.json.format(msgspec.json.encode(run)) + b"\n")
    check()
    disk.rename(new, folder / RUN_NAME)
    disk.sync_folder(folder)


def _crc(run: Run) -> int:
    return zlib.crc32(msgspec.json.encode(attrs.evolve(run, crc=0)))


def check_match(
    disk: Disk,
    run: Run,
    settings: JobSettings,
    input_bytes: int,
    *,
    may_begin_anew: bool = False,
) -> None:
    """Hold the command against the job on the disk.

    Args:
        may_begin_anew: The command may take another output, or --fresh.

    Raises:
        JobMismatch: The input is another one, or an option that must not change is.
    """
    option = _option_difference(run, settings)
    difference = option or _input_difference(disk, run, settings, input_bytes)
    if difference is None:
        return
    if may_begin_anew:
        way = (
            "Start it as it was, choose another output, or begin anew with --fresh, which throws"
            " the old answers away."
        )
    elif option:
        way = "Start the same command again with that option as the job has it."
    else:
        way = (
            "Put the input back as it was, or name the file that has it; then start the same"
            " command again."
        )
    raise JobMismatch(f"{settings.output} belongs to a job {difference}. {way}")


def _option_difference(run: Run, settings: JobSettings) -> str | None:
    """What the job has otherwise than the command, as the end of a sentence."""
    placeholder = settings.placeholder.decode()
    if run.text != settings.text:
        return "with --text; this command has none" if run.text else "without --text; this has it"
    if run.placeholder != placeholder:
        then, now = shlex.quote(run.placeholder), shlex.quote(placeholder)
        return f"with --placeholder {then}; this command has {now}"
    if run.rejected != relative_rejected(settings):
        then_path = run.rejected_path(settings.output)
        return f"with --rejected {then_path}; this command has {settings.rejected}"
    return None


def _input_difference(disk: Disk, run: Run, settings: JobSettings, input_bytes: int) -> str | None:
    if run.input_bytes != input_bytes:
        return (
            f"whose input had {run.input_bytes:,} bytes ({run.input}); the input named now has"
            f" {input_bytes:,} ({settings.input})"
        )
    if run.input_hash != hash_input(disk, settings.input, input_bytes):
        return (
            f"with another input of the same length ({run.input}): its first or last MiB are not"
            f" those of {settings.input}"
        )
    return None


def make_run(
    disk: Disk,
    settings: JobSettings,
    input_bytes: int,
    *,
    run_id: str,
    created: str,
    version: str,
    given: Stat | None = None,
) -> Run:
    """Describe a new job.

    Args:
        given: The input, before anything of it was answered.
    """
    return Run(
        format=FORMAT,
        run_id=run_id,
        created=created,
        version=version,
        input=str(settings.input),
        input_bytes=input_bytes,
        input_hash=hash_input(disk, settings.input, input_bytes),
        input_mtime_ns=0 if given is None else given.mtime_ns,
        input_ctime_ns=0 if given is None else given.ctime_ns,
        text=settings.text,
        placeholder=settings.placeholder.decode(),
        rejected=relative_rejected(settings),
    )


@attrs.frozen
class _Format:
    format: int
