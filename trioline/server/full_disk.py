"""Calls to the files that may wait for the disk: for its answer, and on a full one for room."""

from __future__ import annotations

import logging
import math
from collections.abc import Awaitable, Callable

import trio

from trioline.errors import DiskFull
from trioline.server.thread import Thread

log = logging.getLogger("trioline.server")

RETRY_SECONDS = 1.0
LOG_SECONDS = 30.0


class FullDisk:
    """Whether the disk is full, and what is done then.

    Args:
        thread: Makes the calls.
        on_change: Called when it is found full, or has room again.
        end: When it is set, nothing is waited for any more.
    """

    def __init__(self, thread: Thread, *, on_change: Callable[[], None], end: trio.Event) -> None:
        self.is_found = False
        """It was full the last time."""
        self._thread = thread
        self._on_change = on_change
        self._end = end
        self._complained_at = -math.inf

    async def wait_room_for(
        self, call: Callable[[], None], make_room: Callable[[], Awaitable[bool]] | None = None
    ) -> bool:
        """Make a call, in a thread, until the disk takes it; False where the end comes before.

        Args:
            make_room: Called first where there is none; says whether it made some.

        Cancellation: a call under way is finished, and room is made if that found none; it is not
        made again.
        """
        while True:
            try:
                await self._thread.call(call)
            except DiskFull as full:
                if make_room is not None and await make_room():
                    continue
                self._find(full)
                if self._end.is_set():
                    return False
                with trio.move_on_after(RETRY_SECONDS):
                    await self._end.wait()
            else:
                self._find_room()
                return True

    def _find(self, full: DiskFull) -> None:
        if trio.current_time() - self._complained_at >= LOG_SECONDS:
            self._complained_at = trio.current_time()
            log.warning("%s The job waits and goes on by itself when there is room.", full)
        if not self.is_found:
            self.is_found = True
            self._on_change()

    def _find_room(self) -> None:
        if self.is_found:
            self.is_found = False
            self._complained_at = -math.inf
            log.warning("There is room again: the job goes on.")
            self._on_change()
