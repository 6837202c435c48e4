"""Reads protocol.md for its tests: examples, scripts and tables, and plays them on a real server.

An HTML comment right above a fenced block or a table says what it is: ``<!-- input: FILE; options:
… -->`` an example, ``<!-- fields: Class -->`` a table of fields. In examples ``C: `` and ``S: ``
begin lines sent and received, ``"…"`` stands for any value, ``"$NAME"`` for one that comes again,
and ``-- C drops``, ``-- the server closes`` (with a connection's number) are what else happens.
"""

from __future__ import annotations

import json
import re
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Protocol

import attrs

ROOT = Path(__file__).parents[1]
DOCUMENT = (ROOT / "protocol.md").read_text(encoding="utf-8")
ANSWER_SECONDS = 20.0
"""For any one thing to happen: far beyond what it takes on a loaded machine."""
ANYTHING = "…"
END = b""
"""What a connection yields once the server has closed it."""


# --- reading the document ------------------------------------------------------------------------


@attrs.frozen
class Piece:
    """A marked block or table of the document."""

    kind: str
    value: str
    options: str
    """Of an example: what the server is started with besides."""
    language: str
    text: str
    """A block's content, or a table's rows."""
    line: int
    """Where its marker stands, from 1."""

    @property
    def rows(self) -> list[list[str]]:
        """A table's cells, without its head."""
        rows = [row.strip("|").split(" |") for row in self.text.splitlines()]
        return [[cell.strip() for cell in row] for row in rows[2:]]


_PIECE = re.compile(
    r"^<!-- (?P<kind>[a-z]+)(?:: (?P<value>[^;\n]*?))?(?:; options: (?P<options>.*?))? -->\n"
    r"(?:```(?P<language>\w*)\n(?P<block>[\s\S]*?)^```$|(?P<table>(?:\|.*\n)+))",
    re.MULTILINE,
)


def pieces(document: str = DOCUMENT) -> list[Piece]:
    """All marked pieces, in order."""
    return [
        Piece(
            kind=match["kind"],
            value=match["value"] or "",
            options=match["options"] or "",
            language=match["language"] or "",
            text=match["block"] if match["block"] is not None else match["table"],
            line=document.count("\n", 0, match.start()) + 1,
        )
        for match in _PIECE.finditer(document)
    ]


def of_kind(kind: str) -> list[Piece]:
    """The pieces of one kind, in order."""
    return [piece for piece in pieces() if piece.kind == kind]


def fenced_blocks(document: str = DOCUMENT) -> list[tuple[str, str]]:
    """Language and content of every fenced block, marked or not."""
    return re.findall(r"^```(\w*)\n(.*?)^```$", document, re.MULTILINE | re.DOTALL)


def program(language: str) -> str:
    """The one block in a language."""
    (text,) = (text for found, text in fenced_blocks() if found == language)
    return text


def make_files(folder: Path) -> None:
    """Make the document's input files in a folder."""
    for piece in of_kind("files"):
        subprocess.run(["bash", "-euc", piece.text], cwd=folder, check=True, timeout=ANSWER_SECONDS)


# --- a server ------------------------------------------------------------------------------------


@attrs.define(eq=False)
class Served:
    """A running server process."""

    process: subprocess.Popen[bytes]
    folder: Path
    port: int

    def connect(self) -> Wire:
        """Open a connection."""
        return Wire(socket.create_connection(("127.0.0.1", self.port), timeout=ANSWER_SECONDS))

    def wait(self) -> int:
        """Wait for its end; returns the exit code."""
        return self.process.wait(timeout=ANSWER_SECONDS)


@contextmanager
def served(
    folder: Path, command: str, program: Sequence[str] = (sys.executable, "-m", "trioline")
) -> Iterator[Served]:
    """Run ``trioline serve …`` in a folder; killed at the end if it still runs."""
    program_name, *arguments = shlex.split(command)
    assert program_name == "trioline"
    with (
        (folder / "stderr").open("ab") as stderr,
        subprocess.Popen(
            [*program, *arguments],
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=stderr,
        ) as process,
    ):
        try:
            assert process.stdout is not None
            said = process.stdout.readline().decode()  # ends with the process at the latest
            match = re.fullmatch(r"trioline listening on tcp://127\.0\.0\.1:(\d+)\n", said)
            assert match is not None, said + (folder / "stderr").read_text(encoding="utf-8")
            yield Served(process, folder, int(match[1]))
        finally:
            process.kill()


class Line(Protocol):
    """One side of a conversation by lines."""

    def send(self, line: bytes) -> None:
        """Send one line; its newline is added."""

    def receive(self) -> bytes:
        """Receive one line without its newline; ``END`` at the end."""

    def close(self) -> None:
        """Drop it."""


