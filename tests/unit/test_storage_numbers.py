"""Places and numbers of lines, both ways."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from storage_helpers import CrashFiles

from trioline.errors import ErrorCode, RemoteProtocolError
from trioline.server.numbering import inward
from trioline.storage.files import Disk
from trioline.storage.numbers import Numbers, pack
from trioline.wire.messages import Done, DoneLines, Fail, Ping, Release, Request, Result

PATH = Path("/d/numbers")


def numbers_of(values: list[int]) -> Numbers:
    files = CrashFiles()
    files.put(PATH, b"".join(map(pack, values)))
    return Numbers(Disk(files), PATH)


@given(st.sets(st.integers(0, 60), min_size=1), st.lists(st.integers(-1, 61), max_size=20))
def test_both_ways_in_any_order(values: set[int], asked: list[int]) -> None:
    ordered = sorted(values)
    numbers = numbers_of(ordered)
    assert list(numbers) == ordered
    assert [numbers[place] for place in range(len(numbers))] == ordered
    for number in asked:
        place = ordered.index(number) if number in values else None
        assert numbers.place_of(number) == place


@given(st.sets(st.integers(0, 30), min_size=1), st.integers(1, 40))
def test_runs_end_at_gaps(values: set[int], count: int) -> None:
    ordered = sorted(values)
    numbers = numbers_of(ordered)
    for place, first in enumerate(ordered):
        length = 1
        while length < count and first + length in values:
            length += 1
        assert numbers.run_at(place, count) == length


def test_there_are_no_places_beyond() -> None:
    numbers = numbers_of([5])
    with pytest.raises(IndexError):
        numbers[1]
    with pytest.raises(IndexError):
        numbers[-1]
    numbers.close()
    numbers.close()


def test_requests_are_translated() -> None:
    numbers = numbers_of([3, 7, 8, 20])
    done = inward(Done(results=[Result(20, line="x"), Result(3, line="y")]), numbers)
    assert isinstance(done, Done)
    assert [row.id for row in done.results] == [3, 0]
    assert inward(DoneLines(first=7, count=2), numbers) == DoneLines(first=1, count=2)
    assert inward(Fail(id=8), numbers) == Fail(id=2)
    assert inward(Release(ids=[1, 20, 9]), numbers) == Release(ids=[3])
    for request in (Release(), Release(ids=[]), Ping()):
        assert inward(request, numbers) == request


@pytest.mark.parametrize(
    ("request_", "code", "line"),
    [
        (Done(results=[Result(3, line="x"), Result(4, line="y")]), ErrorCode.UNKNOWN_ID, 4),
        (DoneLines(first=7, count=3), ErrorCode.UNKNOWN_ID, 9),
        (DoneLines(first=0, count=1), ErrorCode.UNKNOWN_ID, 0),
        (Fail(id=21), ErrorCode.NOT_HELD, 21),
        (Release(ids=[1, 2]), ErrorCode.NOT_HELD, 1),
    ],
)
def test_lines_of_others_are_refused(request_: Request, code: ErrorCode, line: int) -> None:
    with pytest.raises(RemoteProtocolError, match=rf"Line {line} ") as caught:
        inward(request_, numbers_of([3, 7, 8, 20]))
    assert caught.value.code is code
