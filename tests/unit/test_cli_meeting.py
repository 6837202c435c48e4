"""Folders to meet in, made and left behind by many at once."""

from __future__ import annotations

import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from trioline.cli.meeting import PREFIX, meeting_folder


def test_nobody_removes_what_another_one_uses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    (tmp_path / f"{PREFIX}left").mkdir()
    (tmp_path / f"{PREFIX}left" / "socket").touch()

    def meet(_: int) -> None:
        with meeting_folder() as folder:
            assert folder.stat().st_mode & 0o777 == 0o700
            (folder / "socket").touch()
            assert (folder / "socket").exists()

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(meet, range(100)))
    assert list(tmp_path.iterdir()) == []
