"""Records of rejected lines: one JSON object a line, whatever the line was."""

from __future__ import annotations

import base64
import json

import pytest

from trioline.storage import encode_record
from trioline.storage.rejected import where_in


def record_of(content: bytes | int, errors: list[str] | None = None) -> dict[str, object]:
    data = encode_record(7, content, attempts=3, losses=1, errors=errors or [])
    assert data.endswith(b"\n")
    assert data.count(b"\n") == 1
    record = json.loads(data)
    assert isinstance(record, dict)
    return record


@pytest.mark.parametrize(
    ("part", "told"),
    [
        ((0, 1), "These bytes are in line 1 of it, the record with the id 3."),
        ((1, 3), "These bytes are in lines 2 to 3 of it, the records with the ids 5 to 8."),
        ((2, 4), "Line 4 of it is no record of a rejected line."),
    ],
)
def test_who_edited_a_record_hears_where_to_look(part: tuple[int, int], told: str) -> None:
    lines = [encode_record(n, b"x", attempts=1, losses=0, errors=["no"]) for n in (3, 5, 8)]
    lines.append(b'{"id":"9"}\n')
    begin, end = (sum(map(len, lines[:count])) for count in part)
    assert where_in(b"".join(lines), begin, end) == told


def test_the_whole_record() -> None:
    data = encode_record(7, b'{"a":1}', attempts=3, losses=1, errors=["OOM", "lost\n"])
    assert data == (
        rb'{"id":7,"line":"{\"a\":1}","attempts":3,"losses":1,"errors":["OOM","lost\n"]}' + b"\n"
    )


@pytest.mark.parametrize("text", ["", "x\r", "\ufeffx", "a\u2028b", "\x00", "ü"])
def test_text_is_kept_as_text(text: str) -> None:
    assert record_of(text.encode())["line"] == text


@pytest.mark.parametrize("content", [b"\xff", b"ok \xc3", b"\xed\xa0\x80"])
def test_what_is_not_utf8_is_kept_as_base64(content: bytes) -> None:
    record = record_of(content)
    assert "line" not in record
    assert base64.b64decode(str(record["base64"])) == content


def test_a_line_too_long_is_named_by_its_length() -> None:
    record = record_of(10**10)
    assert record["bytes"] == 10**10
    assert "line" not in record


def test_a_lone_surrogate_in_an_error_is_no_end() -> None:
    assert record_of(b"x", ["a\ud800b"])["errors"] == ["a?b"]
