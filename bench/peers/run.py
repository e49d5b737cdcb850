"""Peers, run and not re-implemented: routers one after the other in front of the same simulated replicas.

    python bench/peers/run.py --trace TRACE --limit 400 --router-bin FOLDER/bin

Each contender gets fresh replicas with empty caches, the same requests at the same times, and a part with faults.
Rounds go through the contenders in turn, so that what else the machine does hits all of them. Latencies are those of
simulated engines; CPU time, failures and hit counts are real. Only loopback is contacted.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import json
import sys
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import aiohttp
import msgspec
import numpy as np
from peers.contenders import Contender, contenders
from peers.load import Outcome, replay, steady
from peers.proc import commit, cpu_s, machine
from rich.console import Console
from rich.table import Table

from pointsman.app.processes import start_child
from pointsman.replay.trace import Selection, TraceRequest, load_trace
from pointsman.replay.upstreams import scrape, upstream_of_url

MODEL = "sim-llama"
FAULTS = {
    "killed": {"exit": True},
    "503": {"error": {"status": 503, "percent": 100}},
    "stalled": {"stall": {"where": "before"}},
}
CALM_S, FAULT_S = 3.0, 8.0
"""A load runs this long before a fault, then as long as the fault lasts, then as long as before."""

IDLE_S = 2.0
"""How long a router is watched before the first request."""

FAULT_TIMEOUT_S = 3.0
"""A request that has taken this long in the part with faults has failed: its user is gone. Healthy ones take 0.5 s."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pool:
    """Running simulated replicas; `admin` switches their faults."""

    admin: str
    names: tuple[str, ...]
    addresses: tuple[tuple[str, int], ...]


@dataclass(slots=True, kw_only=True)
class Score:
    """What a contender did, over all rounds."""

    outcomes: list[Outcome] = field(default_factory=list)
    hit_tokens: float = 0.0
    query_tokens: float = 0.0
    cpu_s: dict[str, float] = field(default_factory=dict)
    idle_cpu: float = 0.0  # cores used without any request, scraping and health checks
    p50_by_round: list[float] = field(default_factory=list)
    faulty: dict[str, list[Outcome]] = field(default_factory=lambda: {name: [] for name in ("calm", *FAULTS)})
    shares: list[list[float]] = field(default_factory=list)


@asynccontextmanager
async def pool(folder: Path, count: int) -> AsyncIterator[Pool]:
    """`count` fresh replicas of the simulator's default engine, on free ports."""
    folder.mkdir(parents=True)
    spec = folder / "sim.json"
    spec.write_text(json.dumps({"replicas": [{"name": f"replica-{i}", "model": MODEL} for i in range(count)]}))
    command = [sys.executable, "-m", "pointsman.sim.main", "--spec", spec]
    with (folder / "sim.log").open("wb") as log:
        child = await start_child(command, name="sim", pipe_stdout=True, stderr=log)
    try:
        ready = msgspec.json.decode(await asyncio.wait_for(child.stdout.readline(), 30))
        places = [replica["address"].rpartition(":") for replica in ready["replicas"]]
        yield Pool(
            admin=f"http://{ready['admin']}",
            names=tuple(replica["name"] for replica in ready["replicas"]),
            addresses=tuple((address, int(port)) for address, _, port in places),
        )
    finally:
        await child.stop()


