"""The command line as people use it: what is printed where, exit codes, odd inputs end to end."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from datetime import datetime, timedelta
from pathlib import Path

import attrs
import click
import pytest
from processes import (
    DEADLINE_SECONDS,
    PROGRAM,
    Plain,
    invoke,
    numbers,
    serving,
    started,
    trioline,
    wait_until,
)

from trioline._version import __version__
from trioline.cli.main import COMMANDS, commands
from trioline.snapshot import Head, Snapshot, WorkerRow


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with an input of ten lines."""
    (tmp_path / "in").write_bytes(numbers(10))
    return tmp_path


def do_all(port: int, batch: int = 100) -> None:
    """Echo every line until the job is complete, or its server has gone home."""
    with Plain(port) as plain, contextlib.suppress(EOFError, ConnectionError):
        while (work := plain.get_lines(batch)) is not None:
            assert plain.done_lines(*work)["ok"]


# --- serve ----------------------------------------------------------------------------------------


def test_the_first_line_on_stdout_says_where(folder: Path) -> None:
    with serving("in", "out", "--linger", "0", cwd=folder) as serve:
        match = re.fullmatch(
            r"trioline listening on tcp://127\.0\.0\.1:([1-9][0-9]*)\n", serve.stdout
        )
        assert match is not None
        do_all(int(match[1]))
        finished = serve.wait()
    assert finished.code == 0
    assert finished.stdout == match[0]
    assert re.fullmatch(
        r"trioline: [0-9:]{8} 10 of 10 lines written; [0-9.]+ s this time\.\n", finished.stderr
    )
    assert (folder / "out").read_bytes() == numbers(10)


def test_a_link_to_the_output_has_its_files_beside_the_file(folder: Path) -> None:
    (folder / "there").mkdir()
    (folder / "out").symlink_to(folder / "there" / "answers")
    with serving("in", "out", "--linger", "0", cwd=folder) as serve:
        do_all(serve.port)
        assert serve.wait().code == 0
    assert (folder / "there" / "answers").read_bytes() == numbers(10)
    made = {path.name for path in (folder / "there").iterdir()}
    assert made == {"answers", "answers.rejected", "answers.trioline"}
    assert trioline("verify", "in", "out", cwd=folder).code == 0


def test_a_unix_socket_alone_and_beside_tcp(folder: Path) -> None:
    with serving("in", "out", "--unix", "socket", cwd=folder) as serve:
        assert serve.stdout == "trioline listening on unix:socket\n"
        assert (folder / "socket").stat().st_mode & 0o777 == 0o600
        with Plain(str(folder / "socket")) as plain:
            assert plain.ask(op="ping")["ok"]
        assert serve.stop().code == 4
    assert not (folder / "socket").exists()
    both = ("--unix", "socket", "--port", "0", "--linger", "0")
    with serving("in", "out", *both, cwd=folder) as serve:
        wait_until(lambda: serve.stdout.count("\n") == 2, "both addresses")
        tcp, unix = serve.stdout.splitlines()
        assert tcp.startswith("trioline listening on tcp://127.0.0.1:")
        assert unix == "trioline listening on unix:socket"
        do_all(serve.port)
        assert serve.wait().code == 0


def test_a_stale_unix_socket_is_replaced(folder: Path) -> None:
    for code in (None, 4):
        with serving("in", "out", "--unix", "socket", cwd=folder) as serve:
            with Plain(str(folder / "socket")) as plain:
                assert plain.ask(op="ping")["ok"]
            if code is not None:
                assert serve.stop().code == code
        assert (folder / "socket").exists() == (code is None)  # killed: it stays behind


def test_the_address_file_appears_whole_and_goes_away(folder: Path) -> None:
    address = folder / "address"
    with started(
        *("serve", "in", "out", "--port", "0", "--address-file", "address"), cwd=folder
    ) as serve:
        wait_until(address.exists, "the address file")
        content = address.read_text(encoding="utf-8")
        assert re.fullmatch(r"tcp://127\.0\.0\.1:\d+\n", content)
        assert trioline("status", "@address", cwd=folder).code == 0
        assert serve.stop().code == 4
    assert sorted(path.name for path in folder.iterdir() if path.name[0] != ".") == [
        *("in", "out", "out.rejected", "out.trioline")
    ]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_it_and_the_same_command_goes_on(
    number: signal.Signals, folder: Path
) -> None:
    with serving("in", "out", cwd=folder) as serve:
        with Plain(serve.port) as plain:
            assert plain.get_lines(10) is not None
            assert plain.done_lines(0, [b"0", b"1"])["accepted"] == 2
            plain.ask(op="release")
        finished = serve.stop(number)
    assert finished.code == 4
    assert f"{number.name}: finishing what is under way" in finished.stderr
    assert "2 of 10 lines written" in finished.stderr
    assert finished.stderr.endswith("Stopped before the end: the same command goes on.\n")
    with serving("in", "out", "--linger", "0", cwd=folder) as serve:
        do_all(serve.port)
        assert serve.wait().code == 0
    assert (folder / "out").read_bytes() == numbers(10)


