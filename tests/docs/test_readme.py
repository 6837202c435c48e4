"""The README is run from top to bottom, as a reader would, in one empty folder.

Blocks in a language begin with a comment that names their file; ``sh`` blocks are run with bash;
a ``text`` block is what the block before it prints.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import attrs
import pytest

from trioline.cli.main import COMMANDS
from trioline.cli.options import (
    end_options,
    job_options,
    lease_options,
    listen_options,
    work_options,
)

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
SELF_SETTING = ("sh tests/demo/run.sh", "sh tests/check.sh")
"""They set up environments of their own: the gate runs one, the other needs the registry."""
SCRIPT_SECONDS = 120
NEEDED = ("nc", "node")


@attrs.frozen
class Block:
    """A fenced block of the README."""

    language: str
    text: str
    line: int


def blocks() -> list[Block]:
    """Find them all, in order."""
    return [
        Block(match[1], match[2], README.count("\n", 0, match.start()) + 1)
        for match in re.finditer(r"^```(\w+)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
    ]


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


def run_script(script: str, folder: Path) -> str:
    """Run a shell script with all it starts; returns its standard output."""
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(folder),
    }
    with (
        (folder / "stdout").open("wb") as out,
        (folder / "stderr").open("wb") as err,
        subprocess.Popen(
            ["bash", "-euo", "pipefail", "-c", script],
            cwd=folder,
            env=environment,
            stdout=out,
            stderr=err,
            start_new_session=True,
        ) as process,
    ):
        try:
            code = process.wait(timeout=SCRIPT_SECONDS)
        except subprocess.TimeoutExpired:
            code = -1
            os.killpg(process.pid, signal.SIGKILL)
    printed = (folder / "stdout").read_text(encoding="utf-8")
    said = (folder / "stderr").read_text(encoding="utf-8")
    assert code == 0, f"exit code {code} after:\n{printed}\n{said}"
    return printed


def test_the_blocks_are_found() -> None:
    languages = [block.language for block in blocks()]
    assert languages.count("sh") >= 9
    assert {"python", "bash", "js", "text"} <= set(languages)


@pytest.mark.slow
@pytest.mark.skipif(
    any(shutil.which(tool) is None for tool in NEEDED),
    reason="the README's examples use nc and node",
)
def test_the_readme_works_as_printed(tmp_path: Path) -> None:
    ports = {number: str(free_port()) for number in ("7766", "7767")}
    script: list[str] = []
    expected: list[tuple[int, str]] = []
    for block in blocks():
        text = block.text
        for number, port in ports.items():
            text = text.replace(number, port)
        if block.language == "sh" and text.strip() not in SELF_SETTING:
            script.append(f"echo @@ {len(script)}\n{text}")
        elif block.language == "text":
            expected.append((len(script) - 1, text.strip()))
        elif block.language in ("python", "bash", "js"):
            name = text.split("\n", 1)[0].split()[-1]
            (tmp_path / name).write_text(text, encoding="utf-8")
    printed = re.split(r"^@@ \d+$", run_script("\n".join(script), tmp_path), flags=re.MULTILINE)
    for place, wanted in expected:
        assert wanted in printed[place + 1]
    answers = (tmp_path / "mixed.jsonl").read_text(encoding="utf-8").splitlines()
    assert [int(re.findall(r'"id":(\d+)', answer)[0]) for answer in answers] == list(range(1000))
    prompts = (tmp_path / "prompts.jsonl").read_text(encoding="utf-8")
    better = (tmp_path / "better.jsonl").read_text(encoding="utf-8")
    assert better == prompts.replace("bad", "better")
    assert (tmp_path / "lengths.jsonl").read_text(encoding="utf-8").split() == ["51"] * 1000


def test_every_option_it_names_exists_and_its_defaults_hold() -> None:
    def probe(**_options: object) -> None: ...

    for decorate in (job_options, listen_options, lease_options, end_options, work_options):
        probe = decorate(probe)
    known = {
        option: parameter.default
        for parameter in probe.__click_params__  # type: ignore[attr-defined]
        for option in parameter.opts
    }
    named = re.findall(r"`(--[a-z-]+)(?: (\d+))?`(?: \((\d+))?", README)
    assert len(named) >= 10
    elsewhere = {"--json", "--yes"}
    for option, value, default in named:
        assert option in known or option in elsewhere, option
        if (value or default) and option != "--max-line":  # told in MiB
            assert float(known[option]) == float(value or default), option


def test_every_command_is_told_of() -> None:
    for command in COMMANDS:
        assert f"trioline {command}" in README, command


def test_the_two_commands_exist() -> None:
    for command in SELF_SETTING:
        assert command in README
        assert (ROOT / command.split()[1]).is_file()
