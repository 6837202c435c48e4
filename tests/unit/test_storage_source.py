"""The input by line and by offset, against a plain ``split``."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trioline.errors import StorageError
from trioline.storage import InputLineTooLong, OsFiles, Source
from trioline.storage import source as source_module
from trioline.storage.line_index import LineIndex
from trioline.storage.source import Lines

LIMIT = 1_024
PLENTY = 1 << 30


def open_source(path: Path, *, first: int = 0, offset: int = 0, limit: int = LIMIT) -> Source:
    return Source(OsFiles(), path, first=first, offset=offset, max_line_bytes=limit)


def naive(data: bytes) -> list[bytes]:
    lines = data.split(b"\n")
    return lines if lines[-1] else lines[:-1]


@pytest.fixture
def tiny_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of some bytes, so that small inputs meet every border."""
    shrink(monkeypatch, block=16)


def shrink(monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    monkeypatch.setattr(source_module, "_BLOCK_BYTES", block)
    monkeypatch.setattr(source_module, "_LONG_READ_BYTES", 2 * block)
    monkeypatch.setattr("trioline.storage.line_index.ANCHOR_SPACING_BYTES", block)
    monkeypatch.setattr(source_module, "_MAX_GAP_BYTES", 2 * block)


@pytest.mark.parametrize(
    ("data", "lines"),
    [
        (b"", []),
        (b"\n", [b""]),
        (b"\n\n\n", [b"", b"", b""]),
        (b"a", [b"a"]),
        (b"a\nb", [b"a", b"b"]),
        (b"a\n\nb\n", [b"a", b"", b"b"]),
        (b"a\r\nb\r\n", [b"a\r", b"b\r"]),
        (b"\xef\xbb\xbfa\n", [b"\xef\xbb\xbfa"]),
        (b"\x00\n\x00\x00", [b"\x00", b"\x00\x00"]),
        (b"\xff\xfe\n\xc3", [b"\xff\xfe", b"\xc3"]),
        ("a\u2028b\u0085c\x0b\x0cd\n".encode(), ["a\u2028b\u0085c\x0b\x0cd".encode()]),
        (b"x" * LIMIT, [b"x" * LIMIT]),
    ],
)
def test_lines_end_at_newlines_alone(tmp_path: Path, data: bytes, lines: list[bytes]) -> None:
    path = tmp_path / "in"
    path.write_bytes(data)
    source = open_source(path)
    assert source.read(0, 100, PLENTY).split() == lines
    assert source.read(len(lines), 1, PLENTY).split() == []
    assert source.known_count == len(lines)
    assert source.at_end
    assert source.offset_of(len(lines)) == len(data)
    source.close()


@pytest.mark.slow
@given(
    data=st.lists(st.binary(max_size=12), max_size=60).map(b"\n".join),
    reads=st.lists(st.tuples(st.integers(0, 70), st.integers(1, 9), st.integers(0, 40))),
    block=st.integers(1, 40),
    limit=st.sampled_from([4, LIMIT]),
)
@settings(max_examples=150, deadline=None)
def test_any_read_is_what_split_says(
    tmp_path_factory: pytest.TempPathFactory,
    data: bytes,
    reads: list[tuple[int, int, int]],
    block: int,
    limit: int,
) -> None:
    path = tmp_path_factory.getbasetemp() / "any"
    path.write_bytes(data)
    lines = naive(data)
    with pytest.MonkeyPatch.context() as patch:
        shrink(patch, block)
        source = open_source(path, limit=limit)
        for first, count, max_bytes in reads:
            check_read(source, lines, limit, first, count, max_bytes)
            if first <= len(lines):
                assert source.offset_of(first) == min(
                    sum(len(line) + 1 for line in lines[:first]), len(data)
                )
        assert source.scan(len(lines))
        assert not source.scan(len(lines) + 1)
        assert source.known_count == len(lines)
        source.close()


def check_read(
    source: Source, lines: list[bytes], limit: int, first: int, count: int, max_bytes: int
) -> None:
    expected: list[bytes] = []
    for line in lines[first : first + count]:
        if len(line) > limit:
            break
        size = sum(len(text) + 1 for text in [*expected, line])
        if expected and size > max_bytes:
            break
        expected.append(line)
        if size > max_bytes:
            break
    if not expected and first < len(lines):
        with pytest.raises(InputLineTooLong) as caught:
            source.read(first, count, max_bytes)
        assert (caught.value.line, caught.value.length) == (first, len(lines[first]))
    else:
        found = source.read(first, count, max_bytes)
        assert found.split() == expected
        assert found == Lines(len(expected), b"".join(line + b"\n" for line in expected))
        half = (found.count + 1) // 2
        assert not half or found.first(half).split() == expected[:half]


@pytest.mark.parametrize("data", [b"zero\none", b"zero\none\n"])
def test_a_read_counts_a_newline_for_each_line(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "in"
    path.write_bytes(data)
    source = open_source(path)
    assert source.read(0, 2, 8).split() == [b"zero"]
    assert source.read(0, 2, 9).split() == [b"zero", b"one"]
    source.close()


@pytest.mark.usefixtures("tiny_blocks")
def test_begins_at_a_line_in_the_middle(tmp_path: Path) -> None:
    path = tmp_path / "in"
    path.write_bytes(b"zero\none\ntwo\nthree")
    source = open_source(path, first=2, offset=9)
    assert source.known_count == 2
    assert source.read(2, 9, PLENTY).split() == [b"two", b"three"]
    assert source.known_count == 4
    with pytest.raises(ValueError, match="line 1 is before line 2"):
        source.offset_of(1)
    source.close()


def test_begins_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "in"
    path.write_bytes(b"zero\none")
    source = open_source(path, first=2, offset=8)
    assert source.at_end
    assert source.known_count == 2
    assert source.read(2, 1, PLENTY).split() == []
    source.close()


@pytest.mark.parametrize("offset", [3, 6, 99])
def test_an_offset_where_no_line_begins_is_refused(tmp_path: Path, offset: int) -> None:
    path = tmp_path / "in"
    path.write_bytes(b"zero\none\n")
    with pytest.raises(StorageError, match=f"has changed: no line begins at byte {offset}"):
        open_source(path, first=1, offset=offset)


def test_what_is_appended_later_does_not_count(tmp_path: Path) -> None:
    path = tmp_path / "in"
    path.write_bytes(b"zero\non")
    source = open_source(path)
    with path.open("ab") as file:
        file.write(b"e\ntwo\n")
    assert source.read(0, 9, PLENTY).split() == [b"zero", b"on"]
    source.close()


def test_an_input_that_shrinks_is_named(tmp_path: Path) -> None:
    path = tmp_path / "in"
    path.write_bytes(b"zero\none\n")
    source = open_source(path)
    path.write_bytes(b"zero")
    with pytest.raises(
        StorageError, match=r"shorter: it had 9 bytes.*now ends at byte 4"
    ) as caught:
        source.read(0, 1, PLENTY)
    assert caught.value.path == str(path)
    source.close()


def test_a_line_too_long_is_never_held(tmp_path: Path) -> None:
    path = tmp_path / "in"
    huge = 5 * 1024 * 1024
    with path.open("wb") as file:
        file.write(b"zero\n")
        file.truncate(5 + huge)  # a hole: zeros
        file.seek(5 + huge)
        file.write(b"\ntwo\n")
    source = open_source(path)
    assert source.read(0, 9, PLENTY).split() == [b"zero"]
    with pytest.raises(InputLineTooLong, match=f"Line 1 .* {huge} bytes; the limit is 1024"):
        source.read(1, 1, PLENTY)
    assert source.read(2, 9, PLENTY).split() == [b"two"]
    assert source.offset_of(2) == 6 + huge
    source.close()


def test_a_line_longer_than_a_block_is_handed_out(tmp_path: Path) -> None:
    path = tmp_path / "in"
    long = b"x" * 3_000_000
    path.write_bytes(b"zero\n" + long + b"\ntwo")
    source = open_source(path, limit=len(long))
    assert source.read(0, 9, PLENTY).split() == [b"zero", long, b"two"]
    assert source.read(1, 1, 10).split() == [long]
    source.close()


def test_a_read_aside_leaves_the_forward_block(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "in"
    path.write_bytes(b"".join(b"%07d\n" % n for n in range(50_000)))
    source = open_source(path)
    assert source.read(0, 20_000, PLENTY).split()[-1] == b"0019999"
    assert source.read(3, 2, PLENTY).split() == [b"0000003", b"0000004"]
    monkeypatch.setattr(source, "_load", None)
    assert source.read(20_000, 10, PLENTY).split()[0] == b"0020000"
    source.close()


def test_a_million_lines_take_few_anchors() -> None:
    index = LineIndex(0, 0)
    for block in range(1, 1_001):
        index.extend(1_000, block * 65_000)
    assert index.count == 1_000_000
    assert index.size_bytes() < 16 * 600


def test_forgotten_places_are_gone_and_the_rest_stays() -> None:
    index = LineIndex(0, 0)
    for block in range(1, 5_001):
        index.extend(10, block * 65_536)
    before = index.size_bytes()
    index.forget(40_005)
    assert index.size_bytes() < before / 4
    assert index.anchor(40_005) == (40_000, 4_000 * 65_536)
    with pytest.raises(ValueError, match="before line 40000"):
        index.anchor(39_999)
