"""Is the input still what was answered, where the output has no answers yet?

The journal knows what most of it was: that is held against it, exactly. Of what was answered since
the last durable point it does not; that is believed as long as nobody can have changed the input.
"""

from __future__ import annotations

import shlex
from pathlib import Path

import attrs

from trioline.errors import StorageError
from trioline.storage.checkpoint import Checkpoint
from trioline.storage.checksums import BLOCK_LINES
from trioline.storage.source import Source
from trioline.storage.state import State
from trioline.storage.system import Stat


def check_input(state: State) -> None:
    """Hold the input against what the journal has of it, after the replay.

    Raises:
        StorageError: It is another one where lines are answered that only the journal knows of.
    """
    written, ahead, source = state.answers.written_count, state.ahead, state.source

    def is_answered(lines: range) -> bool:
        begin = max(lines.start, state.last.line_count)  # those before it have their own sums
        return begin < min(written, lines.stop) or any(line in ahead for line in lines)

    wrong = state.checksums.ahead.check(state.last, is_answered)
    if not wrong:
        return
    first, output = wrong[0] * BLOCK_LINES, state.answers.output.path
    line = max(first, state.last.line_count)
    more = f", nor are {len(wrong) - 1:,} later blocks of {BLOCK_LINES} lines" if wrong[1:] else ""
    raise StorageError(
        f"{source.path}: lines {first:,} to {first + BLOCK_LINES - 1:,} (line {line:,} begins at"
        f" byte {offset_of(source, line, output):,}) are not as they were when some of them were"
        f" answered{more}. Put the input back as it was, then start the same command again; or see"
        f" what `trioline repair {shlex.quote(str(output))}` can save: it has such lines answered"
        " again.",
        source.path,
    )


def doubt(state: State) -> State:
    """Before the checkpoint of a new epoch: is the input as the last server saw it?

    Returns:
        The state with the lines that nothing proves, and with a warning.
    """
    last, given = state.last, state.source.stat
    settled = state.answers.written_count, state.ahead.end
    first = max(last.line_count, state.checksums.ahead.proved_end)
    # What was recorded of a block says nothing of lines of it that were answered later: the input
    # may have been another one then, and be put back.
    recent = range(max(last.line_count, state.recent.start), state.recent.stop)
    is_doubtful = is_touched(last, given)
    doubted = hull([range(first, max(settled)), recent]) if is_doubtful else range(0)
    if doubted:
        last = last.doubting(doubted)
    is_told = doubted or (_is_written(last, given) and any(settled))
    warning = _warning(state, doubted) if is_told else None
    return attrs.evolve(state, last=last, warning=warning)


def is_touched(last: Checkpoint, given: Stat) -> bool:
    """Whether anybody may have changed the input since the last server opened it."""
    return _is_written(last, given) or last.input_ctime_ns not in (0, given.ctime_ns)


def _is_written(last: Checkpoint, given: Stat) -> bool:
    return last.input_mtime_ns not in (0, given.mtime_ns)


def hull(parts: list[range]) -> range:
    """The fewest lines in a row that have all of some lines among them."""
    parts = [part for part in parts if part]
    if not parts:
        return range(0)
    return range(min(part.start for part in parts), max(part.stop for part in parts))


def _warning(state: State, doubted: range) -> str:
    count = state.answers.written_count + state.ahead.count
    name, more = shlex.quote(str(state.answers.output.path)), ""
    if doubted:
        more = (
            f" Of lines {doubted.start:,} to {doubted.stop - 1:,} nothing recorded what they were:"
            " it calls them not proved, until they are computed again by"
            f" `trioline repair {name} --recompute-unproved`."
        )
    return (
        f"{state.source.path} was written to, touched, moved or copied, or its mode, owner or links"
        f" were changed, since the last server opened it: the {count:,} lines that were answered"
        f" before may answer another text; `trioline verify` says whether they do.{more} If the"
        " input is as it was, all is well; if not, put it back, or see what `trioline repair"
        f" {name}` has answered again."
    )


def offset_of(source: Source, line: int, state: Path) -> int:
    """The byte at which a line of the input begins.

    Raises:
        StorageError: There is no such line, though it was answered.
    """
    try:
        return source.offset_of(line)
    except ValueError as error:
        raise StorageError(
            f"{state} holds results for {line} lines, but the input {source.path} has only"
            f" {source.known_count}. Nothing is lost: put the input back as it was.",
            source.path,
        ) from error
