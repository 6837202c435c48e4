"""What a job's options were, where ``run.json`` is lost: its files know more than who asks.

A line of the output that has a record in the rejected file is the placeholder, and a line that is
no JSON is one of a job of text. Lines that a checksum proves are believed in any case, others only
where all of them say the same, as damage may have made them what they are.
"""

from __future__ import annotations

import contextlib
import functools
import os
import shlex
from collections.abc import Iterable, Iterator
from pathlib import Path

import attrs

from trioline.config import JobSettings, default_rejected
from trioline.errors import UsageError
from trioline.newlines import count_newlines
from trioline.storage.checkpoint import Checkpoint
from trioline.storage.checksums import (
    BLOCK_LINES,
    CHECKSUMS_NAME,
    ENTRY_BYTES,
    Proof,
    Table,
    crc_of,
)
from trioline.storage.claims import are_same, claim_path, is_mark
from trioline.storage.files import Disk, File
from trioline.storage.repair.forms import counted, first_no_json, is_json
from trioline.storage.repair.line_file import LineFile
from trioline.storage.repair.records import good_records
from trioline.storage.repair.sums import Sums
from trioline.storage.repair.walk import Run, Walk

_SHOWN_BYTES = 60
"""Of a line, in a sentence."""


@attrs.frozen(kw_only=True)
class Options:
    """What must not change while a job goes on, besides its files."""

    text: bool
    placeholder: bytes
    is_placeholder_known: bool
    """Whether a record tells it, or no line of the job was rejected; if not, it was said, or is
    what it is by default."""

    def __str__(self) -> str:
        text = "--text " if self.text else ""
        return f"{text}--placeholder {_quoted(self.placeholder)}"


@attrs.frozen(kw_only=True)
class Spot:
    """A line of the output that says what the job was."""

    path: Path
    line: int
    byte: int
    content: bytes

    def __str__(self) -> str:
        shown = self.content[:_SHOWN_BYTES].decode(errors="replace")
        more = "…" if len(self.content) > _SHOWN_BYTES else ""
        return f"line {self.line:,} of {self.path} (byte {self.byte:,}) is {shown!r}{more}"


def find_options(
    disk: Disk,
    settings: JobSettings,
    last: Checkpoint | None,
    *,
    text: bool | None,
    placeholder: bytes | None,
    is_rejected_given: bool,
) -> Options:
    """Find out what the options were, and hold against it what is given; None: it is not.

    Args:
        settings: Of these only the paths count.
        is_rejected_given: Whether the user named the rejected file.

    Raises:
        UsageError: The files say otherwise, or leave it open; it says where.
    """
    _check_rejected(disk, settings, last)
    if disk.stat(settings.output) is None:
        return _options(text, placeholder, last)
    with disk.open(settings.output, os.O_RDONLY) as file:
        look = _Look(disk, settings, file, last)
        is_text = _text(look, text)
        found = look.placeholder()
        if found is None:
            options = _options(is_text, placeholder, last)
            if last is not None and not options.is_placeholder_known:
                is_said = placeholder is not None
                _check_recorded(disk, settings, last, is_told=is_said or is_rejected_given)
                _check_count(look, settings, last, options.placeholder, is_said=is_said)
            return options
    if placeholder not in (None, found.content):
        raise UsageError(
            f"--placeholder {_quoted(placeholder)} is not this job's: {found}, and"
            f" {settings.rejected} has a record of that line. Leave the option out, or say"
            f" --placeholder {_quoted(found.content)}."
        )
    options = _options(is_text, found.content, last)
    return attrs.evolve(options, is_placeholder_known=True)


def _options(text: bool | None, placeholder: bytes | None, last: Checkpoint | None) -> Options:
    if placeholder is None:
        placeholder = b"" if text else b"null"
    if not text and not is_json(placeholder):
        raise UsageError(
            f"--placeholder {_quoted(placeholder)} is no JSON, and nothing says that the job was"
            " one of text: say --text if it was."
        )
    is_needless = last is not None and not last.rejected_count
    return Options(text=bool(text), placeholder=placeholder, is_placeholder_known=is_needless)


def _check_recorded(disk: Disk, settings: JobSettings, last: Checkpoint, *, is_told: bool) -> None:
    """Refuse to guess what only the user can know, where lines were rejected."""
    if _is_vouched(disk, settings.rejected, last):
        raise UsageError(
            f"{settings.input} is not the input of this job: none of its lines is what a record in"
            f" {settings.rejected} says. Name the one that it had with --input."
        )
    if not is_told:
        raise UsageError(
            f"{counted(last.rejected_count, 'line')} of this job were rejected, and"
            f" {settings.rejected} has no record that tells which: name the file that the job had"
            " with --rejected, or, where it is lost, say with --placeholder what stands in"
            f" {settings.output} in their places."
        )


def _check_count(
    look: _Look, settings: JobSettings, last: Checkpoint, placeholder: bytes, *, is_said: bool
) -> None:
    """Refuse a placeholder that the output does not have as often as lines were rejected.

    Lines that are lost may have been any.
    """
    found = look.count(placeholder)
    lost_count = last.line_count - sum(run.count for run in look.proved)
    if found + lost_count < last.rejected_count or not (found or is_said):
        raise UsageError(
            f"{counted(last.rejected_count, 'line')} of this job were rejected, but --placeholder"
            f" {_quoted(placeholder)} is in {found:,} places of {settings.output}: say with"
            " --placeholder what stands there, or with --rejected which file has the records."
        )


