"""Every policy of the benchmark by its name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from itertools import product

from pointsman.bench.affinity import AIBrix, LlmD, SGLang, SkyWalker
from pointsman.bench.balancers import LeastOutstanding, PowerOfTwo, RoundRobin, SessionRing
from pointsman.bench.joint import ALONE, PRODUCTION, Joint, Wiring
from pointsman.bench.oracle import Oracle
from pointsman.bench.policy import Policy
from pointsman.bench.priced import Dynamo, Gorgo, LMetric, Lpwl

Make = Callable[[int], Policy]


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A policy: `make(seed)` gives a fresh one. `scrape_ms` where it has a period of its own."""

    title: str
    make: Make
    scrape_ms: float | None = None


def _joint(wiring: Wiring) -> Make:
    return lambda _seed: Joint(wiring=wiring)


def _of(make: Callable[..., Policy], **options: object) -> Make:
    return lambda seed: make(seed=seed, **options)


CATALOGUE: dict[str, Entry] = {
    "round-robin": Entry(title="round robin (all)", make=_of(RoundRobin)),
    "round-robin-local": Entry(title="round robin (local)", make=_of(RoundRobin, local=True)),
    "least-outstanding": Entry(title="least outstanding (all)", make=_of(LeastOutstanding)),
    "least-outstanding-local": Entry(title="least outstanding (local)", make=_of(LeastOutstanding, local=True)),
    "p2c": Entry(title="power of two choices", make=_of(PowerOfTwo)),
    "session": Entry(title="session hash", make=_of(SessionRing)),
    "chwbl": Entry(title="CHWBL 1.25 (session)", make=_of(SessionRing, load_factor=1.25)),
    "sglang": Entry(title="SGLang cache_aware", make=_of(SGLang)),
    "aibrix": Entry(title="AIBrix prefix-cache", make=_of(AIBrix)),
    "llm-d": Entry(title="llm-d default (all)", make=_of(LlmD)),
    "llm-d-50ms": Entry(title="llm-d default (all), 50 ms", make=_of(LlmD), scrape_ms=50.0),
    "llm-d-local": Entry(title="llm-d default (per region)", make=_of(LlmD, local=True)),
    "llm-d-local-50ms": Entry(title="llm-d default (per region), 50 ms", make=_of(LlmD, local=True), scrape_ms=50.0),
    "skywalker": Entry(title="SkyWalker-like", make=_of(SkyWalker)),
    "gorgo": Entry(title="GORGO, defaults", make=_of(Gorgo)),
    "gorgo-paper": Entry(title="GORGO, paper's weights", make=_of(Gorgo, rtt_weight=0.276, load_weight=0.5)),
    "dynamo": Entry(title="Dynamo", make=_of(Dynamo)),
    "lmetric": Entry(title="LMetric", make=_of(LMetric)),
    "lpwl": Entry(title="LPWL (all)", make=_of(Lpwl)),
    "lpwl-local": Entry(title="LPWL (local)", make=_of(Lpwl, local=True)),
    "joint-local": Entry(title="Pointsman, local only", make=_joint(Wiring(local=True))),
    "joint": Entry(title="Pointsman", make=_joint(Wiring())),
    "joint-isolated": Entry(title="Pointsman, 3 pickers, no gossip", make=_joint(Wiring(shared=False))),
    "joint-alone": Entry(title="Pointsman, 3 pickers, no gossip, ALS", make=_joint(ALONE)),
    "joint-production": Entry(title="Pointsman, 3 pickers, gossip, ALS", make=_joint(PRODUCTION)),
    "oracle": Entry(title="greedy oracle", make=_of(Oracle)),
}
"""In the order of the tables. Three pickers are one for each region; otherwise all gateways share one state, and so do
the baselines."""

_BY_HAND = Wiring(calibrate=False)

VARIANTS: dict[str, Entry] = {
    "joint-scrape-50ms": Entry(title="scrape each 50 ms", make=_joint(Wiring()), scrape_ms=50.0),
    "joint-scrape-1s": Entry(title="scrape each 1 s", make=_joint(Wiring()), scrape_ms=1_000.0),
    "joint-scrape-5s": Entry(title="scrape each 5 s", make=_joint(Wiring()), scrape_ms=5_000.0),
    "joint-alone-scrape-5s": Entry(
        title="scrape each 5 s, 3 pickers, no gossip, ALS", make=_joint(ALONE), scrape_ms=5_000.0
    ),
    "joint-rates-half": Entry(title="rates × 0.5", make=_joint(Wiring(rate_error=0.5))),
    "joint-rates-double": Entry(title="rates × 2", make=_joint(Wiring(rate_error=2.0))),
    "joint-by-hand": Entry(title="right rates, not calibrated", make=_joint(_BY_HAND)),
    "joint-rates-half-by-hand": Entry(
        title="rates × 0.5, not calibrated", make=_joint(replace(_BY_HAND, rate_error=0.5))
    ),
    "joint-rates-double-by-hand": Entry(
        title="rates × 2, not calibrated", make=_joint(replace(_BY_HAND, rate_error=2.0))
    ),
}
"""Our policy with late signals or wrong beliefs, to be compared with itself (`joint`)."""

GORGO_BEST = "gorgo-best"
GORGO_GRID = tuple(product((2.0, 13.0, 40.0, 130.0), (0.03, 0.1, 0.3, 1.0)))
"""(RTT weight, load weight) for a prefill weight of 1 token: a millisecond is 13 tokens on these replicas, so the grid
goes from far too little to ten times too much; an RTT weight of 400 is no better (tried on the tuning slice)."""


def gorgo_of(weights: tuple[float, float]) -> Entry:
    """GORGO with the best weights of its grid on the tuning slice."""
    rtt_weight, load_weight = weights
    return Entry(
        title=f"GORGO, best of grid ({rtt_weight:g}/1/{load_weight:g})",
        make=partial(_gorgo, rtt_weight, load_weight),
    )


def _gorgo(rtt_weight: float, load_weight: float, seed: int) -> Policy:
    return Gorgo(rtt_weight, 1.0, load_weight, seed=seed)