def test_rejected_lines_make_it_3_again_and_again(folder: Path) -> None:
    with serving("in", "out", "--linger", "0", "--max-attempts", "1", cwd=folder) as serve:
        with Plain(serve.port) as plain:
            assert plain.get_lines(10) is not None
            assert plain.ask(op="fail", id=3, error="no")["state"] == "rejected"
            plain.ask(op="release")
        do_all(serve.port)
        finished = serve.wait()
    assert finished.code == 3
    assert "10 of 10 lines written, 1 of them rejected" in finished.stderr
    assert "See out.rejected." in finished.stderr
    assert (folder / "out").read_bytes() == numbers(10).replace(b"3", b"null")
    again = trioline("serve", "in", "out", cwd=folder)
    assert again.code == 3
    assert again.stdout == ""
    assert again.stderr.endswith(
        " This job is complete already: 10 lines in out, 1 of them rejected. "
        "`trioline retry` runs these again; --fresh does all of it again.\n"
    )


def test_fresh_begins_anew(folder: Path) -> None:
    assert trioline("run", "in", "out", "--exec", "cat", "-j", "1", cwd=folder).code == 0
    with serving("in", "out", "--fresh", "--linger", "0", cwd=folder) as serve:
        assert serve.status()["written"] == 0
        do_all(serve.port)
        assert serve.wait().code == 0


def test_an_output_that_changes_under_it_ends_it_with_74(folder: Path) -> None:
    with serving("in", "out", cwd=folder) as serve, Plain(serve.port) as plain:
        assert plain.get_lines(10) is not None
        assert plain.done_lines(0, [b"0", b"1"])["ok"]
        (folder / "out").unlink()
        finished = serve.wait()
    assert finished.code == 74
    assert finished.stderr.startswith("trioline: ")
    assert "out" in finished.stderr
    assert "Traceback" not in finished.stderr


def test_quiet_is_quiet_when_all_is_well(folder: Path) -> None:
    with serving("in", "out", "--quiet", "--linger", "1", cwd=folder) as serve:
        worker = trioline("work", serve.address, "--exec", "cat", "--quiet", cwd=folder)
        assert (worker.code, worker.stdout, worker.stderr) == (0, "", "")
        finished = serve.wait()
    assert (finished.code, finished.stderr) == (0, "")
    again = trioline("serve", "in", "out", "--quiet", cwd=folder)
    assert (again.code, again.stderr) == (0, "")
    with serving("in", "other", "--quiet", cwd=folder) as serve:
        assert serve.stop().stderr == ""
    for command in ("run", "retry"):
        work = ("--each", "test -e ok && cat", "--max-attempts", "1", "--quiet", "-j", "1")
        ended = trioline(command, "in", "third", *work, "--linger", "0", cwd=folder)
        assert (ended.code, ended.stdout, ended.stderr) == (3 if command == "run" else 0, "", "")
        (folder / "ok").touch()


def test_log_lines_have_the_time_of_day(folder: Path) -> None:
    with serving("in", "out", "--linger", "0", cwd=folder) as serve:
        begin = datetime.now().astimezone().replace(microsecond=0)
        serve.stop()
    end = datetime.now().astimezone()
    assert serve.stderr.count("\n") == 2
    for line in serve.stderr.splitlines():
        found = re.match(r"trioline: (\d\d:\d\d:\d\d) [0-9A-Z]", line)
        assert found is not None, line
        seconds = range(int((end - begin).total_seconds()) + 1)
        assert found[1] in [f"{begin + timedelta(seconds=count):%H:%M:%S}" for count in seconds]


def test_a_server_that_does_not_linger_ends_at_once(folder: Path) -> None:
    with serving("in", "out", "--linger", "0", cwd=folder) as serve, Plain(serve.port) as worker:
        work = worker.get_lines(10)
        assert work is not None
        begin = time.monotonic()
        assert worker.done_lines(*work)["accepted"] == 10
        assert serve.wait().code == 0
        assert time.monotonic() - begin < 1.5


