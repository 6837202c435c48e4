"""All benchmarks side by side in one run: ``python tests/bench/run.py --help``, and README.md."""

from __future__ import annotations

import argparse
import json
import resource
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from cells import Cell, all_cells
from flat import flat_table
from inputs import Inputs
from jobs import Place
from lone import Trips
from measure import Failed, Sample
from table import Result, Table

QUICK_SECONDS, FULL_SECONDS = 0.25, 1.0
QUICK_ROUNDS, FULL_ROUNDS = 1, 5


def main(arguments: Sequence[str]) -> None:
    """Do what the command line says."""
    options = parse(arguments)
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    with tempfile.TemporaryDirectory(prefix="trioline-bench-", dir=options.folder) as folder:
        place = Place(Path(folder), Inputs(Path(folder)))
        if options.flat:
            print(flat_table(place, is_quick=options.quick))
            return
        seconds = options.seconds or (QUICK_SECONDS if options.quick else FULL_SECONDS)
        rounds = options.rounds or (QUICK_ROUNDS if options.quick else FULL_ROUNDS)
        cells = all_cells(place, seconds, options.peers_python)
        if options.only:
            cells = [one for one in cells if any(part in one.name for part in options.only)]
            if not cells:
                sys.exit(f"No row/column has {' or '.join(options.only)} in it.")
        table = Table(measure(cells, rounds))
    print(table.as_text())
    if options.json:
        options.json.write_text(json.dumps(table.as_json(), indent=1) + "\n", encoding="utf-8")


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="all of it, but small and once")
    parser.add_argument("--rounds", type=int, help=f"default: {FULL_ROUNDS}")
    parser.add_argument("--seconds", type=float, help=f"about, for a cell; default: {FULL_SECONDS}")
    parser.add_argument(
        "--only",
        action="append",
        metavar="TEXT",
        help="cells whose ROW/COLUMN contains it, as in 'floor' or 'lines form, never/1000'; "
        "ratios need the rows they are to",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything there, too")
    parser.add_argument(
        "--folder", type=Path, help="on the disk to measure; default: for temporary files"
    )
    parser.add_argument(
        "--peers-python", default=sys.executable, metavar="PATH", help="has RQ and Dask"
    )
    parser.add_argument(
        "--flat", action="store_true", help="instead: what must not grow, and starts"
    )
    return parser.parse_args(arguments)


def measure(cells: Sequence[Cell], rounds: int) -> list[Result]:
    """Measure all cells in each round, so that a busy minute hits them all."""
    samples: dict[Cell, list[Sample | Trips]] = {cell: [] for cell in cells}
    problems: dict[Cell, str] = {}
    for turn in range(rounds):
        for cell in cells if turn % 2 == 0 else reversed(cells):
            began_at = time.monotonic()
            try:
                samples[cell].append(cell.measure())
            except Failed as failed:
                problems[cell] = str(failed)
            took = time.monotonic() - began_at
            print(f"{turn + 1}/{rounds} {cell.name} {took:.1f} s", file=sys.stderr)
    return [
        Result(
            row=cell.row,
            column=cell.column,
            floor=cell.floor,
            samples=[one for one in samples[cell] if isinstance(one, Sample)],
            trips=[one for one in samples[cell] if isinstance(one, Trips)],
            problem=problems.get(cell),
        )
        for cell in cells
    ]


if __name__ == "__main__":
    main(sys.argv[1:])
