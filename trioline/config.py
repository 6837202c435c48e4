"""Settings and limits, each with its unit and its reason.

``Settings`` objects are frozen and checked when they are made: whoever holds one may trust it.
The limits that a peer can meet are the ones protocol.md lists under "Limits"; a test compares.
"""

from __future__ import annotations

import enum
import ipaddress
import math
import os
import re
from pathlib import Path
from typing import Any

import attrs
import cattrs

from trioline.errors import UsageError

PROTOCOL_VERSION = 1
DEFAULT_PORT = 7766
DEFAULT_HOST = "127.0.0.1"

# --- limits that a peer can meet (protocol.md, "Limits") ---------------------------------------
MAX_LINE_BYTES = 64 * 1024 * 1024
"""One message, one input line, one result line; without its newline. hello says it."""
MAX_PLAIN_BYTES = 4 * 1024 * 1024
"""A message that is no ``done``; a ``done`` beyond it is looked at more carefully. What hostile
bytes can cost in memory is several times their number."""
MAX_BATCH = 10_000
"""Lines in one lease; more is capped, not refused. Beyond it nothing gets faster."""
MAX_LEASE_BYTES = 8 * 1024 * 1024
"""Input bytes in one lease, unless its first line alone is longer: bounds one reply's memory."""
MAX_BLOCK_BYTES = 128 * 1024 * 1024
"""Raw result lines behind one ``done``: a message is taken whole, so it is held in memory whole."""
MAX_RESULTS = 100_000
"""Results in one ``done``, in either form."""
MAX_PIPELINED = 1_000
"""Requests of one connection without an answer yet; past that it is not read further."""
MAX_OUTBOX_BYTES = 16 * 1024 * 1024
"""Replies of one connection that wait to be sent; past that it is not read further."""
MAX_CONNECTIONS = 20_000
"""Open connections; one more is answered ``too-many`` and closed."""
MAX_HELD_LEASES = 10_000
"""Leases one connection may hold; ``get`` beyond it is answered ``too-many``."""
MAX_HELD_LINES = 100_000
"""Lines that one worker name may hold (``--max-held``); ``get`` gives what is left of it, and is
answered ``too-many`` where nothing is."""
MAX_HELLO_BYTES = 16 * 1024
"""One message of a peer that still owes its token."""
MAX_HELLO_SECONDS = 10.0
"""Until a peer of a server with a token has said hello."""
MAX_NAME_CHARS = 200
"""A worker's name."""
MAX_TEXT_CHARS = 2_000
"""A note's or an error's text: longer ones are cut there, never refused."""
MAX_WAIT_SECONDS = 3_600.0
"""A ``get``'s wait; longer ones are shortened to it."""
MAX_SEND_SECONDS = 60.0
"""A peer that takes nothing of its replies for so long is cut off."""

# --- limits inside the server --------------------------------------------------------------------
MAX_QUEUED_RESULTS = 4_096
"""``done`` messages that wait for the writer: what it takes into one commit at the most."""
MAX_QUEUED_BYTES = 64 * 1024 * 1024
"""Their payload: past it connections are not read until the disk has caught up."""
RECEIVE_BYTES = 256 * 1024
"""Taken from a socket at a time: large enough for thousand-line batches in one piece."""
MAX_STATUS_WORKERS = 1_000
"""Rows of ``workers`` in a status reply."""
SYNC_INTERVAL_SECONDS = 1.0
"""How often the durable checkpoint follows the output, under ``always`` and ``interval``."""
LAZY_SYNC_INTERVAL_SECONDS = 30.0
"""The same under ``never``: as often as Linux itself writes back."""
SYNC_INTERVAL_BYTES = 64 * 1024 * 1024
"""... and at the latest after so much output: bounds what a restart replays."""
SEGMENT_BYTES = 64 * 1024 * 1024
"""A journal segment's length, unless one frame alone is longer."""
SERVER_STALL_SECONDS = 5.0
"""A sweep this late, or by half a lease, means that the process was stopped: leases are extended,
not expired."""

SILENCE_OPTIONS = {
    "TCP_KEEPIDLE": 20,  # seconds
    "TCP_KEEPINTVL": 8,  # seconds
    "TCP_KEEPCNT": 4,
    "TCP_USER_TIMEOUT": 45_000,  # milliseconds: also while something is sent that does not arrive
}
"""With these a peer whose machine or network is gone without a word is found within a minute of
its last sign of life. Both sides set them."""


WINDOW = 1_000_000
"""Lines that the work may run ahead of the first unanswered one, unless told otherwise."""


HEDGE = 2.0
"""Of the times that recent leases took: rare enough, so that few lines are worked on twice in vain,
and soon enough, so that a straggler costs its job no more than that."""


