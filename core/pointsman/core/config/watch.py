"""The configuration folder, watched: a changed folder is loaded whole and handed on, or its problems are.

Changes are noticed by inotify (`watchfiles`) and, where that is silent (network file systems, a link that was turned, a
folder that was away), by comparing a fingerprint of the files every second. A change counts when 100 ms passed without
another one.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

from watchfiles import awatch

from pointsman.core.config.load import load
from pointsman.core.config.manifests import Manifests
from pointsman.core.config.source import Fingerprint, fingerprint
from pointsman.core.errors import ConfigError, Problem

QUIET_MS = 100
"""Editors and `kubectl` write several files one after another; this long without a write, and they are done."""
LONGEST_WAIT_MS = 1_000
"""A folder that is written to all the time is still read this often."""
STEP_MS = 20
"""inotify's changes are handed on when this long no other file changed; then quiet is awaited."""
POLL_S = 1.0
"""Interval of the comparison that does not depend on inotify."""
READ_ATTEMPTS = 5
"""A folder that changed while it was read is read again this often."""

Outcome = Manifests | ConfigError


def load_settled(folder: Path) -> tuple[Fingerprint | None, Outcome]:
    """Load a folder that nobody wrote to meanwhile; the fingerprint belongs to what was loaded."""
    for _ in range(READ_ATTEMPTS):
        before = fingerprint(folder)
        try:
            outcome: Outcome = load(folder)
        except ConfigError as error:
            outcome = error
        if fingerprint(folder) == before:
            return before, outcome
    problem = Problem(file=str(folder), line=0, field="", what="keeps changing while it is read", mend="write it once")
    return before, ConfigError(problem)


class ConfigWatcher:
    """Calls `on_good` or `on_bad` with the state of the folder at the start of `run` and after each change.

    Both are plain functions on the event loop and return at once. After `on_bad` nothing has changed: whoever got
    Manifests before goes on with them. Manifests that equal the last ones are not reported again, unless an error
    was reported in between. `on_change` is called when files have changed, before they are read.
    """

    def __init__(
        self,
        folder: Path,
        *,
        on_good: Callable[[Manifests], None],
        on_bad: Callable[[ConfigError], None],
        on_change: Callable[[], None] | None = None,
        poll_s: float = POLL_S,
    ) -> None:
        self._folder = folder
        self._on_good = on_good
        self._on_bad = on_bad
        self._on_change = on_change
        self._poll_s = poll_s
        self._last: Outcome | None = None

    async def run(self) -> None:
        """Watch until cancelled."""
        seen, outcome = await asyncio.to_thread(load_settled, self._folder)
        self._report(outcome)
        async for _ in self._ticks():
            if await asyncio.to_thread(fingerprint, self._folder) != seen:
                if self._on_change is not None:
                    self._on_change()
                await self._quiet()
                seen, outcome = await asyncio.to_thread(load_settled, self._folder)
                self._report(outcome)

    def _report(self, outcome: Outcome) -> None:
        repeated = outcome == self._last
        self._last = outcome
        if isinstance(outcome, ConfigError):
            self._on_bad(outcome)
        elif not repeated:
            self._on_good(outcome)

    async def _quiet(self) -> None:
        """Wait until nobody writes any more: half a file may be good YAML, and would be put in force.

        `watchfiles` does not: a file that changes again while it waits is no news to it.
        """
        before = await asyncio.to_thread(fingerprint, self._folder)
        for _ in range(LONGEST_WAIT_MS // QUIET_MS):
            await asyncio.sleep(QUIET_MS / 1000)
            now = await asyncio.to_thread(fingerprint, self._folder)
            if now == before:
                return
            before = now

    async def _ticks(self) -> AsyncIterator[None]:
        """Something may have changed: after a change that inotify saw, and every `poll_s`."""
        while True:
            watched = _identity(self._folder)
            yield
            if watched is not None:
                async for _ in _changes(self._folder, self._poll_s):
                    yield
                    if _identity(self._folder) != watched:
                        break  # another folder of the same name: inotify still looks at the old one
            await asyncio.sleep(self._poll_s)


async def _changes(folder: Path, poll_s: float) -> AsyncIterator[None]:
    """Ends where inotify can't be had; the caller polls."""
    try:
        async for _ in awatch(
            folder,
            watch_filter=None,
            debounce=LONGEST_WAIT_MS,
            step=STEP_MS,
            rust_timeout=max(1, int(poll_s * 1000)),
            yield_on_timeout=True,
        ):
            yield
    except (OSError, RuntimeError):  # the folder went away, or no more watches on this machine
        return


def _identity(folder: Path) -> tuple[int, int] | None:
    try:
        stat = folder.stat()
    except OSError:
        return None
    return stat.st_dev, stat.st_ino
