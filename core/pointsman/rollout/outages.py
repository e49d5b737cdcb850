"""Pools that Envoy has no endpoint for, told by requests that found none: pure, for arms that hand their share over.

Envoy's probes and its outlier detection know first that a pool is gone. What reaches us are answers 503 that no
endpoint gave. A few of them in a row, and none served between, are an outage: Envoy has said that it has nobody, not
that it had bad luck. The way back is harder, because an arm without requests says nothing. So it is tried again when
its endpoints answer scrapes, or after a time that doubles as long as a trial fails.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

MISSES: Final = 3
"""In a row. One could be a retry budget that ran out on one gateway; more would only be more users who get 503."""
APART_S: Final = 2.0
"""Misses further apart than this are not one row: it is four rounds of Envoy's probes."""
SETTLE_S: Final = 1.0
"""After a scrape answers again: Envoy's own probe must have succeeded, too, before requests come."""
TRIAL_S: Final = 5.0
"""Before an arm is tried that answers no scrape, such as a gRPC server; twice as long after each trial that failed."""
MAX_TRIAL_S: Final = 80.0
FORGIVEN_S: Final = 60.0
"""An arm that served for so long after a trial is new to outages again."""


@dataclass(slots=True)
class _Pool:
    misses: int = 0
    missed_s: float = 0.0
    down_s: float | None = None
    back_s: float | None = None
    trial_s: float = TRIAL_S


@dataclass(slots=True)
class Outages:
    """What is known of the pools in `watched`. Times are monotonic seconds."""

    watched: frozenset[str] = frozenset()
    _pools: dict[str, _Pool] = field(default_factory=dict)

    @property
    def down(self) -> frozenset[str]:
        """Pools that shall get no requests."""
        return frozenset(name for name, pool in self._pools.items() if pool.down_s is not None)

    def watch(self, pools: frozenset[str]) -> None:
        """Look at these pools from now on, and forget all others."""
        self.watched = pools
        self._pools = {name: pool for name, pool in self._pools.items() if name in pools}

    def served(self, name: str) -> None:
        """An endpoint of the pool answered, well or badly."""
        pool = self._pools.get(name)
        if pool is not None:
            pool.misses = 0

    def missed(self, name: str, now_s: float) -> bool:
        """There was no endpoint for a request; whether that made it an outage."""
        if name not in self.watched:
            return False
        pool = self._pools.setdefault(name, _Pool())
        if pool.down_s is not None:
            return False
        pool.misses = pool.misses + 1 if now_s - pool.missed_s <= APART_S else 1
        pool.missed_s = now_s
        if pool.misses < MISSES:
            return False
        if pool.back_s is not None:
            again = now_s - pool.back_s < FORGIVEN_S
            pool.trial_s = min(2 * pool.trial_s, MAX_TRIAL_S) if again else TRIAL_S
            pool.back_s = pool.back_s if again else None
        pool.down_s, pool.misses = now_s, 0
        return True

    def tick(self, now_s: float, scraped_s: Callable[[str], float]) -> frozenset[str]:
        """The pools that are to be tried again. `scraped_s` tells when an endpoint of a pool last answered a scrape.

        After a trial that failed scrapes are not believed: the way to it may be broken for gateways alone.
        """
        found = set()
        for name, pool in self._pools.items():
            if pool.down_s is None:
                continue
            answers = pool.back_s is None and scraped_s(name) >= pool.down_s + SETTLE_S
            if answers or now_s - pool.down_s >= pool.trial_s:
                pool.down_s, pool.back_s = None, now_s
                found.add(name)
        return frozenset(found)
