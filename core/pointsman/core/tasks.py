"""Background work whose end is seen: a task that dies alone takes its error with it until somebody collects it."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any


async def together(*works: Coroutine[Any, Any, None]) -> None:
    """Run all until the first one ends, however it ends; then the others are cancelled. Raises what it raised.

    Cancelled from outside, all are; they have ended when this does.
    """
    tasks = [asyncio.create_task(work) for work in works]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    for task in done:
        task.result()


async def error_of(work: Coroutine[Any, Any, None]) -> BaseException | None:
    """Run `work` and wait for its end; returns what it raised, None when it just ended. Cancelled with its caller."""
    task = asyncio.create_task(work)
    try:
        await asyncio.wait([task])
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    return None if task.cancelled() else task.exception()
