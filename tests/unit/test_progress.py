from __future__ import annotations

import io
from typing import Any

import attrs
import pytest
from rich.console import Console

from trioline.ops.progress import (
    MAX_REASON_CHARS,
    PLAIN_SECONDS,
    Progress,
    describe,
    draw,
    duration,
    figures,
    halt_line,
    head_line,
    plain,
    summary,
)
from trioline.snapshot import Head, Snapshot, WorkerRow

HEAD = Head(id=1_000, state="leased", attempt=2, worker="gpu-07", held_seconds=75.0)
WORKER = WorkerRow(
    name="gpu-07", leased=12, done=1_000, failed=1, connected_seconds=7_500, note="120 / 400"
)


def made(**changes: Any) -> Snapshot:  # noqa: ANN401 - any field of a snapshot
    fields: dict[str, Any] = {
        "job": "abc",
        "state": "running",
        "total": 20_000,
        "written": 1_000,
        "ahead": 500,
        "leased": 24,
        "queued": 3,
        "rejected": 2,
        "rate": 123.4,
        "eta": 150.0,
        "progress": 0.05,
        "elapsed": 12.0,
        "head": HEAD,
        "workers": (WORKER,),
        "connections": 2,
        "lease_timeout": 900.0,
        "max_attempts": 3,
        "paused": False,
    }
    return Snapshot(**{**fields, **changes})


def drawn(snapshot: Snapshot, width: int) -> list[str]:
    stream = io.StringIO()
    Console(file=stream, width=width, force_terminal=True, color_system=None).print(draw(snapshot))
    return stream.getvalue().splitlines()


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "0.0 s"),
        (0.53, "0.5 s"),
        (9.94, "9.9 s"),
        (9.96, "10 s"),
        (59.4, "59 s"),
        (59.6, "1:00 min"),
        (60, "1:00 min"),
        (75, "1:15 min"),
        (3_599.4, "59:59 min"),
        (3_599.6, "1:00 h"),
        (7_500, "2:05 h"),
        (86_399, "23:59 h"),
        (86_400, "1 d 0 h"),
        (200_000, "2 d 7 h"),
    ],
)
def test_durations(seconds: float, words: str) -> None:
    assert duration(seconds) == words


def test_all_figures_of_a_running_job() -> None:
    assert figures(made()) == [
        "1,000 of 20,000 written",
        "500 ahead",
        "24 leased",
        "2 rejected",
        "123/s",
        "ETA 2:30 min",
        "1 worker",
    ]


def test_figures_that_are_nothing_are_left_out() -> None:
    quiet = made(total=None, ahead=0, rejected=0, eta=None, rate=0.0, workers=(), leased=0)
    assert figures(quiet) == ["1,000 written", "0 leased", "0/s", "0 workers"]


@pytest.mark.parametrize(
    ("rate", "words"), [(0.0, "0/s"), (0.1234, "0.12/s"), (9.99, "10/s"), (12_345.6, "12,346/s")]
)
def test_rates(rate: float, words: str) -> None:
    assert words in figures(made(rate=rate))


@pytest.mark.parametrize("state", ["paused", "disk-full", "draining", "complete"])
def test_a_job_that_does_not_run_says_so_and_has_no_eta(state: str) -> None:
    said = figures(made(state=state))
    assert said[-1] == state
    assert not [part for part in said if part.startswith("ETA")]


HALTED = {"state": "halted", "halt": "150 of the last 200 lines failed: no such model"}


def test_a_halted_job_says_so_and_why_wherever_it_is_shown() -> None:
    words = "halted: 150 of the last 200 lines failed: no such model"
    halted = made(**HALTED)
    assert halt_line(halted) == words
    assert plain(halted).endswith(" · " + words)
    assert plain(halted).count("halted") == 1
    assert describe(halted).splitlines()[2] == "  " + words
    assert drawn(halted, 160)[1].rstrip() == words
    assert "ETA" not in plain(halted)
    assert halt_line(made()) is None


def test_a_reason_is_one_short_line_whatever_the_worker_said() -> None:
    said = "the last 50 lines failed alike: Traceback:\n  File\n\x1b[2J" + "x" * 100_000
    line = halt_line(made(state="halted", halt=said))
    assert line is not None
    assert line.startswith("halted: the last 50 lines failed alike: Traceback: File \ufffd[2Jxxx")
    assert len(line) <= MAX_REASON_CHARS + len("halted: ")


def test_second_copies_are_counted_where_there_are_some() -> None:
    assert figures(made(hedged=3))[2:4] == ["24 leased", "3 hedged"]


