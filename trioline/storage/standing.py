"""The files of a running job's state that its next start cannot do without."""

from __future__ import annotations

from trioline.config import JobSettings
from trioline.errors import StorageError
from trioline.storage.checksums import CHECKSUMS_NAME
from trioline.storage.damage import damaged
from trioline.storage.files import Disk
from trioline.storage.lock import FOLDER_GONE
from trioline.storage.opening import CHECKPOINT_NAME
from trioline.storage.run import RUN_NAME


class Standing:
    """Knows these files as they were when the job was opened."""

    def __init__(self, disk: Disk, settings: JobSettings) -> None:
        self._disk = disk
        self._output = settings.output
        self._folder = settings.state
        paths = [settings.state / name for name in (RUN_NAME, CHECKSUMS_NAME, CHECKPOINT_NAME)]
        self._known = {path: disk.stat(path) for path in paths}

    def check(self) -> None:
        """See that they are in their places: a person can still tell why one is not.

        Raises:
            StorageError: Somebody moved, replaced or removed one.
        """
        if self._disk.stat(self._folder) is None:
            raise StorageError(f"{self._folder} {FOLDER_GONE}", self._folder)
        for path, known in self._known.items():
            found = self._disk.stat(path)
            if known is not None and (found is None or not found.is_same(known)):
                what = "was moved, replaced or removed while the job ran"
                raise damaged(path, what, self._output, is_known=path.name != RUN_NAME)
