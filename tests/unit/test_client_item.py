from __future__ import annotations

import collections
import datetime
import decimal
import enum
import json
import math
import uuid
from collections.abc import Callable
from dataclasses import dataclass

import attrs
import pytest

from trioline.client.item import (
    Failure,
    Item,
    Raw,
    Reject,
    encode_result,
    failure_of,
    outcome_of,
)
from trioline.config import MAX_TEXT_CHARS
from trioline.errors import LocalProtocolError


def test_item_shows_its_line_in_three_ways() -> None:
    item = Item(7, 2, b'{"a": "\xc3\xa4"}')
    assert (item.id, item.attempt, item.raw) == (7, 2, b'{"a": "\xc3\xa4"}')
    assert item.line == '{"a": "ä"}'
    assert item.data == {"a": "ä"}


def test_data_is_parsed_once() -> None:
    item = Item(0, 1, b"[1]")
    assert item.data is item.data


@pytest.mark.parametrize("line", [b'"\\ud800"', b"NaN", b"[" * 600 + b"]" * 600])
def test_data_reads_what_only_the_standard_library_reads(line: bytes) -> None:
    assert repr(Item(0, 1, line).data) == repr(json.loads(line))


@pytest.mark.parametrize("line", [b"", b"hello", b"\xff", b"{"])
def test_data_of_what_is_no_json(line: bytes) -> None:
    with pytest.raises(ValueError):
        _ = Item(0, 1, line).data


def test_bytes_that_are_no_text_survive_the_way_there_and_back() -> None:
    line = b"caf\xe9 \xff"
    assert encode_result(Item(0, 1, line).line, text=True) == line


def test_note_leaves_the_last_text() -> None:
    notes: dict[int, str] = {}
    item = Item(3, 1, b"", notes)
    item.note("one")
    item.note("two")
    assert notes == {3: "two"}


def test_note_says_when_nobody_would_send_it() -> None:
    with pytest.raises(LocalProtocolError, match=r"Session\.note"):
        Item(3, 1, b"").note("lost")


@attrs.frozen
class Point:
    x: int
    y: float


@dataclass
class Box:
    inner: object


class Name(str):
    """A plain type's subclass: msgspec leaves it to the standard library."""


class Color(enum.Enum):
    RED = "red"


@pytest.mark.parametrize(
    ("value", "line"),
    [
        ({"a": [1, None, "ä"]}, '{"a":[1,null,"ä"]}'.encode()),
        (Raw(b"as it is"), b"as it is"),
        ("text", b'"text"'),
        (10**30, b"1" + b"0" * 30),
        (Point(1, 2.5), b'{"x":1,"y":2.5}'),
        (Box(Point(1, 2.5)), b'{"inner":{"x":1,"y":2.5}}'),
        ((1, (2,)), b"[1,[2]]"),
        ({1: Name("one")}, b'{"1": "one"}'),
        (datetime.date(2024, 5, 1), b'"2024-05-01"'),
        ([datetime.datetime(2024, 5, 1, 12, 30)], b'["2024-05-01T12:30:00"]'),
        (uuid.UUID(int=1), b'"00000000-0000-0000-0000-000000000001"'),
        (decimal.Decimal("1.50"), b'"1.50"'),
        (Color.RED, b'"red"'),
        ("null", b'"null"'),
        ([None, 1.5], b"[null,1.5]"),
        ("two\nlines", b'"two\\nlines"'),
    ],
)
def test_results_become_lines(value: object, line: bytes) -> None:
    assert encode_result(value) == line


@pytest.mark.parametrize("value", ["as it is", b"as it is", bytearray(b"as it is")])
def test_text_results_are_lines_as_they_are(value: object) -> None:
    line = encode_result(value, text=True)
    assert line == b"as it is"
    assert type(line) is Raw


def test_text_mode_still_encodes_everything_else() -> None:
    assert encode_result({"a": 1}, text=True) == b'{"a":1}'


def _circle() -> list[object]:
    circle: list[object] = []
    circle.append(circle)
    return circle


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (math.nan, "nan"),
        ([{"score": -math.inf}], "-inf"),
        (Point(1, math.nan), "nan"),
        ("\ud800", "lone surrogate"),
        (_circle(), "too deeply"),
        (object(), "not JSON serializable"),
        (Raw(b"two\nlines"), "newline"),
    ],
)
def test_what_json_lacks_is_a_failed_attempt_with_a_sentence(value: object, words: str) -> None:
    outcome = outcome_of(value)
    assert isinstance(outcome, Failure)
    assert outcome.error.startswith("The result cannot be written: ")
    assert words in outcome.error
    assert outcome.retry


@pytest.mark.parametrize(
    "value", [b"bytes", bytearray(b"bytes"), memoryview(b"bytes"), {1, 2}, frozenset({1})]
)
@pytest.mark.parametrize(
    "wrap",
    [
        lambda value: value,
        lambda value: {"deep": [1, {"er": (2, value)}]},
        lambda value: [Box(value)],
        lambda value: Point(value, 1),
        lambda value: collections.OrderedDict(inner=value),
        lambda value: [Name("not msgspec's"), value],
    ],
    ids=["itself", "nested", "dataclass", "attrs", "mapping", "subclass"],
)
def test_sets_and_bytes_are_failed_attempts_with_a_sentence(
    value: object, wrap: Callable[[object], object]
) -> None:
    outcome = outcome_of(wrap(value))
    assert isinstance(outcome, Failure)
    start = "The result cannot be written: TypeError: the result holds "
    assert outcome.error.startswith(start)
    assert type(value).__name__ in outcome.error
    assert "which JSON lacks: " in outcome.error
    if not isinstance(value, (set, frozenset)):
        assert "trioline.Raw" in outcome.error


def test_bytes_as_keys_are_found_too() -> None:
    with pytest.raises(TypeError, match=r"trioline\.Raw"):
        encode_result({b"key": 1})


def test_deep_results_are_written_as_ever() -> None:
    deep: object = None
    for _ in range(500):
        deep = [deep]
    assert encode_result(deep) == b"[" * 500 + b"null" + b"]" * 500


def test_text_with_a_newline_is_a_failed_attempt() -> None:
    outcome = outcome_of("two\nlines", text=True)
    assert isinstance(outcome, Failure)
    assert "newline" in outcome.error


def test_too_long_a_result_names_both_lengths() -> None:
    assert outcome_of(Raw(b"12345"), max_bytes=5) == b"12345"
    assert outcome_of(Raw(b"123456"), max_bytes=5) == Failure(
        "The result is 6 bytes long; the server takes 5."
    )


def test_exceptions_name_their_type_and_text() -> None:
    assert failure_of(KeyError("prompt")) == Failure("KeyError: 'prompt'")
    assert failure_of(ValueError()) == Failure("ValueError")
    assert failure_of(Reject("too long")) == Failure("Reject: too long", retry=False)
    assert outcome_of(ValueError("x")) == Failure("ValueError: x")


def test_exception_texts_are_cut_and_can_always_be_sent() -> None:
    class BrokenError(Exception):
        def __str__(self) -> str:
            raise RuntimeError

    assert len(failure_of(ValueError("x" * 10_000)).error) == MAX_TEXT_CHARS
    assert failure_of(ValueError("\ud800")).error == "ValueError: ?"
    assert failure_of(BrokenError()).error == "BrokenError: (its text cannot be had)"
