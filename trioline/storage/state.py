"""What a recovery makes of a job's files, and a job begins with."""

from __future__ import annotations

import attrs

from trioline.storage.ahead import AheadIndex
from trioline.storage.answers import Answers
from trioline.storage.checkpoint import Checkpoint, CheckpointFile
from trioline.storage.covering import Checksums
from trioline.storage.journal import Journal
from trioline.storage.source import Source
from trioline.storage.standing import Standing
from trioline.storage.tried import TriedIndex


@attrs.frozen(kw_only=True)
class State:
    """The opened files of a job."""

    checkpoints: CheckpointFile
    last: Checkpoint
    """The newest one."""
    answers: Answers
    journal: Journal
    ahead: AheadIndex
    tried: TriedIndex
    checksums: Checksums
    source: Source
    standing: Standing
    recent: range = range(0)
    """The lines among which are all that were settled behind ``last``."""
    warning: str | None = None
    """What the user should know of the input, or of what was cut."""
