"""The durable point: how far the output is safe, in two slots that are written in turn.

A slot has 512 bytes, so that a disk writes it whole or not at all, and the two are a page apart, so
that a torn write cannot reach both. The valid slot with the highest sequence number counts. A slot
that does not parse is never taken for an empty one.
"""

from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path

import attrs

from trioline.storage.damage import damaged, newer, output_of
from trioline.storage.files import Disk

FORMAT = 1
"""Of the state folder as a whole; a newer one is refused, never guessed at."""
SLOT_BYTES = 512
SLOT_SPACING_BYTES = 4_096
TAIL_BYTES = 4_096
"""How much of the output's end a slot vouches for."""

_MAGIC = b"trioline"
_HEAD = struct.Struct("<8sI")
_BODY = struct.Struct("<16sQQQQQQQIIIIIQQQ?IIIIQQqq?")
_CRC = struct.Struct("<I")


@attrs.frozen(kw_only=True)
class Checkpoint:
    """What is on the disk for certain."""

    run_id: bytes
    """16 bytes: the job's."""
    epoch: int
    """Counts the servers that wrote to this job. A higher one than ours: another took over."""
    sequence: int
    """Counts the checkpoints of this job."""
    line_count: int
    """Lines done: their results are in the output."""
    output_bytes: int
    rejected_bytes: int
    rejected_count: int
    """Rejected lines among those done."""
    input_offset: int
    """Byte of the input at which the line after the done ones begins."""
    tail_bytes: int = 0
    tail_crc: int = 0
    """crc32 of the output's last ``tail_bytes`` bytes."""
    rejected_tail_bytes: int = 0
    rejected_tail_crc: int = 0
    """The same of the rejected file."""
    rejected_crc: int = 0
    """crc32 of all that the job has in the rejected file: a start reads only its end."""
    journal_segment: int = 0
    """The journal's newest segment; 0: there is none."""
    journal_bytes: int = 0
    """How much of that segment is on the disk."""
    journal_older_bytes: int = 0
    """Length of all segments before that one that reach beyond the lines done."""
    finished: bool = False
    """The job is over: every line is in the output."""
    input_crc: int = 0
    output_crc: int = 0
    """Of the lines done in a block of 64 that is not complete, see ``checksums``; 0 for none."""
    input_sums_crc: int = 0
    output_sums_crc: int = 0
    """Of the sums of all blocks before it, as in the table: they vouch for it, and for the files
    where it is lost."""
    assumed_first: int = 0
    assumed_end: int = 0
    """Lines of which nothing proves what they answer are among these, after a repair or with an
    input that may have been changed; none where both are equal."""
    input_mtime_ns: int = 0
    """When the input was written to, as it was then; 0: not known."""
    input_ctime_ns: int = 0
    """When anything about it changed; 0: not known."""
    are_records_assumed: bool = False
    """A repair took the rejected file's records as they were, or made some of lines that may have
    had none: nothing proves what they say of attempts and errors, or that it are all and no others.
    """

    def doubting(self, lines: range) -> Checkpoint:
        """The same with some lines more of which nothing proves what they answer."""
        first, end = lines.start, lines.stop
        if self.assumed_first < self.assumed_end:
            first, end = min(first, self.assumed_first), max(end, self.assumed_end)
        return attrs.evolve(self, assumed_first=first, assumed_end=end)

    def pack(self) -> bytes:
        """Encode as one slot."""
        fields = attrs.astuple(self)
        slot = _HEAD.pack(_MAGIC, FORMAT) + _BODY.pack(*fields)
        slot = slot.ljust(SLOT_BYTES - _CRC.size, b"\0")
        return slot + _CRC.pack(zlib.crc32(slot))


def unpack(slot: bytes, path: Path) -> Checkpoint | None:
    """Decode a slot; None for one that is not valid.

    Raises:
        StorageError: It is valid, and of a newer format.
    """
    if len(slot) != SLOT_BYTES:
        return None
    magic, version = _HEAD.unpack_from(slot)
    (crc,) = _CRC.unpack_from(slot, SLOT_BYTES - _CRC.size)
    # The crc is at the same place in every format, so that a flipped version is no newer version.
    if magic != _MAGIC or crc != zlib.crc32(slot[: -_CRC.size]):
        return None
    if version != FORMAT:
        raise newer(path, f"has format {version}, and this version of trioline knows {FORMAT}")
    names = [field.name for field in attrs.fields(Checkpoint)]
    return Checkpoint(**dict(zip(names, _BODY.unpack_from(slot, _HEAD.size), strict=True)))


class CheckpointFile:
    """The file with the two slots.

    Closing: its owner calls ``close``; it is idempotent.

    Raises:
        StorageError: There is no such file, or it cannot be opened.
    """

    def __init__(self, disk: Disk, path: Path, flags: int = os.O_RDWR) -> None:
        self._file = disk.open(path, flags)
        self._path = path

    @classmethod
    def create(
        cls, disk: Disk, path: Path, first: Checkpoint, *, flags: int = os.O_TRUNC
    ) -> CheckpointFile:
        """Make the file with its whole length and ``first`` in it, and sync it.

        Args:
            flags: As for ``Disk.write_whole``.
        """
        slots = [bytes(SLOT_SPACING_BYTES), bytes(SLOT_SPACING_BYTES)]
        slots[first.sequence & 1] = first.pack().ljust(SLOT_SPACING_BYTES, b"\0")
        disk.write_whole(path, b"".join(slots), flags=flags)
        return cls(disk, path)

    def slots(self) -> list[Checkpoint | None]:
        """Both slots as they are; None for one that is not valid.

        Raises:
            StorageError: One is of a newer format.
        """
        slots = [self._file.read(SLOT_BYTES, at) for at in (0, SLOT_SPACING_BYTES)]
        return [unpack(slot, self._path) for slot in slots]

    def read(self, run_id: bytes) -> Checkpoint:
        """The newest valid slot of this run.

        Raises:
            StorageError: There is none, or it is of a newer format.
        """
        found = self.slots()
        valid = [slot for slot in found if slot is not None and slot.run_id == run_id]
        if not valid:
            others = any(slot is not None for slot in found)
            what = (
                "belongs to another job than the files beside it"
                if others
                else f"is damaged: neither of its two slots (at bytes 0 and {SLOT_SPACING_BYTES})"
                " is valid"
            )
            raise damaged(self._path, what, output_of(self._path.parent))
        return max(valid, key=lambda slot: slot.sequence)

    def write(self, checkpoint: Checkpoint) -> None:
        """Write the slot whose turn it is and return when it is on the disk.

        Raises:
            DiskFull: The other slot still counts; the same call may be repeated.
        """
        self._file.write(checkpoint.pack(), (checkpoint.sequence & 1) * SLOT_SPACING_BYTES)
        self._file.sync()

    def repeat(self, last: Checkpoint) -> Checkpoint:
        """Write ``last`` to the other slot too, so that damage to one of them costs nothing.

        Raises:
            DiskFull: As in ``write``.
        """
        again = attrs.evolve(last, sequence=last.sequence + 1)
        self.write(again)
        return again

    def is_doubled(self, last: Checkpoint) -> bool:
        """Whether both slots say the same as ``last``."""
        return all(
            slot is not None and attrs.evolve(slot, sequence=last.sequence) == last
            for slot in self.slots()
        )

    def sync(self) -> None:
        """Return when what was written before is on the disk."""
        self._file.sync()

    def close(self) -> None:
        """Close the file."""
        self._file.close()
