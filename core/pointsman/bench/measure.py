"""Figures of a run and of several runs that differ in their seed. All times are simulated."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import cache

import numpy as np

from pointsman.bench.fleet import Fleet
from pointsman.bench.policy import Policy
from pointsman.bench.simulate import Outcome, Simulation
from pointsman.bench.workload import Workload
from pointsman.sim.engine import Engine, EngineConfig
from pointsman.sim.sequence import Sequence as EngineSequence

MS_PER_HOUR = 3_600_000.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """One run after its warm-up. Times in ms; shares 0..1.

    `slowdown` is TTFT over that of the same prompt on an idle, empty, local replica (mean and 99th percentile).
    `hit` is cached over all prompt tokens, `cross` the share of requests served by another region. `usd_per_1k` is the
    GPU time that prefills added to the steps, at their regions' prices, for each 1,000 requests: what a policy can
    save (tokens are generated under any policy). `prefill_rate` is computed prompt tokens per ms and replica,
    `e2e_p95_ms` is to the last token.
    """

    requests: int
    mean_ms: float
    p50_ms: float
    p95_ms: float
    p99_ms: float
    slowdown: float
    slowdown_p99: float
    hit: float
    cross: float
    itl_p95_ms: float
    e2e_p95_ms: float
    usd_per_1k: float
    prefill_rate: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """A figure over the seeds."""

    mean: float
    low: float
    high: float


FIGURES = tuple(f.name for f in fields(Figures))


def run(fleet: Fleet, workload: Workload, policy: Policy, *, scrape_ms: float = 200.0) -> tuple[Figures, list[Outcome]]:
    """Simulate a workload and measure it."""
    simulation = Simulation(fleet, workload.arrivals, policy, scrape_ms=scrape_ms)
    outcomes = simulation.run()
    return figures(fleet, workload, outcomes, simulation), outcomes


def figures(fleet: Fleet, workload: Workload, outcomes: Sequence[Outcome], simulation: Simulation) -> Figures:
    """The figures of a run that has ended."""
    counted = [o for o in outcomes if o.arrival.at_ms >= workload.warm_up_ms]
    if not counted:
        raise ValueError("no request came after the warm-up: take a longer part of the trace")
    ttft = np.array([o.ttft_ms for o in counted])
    p50, p95, p99 = np.quantile(ttft, (0.5, 0.95, 0.99)).tolist()
    slowdown = ttft / np.array([zero_load_ms(fleet, o.arrival.gateway, o.arrival.input_tokens) for o in counted])
    itl = [gap for o in counted if (gap := o.itl_ms) is not None]
    prices = [fleet.regions[region].usd_per_gpu_hour * fleet.gpus_per_replica for region in fleet.region_of]
    usd = sum(ms / MS_PER_HOUR * price for ms, price in zip(simulation.prefill_ms, prices, strict=True))
    return Figures(
        requests=len(counted),
        mean_ms=float(ttft.mean()),
        p50_ms=p50,
        p95_ms=p95,
        p99_ms=p99,
        slowdown=float(slowdown.mean()),
        slowdown_p99=float(np.quantile(slowdown, 0.99)),
        hit=sum(o.cached_tokens for o in counted) / sum(o.arrival.input_tokens for o in counted),
        cross=sum(fleet.region_of[o.replica] != o.arrival.gateway for o in counted) / len(counted),
        itl_p95_ms=float(np.quantile(itl, 0.95)) if itl else 0.0,
        e2e_p95_ms=float(np.quantile([o.e2e_ms for o in counted], 0.95)),
        usd_per_1k=usd / len(outcomes) * 1_000.0,
        prefill_rate=sum(simulation.prefill_tokens) / fleet.size / workload.duration_ms,
    )


def zero_load_ms(fleet: Fleet, gateway: int, input_tokens: int) -> float:
    """TTFT of a prompt on the gateway's own first replica when it is idle and empty."""
    replica = fleet.local[gateway][0]
    return fleet.rtt(gateway, replica) + _alone_ms(fleet.engine_config(replica), input_tokens)


@cache
def _alone_ms(config: EngineConfig, input_tokens: int) -> float:
    engine = Engine(config)
    sequence = EngineSequence(id=0, block_hashes=(), prompt_tokens=input_tokens, output_tokens=1)
    engine.submit(0.0, sequence)
    engine.advance(float("inf"))
    return sequence.first_token_ms


def spread(runs: Sequence[Figures]) -> dict[str, Spread]:
    """Mean, lowest and highest of each figure over the seeds."""
    found = {}
    for name in FIGURES:
        values = [float(getattr(one, name)) for one in runs]
        found[name] = Spread(mean=sum(values) / len(values), low=min(values), high=max(values))
    return found


def over_seeds(
    fleet: Fleet,
    build: Callable[[int], Workload],
    policy: Callable[[int], Policy],
    seeds: Sequence[int],
    *,
    scrape_ms: float = 200.0,
) -> list[Figures]:
    """One run for each seed: the seed makes the workload and the policy's own chance."""
    return [run(fleet, build(seed), policy(seed), scrape_ms=scrape_ms)[0] for seed in seeds]
