"""Bytes into messages and blocks of raw lines, with exact limits.

A ``Framer`` is fed what was received and asked for what it is expected to hold next: a message,
or a block of so many raw lines. What is unfinished is kept in one growing buffer and only what is
new is searched, so a long line that comes in small pieces costs its length once, in time and in
memory, not its length squared.
"""

from __future__ import annotations

from trioline.config import MAX_BLOCK_BYTES, MAX_LINE_BYTES
from trioline.errors import ErrorCode, RemoteProtocolError
from trioline.newlines import count_newlines


class Framer:
    """One direction of one connection.

    Ask until the answer is None, then feed again.

    Args:
        max_line_bytes: The longest message or raw line, without its newline.
        max_block_bytes: The longest block of raw lines, with their newlines.
    """

    def __init__(
        self, max_line_bytes: int = MAX_LINE_BYTES, max_block_bytes: int = MAX_BLOCK_BYTES
    ) -> None:
        self.max_line_bytes = max_line_bytes
        self.max_block_bytes = max_block_bytes
        self._chunk = b""
        self._at = 0
        self._kept = bytearray()  # of a message or block that is not whole yet
        self._newlines = 0  # in _kept, of a block
        self._open_bytes = 0  # in _kept, of a block: since the last newline

    def feed(self, data: bytes) -> None:
        """Take what was received."""
        rest = self._chunk[self._at :]
        self._chunk = rest + data if rest else data
        self._at = 0

    @property
    def is_between_messages(self) -> bool:
        """Whether nothing is buffered: where a stream may end."""
        return not self._kept and self._at >= len(self._chunk)

    def next_message(self) -> bytes | None:
        """Take the next message, without its newline and a carriage return before it.

        Returns:
            None where it is not whole yet.

        Raises:
            RemoteProtocolError: ``BAD_JSON`` as soon as its first byte is not ``{``,
                ``LINE_TOO_LONG`` as soon as it is over the limit. The framer is of no use then.
        """
        chunk, at = self._chunk, self._at
        first = chunk[at : at + 1]
        if not first:
            return None
        if first != b"{" and not self._kept:
            raise RemoteProtocolError(
                ErrorCode.BAD_JSON,
                "A message is one JSON object on one line, so it begins with {; see protocol.md.",
            )
        end = chunk.find(b"\n", at)
        if end < 0:
            self._keep()
            # A carriage return at the end may still be followed by its newline.
            if len(self._kept) - self._kept.endswith(b"\r") > self.max_line_bytes:
                self._too_long()
            return None
        line = (self._take(end) if self._kept else chunk[at:end]).removesuffix(b"\r")
        self._at = end + 1
        if len(line) > self.max_line_bytes:
            self._too_long()
        return line

    def next_block(self, count: int, bytes_hint: int | None = None) -> bytes | None:
        """Take ``count`` raw lines as one piece, each with its newline.

        Args:
            count: At least 1.
            bytes_hint: How long they are said to be; only makes it faster.

        Returns:
            None where they are not whole yet.

        Raises:
            RemoteProtocolError: ``LINE_TOO_LONG`` for a line, ``TOO_LARGE`` for the block, as soon
                as it is over its limit. The framer is of no use then.
        """
        chunk, at, kept_bytes = self._chunk, self._at, len(self._kept)
        wanted = count - self._newlines
        # A single line is found as fast without.
        end = at if bytes_hint is None or wanted == 1 else at + bytes_hint - kept_bytes
        is_end = end > at and chunk[end - 1 : end] == b"\n"
        if not is_end or count_newlines(chunk[at:end]) != wanted:
            found, end = self._skip_lines(wanted)
            if found < wanted:
                self._keep_lines(found, end)
                return None
        size = kept_bytes + end - at
        if size > self.max_block_bytes:
            self._block_too_large()
        if size > self.max_line_bytes:
            self._check_lines(end)
        return self._take(end)

    def next_bytes(self, count: int) -> bytes | None:
        """Take so many bytes, whatever they are.

        Returns:
            None where they are not all there yet.

        Raises:
            RemoteProtocolError: ``TOO_LARGE``: they are more than a block may have. The framer is
                of no use then.
        """
        if count > self.max_block_bytes:
            self._block_too_large()
        end = self._at + count - len(self._kept)
        if end > len(self._chunk):
            self._keep()
            return None
        return self._take(end)

    def _skip_lines(self, wanted: int) -> tuple[int, int]:
        # Looks no further than it must: many small blocks may stand in one chunk.
        find, end, found = self._chunk.find, self._at, 0
        while found < wanted and (newline := find(b"\n", end)) >= 0:
            end = newline + 1
            found += 1
        return found, end

    def _keep_lines(self, found: int, end: int) -> None:
        if found:
            self._check_lines(end)
            self._newlines += found
            self._open_bytes = 0
        self._open_bytes += len(self._chunk) - end
        if self._open_bytes > self.max_line_bytes:
            self._too_long()
        self._keep()
        if len(self._kept) > self.max_block_bytes:
            self._block_too_large()

    def _take(self, end: int) -> bytes:
        piece = self._chunk[self._at : end]
        self._at = end
        if not self._kept:
            return piece
        self._kept += piece
        whole = bytes(self._kept)
        self._kept = bytearray()
        self._newlines = self._open_bytes = 0
        return whole

    def _keep(self) -> None:
        self._kept += memoryview(self._chunk)[self._at :]
        self._chunk = b""
        self._at = 0

    def _check_lines(self, end: int) -> None:
        if self._open_bytes + end - 1 - self._at <= self.max_line_bytes:
            return
        first, *others = self._chunk[self._at : end - 1].split(b"\n")
        if self._open_bytes + len(first) > self.max_line_bytes or any(
            len(line) > self.max_line_bytes for line in others
        ):
            self._too_long()

    def _too_long(self) -> None:
        raise RemoteProtocolError(
            ErrorCode.LINE_TOO_LONG, f"A line is longer than {self.max_line_bytes} bytes."
        )

    def _block_too_large(self) -> None:
        raise RemoteProtocolError(
            ErrorCode.TOO_LARGE,
            f"The raw lines behind one message are more than {self.max_block_bytes} bytes.",
            is_fatal=True,
        )