async def latency_part(
    contender: Contender, score: Score, requests: Sequence[TraceRequest], count: int, folder: Path
) -> None:
    """The trace once, with counters and CPU time before and after."""
    async with pool(folder / "sim", count) as replicas, aiohttp.ClientSession() as session:
        servers = [upstream_of_url(f"http://{address}:{port}") for address, port in replicas.addresses]
        async with contender.start(folder / "router", replicas.addresses, MODEL) as router:
            idle_s = cpu_s(router.pids)
            await asyncio.sleep(IDLE_S)
            score.idle_cpu = (cpu_s(router.pids) - idle_s) / IDLE_S
            before, _ = await scrape(session, servers)
            used_s = {name: cpu_s([pid]) for pid, name in router.pids.items()}
            outcomes = await replay(router.url, MODEL, requests, timeout_s=60)
            for pid, name in router.pids.items():
                score.cpu_s[name] = score.cpu_s.get(name, 0.0) + cpu_s([pid]) - used_s[name]
            after, _ = await scrape(session, servers)
    gained = [after[server.key].since(before[server.key]) for server in servers]
    score.outcomes += outcomes
    score.hit_tokens += sum(g.hit_tokens for g in gained)
    score.query_tokens += sum(g.query_tokens for g in gained)
    score.shares.append([g.query_tokens / max(1.0, sum(g.query_tokens for g in gained)) for g in gained])
    score.p50_by_round.append(float(np.median([o.ttft_ms for o in outcomes if o.ttft_ms is not None] or [np.nan])))


async def fault_part(contender: Contender, score: Score, count: int, rate: float, folder: Path) -> None:
    """For each fault fresh replicas, a fresh router and a steady load, while one replica has the fault."""
    for name, fault in FAULTS.items():
        async with (
            pool(folder / name / "sim", count) as replicas,
            aiohttp.ClientSession() as session,
            contender.start(folder / name / "router", replicas.addresses, MODEL) as router,
        ):
            url = f"{replicas.admin}/replicas/{replicas.names[-1]}/faults"
            breaking = asyncio.create_task(_break(session, url, fault))
            outcomes = await steady(
                router.url, MODEL, rate=rate, duration_s=2 * CALM_S + FAULT_S, timeout_s=FAULT_TIMEOUT_S
            )
            await breaking
        for outcome in outcomes:
            score.faulty[name if meets_fault(outcome.due_s) else "calm"].append(outcome)


async def _break(session: aiohttp.ClientSession, url: str, fault: object) -> None:
    """Switch the fault on and off again, in time."""
    await asyncio.sleep(CALM_S)
    async with session.put(url, json=fault) as response:
        response.raise_for_status()
    await asyncio.sleep(FAULT_S)
    async with session.delete(url) as response:
        response.raise_for_status()


def meets_fault(due_s: float) -> bool:
    """Whether a request that was due then can meet the fault. Those of the last second before it can: their answers are
    under way."""
    return CALM_S - 1.0 <= due_s < CALM_S + FAULT_S


def quantiles(values: Sequence[float]) -> str:
    if not values:
        return "-"
    return " / ".join(f"{value:,.0f}" for value in np.quantile(values, (0.5, 0.95, 0.99)))


def show(scores: dict[str, Score], console: Console, *, markdown: bool) -> None:
    head = [
        "router",
        "TTFT p50 / p95 / p99, ms",
        "E2E p50 / p95 / p99, ms",
        "prefix hits",
        "CPU per request",
        "idle CPU",
        "failed",
    ]
    rows = []
    for name, score in scores.items():
        good = [o for o in score.outcomes if not o.failure]
        each = {process: seconds * 1000 / len(score.outcomes) for process, seconds in score.cpu_s.items()}
        rows.append(
            [
                name,
                quantiles([o.ttft_ms for o in good if o.ttft_ms is not None]),
                quantiles([o.e2e_ms for o in good]),
                f"{score.hit_tokens / score.query_tokens:.1%}" if score.query_tokens else "-",
                f"{sum(each.values()):.2f} ms" + (f" ({_parts(each)})" if len(each) > 1 else ""),
                f"{score.idle_cpu:.1%}",
                f"{len(score.outcomes) - len(good)} of {len(score.outcomes)}",
            ]
        )
    _print(head, rows, console, markdown=markdown)
    if not any(any(score.faulty.values()) for score in scores.values()):
        return
    head = [
        "router",
        *(f"one replica {name}" if name != "calm" else "before and after" for name in ("calm", *FAULTS)),
    ]
    rows = [[name, *(_failures(outcomes) for outcomes in score.faulty.values())] for name, score in scores.items()]
    console.print(f"Failed requests under faults (time limit {FAULT_TIMEOUT_S:g} s):")
    _print(head, rows, console, markdown=markdown)


