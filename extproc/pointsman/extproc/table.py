"""The endpoints that can be picked, as numpy columns: one row for each `ip:port`, the same row in every pool.

A row stays with its endpoint while the Plan changes around it; columns hold what is configured, what is in flight, what
was scraped and what was learnt. Rows of endpoints that left the Plan are kept until their last request has ended, then
they are used again. Absent measurements are NaN, never zero.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import xxhash

from pointsman.core.model import Endpoint, Health, Plan, Pool
from pointsman.extproc.tiering import Tiering, tiering_of

Floats = npt.NDArray[np.float64]
Rows = npt.NDArray[np.int64]
Chosen = Rows | slice
"""Rows to look at: a slice where they stand together, which numpy reads several times faster."""

Mask = npt.NDArray[np.bool_]

PREFILL_MS_PER_TOKEN = 0.066
"""Prior of the prefill rate, 15 tokens/ms: profiled linear layers and all-reduce of a 70B model on four H100."""

PREFILL_MS_PER_TOKEN_SQUARED = 1.32e-6
"""Prior of the attention part of a prefill: ms for each token times the tokens before it (same profile)."""

HEALTH_CODES = {health: code for code, health in enumerate(Health)}

_COLUMNS: dict[str, tuple[type, float]] = {
    "health": (np.int8, HEALTH_CODES[Health.UNKNOWN]),
    "site": (np.int32, 0),
    "key_hash": (np.uint64, 0),
    "added_at_s": (np.float64, -np.inf),
    "requests": (np.int64, 0),
    "pending_ms": (np.float64, 0.0),
    "pending_tokens": (np.int64, 0),
    "backlog_ms": (np.float64, 0.0),
    "backlog_at_s": (np.float64, -np.inf),
    "due_at_s": (np.float64, np.inf),
    "context_tokens": (np.int64, 0),
    "fresh_kv_tokens": (np.int64, 0),
    "remote_requests": (np.int64, 0),
    "remote_backlog_ms": (np.float64, 0.0),
    "remote_pending_tokens": (np.int64, 0),
    "remote_context_tokens": (np.int64, 0),
    "remote_fresh_kv_tokens": (np.int64, 0),
    "model_set": (np.int32, 0),
    "seen_at_s": (np.float64, -np.inf),
    "seen_waiting": (np.float64, np.nan),
    "seen_running": (np.float64, np.nan),
    "seen_kv_usage": (np.float64, np.nan),
    "block_tokens": (np.float64, np.nan),
    "capacity_tokens": (np.float64, np.nan),
    "rtt_ms": (np.float64, np.nan),
    "engines": (np.float64, 1.0),
    "prefill_ms": (np.float64, PREFILL_MS_PER_TOKEN),
    "attention_ms": (np.float64, PREFILL_MS_PER_TOKEN_SQUARED),
    "penalty_ms": (np.float64, 0.0),
    "penalty_at_s": (np.float64, -np.inf),
    "suspect_s": (np.float64, -np.inf),
    "proven_s": (np.float64, -np.inf),
    "refused_s": (np.float64, -np.inf),
    "false_alarm_s": (np.float64, -np.inf),
}

_BLOCKS: dict[str, tuple[str, ...]] = {
    "sent": ("requests", "pending_tokens", "context_tokens", "fresh_kv_tokens"),
    "sent_elsewhere": (
        "remote_requests",
        "remote_pending_tokens",
        "remote_context_tokens",
        "remote_fresh_kv_tokens",
    ),
    "seen": ("seen_waiting", "seen_running", "seen_kv_usage"),
    "rates": ("prefill_ms", "attention_ms"),
}
"""Columns that are read together: rows of one array, so that one numpy call does for all of them."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PoolRows:
    """The rows of one pool, in the order of its Plan; `span` is the same as a slice where they stand together.

    `tiering` is what failover decided of its sites, None: nothing special.
    """

    name: str
    rows: Rows
    keys: tuple[str, ...]
    span: Chosen
    tiering: Tiering | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Changes:
    """What a new Plan did to the rows."""

    added: tuple[int, ...] = ()
    freed: tuple[int, ...] = ()


