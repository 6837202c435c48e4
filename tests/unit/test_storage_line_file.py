"""Blocks of lines in a long file."""

from __future__ import annotations

import os
import zlib
from pathlib import Path

from trioline.storage.files import Disk
from trioline.storage.repair.line_file import Block, LineFile
from trioline.storage.system import OsFiles


def test_blocks_of_any_number_of_lines_one_after_the_other(tmp_path: Path) -> None:
    """Each block is guessed to be as long as the one before: also the one that has no lines."""
    texts = [b"%d\n" % (10**length) for length in range(40)]
    (tmp_path / "file").write_bytes(b"".join(texts))
    with Disk(OsFiles()).open(tmp_path / "file", os.O_RDONLY) as file:
        lines, at, first = LineFile(file), 0, 0
        for count in (3, 0, 1, 20, 0, 0, 2, 14, 0):
            data = b"".join(texts[first : first + count])
            assert lines.block(at, count) == Block(len(data), count, zlib.crc32(data))
            at, first = at + len(data), first + count
        assert lines.block(at, 1).count == 0
