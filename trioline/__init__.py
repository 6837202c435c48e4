"""trioline leases the lines of one large file to any number of workers.

The nth line of the output answers the nth line of the input, and what was acknowledged survives
kill -9 and power loss. ``trioline serve`` is the server; the names below are for workers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from trioline._version import __version__

if TYPE_CHECKING:
    from trioline.client.blocking import Client
    from trioline.client.item import Item, Raw, Reject
    from trioline.client.session import Session, connect
    from trioline.client.worker import run_worker

__all__ = ["Client", "Item", "Raw", "Reject", "Session", "__version__", "connect", "run_worker"]

_HOMES = {
    "Client": "trioline.client.blocking",
    "Item": "trioline.client.item",
    "Raw": "trioline.client.item",
    "Reject": "trioline.client.item",
    "Session": "trioline.client.session",
    "connect": "trioline.client.session",
    "run_worker": "trioline.client.worker",
}


def __getattr__(name: str) -> object:
    # Imported on first use, so that the command line starts without the client and anyio.
    if name in _HOMES:
        import importlib

        # Kept: functions say trioline.Raw for every line.
        found = globals()[name] = getattr(importlib.import_module(_HOMES[name]), name)
        return found
    raise AttributeError(f"module 'trioline' has no attribute {name!r}")
