"""Runs an engine in real time: one timer for its next event, no polling."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from dataclasses import dataclass

from pointsman.sim.engine import Engine
from pointsman.sim.sequence import Event, EventKind, Phase, Sequence


@dataclass(frozen=True, slots=True)
class _Listener:
    wake: Callable[[], None]
    every_token: bool


class Driver:
    """Maps the loop's time to engine time: engine ms = wall ms × `speed`. `on_event` is told of everything."""

    def __init__(
        self, engine: Engine, *, loop: asyncio.AbstractEventLoop, speed: float, on_event: Callable[[Event], None]
    ) -> None:
        self.engine = engine
        self._loop = loop
        self._per_s = 1000.0 * speed
        self._origin_s = loop.time()
        self._on_event = on_event
        self._listeners: dict[Sequence, _Listener] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._due_ms = 0.0
        self._closed = False

    def now_ms(self) -> float:
        """Engine time; never goes back."""
        return max(self.engine.now_ms, (self._loop.time() - self._origin_s) * self._per_s)

    def submit(self, sequence: Sequence, wake: Callable[[], None], *, every_token: bool) -> None:
        """Start a sequence. `wake` is called when it ends and, with `every_token`, after each step that made tokens.

        Raises ValueError as `Engine.submit` does.
        """
        self.engine.submit(self.now_ms(), sequence)
        self._listeners[sequence] = _Listener(wake, every_token)
        self._arm()

    def cancel(self, sequence: Sequence) -> bool:
        """Nobody wants its tokens any more; False when it has ended."""
        self._listeners.pop(sequence, None)
        return self.engine.cancel(sequence)

    def close(self) -> None:
        """Stop the engine where it is; nobody is told."""
        self._closed = True
        self._listeners.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _arm(self) -> None:
        due_ms = self.engine.next_event_ms()
        if self._closed or math.isinf(due_ms):
            return
        due_s = self._origin_s + due_ms / self._per_s
        if self._timer is not None:
            if self._timer.when() <= due_s:
                return
            self._timer.cancel()
        self._due_ms = due_ms
        self._timer = self._loop.call_at(due_s, self._run)

    def _run(self) -> None:
        self._timer = None
        engine, listeners = self.engine, self._listeners
        before = engine.counters.steps
        # The loop may call a clock tick early: what the timer was set for counts as reached.
        for event in engine.advance(max(self.now_ms(), self._due_ms)):
            self._on_event(event)
            if event.kind is EventKind.FINISHED:
                listener = listeners.pop(event.sequence, None)
                if listener is not None:
                    listener.wake()
        if engine.counters.steps != before:
            for sequence, listener in listeners.items():
                if listener.every_token and sequence.phase is Phase.DECODE:
                    listener.wake()
        self._arm()
