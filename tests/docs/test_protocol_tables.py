"""The tables of protocol.md say what the code does, both ways."""

from __future__ import annotations

import json
import re
from pathlib import Path

import attrs
import msgspec
import pytest
from protocol_examples import DOCUMENT, make_files, of_kind, served

from trioline import config, snapshot
from trioline.errors import ErrorCode
from trioline.server.statistics import RATE_SAMPLES
from trioline.wire import messages
from trioline.wire.envelope import REQUESTS

HEADINGS = ("Purpose", "Fields", "Replies", "Errors", "Example")
DASH = "\N{EN DASH}"
UNITS = {"MiB": 1 << 20, "KiB": 1 << 10}


def sections() -> dict[str, str]:
    """The text of each message's section, by its title."""
    chapter = DOCUMENT.split("\n## Messages\n")[1].split("\n## ")[0]
    parts = [part.split("\n", 1) for part in re.split(r"^### ", chapter, flags=re.MULTILINE)[1:]]
    return {part[0]: part[1] for part in parts}


def bare(cell: str) -> str:
    """A cell without its backticks."""
    return cell.strip("`")


# --- messages ------------------------------------------------------------------------------------


def test_every_op_has_its_section_and_every_section_its_op() -> None:
    ops = [title.split()[0] for title in sections()]
    assert list(dict.fromkeys(ops)) == list(REQUESTS)


def test_every_op_is_in_the_table_of_states() -> None:
    (table,) = of_kind("states")
    assert [bare(row[0]) for row in table.rows] == list(REQUESTS)
    assert all(len(row) == 6 and all(row) for row in table.rows)


@pytest.mark.parametrize("title", sections())
def test_every_message_is_told_under_the_same_headings(title: str) -> None:
    words = "|".join(HEADINGS)
    assert tuple(re.findall(rf"^\*\*({words})\b", sections()[title], re.MULTILINE)) == HEADINGS


def message_classes() -> dict[str, type]:
    """All that travels and has fields."""
    return {
        name: kind
        for module in (messages, snapshot)
        for name, kind in vars(module).items()
        if isinstance(kind, type) and kind.__module__ == module.__name__ and fields_of(kind)
    }


def fields_of(kind: type) -> dict[str, str]:
    """A class's fields, each with what the document's column says of its default."""
    if attrs.has(kind):
        return {
            field.name: always(kind) if field.default is attrs.NOTHING else default(field.default)
            for field in attrs.fields(kind)
        }
    if issubclass(kind, msgspec.Struct):
        return {
            field.name: always(kind) if field.required else default(field.default)
            for field in msgspec.structs.fields(kind)
        }
    return {}


def always(kind: type) -> str:
    """What a field without default is: demanded of requests, promised in replies."""
    is_asked = hasattr(kind, "op") or kind is messages.Result
    return "required" if is_asked else "always"


def default(value: object) -> str:
    """How a default is written."""
    return DASH if value is None or value is msgspec.UNSET else json.dumps(value)


@pytest.mark.parametrize("name", message_classes())
def test_a_table_of_fields_is_the_class(name: str) -> None:
    (table,) = (piece for piece in of_kind("fields") if piece.value == name)
    shown = {bare(row[0]): bare(row[3]) for row in table.rows}
    expected = fields_of(message_classes()[name])
    if "status" in expected:  # the word that tells get's replies apart is always there
        expected["status"] = "always"
    assert shown == expected
    assert list(shown) == list(expected)
    assert len(shown) == len(table.rows)


def test_there_is_no_table_of_another_class() -> None:
    assert sorted(piece.value for piece in of_kind("fields")) == sorted(message_classes())


def test_a_table_stands_in_its_messages_section() -> None:
    for kind in (*REQUESTS.values(), messages.DoneLines):
        marker = f"<!-- fields: {kind.__name__} -->"
        homes = [title.split()[0] for title, body in sections().items() if marker in body]
        assert homes == ([kind.op] if fields_of(kind) else [])


def test_units_are_told_for_times_and_sizes() -> None:
    for table in of_kind("fields"):
        for name, kind, unit, *_ in table.rows:
            timed = re.search(r"timeout|wait|delay|_seconds|retry_in|elapsed|\beta\b", name)
            assert not timed or unit == "seconds", (table.value, name)
            assert kind, (table.value, name)


