"""A long file as it passes by: whole lines, some hundred kilobytes at a time.

For what goes through all of a job's files once. A line that is too long to be held comes in parts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import attrs

from trioline.newlines import count_newlines

READ_BYTES = 256 * 1024

Read = Callable[[int, int], bytes]
"""Reads so many bytes from an offset on: fewer only at the end of the file."""


@attrs.frozen
class Piece:
    """Some lines in a row, or a part of one."""

    first: int
    """Number of the first line."""
    offset: int
    """Byte at which it begins."""
    data: bytes
    count: int
    """Lines that end in it: 0 for a part of a line that goes on."""
    is_part: bool = False
    """It has one line that is too long to be held, or a part of one."""

    def lines(self) -> list[bytes]:
        """The lines, without their newlines."""
        lines = self.data.split(b"\n")
        return lines[: self.count]


def pieces(read: Read, end: int, *, max_held_bytes: int) -> Iterator[Piece]:
    """Go through a file up to a byte, or up to its end.

    Args:
        read: Reads the file.
        end: Where to end, in bytes. A line that is cut off there counts as one.
        max_held_bytes: A longer line comes in parts.
    """
    line = begin = offset = 0
    held: list[bytes] = []
    is_part = False
    while offset < end and (data := read(min(READ_BYTES, end - offset), offset)):
        offset += len(data)
        cut = (data.find(b"\n") if is_part else data.rfind(b"\n")) + 1
        while cut:
            whole = b"".join([*held, data[:cut]])
            piece = Piece(line, begin, whole, 1 if is_part else count_newlines(whole), is_part)
            yield piece
            line += piece.count
            begin += len(whole)
            held, data, is_part = [], data[cut:], False
            cut = data.rfind(b"\n") + 1
        if data:
            held.append(data)
        if is_part or offset - begin > max_held_bytes:
            yield Piece(line, begin, b"".join(held), 0, is_part=True)
            begin, held, is_part = offset, [], True
    if held or is_part:
        yield Piece(line, begin, b"".join(held), 1, is_part)
