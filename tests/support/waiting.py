"""Waiting for a condition, never for a time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from inspect import isawaitable


async def eventually(
    condition: Callable[[], object] | Callable[[], Awaitable[object]], *, timeout_s: float = 30, what: str = ""
) -> None:
    """Poll `condition` until it is true; fail with `what` after `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while True:
        found = condition()
        if isawaitable(found):
            found = await found
        if found:
            return
        if time.monotonic() > deadline:
            raise AssertionError(f"not true within {timeout_s:g} s: {what or condition}")
        await asyncio.sleep(0.02)
