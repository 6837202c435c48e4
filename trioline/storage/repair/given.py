"""What a damaged job is: said by its files where they can be read, else by the user."""

from __future__ import annotations

import datetime
import uuid
from pathlib import Path
from shlex import quote

import attrs

from trioline._version import __version__
from trioline.config import JobSettings, default_rejected
from trioline.errors import StorageError, UsageError
from trioline.storage.checkpoint import SLOT_SPACING_BYTES, Checkpoint, CheckpointFile
from trioline.storage.claims import are_same, check_claims, claim_path, marked_files
from trioline.storage.damage import STATE_SUFFIX, NewerFormat
from trioline.storage.files import Disk
from trioline.storage.opening import CHECKPOINT_NAME, check_paths
from trioline.storage.repair.options import Options, find_options
from trioline.storage.run import RUN_NAME, Run, check_match, make_run, public_id_of, read_run


@attrs.frozen(kw_only=True)
class Given:
    """What the user says of the job; None: it stands in ``run.json``."""

    output: Path
    input: Path | None = None
    text: bool | None = None
    placeholder: bytes | None = None
    rejected: Path | None = None
    recomputes_unproved: bool = False
    """Whether lines that nothing proves are to be computed again."""

    @property
    def state(self) -> Path:
        """The job's folder."""
        return self.output.with_name(self.output.name + STATE_SUFFIX)


@attrs.define
class Notes:
    """What is written down for the user on the way."""

    found: list[str] = attrs.Factory(list)
    steps: list[str] = attrs.Factory(list)


@attrs.frozen(kw_only=True)
class Identity:
    """Which job it is, and how far it was."""

    settings: JobSettings
    run: Run
    last: Checkpoint | None
    """The newest valid slot."""
    is_run_lost: bool
    is_placeholder_known: bool = True
    """Whether anything but the user says what it was, where lines may have been rejected."""


def find_rejected(disk: Disk, given: Given) -> Path:
    """Where the rejected lines of a job are that may be damaged.

    Raises:
        UsageError, StorageError: As ``identify``.
    """
    run = _read_run(disk, given, Notes())
    if run is not None:
        return run.rejected_path(given.output)
    return _rejected_anew(disk, given, _read_slots(disk, given.state / CHECKPOINT_NAME, None))


def identify(disk: Disk, given: Given, notes: Notes) -> Identity:
    """Find out what the job is.

    Raises:
        UsageError: The input is not there, is another one, or must be named; or a file is another
            job's.
        StorageError: A later version of trioline wrote it.
    """
    run = _read_run(disk, given, notes)
    last = _read_slots(disk, given.state / CHECKPOINT_NAME, run, notes)
    if run is not None:
        settings = _settings(disk, given, run)
        return Identity(settings=settings, run=run, last=last, is_run_lost=False)
    settings, options = _settings_anew(disk, given, last)
    run = _new_run(disk, settings, last)
    rejected = "" if run.rejected is None else f" --rejected {quote(str(settings.rejected))}"
    notes.steps.append(
        f"write {given.state / RUN_NAME} anew, for {settings.input} with {options}{rejected}"
    )
    return Identity(
        settings=settings,
        run=run,
        last=last,
        is_run_lost=True,
        is_placeholder_known=options.is_placeholder_known,
    )


def _read_run(disk: Disk, given: Given, notes: Notes) -> Run | None:
    path = given.state / RUN_NAME
    try:
        run = read_run(disk, given.state)
    except NewerFormat:
        raise
    except StorageError:
        run = None
        notes.found.append(f"{path} is damaged")
    else:
        if run is None:
            notes.found.append(f"{path} is missing")
    if run is None and given.input is None:
        raise UsageError(
            f"{notes.found[-1]}: name the input with --input INPUT, so that it can be made anew;"
            " and the file of --rejected, where the job had that option."
        )
    return run


def _read_slots(
    disk: Disk, path: Path, run: Run | None, notes: Notes | None = None
) -> Checkpoint | None:
    notes = notes or Notes()
    if disk.stat(path) is None:
        notes.found.append(f"{path} is missing")
        return None
    file = CheckpointFile(disk, path)
    try:
        slots = [slot for slot in file.slots() if slot is not None]
    finally:
        file.close()
    if run is not None:
        foreign = len(slots)
        slots = [slot for slot in slots if slot.run_id == run.id_bytes]
        if foreign and not slots:
            notes.found.append(f"{path} belongs to another job")
            return None
    if not slots:
        notes.found.append(
            f"{path} is damaged: neither of its two slots (at bytes 0 and {SLOT_SPACING_BYTES}) is"
            " valid"
        )
        return None
    return max(slots, key=lambda slot: slot.sequence)


def _settings(disk: Disk, given: Given, run: Run) -> JobSettings:
    _check_given(given, run)
    path = given.input or Path(run.input)
    if disk.stat(path) is None:
        raise UsageError(f"The input {path} is not there: say where it is with --input.")
    settings = JobSettings(
        input=path,
        output=given.output,
        text=run.text,
        placeholder=run.placeholder.encode(),
        rejected=run.rejected_path(given.output),
        max_line_bytes=1 << 30,
    )
    check_match(disk, run, settings, check_paths(disk, settings))
    check_claims(disk, settings, run)
    return settings


def _check_given(given: Given, run: Run) -> None:
    """Refuse what ``run.json`` has otherwise."""
    path = given.state / RUN_NAME
    for option, value, was in (
        ("--text", given.text, run.text),
        ("--placeholder", given.placeholder, run.placeholder.encode()),
    ):
        if value is not None and value != was:
            raise UsageError(
                f"{option} is not what {path} has, which is whole: leave that option out."
            )


def _settings_anew(
    disk: Disk, given: Given, last: Checkpoint | None
) -> tuple[JobSettings, Options]:
    settings = JobSettings(
        input=given.input or Path(),
        output=given.output,
        rejected=_rejected_anew(disk, given, last),
        max_line_bytes=1 << 30,
    )
    check_paths(disk, settings)
    check_claims(disk, settings, None)
    options = find_options(
        disk,
        settings,
        last,
        text=given.text,
        placeholder=given.placeholder,
        is_rejected_given=given.rejected is not None,
    )
    return attrs.evolve(settings, text=options.text, placeholder=options.placeholder), options


def _rejected_anew(disk: Disk, given: Given, last: Checkpoint | None) -> Path:
    """Where a job's rejected lines are: a mark knows it better than who asks."""
    marked = marked_files(disk, given.output, None if last is None else public_id_of(last.run_id))
    path = given.rejected
    if not marked:
        return path or default_rejected(given.output)
    if path is None and len(marked) == 1:
        return marked[0]
    if path is None:
        names = " and ".join(str(one) for one in marked)
        raise UsageError(
            f"{names} are marked as this job's rejected file: say with --rejected which one it is."
        )
    if not any(are_same(disk, path, one) for one in marked):
        raise UsageError(
            f"{path}, given for --rejected, is not this job's: {claim_path(marked[0])} says that"
            f" {marked[0]} is. Leave the option out, or say --rejected {quote(str(marked[0]))}."
        )
    return path


def _new_run(disk: Disk, settings: JobSettings, last: Checkpoint | None) -> Run:
    """What ``run.json`` said: the run id is in the checkpoint, too."""
    return make_run(
        disk,
        settings,
        disk.size(settings.input),
        run_id=uuid.uuid4().hex if last is None else last.run_id.hex(),
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        version=__version__,
    )