def test_json_lines_are_all_json(folder: Path) -> None:
    with serving("in", "out", "--log-format", "json", "--linger", "1", cwd=folder) as serve:
        serve.stop(signal.SIGINT)
        lines = [json.loads(line) for line in serve.stderr.splitlines()]
    assert len(lines) == 2
    with serving("in", "out", "--log-format", "json", "--linger", "1", cwd=folder) as serve:
        worker = trioline(
            "work", serve.address, "--exec", "cat", "--log-format", "json", cwd=folder
        )
        (last,) = map(json.loads, serve.wait().stderr.splitlines())
    (said,) = map(json.loads, worker.stderr.splitlines())
    for line in [*lines, last, said]:
        assert set(line) == {"time", "level", "message"}
        assert line["level"] == "info"
        assert not line["message"].startswith("trioline:")
    assert "10 of 10 lines written" in last["message"]
    assert "10 lines done" in said["message"]
    for more in ((), ("--each", "exit 1", "--max-attempts", "1")):
        finished = trioline(
            *("run", "in", f"out{len(more)}", "-j", "1", "--log-format", "json"),
            *(more or ("--exec", "cat")),
            cwd=folder,
        )
        assert finished.code == (3 if more else 0)
        assert [json.loads(line)["level"] for line in finished.stderr.splitlines()] == ["info"]


# --- run ------------------------------------------------------------------------------------------


def test_run_does_it_all_and_leaves_nothing_behind(folder: Path) -> None:
    temporary = folder / "tmp"
    temporary.mkdir()
    finished = trioline(
        *("run", "in", "out", "--exec", "cat", "-j", "2"),
        cwd=folder,
        environment={"TMPDIR": str(temporary)},
    )
    assert finished.code == 0
    assert (folder / "out").read_bytes() == numbers(10)
    assert list(temporary.iterdir()) == []
    again = trioline("run", "in", "out", "--exec", "cat", cwd=folder)
    assert again.code == 0
    assert "complete already" in again.stderr


def test_what_a_killed_run_left_behind_is_removed_by_the_next(folder: Path) -> None:
    """Not what one has that lives, nor what is not its own."""
    temporary = folder / "tmp"
    (temporary / "trioline-mine").mkdir(parents=True)
    (temporary / "trioline-run-link").symlink_to(folder)
    others = set(temporary.iterdir())
    environment = {"TMPDIR": str(temporary)}
    waits = ("--each", "sleep 3", "-j", "1", "--drain", "0")
    with (
        started("run", "in", "out", *waits, cwd=folder, environment=environment) as killed,
        started("run", "in", "other", *waits, cwd=folder, environment=environment) as alive,
    ):
        wait_until(lambda: killed.stdout and alive.stdout, "the listening lines")
        sockets = [Path(run.stdout.strip().rpartition(":")[2]) for run in (killed, alive)]
        assert all(path.is_socket() for path in sockets)
        killed.kill()
        assert sockets[0].exists()
        last = ("--exec", "cat", "-j", "1", "--linger", "0")
        ended = trioline("run", "in", "third", *last, cwd=folder, environment=environment)
        assert ended.code == 0
        assert set(temporary.iterdir()) == {*others, sockets[1].parent}
        assert alive.stop().code == 4
    assert set(temporary.iterdir()) == others
    assert (folder / "in").exists()


def test_run_ends_with_its_workers_at_a_signal(folder: Path) -> None:
    (folder / "slow.py").write_text(
        "import os, time\n\n"
        "def answer(item):\n"
        "    with open('pids', 'a') as pids:\n"
        "        print(os.getpid(), file=pids, flush=True)\n"
        "    time.sleep(60)\n"
    )
    pids = folder / "pids"
    arguments = ("run", "in", "out", "slow:answer", "-j", "2", "--drain", "0.2")
    with started(*arguments, cwd=folder) as run:
        wait_until(lambda: pids.exists() and pids.read_text().count("\n") == 2, "two workers")
        finished = run.stop(signal.SIGINT)
    assert finished.code == 4
    assert "Traceback" not in finished.stderr
    for pid in map(int, pids.read_text().split()):
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_a_worker_of_run_that_is_killed_is_started_again(folder: Path) -> None:
    (folder / "killed.py").write_text(
        "import os, pathlib, signal\n\n"
        "def answer(item):\n"
        "    if item.id == 5 and not pathlib.Path('once').exists():\n"
        "        pathlib.Path('once').touch()\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return item.data\n"
    )
    finished = trioline("run", "in", "out", "killed:answer", "-j", "1", "--grace", "0", cwd=folder)
    assert finished.code == 0
    assert "worker-1 was killed by SIGKILL; starting it again." in finished.stderr
    assert (folder / "out").read_bytes() == numbers(10)


