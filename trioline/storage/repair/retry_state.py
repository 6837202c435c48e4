"""What becomes of a retry of the job's rejected lines that is under way while it is repaired.

Nothing of it is touched. It goes by the numbers of its lines and by their text: where these are
still the rejected ones when the job is over again, its results have their places.
"""

from __future__ import annotations

import contextlib

from trioline.config import JobSettings
from trioline.storage.files import Disk
from trioline.storage.numbers import Numbers
from trioline.storage.repair.forms import counted
from trioline.storage.repair.ranges import Ranges
from trioline.storage.retry_files import RetryFiles, is_under_way


def retry_step(
    disk: Disk, settings: JobSettings, kept: Ranges, *, is_same: bool, has_new_id: bool
) -> str | None:
    """What a plan says of it; None where no retry is under way.

    Args:
        kept: The lines that are not computed again.
        is_same: Whether the job is over then, and the same lines are rejected.
        has_new_id: Whether nothing says any more which job it was.
    """
    files = RetryFiles(settings)
    if not is_under_way(disk, files):
        return None
    if has_new_id:
        return (
            f"leave {files.folder} as it is: it has a retry that was under way, and its results are"
            " lost with the id of the job"
        )
    step = f"keep the retry under way in {files.folder}:"
    if is_same:
        return f"{step} the same `trioline retry` goes on with it"
    count, total = _open_lines(disk, files, kept)
    again = "are" if count > 1 else "is"
    first = f" ({count:,} of its {counted(total, 'line')} {again} computed again first)"
    return (
        f"{step} once the job is over again, the same `trioline retry` goes on with its results if"
        f" the same lines are rejected then{first if count else ''}, else it says that they are"
        " lost"
    )


def _open_lines(disk: Disk, files: RetryFiles, kept: Ranges) -> tuple[int, int]:
    """How many of its lines are computed again; and all of them."""
    if disk.stat(files.numbers) is None:
        return 0, 0
    with contextlib.closing(Numbers(disk, files.numbers)) as numbers:
        return sum(number not in kept for number in numbers), len(numbers)