# --- errors --------------------------------------------------------------------------------------


def test_the_errors_are_the_codes_in_their_order() -> None:
    (table,) = of_kind("errors")
    shown = [(bare(row[0]), row[1]) for row in table.rows]
    assert shown == [(code.value, "yes" if code.closes else "no") for code in ErrorCode]
    assert all(len(row) == 4 and all(row) for row in table.rows)


def test_every_code_in_the_text_exists() -> None:
    words = {
        *re.findall(r"`((?:bad|auth|unknown|not|too|line)-[a-z-]+)`", DOCUMENT),
        *re.findall(r'"error":"([a-z-]+-[a-z-]+)"', DOCUMENT),
    }
    assert words <= set(ErrorCode)
    assert len(words) >= 11


# --- limits --------------------------------------------------------------------------------------


def test_the_limits_are_those_of_the_code_in_their_order() -> None:
    (table,) = of_kind("limits")
    shown = [float(row[1].replace(",", "")) * UNITS.get(row[2], 1) for row in table.rows]
    source = Path(config.__file__).read_text(encoding="utf-8")
    section = source.split("# --- limits that a peer can meet")[1].split("# --- limits inside")[0]
    names = re.findall(r"^(MAX_[A-Z_]+) = ", section, re.MULTILINE)
    assert len(names) >= 15
    assert shown == [float(getattr(config, name)) for name in names]
    for row, name in zip(table.rows, names, strict=True):
        if name.endswith("_BYTES"):
            assert row[2] in UNITS, name
        if name.endswith("_SECONDS"):
            assert row[2] == "seconds", name


def test_numbers_in_the_text_hold() -> None:
    text = " ".join(DOCUMENT.split())
    leases = config.LeaseSettings()
    server = config.ServerSettings()
    for sentence in (
        f"(`127.0.0.1:{config.DEFAULT_PORT}` unless told otherwise)",
        f"| `max_attempts`, {leases.max_attempts} (`--max-attempts`) |",
        f"| {leases.max_losses} (`--max-losses`) |",
        f"`hedge` ({leases.hedge:g}) times the time",
        f"(`--halt {leases.halt}`)",
        f"grace ({leases.grace_seconds:g} s by default)",
        f"`--window` lines ({leases.window:,})",
        f"`--window` at the most ({leases.window:,})",
        f"`--linger` seconds ({server.linger_seconds:g} by default)",
        f"`--drain` seconds ({server.drain_seconds:g} by default)",
        f"`status` lists at most {config.MAX_STATUS_WORKERS:,} workers",
        f"at most {config.MAX_STATUS_WORKERS:,} |",
        f"{config.MAX_QUEUED_BYTES >> 20} MiB or {config.MAX_QUEUED_RESULTS:,} messages",
        f"twice {config.MAX_OUTBOX_BYTES >> 20} MiB and one reply",
        f"one block of raw lines ({config.MAX_BLOCK_BYTES >> 20} MiB)",
        f"The version is {config.PROTOCOL_VERSION}.",
        f"# The trioline protocol, version {config.PROTOCOL_VERSION} ",
    ):
        assert sentence in text, sentence
    assert messages.MAX_ID == 2**53
    assert "whole numbers are below 2⁵³" in text
    assert RATE_SAMPLES == 60
    assert "over the last minute or so" in text


def test_the_fsync_policies_are_those_there_are() -> None:
    table = DOCUMENT.split("\n## What a reply promises\n")[1].split("\n## ")[0]
    assert re.findall(r"^\| `([a-z]+)`", table, re.MULTILINE) == [p.value for p in config.Fsync]


def test_hello_tells_the_limits(tmp_path: Path) -> None:
    make_files(tmp_path)
    command = "trioline serve three.jsonl out --port 0"
    with served(tmp_path, command) as server, server.connect() as wire:
        hello = wire.ask(op="hello")
    assert hello["max_batch"] == config.MAX_BATCH
    assert hello["max_line"] == config.MAX_LINE_BYTES
    assert hello["lease_timeout"] == config.LeaseSettings().lease_timeout_seconds


def test_the_links_lead_somewhere() -> None:
    anchors = {
        re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-")
        for title in re.findall(r"^#+ (.*)$", DOCUMENT, re.MULTILINE)
    }
    assert set(re.findall(r"\]\(#([^)]*)\)", DOCUMENT)) <= anchors
