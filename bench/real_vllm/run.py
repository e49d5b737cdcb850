"""Real vLLM servers behind the gateway: prefix hits by policy, answers unchanged, a server killed under load.

    python bench/real_vllm/run.py --url http://127.0.0.1:9001 --url http://127.0.0.1:9002

The servers must run already; README.md tells how to start small ones without a GPU. Runs of the two policies alternate,
each with a fresh Pointsman and texts that no cache has seen. Nothing but loopback or your own servers is contacted.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import json
import secrets
import sys
import tempfile
import urllib.request
from collections import defaultdict
from pathlib import Path
from statistics import mean
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from peers.proc import commit, machine
from real_vllm.checks import Run, Servers, hits, kill_drill, ttft_ms, unchanged
from real_vllm.workload import Shape
from rich.console import Console
from rich.table import Table

from pointsman.replay.upstreams import upstream_of_url

POLICIES = ("round-robin", "joint")


def arguments() -> argparse.Namespace:
    shape = Shape()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", action="append", required=True, help="a vLLM server, repeat it")
    parser.add_argument("--runs", type=int, default=2, help="runs of each policy; 0: none (default: 2)")
    for name, text in (
        ("conversations", "conversations of a run"),
        ("users", "conversations at the same time"),
        ("turns", "turns of a conversation"),
        ("first-chars", "mean length of the first message"),
        ("user-chars", "mean length of later messages"),
        ("answer-tokens", "length of the answers"),
        ("seed", "lengths and pauses follow from it"),
    ):
        default = getattr(shape, name.replace("-", "_"))
        parser.add_argument(f"--{name}", type=int, default=default, help=f"{text} (default: {default})")
    parser.add_argument("--wire", action="store_true", help="compare answers with direct ones")
    parser.add_argument("--kill", default="", metavar="COMMAND", help="kills one server: the drill under load")
    parser.add_argument("--restart", default="", metavar="COMMAND", help="starts that server again, in the background")
    parser.add_argument("--kill-users", type=int, default=8, help="requests at the same time in the drill (default: 8)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here, too")
    return parser.parse_args()


def model_of(url: str) -> tuple[str, str]:
    """The first model that a server lists, and the server's version."""
    with urllib.request.urlopen(f"{url}/v1/models", timeout=10) as response:
        model = str(json.load(response)["data"][0]["id"])
    with urllib.request.urlopen(f"{url}/version", timeout=10) as response:
        return model, str(json.load(response)["version"])


async def measure(options: argparse.Namespace, shape: Shape, servers: Servers, console: Console) -> dict[str, Any]:
    """Everything that was asked for, printed as it is known."""
    salt = secrets.token_hex(4)
    told: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="real-vllm-") as name:
        folder = Path(name)
        runs = []
        for n in range(options.runs):
            for policy in POLICIES if n % 2 == 0 else reversed(POLICIES):
                where = folder / f"{policy}-{n}"
                runs.append(await hits(servers, shape, policy=policy, salt=f"{salt}/{policy}/{n}", folder=where))
        if runs:
            told["hits"] = show_hits(runs, console)
        if options.wire:
            told["wire"] = await unchanged(servers, salt=salt, folder=folder / "wire")
            console.print(*told["wire"], sep="\n")
        if options.kill:
            told["kill"] = await drill(options, servers, salt, folder / "kill", console)
    return told


def show_hits(runs: list[Run], console: Console) -> dict[str, Any]:
    table = Table(
        "policy", "requests", "failed", "prompt tokens", "hit tokens", "share", "ceiling", "TTFT p50 / p95", "by server"
    )
    shares = defaultdict(list)
    for run in runs:
        shares[run.policy].append(run.share)
        p50, p95 = ttft_ms(run.answers)
        table.add_row(
            run.policy,
            str(len(run.answers)),
            str(sum(a.lost is not None for a in run.answers)),
            f"{sum(run.query_tokens):,.0f}",
            f"{sum(run.hit_tokens):,.0f}",
            f"{run.share:.1%}",
            f"{run.ceiling:.1%}",
            f"{p50:.0f} / {p95:.0f} ms",
            " + ".join(f"{tokens / sum(run.query_tokens):.0%}" for tokens in run.query_tokens),
        )
    console.print(table)
    plain, ours = (mean(shares[policy]) for policy in POLICIES)
    console.print(f"share of prompt tokens hit: joint {ours:.1%}, round-robin {plain:.1%}: ratio {ours / plain:.2f}")
    told = {
        "vllm's cached_tokens agree": all(
            sum(a.cached_tokens or 0 for a in run.answers) == sum(run.hit_tokens) for run in runs
        ),
        "prompt tokens agree": all(sum(a.prompt_tokens for a in run.answers) == sum(run.query_tokens) for run in runs),
    }
    console.print("; ".join(f"{what}: {'yes' if yes else 'NO'}" for what, yes in told.items()))
    for run in runs:
        seen = {name: round(value, 3) for name, value in dataclasses.asdict(run.seen).items()}
        console.print(f"status API, {run.policy}: largest of {seen.pop('polls')} polls: {seen}")
    return {"shares": shares, "ratio": ours / plain, **told}


async def drill(
    options: argparse.Namespace, servers: Servers, salt: str, folder: Path, console: Console
) -> dict[str, Any]:
    result = await kill_drill(
        servers,
        kill=options.kill,
        restart=options.restart,
        users=options.kill_users,
        before_s=4,
        after_s=8,
        salt=salt,
        folder=folder,
    )
    told: dict[str, Any] = {
        "requests": len(result.answers),
        "running at the kill": result.running_at_kill,
        "failed before the first byte": result.before_first_byte,
        "streams that failed": dict(result.lost(stream=True)),
        "others that failed": dict(result.lost(stream=False)),
        "restart noticed": result.restart_noticed or "not asked for",
        "prompt tokens served by it after the restart": result.served_after_restart,
    }
    for what, value in told.items():
        console.print(f"kill: {what}: {value}")
    for answer in [a for a in result.answers if a.lost is not None][:5]:
        console.print(f"  status {answer.status}, {answer.lost and answer.lost.value}: {answer.error}")
    return told


def main() -> None:
    options = arguments()
    console = Console(width=120 if not sys.stdout.isatty() else None, highlight=False)
    model, version = model_of(options.url[0])
    servers = Servers(upstreams=tuple(upstream_of_url(url) for url in options.url), model=model)
    chosen = {f.name: getattr(options, f.name) for f in dataclasses.fields(Shape) if hasattr(options, f.name)}
    shape = Shape(**chosen)
    console.print(f"vLLM {version}, model {model}, {len(options.url)} servers; commit {commit()}; {machine()}")
    console.print(shape)
    told = asyncio.run(measure(options, shape, servers, console))
    if options.json:
        options.json.write_text(json.dumps(told, indent=1) + "\n")


if __name__ == "__main__":
    main()
