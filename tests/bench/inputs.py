"""Input files: lines of JSON, all of one length, so that a short file is the head of a long one."""

from __future__ import annotations

import filecmp
from pathlib import Path

from measure import Failed

LINE_BYTES = 190
WIDE_LINE_BYTES = 20_000
PIECE_LINES = 10_000


class Inputs:
    """Makes input files when they are first asked for.

    Args:
        folder: Where.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def file(self, count: int, line_bytes: int = LINE_BYTES) -> Path:
        """A file of so many lines."""
        path = self._folder / f"input-{count}x{line_bytes}"
        if not path.exists():
            with path.open("wb") as stream:
                for first in range(0, count, PIECE_LINES):
                    last = min(first + PIECE_LINES, count)
                    stream.write(b"".join(line(n, line_bytes) for n in range(first, last)))
        return path


def line(number: int, line_bytes: int = LINE_BYTES) -> bytes:
    """The line of that number, with its newline."""
    return (b'{"prompt":"%d ' % number).ljust(line_bytes - 3, b".") + b'"}\n'


def check_same(source: Path, output: Path) -> None:
    """Hold an output of workers that give back what they got against its input.

    Raises:
        Failed: They differ: the figure would be worth nothing.
    """
    if not filecmp.cmp(source, output, shallow=False):
        raise Failed(f"{output.name} is not what {source.name} is")