class EndpointTable:
    """All endpoints of a Plan; see the module. Not thread-safe: one event loop owns it.

    Columns are public arrays indexed by row. They are replaced when the table grows: never keep one across `sync`.
    `sent`, `sent_elsewhere`, `seen` and `rates` hold some of them together, one column in each of their rows.
    """

    sent: npt.NDArray[np.int64]
    sent_elsewhere: npt.NDArray[np.int64]
    seen: Floats
    rates: Floats

    health: npt.NDArray[np.int8]
    site: npt.NDArray[np.int32]
    key_hash: npt.NDArray[np.uint64]
    added_at_s: Floats
    requests: npt.NDArray[np.int64]  # in flight, picked here
    pending_ms: Floats  # our prefills that have given no token yet
    pending_tokens: npt.NDArray[np.int64]  # their uncached tokens
    backlog_ms: Floats  # what was left of their prefills at `backlog_at_s`; drains with time
    backlog_at_s: Floats
    due_at_s: Floats  # when the oldest of them should have given its first token
    context_tokens: npt.NDArray[np.int64]  # prompts of all in flight
    fresh_kv_tokens: npt.NDArray[np.int64]  # their uncached part: KV that did not exist before
    remote_requests: npt.NDArray[np.int64]  # the same of other pickers, as they last told
    remote_backlog_ms: Floats
    remote_pending_tokens: npt.NDArray[np.int64]
    remote_context_tokens: npt.NDArray[np.int64]
    remote_fresh_kv_tokens: npt.NDArray[np.int64]
    model_set: npt.NDArray[np.int32]  # index into `model_sets`
    seen_at_s: Floats  # monotonic time of the last good scrape
    seen_waiting: Floats
    seen_running: Floats
    seen_kv_usage: Floats
    block_tokens: Floats
    capacity_tokens: Floats
    rtt_ms: Floats
    engines: Floats  # model servers behind the address: 1, but for a gateway
    prefill_ms: Floats  # p: ms for each uncached token
    attention_ms: Floats  # a: ms for each uncached token and token before it
    penalty_ms: Floats  # at `penalty_at_s`; halves with time
    penalty_at_s: Floats  # may lie ahead
    suspect_s: Floats  # when it began to seem gone
    proven_s: Floats  # when the last good page was asked for
    refused_s: Floats  # when the first page after that was refused
    false_alarm_s: Floats  # when a page proved a gateway wrong

    def __init__(self, capacity: int = 64) -> None:
        self._capacity = capacity
        for name, (dtype, default) in _COLUMNS.items():
            setattr(self, name, np.full(capacity, default, dtype=dtype))
        self._join()
        self._keys: list[str | None] = []
        self._row_of: dict[str, int] = {}
        self._free: list[int] = []
        self._present: frozenset[str] = frozenset()
        self._pools: dict[str, PoolRows] = {}
        self._site_of: dict[str, int] = {}
        self._first_plan = True
        self.model_sets: list[frozenset[str] | None] = [None]
        self.models_version = 0
        """Another number whenever the models of an endpoint have changed."""
        self.site_names: list[str] = []
        self.site_draining: Mask = np.zeros(0, dtype=np.bool_)
        self.site_usd: Floats = np.zeros(0)
        self.site_jurisdictions: list[frozenset[str]] = []

    def __len__(self) -> int:
        """Endpoints of the current Plan."""
        return len(self._present)

    def pool(self, name: str) -> PoolRows | None:
        """The rows of a pool, None when the Plan has no such pool."""
        return self._pools.get(name)

    def row(self, key: str) -> int | None:
        """The row of an endpoint that is in the Plan or still has requests in flight."""
        return self._row_of.get(key)

    def key(self, row: int) -> str:
        """The endpoint of a row, empty for a free row."""
        return self._keys[row] or ""

    def mates(self, row: int) -> Rows:
        """The rows of all endpoints at the site of this one, itself included."""
        rows = np.fromiter(self._row_of.values(), dtype=np.int64, count=len(self._row_of))
        return rows[self.site[rows] == self.site[row]]

    def keys(self) -> tuple[str, ...]:
        """Endpoints of the current Plan, sorted."""
        return tuple(sorted(self._present))

    def set_models(self, row: int, names: frozenset[str] | None) -> None:
        """What an endpoint is known to serve, None: anything. Equal sets are kept once, so that filters are cheap."""
        if names not in self.model_sets:
            if len(self.model_sets) > 2 * len(self._keys):
                self._compact_model_sets()
            self.model_sets.append(names)
        number = self.model_sets.index(names)
        if self.model_set[row] != number:
            self.model_set[row] = number
            self.models_version += 1

    def _compact_model_sets(self) -> None:
        """Drop the sets that no row has any more: adapters come and go."""
        used, index = np.unique(np.append(self.model_set, 0), return_inverse=True)
        self.model_sets = [self.model_sets[int(i)] for i in used]
        self.model_set = index[:-1].astype(np.int32)

    def sync(self, plan: Plan, now_s: float) -> Changes:
        """Follow a new Plan. Endpoints new to a running fleet get `added_at_s` = now, those of the first Plan none."""
        self._sync_sites(plan)
        added: list[int] = []
        pools: dict[str, PoolRows] = {}
        present: set[str] = set()
        for pool in _pools_of(plan):
            rows: list[int] = []
            keys: list[str] = []
            for endpoint in pool.endpoints():
                if endpoint.key in keys:
                    continue
                row = self._row_of.get(endpoint.key)
                if row is None:
                    row = self._allocate(endpoint.key)
                    self.added_at_s[row] = -np.inf if self._first_plan else now_s
                    added.append(row)
                self._configure(row, endpoint)
                rows.append(row)
                keys.append(endpoint.key)
            present.update(keys)
            pools[pool.name] = _pool_rows(pool.name, rows, keys, tiering_of(pool))
        gone = [key for key, row in self._row_of.items() if key not in present and self.requests[row] == 0]
        freed = tuple(self._release(key) for key in gone)
        self._pools, self._present, self._first_plan = pools, frozenset(present), False
        return Changes(added=tuple(added), freed=freed)

    def _sync_sites(self, plan: Plan) -> None:
        names = {site.name for site in plan.sites} | {g.site for pool in _pools_of(plan) for g in pool.groups}
        names |= {e.site for pool in _pools_of(plan) for e in pool.endpoints()}
        for name in sorted(names - self._site_of.keys()):
            self._site_of[name] = len(self.site_names)
            self.site_names.append(name)
        sites = {site.name: site for site in plan.sites}
        known = [sites.get(name) for name in self.site_names]
        self.site_draining = np.array([s is not None and s.draining for s in known], dtype=np.bool_)
        self.site_usd = np.array([s.usd_per_gpu_hour if s else 0.0 for s in known], dtype=np.float64)
        self.site_jurisdictions = [s.jurisdictions if s else frozenset() for s in known]

    def _configure(self, row: int, endpoint: Endpoint) -> None:
        self.health[row] = HEALTH_CODES[endpoint.health]
        self.site[row] = self._site_of[endpoint.site]

    def _allocate(self, key: str) -> int:
        if self._free:
            row = self._free.pop()
            self._keys[row] = key
        else:
            row = len(self._keys)
            self._keys.append(key)
            if row == self._capacity:
                self._grow()
        for name, (_, default) in _COLUMNS.items():
            getattr(self, name)[row] = default
        self.key_hash[row] = xxhash.xxh3_64_intdigest(key.encode())
        self._row_of[key] = row
        return row

    def _grow(self) -> None:
        for name, (dtype, default) in _COLUMNS.items():
            more = np.full(self._capacity, default, dtype=dtype)
            setattr(self, name, np.concatenate([getattr(self, name), more]))
        self._capacity *= 2
        self._join()

    def _join(self) -> None:
        """Put the columns of each block into one array."""
        for block, names in _BLOCKS.items():
            joined = np.stack([getattr(self, name) for name in names])
            setattr(self, block, joined)
            for name, column in zip(names, joined, strict=True):
                setattr(self, name, column)

    def _release(self, key: str) -> int:
        row = self._row_of.pop(key)
        self._keys[row] = None
        self._free.append(row)
        return row


def _pool_rows(name: str, rows: list[int], keys: list[str], tiering: Tiering | None) -> PoolRows:
    found = np.array(rows, dtype=np.int64)
    together = bool(rows) and rows == list(range(rows[0], rows[0] + len(rows)))
    return PoolRows(
        name=name,
        rows=found,
        keys=tuple(keys),
        span=slice(rows[0], rows[0] + len(rows)) if together else found,
        tiering=tiering,
    )


def _pools_of(plan: Plan) -> Iterator[Pool]:
    """The pools of a Plan and those that only a gateway lists, each name once."""
    seen: set[str] = set()
    for pool in plan.pool_views():
        if pool.name not in seen:
            seen.add(pool.name)
            yield pool
