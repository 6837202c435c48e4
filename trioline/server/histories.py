"""What was tried with a line, as it is remembered in the job's files."""

from __future__ import annotations

import attrs
import msgspec

from trioline.ledger import History, Tried
from trioline.storage.job import Tried as TriedEntry

_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(History)


def remember(tried: Tried) -> TriedEntry:
    """Make the entry for lines whose history has changed."""
    data = _encoder.encode(attrs.asdict(tried.history, recurse=False))
    return TriedEntry(tried.lines.start, len(tried.lines), data)


def recall(lines: range, data: bytes) -> Tried:
    """Read an entry back.

    Raises:
        msgspec.MsgspecError: It is none; a crc has vouched for it, so a later version wrote it.
    """
    return Tried(lines, _decoder.decode(data))