class Wire:
    """A connection; everything on it has a deadline."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._stream = sock.makefile("rb")

    def send(self, line: bytes) -> None:
        """Send one line; its newline is added."""
        self.send_raw(line + b"\n")

    def send_raw(self, data: bytes) -> None:
        """Send bytes as they are."""
        self._sock.sendall(data)

    def half_close(self) -> None:
        """Say that nothing more will be sent."""
        self._sock.shutdown(socket.SHUT_WR)

    def receive(self) -> bytes:
        """Receive one line without its newline; ``END`` when the server has closed."""
        line = self._stream.readline()
        assert line == END or line.endswith(b"\n"), line
        return line.removesuffix(b"\n") if line else END

    def receive_raw(self, size: int) -> bytes:
        """Receive so many bytes."""
        return self._stream.read(size)

    def ask(self, **request: Any) -> dict[str, Any]:  # noqa: ANN401 - any JSON
        """Send one message and receive its reply."""
        self.send(json.dumps(request).encode())
        return self.reply()

    def reply(self) -> dict[str, Any]:
        """Receive one reply."""
        reply = json.loads(self.receive())
        assert isinstance(reply, dict)
        return reply

    def close(self) -> None:
        """Drop the connection."""
        self._stream.close()
        self._sock.close()

    def __enter__(self) -> Wire:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Pipes:
    """A process that talks by its standard input and output, such as ``nc``."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process

    def send(self, line: bytes) -> None:
        """Type one line."""
        assert self._process.stdin is not None
        self._process.stdin.write(line + b"\n")
        self._process.stdin.flush()

    def receive(self) -> bytes:
        """Read one line that it prints."""
        assert self._process.stdout is not None
        return self._process.stdout.readline().removesuffix(b"\n")

    def close(self) -> None:
        """Kill it."""
        self._process.kill()


# --- comparing -----------------------------------------------------------------------------------


def _ordered(text: bytes | str) -> object:
    return json.loads(text, object_pairs_hook=_Pairs)


class _Pairs(list[tuple[str, object]]):
    """An object's fields in their order."""


def matches(expected: object, got: object, names: dict[str, object]) -> bool:
    """Compare JSON read by ``_ordered``; learns the values of names on the way."""
    if expected == ANYTHING:
        return True
    if isinstance(expected, str) and re.fullmatch(r"\$[A-Z]+", expected):
        return names.setdefault(expected, got) == got
    if isinstance(expected, _Pairs):
        return (
            isinstance(got, _Pairs)
            and len(expected) == len(got)
            and all(
                key == other and matches(value, found, names)
                for (key, value), (other, found) in zip(expected, got, strict=True)
            )
        )
    if isinstance(expected, list):
        return (
            isinstance(got, list)
            and not isinstance(got, _Pairs)
            and len(expected) == len(got)
            and all(matches(a, b, names) for a, b in zip(expected, got, strict=True))
        )
    if isinstance(expected, bool) or isinstance(got, bool):
        return expected is got
    return expected == got


def same_line(expected: str, got: bytes, names: dict[str, object]) -> bool:
    """Compare a line: replies field by field in order, raw lines byte by byte."""
    if not expected.startswith('{"ok":'):
        return expected.encode() == got
    try:
        return got != END and matches(_ordered(expected), _ordered(got), names)
    except ValueError:
        return False


# --- playing -------------------------------------------------------------------------------------

_STEP = re.compile(
    r"(?P<side>[CS])(?P<number>\d*): (?P<text>.*)"
    r"|-- C(?P<drops>\d*) drops"
    r"|-- the server closes(?: (?P<closes>\d+))?"
)


def play(script: str, connect: Callable[[], Line], names: dict[str, object] | None = None) -> int:
    """Play an example.

    Returns:
        How many lines of the server were compared.
    """
    names = {} if names is None else names
    compared = 0
    with ExitStack() as stack:
        lines: dict[str, Line] = {}

        def line(number: str) -> Line:
            if number not in lines:
                lines[number] = connect()
                stack.callback(lines[number].close)
            return lines[number]

        for text in script.splitlines():
            step = _STEP.fullmatch(text)
            assert step is not None, f"not understood: {text!r}"
            if step["side"] == "C":
                line(step["number"]).send(_fill_in(step["text"], names).encode())
            elif step["side"] == "S":
                got = line(step["number"]).receive()
                assert same_line(step["text"], got, names), f"\nshown: {text}\n  got: {got!r}"
                compared += 1
            elif step["drops"] is not None:
                line(step["drops"]).close()
            else:
                got = line(step["closes"] or "").receive()
                assert got == END, f"shown: {text}; got: {got!r}"
    return compared


def _fill_in(text: str, names: dict[str, object]) -> str:
    return re.sub(r'"(\$[A-Z]+)"', lambda match: json.dumps(names[match[1]]), text)


def wait_for_text(path: Path, expected: str) -> None:
    """Wait until a file has a content."""
    deadline = time.monotonic() + ANSWER_SECONDS
    while (got := path.read_text(encoding="utf-8")) != expected:
        assert time.monotonic() < deadline, f"{path.name} is {got!r}"
        time.sleep(0.01)  # between two looks
