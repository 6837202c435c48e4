"""What a verification says: sentences, each with its place."""

from __future__ import annotations

from typing import Generic, TypeVar

import attrs

MAX_FINDINGS = 20
"""Told one by one; the others are counted."""


@attrs.frozen(kw_only=True)
class Finding:
    """Something that is not as it should be."""

    path: str
    text: str
    """A sentence with all of it."""
    line: int | None = None
    """The first line concerned."""
    last_line: int | None = None
    byte: int | None = None
    """Where it is, or where its block begins."""
    is_damage: bool = True
    """Whether a file is other than it was; if not, that is only not proved."""


T = TypeVar("T")


class Few(Generic[T]):
    """The first of many, and how many there are."""

    def __init__(self) -> None:
        self.first: list[T] = []
        self.count = 0

    def add(self, one: T) -> None:
        """Take one up."""
        self.count += 1
        if len(self.first) < MAX_FINDINGS:
            self.first.append(one)


@attrs.define(kw_only=True)
class Report:
    """What a verification has found."""

    is_finished: bool
    """Whether the job is over; if not, only what is written was looked at."""
    line_count: int
    """Lines that the job has written."""
    rejected_count: int
    input_lines: int = 0
    """Found in the part of the input that they answer."""
    output_lines: int = 0
    is_proved: bool = False
    """Whether input and output are, as a whole, what was read and written."""
    findings: list[Finding] = attrs.Factory(list)
    """The first ones."""
    finding_count: int = 0

    @property
    def holds(self) -> bool:
        """Whether all is proved, and nothing is to be said against it."""
        return self.is_proved and not self.finding_count

    def add(self, finding: Finding) -> None:
        """Take a finding up."""
        self.finding_count += 1
        if len(self.findings) < MAX_FINDINGS:
            self.findings.append(finding)

    def add_many(self, few: Few[Finding]) -> None:
        """Take up many of one kind."""
        for finding in few.first:
            self.add(finding)
        self.finding_count += few.count - len(few.first)

    def add_cause(self, finding: Finding) -> None:
        """Take up what the others follow from, before them."""
        self.finding_count += 1
        self.findings = [finding, *self.findings][:MAX_FINDINGS]
