"""How long one step of a model server takes: a formula of the batch, in milliseconds. Pure.

One replica is Llama-3-70B in bf16 on four H100 (tensor parallel 4). The linear layers follow the profile that Vidur
publishes (microsoft/vidur, MIT); context and decode attention agree with the H100 measurements of aiconfigurator-core
0.12 within a third. Its kernels are faster by about a quarter in prefill, so these times are on the slow side. They
are a model and no measurement of anybody's hardware: never publish them without saying so.
"""

from __future__ import annotations

from functools import cache
from itertools import pairwise

import msgspec


class StepTime(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Constants of the formula. With n = prefill + decode tokens of the step, its duration in ms is

    `cpu + linear(n) + 2·layers·(all_reduce + all_reduce_token·n) + prefill_attention·Σ chunk·(context + chunk/2)
    + decode_attention·Σ decode context + decode_sequence·decodes + host load`, all of it times `slowdown`.
    """

    cpu_ms: float = 2.5
    """Scheduling, input preparation and sampling of a step; the same for any batch."""

    linear_ms: tuple[tuple[int, float], ...] = (
        (1, 14.3),
        (128, 15.9),
        (512, 30.0),
        (1024, 62.0),
        (2048, 114.0),
        (4096, 222.0),
    )
    """(tokens, ms) of all linear operations of a step: Vidur's per-layer profile of H100, TP4, times 80 layers.
    Straight lines in between; past the last point the last slope goes on."""

    layers: int = 80
    """Transformer layers of Llama-3-70B; each does two all-reduces."""

    all_reduce_ms: float = 0.020
    all_reduce_token_ms: float = 0.0745e-3
    """Latency and per-token time of one all-reduce over 4 GPUs (Vidur's h100_dgx profile: 0.167 ms for 32 MiB)."""

    prefill_attention_ms: float = 1.32e-6
    """Per (prompt token × context token)."""

    decode_attention_ms: float = 3.2e-5
    """Per context token that a decoding sequence reads; memory bound (aiconfigurator-core: 2.8 to 3.6e-5)."""

    decode_sequence_ms: float = 0.02
    """Sampling and bookkeeping for each decoding sequence."""

    host_load_fraction: float = 0.08
    """Loading a block from host memory costs this share of computing it again."""

    slowdown: float = 1.0
    """Multiplies every step; 1.7 is a GPU generation back."""

    def __post_init__(self) -> None:
        tokens = [n for n, _ in self.linear_ms]
        if len(tokens) < 2 or tokens[0] < 1 or any(b <= a for a, b in pairwise(tokens)):
            raise ValueError("`linear_ms` must hold two or more points with growing token counts, the first >= 1")
        if self.slowdown <= 0:
            raise ValueError("`slowdown` must be above 0")

    def linear(self, tokens: int) -> float:
        """Time of the linear operations for `tokens` >= 1, in ms."""
        points = self.linear_ms
        (x0, y0), (x1, y1) = points[0], points[1]
        for x, y in points[2:]:
            if tokens <= x1:
                break
            (x0, y0), (x1, y1) = (x1, y1), (x, y)
        return y0 + (y1 - y0) * (tokens - x0) / (x1 - x0)

    def host_load_ms(self, host_tokens: int, context_tokens: int) -> float:
        """Time to bring `host_tokens` back from host memory, where `context_tokens` stand before them."""
        last_tokens, last_ms = self.linear_ms[-1]
        per_token_ms = last_ms / last_tokens + 2 * self.layers * self.all_reduce_token_ms
        attention = self.prefill_attention_ms * host_tokens * (context_tokens + host_tokens / 2)
        return self.host_load_fraction * (per_token_ms * host_tokens + attention)


@cache
def batch_ms(model: StepTime, max_tokens: int) -> tuple[float, ...]:
    """Table: duration of a step by its number of tokens, 0 to `max_tokens`, without attention; before `slowdown`."""
    fixed_ms = model.cpu_ms + 2 * model.layers * model.all_reduce_ms
    token_ms = 2 * model.layers * model.all_reduce_token_ms
    return (fixed_ms, *(fixed_ms + token_ms * n + model.linear(n) for n in range(1, max_tokens + 1)))
