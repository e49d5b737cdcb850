"""What the baselines know: requests in flight by replica, and an own record of where prompts went."""

from __future__ import annotations

import random
from collections import OrderedDict
from collections.abc import Iterable, Sequence

from pointsman.bench.fleet import Fleet
from pointsman.bench.policy import Sample, World
from pointsman.bench.workload import Arrival
from pointsman.replay.trace import BLOCK_TOKENS

NO_SAMPLE = Sample(0, 0, 0.0)


class PrefixRecord:
    """Blocks by replica, least recently used forgotten past `capacity_tokens` (None: never)."""

    def __init__(self, replicas: int, capacity_tokens: int | None) -> None:
        self._held: list[OrderedDict[int, None]] = [OrderedDict() for _ in range(replicas)]
        self._limit = None if capacity_tokens is None else capacity_tokens // BLOCK_TOKENS

    def matched(self, replica: int, blocks: Sequence[int]) -> int:
        """How many leading blocks the replica has."""
        held = self._held[replica]
        found = 0
        for block in blocks:
            if block not in held:
                break
            found += 1
        return found

    def insert(self, replica: int, blocks: Sequence[int]) -> None:
        """The replica computes these; the tail is forgotten before the head."""
        held = self._held[replica]
        for block in reversed(blocks):
            held[block] = None
            held.move_to_end(block)
        if self._limit is not None:
            while len(held) > self._limit:
                held.popitem(last=False)

    def size(self, replica: int) -> int:
        """Blocks on record."""
        return len(self._held[replica])


class Ledger:
    """Base of the baselines: one state shared by all gateways, own requests counted at once.

    Per replica: `requests` in flight; `raw_tokens`, their whole prompts; `pending`, prompt tokens believed uncached of
    those without a first token; `context`, prompt tokens of all in flight. `prefixes` is fed by the policies that use
    it, through `sent`.
    """

    per_region = False

    def __init__(self, *, local: bool = False, seed: int = 0) -> None:
        self.local = local
        self.random = random.Random(seed)  # noqa: S311 - ties, no secrets

    def bind(self, world: World) -> None:
        """Empty books for the fleet of a run."""
        self.world = world
        self.fleet: Fleet = world.fleet
        size = self.fleet.size
        self.all = tuple(range(size))
        self.requests = [0] * size
        self.raw_tokens = [0] * size
        self.pending = [0] * size
        self.unstarted = [0] * size
        self.context = [0] * size
        self.samples = [NO_SAMPLE] * size
        self.prefixes = PrefixRecord(size, self.fleet.cache_tokens)
        self._uncached: dict[int, int] = {}

    def candidates(self, arrival: Arrival) -> tuple[int, ...]:
        """All replicas, or those of the gateway's region."""
        return self.fleet.local[arrival.gateway] if self.local else self.all

    def cached(self, replica: int, arrival: Arrival) -> int:
        """Prompt tokens believed to be cached; at least one is always computed."""
        return min(self.prefixes.matched(replica, arrival.full_blocks) * BLOCK_TOKENS, arrival.input_tokens - 1)

    def sent(self, arrival: Arrival, replica: int, uncached: int | None = None) -> int:
        """Count a choice and return it."""
        if uncached is None:
            uncached = arrival.input_tokens - self.cached(replica, arrival)
        self._uncached[arrival.id] = uncached
        self.requests[replica] += 1
        self.raw_tokens[replica] += arrival.input_tokens
        self.context[replica] += arrival.input_tokens
        self.pending[replica] += uncached
        self.unstarted[replica] += 1
        self.prefixes.insert(replica, arrival.full_blocks)
        return replica

    def first_token(self, arrival: Arrival, replica: int) -> None:
        """Its prefill is done."""
        self.pending[replica] -= self._uncached.pop(arrival.id)
        self.unstarted[replica] -= 1

    def ended(self, arrival: Arrival, replica: int) -> None:
        """It is gone."""
        self.requests[replica] -= 1
        self.raw_tokens[replica] -= arrival.input_tokens
        self.context[replica] -= arrival.input_tokens

    def scraped(self, view: int, replica: int, sample: Sample) -> None:
        """Keep the newest scrape."""
        self.samples[replica] = sample

    def least(self, candidates: Iterable[int], costs: Iterable[float]) -> int:
        """The candidate of the lowest cost; random among equals, as all routers here do."""
        pairs = list(zip(costs, candidates, strict=True))
        lowest = min(pairs)[0]
        best = [candidate for cost, candidate in pairs if cost == lowest]
        return best[0] if len(best) == 1 else self.random.choice(best)
