"""Whatever is wrong with a command is said in one sentence, and nothing is lost by it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import struct
import sys
import tempfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from processes import Finished, Plain, contents, invoke, numbers, serving, trioline

from trioline.cli.main import COMMANDS

NOBODY = 65_534
Try = Callable[..., Finished]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder, which is the current one, with an input in it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path[:])
    for name in ("TRIOLINE_ADDRESS", "TRIOLINE_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "in").write_bytes(numbers(5))
    return tmp_path


@pytest.fixture
def refuse(folder: Path, capfd: pytest.CaptureFixture[str]) -> Try:
    """Runs a command that must be refused: in one sentence, with nothing touched."""

    def attempt(*arguments: str | Path, code: int = 2, says: str = "") -> Finished:
        before = contents(folder)
        finished = invoke(*arguments, capture=capfd.readouterr)
        check_refusal(finished, code)
        assert says in finished.stderr
        assert contents(folder) == before
        return finished

    return attempt


def check_refusal(finished: Finished, code: int) -> None:
    said = finished.stderr
    assert finished.code == code, said
    assert "Traceback" not in said
    assert finished.stdout == ""
    if said.startswith("Usage: "):  # click's way
        assert "\nError: " in said
    else:
        assert said.startswith("trioline: "), said
        assert said.count("\n") == 1, said
        assert said.endswith((".\n", ")\n")), said
        assert "Errno" not in said


@pytest.fixture
def port() -> Iterator[int]:
    """A port that is taken."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        yield taken.getsockname()[1]


# --- files ----------------------------------------------------------------------------------------

PATHS = [
    (("missing", "out"), "The input missing does not exist"),
    ((".", "out"), "The input . is a folder"),
    (("fifo", "out"), "The input fifo is no regular file"),
    (("in/below", "out"), "in/below"),
    (("in", "nowhere/out"), "There is no folder nowhere"),
    (("in", "in/out"), "There is no folder in for"),
    (("in", "folder"), "folder, given for the output, is a folder"),
    (("in", "fifo"), "fifo, given for the output, is no regular file"),
    (("in", "."), "The output '.' is a folder"),
    (("in", ".."), "The output '..' is a folder"),
    (("in", "/"), "The output '/' is a folder"),
    (("in", ""), "is a folder: name a file"),
    (("", "out"), "is a folder"),
    (("in", "in"), "is the input in itself"),
    (("in", "link"), "is the input in itself"),
    (("in", "other"), "other exists and is not this job's"),
    (("in", "out", "--rejected", "other"), "other exists and is not this job's"),
    (("in", "out", "--rejected", "in"), "is the input in itself"),
    (("in", "out", "--rejected", "out"), "name two files"),
    (("in", "out", "--rejected", "nowhere/x"), "There is no folder nowhere"),
    (("in", "out", "--rejected", "folder"), "is a folder"),
    (("in", "taken"), "taken.trioline is no folder"),
    (("in", "out", "--address-file", "nowhere/x"), "The address file nowhere/x"),
    (("in", "out", "--address-file", "folder"), "The address file folder"),
    (("in", "out", "--token-file", "nowhere"), "The token file nowhere cannot be read"),
    (("in", "out", "--token-file", "folder"), "The token file folder cannot be read"),
    (("in", "out", "--token-file", "empty"), "The token file empty must hold"),
    (("in", "out", "--token-file", "blank"), "The token file blank must hold"),
    (("in", "out", "--token-file", "binary"), "The token file binary cannot be read"),
    (("in", "out", "--unix", "in"), "a file is there that is no socket"),
    (("in", "out", "--unix", "nowhere/x"), "Cannot listen on unix:nowhere/x"),
    (("in", "out", "--unix", "x" * 200), "Cannot listen on unix:xxx"),
]


