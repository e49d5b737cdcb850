"""LoRA adapters: what a request pays where its adapter is not loaded yet.

Engines load an adapter with its first request. They tell which adapters exist (`/v1/models`, entries with a parent) and
which have requests (`vllm:lora_requests_info`); what we sent there lately is loaded as well.
"""

from __future__ import annotations

from collections import OrderedDict

import numpy as np

from pointsman.extproc.table import Floats, Rows

LOAD_MS = 500.0
"""To load an adapter: 400 MB (rank 32 on 70B) at 0.8 GB/s of a local disk. As much as 7,500 tokens of prefill, so an
adapter is loaded elsewhere only when its replica has that much of a queue."""

KEPT_S = 60.0
"""How long an adapter that we sent requests for counts as loaded without being seen to run."""

MAX_RECENT = 256
"""Adapters remembered for each endpoint: more than any engine keeps in memory (`max_cpu_loras`)."""


class Adapters:
    """Adapters by row."""

    def __init__(self) -> None:
        self._listed: dict[int, frozenset[str]] = {}
        self._running: dict[int, frozenset[str]] = {}
        self._sent: dict[int, OrderedDict[str, float]] = {}
        self._known: frozenset[str] = frozenset()

    def listed(self, row: int, names: frozenset[str]) -> None:
        """The adapters that an endpoint lists."""
        self._listed[row] = names
        self._refresh()

    def running(self, row: int, names: frozenset[str]) -> None:
        """The adapters that have requests at an endpoint."""
        if self._running.get(row, frozenset()) != names:
            self._running[row] = names
            self._refresh()

    def sent(self, row: int, model: str, now_s: float) -> None:
        """A request for `model` goes there."""
        if model in self._known:
            sent = self._sent.setdefault(row, OrderedDict())
            sent[model] = now_s
            sent.move_to_end(model)
            if len(sent) > MAX_RECENT:
                sent.popitem(last=False)

    def unloaded(self, row: int) -> None:
        """The engine restarted: it has loaded nothing, and lists what it listed until it says otherwise."""
        self._sent.pop(row, None)
        self.running(row, frozenset())

    def forget(self, row: int) -> None:
        """The row is free."""
        for kept in (self._listed, self._running, self._sent):
            kept.pop(row, None)
        self._refresh()

    def names(self, row: int) -> frozenset[str]:
        """The adapters that an endpoint listed."""
        return self._listed.get(row, frozenset())

    def load_ms(self, rows: Rows, model: str, now_s: float) -> Floats | None:
        """What loading `model` costs at each of the rows; None when it is no adapter."""
        if model not in self._known:
            return None
        return np.array([0.0 if self._has(int(row), model, now_s) else LOAD_MS for row in rows])

    def _has(self, row: int, model: str, now_s: float) -> bool:
        if model in self._running.get(row, frozenset()):
            return True
        at_s = self._sent.get(row, {}).get(model)
        return at_s is not None and now_s - at_s < KEPT_S

    def _refresh(self) -> None:
        self._known = frozenset().union(*self._listed.values(), *self._running.values())
