"""Functions that do nothing, for the bundled worker."""

from __future__ import annotations

import trioline


async def echo_async(item: trioline.Item) -> trioline.Raw:
    """Give back what came."""
    return trioline.Raw(item.raw)


def echo(item: trioline.Item) -> trioline.Raw:
    """Give back what came."""
    return trioline.Raw(item.raw)