def test_a_line_that_makes_its_function_exit_is_found_out(folder: Path) -> None:
    (folder / "exits.py").write_text(
        "import os\n\ndef answer(item):\n    return item.data if item.data != 3 else os._exit(9)\n"
    )
    finished = trioline(
        *("run", "in", "out", "exits:answer", "-j", "1", "--grace", "0.1", "--max-losses", "1"),
        cwd=folder,
    )
    assert finished.code == 3, finished.stderr
    assert "worker-1 was ended by its function with code 9; starting it again." in finished.stderr
    expected = [b"null" if n == 3 else b"%d" % n for n in range(10)]
    assert (folder / "out").read_bytes().split() == expected


def test_a_signal_is_heard_before_the_command_has_begun(folder: Path) -> None:
    """What a script starts with ``&`` has SIGINT ignored; importing a model takes a while."""
    (folder / "heavy.py").write_text(
        "import pathlib, time\npathlib.Path('begun').touch()\ntime.sleep(60)\n"
    )
    script = 'trap "" INT; exec "$@"'
    command = ["sh", "-c", script, "sh", *PROGRAM, "run", "in", "out", "heavy:f", "-j", "1"]
    with subprocess.Popen(command, cwd=folder, stderr=subprocess.DEVNULL) as process:
        try:
            wait_until((folder / "begun").exists, "the import to begin")
            process.send_signal(signal.SIGTERM)
            assert process.wait(DEADLINE_SECONDS) == 4
        finally:
            process.kill()


# --- on a terminal --------------------------------------------------------------------------------


def run_on_terminal(folder: Path, number: signal.Signals | None) -> str:
    """Run serve with a terminal as stderr; stop it by three signals, or do its job."""
    master, slave = pty.openpty()
    with subprocess.Popen(
        [*PROGRAM, "serve", "in", "out", "--port", "0", "--linger", "0"],
        cwd=folder,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "120", "LINES": "30"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=slave,
    ) as process:
        os.close(slave)
        seen = b""

        def read_until(text: str) -> None:
            nonlocal seen
            give_up_at = time.monotonic() + DEADLINE_SECONDS
            while text.encode() not in seen:
                assert select.select([master], [], [], give_up_at - time.monotonic())[0], seen
                try:
                    seen += os.read(master, 65_536)
                except OSError:  # the other end is closed
                    break

        try:
            assert process.stdout is not None
            port = int(process.stdout.readline().decode().rpartition(":")[2])
            with Plain(port) as plain:
                assert plain.ask(op="hello", worker="gpu-07")["ok"]
                assert plain.get_lines(10) is not None
                assert plain.done_lines(0, [b"0"])["ok"]
                assert plain.done_lines(5, [b"5"])["ok"]
                read_until("line 1 is next: held by gpu-07 for")
                for _ in range(0 if number is None else 3):
                    process.send_signal(number or 0)
                    time.sleep(0.05)  # so that they do not become one
                if number is None:
                    rest = [b"%d" % line for line in range(1, 10)]
                    assert plain.done_lines(1, rest)["ok"]
                read_until("\0 never: only the end of it")
                code = process.wait(DEADLINE_SECONDS)
        finally:
            process.kill()
            os.close(master)
    assert code == (0 if number is None else 4)
    return seen.decode()


def test_a_terminal_shows_how_it_goes(folder: Path) -> None:
    seen = run_on_terminal(folder, None)
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", seen)
    assert "1 of 10 written · 1 ahead · 8 leased ·" in plain
    assert "· 1 worker" in plain
    assert re.search(r"[\d.]+/s", plain)
    assert seen.rindex("\x1b[?25h") > seen.rindex("\x1b[?25l"), "the cursor is back"
    assert plain.rstrip().endswith("s this time.")
    assert " 10 of 10 lines written; " in plain.splitlines()[-1]


def test_a_terminal_is_left_clean_by_the_third_signal(folder: Path) -> None:
    seen = run_on_terminal(folder, signal.SIGINT)
    assert "\x1b[?25l" in seen
    assert seen.rindex("\x1b[?25h") > seen.rindex("\x1b[?25l"), "the cursor is back"
    assert seen.rstrip().endswith("Stopped before the end: the same command goes on.")
    assert " of 10 lines written; " in seen.splitlines()[-1]


