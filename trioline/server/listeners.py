"""Sockets: where the server listens, and what is set on those it accepts."""

from __future__ import annotations

import contextlib
import errno
import socket
import stat
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import trio

from trioline.config import SILENCE_OPTIONS, Address, ServerSettings
from trioline.errors import UsageError

LISTEN_BACKLOG = 4_096
"""Workers of a whole cluster connect in the same second."""


@asynccontextmanager
async def open_listeners(settings: ServerSettings) -> AsyncIterator[Sequence[trio.SocketListener]]:
    """Listen on all the addresses that the settings name.

    Raises:
        UsageError: One of them cannot be listened on.

    Closing: leaving the context closes them and removes the Unix socket's file.
    """
    async with AsyncExitStack() as stack:
        listeners: list[trio.SocketListener] = []

        def keep(listener: trio.SocketListener) -> None:
            stack.push_async_exit(listener)
            listeners.append(listener)

        if settings.port is not None:
            for listener in await _open_tcp(settings.host, settings.port):
                keep(listener)
        if settings.unix is not None:
            keep(_open_unix(settings.unix))
            stack.callback(settings.unix.unlink, missing_ok=True)
        yield listeners


async def _open_tcp(host: str, port: int) -> list[trio.SocketListener]:
    try:
        return await trio.open_tcp_listeners(port, host=host, backlog=LISTEN_BACKLOG)
    except OSError as error:
        why = {
            errno.EADDRINUSE: "another program listens there; choose another --port, or 0 for any",
            errno.EACCES: "that port needs more rights; choose a --port above 1023",
            errno.EADDRNOTAVAIL: "this machine does not have that address; choose another --host",
        }.get(error.errno or 0, error.strerror or str(error))
        raise UsageError(f"Cannot listen on {host}:{port}: {why}.") from error


def _open_unix(path: Path) -> trio.SocketListener:
    _remove_stale(path)
    try:
        listener = _listen_on_path(path)
    except OSError as error:
        raise UsageError(f"Cannot listen on unix:{path}: {error.strerror or error}.") from error
    return trio.SocketListener(trio.socket.from_stdlib_socket(listener))


def _listen_on_path(path: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.bind(str(path))
        path.chmod(0o600)  # whoever may connect may read the input
        listener.listen(LISTEN_BACKLOG)
    except OSError:
        listener.close()
        raise
    return listener


def _remove_stale(path: Path) -> None:
    try:
        mode = path.lstat().st_mode
    except OSError:
        return
    if not stat.S_ISSOCK(mode):
        raise UsageError(f"Cannot listen on unix:{path}: a file is there that is no socket.")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            path.unlink(missing_ok=True)  # nobody listens: its server was killed
            return
    raise UsageError(f"Cannot listen on unix:{path}: another server listens there.")


def address_of(listener: trio.SocketListener) -> Address:
    """Where a listener can be reached."""
    name = listener.socket.getsockname()
    if isinstance(name, str):
        return Address(path=name)
    return Address(host=name[0], port=name[1])


def peer_name(sock: trio.socket.SocketType) -> str:
    """What an accepted socket's other end is called where it does not say."""
    try:
        name = sock.getpeername()
    except OSError:
        return "gone"
    if isinstance(name, tuple):
        return f"{name[0]}:{name[1]}"
    return f"unix-{sock.fileno()}"


def acknowledge_now(sock: trio.socket.SocketType) -> None:
    """Acknowledge what has come: a message is only half here, and its sender may be waiting.

    A client that writes a message and its raw lines one after the other, without TCP_NODELAY,
    sends the second part when the first is acknowledged, which systems put off for 40 ms.
    """
    _set_tcp_options(sock, {"TCP_QUICKACK": 1})


def watch_for_silence(sock: trio.socket.SocketType) -> None:
    """Let the system find out when the other machine is gone without a word."""
    if sock.family != socket.AF_UNIX:
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    _set_tcp_options(sock, SILENCE_OPTIONS)


def _set_tcp_options(sock: trio.socket.SocketType, options: Mapping[str, int]) -> None:
    if sock.family == socket.AF_UNIX:
        return
    for option, value in options.items():
        # Some systems lack some; a connection that is gone already is found out when it is read.
        with contextlib.suppress(OSError, AttributeError):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
