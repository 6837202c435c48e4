"""A finished job's rejected lines, run again.

The retry is a job of its own, with all that makes one safe: its input are the rejected lines, in
``OUTPUT.trioline/retry/``, its output their results. When it is over, ``replacing`` puts these in
their places. Until then the finished job is as it was.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import zlib
from collections.abc import Iterator
from pathlib import Path

import attrs

from trioline.config import JobSettings
from trioline.errors import StorageError, UsageError
from trioline.storage import damage
from trioline.storage.checkpoint import Checkpoint, CheckpointFile
from trioline.storage.claims import check_claims
from trioline.storage.files import Disk, File
from trioline.storage.lock import Lock
from trioline.storage.new_file import NewFile
from trioline.storage.numbers import Numbers, pack
from trioline.storage.opening import CHECKPOINT_NAME, LOCK_NAME, check_paths
from trioline.storage.output import GrowingFile
from trioline.storage.retry.replacing import finish_swap, prepare_swap
from trioline.storage.retry_files import (
    Plan,
    RetryFiles,
    clear,
    damaged,
    is_under_way,
    read_plan,
    read_swap,
    write_record,
)
from trioline.storage.run import RUN_NAME, Run, check_match, read_run
from trioline.storage.system import Files, OsFiles
from trioline.storage.verify.marks import Record, read_records
from trioline.storage.verify.pieces import READ_BYTES, pieces
from trioline.storage.verify.verification import find_subject, verify

_HELD_BYTES = 1024 * 1024
"""A longer line of the input is copied in parts."""


class Retry:
    """A retry that is prepared, or was before; made by ``Retry.open``.

    It holds the job's lock. Closing: the owner calls ``close``; it is idempotent.
    """

    def __init__(self, disk: Disk, settings: JobSettings, last: Checkpoint, lock: Lock) -> None:
        self._disk = disk
        self._files = RetryFiles(settings)
        self._last = last
        self._lock = lock
        self.warning = lock.warning
        """What the user should know, or None."""
        self.line_count = last.rejected_count
        """How many lines are run again."""
        self.numbers: Numbers | None = None
        """Which lines these are; None where there are none."""
        if self.line_count:
            self.numbers = Numbers(disk, self._files.numbers)
        self.settings = attrs.evolve(
            settings,
            input=self._files.lines,
            output=self._files.results,
            rejected=self._files.rejected,
        )
        """Of the job that runs them."""

    @classmethod
    def open(cls, settings: JobSettings, files: Files | None = None) -> Retry:
        """Lock the job, end a retry that was stopped in its last step, or prepare a new one.

        Raises:
            UsageError: There is no such job, or it is not over, or its rejected file is another's.
            JobLocked: A server is at work on it.
            StorageError: A file failed or is not what was written.
        """
        disk = Disk(files or OsFiles())
        run, input_bytes = _find(disk, settings)
        with contextlib.ExitStack() as opened:
            lock = Lock(disk, settings.state / LOCK_NAME)
            opened.callback(lock.close)
            lock.hold(settings.output, run.rejected_path(settings.output))
            check_match(disk, run, settings, input_bytes)
            check_claims(disk, settings, run)
            last = finish_swap(disk, RetryFiles(settings)) or _read_last(disk, settings, run)
            lock.hold(settings.output, settings.rejected)  # what was put in place are other files
            if not last.finished:
                raise UsageError(
                    f"The job of {settings.output} is not over: end it first, by the command that"
                    " began it; then its rejected lines can be run again."
                )
            _prepare(disk, settings, last)
            retry = cls(disk, settings, last, lock)
            opened.pop_all()
        return retry

    @property
    def is_served(self) -> bool:
        """Whether all lines were run again."""
        results = self._read_results()
        return results is not None and results.finished

    def put_in_place(self) -> int:
        """Put the results into the output; the retry is over then.

        Returns:
            How many lines failed again.

        Raises:
            DiskFull: There is no room for a copy of the output; the same call may be repeated.
            StorageError: A file failed; the same command goes on.
        """
        results = self._read_results()
        assert results is not None
        assert results.finished
        assert self.numbers is not None
        self._lock.check()
        if read_swap(self._disk, self._files) is None:
            _check_ends(self._disk, self.settings, results)
            prepare_swap(self._disk, self._files, self._last, results, self.numbers)
            self.numbers.close()
        last = finish_swap(self._disk, self._files)
        assert last is not None
        return last.rejected_count

    def close(self) -> None:
        """Close all files and let go of the lock."""
        if self.numbers is not None:
            self.numbers.close()
        self._lock.close()

    def _read_results(self) -> Checkpoint | None:
        run = read_run(self._disk, self._files.results_state)
        return None if run is None else _read_last(self._disk, self.settings, run)


def _find(disk: Disk, settings: JobSettings) -> tuple[Run, int]:
    input_bytes = check_paths(disk, settings)
    run = read_run(disk, settings.state)
    if run is None and disk.size(settings.output) and disk.names(settings.state):
        what = "is missing, but a job was here"
        raise damage.damaged(settings.state / RUN_NAME, what, settings.output, is_known=False)
    if run is None:
        raise UsageError(
            f"There is no job with the output {settings.output}: `trioline serve` and `trioline"
            " run` begin one."
        )
    return run, input_bytes


def _read_last(disk: Disk, settings: JobSettings, run: Run) -> Checkpoint:
    path = settings.state / CHECKPOINT_NAME
    if disk.stat(path) is None:
        raise damage.damaged(path, "is missing", settings.output)
    with contextlib.closing(CheckpointFile(disk, path)) as slots:
        slots.sync()
        return slots.read(run.id_bytes)


def _prepare(disk: Disk, settings: JobSettings, last: Checkpoint) -> None:
    """See that there is a plan and what it speaks of, or that there is nothing to do."""
    files = RetryFiles(settings)
    plan = read_plan(disk, files)
    if last.rejected_count:
        _check_all(disk, settings)
    if is_under_way(disk, files):
        now = _plan_now(disk, settings, last)
        _check_prepared(disk, files, plan or now)
        _check_still_rejected(files, plan or now, now)
        disk.sync_folder(files.folder)
        if plan is None:
            write_record(disk, files.plan, now)
        return
    clear(disk, files)  # what a crash left in the midst of this
    if last.rejected_count:
        disk.make_folder(files.folder)
        disk.sync_folder(settings.state)
        with NewFile(disk, files.lines) as lines, NewFile(disk, files.numbers) as numbers:
            _copy_lines(disk, settings, last, lines, numbers)
        disk.sync_folder(files.folder)
        crcs = [_crc_of(disk, path) for path in (files.lines, files.numbers)]
        plan = Plan(run_id=last.run_id.hex(), lines_crc=crcs[0], numbers_crc=crcs[1])
        write_record(disk, files.plan, plan)


def _check_all(disk: Disk, settings: JobSettings) -> None:
    """Hold all of the job's files against what it recorded of them.

    A pass over each of them costs what ``trioline verify`` does; what would be in vain otherwise,
    the work on the rejected lines, may cost days.

    Raises:
        StorageError: One of them was changed.
    """
    report = verify(find_subject(disk, settings), lambda _: (), files=disk.files)
    first = next((finding for finding in report.findings if finding.is_damage), None)
    if first is not None:
        raise StorageError(
            f"{first.text} Nothing was touched, and no line was run again: put the file back as it"
            f" was, or see what `trioline repair {shlex.quote(str(settings.output))}` can save.",
            first.path,
        )


def _check_prepared(disk: Disk, files: RetryFiles, plan: Plan) -> None:
    for path, crc in ((files.lines, plan.lines_crc), (files.numbers, plan.numbers_crc)):
        if _crc_of(disk, path) != crc:
            raise damaged(files, path, "is damaged")


def _plan_now(disk: Disk, settings: JobSettings, last: Checkpoint) -> Plan:
    lines, numbers = _Sum(), _Sum()
    _copy_lines(disk, settings, last, lines, numbers)
    return Plan(run_id=last.run_id.hex(), lines_crc=lines.crc, numbers_crc=numbers.crc)


def _check_still_rejected(files: RetryFiles, plan: Plan, now: Plan) -> None:
    """Hold a plan against the job as it is now: a repair may have had lines answered again.

    Raises:
        StorageError: Other lines are rejected now, or they read otherwise.
    """
    if now != plan:
        raise StorageError(
            f"{files.folder} has a retry of other lines than those that are rejected now, or of"
            " another job: its results have no place any more. Nothing was touched. Remove the"
            " folder, then start the same command again: it runs what is rejected now.",
            files.folder,
        )


class _Sum:
    """Takes what is written to a file and keeps its crc32 only."""

    def __init__(self) -> None:
        self.crc = 0

    def append(self, data: bytes) -> None:
        self.crc = zlib.crc32(data, self.crc)


def _crc_of(disk: Disk, path: Path) -> int:
    crc = offset = 0
    with disk.open(path, os.O_RDONLY) as file:
        while data := file.read(READ_BYTES, offset):
            crc = zlib.crc32(data, crc)
            offset += len(data)
    return crc


def _check_ends(disk: Disk, settings: JobSettings, last: Checkpoint) -> None:
    for path, length, tail_bytes, tail_crc in (
        (settings.output, last.output_bytes, last.tail_bytes, last.tail_crc),
        (
            settings.rejected,
            last.rejected_bytes,
            last.rejected_tail_bytes,
            last.rejected_tail_crc,
        ),
    ):
        with contextlib.closing(GrowingFile(disk, path, length, output=settings.output)) as file:
            file.check_begin(tail_bytes, tail_crc)
            file.check_end()


def _copy_lines(
    disk: Disk,
    settings: JobSettings,
    last: Checkpoint,
    lines: NewFile | _Sum,
    numbers: NewFile | _Sum,
) -> None:
    """Copy the rejected lines from the input; which these are, the records say."""
    with (
        disk.open(settings.input, os.O_RDONLY) as source,
        disk.open(settings.rejected, os.O_RDONLY) as rejected,
    ):
        wanted = _rejected_numbers(rejected, last)
        number = next(wanted, None)
        for piece in pieces(source.read, last.input_offset, max_held_bytes=_HELD_BYTES):
            if piece.is_part:
                if number == piece.first:
                    lines.append(piece.data)
                if number == piece.first and piece.count:
                    lines.append(b"" if piece.data.endswith(b"\n") else b"\n")
                    numbers.append(pack(number))
                    number = next(wanted, None)
            elif number is not None and number < piece.first + piece.count:
                texts = piece.lines()
                while number is not None and number < piece.first + piece.count:
                    lines.append(texts[number - piece.first] + b"\n")
                    numbers.append(pack(number))
                    number = next(wanted, None)
        if number is not None:
            raise StorageError(
                f"{settings.input} has changed: it has no line {number} any more. Put it back as it"
                " was, then start the same command again.",
                settings.input,
            )


def _rejected_numbers(file: File, last: Checkpoint) -> Iterator[int]:
    """The numbers in the records.

    Raises:
        StorageError: They are not as many as there must be, or not in order.
    """
    count, before = 0, -1
    for number, offset, record in read_records(file.read, last.rejected_bytes):
        if not isinstance(record, Record) or not before < record.id < last.line_count:
            raise StorageError(
                f"{file.path} is damaged at byte {offset}: line {number} is not the record that was"
                " written there. `trioline verify` says more. Put the file back from a copy.",
                file.path,
            )
        count, before = count + 1, record.id
        yield record.id
    if count != last.rejected_count:
        raise StorageError(
            f"{file.path} has {count} records, but {last.rejected_count} were written. Put the file"
            " back from a copy.",
            file.path,
        )
