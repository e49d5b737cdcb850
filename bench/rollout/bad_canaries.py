"""Bad canaries against a real Envoy and simulated pools: whom do they hit, and when are they taken back?

    python bench/rollout/bad_canaries.py [--only TEXT] [--rate 150] [--users 10000]

All rows take about half an hour: evidence comes with the canary's requests, `--rate 300` on an idle machine halves it.

A RolloutPolicy brings each canary in at 1 % of the users (sticky by header), while `--rate` requests per second come,
each from a user drawn at random. Prints a table, and ends with 1 if a canary did not end as its policy says. Everything
is real but the model servers: the control plane, the picker, Envoy, its access logs, its retries.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import aiohttp
from stage import MODEL, USER, Stage, own_network, stage

from pointsman.core.buckets import bucket
from pointsman.core.model import TOTAL_WEIGHT

sys.path.append(str(Path(__file__).parents[1] / "xds"))
from processes import machine  # a neighbour's helper

Json = dict[str, Any]

SLOW_MS: Final = 800.0
"""What the slow canary adds; a good answer takes a tenth of it."""
FIRST_SHARE: Final = 100
"""Of the first step, in 1/10,000."""
PAUSE_S: Final = 10
"""Each step's pause. It is the data that a step takes longer for."""
STAYS_S: Final = 45.0
"""How long a rollout that shall hold is watched."""
LIMIT_S: Final = 900.0

CHECKS: Final[list[Json]] = [
    {"name": "errors", "metric": "errorRate", "max": "+1pp"},
    {"name": "retries", "metric": "retryRate", "max": "+1pp"},
    {"name": "ttft", "metric": "ttft.p95", "max": "+200ms"},
]


@dataclass
class Traffic:
    """What users met since the policy came. `hit` are those who got an error or a slow answer of the canary.

    An answer says whose it is. Whose an error was follows from the user: the hash that Envoy computes, and the largest
    `share` (1/10,000) that the canary had.
    """

    users: int
    salt: str
    share: int = FIRST_SHARE
    requests: int = 0
    to_canary: int = 0
    errors: int = 0
    slow: int = 0
    elsewhere: Counter[str] = field(default_factory=Counter)
    hit: set[int] = field(default_factory=set)


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """`expected`: the phase that the rollout shall end in, or stay in."""

    name: str
    expected: str
    faults: Json | None = None
    crash_loop: bool = False
    traffic: bool = True
    on_no_data: str = "Hold"
    checks: tuple[Json, ...] = tuple(CHECKS)


NOBODY: Final = "http://127.0.0.1:9"
"""The discard port: nobody answers."""
ABSENT: Final[Json] = {
    "name": "gpu-errors",
    "prometheus": {"url": NOBODY, "query": "max(gpu_errors)", "max": 0, "timeout": "1s"},
}
JUDGE: Final[Json] = {"name": "judge", "webhook": {"url": f"{NOBODY}/verdict", "timeout": "1s"}}

CASES: Final = (
    Case(name="100 % 503", expected="Aborted", faults={"error": {"status": 503, "percent": 100}}),
    Case(name="5 % 503, hidden by retries", expected="Aborted", faults={"error": {"status": 503, "percent": 5}}),
    Case(name="5 % 500, which are not retried", expected="Aborted", faults={"error": {"status": 500, "percent": 5}}),
    Case(name="+800 ms to the first token", expected="Aborted", faults={"latency": {"ms": SLOW_MS}}),
    Case(name="crash loop, 1 s up and 1 s down", expected="Aborted", crash_loop=True),
    Case(name="no traffic at all", expected="Holding", traffic=False),
    Case(name="metrics absent, onNoData: Hold", expected="Holding", checks=(ABSENT, JUDGE)),
    Case(name="metrics absent, onNoData: Abort", expected="Aborted", checks=(ABSENT, JUDGE), on_no_data="Abort"),
    Case(
        name="metrics absent, onNoData: Continue", expected="Completed", checks=(ABSENT, JUDGE), on_no_data="Continue"
    ),
    Case(name="none: a good canary", expected="Completed"),
)


def policy(case: Case) -> Json:
    """1 %, 5 %, 20 %, 50 %, 100 %."""
    steps = [{"weight": weight, "pause": f"{PAUSE_S}s"} for weight in ("1%", "5%", "20%", "50%", "100%")]
    return {
        "apiVersion": "pointsman.dev/v1alpha1",
        "kind": "RolloutPolicy",
        "metadata": {"name": "chat"},
        "spec": {
            "targetRefs": [
                {"group": "gateway.networking.k8s.io", "kind": "HTTPRoute", "name": "chat", "sectionName": "split"}
            ],
            "stable": {"name": "stable"},
            "canary": {"name": "canary"},
            "steps": steps,
            "analysis": {"interval": "1s", "onNoData": case.on_no_data, "checks": list(case.checks)},
        },
    }


