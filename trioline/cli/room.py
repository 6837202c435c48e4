"""What a start or an end does on a full disk: it waits for room, as a running job does."""

from __future__ import annotations

import logging
import math
import signal
import time
from collections.abc import Callable
from typing import TypeVar

import click

from trioline.cli.main import EXIT_STOPPED
from trioline.errors import DiskFull
from trioline.server.full_disk import LOG_SECONDS, RETRY_SECONDS

log = logging.getLogger("trioline.cli")

_Opened = TypeVar("_Opened")


def when_there_is_room(call: Callable[[], _Opened]) -> _Opened:
    """Make a call again and again until the disk has room for it.

    It blocks, and only a signal ends the wait.

    Args:
        call: May be cut off anywhere and repeated, as all that begins, recovers or ends a job.

    Raises:
        Exit: A signal came: the command ends with 4.
    """
    try:
        return _repeated(call)
    except KeyboardInterrupt:
        log.info("Stopped before the end: the same command goes on.")
        raise click.exceptions.Exit(EXIT_STOPPED) from None


def _repeated(call: Callable[[], _Opened]) -> _Opened:
    complained_at = -math.inf
    while True:
        began_at = time.monotonic()
        try:
            opened = call()
        except DiskFull as full:
            _hear_sigint()
            now = time.monotonic()
            if now - complained_at >= LOG_SECONDS:
                complained_at = now
                log.warning("%s The job waits and goes on by itself when there is room.", full)
            # A recovery may read for minutes before it finds no room: half of the time at most.
            time.sleep(max(RETRY_SECONDS, now - began_at))
        else:
            if complained_at > -math.inf:
                log.warning("There is room again: the job goes on.")
            return opened


def _hear_sigint() -> None:
    """As a running server does, also where a shell started it with ``&`` and so ignores it."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
