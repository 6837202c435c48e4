"""The job's files: input, output, journal and checkpoint; blocking code, no trio.

``Job`` opens and recovers them together. Everything goes through the one interface in ``system``.
"""

from __future__ import annotations

from trioline.storage.entries import Entry, Rejection, Results, Tried
from trioline.storage.job import Job
from trioline.storage.rejected import encode_record
from trioline.storage.source import InputLineTooLong, Source
from trioline.storage.system import Files, OsFiles

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
