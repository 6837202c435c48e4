"""How a command's event loop takes SIGINT and SIGTERM, from before its begin to the command's end.

An exception in the midst of trio's own code would break it, and one after the end of the loop would
change an exit code that is known. So neither signal raises any more once there is a ``Stops``.
"""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from types import FrameType

import trio

STOPS = (signal.SIGINT, signal.SIGTERM)


class Stops:
    """Takes both signals; made just before the loop begins.

    Those that come before ``heard`` are heard by it, and those that come after it mean nothing.
    """

    def __init__(self) -> None:
        self._early: list[int] = []
        for number in STOPS:
            signal.signal(number, self._note)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        self._early.append(number)

    @contextmanager
    def heard(self) -> Iterator[AsyncIterator[int]]:
        """Hear the signals, inside the loop."""
        with trio.open_signal_receiver(*STOPS) as signals:
            for number in self._early:
                signal.raise_signal(number)
            yield signals
