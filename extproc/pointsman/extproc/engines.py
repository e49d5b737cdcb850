"""What model servers say of themselves: scrapes, lists of models and KV events, written into table and index."""

from __future__ import annotations

from collections.abc import Iterable

from pointsman.core.clock import Clock
from pointsman.core.engine_metrics import EngineMetrics
from pointsman.extproc.adapters import Adapters
from pointsman.extproc.kv_events.mirror import Correction
from pointsman.extproc.prefix import BLOCK_TOKENS, PrefixIndex
from pointsman.extproc.table import EndpointTable


class Engines:
    """Keeps table, index and adapters in step with the engines; see the module."""

    def __init__(self, table: EndpointTable, index: PrefixIndex, clock: Clock) -> None:
        self.adapters = Adapters()
        self.token_prompts = False
        """True once a prompt came as token ids: only those can have the hashes that KV events give."""
        self._table = table
        self._index = index
        self._clock = clock
        self._metrics: dict[int, EngineMetrics] = {}

    def forget(self, row: int) -> None:
        """A row is free: what was known of its endpoint is void."""
        self._index.forget(row)
        self.adapters.forget(row)
        self._metrics.pop(row, None)

    def signals(self, key: str, metrics: EngineMetrics | None = None, *, rtt_ms: float | None = None) -> bool:
        """Take over a scrape of an endpoint; True when it shows that the engine restarted (its prefixes are gone)."""
        row = self._table.row(key)
        if row is None:
            return False
        table = self._table
        if rtt_ms is not None:
            table.rtt_ms[row] = rtt_ms
        if metrics is None:
            return False
        restarted = has_restarted(self._metrics.get(row), metrics)
        if restarted:
            self._index.forget(row)
            self.adapters.unloaded(row)
        self.adapters.running(row, metrics.running_loras)
        self._metrics[row] = metrics
        table.seen_at_s[row] = self._clock.monotonic_s()
        table.engines[row] = metrics.engines
        table.seen_waiting[row] = _or_nan(metrics.waiting)
        table.seen_running[row] = _or_nan(metrics.running)
        table.seen_kv_usage[row] = _or_nan(metrics.kv_usage)
        table.block_tokens[row] = _or_nan(metrics.block_tokens)
        if metrics.capacity_tokens and metrics.capacity_tokens != table.capacity_tokens[row]:
            table.capacity_tokens[row] = metrics.capacity_tokens
        if metrics.block_tokens:
            self._index.set_block(row, metrics.block_tokens)
        if metrics.capacity_tokens:
            self._index.set_capacity(row, metrics.capacity_tokens + (metrics.host_tokens or 0))
        return restarted

    def models(self, key: str, names: frozenset[str] | None, adapters: frozenset[str] = frozenset()) -> None:
        """The models that an endpoint says it serves, None: not known (it may serve any); those that are adapters."""
        row = self._table.row(key)
        if row is not None:
            self._table.set_models(row, names)
            self.adapters.listed(row, adapters)

    def base_models(self, key: str) -> tuple[str, ...]:
        """Names of an endpoint's own model, adapters left out, sorted; empty when they are not known."""
        row = self._table.row(key)
        names = None if row is None else self._table.model_sets[self._table.model_set[row]]
        return () if row is None or names is None else tuple(sorted(names - self.adapters.names(row)))

    def kv_events(self, key: str, corrections: Iterable[Correction]) -> None:
        """Correct the index of an endpoint by what its engine says it holds.

        Blocks of token ids are removed one by one. What else has gone is known by its size only: as large a share of
        our record goes, the longest unused first, as the engine frees them.
        """
        row = self._table.row(key)
        if row is None:
            return
        for correction in corrections:
            if correction.cleared:
                self._index.clear(row)
            if correction.stored and self.token_prompts:
                self._index.insert(row, correction.stored)
            found = self._index.remove(row, correction.removed) if correction.removed else 0
            lost_tokens = correction.lost_tokens - found * BLOCK_TOKENS
            if lost_tokens > 0:
                self._index.age(row, lost_tokens / max(correction.held_tokens, lost_tokens))


def has_restarted(before: EngineMetrics | None, after: EngineMetrics) -> bool:
    """True when the engine is another process than before: a later start, or a counter that went back."""
    if before is None:
        return False
    if before.start_time_s is not None and after.start_time_s is not None:
        return after.start_time_s > before.start_time_s
    pairs = (
        (before.prompt_tokens_total, after.prompt_tokens_total),
        (before.generation_tokens_total, after.generation_tokens_total),
        (before.prefix_queries_total, after.prefix_queries_total),
    )
    return any(old is not None and new is not None and new < old for old, new in pairs)


def _or_nan(value: float | None) -> float:
    return float("nan") if value is None else float(value)
