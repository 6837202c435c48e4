"""Runs async tests of the client under trio and under asyncio, with an absolute deadline."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

import anyio
import pytest

T = TypeVar("T")

DEADLINE_SECONDS = 20.0

both_backends = pytest.mark.parametrize("backend", ["trio", "asyncio"])


def run(backend: str, function: Callable[[], Awaitable[T]]) -> T:
    """Run a coroutine function; its own exceptions come out ungrouped where they were."""

    async def limited() -> T:
        with anyio.fail_after(DEADLINE_SECONDS):
            return await function()

    return anyio.run(limited, backend=backend)
