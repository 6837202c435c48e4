"""What a start does on a full disk: it waits for room, as a running job does."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from typing import TypeVar

from trioline.errors import DiskFull
from trioline.server.full_disk import LOG_SECONDS, RETRY_SECONDS

log = logging.getLogger("trioline.cli")

_Opened = TypeVar("_Opened")


def when_there_is_room(call: Callable[[], _Opened]) -> _Opened:
    """Make a call again and again until the disk has room for it.

    It blocks, and only a signal ends the wait: KeyboardInterrupt, which ends the command with 4.

    Args:
        call: May be cut off anywhere and repeated, as all that begins or recovers a job.
    """
    complained_at = -math.inf
    while True:
        began_at = time.monotonic()
        try:
            opened = call()
        except DiskFull as full:
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