def _quoted(placeholder: bytes | None) -> str:
    return shlex.quote((placeholder or b"").decode(errors="replace"))


def _text(look: _Look, text: bool | None) -> bool:
    """Whether it is a job of text; what is given counts where no proved line says otherwise."""
    if text:
        return True
    spot = look.no_json(look.proved)
    if spot is not None and text is None:
        return True
    if spot is not None:
        raise UsageError(f"The job was one of text: {spot}, which is no JSON. Leave --no-text out.")
    if text is None and not look.proved and (spot := look.no_json(look.all)) is not None:
        raise UsageError(
            f"{spot}, which is no JSON, and no checksum tells whether it was: say --text if the"
            " job had that option, or --no-text if it had not and the line is damaged."
        )
    return False


def _check_rejected(disk: Disk, settings: JobSettings, last: Checkpoint | None) -> None:
    """Refuse a rejected file of somebody else, or one that is not the one with the records."""
    path, usual = settings.rejected, default_rejected(settings.output)
    if is_mark(disk, claim_path(path)) or are_same(disk, path, usual):
        return  # with a mark it is this job's: else it had been refused
    if _is_vouched(disk, path, last):
        return
    if disk.size(path) and not _has_record(disk, settings):
        raise UsageError(
            f"{path}, given for --rejected, has no record of a line of {settings.input} from"
            " byte 0 on: name the file that the job had."
        )
    if is_mark(disk, claim_path(usual)):
        return  # another job's, by that
    is_only = not disk.size(path) and _has_record(disk, attrs.evolve(settings, rejected=usual))
    if is_only or _is_vouched(disk, usual, last):
        raise UsageError(
            f"{path}, given for --rejected, is not this job's: {usual} has its records. Leave the"
            " option out."
        )


def _is_vouched(disk: Disk, path: Path, last: Checkpoint | None) -> bool:
    """Whether the checkpoint vouches for the records of a file."""
    if last is None or not last.rejected_bytes or not disk.size(path):
        return False
    with disk.open(path, os.O_RDONLY) as file:
        return crc_of(file.read, 0, last.rejected_bytes) == last.rejected_crc


def _has_record(disk: Disk, settings: JobSettings) -> bool:
    with contextlib.closing(good_records(disk, settings)) as records:
        return next(records, None) is not None


class _Look:
    """Looks for lines that tell."""

    def __init__(
        self, disk: Disk, settings: JobSettings, file: File, last: Checkpoint | None
    ) -> None:
        self._disk = disk
        self._settings = settings
        self._lines = LineFile(file)
        self.proved = _proved(disk, settings, file, last)

    @functools.cached_property
    def all(self) -> list[Run]:
        """All whole lines, in one run."""
        whole = self._lines.block(0, 1 << 62)
        return [Run(0, whole.count, 0, whole.length)]

    def no_json(self, runs: Iterable[Run]) -> Spot | None:
        """The first line that is no JSON."""
        for first, byte, piece in self._pieces(runs):
            place = first_no_json(piece)
            if place is not None:
                return self._spot(piece, first, byte, first + place)
        return None

    def placeholder(self) -> Spot | None:
        """The first line that is the placeholder, where a record tells so."""
        spots = list(self._recorded(self.proved)) or list(self._recorded(self.all))
        return spots[0] if len(spots) == 1 else None

    def count(self, content: bytes) -> int:
        """How many of the proved lines are this."""
        return sum(
            piece.split(b"\n")[:-1].count(content) for _, _, piece in self._pieces(self.proved)
        )

    def _recorded(self, runs: Iterable[Run]) -> Iterator[Spot]:
        """The first line of each content that a record says to be the placeholder."""
        contents: set[bytes] = set()
        with contextlib.closing(good_records(self._disk, self._settings)) as records:
            line = next(records, None)
            for first, byte, piece in self._pieces(runs):
                end = first + count_newlines(piece)
                while line is not None and line.line < end:
                    if line.line >= first:
                        spot = self._spot(piece, first, byte, line.line)
                        if spot.content not in contents:
                            contents.add(spot.content)
                            yield spot
                    line = next(records, None)

    def _pieces(self, runs: Iterable[Run]) -> Iterator[tuple[int, int, bytes]]:
        for run in runs:
            first, byte = run.first, run.offset
            for piece in self._lines.pieces(byte, byte + run.length):
                yield first, byte, piece
                first += count_newlines(piece)
                byte += len(piece)

    def _spot(self, piece: bytes, first: int, byte: int, line: int) -> Spot:
        *before, content = piece.split(b"\n", line - first + 1)[: line - first + 1]
        byte += sum(len(other) + 1 for other in before)
        return Spot(path=self._settings.output, line=line, byte=byte, content=content)


def _proved(disk: Disk, settings: JobSettings, file: File, last: Checkpoint | None) -> list[Run]:
    """The lines that a checksum proves, whatever they are."""
    if last is not None and Proof.of_output(last).holds(file.read):
        return [Run(0, last.line_count, 0, last.output_bytes)] if last.line_count else []
    path = settings.state / CHECKSUMS_NAME
    with contextlib.ExitStack() as opened:
        table = Table.open(disk, path)
        if table is None:
            return []
        opened.callback(table.close)
        end = disk.size(path) // ENTRY_BYTES * BLOCK_LINES if last is None else last.line_count
        size = file.size()
        walk = Walk(
            LineFile(file),
            Sums(table, last, end),
            size=size,
            end_byte=size if last is None else last.output_bytes,
            is_valid=lambda _: False,
        )
        return list(walk.runs())