@pytest.mark.parametrize("command", ["serve", "run"])
@pytest.mark.parametrize(("arguments", "says"), PATHS)
def test_files_that_cannot_be_used(
    command: str, arguments: tuple[str, ...], says: str, folder: Path, refuse: Try
) -> None:
    (folder / "folder").mkdir()
    (folder / "link").symlink_to("in")
    os.mkfifo(folder / "fifo")
    for name, content in {
        "other": b"somebody else's\n",
        "taken.trioline": b"",
        "empty": b"",
        "blank": b" \n",
        "binary": b"\xff\xfe",
    }.items():
        (folder / name).write_bytes(content)
    work = ["--exec", "cat"] if command == "run" else []
    port = ["--port", "0"]
    refuse(command, *arguments, *work, *port, says=says)


@pytest.mark.parametrize(
    "names", [("caf\udce9", "out"), ("in", "caf\udce9"), ("in", "out", "--rejected", "caf\udce9")]
)
def test_file_names_that_are_not_utf_8(
    names: tuple[str, ...], folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (folder / "caf\udce9").write_bytes(b"" if names[0] == "in" else numbers(5))
    finished = invoke("serve", *names, "--port", "0", capture=capfd.readouterr)
    check_refusal(finished, 2)
    assert "The path 'caf\\udce9' is not UTF-8" in finished.stderr
    assert not list(folder.glob("*.trioline"))


@pytest.fixture
def nobody(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A current folder in which this process, root or not, has no special rights."""
    if os.geteuid() != 0:
        yield folder
        return
    open_folder = Path(
        tempfile.mkdtemp()
    )  # tmp_path is inside of a folder that others cannot enter
    open_folder.chmod(0o777)
    monkeypatch.chdir(open_folder)
    Path("in").write_bytes(numbers(5))
    os.setresuid(NOBODY, NOBODY, 0)
    try:
        yield open_folder
    finally:
        os.setresuid(0, 0, 0)
        shutil.rmtree(open_folder)


@pytest.mark.parametrize("command", ["serve", "run"])
def test_permissions(command: str, nobody: Path, capfd: pytest.CaptureFixture[str]) -> None:
    work = ["--exec", "cat"] if command == "run" else []
    for name in ("secret", "fixed"):
        Path(name).write_bytes(b"")
    Path("closed").mkdir()
    for name, mode in {"secret": 0o000, "fixed": 0o400, "closed": 0o500}.items():
        Path(name).chmod(mode)
    for arguments, says in (
        (("secret", "out"), "secret"),
        (("in", "closed/out"), "closed of the output closed/out is not writable"),
        (("in", "fixed"), "fixed, given for the output, is not writable"),
        (("in", "out", "--rejected", "closed/x"), "not writable"),
        (
            ("in", "out", "--address-file", "closed/x"),
            "The address file closed/x cannot be written",
        ),
        (("in", "out", "--token-file", "secret"), "secret"),
        (("in", "out", "--unix", "closed/x"), "Cannot listen on unix:closed/x"),
    ):
        before = sorted(os.listdir())
        finished = invoke(command, *arguments, "--port", "0", *work, capture=capfd.readouterr)
        check_refusal(finished, 2)
        assert says in finished.stderr
        assert sorted(os.listdir()) == before


# --- a job that is there --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A job that was stopped with two of its five lines done, and one ahead; to be copied."""
    folder = tmp_path_factory.mktemp("stopped")
    (folder / "in").write_bytes(numbers(5))
    with serving("in", "out", cwd=folder) as serve:
        with Plain(serve.port) as plain:
            assert plain.get_lines(5) == (0, [b"0", b"1", b"2", b"3", b"4"])
            assert plain.done_lines(0, [b"0", b"1"])["accepted"] == 2
            assert plain.done_lines(3, [b"3"])["accepted"] == 1
            plain.ask(op="release")
        assert serve.stop().code == 4
    return folder


@pytest.fixture
def job(stopped: Path, folder: Path) -> Path:
    """A copy of it, in the current folder."""
    return shutil.copytree(stopped, folder, dirs_exist_ok=True)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("in", "out", "--text"), "--text"),
        (("in", "out", "--placeholder", "1"), "--placeholder"),
        (("in", "out", "--rejected", "other"), "--rejected"),
        (("longer", "out"), "bytes"),
        (("same-size", "out"), "same length"),
    ],
)
def test_another_input_or_other_options(
    arguments: tuple[str, ...], says: str, job: Path, refuse: Try
) -> None:
    (job / "longer").write_bytes(numbers(6))
    (job / "same-size").write_bytes(numbers(5).replace(b"4", b"5"))
    said = refuse("serve", *arguments, "--port", "0", says=says).stderr
    assert "--fresh" in said
    assert str(arguments[0]) in said


