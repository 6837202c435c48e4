"""What a verification says: sentences, each with its place."""

from __future__ import annotations

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
    unsummed_lines: int = 0
    """Lines without checksums: only their number, and the output's JSON, could be looked at."""
    findings: list[Finding] = attrs.Factory(list)
    """The first ones."""
    finding_count: int = 0

    @property
    def holds(self) -> bool:
        """Whether all is as it should be."""
        return not self.finding_count

    def add(self, finding: Finding) -> None:
        """Take a finding up."""
        self.finding_count += 1
        if len(self.findings) < MAX_FINDINGS:
            self.findings.append(finding)
