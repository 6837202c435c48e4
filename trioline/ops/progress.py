"""How a running job shows: a live line on a terminal, a plain one now and then elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import TextIO

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from trioline.snapshot import Snapshot, WorkerRow

PLAIN_SECONDS = 30.0
"""Between two plain lines: a log of a day-long job stays readable."""
BAR_WIDTH = 30
MAX_REASON_CHARS = 200
"""Shown of why a job is halted."""


class Progress:
    """Shows snapshots on stderr; used as a context manager.

    Args:
        say: Takes a line for a log, where stderr is no terminal.
        is_live: False: lines for a log on a terminal, too.
        stream: None for stderr.

    **Closing**: leaving the context, or ``close``, gives the terminal back as it was.
    """

    def __init__(
        self, say: Callable[[str], None], *, is_live: bool = True, stream: TextIO | None = None
    ) -> None:
        self._say = say
        self._console = Console(file=stream or sys.stderr)
        self._is_live = is_live and self._console.is_terminal
        self._live: Live | None = None
        self._shown_at: float | None = None

    def __enter__(self) -> Progress:
        if self._is_live:
            self._live = Live(console=self._console, auto_refresh=False, transient=True)
            self._live.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """Take the live display away; idempotent."""
        if self._live is not None:
            self._live.stop()

    def show(self, snapshot: Snapshot) -> None:
        """Bring the display up to date."""
        if self._live is not None:
            self._live.update(draw(snapshot), refresh=True)
        elif self._shown_at is None:
            self._shown_at = snapshot.elapsed  # nothing to tell yet
        elif snapshot.elapsed - self._shown_at >= PLAIN_SECONDS:
            self._shown_at = snapshot.elapsed
            self._say(plain(snapshot))


def draw(snapshot: Snapshot) -> Table:
    """The live display: a bar with its figures, and a line about what needs attention."""
    grid = Table.grid(padding=(0, 1))
    grid.add_row(
        ProgressBar(total=1.0, completed=snapshot.progress, width=BAR_WIDTH),
        f"{snapshot.progress:.1%}",
        " · ".join(figures(snapshot)),
    )
    lines = Table.grid()
    lines.add_row(grid)
    halt = halt_line(snapshot)
    if halt is not None:
        lines.add_row(Text(halt, style="bold red"))
    head = head_line(snapshot)
    if head is not None:
        lines.add_row(Text(head, style="dim"))
    return lines


def plain(snapshot: Snapshot) -> str:
    """One line for logs."""
    halt = halt_line(snapshot)
    parts = [f"{snapshot.progress:.1%}", *figures(snapshot), *([] if halt is None else [halt])]
    return " · ".join(parts)


def figures(snapshot: Snapshot) -> list[str]:
    """What there is to know, shortest first to be cut off last."""
    total = "" if snapshot.total is None else f" of {snapshot.total:,}"
    parts = [f"{snapshot.written:,}{total} written"]
    if snapshot.ahead:
        parts.append(f"{snapshot.ahead:,} ahead")
    parts.append(f"{snapshot.leased:,} leased")
    if snapshot.hedged:
        parts.append(f"{snapshot.hedged:,} hedged")
    if snapshot.rejected:
        parts.append(f"{snapshot.rejected:,} rejected")
    parts.append(f"{snapshot.rate:,.0f}/s" if snapshot.rate >= 10 else f"{snapshot.rate:.2g}/s")
    if snapshot.eta is not None and snapshot.state == "running":
        parts.append(f"ETA {duration(snapshot.eta)}")
    parts.append(_head_count(snapshot.workers))
    if snapshot.state != "running" and halt_line(snapshot) is None:
        parts.append(snapshot.state)
    return parts


def _head_count(workers: Sequence[WorkerRow]) -> str:
    """How many workers there are, and how many of them get nothing now."""
    count = "1 worker" if len(workers) == 1 else f"{len(workers):,} workers"
    aside = sum(worker.aside_seconds is not None for worker in workers)
    draining = sum(worker.draining for worker in workers)
    notes = [f"{aside:,} set aside"] * bool(aside) + [f"{draining:,} draining"] * bool(draining)
    return f"{count} ({', '.join(notes)})" if notes else count


def halt_line(snapshot: Snapshot) -> str | None:
    """Why nothing goes on, where too much fails."""
    if snapshot.state != "halted":
        return None
    # It ends in a worker's own words: of any length, in several lines, with anything in them.
    words = " ".join((snapshot.halt or "").split())
    reason = "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in words)
    return f"halted: {reason[:MAX_REASON_CHARS]}"


def head_line(snapshot: Snapshot) -> str | None:
    """The line that holds the output up, where it does."""
    head = snapshot.head
    if head is None or not snapshot.ahead:
        return None
    if head.worker is None or head.held_seconds is None:
        return f"line {head.id:,} is next and {head.state}, attempt {head.attempt}"
    return (
        f"line {head.id:,} is next: held by {head.worker} for {duration(head.held_seconds)}, "
        f"attempt {head.attempt}"
    )


def describe(snapshot: Snapshot) -> str:
    """Several lines for a person who asks."""
    lines = [f"job {snapshot.job}: {snapshot.state}, {snapshot.progress:.1%}"]
    lines.append("  " + ", ".join(figures(snapshot)))
    halt = halt_line(snapshot)
    if halt is not None:
        lines.append("  " + halt)
    if snapshot.queued:
        lines.append(f"  {snapshot.queued:,} came back and wait to be given out again")
    head = head_line(snapshot)
    if head is not None:
        lines.append("  " + head)
    lines.append(
        f"  lease_timeout {snapshot.lease_timeout:g} s, max_attempts {snapshot.max_attempts}, "
        f"{snapshot.connections:,} connections"
    )
    lines += (f"  {worker.name}: {_describe_worker(worker)}" for worker in snapshot.workers)
    return "\n".join(lines)


def _describe_worker(worker: WorkerRow) -> str:
    parts = [f"{worker.leased:,} leased", f"{worker.done:,} done"]
    if worker.failed:
        parts.append(f"{worker.failed:,} failed")
    parts.append(f"here for {duration(worker.connected_seconds)}")
    if worker.aside_seconds is not None:
        parts.append(f"set aside for {duration(worker.aside_seconds)}")
    if worker.draining:
        parts.append("draining")
    if worker.deadline_seconds is not None:
        parts.append(f"will be killed in {duration(worker.deadline_seconds)}")
    note = f"  {worker.note}" if worker.note else ""
    return ", ".join(parts) + note


def summary(snapshot: Snapshot) -> str:
    """The last words about a job."""
    total = "" if snapshot.total is None else f" of {snapshot.total:,}"
    rejected = f", {snapshot.rejected:,} of them rejected" if snapshot.rejected else ""
    return (
        f"{snapshot.written:,}{total} lines written{rejected}; "
        f"{duration(snapshot.elapsed)} this time."
    )


def duration(seconds: float) -> str:
    """Seconds as people say them.

    >>> duration(0.53), duration(75), duration(7500), duration(200000)
    ('0.5 s', '1:15 min', '2:05 h', '2 d 7 h')
    """
    if round(seconds) < 60:
        return f"{seconds:.1f} s" if round(seconds, 1) < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes}:{rest:02} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 24:
        return f"{hours}:{minutes:02} h"
    days, hours = divmod(hours, 24)
    return f"{days} d {hours} h"
