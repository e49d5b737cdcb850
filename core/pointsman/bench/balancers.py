"""Balancers that know no caches: turns, counts of requests, and hashes of the session."""

from __future__ import annotations

import bisect
import math

import xxhash

from pointsman.bench.ledger import Ledger
from pointsman.bench.policy import World
from pointsman.bench.workload import Arrival

VIRTUAL_NODES = 256
"""Points of each replica on the hash ring (KubeAI's replication)."""


class RoundRobin(Ledger):
    """Each replica in turn; local: each gateway goes round its own."""

    def bind(self, world: World) -> None:
        super().bind(world)
        self._turns = [0] * len(self.fleet.regions)

    def choose(self, arrival: Arrival) -> int:
        candidates = self.candidates(arrival)
        place = arrival.gateway if self.local else 0
        turn = self._turns[place]
        self._turns[place] += 1
        return self.sent(arrival, candidates[turn % len(candidates)])


class LeastOutstanding(Ledger):
    """The replica with the fewest requests in flight."""

    def choose(self, arrival: Arrival) -> int:
        candidates = self.candidates(arrival)
        return self.sent(arrival, self.least(candidates, (self.requests[r] for r in candidates)))


class PowerOfTwo(Ledger):
    """Of two random replicas the one with fewer requests in flight."""

    def choose(self, arrival: Arrival) -> int:
        pair = self.random.sample(self.candidates(arrival), 2)
        return self.sent(arrival, self.least(pair, (self.requests[r] for r in pair)))


class SessionRing(Ledger):
    """Consistent hashing of the session; `load_factor` bounds a replica's requests to that multiple of the mean
    (CHWBL; KubeAI's default is 1.25), None does not."""

    def __init__(self, *, load_factor: float | None = None, local: bool = False, seed: int = 0) -> None:
        super().__init__(local=local, seed=seed)
        self.load_factor = load_factor

    def bind(self, world: World) -> None:
        super().bind(world)
        self._ring = sorted(
            (xxhash.xxh3_64_intdigest(f"{replica}/{n}".encode()), replica)
            for replica in self.all
            for n in range(VIRTUAL_NODES)
        )
        self._points = [point for point, _ in self._ring]

    def choose(self, arrival: Arrival) -> int:
        candidates = self.candidates(arrival)
        start = bisect.bisect(self._points, xxhash.xxh3_64_intdigest(str(arrival.session).encode()))
        bound = math.inf
        if self.load_factor is not None:
            total = sum(self.requests[r] for r in candidates) + 1
            bound = math.ceil(self.load_factor * total / len(candidates))
        for step in range(len(self._ring)):
            replica = self._ring[(start + step) % len(self._ring)][1]
            if replica in candidates and self.requests[replica] + 1 <= bound:
                return self.sent(arrival, replica)
        raise AssertionError("the bound is above the mean, so some replica is below it")
