"""``trioline`` on a disk that goes wrong while a file says so: the arguments are trioline's.

The file is the one that ``ODD_DISK`` names in the environment. In it: ``sync 5`` (a call of
``OddFiles`` and its errno), ``full``, or ``hang``.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from odd_files import HANG_SECONDS, OddFiles

import trioline.cli.repair
import trioline.storage.job
from trioline.cli import main

SWITCH = Path(os.environ["ODD_DISK"])


class SwitchedFiles(OddFiles):
    """Looks at the switch before each call."""

    def _hang(self, path: Path) -> None:
        give_up_at = time.monotonic() + HANG_SECONDS
        while _switch() == ["hang"] and time.monotonic() < give_up_at:
            time.sleep(0.01)

    def _fail(self, call: str, path: Path) -> None:
        self.codes.clear()
        match _switch():
            case ["full"]:
                self.fill()
            case [name, code]:
                self.codes = {name: int(code)}
        super()._fail(call, path)


def _switch() -> list[str]:
    return SWITCH.read_text(encoding="ascii").split() if SWITCH.exists() else []


if __name__ == "__main__":
    for module in (trioline.storage.job, trioline.cli.repair):
        vars(module)["OsFiles"] = SwitchedFiles  # stands in for the class
    sys.exit(main.run(sys.argv[1:]))
