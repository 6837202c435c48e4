"""How to reach the server: where it is, what to show it, how to set the socket, when to retry."""

from __future__ import annotations

import contextlib
import errno
import logging
import math
import os
import random
import socket
from pathlib import Path

from trioline.config import SILENCE_OPTIONS, Address
from trioline.errors import ErrorCode, RequestRefused, UsageError

logger = logging.getLogger("trioline.client")

ADDRESS_VARIABLE = "TRIOLINE_ADDRESS"
TOKEN_VARIABLE = "TRIOLINE_TOKEN_FILE"
DEADLINE_VARIABLE = "SLURM_JOB_END_TIME"
"""Set by Slurm in every job: when the job will be killed, in Unix time."""

MAX_UNIX_TIME = 1e12
"""No server takes a later deadline."""

CONNECT_SECONDS = 10.0
"""For a connection and for the reply to its hello, each: a dead host answers neither."""

FIRST_BACKOFF_SECONDS = 0.1
MAX_BACKOFF_SECONDS = 3.0
"""Well inside the server's default grace of ten seconds, so that leases survive a short cut."""

FINAL_CODES = frozenset(
    {ErrorCode.AUTH_REQUIRED, ErrorCode.AUTH_FAILED, ErrorCode.VERSION, ErrorCode.BAD_REQUEST}
)
"""Refusals of a hello that trying again cannot mend."""


def address_text(address: str | Address | None) -> str | Address:
    """Say which address is meant; it is parsed at each attempt, since an ``@FILE`` may change.

    Args:
        address: None for what the environment's ``TRIOLINE_ADDRESS`` says.

    Raises:
        UsageError: There is none.
    """
    found = address or os.environ.get(ADDRESS_VARIABLE)
    if not found:
        raise UsageError(
            f"No address of a server: give one, as in host:port, or set {ADDRESS_VARIABLE}."
        )
    return found


def parse_address(address: str | Address) -> Address:
    """Parse what ``address_text`` gave.

    Raises:
        UsageError: It is none, or its file cannot be read.
    """
    return address if isinstance(address, Address) else Address.parse(address)


def find_deadline(deadline: float | None) -> float | None:
    """Say when this worker will be killed, in Unix time; None where nobody knows.

    Args:
        deadline: None for what ``SLURM_JOB_END_TIME`` says, ``math.inf`` for never.

    Raises:
        UsageError: It is no time that a server would take.
    """
    if deadline is None:
        return _slurm_deadline()
    if math.isinf(deadline):
        return None
    if not 0 < deadline <= MAX_UNIX_TIME:
        raise UsageError(f"deadline is {deadline}; it must be Unix time, or math.inf for never.")
    return deadline


def _slurm_deadline() -> float | None:
    text = os.environ.get(DEADLINE_VARIABLE)
    if not text:
        return None
    with contextlib.suppress(ValueError):
        if 0 < (found := float(text)) <= MAX_UNIX_TIME:
            return found
    logger.warning("%s is %r, which is no Unix time: no deadline.", DEADLINE_VARIABLE, text)
    return None


def find_token(token: str | None) -> str | None:
    """Say which token to show.

    Args:
        token: None for what is in the file that ``TRIOLINE_TOKEN_FILE`` names, if it names any.

    Raises:
        UsageError: That file cannot be read.
    """
    path = os.environ.get(TOKEN_VARIABLE)
    if token is not None or not path:
        return token
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"The token file {path} ({TOKEN_VARIABLE}) cannot be read: {error}."
        ) from error


def worker_name(name: str | None) -> str:
    """Say how the worker is called in status and logs: ``host:pid`` unless it was given a name."""
    return name if name is not None else f"{socket.gethostname()}:{os.getpid()}"


def tune(raw: socket.socket) -> None:
    """Send small messages at once, and notice a server that vanished without a word."""
    if raw.family not in (socket.AF_INET, socket.AF_INET6):
        return
    raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in SILENCE_OPTIONS.items():  # not every system has them all
        if hasattr(socket, name):
            raw.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def reason_of(error: BaseException) -> str:
    """Say what the system said, without the wrapping of asyncio and anyio."""
    cause = error.__cause__
    system = cause if isinstance(cause, OSError) else error
    if isinstance(system, socket.gaierror):  # its numbers are not errno's
        return system.strerror or str(system)
    number = system.errno if isinstance(system, OSError) else None
    if number is not None and number in errno.errorcode:
        return os.strerror(number)
    return str(system) or type(system).__name__


def is_final(refusal: RequestRefused) -> bool:
    """Whether trying to connect again is of no use."""
    return refusal.code in FINAL_CODES


class Backoff:
    """Growing pauses between attempts, with jitter, until a deadline.

    Args:
        give_up_seconds: How long to go on without success.
        now: The instant of the first failure, by the clock that ``pause`` is asked with.
    """

    def __init__(self, give_up_seconds: float, now: float) -> None:
        self._give_up_at = now + give_up_seconds
        self._next_seconds = FIRST_BACKOFF_SECONDS

    def pause(self, now: float) -> float | None:
        """Say how long to wait before the next attempt; None when it is time to give up."""
        left = self._give_up_at - now
        if left <= 0:
            return None
        # Jitter keeps a thousand workers from coming back in the same instant.
        pause = self._next_seconds * random.uniform(0.5, 1.0)
        self._next_seconds = min(2 * self._next_seconds, MAX_BACKOFF_SECONDS)
        return min(pause, left)
