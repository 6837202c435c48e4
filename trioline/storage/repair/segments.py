"""Which segments of the journal a start would refuse."""

from __future__ import annotations

from pathlib import Path

from trioline.storage.checkpoint import Checkpoint
from trioline.storage.repair.given import Notes
from trioline.storage.repair.salvage import Scan
from trioline.storage.segment import segment_path


def look_for_gaps(folder: Path, scans: list[Scan], last: Checkpoint, notes: Notes) -> bool:
    """Whether segments are missing that the checkpoint knows of, or parts of them."""
    if last.finished:
        return False
    before = len(notes.found)
    numbers = {scan.number for scan in scans}
    newest = max(numbers, default=0)
    for number in range(max(last.journal_segment, 1), max(last.journal_segment, newest) + 1):
        if number not in numbers:
            notes.found.append(f"{segment_path(folder, number)} is missing")
    older = sum(
        scan.length
        for scan in scans
        if scan.number < last.journal_segment and scan.top > last.line_count
    )
    if older != last.journal_older_bytes:
        notes.found.append(
            f"{folder} has {older:,} bytes of older journal that count instead of"
            f" {last.journal_older_bytes:,}: segments were cut, removed or damaged"
        )
    return len(notes.found) > before


def damaged_segments(scans: list[Scan], last: Checkpoint | None, notes: Notes) -> list[Scan]:
    """Those that a start would refuse; a torn end of the newest one is none."""
    newest = scans[-1].number if scans else 0
    damaged = []
    for scan in scans:
        certain = scan.length if scan.number != newest else 0
        if last is not None and scan.number == last.journal_segment:
            certain = max(certain, last.journal_bytes)
        if scan.bad_at < certain or not scan.is_torn_only:
            damaged.append(scan)
            lost = max(certain, scan.length) - scan.good_bytes
            notes.found.append(
                f"{scan.path} is damaged at byte {scan.bad_at:,}: {lost:,} bytes of it cannot be"
                f" read, {len(scan.pieces):,} frames are good"
            )
            what = "keep its good frames" if scan.pieces else "remove it"
            notes.steps.append(f"{scan.path}: {what}")
    return damaged
