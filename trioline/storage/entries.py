"""What a commit is made of, as the server hands it over."""

from __future__ import annotations

import attrs


@attrs.define
class Results:
    """The results of some lines in a row.

    Nobody changes one: it is not frozen, as that takes four times as long, in every batch.
    """

    first: int
    """Number of the first line."""
    count: int
    """Lines, at least one."""
    data: bytes
    """Their results, each ended by ``b"\\n"``."""


@attrs.frozen
class Rejection:
    """One line that was given up."""

    line: int
    record: bytes
    """As ``encode_record`` makes it, with its newline."""

    @property
    def first(self) -> int:
        """Its line, as ``Results`` names it."""
        return self.line


@attrs.frozen
class Tried:
    """What was tried with some lines in a row that are not settled: kept for the next start."""

    first: int
    """Number of the first line."""
    count: int
    """Lines, at least one."""
    history: bytes
    """All of it, in place of what was kept before; opaque here."""


Entry = Results | Rejection | Tried
