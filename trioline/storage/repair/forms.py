"""What a line must look like, where nothing but its form can speak for it; and numbers in words."""

from __future__ import annotations

import msgspec

_DECODER = msgspec.json.Decoder()


def is_json(line: bytes) -> bool:
    """Whether a line is a result of a job of JSON lines."""
    try:
        line.decode("utf-8")
        msgspec.json.decode(line)
    except (ValueError, msgspec.MsgspecError, RecursionError):
        return False
    return True


def first_no_json(lines: bytes) -> int | None:
    """The place of the first of some whole lines that is no JSON; None where all are."""
    try:
        lines.decode("utf-8")
        # Blank lines are passed over: then there are fewer.
        if len(_DECODER.decode_lines(lines)) == lines.count(b"\n"):
            return None
    except (ValueError, msgspec.MsgspecError, RecursionError):
        pass
    places = enumerate(lines.split(b"\n")[:-1])
    return next((place for place, line in places if not is_json(line)), None)


def is_text(line: bytes) -> bool:
    """Whether a line is a result of a job of text; zeros are what a lost block reads as."""
    try:
        return "\0" not in line.decode("utf-8")
    except ValueError:
        return False


def counted(count: int, what: str) -> str:
    """So many of something, as in a sentence."""
    return f"{count:,} {what}{'' if count == 1 else 's'}"
