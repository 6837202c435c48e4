"""Every example of protocol.md is run against a real server process, field by field."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path

import pytest
from protocol_examples import (
    ANSWER_SECONDS,
    DOCUMENT,
    Piece,
    Pipes,
    Served,
    fenced_blocks,
    make_files,
    matches,
    of_kind,
    pieces,
    play,
    program,
    same_line,
    served,
    wait_for_text,
)

EXAMPLES = of_kind("input")
NEEDS_NC = pytest.mark.skipif(
    shutil.which("nc") is None
    or "-N" not in subprocess.run(["nc", "-h"], capture_output=True, check=False).stderr.decode(),
    reason="there is no nc of the kind with -N (netcat-openbsd) here",
)


def _name(piece: Piece) -> str:
    return f"line-{piece.line}"


@pytest.mark.parametrize("example", EXAMPLES, ids=_name)
def test_an_example_goes_as_shown(example: Piece, tmp_path: Path) -> None:
    make_files(tmp_path)
    command = f"trioline serve {example.value} out --port 0 --linger 60 {example.options}"
    with served(tmp_path, command) as server:
        assert play(example.text, server.connect) > 0
        following = pieces()[pieces().index(example) + 1]
        if following.kind == "output":
            wait_for_text(tmp_path / "out", following.text)


def test_every_conversation_in_the_document_is_run() -> None:
    shown = [text for _, text in fenced_blocks() if re.search(r"^[CS]\d*: ", text, re.MULTILINE)]
    run = [piece.text for piece in pieces() if piece.kind in ("input", "terminal")]
    assert len(shown) >= 18
    assert [text for text in shown if text not in run] == []


def test_every_command_in_the_document_is_run() -> None:
    shown = [text for language, text in fenced_blocks() if language == "sh"]
    run = [piece.text for piece in pieces() if piece.kind in ("files", "terminal")]
    assert shown == [text for text in run if text in shown]
    assert len(shown) == 4


def test_each_kind_of_message_has_an_example_in_its_own_section() -> None:
    sections = re.split(r"^### ", DOCUMENT.split("\n## Messages\n")[1], flags=re.MULTILINE)[1:]
    for section in sections:
        title, body = section.split("\n", 1)
        assert "**Example**" in body, title
        assert f'"op":"{title.split()[0]}"' in body.split("**Example**", 1)[1], title


# --- by hand with nc -----------------------------------------------------------------------------


@NEEDS_NC
def test_the_session_with_nc_goes_as_shown(tmp_path: Path) -> None:
    make_files(tmp_path)
    session = [piece for piece in pieces() if piece.kind in ("terminal", "prints")]
    (start,) = (piece for piece in session if piece.value == "server")
    printed: list[bytes] = []
    names: dict[str, object] = {}
    with served(tmp_path, start.text.replace("--port 7766", "--port 0")) as server:
        for piece in session:
            if piece.value == "shell":
                printed = _shell(server, piece.text)
            elif piece.value == "nc":
                _sit_down(server, piece.text)
            elif piece.kind == "prints":
                shown = piece.text.splitlines()
                assert len(printed) == len(shown), printed
                for expected, got in zip(shown, printed, strict=True):
                    assert same_line(expected, got, names), f"\nshown: {expected}\n  got: {got!r}"
        assert server.wait() == 0
    answers = next(p for p in pieces() if p.kind == "output" and p.line > session[-1].line)
    assert (tmp_path / "answers.jsonl").read_text(encoding="utf-8") == answers.text


def _shell(server: Served, command: str) -> list[bytes]:
    result = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", command.replace("7766", str(server.port))],
        cwd=server.folder,
        stdout=subprocess.PIPE,
        check=True,
        timeout=ANSWER_SECONDS,
    )
    return result.stdout.splitlines()


def _sit_down(server: Served, script: str) -> None:
    with subprocess.Popen(
        ["nc", "127.0.0.1", str(server.port)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        watchdog = threading.Timer(ANSWER_SECONDS, process.kill)
        watchdog.start()
        try:
            assert play(script, lambda: Pipes(process)) > 0
        finally:
            watchdog.cancel()
            process.kill()


# --- whole clients -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("language", "command"), [("python", sys.executable), ("bash", "bash")], ids=["python", "bash"]
)
def test_a_whole_client_does_a_whole_job(language: str, command: str, tmp_path: Path) -> None:
    text = program(language)
    assert len(text.splitlines()) <= 30
    name = "worker." + {"python": "py", "bash": "sh"}[language]
    assert text.startswith(f"# {name} HOST PORT")
    (tmp_path / name).write_text(text, encoding="utf-8")
    lines = [b"x" * (n % 17) + b"\\ \"'%d\t" % n for n in range(250)] + ["ä".encode(), b"", b" "]
    (tmp_path / "in").write_bytes(b"\n".join(lines) + b"\n")
    with served(tmp_path, "trioline serve in out --port 0 --linger 0.5 --fsync never") as server:
        worked = subprocess.run(
            [command, name, "127.0.0.1", str(server.port)],
            cwd=tmp_path,
            env={**os.environ, "PYTHONWARNINGS": "error"},
            capture_output=True,
            check=False,
            timeout=60,
        )
        assert (worked.returncode, worked.stdout, worked.stderr) == (0, b"", b"")
        assert server.wait() == 0
    answers = (tmp_path / "out").read_text(encoding="utf-8")
    assert re.sub(" ", "", answers) == "".join(f'{{"length":{len(line)}}}\n' for line in lines)


@pytest.mark.parametrize(
    ("language", "command"), [("python", sys.executable), ("bash", "bash")], ids=["python", "bash"]
)
def test_a_whole_client_says_what_is_wrong(language: str, command: str, tmp_path: Path) -> None:
    (tmp_path / "worker").write_text(program(language), encoding="utf-8")
    make_files(tmp_path)
    with served(
        tmp_path, "trioline serve three.jsonl out --port 0 --token-file token.txt"
    ) as server:
        worked = subprocess.run(
            [command, "worker", "127.0.0.1", str(server.port)],
            cwd=tmp_path,
            capture_output=True,
            check=False,
            timeout=ANSWER_SECONDS,
        )
    assert worked.returncode == 1
    assert b"token" in worked.stderr


# --- the tests' own tools ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shown", "got", "same"),
    [
        ('{"ok":true}', b'{"ok":true}', True),
        ('{"ok":true}', b'{"ok":1}', False),
        ('{"ok":true}', b'{"ok":true,"more":1}', False),
        ('{"ok":true,"a":1,"b":2}', b'{"ok":true,"b":2,"a":1}', False),
        ('{"ok":true,"a":900}', b'{"ok":true,"a":900.0}', True),
        ('{"ok":true,"a":"…"}', b'{"ok":true,"a":[1]}', True),
        ('{"ok":true,"a":[1,2]}', b'{"ok":true,"a":[1]}', False),
        ('{"ok":true,"a":[]}', b'{"ok":true,"a":{}}', False),
        ('{"ok":true}', b"", False),
        ('{"n":1}', b'{"n": 1}', False),
        ('{"n":1}', b'{"n":1}', True),
    ],
)
def test_lines_are_compared(shown: str, got: bytes, same: bool) -> None:
    assert same_line(shown, got, {}) is same


def test_a_name_is_the_same_value_each_time() -> None:
    names: dict[str, object] = {}
    assert matches("$A", 1, names)
    assert matches("$A", 1, names)
    assert not matches("$A", 2, names)


def test_a_wrong_example_fails(tmp_path: Path) -> None:
    make_files(tmp_path)
    with served(tmp_path, "trioline serve three.jsonl out --port 0") as server:
        with pytest.raises(AssertionError, match="shown"):
            play('C: {"op":"ping"}\nS: {"ok":false}', server.connect)
        with pytest.raises(AssertionError, match="closes"):
            play('C: {"op":"ping"}\n-- the server closes', server.connect)
        with pytest.raises(AssertionError, match="not understood"):
            play("C {}", server.connect)
        with closing(server.connect()) as wire:
            assert wire.ask(op="ping") == {"ok": True}
