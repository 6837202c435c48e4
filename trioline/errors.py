"""What can go wrong, as exceptions and as words on the wire.

The tree::

    TriolineError
     ├── UsageError               the command, its files or its options are wrong        exit 2
     │    └── JobMismatch         the state on disk belongs to another job               exit 2
     ├── JobLocked                another server holds this output                       exit 1
     ├── StorageError             a file failed or is damaged; has ``path``              exit 74
     │    └── DiskFull            no room: the job waits and goes on by itself
     ├── ProtocolError
     │    ├── LocalProtocolError  we were about to break the protocol (a bug or a bad argument)
     │    └── RemoteProtocolError the peer broke it; has ``code``
     ├── RequestRefused           the server answered a client's request with an error code
     ├── ConnectionLost           the connection to the server ended or never came to be
     └── LeaseLost                the lines are no longer this worker's

``StorageError`` is no ``OSError``, so that a disk error can never pass for a network one.
"""

from __future__ import annotations

import enum
import os


class ErrorCode(enum.StrEnum):
    """The closed list of words that ``error`` in a reply can be. See protocol.md, "Errors"."""

    BAD_JSON = "bad-json"
    LINE_TOO_LONG = "line-too-long"
    AUTH_REQUIRED = "auth-required"
    AUTH_FAILED = "auth-failed"
    VERSION = "version"
    UNKNOWN_OP = "unknown-op"
    BAD_REQUEST = "bad-request"
    BAD_RESULT = "bad-result"
    UNKNOWN_ID = "unknown-id"
    NOT_HELD = "not-held"
    TOO_MANY = "too-many"
    TOO_LARGE = "too-large"
    INTERNAL = "internal"

    @property
    def closes(self) -> bool:
        """Whether the server closes the connection after this reply."""
        return self in CLOSING_CODES


CLOSING_CODES = frozenset(
    {
        ErrorCode.BAD_JSON,
        ErrorCode.LINE_TOO_LONG,
        ErrorCode.AUTH_REQUIRED,
        ErrorCode.AUTH_FAILED,
        ErrorCode.VERSION,
    }
)


class TriolineError(Exception):
    """Base of everything trioline raises on purpose. ``str()`` is one sentence for a person."""


class UsageError(TriolineError):
    """The command line, an option or a named file cannot be used as it is."""


class JobMismatch(UsageError):
    """The state beside the output was made for another input or with other options."""


class JobLocked(TriolineError):
    """Another server process is working on this output."""


class StorageError(TriolineError):
    """A file of the job failed, or its content is not what was written.

    Attributes:
        path: The file or folder concerned.
    """

    def __init__(self, message: str, path: str | os.PathLike[str]) -> None:
        super().__init__(message)
        self.path = os.fspath(path)


class DiskFull(StorageError):
    """There is no room (ENOSPC, EDQUOT, EFBIG). Nothing was taken; the call may be repeated."""


class ProtocolError(TriolineError):
    """The line protocol was, or was about to be, broken."""


class LocalProtocolError(ProtocolError):
    """Our own side was about to send something the protocol forbids."""


class RemoteProtocolError(ProtocolError):
    """The peer sent something the protocol forbids.

    Attributes:
        code: The word for it on the wire.
        is_fatal: Whether the rest of the stream means nothing, so that the connection ends.
    """

    def __init__(self, code: ErrorCode, message: str, *, is_fatal: bool | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.is_fatal = code.closes if is_fatal is None else is_fatal


class RequestRefused(TriolineError):
    """The server answered a request with ``{"ok":false,…}``.

    Attributes:
        code: The word from the reply; one of ``ErrorCode``, or a newer server's word.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"{message} ({code})")
        self.code = code


class ConnectionLost(TriolineError):
    """The connection ended before the answer came: whether the request took effect is unknown.

    Repeating ``done`` is always safe: the first result of a line wins, later ones are duplicates.
    """


class LeaseLost(TriolineError):
    """The lines are no longer leased to this worker: another one may be at work on them."""
