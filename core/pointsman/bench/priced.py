"""Routers that put a price on each replica: GORGO, LMetric, LPWL and Dynamo's.

Written from the formulas of their sources (facts: papers and packages of 2026); no code of theirs.
"""

from __future__ import annotations

from pointsman.bench.ledger import Ledger, PrefixRecord
from pointsman.bench.policy import World
from pointsman.bench.workload import Arrival

DYNAMO_BLOCK = 16


class Gorgo(Ledger):
    """GORGO 0.2: `rtt_weight·RTT ms + prefill_weight·uncached + load_weight·queued`, the lowest.

    `queued` are the whole prompts of all requests that have not ended. Its tree never forgets.
    """

    def __init__(
        self, rtt_weight: float = 1.0, prefill_weight: float = 1.0, load_weight: float = 1.0, *, seed: int = 0
    ) -> None:
        super().__init__(seed=seed)
        self.rtt_weight = rtt_weight
        self.prefill_weight = prefill_weight
        self.load_weight = load_weight

    def bind(self, world: World) -> None:
        super().bind(world)
        self.prefixes = PrefixRecord(self.fleet.size, None)

    def choose(self, arrival: Arrival) -> int:
        candidates = self.candidates(arrival)
        costs = [
            self.rtt_weight * self.fleet.rtt(arrival.gateway, r)
            + self.prefill_weight * (arrival.input_tokens - self.cached(r, arrival))
            + self.load_weight * self.raw_tokens[r]
            for r in candidates
        ]
        return self.sent(arrival, self.least(candidates, costs))


class LMetric(Ledger):
    """LMetric: (pending + new prefill tokens) × batch size, the lowest; an empty replica costs nothing."""

    def choose(self, arrival: Arrival) -> int:
        candidates = self.candidates(arrival)
        costs = [
            (self.pending[r] + arrival.input_tokens - self.cached(r, arrival)) * self.requests[r] for r in candidates
        ]
        return self.sent(arrival, self.least(candidates, costs))


class Lpwl(Ledger):
    """Least pending work: pending + uncached tokens; the strongest policy without a constant."""

    def choose(self, arrival: Arrival) -> int:
        candidates = self.candidates(arrival)
        costs = [self.pending[r] + arrival.input_tokens - self.cached(r, arrival) for r in candidates]
        return self.sent(arrival, self.least(candidates, costs))


class Dynamo(Ledger):
    """NVIDIA Dynamo's KV router at temperature 0: (active prefill + uncached tokens)/block + active decode blocks with
    this request's."""

    prefill_load_scale = 1.0

    def choose(self, arrival: Arrival) -> int:
        candidates = self.candidates(arrival)
        own = -(-arrival.input_tokens // DYNAMO_BLOCK)
        costs = []
        for replica in candidates:
            prefill = self.pending[replica] + arrival.input_tokens - self.cached(replica, arrival)
            decode = self.context[replica] // DYNAMO_BLOCK + own
            costs.append(self.prefill_load_scale * prefill / DYNAMO_BLOCK + decode)
        return self.sent(arrival, self.least(candidates, costs))
