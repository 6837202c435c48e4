"""Bytes into messages and blocks, however they come, with exact limits."""

from __future__ import annotations

import tracemalloc
from typing import Any

import pytest

from trioline.errors import ErrorCode, RemoteProtocolError
from trioline.wire.framing import Framer


def feed_in(framer: Framer, data: bytes, size: int) -> list[bytes]:
    """Feed ``data`` in pieces of ``size`` and take every message."""
    found = []
    for at in range(0, len(data), size):
        framer.feed(data[at : at + size])
        while (message := framer.next_message()) is not None:
            found.append(message)
    return found


def block_in(
    framer: Framer, data: bytes, size: int, count: int, hint: int | None = None
) -> list[bytes]:
    """Feed ``data`` in pieces of ``size`` and take every block of ``count`` lines."""
    found = []
    for at in range(0, len(data), size):
        framer.feed(data[at : at + size])
        while (block := framer.next_block(count, hint)) is not None:
            found.append(block)
    return found


# --- messages ------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 2, 3, 7, 100])
def test_messages_come_out_as_they_went_in(size: int) -> None:
    framer = Framer()
    assert feed_in(framer, b'{"a":1}\n{}\n{"b":"\xc3\xa4"}\n', size) == [
        b'{"a":1}',
        b"{}",
        b'{"b":"\xc3\xa4"}',
    ]
    assert framer.is_between_messages


@pytest.mark.parametrize("size", [1, 4, 100])
def test_one_carriage_return_before_the_newline_is_ignored(size: int) -> None:
    assert feed_in(Framer(), b'{"a":1}\r\n{"b"\r:2}\r\r\n', size) == [b'{"a":1}', b'{"b"\r:2}\r']


def test_what_follows_a_message_stays() -> None:
    framer = Framer()
    framer.feed(b'{}\n{"half":')
    assert framer.next_message() == b"{}"
    assert not framer.is_between_messages
    assert framer.next_message() is None
    assert not framer.is_between_messages
    framer.feed(b"1}\n")
    assert framer.next_message() == b'{"half":1}'
    assert framer.is_between_messages


def test_what_was_not_asked_for_yet_is_not_lost_by_feeding_more() -> None:
    framer = Framer()
    framer.feed(b"{}\n{1}\n{2")
    assert framer.next_message() == b"{}"
    framer.feed(b"}\n")
    assert [framer.next_message() for _ in range(3)] == [b"{1}", b"{2}", None]


def test_nothing_comes_of_nothing() -> None:
    framer = Framer()
    assert framer.next_message() is None
    framer.feed(b"")
    assert framer.next_message() is None
    assert framer.next_block(1) is None
    assert framer.is_between_messages


@pytest.mark.parametrize(
    "probe",
    [
        b"GET / HTTP/1.1\r\n",
        b"\x16\x03\x01\x02\x00\x01",
        b"*1\r\n$4\r\nPING\r\n",
        b"PING",
        b"\n",
        b" {}\n",
        b"[1]\n",
        b"\xef\xbb\xbf{}\n",
        b"\x00",
    ],
)
def test_what_is_no_message_is_refused_on_its_first_byte(probe: bytes) -> None:
    for data in (probe, probe[:1]):
        framer = Framer()
        framer.feed(data)
        with pytest.raises(RemoteProtocolError, match="begins with") as caught:
            framer.next_message()
        assert caught.value.code is ErrorCode.BAD_JSON


def test_the_second_message_is_looked_at_as_well() -> None:
    framer = Framer()
    framer.feed(b"{}\nGET")
    assert framer.next_message() == b"{}"
    with pytest.raises(RemoteProtocolError):
        framer.next_message()


# --- the limit of a message ----------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 3, 100])
@pytest.mark.parametrize("ending", [b"\n", b"\r\n"])
def test_a_message_may_be_as_long_as_the_limit(size: int, ending: bytes) -> None:
    message = b"{" + b"x" * 9
    assert feed_in(Framer(max_line_bytes=10), (message + ending) * 2, size) == [message] * 2


@pytest.mark.parametrize("size", [1, 3, 100])
@pytest.mark.parametrize("ending", [b"\n", b"\r\n", b"\r\r\n"])
def test_one_byte_more_is_too_long(size: int, ending: bytes) -> None:
    long = b"{" + b"x" * (10 if ending != b"\r\r\n" else 9)
    with pytest.raises(RemoteProtocolError, match="longer than 10 bytes") as caught:
        feed_in(Framer(max_line_bytes=10), long + ending, size)
    assert caught.value.code is ErrorCode.LINE_TOO_LONG


