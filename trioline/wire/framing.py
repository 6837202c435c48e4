"""Bytes into messages and blocks of raw lines, with exact limits and no copying twice.

A ``Framer`` is fed what was received and asked for what it is expected to hold next: a message,
or a block of so many raw lines. What is unfinished is kept in a list of pieces, so a long line
that comes in small pieces costs its length once, not its length squared.
"""

from __future__ import annotations

from trioline.config import MAX_BLOCK_BYTES, MAX_LINE_BYTES
from trioline.errors import ErrorCode, RemoteProtocolError


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
        self._pieces: list[bytes] = []
        self._pieces_bytes = 0
        self._newlines = 0  # in _pieces: of a block that is not whole yet
        self._open_bytes = 0  # in _pieces: since the last newline

    def feed(self, data: bytes) -> None:
        """Take what was received."""
        self._chunk = self._chunk[self._at :] + data if self._at < len(self._chunk) else data
        self._at = 0

    @property
    def is_between_messages(self) -> bool:
        """Whether nothing is buffered: where a stream may end."""
        return not self._pieces and self._at >= len(self._chunk)

    def next_message(self) -> bytes | None:
        """Take the next message, without its newline and a carriage return before it.

        Returns:
            None where it is not whole yet.

        Raises:
            RemoteProtocolError: ``BAD_JSON`` as soon as its first byte is not ``{``,
                ``LINE_TOO_LONG`` as soon as it is over the limit. The framer is of no use then.
        """
        if self._at >= len(self._chunk):
            return None
        if not self._pieces and self._chunk[self._at] != 0x7B:
            raise RemoteProtocolError(
                ErrorCode.BAD_JSON,
                "A message is one JSON object on one line, so it begins with {; see protocol.md.",
            )
        end = self._chunk.find(b"\n", self._at)
        if end < 0:
            self._keep(len(self._chunk))
            self._check_open_line()
            return None
        line = self._take(end)
        self._at = end + 1
        if len(line) > self.max_line_bytes:
            self._too_long()
        return line[:-1] if line.endswith(b"\r") else line

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
        chunk, at = self._chunk, self._at
        wanted = count - self._newlines
        end = None
        if bytes_hint is not None:
            guess = at + bytes_hint - self._pieces_bytes
            if (
                at < guess <= len(chunk)
                and chunk[guess - 1] == 0x0A
                and chunk.count(b"\n", at, guess) == wanted
            ):
                end = guess
        if end is None:
            found = chunk.count(b"\n", at)
            if found < wanted:
                self._newlines += found
                last = chunk.rfind(b"\n", at)
                if last >= 0:
                    self._check_lines(chunk[at:last])
                self._open_bytes = len(chunk) - last - 1 if last >= 0 else self._open_bytes
                self._keep(len(chunk), opens=last < 0)
                self._check_open_line()
                if self._pieces_bytes > self.max_block_bytes:
                    self._block_too_large()
                return None
            end = self._nth_newline(wanted, found) + 1
        if self._pieces_bytes + end - at > self.max_block_bytes:
            self._block_too_large()
        if self._open_bytes + end - at > self.max_line_bytes:
            self._check_lines(chunk[at : end - 1])
        block = self._take(end)
        self._at = end
        return block

    def _nth_newline(self, wanted: int, found: int) -> int:
        chunk, at = self._chunk, self._at
        if wanted == found:
            return chunk.rfind(b"\n", at)
        rest = chunk[at:].split(b"\n", wanted)[-1]
        return len(chunk) - len(rest) - 1

    def _take(self, end: int) -> bytes:
        piece = self._chunk[self._at : end]
        if not self._pieces:
            return piece
        self._pieces.append(piece)
        whole = b"".join(self._pieces)
        self._pieces.clear()
        self._pieces_bytes = self._newlines = self._open_bytes = 0
        return whole

    def _keep(self, end: int, *, opens: bool = True) -> None:
        piece = self._chunk[self._at : end]
        if piece:
            self._pieces.append(piece)
            self._pieces_bytes += len(piece)
            if opens:
                self._open_bytes += len(piece)
        self._chunk = b""
        self._at = 0

    def _check_open_line(self) -> None:
        # A carriage return may still be followed by its newline, hence the one more.
        if self._open_bytes > self.max_line_bytes + 1:
            self._too_long()

    def _check_lines(self, lines: bytes) -> None:
        if self._open_bytes + len(lines) <= self.max_line_bytes:
            return
        first, *others = lines.split(b"\n")
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
        )
