"""Its being here puts this folder on the import path: helpers are imported by their names."""

from __future__ import annotations

from pathlib import Path

import pytest
from storage_helpers import settings_for

from trioline.config import Fsync, JobSettings
from trioline.storage import run as run_file

CRASH_SEEDS = 10_000
KILLS = 20
DISK_TRIALS = 12
SEEDS_PER_TEST = 500


def pytest_addoption(parser: pytest.Parser) -> None:
    """Options for more, or for one, of what is drawn at random."""
    parser.addoption(
        "--crash-seeds",
        type=int,
        default=CRASH_SEEDS,
        metavar="N",
        help=f"Trials of the crash simulator (default: {CRASH_SEEDS}; a thorough run: 1000000).",
    )
    parser.addoption(
        "--big",
        action="store_true",
        help="Bounds at their full size (millions of lines); damage of every kind at every byte.",
    )
    parser.addoption(
        "--crash-seed", type=int, metavar="SEED", help="Only this trial of the crash simulator."
    )
    parser.addoption(
        "--kills",
        type=int,
        default=KILLS,
        metavar="N",
        help=f"Kills of a real server (default: {KILLS}; a thorough run: 200).",
    )
    parser.addoption(
        "--disk-trials",
        type=int,
        default=DISK_TRIALS,
        metavar="N",
        help="Kills at a system call for each fsync policy, and a twelfth as many power cuts"
        f" (default: {DISK_TRIALS}; a thorough run: 200).",
    )


@pytest.fixture
def is_big(request: pytest.FixtureRequest) -> bool:
    """Whether ``--big`` was given."""
    return bool(request.config.getoption("--big"))


@pytest.fixture
def disk_trials(request: pytest.FixtureRequest) -> int:
    """How much to try on real disks."""
    count: int = request.config.getoption("--disk-trials")
    return count


@pytest.fixture(params=Fsync)
def settings(request: pytest.FixtureRequest) -> JobSettings:
    """Of a job in memory, with each fsync policy."""
    return settings_for(Path("/d"), fsync=request.param)


@pytest.fixture
def small_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """A start hashes the first and the last MiB of an input: here all the rest is to be small."""
    monkeypatch.setattr(run_file, "_HASHED_BYTES", 16)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Cut the simulator's seeds into tests of some hundred."""
    if "crash_seeds" not in metafunc.fixturenames:
        return
    one, count = (metafunc.config.getoption(name) for name in ("--crash-seed", "--crash-seeds"))
    if one is not None:
        blocks = [range(one, one + 1)]
    else:
        begins = range(0, count, SEEDS_PER_TEST)
        blocks = [range(begin, min(begin + SEEDS_PER_TEST, count)) for begin in begins]
    ids = [f"{block.start}-{block.stop - 1}" for block in blocks]
    metafunc.parametrize("crash_seeds", blocks, ids=ids)
