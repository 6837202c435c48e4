"""A doorbell between tasks: rings are not counted, and one that nobody heard is kept."""

from __future__ import annotations

import anyio
import anyio.lowlevel


class Wakeup:
    """Lets any number of tasks wait until something may have changed.

    Whoever waits looks at the state before and after: a ring says only that looking may pay.
    Rung by the event loop's own thread.
    """

    def __init__(self) -> None:
        self._event: anyio.Event | None = None
        self._is_rung = False

    def ring(self) -> None:
        """Wake whoever waits, else the next one who would."""
        if self._event is not None:
            self._event.set()
            self._event = None
        else:
            self._is_rung = True

    async def wait(self) -> None:
        """Wait for a ring; returns at once after one that nobody heard.

        **Cancellation**: nothing happened.
        """
        if self._is_rung:
            self._is_rung = False
            await anyio.lowlevel.checkpoint()
            return
        if self._event is None:
            self._event = anyio.Event()
        await self._event.wait()
