"""What no router can take away from a mean time to first token: the prompt's own computing and the wire.

A bar that asks for less than this floor asks for more cached tokens, and one cache of the fleet's size (`shared_cache`)
tells how many more there could be: routing spreads prompts over the replicas' caches, it does not make them larger.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from pointsman.bench.fleet import Fleet
from pointsman.bench.simulate import Outcome
from pointsman.bench.workload import Workload
from pointsman.replay.trace import BLOCK_TOKENS
from pointsman.sim.engine import EngineConfig
from pointsman.sim.step_time import batch_ms


@dataclass(frozen=True, slots=True, kw_only=True)
class Floor:
    """Means over the requests after the warm-up, in ms: `mean_ms` is TTFT, `own_ms` the prefill of what was not cached
    on a replica with nothing else to do, `wire_ms` the round trip; the rest is queues and others' tokens."""

    mean_ms: float
    own_ms: float
    wire_ms: float

    @property
    def rest_ms(self) -> float:
        """What a router could still save with the same hits."""
        return self.mean_ms - self.own_ms - self.wire_ms


def floor(fleet: Fleet, workload: Workload, outcomes: Sequence[Outcome]) -> Floor:
    """The floor of a run that has ended. Loading from the host tier is left out, so with one it is too low."""
    counted = [o for o in outcomes if o.arrival.at_ms >= workload.warm_up_ms]
    if not counted:
        raise ValueError("no request came after the warm-up: take a longer part of the trace")
    own = (_own_ms(fleet.engine_config(o.replica), o.arrival.input_tokens, o.cached_tokens) for o in counted)
    return Floor(
        mean_ms=sum(o.ttft_ms for o in counted) / len(counted),
        own_ms=sum(own) / len(counted),
        wire_ms=sum(fleet.rtt(o.arrival.gateway, o.replica) for o in counted) / len(counted),
    )


def shared_cache(fleet: Fleet, workload: Workload, *, times: float = 1.0) -> float:
    """The hit ratio if all replicas had one least-recently-used cache together, `times` as large as theirs are.

    Nothing running holds a block in it and nothing is stored twice: a yardstick for placements on caches of that kind.
    """
    room = int(times * fleet.size * fleet.cache_tokens / BLOCK_TOKENS)
    held: OrderedDict[int, None] = OrderedDict()
    hits = tokens = 0
    for arrival in workload.arrivals:
        blocks = arrival.full_blocks
        found = next((n for n, block in enumerate(blocks) if block not in held), len(blocks))
        if arrival.at_ms >= workload.warm_up_ms:
            # The last token is always computed, and blocks are cached whole.
            hits += min(found, (arrival.input_tokens - 1) // BLOCK_TOKENS) * BLOCK_TOKENS
            tokens += arrival.input_tokens
        for block in reversed(blocks):
            held[block] = None
            held.move_to_end(block)
        while len(held) > room:
            held.popitem(last=False)
    return hits / tokens if tokens else 0.0


@cache
def _own_ms(config: EngineConfig, tokens: int, cached: int) -> float:
    """Prefill of `tokens` of which `cached` are there, alone on a replica, with the overhead of its HTTP server."""
    model, budget = config.step_time, config.max_num_batched_tokens
    table = batch_ms(model, budget)
    uncached = max(1, tokens - cached)
    full, rest = divmod(uncached, budget)
    steps_ms = full * table[budget] + (table[rest] if rest else 0.0)
    attention_ms = model.prefill_attention_ms * uncached * (tokens - uncached / 2.0)
    return config.api_overhead_ms + model.slowdown * (steps_ms + attention_ms)
