"""``--deadline``: when a worker will be killed, however people and batch systems write it."""

from __future__ import annotations

import math
import re
import time
from datetime import datetime
from typing import Any

import click

from trioline.client.reach import MAX_UNIX_TIME

_DURATION = re.compile(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?", re.IGNORECASE)
_UNITS = (86_400, 3_600, 60, 1)


class Deadline(click.ParamType):  # type: ignore[type-arg]  # generic in later versions only
    """An instant: Unix time, ISO 8601, or a duration from now; ``none`` for none at all."""

    name = "when"

    def convert(
        self,
        value: Any,  # noqa: ANN401 - as in click
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> float:
        """Give Unix time, or infinity for none."""
        if isinstance(value, float):  # click converts what it has converted
            return value
        found = _instant(str(value).strip())
        if found is None:
            self.fail(
                f"{value!r} is no time: write Unix time, ISO time (2026-01-31T18:00), a duration "
                "from now (2h30m), or none.",
                param,
                ctx,
            )
        if found < time.time():
            self.fail(f"{value!r} is over already: give a time to come.", param, ctx)
        return found


def _instant(text: str) -> float | None:
    if text.lower() == "none":
        return math.inf
    duration = _DURATION.fullmatch(text)
    if text and duration is not None:
        amounts = [int(amount or 0) for amount in duration.groups()]
        left = sum(n * unit for n, unit in zip(amounts, _UNITS, strict=True))
        # Compared as whole numbers: one of any length may be too much for a float.
        return time.time() + left if left <= MAX_UNIX_TIME - time.time() else None
    try:
        seconds = float(text)
    except ValueError:
        return _iso(text)
    return seconds if 0 <= seconds <= MAX_UNIX_TIME else None


def _iso(text: str) -> float | None:
    try:
        return datetime.fromisoformat(text).timestamp()  # without a zone: local time
    except (ValueError, OverflowError, OSError):
        return None
