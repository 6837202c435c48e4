"""The job's files: input, output, journal and checkpoint; blocking code, no trio.

``Job`` opens and recovers them together. Everything goes through the one interface in ``files``.
"""

from __future__ import annotations

from trioline.storage.entries import Entry, Rejection, Results, Tried
from trioline.storage.files import Files, OsFiles
from trioline.storage.job import Job
from trioline.storage.rejected import encode_record
from trioline.storage.source import InputLineTooLong, Source

__all__ = [
    "Entry",
    "Files",
    "InputLineTooLong",
    "Job",
    "OsFiles",
    "Rejection",
    "Results",
    "Source",
    "Tried",
    "encode_record",
]
