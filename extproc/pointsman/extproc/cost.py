"""The expected price of each candidate for a request, in milliseconds, term by term.

    uncached = max(16, L - cached)                          tokens to prefill
    own      = p*uncached + a*uncached*(L - uncached/2)     our prefill; p and a are the candidates' means
    estimate = 3*RTT + backlog + own + decode_tax + kv_wait
    score    = estimate + (0.5 + fleet_backlog/500)*own     the shadow price of capacity; fleet_backlog: `_middle`
             + p*(best_cached - cached)                     where warm and cached < best_cached/2
             + penalty + ramp + degraded + suspect + price + lora + user     0 when unused

Chosen on the tuning slice of the policy benchmark (docs/performance.md); `pointsman bench fit` does it again.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from operator import attrgetter

import numpy as np
import numpy.typing as npt

from pointsman.core.model import Health
from pointsman.extproc.prefix import BLOCK_TOKENS
from pointsman.extproc.signals import Load, is_nothing, nothing
from pointsman.extproc.table import HEALTH_CODES, Chosen, EndpointTable, Floats, Mask

_DEGRADED = HEALTH_CODES[Health.DEGRADED]


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
        total = self.network + self.backlog
        for column in _further(self):
            if not is_nothing(column):
                total += column
        return total

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


_further = attrgetter(*[field.name for field in fields(Terms)][2:])


def cached_tokens(table: EndpointTable, rows: Chosen, matched: npt.NDArray[np.int64], tokens: int) -> Floats:
    """Tokens that each engine holds, in its own whole blocks; the block of the last token is always computed."""
    cached = np.minimum(matched * float(BLOCK_TOKENS), max(0, tokens - 1))
    block = table.block_tokens[rows]
    if np.fmax.reduce(block) > BLOCK_TOKENS:
        coarse = block > BLOCK_TOKENS
        cached[coarse] = np.floor(cached[coarse] / block[coarse]) * block[coarse]
    return cached


def uncached_tokens(model: CostModel, prompt_tokens: int, cached_tokens: Floats) -> Floats:
    """Tokens that each candidate must prefill."""
    uncached = prompt_tokens - cached_tokens
    return np.maximum(uncached, float(model.min_uncached_tokens), out=uncached)


def own_prefill_ms(table: EndpointTable, row: int, prompt_tokens: int, uncached: float) -> float:
    """Our own prefill on an endpoint: linear in the new tokens, and attention over what stands before them."""
    reach = max(0.0, prompt_tokens - uncached / 2.0)
    prefill_ms, attention_ms = table.rates[:, row].tolist()
    return float(prefill_ms * uncached + attention_ms * uncached * reach)


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
    zero = nothing(len(load.rtt_ms))
    if prompt_tokens:
        uncached = uncached_tokens(model, prompt_tokens, cached_tokens)
        prefill_ms, attention_ms = (np.add.reduce(table.rates[:, rows], axis=1) / len(zero)).tolist()
        own = _price_of_work(prefill_ms, attention_ms, prompt_tokens, uncached)
        fleet_backlog_ms = _middle(load.backlog_ms)
        shadow = (model.shadow_base + model.shadow_weight * fleet_backlog_ms / model.shadow_reference_ms) * own
        stick = _stick(model, prefill_ms, cached_tokens)
    else:
        uncached, own, shadow, stick = zero, zero, zero, zero
    degraded = table.health[rows] == _DEGRADED
    return Terms(
        network=model.rtt_weight * load.rtt_ms,
        backlog=load.backlog_ms,
        own=own,
        decode_tax=_decode_tax(model, load, uncached),
        kv_wait=_kv_wait(model, load, uncached),
        shadow=shadow,
        stick=stick,
        penalty=load.penalty_ms,
        ramp=load.ramp_ms,
        degraded=np.where(degraded, model.degraded_ms, 0.0) if np.logical_or.reduce(degraded) else zero,
        suspect=zero if suspects is None else np.where(suspects, model.suspect_ms, 0.0),
        price=_price(model, table, rows) if model.usd_weight_ms else zero,
        lora=zero if lora_ms is None else lora_ms,
        user=zero if user_ms is None else user_ms,
    )


def _price_of_work(prefill_ms: float, attention_ms: float, prompt_tokens: int, uncached: Floats) -> Floats:
    """Our own prefill at the mean rates of the candidates, the same for all of them.

    How slow an endpoint is counts in its backlog, not here: a price by its own rate sends all new prompts to the fast
    ones, whose caches then lose what the slow ones' have room for (two speeds of GPUs: mean TTFT 28 % up, hits from
    0.70 to 0.56; docs/performance.md).
    """
    own = uncached * -0.5
    own += prompt_tokens  # the tokens that stand before them, on average
    np.maximum(own, 0.0, out=own)
    own *= attention_ms
    own += prefill_ms
    own *= uncached
    return own


def _decode_tax(model: CostModel, load: Load, uncached: Floats) -> Floats:
    """What the running requests add to the steps of our prefill."""
    tax = load.pending_tokens + uncached
    tax /= model.step_tokens
    np.ceil(tax, out=tax)
    np.maximum(tax, 1.0, out=tax)
    tax *= model.decode_ms_per_request * load.running + model.decode_ms_per_context_token * load.context_tokens
    return tax


def _stick(model: CostModel, prefill_ms: float, cached: Floats) -> Floats:
    best = float(np.maximum.reduce(cached))
    if best < model.warm_tokens:
        return nothing(len(cached))
    return np.where(cached < best / 2.0, model.stick_weight * prefill_ms * (best - cached), 0.0)


def _kv_wait(model: CostModel, load: Load, uncached: Floats) -> Floats:
    """Time until enough KV is free: what is missing over the rate at which requests give theirs back."""
    missing = load.kv_tokens + uncached
    missing -= model.kv_full * load.capacity_tokens
    if not np.fmax.reduce(missing) > 0.0:  # NaN: no capacity is known
        return nothing(len(missing))
    return np.asarray(np.fmax(missing, 0.0) * model.residence_ms / np.maximum(load.kv_tokens, 1.0), dtype=np.float64)


def _price(model: CostModel, table: EndpointTable, rows: Chosen) -> Floats:
    usd = table.site_usd[table.site[rows]]
    return np.asarray(model.usd_weight_ms * (usd - usd.min()), dtype=np.float64)


def _middle(values: Floats) -> float:
    """The mean, or the (upper) median where that is less: one prompt of 100,000 tokens is no full fleet.

    With the mean alone it makes own work dear everywhere, and prompts wait for warm endpoints that are busy
    (docs/performance.md).
    """
    half = len(values) // 2
    ordered = values.copy()
    ordered.partition(half)  # a call of np.partition takes twice as long
    return min(float(np.add.reduce(values)) / len(values), float(ordered[half]))
