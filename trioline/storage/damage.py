"""What is said of files that are not what was written, and what helps then.

A damaged file is never reset, guessed at or cut by a start: it is left as it is, and the sentence
names the file, the byte where there is one, and the ways out, the kindest first.
"""

from __future__ import annotations

import shlex
from pathlib import Path

from trioline.errors import StorageError

STATE_SUFFIX = ".trioline"
RETRY_FOLDER = "retry"
"""In a job's state: what a retry needs, which can always be done without."""
RETRY_RESULTS = "results"


def output_of(state: Path) -> Path:
    """The output that a state folder belongs to."""
    return state.with_name(state.name.removesuffix(STATE_SUFFIX))


def way_out(output: Path, *, is_known: bool = True) -> str:
    """What to do about damage.

    Args:
        is_known: Whether ``run.json`` says whose files these are: else --fresh refuses, too.
    """
    if output.name == RETRY_RESULTS and output.parent.name == RETRY_FOLDER:
        return (
            "It was left as it is. Put it back from a copy, or see what `trioline repair"
            f" {shlex.quote(str(output))}` can save. The last resort is to remove {output.parent}:"
            " then the same command runs all rejected lines anew."
        )
    last = (
        "--fresh, which throws the old answers away"
        if is_known
        else f"to move {output} and {output.name}{STATE_SUFFIX} away and begin anew"
    )
    return (
        "It was left as it is. Put it back from a copy, or see what"
        f" `trioline repair {shlex.quote(str(output))}` can save. The last resort is {last}."
    )


def damaged(path: Path, what: str, output: Path, *, is_known: bool = True) -> StorageError:
    """The error for damage.

    Args:
        path: The damaged file.
        what: What is wrong with it, as a predicate: "is missing".
        output: Of the job.
        is_known: As in ``way_out``.
    """
    return StorageError(f"{path} {what}. {way_out(output, is_known=is_known)}", path)


def changed_behind(path: Path, what: str) -> StorageError:
    """The error for a change behind what was safe, which a start undoes: it knows what was there.

    Args:
        path: The changed file.
        what: As in ``damaged``.
    """
    return StorageError(
        f"{path} {what}. Start the same command again: it takes the true answers from the journal,"
        " or has them computed again. `trioline verify` says whether anything else was changed.",
        path,
    )


class NewerFormat(StorageError):
    """A later version of trioline wrote it: there is nothing to mend, and nothing to guess."""


def newer(path: Path, what: str) -> NewerFormat:
    """The error for what a later version of trioline wrote."""
    return NewerFormat(
        f"{path} {what}. Nothing was touched. Use the version of trioline that wrote it.", path
    )
