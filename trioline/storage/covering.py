"""Keeps the table of checksums of a running job, see ``checksums``."""

from __future__ import annotations

import os
import zlib
from array import array
from pathlib import Path

import attrs

from trioline.errors import StorageError
from trioline.storage.checkpoint import Checkpoint
from trioline.storage.checksums import (
    BLOCK_LINES,
    CHECKSUMS_NAME,
    ENTRY_BYTES,
    Proof,
    Table,
    Tally,
    run_through,
)
from trioline.storage.damage import damaged
from trioline.storage.files import Disk, File
from trioline.storage.input_ahead import InputAhead
from trioline.storage.output import GrowingFile
from trioline.storage.system import Stat

_IF_NOT = "If it is as it was, start the same command again; if not, put it back first."
"""A touch cannot be taken back: its time would be another one again."""


class Checksums:
    """Writes the table of a running job.

    It opens what it needs when it needs it. Closing: its owner calls ``close``; it is idempotent.

    Args:
        folder: Of the job's state.
        input_path: Read by a descriptor of its own: the job's source belongs to another thread.
        output: Knows what was written to it, as does ``rejected``.
        given: The input that the job reads.
    """

    def __init__(
        self,
        disk: Disk,
        folder: Path,
        input_path: Path,
        output: GrowingFile,
        rejected: GrowingFile,
        given: Stat,
    ) -> None:
        self._disk = disk
        self._path = folder / CHECKSUMS_NAME
        self._input_path = input_path
        self._output = output
        self._rejected = rejected
        self._given = given
        self._input: File | None = None
        self._table: Table | None = None
        self.ahead = InputAhead(lambda count, at: self._opened_input().read(count, at), given.size)
        """The input's sums where lines are answered ahead of their turn."""

    def check(self, last: Checkpoint) -> None:
        """Find a table that is not there, or not all of it; what it says is left to ``verify``.

        Raises:
            StorageError: It is damaged. Nothing was touched.
        """
        needed = Proof.of_output(last).block_count * ENTRY_BYTES
        if self._disk.stat(self._path) is None:
            raise damaged(self._path, "is missing", self._output.path)
        size = self._disk.size(self._path)
        if size < needed:
            what = f"ends at byte {size}, but {needed} were safe"
            raise damaged(self._path, what, self._output.path)

    def cover(self, last: Checkpoint, new: Checkpoint) -> Checkpoint:
        """Put what was done between two checkpoints into the table, and sync it.

        Returns:
            ``new`` with the sums.

        Raises:
            DiskFull: The same call may be repeated.
            StorageError: Input or output are not what they were.
        """
        input_file = self._opened_input()
        lines = new.line_count
        inputs = Tally(last.line_count, last.input_crc, last.input_sums_crc)
        outputs = Tally(last.line_count, last.output_crc, last.output_sums_crc)
        if lines > last.line_count or new.finished:
            run_through(inputs, input_file.read, last.input_offset, new.input_offset)
            if inputs.line_count != lines:
                raise _changed(self._input_path, last.line_count, inputs.line_count, lines)
            for data in self._output.grown():
                outputs.feed(data)
            assert outputs.line_count == lines
        # After it was read: what was written to it since it was opened may be in the sums, or be
        # what lines were handed out as that are ahead of their turn.
        for found in (input_file.stat(), self._disk.stat(self._input_path)):
            if found is not None and not found.is_unchanged(self._given):
                raise _written_to(self._input_path)
        rejected_crc = last.rejected_crc
        for data in self._rejected.grown():
            rejected_crc = zlib.crc32(data, rejected_crc)
        if new.finished and not last.finished:  # a full disk may have it come twice
            inputs.end_block()
            outputs.end_block()
        if inputs.sums:
            first = last.line_count // BLOCK_LINES
            other = self.ahead.hold(first, inputs.sums)
            if other is not None:
                raise _written_to(self._input_path)
            self._write(first, inputs.take_sums(), outputs.take_sums())
        return attrs.evolve(
            new,
            input_crc=inputs.crc,
            output_crc=outputs.crc,
            input_sums_crc=inputs.sums_crc,
            output_sums_crc=outputs.sums_crc,
            rejected_crc=rejected_crc,
            assumed_first=last.assumed_first,
            assumed_end=last.assumed_end,
            are_records_assumed=last.are_records_assumed,
            input_mtime_ns=self._given.mtime_ns,
            input_ctime_ns=self._given.ctime_ns,
        )

    def close(self) -> None:
        """Close what was opened."""
        for file in (self._input, self._table):
            if file is not None:
                file.close()
        self._input = self._table = None

    def _write(self, first: int, inputs: array[int], outputs: array[int]) -> None:
        if self._table is None:
            self._table = Table(self._disk.open(self._path, os.O_RDWR))
        self._table.write(first, inputs, outputs)
        self._table.sync()

    def _opened_input(self) -> File:
        if self._input is None:
            self._input = self._disk.open(self._input_path, os.O_RDONLY)
            if not self._input.stat().is_unchanged(self._given):
                raise replaced(self._input_path)
        return self._input


def replaced(path: Path) -> StorageError:
    """The error for an input that is no longer the file that the job began to read."""
    return StorageError(
        f"{path} was replaced, changed or touched while the job began to read it. {_IF_NOT}",
        path,
    )


def _written_to(path: Path) -> StorageError:
    return StorageError(
        f"{path} was changed, replaced or touched while the job ran, so that lines may be answered"
        f" that are no longer in it. {_IF_NOT}",
        path,
    )


def _changed(path: Path, first: int, end: int, wanted: int) -> StorageError:
    return StorageError(
        f"{path} has changed while the job ran: from line {first} on it has {end - first} lines"
        f" where {wanted - first} were. Put it back as it was, then start the same command again.",
        path,
    )
