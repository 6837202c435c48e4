"""A folder in which a server and its own workers meet, gone again whatever becomes of them.

Whoever uses one holds its lock, which ends with the process: what a killed one left behind is known
by that, and is removed by the next.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PREFIX = "trioline-run-"


@contextmanager
def meeting_folder() -> Iterator[Path]:
    """Make a folder that only this user can enter, and remove it at the end."""
    base = Path(tempfile.gettempdir())
    for path in base.glob(PREFIX + "*"):
        _remove_if_left(path)
    with contextlib.ExitStack() as opened:
        path = _make(opened)
        opened.callback(shutil.rmtree, path, ignore_errors=True)
        yield path


def _make(opened: contextlib.ExitStack) -> Path:
    while True:
        path = Path(tempfile.mkdtemp(prefix=PREFIX))
        with contextlib.suppress(OSError):  # no locks here: then nobody removes it, either
            folder = _opened(path)
            opened.callback(os.close, folder)
            fcntl.flock(folder, fcntl.LOCK_EX)
        # Before it was locked, another one may have taken it for left behind.
        if path.exists():
            return path


def _remove_if_left(path: Path) -> None:
    with contextlib.suppress(OSError), contextlib.ExitStack() as opened:
        folder = _opened(path)
        opened.callback(os.close, folder)
        if os.fstat(folder).st_uid == os.geteuid():
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(path)


def _opened(path: Path) -> int:
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
