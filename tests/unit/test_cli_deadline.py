from __future__ import annotations

import math
import time
from datetime import UTC, datetime

import click
import pytest

from trioline.cli.deadline import Deadline


def parse(text: str) -> float:
    return Deadline().convert(text, None, None)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("2h30m", 9_000), ("90s", 90), ("1d", 86_400), ("1D2H3M4S", 93_784), ("0s", 0)],
)
def test_a_duration_counts_from_now(text: str, seconds: float) -> None:
    before = time.time()
    try:
        found = parse(text)
    except click.BadParameter:
        assert seconds == 0, "which is over by now"
        return
    assert before + seconds <= found <= time.time() + seconds


def test_instants_are_unix_time_or_iso_time() -> None:
    assert parse("4102444800") == parse("2100-01-01T00:00:00Z") == 4102444800.0
    local = datetime(2100, 1, 1, 12, 30).astimezone()
    assert parse("2100-01-01T12:30") == parse("2100-01-01 12:30") == local.timestamp()
    assert parse(local.astimezone(UTC).isoformat()) == local.timestamp()
    assert parse("none") == math.inf


@pytest.mark.parametrize(
    "text",
    [
        "",
        "soon",
        "2h30",
        "30m2h",
        "nan",
        "inf",
        "-5",
        "1e13",
        "2h 30m",
        "2100-13-01",
        "99999999999999d",
    ],
)
def test_anything_else_is_no_time(text: str) -> None:
    with pytest.raises(click.BadParameter, match="is no time: write Unix time"):
        parse(text)


@pytest.mark.parametrize("text", ["60", "2001-01-01"])
def test_a_time_gone_by_is_refused(text: str) -> None:
    with pytest.raises(click.BadParameter, match="is over already"):
        parse(text)