@pytest.mark.parametrize("size", [1, 3, 100])
def test_a_message_is_too_long_before_it_ends(size: int) -> None:
    assert feed_in(Framer(max_line_bytes=10), b"{" + b"x" * 9, size) == []
    assert feed_in(Framer(max_line_bytes=10), b"{" + b"x" * 9 + b"\r", size) == []
    for more in (b"x", b"\rx", b"\r\r"):
        with pytest.raises(RemoteProtocolError) as caught:
            feed_in(Framer(max_line_bytes=10), b"{" + b"x" * 9 + more, size)
        assert caught.value.code is ErrorCode.LINE_TOO_LONG


# --- blocks --------------------------------------------------------------------------------------

LINES = b'{"a":1}\n\n\xff\x00\r\n"last"\n'
"""Four raw lines, as odd as they may be."""


@pytest.mark.parametrize("size", [1, 2, 3, 5, 100])
@pytest.mark.parametrize(
    "hint", [None, len(LINES), 0, 1, 8, len(LINES) - 1, len(LINES) + 3, len(LINES) + 8, 10**9]
)
def test_a_block_keeps_its_bytes_whatever_the_hint(size: int, hint: int | None) -> None:
    framer = Framer()
    assert block_in(framer, LINES * 2, size, 4, hint) == [LINES, LINES]
    assert framer.is_between_messages


@pytest.mark.parametrize("size", [1, 4, 100])
@pytest.mark.parametrize("hint", [None, len(LINES), 3])
def test_messages_and_blocks_take_turns(size: int, hint: int | None) -> None:
    framer = Framer()
    stream, found, wants_block = b"{1}\n" + LINES + b"{2}\r\n" + LINES + b"{3}\n", [], False
    for at in range(0, len(stream), size):
        framer.feed(stream[at : at + size])
        while True:
            piece = framer.next_block(4, hint) if wants_block else framer.next_message()
            if piece is None:
                break
            found.append(piece)
            wants_block = piece in (b"{1}", b"{2}")
    assert found == [b"{1}", LINES, b"{2}", LINES, b"{3}"]


@pytest.mark.parametrize("size", [1, 2, 5, 100])
def test_so_many_bytes_are_taken_whatever_they_are(size: int) -> None:
    data = b'{"a":1}\n1\n\n3{\n{"b":2}\n'
    found: list[bytes] = []
    framer = Framer()
    for at in range(0, len(data), size):
        framer.feed(data[at : at + size])
        if not found and (message := framer.next_message()) is not None:
            found.append(message)
        if len(found) == 1 and (block := framer.next_bytes(6)) is not None:
            found.append(block)
        if len(found) == 2 and (message := framer.next_message()) is not None:
            found.append(message)
    assert found == [b'{"a":1}', b"1\n\n3{\n", b'{"b":2}']


def test_no_more_bytes_are_waited_for_than_a_block_may_have() -> None:
    framer = Framer(max_block_bytes=10)
    assert framer.next_bytes(10) is None
    with pytest.raises(RemoteProtocolError) as caught:
        framer.next_bytes(11)
    assert caught.value.code == ErrorCode.TOO_LARGE


def test_a_block_spread_over_many_chunks_with_others_behind_it() -> None:
    framer = Framer()
    framer.feed(b"1\n2\n3")
    assert framer.next_block(3) is None
    framer.feed(b"3")
    assert framer.next_block(3) is None
    framer.feed(b"3\n{}\n")
    assert framer.next_block(3) == b"1\n2\n333\n"
    assert framer.next_message() == b"{}"


@pytest.mark.parametrize("size", [1, 3, 100])
@pytest.mark.parametrize("hint", [None, 16])
def test_a_blocks_lines_may_be_as_long_as_the_limit(size: int, hint: int | None) -> None:
    block = b"1234567\n123456\r\n"
    assert block_in(Framer(max_line_bytes=7), block, size, 2, hint) == [block]


@pytest.mark.parametrize("size", [1, 3, 4, 100])
@pytest.mark.parametrize("long", [b"12345678\n", b"1234567\r\n"])
@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize("is_hinted", [False, True])
def test_a_blocks_line_over_the_limit_is_refused(
    size: int, long: bytes, place: int, is_hinted: bool
) -> None:
    lines = [b"1\n", b"2\n", b"3\n"]
    lines[place] = long
    block = b"".join(lines)
    with pytest.raises(RemoteProtocolError) as caught:
        block_in(Framer(max_line_bytes=7), block, size, 3, len(block) if is_hinted else None)
    assert caught.value.code is ErrorCode.LINE_TOO_LONG


