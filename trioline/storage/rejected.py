"""The record of a line that was given up: one JSON object on a line of its own."""

from __future__ import annotations

import base64
from collections.abc import Sequence

import msgspec


def encode_record(
    line: int, content: bytes | int, *, attempts: int, losses: int, errors: Sequence[str]
) -> bytes:
    """Encode what is to be known of a rejected line.

    Args:
        line: Its number, from 0.
        content: The input line without newline; or, for one that is too long to be handed out, its
            length in bytes.
        attempts: How often it failed or ran out of time.
        losses: How often its worker was lost.
        errors: What was said of it, oldest first.

    Returns:
        The object ``{"id", "line" | "base64" | "bytes", "attempts", "losses", "errors"}`` and a
        newline.
    """
    record: dict[str, object] = {"id": line}
    if isinstance(content, int):
        record["bytes"] = content
    else:
        record |= _content(content)
    record |= {
        "attempts": attempts,
        "losses": losses,
        # A lone surrogate has no UTF-8.
        "errors": [text.encode("utf-8", "replace").decode() for text in errors],
    }
    return msgspec.json.encode(record) + b"\n"


def _content(content: bytes) -> dict[str, object]:
    try:
        return {"line": content.decode("utf-8")}
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(content).decode("ascii")}
