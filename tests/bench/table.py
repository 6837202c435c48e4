"""From samples to medians and ratios, as a table and as JSON."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Mapping, Sequence
from typing import Any

import attrs
from lone import Trips
from measure import Sample

COLUMNS = ("1", "10", "100", "1000", "10000", "own")
FLOOR, FLOOR_CHECK, FLOOR_SYNC = ("floor", "floor that checks", "floor, a sync a commit")
BARE_TRIO, BARE_TRIO_SYNC = ("bare trio server", "bare trio server, a sync a commit")
FLOOR_CROWD, FLOOR_CROWD_SYNC, BARE_CROWD, BARE_CROWD_SYNC = (
    "floor, 64 connections",
    "floor, 64 connections, a sync a commit",
    "bare trio server, 64 connections",
    "bare trio server, 64 connections, a sync a commit",
)
FLOOR_WIDE = "floor, 20 kB lines"
PEERS = {"Redis": "Redis lists", "beanstalkd": "beanstalkd", "parallel": "GNU parallel"}
"""What to compare with, and the row it is in."""
WIDE_PEERS = {"Redis": "Redis lists, 20 kB lines"}


@attrs.frozen(kw_only=True)
class Result:
    """A cell after all rounds."""

    row: str
    column: str
    floor: str | None
    """The row that it is measured against."""
    samples: Sequence[Sample] = ()
    trips: Sequence[Trips] = ()
    problem: str | None = None
    """Why there is nothing, or not all."""

    @property
    def speed(self) -> float | None:
        """The median of lines a second."""
        return _median([sample.speed for sample in self.samples])

    @property
    def spread(self) -> float | None:
        """From the slowest to the fastest round, as a share of the median; None of one round."""
        speeds = [sample.speed for sample in self.samples]
        if len(speeds) < 2:
            return None
        return (max(speeds) - min(speeds)) / statistics.median(speeds)

    @property
    def server_seconds_per_million(self) -> float | None:
        """The median of the server's processor time for a million lines."""
        return _median([sample.server_seconds_per_million for sample in self.samples])

    @property
    def server_bytes(self) -> float | None:
        """The most memory that the server ever had resident, in any round."""
        known = [one.server_bytes for one in self.samples if one.server_bytes is not None]
        return max(known, default=None)


def _median(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


class Table:
    """All results of a run."""

    def __init__(self, results: Sequence[Result]) -> None:
        self._results = results
        self._speeds = {(one.row, one.column): one.speed for one in results}
        self._costs = {(one.row, one.column): one.server_seconds_per_million for one in results}

    def as_json(self) -> dict[str, Any]:
        """Everything, for programs."""
        return {
            "machine": machine(),
            "cells": [self._cell(result) for result in self._results],
        }

    def _cell(self, result: Result) -> dict[str, Any]:
        return {
            "row": result.row,
            "column": result.column,
            "lines_per_second": result.speed,
            "spread": result.spread,
            "of_floor": self.of_floor(result),
            "server_seconds_of_floor": self.cost_of_floor(result),
            "times_peers": self.times_peers(result),
            "server_seconds_per_million_lines": result.server_seconds_per_million,
            "server_bytes": result.server_bytes,
            "p50_ms": _median([one.p50_ms for one in result.trips]),
            "p99_ms": _median([one.p99_ms for one in result.trips]),
            "problem": result.problem,
            "rounds": [*map(attrs.asdict, result.samples), *map(attrs.asdict, result.trips)],
        }

    def of_floor(self, result: Result) -> float | None:
        """The speed as a share of the floor's."""
        return self._ratio(result, result.floor)

    def cost_of_floor(self, result: Result) -> float | None:
        """The server's processor time a line, as a multiple of the floor's."""
        cost = result.server_seconds_per_million
        floor = self._costs.get((result.floor or "", result.column))
        return cost / floor if cost and floor else None

    def times_peers(self, result: Result) -> dict[str, float | None]:
        """The speed as a multiple of the peers'."""
        peers = WIDE_PEERS if "20 kB" in result.row else PEERS
        return {name: self._ratio(result, row) for name, row in peers.items()}

    def _ratio(self, result: Result, row: str | None) -> float | None:
        other = self._speeds.get((row or "", result.column))
        return result.speed / other if result.speed and other and result.row != row else None

    # --- text ------------------------------------------------------------------------------------

    def as_text(self) -> str:
        """The table, for people."""
        parts = [machine_text(), self._overview(), self._details()]
        if trips := [one for one in self._results if one.trips or "round trip" in one.row]:
            parts.append(_trips(trips))
        return "\n\n".join(parts) + "\n"

    def _overview(self) -> str:
        rows: dict[str, dict[str, str]] = {}
        for one in self._results:
            if one.speed or (one.problem and "round trip" not in one.row):
                shown = number(one.speed) if one.speed else "-"
                rows.setdefault(one.row, {})[one.column] = shown
        lines = [["lines/s at lines a batch", *COLUMNS]]
        lines += [[row, *(cells.get(c, "") for c in COLUMNS)] for row, cells in rows.items()]
        return markdown(lines)

    def _details(self) -> str:
        peers = [f"x {peer}" for peer in PEERS]
        head = ["", "batch", "lines/s", "spread", "of floor", *peers]
        lines = [[*head, "server s/M lines", "x floor", "peak MB"]]
        for one in self._results:
            if one.trips or "round trip" in one.row:
                continue
            multiples = self.times_peers(one)
            cost = one.server_seconds_per_million
            lines.append([one.row, one.column, number(one.speed), share(one.spread)])
            lines[-1] += [ratio(self.of_floor(one)), *(ratio(multiples.get(p)) for p in PEERS)]
            lines[-1] += [ratio(cost), ratio(self.cost_of_floor(one)), megabytes(one.server_bytes)]
            if one.problem:
                lines[-1][2] += f" ({one.problem})"
        return markdown(lines)


def _trips(results: Sequence[Result]) -> str:
    lines = [["one line's round trip", "p50 ms", "p99 ms"]]
    for one in results:
        p50, p99 = (
            _median([getattr(trips, name) for trips in one.trips]) for name in ("p50_ms", "p99_ms")
        )
        name = f"{one.row} ({one.problem})" if one.problem else one.row
        lines.append([name, *(f"{ms:.2f}" if ms else "-" for ms in (p50, p99))])
    return markdown(lines)


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """Lay rows out; the first one is the head."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    laid = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"
        for row in rows
    ]
    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return "\n".join([laid[0], rule, *laid[1:]])


def number(value: float | None) -> str:
    """Three digits that count, and groups of three."""
    return "-" if value is None else f"{float(f'{value:.3g}'):,.0f}"


def ratio(value: float | None) -> str:
    """Two digits behind the point, fewer for large ones."""
    if value is None:
        return "-"
    return f"{value:.2f}" if value < 10 else f"{value:.0f}"


def share(value: float | None) -> str:
    """In percent."""
    return "-" if value is None else f"{value:.0%}"


def megabytes(value: float | None) -> str:
    """Whole ones."""
    return "-" if value is None else f"{value / 1e6:.0f}"


def machine() -> Mapping[str, object]:
    """What this was measured on, and how busy it is now."""
    return {
        "cores": os.cpu_count(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "load": [round(load, 1) for load in os.getloadavg()],
        "at": time.strftime("%Y-%m-%d %H:%M"),
    }


def machine_text() -> str:
    """The same as one line."""
    return ", ".join(f"{name} {value}" for name, value in machine().items())
