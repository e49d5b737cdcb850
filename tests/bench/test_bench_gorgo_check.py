"""Our copy of GORGO's formula against the `gorgo-lb` package itself, where it is installed; skipped otherwise.

pip install gorgo-lb==0.2.0 && pytest tests/bench/test_bench_gorgo_check.py
"""

from __future__ import annotations

import random
from typing import Any

import pytest

from bench.conftest import BLOCK, Still
from pointsman.bench.priced import Gorgo
from pointsman.bench.workload import Arrival

package: Any = pytest.importorskip("gorgo.policy.gorgo", reason="gorgo-lb is not installed")


def tokens_of(arrival: Arrival) -> list[int]:
    """Token ids: equal blocks have equal ones, the partial last block has its own."""
    whole = [block * 10_000 + n for block in arrival.full_blocks for n in range(BLOCK)]
    return whole + [2**31 - 1 - arrival.id] * (arrival.input_tokens - len(whole))


@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0), (0.276, 1.0, 0.5), (13.0, 1.0, 0.1)])
def test_our_formula_takes_what_the_package_takes(weights: tuple[float, float, float], still: Still) -> None:
    base: Any = pytest.importorskip("gorgo.policy.base")
    trie = pytest.importorskip("gorgo.radix_trie").RadixTrie()
    ours = Gorgo(*weights)
    ours.bind(still)
    names = ["rtt_weight", "prefill_weight", "load_weight"]
    store = {"defaults": dict(zip(names, weights, strict=True)), "per_target": {}}
    rng = random.Random(5)
    urls = [str(replica) for replica in range(still.fleet.size)]
    running: list[tuple[Arrival, int]] = []
    agreed = 0
    for number in range(300):
        start = rng.randrange(12) * 100
        whole = rng.randrange(1, 5)
        arrival = Arrival(
            id=number,
            at_ms=0.0,
            gateway=rng.randrange(2),
            input_tokens=whole * BLOCK + rng.randrange(1, BLOCK),
            output_tokens=1,
            blocks=(*range(start, start + whole), 100_000 + number),
            session=start,
        )
        snapshots = {
            url: base.ReplicaSnapshot(
                num_running_reqs=0,
                num_queue_reqs=0,
                num_used_tokens=0,
                latency=0.0,
                network_rtt=still.fleet.rtt(arrival.gateway, int(url)) / 1000.0,
            )
            for url in urls
        }
        context = base.RouteContext(
            replica_urls=urls,
            metrics=snapshots,
            endpoints_queued_tokens={url: ours.raw_tokens[int(url)] for url in urls},
            endpoints_queued_uncached_tokens={},
            endpoints_inflight_requests={},
            radix_trie=trie,
            token_ids=tokens_of(arrival),
            request_tokens=arrival.input_tokens,
            hyperparameters=store,
        )
        theirs = package.route_gorgo(context)
        chosen = ours.choose(arrival)
        assert theirs.scores[str(chosen)] == pytest.approx(min(theirs.scores.values()))
        agreed += theirs.target == str(chosen)
        trie.insert(tokens_of(arrival), str(chosen))
        running.append((arrival, chosen))
        if len(running) > 8:
            ended, replica = running.pop(rng.randrange(len(running)))
            ours.first_token(ended, replica)
            ours.ended(ended, replica)
    assert agreed > 200  # they differ only in which of several equals they take
