"""Routers that look for the cached prefix and at the load: SGLang, AIBrix, llm-d, SkyWalker.

Written from the formulas and defaults of their sources as of early 2026; no code of theirs. Their prefix trees are our
own record with the replica's true capacity, which is kinder than what most of them have.
"""

from __future__ import annotations

from statistics import fmean, pstdev

from pointsman.bench.ledger import Ledger, PrefixRecord
from pointsman.bench.policy import World
from pointsman.bench.workload import Arrival
from pointsman.replay.trace import BLOCK_TOKENS


class SGLang(Ledger):
    """`cache_aware` of SGLang's router: when the counts are out of balance the least loaded; else the best match above
    the threshold, else the replica with the smallest tree."""

    balance_abs = 64
    balance_rel = 1.5
    cache_threshold = 0.3

    def choose(self, arrival: Arrival) -> int:
        candidates = self.candidates(arrival)
        counts = [self.requests[r] for r in candidates]
        high, low = max(counts), min(counts)
        if high - low > self.balance_abs and high > self.balance_rel * low:
            return self.sent(arrival, self.least(candidates, counts))
        matched = [self.prefixes.matched(r, arrival.full_blocks) * BLOCK_TOKENS for r in candidates]
        if max(matched) / arrival.input_tokens > self.cache_threshold:
            return self.sent(arrival, self.least(candidates, (-m for m in matched)))
        return self.sent(arrival, self.least(candidates, (self.prefixes.size(r) for r in candidates)))


class AIBrix(Ledger):
    """`prefix-cache` of AIBrix's gateway: out of balance by more than 8 running requests, the least loaded; else the
    longest match whose load is at most mean + 1 standard deviation; else the least loaded."""

    imbalance = 8
    deviations = 1.0

    def choose(self, arrival: Arrival) -> int:
        candidates = self.candidates(arrival)
        counts = [self.requests[r] for r in candidates]
        if max(counts) - min(counts) <= self.imbalance:
            bound = fmean(counts) + self.deviations * pstdev(counts)
            matched = {r: self.prefixes.matched(r, arrival.full_blocks) for r in candidates}
            fits = [r for r in candidates if matched[r] and self.requests[r] <= bound]
            if fits:
                longest = max(matched[r] for r in fits)
                fits = [r for r in fits if matched[r] == longest]
                return self.sent(arrival, self.least(fits, (self.requests[r] for r in fits)))
        return self.sent(arrival, self.least(candidates, counts))


class LlmD(Ledger):
    """llm-d's default profile: 2·queue + 2·(1 − KV usage) + 3·prefix, the highest sum, random ties.

    The queue is the scraped number of waiting requests, normalised between the candidates; nothing is counted between
    scrapes. The prefix scorer records and matches the first 256 blocks of 16 tokens of a prompt, 31,250 blocks a pod.
    """

    queue_weight = 2.0
    kv_weight = 2.0
    prefix_weight = 3.0
    max_prefix_tokens = 4_096
    lru_tokens = 500_000

    def bind(self, world: World) -> None:
        super().bind(world)
        self._record = PrefixRecord(self.fleet.size, self.lru_tokens)

    def choose(self, arrival: Arrival) -> int:
        candidates = self.candidates(arrival)
        blocks = arrival.full_blocks[: self.max_prefix_tokens // BLOCK_TOKENS]
        queues = [self.samples[r].waiting for r in candidates]
        high, low = max(queues), min(queues)
        costs = []
        for replica, queue in zip(candidates, queues, strict=True):
            score = self.queue_weight * ((high - queue) / (high - low) if high > low else 1.0)
            score += self.kv_weight * (1.0 - self.samples[replica].kv_usage)
            if blocks:
                score += self.prefix_weight * self._record.matched(replica, blocks) / len(blocks)
            costs.append(-score)
        replica = self.least(candidates, costs)
        self._record.insert(replica, blocks)
        return self.sent(arrival, replica)


class SkyWalker(Ledger):
    """Like SkyWalker: push only to replicas without pending requests, local ones first, among those the best prefix;
    hold the request at the gateway while there is none. Pending is known exactly here, where SkyWalker probes."""

    def choose(self, arrival: Arrival) -> int | None:
        home = self.fleet.local[arrival.gateway]
        away = tuple(r for r in self.all if r not in home)
        for candidates in (home, away):
            free = [r for r in candidates if not self.unstarted[r]]
            if free:
                costs = [(-float(self.cached(r, arrival)), self.requests[r]) for r in free]
                best = min(costs)
                return self.sent(
                    arrival, self.random.choice([r for r, c in zip(free, costs, strict=True) if c == best])
                )
        return None
