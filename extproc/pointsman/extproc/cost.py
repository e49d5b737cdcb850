"""The expected price of each candidate for a request, in milliseconds, term by term.

    uncached = max(16, L - cached)                          tokens to prefill
    own      = p*uncached + a*uncached*(L - uncached/2)     our prefill; p and a are the candidates' means
    estimate = 3*RTT + backlog + own + decode_tax + kv_wait
    score    = estimate + (0.5 + fleet_backlog/500)*own     the shadow price of capacity
             + p*(best_cached - cached)                     where warm and cached < best_cached/2
             + penalty + ramp + degraded + suspect + price + lora + user     0 when unused

Chosen on the tuning slice of the policy benchmark (docs/performance.md); `pointsman bench fit` does it again.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

from pointsman.core.model import Health
from pointsman.extproc.prefix import BLOCK_TOKENS
from pointsman.extproc.signals import Load
from pointsman.extproc.table import HEALTH_CODES, Chosen, EndpointTable, Floats, Mask


@dataclass(frozen=True, slots=True, kw_only=True)
class CostModel:
    """The constants. Times in ms."""

    rtt_weight: float = 3.0
    """A placement also fixes the round trips of later turns, so one is counted three times."""
    min_uncached_tokens: int = 16
    """Engines cache whole blocks and always compute the last one."""
    shadow_base: float = 0.5
    """What own work counts again on an idle fleet: others wait for it, too."""
    shadow_weight: float = 1.0
    """How much dearer own work gets as the fleet fills: keeps cold spills from eating the capacity they look for. With
    base 1 and weight 4 warm endpoints are waited for too long (at 77 % load mean TTFT 6 % up, p95 10 %; at 130 % 6 %
    down); a weight of 0.5 is 10 % worse at 130 % (docs/performance.md)."""
    shadow_reference_ms: float = 500.0
    """The backlog at which the weight counts once; the mean prefill of the traces."""
    stick_weight: float = 1.0
    """Leaving a warm endpoint costs the prefill that it saves, once more."""
    warm_tokens: int = 512
    """Cached tokens from which an endpoint is warm: 34 ms of prefill, more than an unlucky step."""
    step_tokens: int = 2048
    """Tokens of a chunked-prefill step (`max_num_batched_tokens` of vLLM): each step pays for the running decodes."""
    decode_ms_per_request: float = 0.02
    decode_ms_per_context_token: float = 3.2e-5
    """What a running decode and each token of its context add to a step (facts 3.1, H100)."""
    kv_full: float = 0.95
    """Share of the KV pool from which a prompt waits for others to end."""
    residence_ms: float = 10_000.0
    """How long a request keeps its KV: a few hundred tokens at 30 ms each."""
    degraded_ms: float = 100_000.0
    """DEGRADED endpoints come after all others, as in Envoy, and still in order of cost."""
    suspect_ms: float = 200_000.0
    """Those that seem to be gone come behind even these."""
    home_ms: float = 250.0
    """What it costs to send a user elsewhere than before (`affinity`); for requests that say who the user is. At 70 %
    load 97 % of a chat's turns stay for 1 % in p50 of TTFT and 4 % in its mean; four times as much keeps 2 points more
    for 5 % more (docs/rollouts.md)."""
    usd_weight_ms: float = 0.0
    """Milliseconds that one USD per GPU hour is worth; 0: price plays no part."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Terms:
    """The score of each candidate, split; the columns add up to `total()`."""

    network: Floats
    backlog: Floats
    own: Floats
    decode_tax: Floats
    kv_wait: Floats
    shadow: Floats
    stick: Floats
    penalty: Floats
    ramp: Floats
    degraded: Floats
    suspect: Floats
    price: Floats
    lora: Floats
    user: Floats

    def total(self) -> Floats:
        """The score: lower is better."""
        return (
            self.network
            + self.backlog
            + self.own
            + self.decode_tax
            + self.kv_wait
            + self.shadow
            + self.stick
            + self.penalty
            + self.ramp
            + self.degraded
            + self.suspect
            + self.price
            + self.lora
            + self.user
        )

    def first_byte_ms(self, load: Load, position: int) -> float:
        """What a candidate is expected to need until its first byte: no weights, no caution, only time.

        Nor how late it is: who judges endpoints by what was expected of them would not see those that have slowed down.
        """
        wait_ms = self.backlog[position] + self.own[position] + self.decode_tax[position] + self.kv_wait[position]
        return float(load.rtt_ms[position] + wait_ms - load.late_ms[position])

    def of(self, position: int) -> dict[str, float]:
        """The terms of one candidate that are not 0, in ms."""
        found = {f.name: round(float(getattr(self, f.name)[position]), 3) for f in fields(self)}
        return {name: value for name, value in found.items() if value}


def cached_tokens(table: EndpointTable, rows: Chosen, matched: npt.NDArray[np.int64], tokens: int) -> Floats:
    """Tokens that each engine holds, in its own whole blocks; the block of the last token is always computed."""
    cached = np.minimum(matched * float(BLOCK_TOKENS), max(0, tokens - 1))
    block = table.block_tokens[rows]
    coarse = block > BLOCK_TOKENS
    if coarse.any():
        cached[coarse] = np.floor(cached[coarse] / block[coarse]) * block[coarse]
    return cached


