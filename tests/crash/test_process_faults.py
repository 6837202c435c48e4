"""How a whole server process ends, or does not, on a disk that goes wrong: codes and sentences."""

from __future__ import annotations

import errno
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import processes
import pytest
from processes import Plain, Serve, numbers, serving

ODD_TRIOLINE = Path(__file__).with_name("odd_trioline.py")
LINES = 6
PROMPTLY_SECONDS = 5.0

Turn = Callable[[str], None]


@pytest.fixture
def turn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Turn]:
    """Turns the disk of the servers started from now on: "sync 5", "full", "hang", "" for well."""
    switch, draft = tmp_path / "switch", tmp_path / "switch.new"
    monkeypatch.setattr(processes, "PROGRAM", (sys.executable, str(ODD_TRIOLINE)))
    monkeypatch.setenv("ODD_DISK", str(switch))
    monkeypatch.setenv("PYTHONPATH", str(Path(processes.__file__).parent))

    def write(text: str) -> None:
        draft.write_text(text, encoding="ascii")
        draft.replace(switch)

    yield write
    write("")


def send_unanswered(plain: Plain) -> threading.Thread:
    """Hand a result in and wait for the end of the connection, not for an answer."""

    def send() -> None:
        with pytest.raises((EOFError, OSError)):
            plain.done_lines(0, [b"0"])

    thread = threading.Thread(target=send)
    thread.start()
    return thread


@pytest.mark.slow
@pytest.mark.parametrize(
    ("call", "code"), [("sync", errno.EIO), ("sync", errno.ENOSPC), ("pwrite", errno.EROFS)]
)
def test_a_broken_disk_is_74_and_one_sentence(
    tmp_path: Path, turn: Turn, call: str, code: int
) -> None:
    (tmp_path / "in").write_bytes(numbers(LINES))
    with serving("in", "out", "--quiet", cwd=tmp_path) as serve, Plain(serve.port) as plain:
        plain.get_lines(1)
        turn(f"{call} {code}")
        thread = send_unanswered(plain)
        ended = serve.wait()
        thread.join()
    assert ended.code == 74
    sentence = ended.stderr.strip()
    assert "\n" not in sentence
    assert "out.trioline" in sentence
    assert os.strerror(code) in sentence
    turn("")
    finish(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_on_a_full_disk_is_4_promptly(
    tmp_path: Path, turn: Turn, number: signal.Signals
) -> None:
    """4, not 74: nothing that was promised failed, and the same command goes on."""
    (tmp_path / "in").write_bytes(numbers(LINES))
    with serving("in", "out", cwd=tmp_path) as serve, Plain(serve.port) as plain:
        plain.get_lines(1)
        turn("full")
        thread = send_unanswered(plain)
        serve.wait_status(lambda status: status["state"] == "disk-full", "a full disk")
        begin = time.monotonic()
        ended = serve.stop(number)
        thread.join()
        assert time.monotonic() - begin < PROMPTLY_SECONDS
    assert ended.code == 4
    assert f"{os.strerror(errno.ENOSPC)}. Make room" in ended.stderr
    assert "What could not be written was not acknowledged" in ended.stderr
    assert "the same command goes on" in ended.stderr
    turn("")
    finish(tmp_path)


@pytest.mark.slow
def test_the_third_signal_ends_a_server_whose_disk_does_not_answer(
    tmp_path: Path, turn: Turn
) -> None:
    (tmp_path / "in").write_bytes(numbers(LINES))
    with serving("in", "out", cwd=tmp_path) as serve, Plain(serve.port) as plain:
        plain.get_lines(1)
        turn("hang")
        thread = send_unanswered(plain)
        serve.send(signal.SIGINT)
        serve.wait_said("once more ends it now")
        serve.send(signal.SIGINT)
        time.sleep(0.5)  # it must not end: so long it is watched
        assert serve.is_running, "it ended while a commit was under way"
        ended = serve.stop(signal.SIGINT)
        thread.join()
    assert ended.code == 4
    turn("")
    finish(tmp_path)


def finish(folder: Path) -> None:
    """The same command again, with all well."""
    with serving("in", "out", cwd=folder) as serve:
        work_to_the_end(serve)
        assert serve.stop().code == 0
    assert (folder / "out").read_bytes() == numbers(LINES)


def work_to_the_end(serve: Serve) -> None:
    with Plain(serve.port) as plain:
        while (work := plain.get_lines(LINES)) is not None:
            plain.done_lines(*work)