@pytest.mark.parametrize("size", [1, 3, 100])
def test_a_blocks_line_is_too_long_before_it_ends(size: int) -> None:
    assert block_in(Framer(max_line_bytes=7), b"1\n1234567", size, 2) == []
    for line in (b"12345678", b"1234567\r"):
        with pytest.raises(RemoteProtocolError) as caught:
            block_in(Framer(max_line_bytes=7), b"1\n" + line, size, 2)
        assert caught.value.code is ErrorCode.LINE_TOO_LONG


@pytest.mark.parametrize("size", [1, 3, 100])
@pytest.mark.parametrize("hint", [None, 9, 10])
def test_a_block_may_be_as_large_as_the_limit_and_no_larger(size: int, hint: int | None) -> None:
    fits = b"1234\n678\n"
    assert block_in(Framer(max_block_bytes=9), fits, size, 2, hint) == [fits]
    with pytest.raises(RemoteProtocolError, match="more than 9 bytes") as caught:
        block_in(Framer(max_block_bytes=9), b"1234\n6789\n", size, 2, hint)
    assert caught.value.code is ErrorCode.TOO_LARGE


def test_a_block_is_too_large_before_it_ends() -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        block_in(Framer(max_block_bytes=9), b"1234\n67890", 3, 2)
    assert caught.value.code is ErrorCode.TOO_LARGE


def test_a_message_after_a_block_has_the_whole_limit_again() -> None:
    framer = Framer(max_line_bytes=8)
    framer.feed(b"12345")
    assert framer.next_block(1) is None
    framer.feed(b"6\n{234567}\n12345678\n")
    assert framer.next_block(1) == b"123456\n"
    assert framer.next_message() == b"{234567}"
    assert framer.next_block(1) == b"12345678\n"


# --- cost ----------------------------------------------------------------------------------------


class Counted(bytes):
    """Received bytes that count how many of them are copied out or searched."""

    touched = 0

    def __getitem__(self, key: Any) -> Any:  # noqa: ANN401 - as bytes has it
        piece = bytes.__getitem__(self, key)
        Counted.touched += len(piece) if isinstance(piece, bytes) else 1
        return piece

    def find(self, what: object, start: int = 0, end: int | None = None) -> int:  # type: ignore[override]
        """Search, and count how far."""
        found = bytes.find(self, what, start, end)  # type: ignore[arg-type]
        Counted.touched += (len(self) if found < 0 else found + 1) - start
        return found

    def count(self, what: object, start: int = 0, end: int | None = None) -> int:  # type: ignore[override]
        """Count, and count how many."""
        Counted.touched += (len(self) if end is None else end) - start
        return bytes.count(self, what, start, end)  # type: ignore[arg-type]


@pytest.mark.parametrize("is_hinted", [False, True])
def test_many_small_blocks_in_one_chunk_cost_what_they_are_long(is_hinted: bool) -> None:
    message, block = b'{"op":"done","first":7,"count":2}\n', b'"one"\n"two"\n'
    Counted.touched = 0
    chunk = Counted((message + block) * 1_000)
    framer = Framer()
    framer.feed(chunk)
    for _ in range(1_000):
        assert framer.next_message() == message[:-1]
        assert framer.next_block(2, len(block) if is_hinted else None) == block
    assert 0 < Counted.touched < 4 * len(chunk)


@pytest.mark.parametrize("kind", ["message", "block"])
def test_a_long_line_in_small_pieces_costs_what_it_is_long(kind: str) -> None:
    framer, pieces = Framer(), 8_000
    take = framer.next_message if kind == "message" else lambda: framer.next_block(2)
    tracemalloc.start()
    try:
        Counted.touched = 0
        framer.feed(b"{\n" if kind == "block" else b"{")
        for _ in range(pieces):
            assert take() is None
            framer.feed(Counted(b"ab"))
        assert take() is None
        assert tracemalloc.get_traced_memory()[1] < 2 * 2 * pieces, "small pieces add up to no more"
    finally:
        tracemalloc.stop()
    assert Counted.touched < 4 * 2 * pieces, "only what is new is searched"
    framer.feed(b"\n")
    whole = take()
    assert whole is not None
    assert whole.count(b"ab") == pieces