def cut(content: bytes) -> bytes:
    return content[: len(content) // 2]


def flip_slots(content: bytes) -> bytes:
    damaged = bytearray(content)
    damaged[20] ^= 1
    damaged[4096 + 20] ^= 1
    return bytes(damaged)


def newer_slots(content: bytes) -> bytes:
    newer = bytearray(content)
    for at in (0, 4096):
        struct.pack_into("<I", newer, at + 8, 99)
        struct.pack_into("<I", newer, at + 508, zlib.crc32(newer[at : at + 508]))
    return bytes(newer)


def newer_run(content: bytes) -> bytes:
    return json.dumps({**json.loads(content), "format": 99}).encode()


@pytest.mark.parametrize(
    ("name", "damage", "says"),
    [
        ("out.trioline/checkpoint", flip_slots, "damaged"),
        ("out.trioline/checkpoint", lambda content: content[:100], "damaged"),
        ("out.trioline/checkpoint", lambda _: b"", "damaged"),
        ("out.trioline/checkpoint", newer_slots, "99"),
        ("out.trioline/run.json", newer_run, "99"),
        ("out.trioline/run.json", cut, "damaged"),
        ("out.trioline/run.json", lambda _: b"[]", "damaged"),
        ("out.trioline/journal-*", lambda _: b"", "out.trioline"),
        ("out.trioline/journal-*", lambda content: bytes(len(content)), "out.trioline"),
        ("out", lambda _: b"0\n", "out"),
        ("out", lambda _: b"7\n7\n", "out"),
    ],
)
def test_damage_stops_it(
    name: str, damage: Callable[[bytes], bytes], says: str, job: Path, refuse: Try
) -> None:
    (path,) = job.glob(name)
    path.write_bytes(damage(path.read_bytes()))
    said = refuse("serve", "in", "out", "--port", "0", code=74, says=says).stderr
    assert path.name in said or "journal" in said


@pytest.mark.parametrize("name", ["out", "out.trioline/checkpoint", "out.trioline/run.json"])
def test_a_file_that_is_gone_stops_it(name: str, job: Path, refuse: Try) -> None:
    (job / name).unlink()
    refuse("serve", "in", "out", "--port", "0", code=74, says="out")


def test_two_servers_on_one_output(folder: Path, refuse: Try) -> None:
    with serving("in", "out", cwd=folder) as serve:
        for more in ((), ("--fresh",)):
            said = refuse("serve", "in", "out", "--port", "0", *more, code=1).stderr
            assert f"process {serve.pid}" in said
            assert "out.trioline" in said
        assert serve.status()["state"] == "running"


# --- addresses ------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["serve", "run"])
def test_a_port_that_is_taken(command: str, port: int, refuse: Try) -> None:
    work = ["--exec", "cat"] if command == "run" else []
    said = refuse(command, "in", "out", "--port", str(port), *work).stderr
    assert f"127.0.0.1:{port}" in said
    assert "--port" in said


def test_fresh_on_a_port_that_is_taken_keeps_the_old_answers(
    job: Path, port: int, refuse: Try
) -> None:
    refuse("serve", "in", "out", "--fresh", "--port", str(port), says="Cannot listen")
    assert (job / "out").read_bytes() == b"0\n1\n"


def test_a_job_to_be_resumed_is_untouched_where_the_port_is_taken(
    folder: Path, port: int, refuse: Try
) -> None:
    with serving("in", "out", cwd=folder) as serve:
        assert serve.stop(signal.SIGTERM).code == 4
    refuse("serve", "in", "out", "--port", str(port), says="Cannot listen")


def test_hosts(folder: Path, refuse: Try) -> None:
    for host in ("0.0.0.0", "::", "198.51.100.1", "nonsense.invalid", ""):
        assert "--token-file" in refuse("serve", "in", "out", "--host", host).stderr
    (folder / "token").write_text("secret")
    for host in ("198.51.100.1", "nonsense.invalid", "not a host"):
        given = ("--host", host, "--token-file", "token", "--port", "0")
        assert host in refuse("serve", "in", "out", *given, says="Cannot listen").stderr


NONSENSE = [
    ("", "is no address"),
    (":", "is no address"),
    ("host:", "is no address"),
    ("a:b:c", "is no address"),
    ("http://host", "is no address"),
    ("1.2.3.4:99999", "ports go from 1 to 65535"),
    ("1.2.3.4:0", "ports go from 1 to 65535"),
    ("unix:", "has no path"),
    ("@", "names no file"),
    ("@nowhere", "The address file nowhere cannot be read"),
    ("@.", "The address file . cannot be read"),
    ("@in", "is no address"),
    ("@again", "names another file"),
    ("[::1", "is no address"),
    ("a host:1", "is no address"),
]


@pytest.mark.parametrize(("address", "says"), NONSENSE)
def test_nonsense_addresses(address: str, says: str, folder: Path, refuse: Try) -> None:
    (folder / "again").write_text("@again")
    refuse("work", address, "--exec", "cat", says=says)
    if address:
        refuse("status", address, says=says)
        refuse("set", address, "paused=true", says=says)


def test_nobody_there(refuse: Try, port: int, capfd: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        free = closed.getsockname()[1]
    for address in (f"127.0.0.1:{free}", "unix:nobody", "nobody.invalid:1"):
        assert "No connection to" in refuse("status", address, code=1).stderr
        assert "No connection to" in refuse("set", address, "paused=true", code=1).stderr
        gave_up = invoke(
            *("work", address, "--exec", "cat", "--give-up", "0.2"), capture=capfd.readouterr
        )
        assert gave_up.code == 1
        first, last = gave_up.stderr.splitlines()
        assert " No connection to" in first
        assert first.endswith("Trying again.")
        assert " Gave up after 0.2 seconds without a connection: No connection to" in last


def test_no_address_at_all(refuse: Try) -> None:
    refuse("status", says="ADDRESS")
    refuse("set", says="ADDRESS")
    refuse("set", "127.0.0.1:1", says="ADDRESS")
    refuse("set", "paused=true", says="ADDRESS")
    refuse("work", says="ADDRESS")
    refuse("work", "--exec", "cat", says="ADDRESS")


def test_something_else_listens_there(
    refuse: Try, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trioline.cli.control.ANSWER_SECONDS", 0.2)
    refuse("status", f"127.0.0.1:{port}", code=1, says="did not answer within 0.2 seconds")


def test_wrong_tokens(folder: Path, refuse: Try) -> None:
    (folder / "token").write_text("secret\n")
    (folder / "wrong").write_text("public\n")
    with serving("in", "out", "--token-file", "token", cwd=folder) as serve:
        for more in ((), ("--token-file", "wrong")):
            for arguments in (
                ("work", serve.address, "--exec", "cat"),
                ("status", serve.address),
                ("set", serve.address, "paused=true"),
            ):
                refuse(*arguments, *more, code=1, says="token")
        assert serve.status()["error"] == "auth-required"


# --- functions ------------------------------------------------------------------------------------

MODULE = "value = 5\nclass Holder: pass\ndef answer(item): return 1\n"


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("nomodule_x:f", "Cannot import nomodule_x: No module named"),
        ("userfunctions", "write MODULE:FUNCTION"),
        ("userfunctions:", "write MODULE:FUNCTION"),
        (":answer", "write MODULE:FUNCTION"),
        ("", "write MODULE:FUNCTION"),
        ("..:f", "write MODULE:FUNCTION"),
        ("user\nfunctions:f", "write MODULE:FUNCTION"),
        ("userfunctions:other", "The module userfunctions has no other"),
        ("userfunctions:Holder.other", "has no Holder.other"),
        ("userfunctions:value", "no function but a int"),
        ("userfunctions.py:answer", "Cannot import userfunctions.py"),
        ("useless:f", "Cannot import useless: No module named 'nomodule_x'"),
        ("raises:f", "Importing raises failed: RuntimeError: on two lines"),
        ("wrong:f", "Importing wrong failed: SyntaxError"),
        ("exits:f", "Importing exits failed: SystemExit: 7"),
    ],
)
def test_functions_that_cannot_be_had(
    name: str, says: str, folder: Path, refuse: Try, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    for module, source in {
        "userfunctions": MODULE,
        "useless": "import nomodule_x\n",
        "raises": "raise RuntimeError('on two\\nlines')\n",
        "wrong": "def (\n",
        "exits": "import sys\nsys.exit(7)\n",
    }.items():
        (folder / f"{module}.py").write_text(source)
        monkeypatch.delitem(sys.modules, module, raising=False)
    refuse("work", "127.0.0.1:1", name, says=says)
    refuse("run", "in", "out", name, says=says)


def test_what_does_the_work(refuse: Try) -> None:
    for arguments in ((), ("f:f", "--exec", "cat"), ("f:f", "--each", "cat")):
        assert "--exec CMD" in refuse("run", "in", "out", *arguments).stderr
        assert "--exec CMD" in refuse("work", "127.0.0.1:1", *arguments).stderr
    for work in (("run", "in", "out"), ("work", "127.0.0.1:1")):
        refuse(*work, "--exec", "cat", "--each", "cat", says="do not go together")
        refuse(*work, "--exec", "cat", "--many", says="--many goes with MODULE:FUNCTION")
        refuse(*work, "--exec", "", says="The command is empty")
        refuse(*work, "--each", " ", says="The command is empty")


# --- options --------------------------------------------------------------------------------------

JOB_OPTIONS = {
    "--max-line": ("1023", "1073741825", "x", "1.5"),
    "--port": ("-1", "65536", "x"),
    "--lease-timeout": ("0", "-1", "nan", "inf", "1e10", "x"),
    "--max-attempts": ("0", "-1", "1000001", "1.5", "x"),
    "--max-losses": ("0", "1000001", "x"),
    "--retry-delay": ("-1", "nan", "inf", "x"),
    "--grace": ("-1", "nan", "inf", "x"),
    "--window": ("0", "1000000001", "x"),
    "--hedge": ("-1", "nan", "1e7", "x"),
    "--halt": ("50", "0%/200", "101%/200", "50%/0", "x%/5"),
    "--max-held": ("0", "1000000001", "x"),
    "--linger": ("-1", "nan", "inf", "86401", "x"),
    "--drain": ("-1", "nan", "inf", "x"),
    "--fsync": ("sometimes",),
    "--log-format": ("xml",),
    "--placeholder": ("{", "", "1\n2", "NaN"),
}
WORK_OPTIONS = {
    "--concurrency": ("0", "100001", "x"),
    "--batch": ("0", "10001", "x"),
    "--timeout": ("0", "-1", "nan", "x"),
    "--drain": ("-1", "nan", "inf", "x"),
    "--give-up": ("-1", "nan", "inf", "x"),
    "--processes": ("0", "4097", "x"),
    "--log-format": ("xml",),
}


@pytest.mark.parametrize(
    ("command", "option", "value"),
    [("serve", option, value) for option, values in JOB_OPTIONS.items() for value in values]
    + [
        ("run", option, value)
        for option, values in {**WORK_OPTIONS, **JOB_OPTIONS, "--jobs": ("0", "x")}.items()
        for value in values
        if option not in ("--processes", "--give-up")
    ]
    + [("work", option, value) for option, values in WORK_OPTIONS.items() for value in values],
)
def test_options_out_of_range(command: str, option: str, value: str, refuse: Try) -> None:
    arguments = {
        "serve": ("in", "out"),
        "run": ("in", "out", "--exec", "cat"),
        "work": ("127.0.0.1:1", "--exec", "cat"),
    }[command]
    assert option in refuse(command, *arguments, f"{option}={value}").stderr


@pytest.mark.parametrize("command", [("serve", "in", "out"), ("repair", "out", "--input", "in")])
def test_a_placeholder_that_is_not_utf_8(
    command: tuple[str, ...], folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    given = os.fsdecode(b"caf\xe9")
    finished = invoke(*command, "--text", "--placeholder", given, capture=capfd.readouterr)
    check_refusal(finished, 2)
    assert "--placeholder 'caf\\udce9' is not UTF-8" in finished.stderr
    assert not (folder / "out.trioline").exists()


def test_every_option_that_takes_a_number_is_tried() -> None:
    from trioline.cli.main import commands

    for name, tried in {
        "serve": JOB_OPTIONS,
        "run": {**JOB_OPTIONS, **WORK_OPTIONS, "--jobs": ()},
        "work": WORK_OPTIONS,
    }.items():
        command = commands.get_command(None, name)  # type: ignore[arg-type]
        assert command is not None
        for parameter in command.params:
            if parameter.type.name.split()[0] in ("integer", "float"):
                assert set(parameter.opts) & set(tried), parameter.opts


@pytest.mark.parametrize(
    "settings",
    [
        ("speed=1",),
        ("lease_timeout",),
        ("lease_timeout=",),
        ("lease_timeout=soon",),
        ("lease_timeout=nan",),
        ("lease_timeout=inf",),
        ("lease_timeout=0",),
        ("max_attempts=1.5",),
        ("max_attempts=0",),
        ("paused=yes",),
        ("=",),
        ("paused=true", "paused=false"),
        ("paused=true", "speed=1"),
    ],
)
def test_settings_that_are_none(settings: tuple[str, ...], folder: Path, refuse: Try) -> None:
    said = refuse("set", "127.0.0.1:1", *settings).stderr
    assert settings[-1].partition("=")[0] in said


def test_commands_that_are_none(refuse: Try) -> None:
    refuse("serv", says="serv")
    refuse("serve", "in", says="OUTPUT")
    refuse("serve", "in", "out", "more", says="more")
    for command in COMMANDS:
        refuse(command, "--bogus", says="--bogus")


# --- whole processes ------------------------------------------------------------------------------


def test_a_whole_process_ends_the_same_way(folder: Path) -> None:
    before = contents(folder)
    check_refusal(trioline("serve", "missing", "out", cwd=folder), 2)
    check_refusal(trioline("serve", "in", "", cwd=folder), 2)
    assert contents(folder) == before


def test_json_errors_are_json(folder: Path) -> None:
    finished = trioline("serve", "missing", "out", "--log-format", "json", cwd=folder)
    assert finished.code == 2
    (line,) = finished.stderr.splitlines()
    assert json.loads(line)["level"] == "error"
    assert json.loads(line)["message"].startswith("The input missing does not exist")


def test_all_workers_die(folder: Path) -> None:
    (folder / "dies.py").write_text("import os\n\ndef answer(item):\n    os._exit(3)\n")
    finished = trioline("run", "in", "out", "dies:answer", "-j", "2", cwd=folder)
    assert finished.code == 1
    last = finished.stderr.splitlines()[-1]
    assert " All workers ended before the job did (exit code 3)" in last
    assert "Traceback" not in finished.stderr


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_signal_while_the_function_is_being_imported(name: str, folder: Path) -> None:
    (folder / "slow.py").write_text(
        f"import signal\nsignal.raise_signal(signal.{name})\ndef answer(item): return 1\n"
    )
    for command in (("run", "in", "out"), ("work", "127.0.0.1:1")):
        finished = trioline(*command, "slow:answer", cwd=folder)
        assert finished.code == 4
        assert finished.stderr.strip() == ""
    assert not (folder / "out").exists()
