"""How long a decision takes: from the bytes of an ext_proc message to the bytes of the reply, without the network.

    python bench/picker_decision.py [--rounds N]

For 10, 100 and 1,000 endpoints at two sites, with scraped signals and a warm prefix index, and chat bodies of 4 KB and
48 KB (the mean of a public trace) that are turns of 500 conversations. On a machine with other work the clock shows how
long the process was kept waiting; the CPU time of the thread is what the decision took.
"""

from __future__ import annotations

import argparse
import gc
import json
import random
import time

import numpy as np
from envoy.service.ext_proc.v3 import external_processor_pb2 as ext_proc
from rich.console import Console
from rich.table import Table

from pointsman.core import wire
from pointsman.core.clock import SystemClock
from pointsman.core.engine_metrics import EngineMetrics
from pointsman.core.model import Endpoint, Plan, Pool, Site, SiteGroup
from pointsman.extproc import Exchange, Picker
from pointsman.extproc.feedback import Feedback

CONVERSATIONS = 500
POOL = "default/llama"


def plan_of(count: int) -> Plan:
    groups = []
    for priority, site in enumerate(("eu-west", "us-east")):
        endpoints = tuple(
            Endpoint(name=f"{site}-{n}", address=f"10.{priority}.{n // 250}.{n % 250 + 1}", port=8000, site=site)
            for n in range(count // 2)
        )
        groups.append(SiteGroup(site=site, priority=priority, weight=1, endpoints=endpoints))
    sites = (Site(name="eu-west"), Site(name="us-east"))
    return Plan(sites=sites, pools=(Pool(name=POOL, groups=tuple(groups)),))


def plan_keys(plan: Plan) -> list[str]:
    return [endpoint.key for pool in plan.pools for endpoint in pool.endpoints()]


def messages_of(size_bytes: int, count: int, rng: random.Random) -> list[bytes]:
    """Serialised messages: chats that share a system prompt and grow from turn to turn up to `size_bytes`."""
    words = ["rail", "signal", "point", "train", "switch", "track", "yard", "lamp", "lever", "gauge"]
    made = []
    for _ in range(count):
        conversation = rng.randrange(CONVERSATIONS)
        own = random.Random(conversation)
        text = " ".join(own.choices(words, k=size_bytes // 5))
        turn = rng.randrange(1, 5)
        part = text[: size_bytes * turn // 4]
        content = [{"role": "system", "content": "You set points. " * 16}, {"role": "user", "content": part}]
        message = ext_proc.ProcessingRequest()
        message.request_body.body = json.dumps({"model": "llama", "messages": content, "stream": True}).encode()
        message.request_body.end_of_stream = True
        attributes = message.attributes["envoy.filters.http.ext_proc"].fields
        attributes[wire.ATTRIBUTE_CLUSTER].string_value = POOL
        attributes[wire.ATTRIBUTE_REQUEST_ID].string_value = f"{rng.getrandbits(128):032x}"
        made.append(message.SerializeToString())
    return made


def measure(endpoints: int, size_bytes: int, rounds: int) -> tuple[np.ndarray, np.ndarray, float, int]:
    """Microseconds of each decision by the clock and of CPU, mean share of cached tokens, blocks in the index."""
    rng = random.Random(7)
    picker = Picker(SystemClock())
    picker.apply(plan_of(endpoints))
    for key in plan_keys(plan_of(endpoints)):
        load = EngineMetrics(
            waiting=rng.randrange(4),
            running=rng.randrange(30),
            kv_usage=rng.random(),
            block_tokens=16,
            capacity_tokens=400_000,
        )
        picker.signals(key, load, rtt_ms=1.0 if key.startswith("10.0") else 80.0)
        picker.models(key, frozenset({"llama"}))
    messages = messages_of(size_bytes, rounds, rng)
    times_us, cpu_us = np.zeros(rounds), np.zeros(rounds)
    cached = 0.0
    running: list[str] = []
    gc.collect()
    for number, data in enumerate(messages):
        began, cpu_began = time.perf_counter_ns(), time.thread_time_ns()
        exchange = Exchange(picker)
        for reply in exchange.receive(ext_proc.ProcessingRequest.FromString(data)):
            reply.SerializeToString()
        cpu_us[number] = (time.thread_time_ns() - cpu_began) / 1000
        times_us[number] = (time.perf_counter_ns() - began) / 1000
        decision = exchange.decision
        if decision is None or decision.cached_tokens is None or not decision.endpoints:
            raise SystemExit("no pick")
        cached += float(decision.cached_tokens.max()) / decision.prompt_tokens
        running.append(decision.pick_id)
        if len(running) > 20 * endpoints:  # about as many in flight as a busy fleet has
            ended = running.pop(0)
            picker.feedback(Feedback(pick_id=ended, ended=True, status=200, ttft_ms=100.0))
    return times_us, cpu_us, cached / rounds, picker.stats().prefix_blocks


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3_000, help="decisions for each row (default 3000)")
    rounds = parser.parse_args().rounds
    table = Table(title=f"Decision time, message bytes to reply bytes ({rounds} decisions each)")
    figures = ("CPU p50 µs", "p99", "max", "clock p50 µs", "p99", "max")
    for column in ("endpoints", "body", *figures, "best cached", "index blocks"):
        table.add_column(column, justify="right")
    for endpoints in (10, 100, 1_000):
        for size_bytes in (4_000, 48_000):
            times_us, cpu_us, cached, blocks = measure(endpoints, size_bytes, rounds)
            warm = slice(rounds // 10, None)
            quantiles = [f"{q:,.0f}" for us in (cpu_us, times_us) for q in np.percentile(us[warm], [50, 99, 100])]
            table.add_row(f"{endpoints:,}", f"{size_bytes // 1000} KB", *quantiles, f"{cached:.0%}", f"{blocks:,}")
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
