"""The blocking client in a plain loop: ``python tests/bench/blocking_worker.py HOST:PORT``."""

from __future__ import annotations

import sys

import trioline

BATCH = 100


def main(address: str) -> None:
    """Give back every line."""
    with trioline.Client(address, batch=BATCH) as client:
        for item in client:
            client.done(item, trioline.Raw(item.raw))


if __name__ == "__main__":
    main(*sys.argv[1:])
