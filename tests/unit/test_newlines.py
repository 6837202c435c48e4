"""Counting lines, and finding where so many of them end."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from trioline.newlines import count_newlines, end_of_lines

texts = st.lists(
    st.sampled_from([b"", b"\n", b"a", b"\n\n\n", b"\r", b"\0", b"b" * 70, b"c\n" * 40]),
    max_size=40,
).map(b"".join)


@given(texts)
def test_it_counts_as_bytes_count_does(text: bytes) -> None:
    assert count_newlines(text) == text.count(b"\n")


def test_it_counts_short_and_long_lines_after_each_other() -> None:
    short, long = b"\n" * 1_000, (b"x" * 190 + b"\n") * 1_000
    for text in (short, long, short + long, long + short, short[:256], long[:257]):
        assert count_newlines(text) == text.count(b"\n")


@given(texts, st.integers(0, 100), st.integers(1, 70), st.integers(0, 5_000))
def test_so_many_lines_end_in_the_same_place_whatever_the_guess(
    text: bytes, begin: int, count: int, guess: int
) -> None:
    whole = [line + b"\n" for line in text[begin:].split(b"\n")[:-1]]
    expected = begin + sum(map(len, whole[:count])) if len(whole) >= count else 0
    assert end_of_lines(text, begin, count, guess) == expected
