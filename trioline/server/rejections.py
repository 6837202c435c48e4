"""Full records of the lines that were given up, made from the input when they are written."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from trioline.config import MAX_LEASE_BYTES
from trioline.ledger import Rejected
from trioline.storage.job import Job, Rejection
from trioline.storage.rejected import encode_record
from trioline.storage.source import InputLineTooLong


def rejections(job: Job, rejected: Rejected) -> Iterator[Rejection]:
    """Make the full records of rejected lines."""
    past = rejected.history
    line = rejected.lines.start
    while line < rejected.lines.stop:
        try:
            lines = job.source.read(line, rejected.lines.stop - line, MAX_LEASE_BYTES)
            raws: Sequence[bytes | int] = lines.split()
        except InputLineTooLong as too_long:
            raws = (too_long.length,)
        for raw in raws:
            record = encode_record(
                job.number_of(line),
                raw,
                attempts=past.attempts,
                losses=past.losses,
                errors=past.errors,
            )
            yield Rejection(line, record)
            line += 1
