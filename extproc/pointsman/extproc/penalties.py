"""Failures of endpoints in the table: 429, 503 and broken connections cost milliseconds that fade; 500 does where it is
the endpoint's fault."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import numpy as np
import xxhash

from pointsman.extproc.feedback import Feedback
from pointsman.extproc.signals import faded_penalty_ms
from pointsman.extproc.table import EndpointTable

PENALTY_MS = 2_000.0
"""What one 429, 503 or broken connection costs an endpoint at first: more than any prefill it could save."""

MAX_RETRY_AFTER_S = 30.0
"""Longest `Retry-After` of an endpoint that is believed; past it the endpoint is tried again like after any failure."""

MAX_PENALTY_MS = 20_000.0
"""Failures in a row: enough to be the last resort, forgotten within half a minute."""

BROKEN_RUN = 10
"""Answers with 500 in a row, to as many prompts, that make an endpoint broken. A client whose prompts all fail, ten a
second beside seventeen good ones, comes to that in a row once in twenty minutes; an endpoint that fails at everything
does so before Envoy ejects it (25)."""

REMEMBERED_PROMPTS = 1_024
"""Prompts that failed with 500 and are remembered, 0.1 MB: who repeats one counts once."""


def prompt_hash(prompt: bytes, hashes: Sequence[int]) -> int:
    """What a prompt is told from others by: its last block where it has `hashes` of blocks."""
    return hashes[-1] if hashes else xxhash.xxh3_64_intdigest(prompt)


class Blame:
    """Whose fault a failure is. A 500 may be the request's: whoever repeats one that no endpoint can answer must not
    drive the others from their caches. Rows are those of the table."""

    def __init__(self) -> None:
        self._runs: dict[int, int] = {}
        self._failed: OrderedDict[int, int] = OrderedDict()  # hash of a prompt → row

    def falls_on(self, row: int, entry: Feedback, prompt: int | None) -> bool:
        """Whether the endpoint `row` is to blame for how a request ended. `prompt` is a hash of it, None: not known."""
        if entry.status != 500 or entry.failed:
            if 200 <= entry.status < 300:
                self._runs.pop(row, None)
                if self._failed and prompt is not None:
                    self._failed.pop(prompt, None)  # so it was the endpoint's fault
            return entry.overloaded or entry.broken
        run = self._runs.get(row, 0)
        if prompt is None or prompt not in self._failed:
            run = self._runs[row] = run + 1
        if prompt is not None:
            self._failed[prompt] = row
            self._failed.move_to_end(prompt)
            if len(self._failed) > REMEMBERED_PROMPTS:
                self._failed.popitem(last=False)
        return run >= BROKEN_RUN

    def failed_at(self, prompt: int) -> int | None:
        """The row that answered this prompt with 500 last, if nobody has answered it well since.

        Elsewhere it shows whose fault it is; where it stays, who asks nothing else never gets away from a broken
        endpoint.
        """
        return self._failed.get(prompt) if self._failed else None

    def forget(self, row: int) -> None:
        """The row is another endpoint's now."""
        self._runs.pop(row, None)


def penalise(table: EndpointTable, row: int, now_s: float, retry_after_s: float = 0.0) -> None:
    """Count a failure; with `Retry-After` its penalty begins to fade when that is over."""
    faded = float(faded_penalty_ms(table, np.array([row]), now_s)[0])
    table.penalty_ms[row] = min(MAX_PENALTY_MS, faded + PENALTY_MS)
    table.penalty_at_s[row] = max(table.penalty_at_s[row], now_s + min(retry_after_s, MAX_RETRY_AFTER_S))
