"""What a line must look like, where nothing but its form can speak for it."""

from __future__ import annotations

import msgspec


def is_json(line: bytes) -> bool:
    """Whether a line is a result of a job of JSON lines."""
    try:
        line.decode("utf-8")
        msgspec.json.decode(line)
    except (ValueError, msgspec.MsgspecError, RecursionError):
        return False
    return True


def is_text(line: bytes) -> bool:
    """Whether a line is a result of a job of text; zeros are what a lost block reads as."""
    try:
        return "\0" not in line.decode("utf-8")
    except ValueError:
        return False