def _parts(each: dict[str, float]) -> str:
    return " + ".join(f"{process} {ms:.2f}" for process, ms in sorted(each.items()))


def _failures(outcomes: Sequence[Outcome]) -> str:
    bad = [o for o in outcomes if o.failure]
    if not bad:
        return f"0 of {len(outcomes)}"
    kinds = Counter(o.failure + (" after headers" if o.began and o.failure != "cut" else "") for o in bad)
    return f"{len(bad)} of {len(outcomes)}: " + ", ".join(f"{n} {kind}" for kind, n in kinds.most_common())


def _print(head: list[str], rows: list[list[str]], console: Console, *, markdown: bool) -> None:
    if markdown:
        lines = ["| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *rows]]
        console.print("\n".join(lines), soft_wrap=True, markup=False)
        return
    table = Table(*head)
    for row in rows:
        table.add_row(*row)
    console.print(table)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--trace", type=Path, required=True, help="Mooncake format; `pointsman trace generate` makes one"
    )
    parser.add_argument("--limit", type=int, default=300, help="requests of the trace (default: 300)")
    parser.add_argument("--replicas", type=int, default=3, help="simulated replicas (default: 3)")
    parser.add_argument("--rounds", type=int, default=1, help="times that each contender runs (default: 1)")
    parser.add_argument("--router-bin", type=Path, help="folder with vllm-router and sglang-router; else the PATH")
    parser.add_argument("--only", default="", help="only contenders whose name holds one of these, separated by commas")
    parser.add_argument("--fault-rate", type=float, default=8.0, help="requests a second under faults; 0: no faults")
    parser.add_argument("--markdown", action="store_true", help="tables as Markdown")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all outcomes here, too")
    return parser.parse_args()


async def measure(options: argparse.Namespace, console: Console) -> dict[str, Score]:
    requests = load_trace(options.trace, Selection(limit=options.limit)).requests
    ready: list[Contender] = []
    for contender in contenders(options.router_bin):
        if not any(part in contender.name for part in options.only.split(",")):
            continue
        if contender.missing:
            console.print(f"skipped: {contender.name}: {contender.missing}")
        else:
            ready.append(contender)
    console.print("; ".join(sorted({contender.version for contender in ready})))
    faults_s = len(FAULTS) * (FAULT_S + 2 * CALM_S + 5) if options.fault_rate else 0
    span_s = requests[-1].arrival_ms / 1000 + faults_s
    minutes = len(ready) * options.rounds * (span_s + 15) / 60
    console.print(
        f"{len(requests)} requests of {options.trace.name}, {options.replicas} replicas; {minutes:.0f} minutes"
    )
    scores = {contender.name: Score() for contender in ready}
    with tempfile.TemporaryDirectory(prefix="peers-") as name:
        for n in range(options.rounds):
            for contender in ready[n:] + ready[:n]:
                folder = Path(name) / f"{n}-{contender.name.replace(' ', '-')}"
                score = scores[contender.name]
                await latency_part(contender, score, requests, options.replicas, folder / "latency")
                if options.fault_rate:
                    await fault_part(contender, score, options.replicas, options.fault_rate, folder / "faults")
                console.print(f"round {n + 1}, {contender.name}: TTFT p50 {score.p50_by_round[-1]:,.0f} ms")
    return scores


def main() -> None:
    options = arguments()
    console = Console(width=160 if not sys.stdout.isatty() else None, highlight=False)
    console.print(f"commit {commit()}; {machine()}")
    scores = asyncio.run(measure(options, console))
    show(scores, console, markdown=options.markdown)
    if options.json:
        options.json.write_bytes(
            msgspec.json.encode({name: dataclasses.asdict(score) for name, score in scores.items()})
        )


if __name__ == "__main__":
    main()
