"""The messages, one class each; protocol.md describes them under the same names.

Requests carry ``op`` as a class attribute. None stands for "left out". Rows that come by the
thousand (``WorkItem``, ``Result``) are msgspec structs: built and read four times faster than
attrs classes (0.2 against 0.8 microseconds, measured), with their payload left as raw bytes. Of
the others those of each batch are not frozen: that takes three times as long. Nobody changes one.
"""

from __future__ import annotations

import enum
from typing import Annotated, ClassVar, Literal

import attrs
import msgspec
from msgspec import UNSET, Raw, UnsetType

from trioline.config import PROTOCOL_VERSION

MAX_ID = 2**53
"""Line numbers stay below what a JSON number holds exactly in every language."""

Id = Annotated[int, msgspec.Meta(ge=0, lt=MAX_ID)]
Count = Annotated[int, msgspec.Meta(ge=1, lt=MAX_ID)]
Seconds = Annotated[float, msgspec.Meta(ge=0, le=1e12)]


class Form(enum.StrEnum):
    """How lines travel: as JSON objects in an array, or raw behind the message."""

    ITEMS = "items"
    LINES = "lines"


# --- requests ------------------------------------------------------------------------------------


@attrs.frozen(kw_only=True)
class Hello:
    """Say who is speaking, prove it, take a dropped session up again."""

    op: ClassVar[str] = "hello"
    protocol: int = PROTOCOL_VERSION
    worker: str | None = None
    token: str | None = None
    detach: bool = False
    session: str | None = None
    deadline: Seconds | None = None


@attrs.define(kw_only=True)
class Get:
    """Ask for lines to work on."""

    op: ClassVar[str] = "get"
    max: Count = 1
    wait: Seconds = 0
    form: Form = Form.ITEMS
    stage: str | None = None


class Result(msgspec.Struct, gc=False, omit_defaults=True):
    """One row of ``Done``: exactly one of result, line and error is there; ``null`` is a result."""

    id: Id
    result: Raw | UnsetType = UNSET
    line: str | None = None
    error: str | None = None
    retry: bool = True


@attrs.define(kw_only=True)
class Done:
    """Hand in results, each its own JSON object."""

    op: ClassVar[str] = "done"
    results: list[Result]


@attrs.define(kw_only=True)
class DoneLines:
    """Hand in results of lines that follow each other; the raw lines come behind the message."""

    op: ClassVar[str] = "done"
    first: Id
    count: Count
    bytes: Id | None = None


@attrs.frozen(kw_only=True)
class Fail:
    """Say that an attempt at a line failed."""

    op: ClassVar[str] = "fail"
    id: Id
    error: str = ""
    retry: bool = True
    delay: Seconds | None = None
    lease: Id | None = None


@attrs.frozen(kw_only=True)
class Release:
    """Give lines back that were not worked on."""

    op: ClassVar[str] = "release"
    ids: list[Id] | None = None


@attrs.frozen(kw_only=True)
class Extend:
    """Keep leases for another lease timeout from now."""

    op: ClassVar[str] = "extend"
    lease: Id | None = None


@attrs.frozen(kw_only=True)
class Note:
    """Leave a text for whoever watches."""

    op: ClassVar[str] = "note"
    text: str
    id: Id | None = None


@attrs.frozen(kw_only=True)
class Status:
    """Ask how the job stands."""

    op: ClassVar[str] = "status"


@attrs.frozen(kw_only=True)
class Set:
    """Change a setting of the running job."""

    op: ClassVar[str] = "set"
    lease_timeout: Annotated[float, msgspec.Meta(ge=0.001, le=1e9)] | None = None
    max_attempts: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)] | None = None
    paused: bool | None = None
    hedge: Annotated[float, msgspec.Meta(ge=0, le=1e6)] | bool | None = None


@attrs.frozen(kw_only=True)
class Drain:
    """Tell every connection of a worker to finish what it holds and go home."""

    op: ClassVar[str] = "drain"
    worker: str


@attrs.frozen(kw_only=True)
class Ping:
    """Ask whether the server is there."""

    op: ClassVar[str] = "ping"


@attrs.frozen(kw_only=True)
class Bye:
    """Give everything back and end the connection."""

    op: ClassVar[str] = "bye"


Request = (
    Hello
    | Get
    | Done
    | DoneLines
    | Fail
    | Release
    | Extend
    | Note
    | Status
    | Set
    | Drain
    | Ping
    | Bye
)


# --- replies ------------------------------------------------------------------------------------


@attrs.frozen(kw_only=True)
class HelloReply:
    """Who the server is, and its limits."""

    protocol: int
    server: str
    session: str
    job: str
    lease_timeout: float
    max_batch: int
    max_line: int
    stages: list[str]


class WorkItem(msgspec.Struct, gc=False, omit_defaults=True):
    """One leased line: ``data`` where it is JSON, else ``line``, else ``base64``."""

    id: int
    data: Raw | UnsetType = UNSET
    line: str | UnsetType = UNSET
    base64: str | UnsetType = UNSET
    attempt: int | UnsetType = UNSET


@attrs.define(kw_only=True)
class Work:
    """Lines to work on, each its own JSON object."""

    status: Literal["work"] = "work"
    lease: int
    lease_timeout: float
    items: list[WorkItem]


@attrs.define(kw_only=True)
class WorkLines:
    """Lines to work on; they follow this reply raw, ``bytes`` long with their newlines."""

    status: Literal["work"] = "work"
    lease: int
    lease_timeout: float
    first: int
    count: int
    bytes: int
    attempt: int


@attrs.frozen(kw_only=True)
class Retry:
    """Nothing to give now; the job is not over."""

    status: Literal["retry"] = "retry"
    retry_in: float


@attrs.frozen(kw_only=True)
class Complete:
    """The worker can go home: every line has its result, or ``reason`` says why else."""

    status: Literal["complete"] = "complete"
    reason: str | None = None


@attrs.define(kw_only=True)
class DoneReply:
    """The results are safe, as the server's fsync policy defines."""

    accepted: int
    duplicate: int
    failed: int


@attrs.frozen(kw_only=True)
class FailReply:
    """What became of the line: ``queued`` again, or ``rejected``."""

    state: Literal["queued", "rejected"]
    attempt: int
    max_attempts: int


@attrs.frozen(kw_only=True)
class ReleaseReply:
    """How many lines went back."""

    released: int


@attrs.frozen(kw_only=True)
class ExtendReply:
    """The leases hold for ``lease_timeout`` seconds from now; ``lost`` lines are not held."""

    lease_timeout: float
    lost: list[int]


@attrs.frozen(kw_only=True)
class SetReply:
    """The settings as they are now."""

    lease_timeout: float
    max_attempts: int
    paused: bool
    hedge: float = 0.0


@attrs.frozen(kw_only=True)
class DrainReply:
    """How many connections were told."""

    connections: int


@attrs.frozen(kw_only=True)
class Okay:
    """Done, and nothing more to say."""


@attrs.frozen(kw_only=True)
class Refusal:
    """The request was not carried out."""

    error: str
    message: str
