"""One accepted socket, with as few system calls and steps of the scheduler as can be.

What is to go is given to the system at once by whoever has it: a stream's ``send_all`` could only
be awaited, by a task of its own for each connection. What comes is waited for first: nearly always
nothing is there yet.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import trio

from trioline.config import RECEIVE_BYTES

SMALL_RECEIVE_BYTES = 64 * 1024
"""Taken at a time where no more has come the last time. For each larger piece of memory the C
library may ask the system, and give it back at once: that takes longer than all else about a short
message."""


class Transport:
    """A connected stream socket that does not block.

    Closing: its owner closes the stream. A call that waits then raises; no other may be made any
    more, but for ``send_nowait``.

    Args:
        stream: Whose socket it is; nothing else may send or receive on it.
    """

    def __init__(self, stream: trio.SocketStream) -> None:
        self._socket = stream.socket
        self._size = SMALL_RECEIVE_BYTES

    async def receive(self) -> bytes:
        """Wait for bytes, and take those that are there; none at the end of the stream.

        Raises:
            trio.BrokenResourceError: The connection broke.
            trio.ClosedResourceError: It was closed here.

        Cancellation: nothing was taken.
        """
        while True:
            await trio.lowlevel.wait_readable(self._socket)
            try:
                data = os.read(self._socket.fileno(), self._size)
            except BlockingIOError:
                continue  # what had come was not whole, and the system dropped it
            except OSError as error:
                raise trio.BrokenResourceError(f"the connection broke: {error}") from error
            is_much = len(data) >= SMALL_RECEIVE_BYTES
            self._size = RECEIVE_BYTES if is_much else SMALL_RECEIVE_BYTES
            return data

    def send_nowait(self, pieces: Sequence[bytes | memoryview]) -> int:
        """Send as much as the system takes at once, and say how many bytes that is.

        Args:
            pieces: At most 1,024, as for writev(2).

        Raises:
            trio.BrokenResourceError: The connection broke, or was closed here.
        """
        try:
            return os.writev(self._socket.fileno(), pieces)
        except BlockingIOError:
            return 0
        except OSError as error:
            raise trio.BrokenResourceError(f"the connection broke: {error}") from error

    async def send_all(self, data: memoryview) -> None:
        """Send all of ``data``.

        Raises:
            trio.BrokenResourceError: The connection broke.
            trio.ClosedResourceError: It was closed here.

        Cancellation: some of it may be out; the connection is of no use then.
        """
        while data:
            await trio.lowlevel.wait_writable(self._socket)
            data = data[self.send_nowait((data,)) :]
