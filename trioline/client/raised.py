"""What an exception of a user's function makes of its lines, and whether it is its own."""

from __future__ import annotations

import math
import traceback
from collections.abc import Sequence

import anyio

from trioline.client.item import Failure, GiveBack, failure_of


def raised(error: BaseException) -> Failure | GiveBack:
    """Say what an exception of the function's own makes of its lines."""
    return error if isinstance(error, GiveBack) else failure_of(error)


def raised_async(error: BaseException) -> Failure | GiveBack:
    """Do as ``raised``, but where others raise into the function, too.

    Raises:
        BaseException: ``error`` itself, where it is meant for us.
    """
    if isinstance(error, Exception):
        return raised(error)
    if _is_ctrl_c(error):
        raise error
    if not is_cancelled():
        # Under asyncio a task of the user's that was cancelled raises CancelledError in whoever
        # awaits it: only where this very task is being cancelled is it meant for us.
        return raised(error)
    if isinstance(error, anyio.get_cancelled_exc_class()):
        raise error
    return GiveBack()  # a group, say, that has the cancellation in it


def is_cancelled() -> bool:
    """Whether the task that asks is being cancelled."""
    return anyio.current_effective_deadline() == -math.inf


def _is_ctrl_c(error: BaseException) -> bool:
    """Whether it is a real Ctrl-C: Trio and asyncio raise it in whatever code just runs."""
    if not isinstance(error, KeyboardInterrupt):
        return False
    *_, (frame, _line) = traceback.walk_tb(error.__traceback__)
    raised_in = str(frame.f_globals.get("__name__"))
    return raised_in.partition(".")[0] in ("trio", "asyncio", "anyio")


def checked(values: object, count: int) -> Sequence[object]:
    """Refuse what cannot be told apart into one result a line."""
    if not isinstance(values, (list, tuple)):
        values = [TypeError(f"the function returned {type(values).__name__}, not a list")] * count
    elif len(values) != count:
        text = f"the function returned {len(values)} results for {count} lines"
        values = [ValueError(text)] * count
    return values