# --- status and set -------------------------------------------------------------------------------


def test_status_and_set(folder: Path) -> None:
    with serving("in", "out", cwd=folder) as serve, Plain(serve.port) as plain:
        plain.ask(op="hello", worker="gpu-07")
        assert plain.get_lines(4) is not None
        assert plain.done_lines(2, [b"2"])["ok"]
        text = trioline("status", serve.address, cwd=folder)
        assert (text.code, text.stderr) == (0, "")
        assert "0 of 10 written, 1 ahead, 3 leased" in text.stdout
        assert "1 worker\n" in text.stdout
        assert "line 0 is next: held by gpu-07" in text.stdout
        assert "  gpu-07: 3 leased, 1 done, here for" in text.stdout
        as_json = trioline("status", serve.address, "--json", cwd=folder)
        answer = json.loads(as_json.stdout)
        assert list(answer) == [field.name for field in attrs.fields(Snapshot)]
        assert list(answer["head"]) == [field.name for field in attrs.fields(Head)]
        assert list(answer["workers"][0]) == [field.name for field in attrs.fields(WorkerRow)]
        assert len(answer["workers"]) == 1, "who asks is no worker"
        changed = trioline(
            *("set", serve.address, "lease_timeout=1600", "max_attempts=5", "paused=true"),
            cwd=folder,
        )
        assert (changed.code, changed.stderr) == (0, "")
        assert changed.stdout.startswith("lease_timeout=1600 max_attempts=5 paused=true hedge=")
        environment = {"TRIOLINE_ADDRESS": serve.address}
        shown = trioline("status", cwd=folder, environment=environment).stdout
        assert "lease_timeout 1600 s, max_attempts 5" in shown
        assert ": paused, 0.0%" in shown
        assert plain.ask(op="get")["status"] == "retry"
        changed = trioline("set", "paused=false", cwd=folder, environment=environment)
        assert " paused=false " in changed.stdout
        assert plain.ask(op="get")["status"] == "work"


def test_a_reader_that_goes_away_is_no_traceback(folder: Path) -> None:
    with serving("in", "out", cwd=folder) as serve:
        for arguments in (("status", serve.address), ("status", serve.address, "--json")):
            reading, writing = os.pipe()
            os.close(reading)
            with subprocess.Popen(
                [*PROGRAM, *arguments], stdout=writing, stderr=subprocess.PIPE
            ) as process:
                os.close(writing)
                _, said = process.communicate(timeout=DEADLINE_SECONDS)
            assert said == b""
            assert process.returncode == 1


# --- help -----------------------------------------------------------------------------------------


def test_the_version() -> None:
    for option in ("--version",):
        assert subprocess.run(
            [*PROGRAM, option], capture_output=True, check=True, timeout=DEADLINE_SECONDS
        ).stdout.decode() == (f"trioline {__version__}\n")


@pytest.mark.parametrize("name", ["serve", "work", "run", "status", "set", "drain"])
def test_help_has_every_option_with_its_default(
    name: str, capfd: pytest.CaptureFixture[str]
) -> None:
    finished = invoke(name, "--help", capture=capfd.readouterr)
    assert finished.code == 0
    text = " ".join(finished.stdout.split())
    command = commands.get_command(click.Context(commands), name)
    assert command is not None
    without_default = {"--token-file", "--address-file", "--unix", "--exec", "--each"}
    for parameter in command.params:
        if not isinstance(parameter, click.Option) or parameter.hidden:
            continue
        for option in parameter.opts:
            assert option in text, option
        start = text.index(parameter.opts[0] + " ", text.index("Options:"))
        if not parameter.is_flag and parameter.opts[0] not in without_default:
            rest = text[start:]
            assert 0 < rest.find("[default: ") < 400, parameter.opts
            assert (
                f"[default: {parameter.default}" in rest
                or parameter.default is None
                or "Sentinel" in repr(parameter.default)
            )


def test_help_of_all_is_quick() -> None:
    script = (
        "import sys; from trioline.cli.main import run; code = run(['--help']); "
        "heavy = {'trio', 'anyio', 'rich', 'msgspec', 'cattrs', 'asyncio'} & set(sys.modules); "
        "sys.exit(str(heavy) if heavy else code)"
    )
    finished = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=DEADLINE_SECONDS
    )
    assert (finished.returncode, finished.stderr) == (0, "")
    for name in COMMANDS:
        assert f"\n  {name} " in finished.stdout


