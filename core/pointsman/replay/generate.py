"""Makes multi-turn traces: sessions that share system prompts and send their whole history again with each turn.

The defaults resemble the published figures of the ART chat windows that GORGO was judged on (arXiv 2602.11688); what
half an hour of them gives is in brackets (three seeds, measured with `describe`): prompts of 5.8k tokens in the median
(6.0k), 7.0k on average (7.5k), 21k at the 95th percentile (18.4k) and at most 24k (24k), answers of at most 128 tokens
(128), 77.6 % of the prompt tokens seen before (77.4 %), about 40 s between turns (42 s). A session has fewer requests
than published (4.5 against 13): lengths and reuse are what a router meets, and both could not be had. Lognormal
lengths, exponential think times and geometric session lengths are our assumption.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

import msgspec
import numpy as np

from pointsman.replay.trace import BLOCK_TOKENS, TraceRequest, blocks_of

WARM_UP_SESSIONS: Final = 3.0
"""Sessions begin this many mean session lengths before the trace does, so that it starts with sessions of all ages:
after three of them all but 5 % of the sessions that are open at any time are there."""

FIRST_TOKEN_S: Final = 0.5
TOKEN_S: Final = 0.025
"""How long a user waits for an answer before thinking: rounded from an H100 step at medium load."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MultiTurn:
    """What the trace looks like. Lengths are mean tokens, lognormal with `sigma`; times are mean seconds.

    `turns` is the mean number of requests of a session (geometric), `rate` is requests per second in the mean.
    `system_prompts` prompts of `system_blocks` whole blocks each are shared by the sessions, the n-th of them used with
    weight 1/n.
    """

    duration_s: float = 1800.0
    rate: float = 5.0
    turns: float = 4.5
    think_s: float = 40.0
    system_prompts: int = 8
    system_blocks: int = 2
    first_tokens: float = 2900.0
    user_tokens: float = 1300.0
    output_tokens: float = 90.0
    max_output_tokens: int = 128
    max_input_tokens: int = 24_000
    sigma: float = 1.1
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceStats:
    """Figures of a trace, in tokens. `reuse` is the part of the prompt tokens that an endless prefix cache would hold
    already when the request comes (0..1)."""

    requests: int
    span_s: float
    input_mean: float
    input_p50: float
    input_p95: float
    input_max: int
    output_mean: float
    reuse: float


def generate(spec: MultiTurn) -> list[TraceRequest]:
    """The requests in the order of their arrival, the same for the same spec.

    A session keeps its ids: a block that was partial in one turn has the same id when the next turn fills it, because
    prompt text is cut from the block's text and so grows with it.
    """
    rng = random.Random(spec.seed)  # noqa: S311 - a workload, no secrets
    mean_turn_s = spec.think_s + FIRST_TOKEN_S + spec.output_tokens * TOKEN_S
    start_s = -WARM_UP_SESSIONS * spec.turns * mean_turn_s
    found: list[tuple[float, int, int, list[tuple[str, int, int]]]] = []
    session = 0
    while (start_s := start_s + rng.expovariate(spec.rate / spec.turns)) < spec.duration_s:
        session += 1
        # A generator of its own for each session: how long one of them runs changes nothing in the next.
        turns = _session(spec, random.Random(rng.getrandbits(64)), session, start_s)  # noqa: S311
        found += [turn for turn in turns if turn[0] >= 0]
    found.sort(key=lambda turn: turn[0])
    ids: dict[tuple[str, int, int], int] = {}
    return [
        TraceRequest(
            arrival_ms=float(math.floor(arrival_s * 1000)),
            input_tokens=input_tokens,
            output_tokens=output_tokens,
            hash_ids=tuple(ids.setdefault(block, len(ids)) for block in blocks),
        )
        for arrival_s, input_tokens, output_tokens, blocks in found
    ]


def trace_lines(requests: Iterable[TraceRequest]) -> Iterator[bytes]:
    """The requests as lines of a trace file."""
    for request in requests:
        line = {
            "timestamp": int(request.arrival_ms),
            "input_length": request.input_tokens,
            "output_length": request.output_tokens,
            "hash_ids": request.hash_ids,
        }
        yield msgspec.json.encode(line) + b"\n"


def describe(requests: list[TraceRequest]) -> TraceStats:
    """Figures of a trace in the order of its arrivals; needs at least one request."""
    inputs = [r.input_tokens for r in requests]
    p50, p95 = np.quantile(inputs, (0.5, 0.95)).tolist()
    seen: dict[int, int] = {}
    return TraceStats(
        requests=len(requests),
        span_s=(requests[-1].arrival_ms - requests[0].arrival_ms) / 1000,
        input_mean=float(np.mean(inputs)),
        input_p50=p50,
        input_p95=p95,
        input_max=max(inputs),
        output_mean=float(np.mean([r.output_tokens for r in requests])),
        reuse=sum(_reused(r, seen) for r in requests) / sum(inputs),
    )


def _session(
    spec: MultiTurn, rng: random.Random, session: int, start_s: float
) -> Iterator[tuple[float, int, int, list[tuple[str, int, int]]]]:
    """(arrival in s, input tokens, output tokens, blocks) of each turn before the end of the trace."""
    weights = [1 / n for n in range(1, spec.system_prompts + 1)]
    system = rng.choices(range(spec.system_prompts), weights)[0] if weights else 0
    shared = spec.system_blocks if weights else 0
    now_s = start_s
    input_tokens = shared * BLOCK_TOKENS + _lognormal(rng, spec.first_tokens, spec.sigma)
    while now_s < spec.duration_s and input_tokens <= spec.max_input_tokens:
        output_tokens = min(spec.max_output_tokens, _lognormal(rng, spec.output_tokens, spec.sigma))
        blocks = [
            ("system", system, n) if n < shared else ("session", session, n) for n in range(blocks_of(input_tokens))
        ]
        yield now_s, input_tokens, output_tokens, blocks
        if rng.random() < 1 / spec.turns:
            return
        now_s += FIRST_TOKEN_S + output_tokens * TOKEN_S + rng.expovariate(1 / spec.think_s)
        input_tokens += output_tokens + _lognormal(rng, spec.user_tokens, spec.sigma)


def _lognormal(rng: random.Random, mean: float, sigma: float) -> int:
    """A whole number ≥ 1 whose distribution has this mean."""
    return max(1, round(rng.lognormvariate(math.log(mean) - sigma * sigma / 2, sigma)))


def _reused(request: TraceRequest, seen: dict[int, int]) -> int:
    """Tokens of the longest prefix that was seen; notes the request's blocks in `seen` (tokens known by id)."""
    reused = 0
    matching = True
    for number, block in enumerate(request.hash_ids):
        tokens = min(BLOCK_TOKENS, request.input_tokens - number * BLOCK_TOKENS)
        known = min(seen.get(block, 0), tokens)
        reused += known if matching else 0
        matching = matching and known == tokens
        seen[block] = max(seen.get(block, 0), tokens)
    return reused
