"""The index of lines ahead, against a dict."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trioline.storage import ahead as ahead_module
from trioline.storage.ahead import AheadIndex


@pytest.mark.slow
@given(
    puts=st.lists(st.tuples(st.integers(0, 60), st.integers(1, 20), st.booleans()), max_size=20),
    removed=st.tuples(st.integers(0, 60), st.integers(0, 20)),
    written=st.integers(0, 80),
)
@settings(max_examples=100, deadline=None)
def test_it_is_a_dict_of_lines(
    puts: list[tuple[int, int, bool]], removed: tuple[int, int], written: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ahead_module, "_CHUNK_LINES", 8)
        index, model = AheadIndex(), dict[int, tuple[int, bool]]()
        for place, (first, count, rejected) in enumerate(puts, 1):
            index.put(first, count, place, rejected=rejected)
            for line in range(first, first + count):
                model.setdefault(line, (place, rejected))
        check(index, model)
        index.remove(*removed)
        model = {n: v for n, v in model.items() if n not in range(removed[0], sum(removed))}
        check(index, model)
        index.advance(0, written)
        model = {n: v for n, v in model.items() if n >= written}
        check(index, model)


def check(index: AheadIndex, model: dict[int, tuple[int, bool]]) -> None:
    assert index.count == len(model)
    assert index.rejected_count == sum(rejected for _place, rejected in model.values())
    assert [line for part in index.ranges() for line in part] == sorted(model)
    assert all(first.stop < second.start for first, second in pairs(list(index.ranges())))
    for line in range(90):
        assert index.place(line) == model.get(line, (None, False))[0]
        assert (line in index) == (line in model)


def pairs(parts: list[range]) -> list[tuple[range, range]]:
    return list(itertools.pairwise(parts))


@pytest.mark.slow
def test_a_million_lines_ahead_take_eight_megabytes() -> None:
    index = AheadIndex()
    for line in range(1, 1_000_001, 50):
        index.put(line, 1, 1 << 32)
        index.put(line + 1, 49, 1 << 32, rejected=True)
    assert index.count == 1_000_000
    assert index.size_bytes() < 8.2e6
    assert list(index.ranges()) == [range(1, 1_000_001)]
    index.advance(0, 1_000_001)
    assert index.size_bytes() < 1e5
    assert index.count == index.rejected_count == 0