# --- odd inputs -----------------------------------------------------------------------------------

ODD_LINES = [
    b'{"a":1}',
    b'{"crlf":1}\r',
    b"\r",
    b"",
    b" ",
    b"\xff\xfe invalid",
    '"line\u2028separator\u2029\x85"'.encode(),
    b'"nul \x00 inside"',
    b"\xef\xbb\xbf{}",
    b"plain text",
    b'{"not": json',
    b"NaN",
    b'"\\ud800"',
    b"[" * 2_000,
    b"",
    b'"the last one"',
]


def digest(line: bytes) -> bytes:
    """What a worker answers: JSON that tells the line's bytes."""
    return json.dumps(base64.b64encode(line).decode()).encode()


def raw_of(item: dict[str, object], line: bytes) -> bytes:
    """The bytes that an item stands for."""
    if "base64" in item:
        return base64.b64decode(str(item["base64"]))
    if "line" in item:
        return str(item["line"]).encode()
    assert json.loads(line) == item["data"]
    return line


@pytest.mark.parametrize("text", [False, True], ids=["json", "text"])
@pytest.mark.parametrize(
    ("way", "end"), [("lines", b"\n"), ("lines", b""), ("items", b"\n"), ("work", b"")]
)
def test_odd_inputs(text: bool, way: str, end: bytes, tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(b"\n".join(ODD_LINES) + end)
    (tmp_path / "answers.py").write_text(
        "import base64\n\ndef answer(item):\n    return base64.b64encode(item.raw).decode()\n"
    )
    more = ["--text"] if text else []
    with serving("in", "out", "--linger", "20", *more, cwd=tmp_path) as serve:
        if way == "work":
            assert trioline("work", serve.address, "answers:answer", cwd=tmp_path).code == 0
        else:
            answer_odd_lines(serve.port, way)
        assert serve.stop().code == 0
    wanted = [digest(line) for line in ODD_LINES]
    assert (tmp_path / "out").read_bytes() == b"".join(line + b"\n" for line in wanted)


def answer_odd_lines(port: int, form: str) -> None:
    with Plain(port) as plain:
        if form == "lines":
            while (work := plain.get_lines(3)) is not None:
                plain.done_lines(work[0], [digest(line) for line in work[1]])
            return
        while (items := plain.get_items(3)) is not None:
            results = [
                {"id": item["id"], "line": digest(raw_of(item, ODD_LINES[item["id"]])).decode()}
                for item in items
            ]
            assert plain.ask(op="done", results=results)["ok"]


def test_text_results_are_kept_as_they_are(tmp_path: Path) -> None:
    lines = [line for line in ODD_LINES if line != b"\xff\xfe invalid"]
    (tmp_path / "in").write_bytes(b"\n".join(lines) + b"\n")
    finished = trioline("run", "in", "out", "--text", "--exec", "cat", "-j", "1", cwd=tmp_path)
    assert finished.code == 0
    assert (tmp_path / "out").read_bytes() == (tmp_path / "in").read_bytes()


@pytest.mark.parametrize("content", [b"", b"\n"], ids=["empty", "one-newline"])
def test_hardly_any_input(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(content)
    finished = trioline("run", "in", "out", "--text", "--exec", "cat", "-j", "1", cwd=tmp_path)
    assert finished.code == 0
    assert (tmp_path / "out").read_bytes() == content
    again = trioline("serve", "in", "out", "--text", cwd=tmp_path)
    assert again.code == 0
    assert "complete already" in again.stderr


def test_long_lines(tmp_path: Path) -> None:
    lines = [b"1", b'"' + b"x" * 20_000_000 + b'"', b"2", b'"' + b"y" * 21_000_000 + b'"', b"3"]
    (tmp_path / "in").write_bytes(b"\n".join(lines) + b"\n")
    arguments = ("--max-line", "20500000", "--linger", "0")
    with serving("in", "out", *arguments, cwd=tmp_path) as serve:
        do_all(serve.port, batch=2)
        assert serve.wait().code == 3
    lines[3] = b"null"
    assert (tmp_path / "out").read_bytes() == b"\n".join(lines) + b"\n"
    (record,) = map(json.loads, (tmp_path / "out.rejected").read_text("utf-8").splitlines())
    assert record["id"] == 3
    assert "20500000" in record["errors"][0]