class Fsync(enum.StrEnum):
    """When a result counts as safe and its ``done`` is answered."""

    ALWAYS = "always"
    """After it is on the disk: survives power loss."""
    INTERVAL = "interval"
    """After it is with the system, synced each second: survives kill -9."""
    NEVER = "never"
    """After it is with the system, written back when the system likes: survives kill -9."""


def _between(low: float, high: float = math.inf) -> Any:  # noqa: ANN401 - attrs' validator type
    def check(_instance: object, attribute: Any, value: Any) -> None:  # noqa: ANN401
        if value is not None and not low <= value <= high:
            name = attribute.name.removesuffix("_seconds").removesuffix("_bytes")
            option = "--" + name.replace("_", "-")
            upper = "" if high == math.inf else f" and at most {_plain(high)}"
            raise UsageError(
                f"{option} is {_plain(value)}; it must be at least {_plain(low)}{upper}."
            )

    return check


def _plain(number: float) -> str:
    return f"{number:.15g}" if isinstance(number, float) else str(number)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def behind_links(path: Path) -> Path:
    """The file itself: by whatever link it is named, its job's files are beside it."""
    return Path(os.path.realpath(path)) if os.path.islink(path) else path


REJECTED_SUFFIX = ".rejected"


def default_rejected(output: Path) -> Path:
    """Where an output's rejected lines go, unless told otherwise."""
    return output.with_name(output.name + REJECTED_SUFFIX)


@attrs.frozen(kw_only=True)
class JobSettings:
    """What is done, and where: the part that storage needs."""

    input: Path
    output: Path = attrs.field(converter=behind_links)
    text: bool = False
    """Lines are text, not JSON: any result without a newline is taken."""
    placeholder: bytes = b"null"
    """Stands in the output where a line was rejected; without newline."""
    rejected: Path = attrs.field(converter=behind_links)
    """Where the full records of rejected lines go."""
    fsync: Fsync = Fsync.ALWAYS
    fresh: bool = False
    """Throw this output's earlier state and answers away and begin anew."""
    max_line_bytes: int = attrs.field(default=MAX_LINE_BYTES, validator=_between(1_024, 1 << 30))

    @property
    def state(self) -> Path:
        """The folder of checkpoint, journal and lock."""
        return self.output.with_name(self.output.name + ".trioline")


@attrs.frozen
class Halt:
    """When leasing stops because too much fails."""

    share: float
    """Of the last ``count`` lines, above 0 and at most 1."""
    count: int

    @classmethod
    def parse(cls, text: str) -> Halt | None:
        """Read ``50%/200``; None for ``never``.

        Raises:
            UsageError: It is neither.
        """
        if text == "never":
            return None
        match = re.fullmatch(r"([0-9]{1,3}(?:\.[0-9]{1,6})?)%/([0-9]{1,6})", text)
        if match is None or not 0 < float(match[1]) <= 100 or int(match[2]) < 1:
            raise UsageError(
                f"--halt is {text!r}; write a share and a number of lines, as 50%/200, or never."
            )
        return cls(float(match[1]) / 100, int(match[2]))

    def __str__(self) -> str:
        return f"{self.share * 100:g}%/{self.count}"


@attrs.frozen(kw_only=True)
class LeaseSettings:
    """How lines are given out and taken back."""

    lease_timeout_seconds: float = attrs.field(default=900.0, validator=_between(0.001, 1e9))
    max_attempts: int = attrs.field(default=3, validator=_between(1, 1_000_000))
    max_losses: int = attrs.field(default=10, validator=_between(1, 1_000_000))
    """Dropped connections a line may cost, when it was leased alone, before it is given up."""
    retry_delay_seconds: float = attrs.field(default=0.0, validator=_between(0, 1e9))
    """Before the second attempt at a line, doubled for each further one, give or take a quarter;
    but a second at least before the third one, and before the last."""
    grace_seconds: float = attrs.field(default=10.0, validator=_between(0, 1e9))
    """How long a dropped connection's leases wait for it to come back."""
    window: int = attrs.field(default=WINDOW, validator=_between(1, 1_000_000_000))
    """How many lines the work may run ahead of the first unanswered one."""
    hedge: float = attrs.field(default=HEDGE, validator=_between(0, 1e6))
    """A lease that takes so many times what 95 of 100 recent ones took at the most may get a second
    copy where nothing else is left to give; 0: never."""
    halt: Halt | None = Halt(0.5, 200)
    """When so much fails that only a line each half minute is tried; None: never."""
    max_held: int = attrs.field(default=MAX_HELD_LINES, validator=_between(1, 1_000_000_000))
    """Lines that one worker name may hold, over all its connections."""


