"""What the rejected file says of lines: which were given up, and what they were."""

from __future__ import annotations

import base64
import zlib
from collections.abc import Iterator

import attrs
import msgspec

from trioline.storage.verify.pieces import Read, pieces

MAX_RECORD_BYTES = 8 << 30
"""Of the longest line that can be allowed, each byte of it escaped."""


class Record(msgspec.Struct, gc=False):
    """One record, as ``encode_record`` makes it; what was tried with the line is not read."""

    id: int
    line: str | None = None
    base64: str | None = None
    bytes: int | None = None

    def mark(self) -> Mark:
        """What the input's line must be.

        Raises:
            ValueError: The record does not say what the line was.
        """
        if self.bytes is not None:
            return Mark(self.id, self.bytes, None)
        if self.line is not None:
            return Mark.of(self.id, self.line.encode())
        if self.base64 is not None:
            return Mark.of(self.id, base64.b64decode(self.base64, validate=True))
        raise ValueError("it has none of line, base64 and bytes")


@attrs.frozen
class Mark:
    """A line that something is known of."""

    line: int
    length: int
    """Bytes, without newline."""
    crc: int | None
    """None: only the length is known."""

    @classmethod
    def of(cls, line: int, content: bytes) -> Mark:
        """The mark of a line that is known."""
        return cls(line, len(content), zlib.crc32(content))

    def fits(self, length: int, crc: int) -> bool:
        """Whether a line of this length and sum is the one."""
        return length == self.length and self.crc in (None, crc)


def read_records(read: Read, end: int) -> Iterator[tuple[int, int, Record | str]]:
    """Read the first ``end`` bytes of a rejected file.

    Yields:
        Number and byte offset of each line, and its record, or what is wrong with it.
    """
    for number, offset, line in read_lines(read, end):
        yield number, offset, decode_record(line)


def read_lines(read: Read, end: int) -> Iterator[tuple[int, int, bytes]]:
    """The same with the lines as they are, without their newlines."""
    for piece in pieces(read, end, max_held_bytes=MAX_RECORD_BYTES):
        offset = piece.offset
        for number, line in enumerate(piece.lines(), piece.first):
            yield number, offset, line
            offset += len(line) + 1


def decode_record(line: bytes) -> Record | str:
    """The record that a line is; or what is wrong with it."""
    try:
        record = msgspec.json.decode(line, type=Record)
        record.mark()
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        return str(error)
    return record
