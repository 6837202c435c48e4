"""The last step of a retry: the new results take the places of their placeholders.

The new output, rejected file and checksums are written beside the old ones and synced; then
``swap.json`` says so, and from then on every start of a retry does the rest, again where need be:
rename the three, write the checkpoint that goes with them, clear up. Before ``swap.json`` the job
is the old one, after it the new one.
"""

from __future__ import annotations

import contextlib
import os
import zlib
from array import array
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path

import attrs

from trioline.errors import StorageError
from trioline.storage.checkpoint import TAIL_BYTES, Checkpoint, CheckpointFile, unpack
from trioline.storage.checksums import CHECKSUMS_NAME, Proof, Table, Tally, interleaved
from trioline.storage.damage import damaged as damaged_job
from trioline.storage.files import Disk, File
from trioline.storage.new_file import NewFile
from trioline.storage.numbers import Numbers
from trioline.storage.opening import CHECKPOINT_NAME
from trioline.storage.retry_files import RetryFiles, Swap, clear, damaged, read_swap, write_record
from trioline.storage.verify.pieces import READ_BYTES, pieces

_COMPARED_BLOCKS = 1_024
_MAX_LINE_BYTES = 1 << 31
"""Longer lines than can be allowed: every line of an output is held whole."""


def prepare_swap(
    disk: Disk, files: RetryFiles, last: Checkpoint, results: Checkpoint, numbers: Numbers
) -> None:
    """Write the new files, and then that they are whole.

    Args:
        last: Of the job as it is.
        results: Of the job that ran the rejected lines again.
        numbers: Of these.

    Raises:
        DiskFull: There is no room for a copy of the output; nothing has changed.
        StorageError: The output is not what was written; nothing has changed.
    """
    replacements = files.replacements()
    (new_output, old_output), (new_rejected, old_rejected), (new_checksums, old_checksums) = (
        replacements
    )
    with contextlib.ExitStack() as opened:
        output = _opened(disk, files.settings.output, opened)
        answers = _opened(disk, files.results, opened)
        table = _opened_table(disk, files, last, opened)
        with (
            NewFile(disk, new_output, like=old_output) as written,
            NewFile(disk, new_checksums, like=old_checksums) as sums,
        ):
            copy = _Copy(files.settings.output, last, table, written, sums)
            lines = _lines(files, answers, results)
            replaced = _numbered(numbers, lines, files)
            copy.run(output, replaced, files.settings.placeholder)
            output_bytes = written.length
        _copy(disk, files.rejected, new_rejected, results.rejected_bytes, like=old_rejected)
    for new, _ in replacements:
        disk.sync_folder(new.parent)
    tail_bytes, tail_crc = _tail(disk, new_output, output_bytes)
    rejected_tail_bytes, rejected_tail_crc = _tail(disk, new_rejected, results.rejected_bytes)
    checkpoint = attrs.evolve(
        last,
        epoch=last.epoch + 1,
        sequence=last.sequence + 1,
        output_bytes=output_bytes,
        rejected_bytes=results.rejected_bytes,
        rejected_count=results.rejected_count,
        tail_bytes=tail_bytes,
        tail_crc=tail_crc,
        rejected_tail_bytes=rejected_tail_bytes,
        rejected_tail_crc=rejected_tail_crc,
        rejected_crc=results.rejected_crc,
        are_records_assumed=False,
        output_crc=copy.new.crc,
        output_sums_crc=copy.new.sums_crc,
    )
    write_record(disk, files.swap, Swap(checkpoint=checkpoint.pack()))


def finish_swap(disk: Disk, files: RetryFiles) -> Checkpoint | None:
    """Do what ``swap.json`` says, from wherever it was left.

    Returns:
        The job's checkpoint after it; None where there is no swap.
    """
    swap = read_swap(disk, files)
    if swap is None:
        return None
    checkpoint = unpack(swap.checkpoint, files.swap)
    if checkpoint is None:
        raise StorageError(
            f"{files.swap} is damaged. It was left as it is. Put it back from a copy.", files.swap
        )
    disk.sync_folder(files.folder)
    for new, place in files.replacements():
        if disk.stat(new) is not None:
            disk.rename(new, place)
        disk.sync_folder(place.parent)
    _check_in_place(disk, files, checkpoint)
    path = files.settings.state / CHECKPOINT_NAME
    with contextlib.closing(CheckpointFile(disk, path)) as slots:
        slots.write(checkpoint)
        checkpoint = slots.repeat(checkpoint)
    clear(disk, files)
    return checkpoint