@attrs.frozen(kw_only=True)
class ServerSettings:
    """How the server listens, drains and ends."""

    host: str = DEFAULT_HOST
    port: int | None = attrs.field(default=DEFAULT_PORT, validator=_between(0, 65_535))
    """0: any free one; None: no TCP."""
    unix: Path | None = None
    token: str | None = attrs.field(default=None, repr=False)
    linger_seconds: float = attrs.field(default=2.0, validator=_between(0, 86_400))
    """How long to go on answering ``complete`` when the job is over."""
    drain_seconds: float = attrs.field(default=10.0, validator=_between(0, 1e9))
    """How long to wait at the first signal for results that are on their way."""
    max_connections: int = attrs.field(default=MAX_CONNECTIONS, validator=_between(1, 1_000_000))

    def __attrs_post_init__(self) -> None:
        if self.port is None and self.unix is None:
            raise UsageError("There is nowhere to listen: give --port, --unix or both.")
        if self.port is not None and self.token is None and not _is_loopback(self.host):
            raise UsageError(
                f"--host {self.host} can be reached from other machines: give --token-file too, "
                "with a secret in it, and the same to the workers."
            )


converter = cattrs.Converter(forbid_extra_keys=True, detailed_validation=False)
"""Makes settings of what the command line gives; strict about types, unlike the defaults, so that
no flag becomes a number. What is wrong with a value comes out as its ``UsageError``."""


@converter.register_structure_hook
def _strict_int(value: Any, _type: type) -> int:  # noqa: ANN401 - untyped by nature
    if type(value) is not int:
        raise UsageError(f"{value!r} is not a whole number.")
    return value


@converter.register_structure_hook
def _strict_float(value: Any, _type: type) -> float:  # noqa: ANN401 - untyped by nature
    if type(value) not in (int, float):
        raise UsageError(f"{value!r} is not a number.")
    return float(value)


@converter.register_structure_hook
def _strict_bool(value: Any, _type: type) -> bool:  # noqa: ANN401 - untyped by nature
    if type(value) is not bool:
        raise UsageError(f"{value!r} is neither true nor false.")
    return value


@converter.register_structure_hook
def _strict_str(value: Any, kind: type[str]) -> str:  # noqa: ANN401 - untyped by nature
    if not isinstance(value, str):
        raise UsageError(f"{value!r} is not a text.")
    return kind(value)  # Fsync comes here, too: it is a str


@converter.register_structure_hook
def _parse_halt(value: Any, _type: Halt | None) -> Halt | None:  # noqa: ANN401 - untyped by nature
    if not isinstance(value, str):
        raise UsageError(f"{value!r} is not a text.")
    return Halt.parse(value)


converter.register_unstructure_hook(Halt, str)


@converter.register_structure_hook
def _strict_bytes(value: Any, _type: type) -> bytes:  # noqa: ANN401 - untyped by nature
    if type(value) is not bytes:
        raise UsageError(f"{value!r} is not bytes.")
    return value


@attrs.frozen
class Address:
    """Where a server is: a TCP host and port, or a Unix socket's path."""

    host: str | None = None
    port: int | None = None
    path: str | None = None

    def __str__(self) -> str:
        if self.path is not None:
            return f"unix:{self.path}"
        host = f"[{self.host}]" if self.host is not None and ":" in self.host else self.host
        return f"tcp://{host}:{self.port}"

    @classmethod
    def parse(cls, text: str) -> Address:
        """Read ``host:port``, ``tcp://host:port``, ``unix:PATH`` or ``@FILE``.

        ``@FILE`` is a file that ``trioline serve --address-file`` wrote. IPv6 hosts stand in
        square brackets. The port may be left out: it is 7766 then.

        Raises:
            UsageError: It is none of these, or the file cannot be read.
        """
        if text == "@":
            raise UsageError("The address '@' names no file: write @FILE.")
        if text.startswith("@"):
            try:
                content = Path(text[1:]).read_text(encoding="utf-8").strip()
            except (OSError, ValueError) as error:  # ValueError: not UTF-8, or no possible path
                why = error.strerror if isinstance(error, OSError) else error
                raise UsageError(f"The address file {text[1:]} cannot be read: {why}.") from error
            if content.startswith("@"):
                raise UsageError(
                    f"The address file {text[1:]} names another file: {content[:80]!r}."
                )
            return cls.parse(content)
        if text.startswith("unix:"):
            path = text.removeprefix("unix:").removeprefix("//")
            if not path:
                raise UsageError(f"The address {text!r} has no path: write unix:/path/to/socket.")
            return cls(path=os.path.expanduser(path))
        match = re.fullmatch(
            r"(?:tcp://)?(?:\[(?P<six>[0-9A-Fa-f:.%\w]+)\]|(?P<host>[^\[\]:/@\s\0]+))(?::(?P<port>[0-9]{1,5}))?/?",
            text,
        )
        if match is None:
            raise UsageError(
                f"{text!r} is no address: write host:port, tcp://host:port, unix:PATH or @FILE."
            )
        port = int(match["port"]) if match["port"] else DEFAULT_PORT
        if not 1 <= port <= 65_535:
            raise UsageError(f"The address {text!r} has port {port}; ports go from 1 to 65535.")
        return cls(host=match["six"] or match["host"], port=port)
