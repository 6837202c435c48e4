"""The record of a line that was given up: one JSON object on a line of its own."""

from __future__ import annotations

import base64
from collections.abc import Sequence

import attrs
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


def where_in(data: bytes, begin: int, end: int) -> str:
    """Say which records are in a part of a rejected file, for whoever edited one of them."""
    first = data.count(b"\n", 0, begin)
    count = data.count(b"\n", 0, end - 1) + 1 - first
    ids = [_id_of(line) for line in data.split(b"\n", first + count)[first : first + count]]
    if None in ids:
        number = first + ids.index(None) + 1
        return f"Line {number} of it is no record of a rejected line."
    if len(ids) == 1:
        return f"These bytes are in line {first + 1} of it, the record with the id {ids[0]}."
    return (
        f"These bytes are in lines {first + 1} to {first + len(ids)} of it, the records with the"
        f" ids {ids[0]} to {ids[-1]}."
    )


def _id_of(record: bytes) -> int | None:
    try:
        return msgspec.json.decode(record, type=_Id).id
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None


@attrs.frozen
class _Id:
    id: int


def _content(content: bytes) -> dict[str, object]:
    try:
        return {"line": content.decode("utf-8")}
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(content).decode("ascii")}