def _check_in_place(disk: Disk, files: RetryFiles, checkpoint: Checkpoint) -> None:
    """Hold the files in their places against what the swap says of them, before it is believed.

    A new file that is missing may have been renamed, or lost: hidden files stay behind when a job
    is copied by its visible names, for instance.
    """
    (new_output, output), (new_rejected, rejected), _ = files.replacements()
    for new, place, length, tail in (
        (new_output, output, checkpoint.output_bytes, checkpoint.tail_crc),
        (
            new_rejected,
            rejected,
            checkpoint.rejected_bytes,
            checkpoint.rejected_tail_crc,
        ),
    ):
        if disk.size(place) != length or _tail(disk, place, length)[1] != tail:
            raise StorageError(
                f"{place} is not what a retry had made for its place, and {new} is not there. "
                "Nothing else was changed: put that file back, or the whole job from a copy.",
                place,
            )


class _Copy:
    """Copies an output line by line, and its table of checksums."""

    def __init__(
        self, path: Path, last: Checkpoint, table: Table, written: NewFile, sums: NewFile
    ) -> None:
        self._path = path
        self._last = last
        self._table = table
        self._written = written
        self._sums = sums
        self._old, self.new = Tally(), Tally()
        self._compared = 0
        """Blocks that are in the new table."""

    def run(self, output: File, replaced: Iterator[tuple[int, bytes]], placeholder: bytes) -> None:
        """Copy all of it, with ``replaced`` lines in the place of placeholders."""
        place = next(replaced, None)
        end = self._last.output_bytes
        for piece in pieces(output.read, end, max_held_bytes=_MAX_LINE_BYTES):
            data = piece.data
            if place is not None and place[0] < piece.first + piece.count:
                lines = piece.lines()
                while place is not None and place[0] < piece.first + piece.count:
                    number, line = place
                    if lines[number - piece.first] != placeholder:
                        raise self._changed(f"line {number} is not the placeholder of its record")
                    lines[number - piece.first] = line
                    place = next(replaced, None)
                data = b"\n".join(lines) + b"\n"
            self._old.feed(piece.data)
            self.new.feed(data)
            self._written.append(data)
            if len(self._old.sums) >= _COMPARED_BLOCKS:
                self._compare()
        if place is not None or self._old.line_count != self._last.line_count:
            raise self._changed(
                f"it has {self._old.line_count} lines where {self._last.line_count} were"
            )
        self._old.end_block()
        self.new.end_block()
        self._compare()

    def _compare(self) -> None:
        """Hold what was copied against the old table, and write the new one."""
        olds, news = self._old.take_sums(), self.new.take_sums()
        entries = self._table.read(self._compared, len(olds))
        if any(entry.output_crc != old for entry, old in zip(entries, olds, strict=True)):
            raise self._changed("its checksums do not hold")
        self._sums.append(interleaved(array("I", [entry.input_crc for entry in entries]), news))
        self._compared += len(olds)

    def _changed(self, how: str) -> StorageError:
        return StorageError(
            f"{self._path} is not what the job wrote: {how}. Nothing was changed; `trioline verify`"
            " says more. The retry's results are kept: put the file back as it was, then start the"
            " same command again.",
            self._path,
        )


def _opened(disk: Disk, path: Path, opened: contextlib.ExitStack) -> File:
    file = disk.open(path, os.O_RDONLY)
    opened.callback(file.close)
    return file


def _opened_table(
    disk: Disk, files: RetryFiles, last: Checkpoint, opened: contextlib.ExitStack
) -> Table:
    path = files.settings.state / CHECKSUMS_NAME
    table = Table.open(disk, path)
    if table is not None:
        opened.callback(table.close)
    if table is None or not all(table.holds(last)):
        raise damaged_job(path, "is not what the job wrote", files.settings.output)
    return table


def _numbered(
    numbers: Numbers, lines: Iterator[bytes], files: RetryFiles
) -> Iterator[tuple[int, bytes]]:
    for number, line in zip_longest(numbers, lines):
        if number is None or line is None:
            raise damaged(files, files.results, f"has not one line for each of {files.numbers}")
        yield number, line


def _lines(files: RetryFiles, file: File, results: Checkpoint) -> Iterator[bytes]:
    """The results, in order; the error that they are not what was written may come behind them."""
    tally = Tally()
    end = results.output_bytes
    for piece in pieces(file.read, end, max_held_bytes=_MAX_LINE_BYTES):
        tally.feed(piece.data)
        tally.take_sums()
        yield from piece.lines()
    tally.end()
    tally.end_block()
    tally.take_sums()
    if not Proof.of_output(results).fits(tally):
        raise damaged(files, files.results, "was changed: it is not what the retry wrote")


def _copy(disk: Disk, path: Path, new: Path, length: int, *, like: Path) -> None:
    with disk.open(path, os.O_RDONLY) as file, NewFile(disk, new, like=like) as written:
        for offset in range(0, length, READ_BYTES):
            written.append(file.read(min(READ_BYTES, length - offset), offset))


def _tail(disk: Disk, path: Path, length: int) -> tuple[int, int]:
    tail_bytes = min(length, TAIL_BYTES)
    with disk.open(path, os.O_RDONLY) as file:
        return tail_bytes, zlib.crc32(file.read(tail_bytes, length - tail_bytes))
