"""The real files, behind switches: a disk that is full, broken, or does not answer."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

from trioline.storage.system import OsFiles

HANG_SECONDS = 30.0
"""No test hangs for longer."""


class OddFiles(OsFiles):
    """``OsFiles`` with faults that are switched on and off while they are in use."""

    def __init__(self) -> None:
        self.codes: dict[str, int] = {}
        """Errno by call: "pwrite", "create", "sync", "sync_folder"."""
        self.only: str | None = None
        """Only files of this name fail, or hang."""
        self.failed_count = 0
        self.answers = threading.Event()
        """Cleared: a sync waits until it is set."""
        self.answers.set()
        self.is_waiting = False
        """A sync waits."""
        self._paths: dict[int, Path] = {}

    def fill(self) -> None:
        """There is no room any more."""
        self.codes = dict.fromkeys(("pwrite", "create"), errno.ENOSPC)

    def mend(self) -> None:
        """All is well again."""
        self.codes = {}
        self.answers.set()

    def open(self, path: Path, flags: int) -> int:
        if flags & os.O_CREAT and not path.exists():
            self._fail("create", path)
        fd = super().open(path, flags)
        self._paths[fd] = path
        return fd

    def pwrite(self, fd: int, data: bytes | memoryview, offset: int) -> int:
        self._fail("pwrite", self._paths[fd])
        return super().pwrite(fd, data, offset)

    def sync(self, fd: int) -> None:
        self._hang(self._paths[fd])
        self._fail("sync", self._paths[fd])
        super().sync(fd)

    def sync_folder(self, path: Path) -> None:
        self._hang(path)
        self._fail("sync_folder", path)
        super().sync_folder(path)

    def _hang(self, path: Path) -> None:
        if self.only not in (None, path.name):
            return
        self.is_waiting = not self.answers.is_set()
        assert self.answers.wait(HANG_SECONDS)
        self.is_waiting = False

    def _fail(self, call: str, path: Path) -> None:
        if call in self.codes and self.only in (None, path.name):
            self.failed_count += 1
            code = self.codes[call]
            raise OSError(code, os.strerror(code), str(path))