def test_workers_that_get_nothing_are_counted_apart() -> None:
    aside = attrs.evolve(WORKER, aside_seconds=25.0)
    draining = attrs.evolve(WORKER, draining=True)
    assert "1 worker (1 set aside)" in figures(made(workers=(aside,)))
    assert "2 workers (1 draining)" in figures(made(workers=(WORKER, draining)))
    assert "2 workers (1 set aside, 1 draining)" in figures(made(workers=(aside, draining)))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"aside_seconds": 25.0}, "here for 2:05 h, set aside for 25 s  120 / 400"),
        ({"draining": True}, "here for 2:05 h, draining  120 / 400"),
        ({"deadline_seconds": 600.0}, "here for 2:05 h, will be killed in 10:00 min  120 / 400"),
    ],
)
def test_what_a_worker_gets_no_lines_for_is_described(changes: dict[str, Any], words: str) -> None:
    described = describe(made(workers=(attrs.evolve(WORKER, **changes),)))
    assert described.splitlines()[-1].endswith(words)


def test_the_line_that_holds_the_output_up() -> None:
    assert head_line(made()) == "line 1,000 is next: held by gpu-07 for 1:15 min, attempt 2"
    queued = Head(id=7, state="queued", attempt=1, worker=None, held_seconds=None)
    assert head_line(made(head=queued)) == "line 7 is next and queued, attempt 1"
    assert head_line(made(head=None)) is None
    assert head_line(made(ahead=0)) is None, "nothing waits for it"


def test_a_plain_line_and_the_last_words() -> None:
    assert plain(made()).startswith("5.0% · 1,000 of 20,000 written · 500 ahead · 24 leased")
    assert summary(made()) == "1,000 of 20,000 lines written, 2 of them rejected; 12 s this time."
    assert summary(made(rejected=0, total=None)) == "1,000 lines written; 12 s this time."


def test_a_description_has_everything() -> None:
    lines = describe(made()).splitlines()
    assert lines == [
        "job abc: running, 5.0%",
        "  " + ", ".join(figures(made())),
        "  3 came back and wait to be given out again",
        "  line 1,000 is next: held by gpu-07 for 1:15 min, attempt 2",
        "  lease_timeout 900 s, max_attempts 3, 2 connections",
        "  gpu-07: 12 leased, 1,000 done, 1 failed, here for 2:05 h  120 / 400",
    ]


def test_the_live_display_on_a_wide_terminal() -> None:
    bar, head = drawn(made(), 160)
    assert "5.0% 1,000 of 20,000 written · 500 ahead" in bar
    assert "ETA 2:30 min · 1 worker" in bar
    assert "held by gpu-07" in head
    assert len(drawn(made(head=None), 160)) == 1


@pytest.mark.parametrize("width", [20, 40, 60, 80])
def test_the_live_display_on_a_narrow_terminal(width: int) -> None:
    lines = drawn(made(), width)
    assert max(map(len, lines)) <= width
    text = " ".join(" ".join(lines).split())
    assert "5.0%" in text
    assert "1,000" in text


def test_markup_in_names_is_text() -> None:
    head = Head(id=1, state="leased", attempt=1, worker="[red]x[/red]", held_seconds=1.0)
    assert "held by [red]x[/red] for" in drawn(made(head=head), 160)[1]


def test_plain_lines_come_now_and_then() -> None:
    said: list[str] = []
    with Progress(said.append, stream=io.StringIO()) as progress:
        for elapsed in (0.5, 1.0, PLAIN_SECONDS, PLAIN_SECONDS + 0.5, PLAIN_SECONDS + 1.0):
            progress.show(made(elapsed=elapsed, written=int(elapsed)))
    (line,) = said
    assert line.startswith("5.0% · 30 of 20,000 written")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_gets_a_live_display_and_is_left_clean(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    said: list[str] = []
    terminal = Terminal()
    with Progress(said.append, stream=terminal) as progress:
        progress.show(made(elapsed=0.0))
        assert "1,000 of 20,000" in terminal.getvalue()
        assert "\x1b[?25l" in terminal.getvalue(), "the cursor is hidden"
        progress.close()
        assert terminal.getvalue().endswith("\x1b[2K"), "the last line is erased"
    assert terminal.getvalue().rindex("\x1b[?25h") > terminal.getvalue().rindex("\x1b[?25l")
    assert said == []


def test_lines_for_a_log_are_to_be_had_on_a_terminal_too() -> None:
    said: list[str] = []
    terminal = Terminal()
    with Progress(said.append, is_live=False, stream=terminal) as progress:
        progress.show(made(elapsed=0.0))
        progress.show(made(elapsed=PLAIN_SECONDS))
    assert len(said) == 1
    assert terminal.getvalue() == ""
