"""A limit on lines that repeat: a peer that does something wrong a thousand times a second must not fill the disk."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import structlog

LINES: Final = 100
WINDOW_S: Final = 10.0
"""So many lines of one text in so much time: enough for every rollout and endpoint of a large fleet to say something at
once, and 2 MB of log an hour for whoever never stops."""

MAX_TEXTS: Final = 1_000
"""Texts that are kept count of. They are literals of the code, some hundred; more would be a defect."""


@dataclass(slots=True)
class _Window:
    began_s: float
    lines: int = 0
    dropped: int = 0


class RepeatLimit:
    """A structlog processor that drops lines of a text that has been logged too often lately.

    The first line that passes again says how many did not (`dropped_lines`). Threads share it. `now_s` is monotonic.
    """

    def __init__(
        self, *, lines: int = LINES, window_s: float = WINDOW_S, now_s: Callable[[], float] = time.monotonic
    ) -> None:
        self._lines = lines
        self._window_s = window_s
        self._now_s = now_s
        self._windows: dict[str, _Window] = {}
        self._lock = threading.Lock()

    def __call__(self, logger: Any, method: str, event_dict: structlog.typing.EventDict) -> structlog.typing.EventDict:
        """Pass the line on, or raise `structlog.DropEvent`."""
        with self._lock:
            window = self._window(str(event_dict.get("event", "")))
            window.lines += 1
            if window.lines > self._lines:
                window.dropped += 1
                raise structlog.DropEvent
            if window.dropped:
                event_dict["dropped_lines"] = window.dropped
                window.dropped = 0
        return event_dict

    def _window(self, text: str) -> _Window:
        now_s = self._now_s()
        window = self._windows.get(text)
        if window is None:
            if len(self._windows) >= MAX_TEXTS:
                self._windows.clear()
            window = self._windows[text] = _Window(began_s=now_s)
        elif now_s - window.began_s >= self._window_s:
            window.began_s, window.lines = now_s, 0
        return window
