"""The two files that people read, grown together: the output and the rejected lines.

A rejected line takes its turn like any other: its placeholder goes to the output, and its record to
the rejected file, which so has its records in the order of the lines, each once.
"""

from __future__ import annotations

import zlib

from trioline.storage.frames import Frame, Kind, Region
from trioline.storage.output import GrowingFile

_PIECE_BYTES = 1024 * 1024
"""Written at a time: bounds the memory of a long catching up."""


Mark = tuple[int, int, int, int, int, int]
"""How far both files reached at one instant; for ``Answers`` alone. Made in each commit."""


class Answers:
    """Puts lines into the output, in order.

    ``flush`` writes what ``take`` gathered. Closing: its owner calls ``close``; it is idempotent.

    Args:
        placeholder: Stands in the output for a rejected line; without newline.
    """

    def __init__(
        self,
        output: GrowingFile,
        rejected: GrowingFile,
        *,
        placeholder: bytes,
        written_count: int,
        rejected_count: int,
    ) -> None:
        self.output = output
        self.rejected = rejected
        self.written_count = written_count
        """Lines whose results are in the output (or on their way to it until ``flush``)."""
        self.rejected_count = rejected_count
        """Rejected ones among them."""
        self._placeholder = placeholder + b"\n"
        self._pieces: list[bytes] = []
        self._records: list[bytes] = []
        self._gathered_bytes = 0

    def take(self, frame: Frame) -> None:
        """Take the lines of a frame from ``written_count`` on; the frame reaches beyond it.

        Raises:
            DiskFull: ``cut_back`` takes back what was taken since.
        """
        assert frame.first <= self.written_count < frame.end
        if frame.kind is Kind.REJECTED:
            self._pieces.append(self._placeholder)
            self._records.append(frame.payload)
            self.rejected_count += 1
        else:
            self._pieces.append(frame.lines_from(self.written_count))
        self.written_count = frame.end
        self._gathered_bytes += len(frame.payload)
        if self._gathered_bytes >= _PIECE_BYTES:
            self.flush()

    def take_in_turn(self, frames: list[Frame]) -> list[Frame]:
        """Write the results that ``frames`` begin with, if it is their turn. Nothing is gathered.

        Returns:
            The frames, with one in place of the written ones that tells where they are.

        Raises:
            DiskFull: As in ``take``.
        """
        first, offset = self.written_count, self.output.length
        count = crc = 0
        for frame in frames:
            if frame.first != self.written_count or frame.kind is not Kind.RESULTS:
                break
            self.output.append(frame.payload)
            crc = zlib.crc32(frame.payload, crc)
            self.written_count = frame.end
            count += 1
        if not count:
            return frames
        region = Region.pack(offset, self.output.length - offset, crc)
        return [Frame(Kind.WRITTEN, first, self.written_count - first, region), *frames[count:]]

    def adopt(self, frame: Frame) -> bool:
        """Take lines that a WRITTEN frame found in the output already, if they are still there.

        Some of them may have been taken before: after a power loss that kept a frame and not its
        lines, these were written again, with others in one commit.
        """
        self.flush()
        region = Region.unpack(frame.payload)
        taken_count = self.written_count - frame.first
        if taken_count < 0 or not self.output.adopt(region, taken_count):
            return False
        self.written_count = frame.end
        return True

    def flush(self) -> None:
        """Write what was gathered.

        Raises:
            DiskFull: As in ``take``.
        """
        pieces, records = self._pieces, self._records
        if not pieces:  # no record without its placeholder
            return
        self._pieces, self._records, self._gathered_bytes = [], [], 0
        self.output.append(pieces[0] if len(pieces) == 1 else b"".join(pieces))
        if records:
            self.rejected.append(b"".join(records))

    def mark(self) -> Mark:
        """Remember how far both files reach, for ``cut_back``. Nothing may be gathered."""
        assert not self._pieces
        output, rejected = self.output, self.rejected
        return (
            self.written_count,
            self.rejected_count,
            output.length,
            output.grown_crc,
            rejected.length,
            rejected.grown_crc,
        )

    def cut_back(self, mark: Mark) -> None:
        """Take back all that was taken since ``mark``."""
        self._pieces, self._records, self._gathered_bytes = [], [], 0
        written, rejected, output_bytes, output_crc, rejected_bytes, rejected_crc = mark
        self.written_count, self.rejected_count = written, rejected
        for file, length, crc in (
            (self.output, output_bytes, output_crc),
            (self.rejected, rejected_bytes, rejected_crc),
        ):
            if file.length != length:
                file.cut_back(length, crc)

    def check(self) -> None:
        """Hold against both files what was written.

        Raises:
            StorageError: Somebody else changed one.
        """
        self.output.check()
        self.rejected.check()

    def end_replay(self) -> None:
        """Cut off what is behind the last line, and sync both files."""
        self.flush()
        for file in (self.output, self.rejected):
            file.cut_off()
            file.sync()

    def sync(self) -> None:
        """Return when what was written before is on the disk; more may be written meanwhile."""
        self.output.sync()
        self.rejected.sync()

    def end_region(self) -> None:
        """Let the next durable point reach up to here."""
        self.output.end_region()
        self.rejected.end_region()

    def settle(self) -> None:
        """After a checkpoint: it vouches for both files up to there."""
        self.output.settle()
        self.rejected.settle()

    def close(self) -> None:
        """Close both files."""
        self.output.close()
        self.rejected.close()
