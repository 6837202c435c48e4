"""Log lines on stderr, for people or for machines."""

from __future__ import annotations

import logging
import sys
import time
from datetime import UTC, datetime
from typing import TextIO

import msgspec

REPEAT_SECONDS = 30.0
"""Out of file descriptors, trio's accept loop logs ten tracebacks a second: one will do."""


class JsonFormatter(logging.Formatter):
    """One JSON object a line: ``time``, ``level``, ``message``."""

    def format(self, record: logging.LogRecord) -> str:
        """Make the line."""
        message = record.getMessage()
        if record.exc_info:
            message += "\n" + self.formatException(record.exc_info)
        at = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        fields = {"time": at, "level": record.levelname.lower(), "message": message}
        return msgspec.json.encode(fields).decode()


class TextFormatter(logging.Formatter):
    """``trioline: 14:03:05 message``: the time of day is the local one.

    A record with a false ``has_time`` has none.
    """

    def __init__(self) -> None:
        super().__init__("trioline: %(asctime)s %(message)s", "%H:%M:%S")
        self._timeless = logging.Formatter("trioline: %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        """Make the line."""
        if getattr(record, "has_time", True):
            return super().format(record)
        return self._timeless.format(record)


class StderrHandler(logging.StreamHandler[TextIO]):
    """Writes to what stderr is at the time: a live display puts itself in its place."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record."""
        self.stream = sys.stderr
        super().emit(record)


class OneInAWhile(logging.Filter):
    """Lets one record of a logger through in ``REPEAT_SECONDS``, without its traceback."""

    def __init__(self) -> None:
        super().__init__()
        self._last_at = float("-inf")

    def filter(self, record: logging.LogRecord) -> bool:
        """Decide, and shorten what goes through."""
        now = time.monotonic()
        if now - self._last_at < REPEAT_SECONDS:
            return False
        self._last_at = now
        if record.exc_info and record.exc_info[1] is not None:
            record.msg = f"new connections wait: {record.exc_info[1]}; raise the limit (ulimit -n)"
            record.args, record.exc_info = (), None
        return True


def set_up(log_format: str, *, quiet: bool) -> None:
    """Send the log to stderr in a format; ``quiet`` leaves warnings and errors."""
    handler = StderrHandler()
    handler.setFormatter(JsonFormatter() if log_format == "json" else TextFormatter())
    logging.basicConfig(level=logging.WARNING if quiet else logging.INFO, handlers=[handler])
    logging.getLogger("trio.serve_listeners").addFilter(OneInAWhile())
    # A line for each worker that comes and goes is for debugging, not for a cluster's log.
    logging.getLogger("trioline.server").setLevel(logging.WARNING)
