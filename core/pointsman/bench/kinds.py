"""The workloads of the benchmark: what is asked, of which fleet, and how fast for a load in percent.

    A  a trace in Mooncake's format, a copy for each region, host tier     B  the same without a host tier
    C  generated multi-turn sessions, no host tier                         D  generated questions on texts, host tier
    H  like C, hot prefixes    M  like C, GPUs of two speeds    R  like C, one region asks 2.3 times as much as another

Load is what round robin uses: prompt tokens that it computes, in percent of what it computes when it is saturated.
Saturated are 7.3 tokens per ms and replica for A and B, 11.7 for C and R, 10.5 for D, 11.9 for H (measured with this
simulator on the tuning slice at twice the load); M has those of C at 79 % of its speed, which is its GPUs' mean.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pointsman.bench.fleet import HOST_TOKENS, Fleet, Region
from pointsman.replay.generate import MultiTurn

TIME_SCALES = {77: 1.70, 80: 1.635, 92: 1.42, 102: 1.28}
"""Load in % → how much the arrivals of three copies of the conversation trace are stretched."""

RATES = {77: 18.5, 80: 19.2, 92: 22.0, 102: 24.5}
"""Load in % → requests per second of the generated sessions of C, all regions together."""

DOCUMENT_RATES = {77: 7.3, 80: 7.6, 92: 8.7, 102: 9.7}
"""The same of D."""

HOT_RATES = {77: 26.5, 80: 27.5, 92: 31.7, 102: 35.1}
"""The same of H."""

GENERATION = 1.7
"""How much slower a GPU of the generation before is, in every step (the study behind the facts took the same)."""

MIXED_SPEED = (1.0 + 1.0 / GENERATION) / 2.0

DOCUMENTS = MultiTurn(
    turns=3.0,
    think_s=60.0,
    system_prompts=1,
    system_blocks=1,
    first_tokens=13_500.0,
    user_tokens=1_200.0,
    output_tokens=149.0,
    max_output_tokens=1_500,
    max_input_tokens=126_000,
)
"""After the published figures of Mooncake's synthetic trace, in brackets what half an hour of it has: prompts of 15.3k
tokens in the mean (15.5k), 11.6k in the median (11.0k), 49k at the 95th percentile (43k), answers of 149 (149), 64 % of
the prompt tokens seen before (65 %). The trace itself is run as workload A."""

HOT = MultiTurn(system_prompts=40, system_blocks=8, first_tokens=1_500.0, user_tokens=900.0, turns=3.5)
"""Prompts begin with one of forty texts of 4,096 tokens, the first of which has 23 % of the sessions: whoever follows
the longest prefix alone sends a quarter of all requests to one replica. Lengths are near those of C."""

REGIONAL = (1.6, 1.0, 0.7)
"""Shares of the regions in R (facts 4.4)."""

_MIXED = tuple(
    Region(name=region.name, usd_per_gpu_hour=region.usd_per_gpu_hour, slowdowns=(1.0, GENERATION))
    for region in Fleet().regions
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """`loads`: load in % → requests per second, or how much a trace is stretched where `sessions` is None."""

    title: str
    loads: Mapping[int, float]
    fleet: Fleet
    sessions: MultiTurn | None
    shares: tuple[float, ...] = (1.0, 1.0, 1.0)


KINDS: dict[str, Kind] = {
    "A": Kind(title="A, a trace, host tier", loads=TIME_SCALES, fleet=Fleet(host_tokens=HOST_TOKENS), sessions=None),
    "B": Kind(title="B, a trace, device only", loads=TIME_SCALES, fleet=Fleet(), sessions=None),
    "C": Kind(title="C, sessions", loads=RATES, fleet=Fleet(), sessions=MultiTurn()),
    "D": Kind(
        title="D, documents, host tier",
        loads=DOCUMENT_RATES,
        fleet=Fleet(host_tokens=HOST_TOKENS),
        sessions=DOCUMENTS,
    ),
    "H": Kind(title="H, hot prefixes", loads=HOT_RATES, fleet=Fleet(), sessions=HOT),
    "M": Kind(
        title="M, GPUs of two speeds",
        loads={load: rate * MIXED_SPEED for load, rate in RATES.items()},
        fleet=Fleet(regions=_MIXED),
        sessions=MultiTurn(),
    ),
    "R": Kind(title="R, unequal regions", loads=RATES, fleet=Fleet(), sessions=MultiTurn(), shares=REGIONAL),
}
