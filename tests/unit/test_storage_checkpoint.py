"""Two slots: whatever happens to one, the other counts; with none valid nothing is guessed."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import attrs
import pytest

from trioline.errors import StorageError
from trioline.storage.checkpoint import (
    FORMAT,
    SLOT_BYTES,
    SLOT_SPACING_BYTES,
    Checkpoint,
    CheckpointFile,
    unpack,
)
from trioline.storage.files import Disk
from trioline.storage.system import OsFiles

RUN = bytes(range(16))
PATH = Path("checkpoint")
FIRST = Checkpoint(
    run_id=RUN,
    epoch=1,
    sequence=4,
    line_count=10,
    output_bytes=1_000,
    rejected_bytes=70,
    rejected_count=2,
    input_offset=2_000,
    tail_bytes=1_000,
    tail_crc=0xFFFFFFFF,
    journal_segment=3,
    journal_bytes=4,
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "checkpoint"
    file = CheckpointFile.create(Disk(OsFiles()), path, FIRST)
    file.write(attrs.evolve(FIRST, sequence=5, line_count=20))
    file.close()
    return path


def read(path: Path, run: bytes = RUN) -> Checkpoint:
    file = CheckpointFile(Disk(OsFiles()), path)
    try:
        return file.read(run)
    finally:
        file.close()


def test_a_slot_comes_back_as_it_was() -> None:
    finished = attrs.evolve(FIRST, finished=True, line_count=2**63)
    assert unpack(finished.pack(), PATH) == finished
    assert len(finished.pack()) == SLOT_BYTES


def test_every_flipped_byte_makes_a_slot_invalid() -> None:
    slot = FIRST.pack()
    for at in range(SLOT_BYTES):
        flipped = slot[:at] + bytes([slot[at] ^ 1]) + slot[at + 1 :]
        assert unpack(flipped, PATH) is None


@pytest.mark.parametrize("slot", [b"", bytes(SLOT_BYTES), FIRST.pack()[:-1], b"\xff" * SLOT_BYTES])
def test_what_is_no_slot_is_not_valid(slot: bytes) -> None:
    assert unpack(slot, PATH) is None


def test_the_highest_sequence_counts(path: Path) -> None:
    assert read(path).line_count == 20


@pytest.mark.parametrize(("slot", "left"), [(0, 20), (1, 10)])
def test_the_other_slot_counts_when_one_is_torn(path: Path, slot: int, left: int) -> None:
    data = bytearray(path.read_bytes())
    data[slot * SLOT_SPACING_BYTES + 20] ^= 0x40
    path.write_bytes(data)
    assert read(path).line_count == left


@pytest.mark.parametrize("data", [b"", bytes(8_192), b"x" * 8_192])
def test_no_valid_slot_stops(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    with pytest.raises(
        StorageError, match=r"neither of its two slots.*left as it is.*trioline repair.*--fresh"
    ):
        read(path)
    assert path.read_bytes() == data


def test_slots_of_another_run_are_not_valid(path: Path) -> None:
    with pytest.raises(StorageError, match="belongs to another job"):
        read(path, bytes(16))


def test_a_newer_format_is_refused_as_such(path: Path) -> None:
    newer = bytearray(FIRST.pack()[:-4])
    newer[8:12] = struct.pack("<I", FORMAT + 1)
    with pytest.raises(StorageError, match=f"has format {FORMAT + 1}.*knows {FORMAT}"):
        unpack(bytes(newer) + struct.pack("<I", zlib.crc32(newer)), path)
