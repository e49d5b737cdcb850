"""Work in the background: the first end ends all, and its error is not lost."""

from __future__ import annotations

import asyncio

import pytest

from pointsman.core.tasks import error_of, together


class Part:
    """Waits until it is told how to end."""

    def __init__(self) -> None:
        self.go = asyncio.Event()
        self.fault: Exception | None = None
        self.cancelled = False

    async def run(self) -> None:
        try:
            await self.go.wait()
        except asyncio.CancelledError:
            self.cancelled = True
            raise
        if self.fault is not None:
            raise self.fault


@pytest.mark.parametrize("fault", [None, ValueError("what nobody foresaw")])
async def test_the_first_end_ends_all(fault: Exception | None) -> None:
    one, other = Part(), Part()
    one.fault = fault
    one.go.set()
    if fault is None:
        await together(one.run(), other.run())
    else:
        with pytest.raises(ValueError, match="nobody foresaw"):
            await together(one.run(), other.run())
    assert (one.cancelled, other.cancelled) == (False, True)


async def test_cancellation_reaches_all() -> None:
    one, other, alone = Part(), Part(), Part()
    tasks = [asyncio.create_task(together(one.run(), other.run())), asyncio.create_task(error_of(alone.run()))]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    for task in tasks:
        task.cancel()
    assert all(isinstance(end, asyncio.CancelledError) for end in await asyncio.gather(*tasks, return_exceptions=True))
    assert one.cancelled and other.cancelled and alone.cancelled


async def test_an_error_is_handed_over_and_an_end_is_none() -> None:
    failing, ending = Part(), Part()
    failing.fault = KeyError("gone")
    failing.go.set()
    ending.go.set()
    assert await error_of(failing.run()) is failing.fault
    assert await error_of(ending.run()) is None
