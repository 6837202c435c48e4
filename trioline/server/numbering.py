"""Line numbers as peers see them, where a job's lines are only some of a file's.

Inside of the server its lines are counted from 0 without gaps; on the wire they have the numbers
that they have in the input.
"""

from __future__ import annotations

import attrs

from trioline.errors import ErrorCode, RemoteProtocolError
from trioline.storage.numbers import Numbers
from trioline.wire.messages import Done, DoneLines, Fail, Release, Request


def inward(request: Request, numbers: Numbers) -> Request:
    """Put places for the numbers in a request.

    Raises:
        RemoteProtocolError: It names a line that is none of this job's.
    """
    match request:
        case Done():
            for row in request.results:
                row.id = _place(row.id, numbers)
        case DoneLines():
            first = _place(request.first, numbers)
            run = numbers.run_at(first, request.count)
            if run < request.count:
                raise _unknown(request.first + run)
            return attrs.evolve(request, first=first)
        case Fail():
            return attrs.evolve(request, id=_held(request.id, numbers))
        case Release(ids=list() as ids) if ids:
            places = [place for line in ids if (place := numbers.place_of(line)) is not None]
            return attrs.evolve(request, ids=places or [_held(ids[0], numbers)])
    return request


def _place(number: int, numbers: Numbers) -> int:
    place = numbers.place_of(number)
    if place is None:
        raise _unknown(number)
    return place


def _held(number: int, numbers: Numbers) -> int:
    place = numbers.place_of(number)
    if place is None:
        raise RemoteProtocolError(
            ErrorCode.NOT_HELD, f"Line {number} is not held by this connection."
        )
    return place


def _unknown(number: int) -> RemoteProtocolError:
    return RemoteProtocolError(
        ErrorCode.UNKNOWN_ID, f"Line {number} was never given out; nothing was taken."
    )
