"""A greedy oracle: it sees every queue, cache and wire, and the engines' own step formula.

It takes the replica with the least (own time to first token + half of own work), as the study behind the facts did.
It does not know what comes: no later turn, no later arrival, not what its choice evicts. So it is no bound: near
saturation it spills to cold replicas and collapses, and it crowds the caches of the faster GPUs.
"""

from __future__ import annotations

from pointsman.bench.ledger import Ledger
from pointsman.bench.workload import Arrival
from pointsman.replay.trace import BLOCK_TOKENS
from pointsman.sim.step_time import batch_ms

WORK_WEIGHT = 0.5
"""What a millisecond of own prefill counts above its part in the own wait: others wait for it, too."""

RESIDENCE_MS = 10_000.0
"""For the wait for KV blocks: how long a request keeps its own."""


class Oracle(Ledger):
    """See the module."""

    def choose(self, arrival: Arrival) -> int:
        candidates = self.candidates(arrival)
        return self.sent(arrival, self.least(candidates, (self.price(arrival, r) for r in candidates)))

    def price(self, arrival: Arrival, replica: int) -> float:
        """Expected ms to the first token, and the price of the work."""
        rtt_ms = self.fleet.rtt(arrival.gateway, replica)
        engine = self.world.engines[replica]
        config = engine.config
        ahead_tokens, ahead_area = engine.prefill_ahead()
        for flying in self.world.flying(replica):
            tokens, area = self._prefill(flying.full_blocks, flying.input_tokens, replica)
            ahead_tokens += tokens
            ahead_area += area
        own_tokens, own_area = self._prefill(arrival.full_blocks, arrival.input_tokens, replica)
        host_ms = self._host_ms(arrival, replica)
        model = config.step_time
        table = batch_ms(model, config.max_num_batched_tokens)
        decodes = engine.decodes
        step_tokens = max(1, config.max_num_batched_tokens - decodes)
        decode_ms = model.decode_attention_ms * engine.decode_context_tokens + model.decode_sequence_ms * decodes
        full, rest = divmod(ahead_tokens + own_tokens, step_tokens)
        work_ms = full * (table[step_tokens + decodes] + decode_ms)
        if rest:
            work_ms += table[rest + decodes] + decode_ms
        work_ms += model.prefill_attention_ms * (ahead_area + own_area) + host_ms
        own_ms = own_tokens * table[step_tokens] / step_tokens + model.prefill_attention_ms * own_area + host_ms
        missing = own_tokens + ahead_tokens - engine.kv.available * BLOCK_TOKENS
        kv_ms = max(0, missing) * RESIDENCE_MS / config.num_gpu_blocks / BLOCK_TOKENS
        started_ms = max(0.0, engine.next_event_ms() - self.world.now_ms - rtt_ms / 2.0) if engine.running else 0.0
        ttft_ms = rtt_ms + config.api_overhead_ms + started_ms + model.slowdown * work_ms + kv_ms
        return ttft_ms + WORK_WEIGHT * model.slowdown * own_ms

    def uncached(self, arrival: Arrival, replica: int) -> int:
        """Tokens of a prompt that the replica would have to compute."""
        return self._prefill(arrival.full_blocks, arrival.input_tokens, replica)[0]

    def _prefill(self, blocks: tuple[int, ...], tokens: int, replica: int) -> tuple[int, float]:
        """Tokens to compute and the attention area of a prompt that would be admitted now."""
        hit = self.world.engines[replica].kv.lookup(blocks, (tokens - 1) // BLOCK_TOKENS)
        uncached = tokens - hit.blocks * BLOCK_TOKENS
        return uncached, uncached * (tokens - uncached / 2.0)

    def _host_ms(self, arrival: Arrival, replica: int) -> float:
        engine = self.world.engines[replica]
        hit = engine.kv.lookup(arrival.full_blocks, (arrival.input_tokens - 1) // BLOCK_TOKENS)
        tokens = hit.host * BLOCK_TOKENS
        return engine.config.step_time.host_load_ms(tokens, hit.blocks * BLOCK_TOKENS - tokens) if tokens else 0.0
