"""What a job looks like from outside at one instant: plain frozen values, safe to hand around.

The server makes one when asked, the wire carries it as the reply to ``status``, progress
displays draw it. Whoever reads it never touches live state.
"""

from __future__ import annotations

import attrs


@attrs.frozen(kw_only=True)
class Head:
    """The line that holds the output up: the first one without a result."""

    id: int
    """Its line number, from 0."""
    state: str
    """``queued`` or ``leased``."""
    attempt: int
    """Which attempt it is at or will be at next, from 1."""
    worker: str | None
    """Who holds it; None while queued."""
    held_seconds: float | None
    """Since when; None while queued."""


@attrs.frozen(kw_only=True)
class WorkerRow:
    """One connected worker."""

    name: str
    """As said in its hello, else its address."""
    leased: int
    """Lines it holds now."""
    done: int
    """Results taken from it on this connection."""
    failed: int
    """Failures it reported on this connection."""
    connected_seconds: float
    note: str | None
    """The last text it sent with ``note``."""
    draining: bool = False
    """Whether it was told to finish what it holds and go home."""
    aside_seconds: float | None = None
    """For so long yet it gets no lines, its failures standing far out; None where it gets them."""
    deadline_seconds: float | None = None
    """Until it will be killed, as it said in its hello; None where it said nothing."""


@attrs.frozen(kw_only=True)
class Snapshot:
    """A job at one instant. Counts are lines unless a name says otherwise."""

    job: str
    """The run's id."""
    state: str
    """``running``, ``paused``, ``halted`` (too many failures), ``disk-full`` (waiting for room),
    ``draining`` or ``complete``."""
    total: int | None
    """Lines in the input; None until its end has been read."""
    written: int
    """Lines whose results are in the output, in order."""
    ahead: int
    """Lines settled before their turn, rejected ones included: they wait in the journal."""
    leased: int
    queued: int
    """Lines that came back and wait to be given out again."""
    rejected: int
    """Lines given up so far, on their turn or ahead of it."""
    rate: float
    """Lines settled a second, over the last minute or so."""
    eta: float | None
    """Seconds to the end at that rate; None while it cannot be told."""
    progress: float
    """Share of the input's bytes that is written, 0 to 1."""
    elapsed: float
    """Seconds since this server started."""
    head: Head | None
    """None when nothing is outstanding."""
    workers: tuple[WorkerRow, ...]
    """At most ``config.MAX_STATUS_WORKERS``, the busiest first."""
    connections: int
    """Open connections, whether they said hello or not."""
    lease_timeout: float
    max_attempts: int
    paused: bool
    halt: str | None = None
    """Why the job is halted; None where it is not."""
    hedged: int = 0
    """Lines that a second worker has, too."""
    hedge: float = 0.0
    """A line that takes so many times as long as others is given out again; 0: none is."""