async def ask(place: Stage, traffic: Traffic, user: int) -> None:
    """One request of a user."""
    body = {
        "model": MODEL,
        "max_tokens": 4,
        "messages": [{"role": "user", "content": f"user {user} asks for the {traffic.requests}. time " * 4}],
    }
    began_s, replica, failure = time.perf_counter(), "", ""
    try:
        async with place.session.post(
            f"{place.url}/v1/chat/completions", json=body, headers={USER: f"user-{user}"}
        ) as response:
            answer = await response.read()
            if response.status == 200:
                replica = str(json.loads(answer).get("system_fingerprint", ""))
            else:
                failure = f"{response.status} {response.headers.get('x-pointsman-reason', '')}".rstrip()
    except (aiohttp.ClientError, TimeoutError, ValueError) as error:
        failure = type(error).__name__
    traffic.requests += 1
    if not replica.startswith("canary"):
        if not failure:
            return
        if bucket(f"user-{user}", traffic.salt) >= traffic.share:
            traffic.elsewhere[failure] += 1
            return
    slow = bool(replica) and 1000 * (time.perf_counter() - began_s) >= SLOW_MS
    traffic.to_canary += 1
    traffic.errors += bool(failure)
    traffic.slow += slow
    if slow or failure:
        traffic.hit.add(user)


async def clients(place: Stage, traffic: Traffic, rate: float, dice: random.Random) -> None:
    """`rate` requests per second, whatever becomes of them, until cancelled."""
    loop = asyncio.get_running_loop()
    due_s = loop.time()
    async with asyncio.TaskGroup() as running:
        while True:
            running.create_task(ask(place, traffic, dice.randrange(traffic.users)))
            due_s += dice.expovariate(rate)
            await asyncio.sleep(max(0.0, due_s - loop.time()))


async def crash(place: Stage) -> None:
    """All replicas of the canary start, live for a second, and are gone for another."""
    while True:
        await place.set_faults("canary", {"exit": True})
        await asyncio.sleep(1)
        await place.set_faults("canary", None)
        await asyncio.sleep(1)


async def ended(place: Stage, traffic: Traffic, expected: str) -> Json:
    """The rollout at its end, or where it stays for a while."""
    since_s, began_s = 0.0, time.monotonic()
    while True:
        found = await place.rollout()
        phase = found.get("phase")
        traffic.share = max(traffic.share, round(found.get("weight", 0) * TOTAL_WEIGHT))
        now_s = time.monotonic()
        since_s = (since_s or now_s) if phase == expected else 0.0
        stays = since_s and now_s - since_s >= STAYS_S
        if phase in {"Completed", "Aborted"} or stays or (phase and now_s - began_s >= LIMIT_S):
            return found
        if now_s - began_s >= LIMIT_S:
            raise SystemExit("there is no rollout: was the policy refused?")
        await asyncio.sleep(0.05)


async def run(case: Case, network: str, rate: float, users: int, seed: int) -> tuple[bool, str]:
    """Whether a case ended as it should, and its line of the table."""
    dice = random.Random(seed)
    salt = f"bench-{seed}"
    annotations = {"pointsman.dev/sticky-header": USER, "pointsman.dev/sticky-salt": salt}
    async with stage(network, annotations=annotations) as place:
        await place.set_faults("canary", case.faults)
        traffic = Traffic(users=users, salt=salt)
        works: list[Callable[[], Awaitable[None]]] = []
        if case.traffic:
            works.append(lambda: clients(place, traffic, rate, dice))
        if case.crash_loop:
            works.append(lambda: crash(place))
        tasks = [asyncio.ensure_future(work()) for work in works]
        began_s = time.monotonic()
        place.write_policy(policy(case))
        try:
            found = await ended(place, traffic, case.expected)
            seconds = time.monotonic() - began_s
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
    good = found["phase"] == case.expected
    shown = f"{seconds:.0f} s" if found["phase"] in {"Completed", "Aborted"} else "-"
    cells = [
        case.name,
        found["phase"] if good else f"**{found['phase']}**",
        shown,
        f"{found['weight'] * 100:g} %" if found["phase"] not in {"Aborted"} else f"0 % (was in step {found['step']})",
        f"{traffic.requests}",
        f"{traffic.to_canary}",
        f"{traffic.errors} + {traffic.slow}",
        f"{len(traffic.hit)} ({100 * len(traffic.hit) / users:.2f} %)",
        f"{traffic.elsewhere.total()}",
        found["why"].replace("|", "/"),
    ]
    if traffic.elsewhere:
        print(f"errors elsewhere: {dict(traffic.elsewhere)}", file=sys.stderr)
    return good, f"| {' | '.join(cells)} |"


async def every(only: str, rate: float, users: int) -> bool:
    networks = own_network()
    columns = (
        "canary", "ends", "after", "weight", "requests", "of the canary", "errors + slow", "users hit",
        "errors of stable", "because",
    )  # fmt: skip
    print(machine())
    print(f"{rate:g} requests/s from {users} users, checked every second, pauses of {PAUSE_S} s")
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}", flush=True)
    began_s, wrong = time.monotonic(), []
    for seed, case in enumerate(CASES):
        if only in case.name:
            good, line = await run(case, networks(), rate, users, seed)
            if not good:
                wrong.append(case.name)
            print(line, flush=True)
    verdict = f"otherwise than their policies say: {'; '.join(wrong)}" if wrong else "all ended as their policies say"
    print(f"\n{verdict}; {time.monotonic() - began_s:.0f} s in all, load average at the end {os.getloadavg()[0]:.1f}")
    return not wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="cases with this text in their name")
    parser.add_argument("--rate", type=float, default=150.0, help="requests per second (default 150)")
    parser.add_argument("--users", type=int, default=10_000, help="users there are (default 10,000)")
    asked = parser.parse_args()
    raise SystemExit(0 if asyncio.run(every(asked.only, asked.rate, asked.users)) else 1)


if __name__ == "__main__":
    main()