def uncached_tokens(model: CostModel, prompt_tokens: int, cached_tokens: Floats) -> Floats:
    """Tokens that each candidate must prefill."""
    return np.maximum(float(model.min_uncached_tokens), prompt_tokens - cached_tokens)


def own_prefill_ms(table: EndpointTable, rows: Chosen, prompt_tokens: int, uncached: Floats) -> Floats:
    """Our own prefill on each candidate: linear in the new tokens, and attention over what stands before them."""
    reach = np.maximum(0.0, prompt_tokens - uncached / 2.0)
    return np.asarray(table.prefill_ms[rows] * uncached + table.attention_ms[rows] * uncached * reach, dtype=np.float64)


def score(
    model: CostModel,
    table: EndpointTable,
    rows: Chosen,
    *,
    load: Load,
    prompt_tokens: int,
    cached_tokens: Floats,
    lora_ms: Floats | None = None,
    user_ms: Floats | None = None,
    suspects: Mask | None = None,
) -> Terms:
    """The terms for a prompt of `prompt_tokens` of which each candidate holds `cached_tokens`.

    `lora_ms`: what loading the request's adapter takes at each candidate; None: it needs none. `user_ms`: what each
    candidate costs the user because it is not his home; None: who it is is not known. `suspects`: which candidates seem
    to be gone; None: none.
    A request without a prompt (headers only) has 0 tokens: it is priced by load, network and penalties alone.
    """
    zero = np.zeros(len(load.rtt_ms))
    if prompt_tokens:
        uncached = uncached_tokens(model, prompt_tokens, cached_tokens)
        own = _price_of_work(table, rows, prompt_tokens, uncached)
        fleet_backlog_ms = float(np.add.reduce(load.backlog_ms)) / len(zero)
        shadow = (model.shadow_base + model.shadow_weight * fleet_backlog_ms / model.shadow_reference_ms) * own
        stick = _stick(model, table, rows, cached_tokens)
    else:
        uncached, own, shadow, stick = zero, zero, zero, zero
    steps = np.ceil((load.pending_tokens + uncached) / model.step_tokens)
    step_ms = model.decode_ms_per_request * load.running + model.decode_ms_per_context_token * load.context_tokens
    degraded = np.where(table.health[rows] == HEALTH_CODES[Health.DEGRADED], model.degraded_ms, 0.0)
    return Terms(
        network=model.rtt_weight * load.rtt_ms,
        backlog=load.backlog_ms,
        own=own,
        decode_tax=np.maximum(1.0, steps) * step_ms,
        kv_wait=_kv_wait(model, load, uncached),
        shadow=shadow,
        stick=stick,
        penalty=load.penalty_ms,
        ramp=load.ramp_ms,
        degraded=degraded,
        suspect=zero if suspects is None else np.where(suspects, model.suspect_ms, 0.0),
        price=_price(model, table, rows) if model.usd_weight_ms else zero,
        lora=zero if lora_ms is None else lora_ms,
        user=zero if user_ms is None else user_ms,
    )


def _price_of_work(table: EndpointTable, rows: Chosen, prompt_tokens: int, uncached: Floats) -> Floats:
    """Our own prefill at the mean rate of the candidates, the same for all of them.

    How slow an endpoint is counts in its backlog, not here: a price by its own rate sends all new prompts to the fast
    ones, whose caches then lose what the slow ones' have room for (two speeds of GPUs: mean TTFT 28 % up, hits from
    0.70 to 0.56; docs/performance.md).
    """
    reach = np.maximum(0.0, prompt_tokens - uncached / 2.0)
    prefill_ms, attention_ms = _mean(table.prefill_ms[rows]), _mean(table.attention_ms[rows])
    return np.asarray(prefill_ms * uncached + attention_ms * uncached * reach, dtype=np.float64)


def _mean(values: Floats) -> float:
    return float(np.add.reduce(values)) / len(values)


def _stick(model: CostModel, table: EndpointTable, rows: Chosen, cached: Floats) -> Floats:
    best = float(cached.max())
    if best < model.warm_tokens:
        return np.zeros(len(cached))
    return np.where(cached < best / 2.0, model.stick_weight * _mean(table.prefill_ms[rows]) * (best - cached), 0.0)


def _kv_wait(model: CostModel, load: Load, uncached: Floats) -> Floats:
    """Time until enough KV is free: what is missing over the rate at which requests give theirs back."""
    missing = np.fmax(load.kv_tokens + uncached - model.kv_full * load.capacity_tokens, 0.0)  # NaN is 0
    return missing * model.residence_ms / np.maximum(load.kv_tokens, 1.0)


def _price(model: CostModel, table: EndpointTable, rows: Chosen) -> Floats:
    usd = table.site_usd[table.site[rows]]
    return np.asarray(model.usd_weight_ms * (usd - usd.min()), dtype=np.float64)
