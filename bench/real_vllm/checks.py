"""The three checks: prefix hits by policy, answers unchanged on their way, a server killed under load."""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
from peers.pointsman_up import Up, pointsman_up
from real_vllm.client import Answer, Lost, ask, body_of, converse
from real_vllm.workload import Shape, conversations

from pointsman.replay.upstreams import Counters, Upstream, scrape

SIGNAL_PERIOD_S = 0.25
RESTART_TIMEOUT_S = 300.0
"""A vLLM server on a busy machine takes a minute or two to start."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Servers:
    """The model servers under test. All must serve `model`."""

    upstreams: tuple[Upstream, ...]
    model: str

    @property
    def addresses(self) -> list[tuple[str, int]]:
        pairs = (upstream.key.rpartition(":") for upstream in self.upstreams)
        return [(host, int(port)) for host, _, port in pairs]


@dataclass(slots=True, kw_only=True)
class Seen:
    """What the status API told while a run went on, over all endpoints: largest values, `None` before the first."""

    polls: int = 0
    running: float = 0.0
    waiting: float = 0.0
    kv_usage: float = 0.0
    in_flight: float = 0.0
    age_s: float = 0.0
    missing: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One run of the multi-turn workload. Tokens are prompt tokens by the servers' counters."""

    policy: str
    answers: list[Answer]
    query_tokens: tuple[float, ...]  # by server
    hit_tokens: tuple[float, ...]
    seen: Seen

    @property
    def share(self) -> float:
        return sum(self.hit_tokens) / sum(self.query_tokens)

    @property
    def ceiling(self) -> float:
        """The share if every turn had found all of the turn before: what a server can have cached, but for whole
        blocks, its own answer and beginnings that conversations share."""
        return sum(answer.repeated_tokens for answer in self.answers) / sum(self.query_tokens)


@asynccontextmanager
async def watched_status(up: Up) -> AsyncIterator[Seen]:
    """Poll the status API while the block runs."""
    seen = Seen()

    async def poll() -> None:
        async with aiohttp.ClientSession() as session:
            while True:
                for endpoint in await endpoints(session, up):
                    if endpoint.get("running") is None:
                        seen.missing += 1
                        continue
                    for name in ("running", "waiting", "kv_usage", "in_flight"):
                        setattr(seen, name, max(getattr(seen, name), endpoint[name]))
                    seen.age_s = max(seen.age_s, endpoint["signal_age_s"])
                seen.polls += 1
                await asyncio.sleep(SIGNAL_PERIOD_S)

    task = asyncio.create_task(poll())
    try:
        yield seen
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def endpoints(session: aiohttp.ClientSession, up: Up) -> list[dict[str, Any]]:
    """The endpoints as the status API shows them."""
    async with session.get(f"{up.admin}/api/v1/status") as response:
        status = json.loads(await response.read())
    return [e for pool in status["pools"] for site in pool["sites"] for e in site["endpoints"]]


async def all_scraped(up: Up) -> None:
    """Wait until the picker has read every server's metrics once; `SystemExit` after 20 s."""
    try:
        async with asyncio.timeout(20), aiohttp.ClientSession() as session:
            while any(e.get("running") is None for e in await endpoints(session, up)):  # noqa: ASYNC110
                await asyncio.sleep(0.1)
    except TimeoutError:
        raise SystemExit("the picker could not read the metrics of every server in 20 s") from None


async def counters(servers: Servers) -> list[Counters]:
    """The prefix cache counters of each server; `SystemExit` when one has none."""
    async with aiohttp.ClientSession() as session:
        found, mute = await scrape(session, servers.upstreams)
    if mute:
        raise SystemExit("\n".join(mute.values()))
    return [found[upstream.key] for upstream in servers.upstreams]


async def hits(servers: Servers, shape: Shape, *, policy: str, salt: str, folder: Path) -> Run:
    """One run: a fresh Pointsman with `policy`, texts that no cache knows, counters before and after."""
    async with pointsman_up(folder, servers.addresses, model=servers.model, policy=policy) as up:
        await all_scraped(up)
        before = await counters(servers)
        async with watched_status(up) as seen:
            answers = await converse(up.gateway, servers.model, shape, conversations(shape, salt))
        after = await counters(servers)
    gained = [now.since(then) for then, now in zip(before, after, strict=True)]
    return Run(
        policy=policy,
        answers=answers,
        query_tokens=tuple(g.query_tokens for g in gained),
        hit_tokens=tuple(g.hit_tokens for g in gained),
        seen=seen,
    )


def ttft_ms(answers: Sequence[Answer]) -> tuple[float, float]:
    """Median and 95th percentile."""
    values = [answer.ttft_ms for answer in answers if answer.ttft_ms is not None]
    p50, p95 = np.quantile(values, (0.5, 0.95)).tolist()
    return p50, p95


async def unchanged(servers: Servers, *, salt: str, folder: Path) -> list[str]:
    """Ask the same directly and through the gateway; one line for each form of answer, starting with `same` or `NOT
    the same` as what any of the servers says. Ids and times of creation are the servers' own and left out."""
    lines = []
    body = [{"role": "user", "content": f"{salt}: where does this train go? " * 12}]
    async with (
        pointsman_up(folder, servers.addresses, model=servers.model, policy="joint") as up,
        aiohttp.ClientSession() as session,
    ):
        for stream in (True, False):
            request = body_of(servers.model, body, tokens=32, stream=stream)
            for upstream in servers.upstreams:  # so that the prompt is cached everywhere
                await ask(session, upstream.url, request)
            all_direct = [await ask(session, upstream.url, request) for upstream in servers.upstreams]
            through = await ask(session, up.gateway, request)
            direct = all_direct[0]
            same = through.lost is None and _merged(through.events) in [_merged(d.events) for d in all_direct]
            lines.append(
                f"{'same' if same else 'NOT the same'}: {'stream' if stream else 'one answer'}, {len(through.events)} "
                f"events in {through.reads or 1} reads, usage {through.prompt_tokens} prompt, "
                f"{through.cached_tokens} cached, {through.output_tokens} output tokens; first token after "
                f"{through.ttft_ms or 0:.0f} of {through.e2e_ms:.0f} ms (direct: {direct.ttft_ms or 0:.0f} of "
                f"{direct.e2e_ms:.0f})"
            )
    return lines


def _merged(events: list[dict[str, Any]]) -> dict[str, Any]:
    """What the events say together: how many tokens vLLM puts into one event depends on how busy the reader is."""
    merged: dict[str, Any] = {"fields": sorted({name for event in events for name in event}), "text": ""}
    for event in events:
        for choice in event.get("choices", []):
            part = dict(choice.get("delta") or choice.get("message") or {})
            merged["text"] += part.pop("content", None) or ""
            merged |= {name: value for name, value in part.items() if value}
            merged["finish"] = choice.get("finish_reason") or merged.get("finish")
        merged["usage"] = event.get("usage") or merged.get("usage")
        merged["object"], merged["model"] = event["object"], event["model"]
    return merged


@dataclass(slots=True, kw_only=True)
class Drill:
    """A server killed under load. Times in seconds after the kill; None: never seen."""

    answers: list[Answer] = field(default_factory=list)
    kill_at_s: float = 0.0
    unhealthy_s: float | None = None
    restart_noticed: str = ""
    served_after_restart: int = 0

    def lost(self, *, stream: bool) -> Counter[str]:
        """Failed requests by how far they came."""
        return Counter(a.lost.value for a in self.answers if a.lost is not None and a.stream is stream)

    @property
    def before_first_byte(self) -> int:
        return sum(a.lost is Lost.BEFORE_FIRST_BYTE for a in self.answers)

    @property
    def running_at_kill(self) -> int:
        """Requests that were under way, on all servers, when the server was killed."""
        return sum(a.began_s < self.kill_at_s < a.began_s + a.e2e_ms / 1000 for a in self.answers)


async def kill_drill(
    servers: Servers, *, kill: str, restart: str, users: int, before_s: float, after_s: float, salt: str, folder: Path
) -> Drill:
    """Keep `users` requests running, half of them streams; run the command `kill`; go on; then `restart`, if given, and
    wait until the picker says that the engine is another one."""
    drill = Drill()
    numbers = itertools.count()
    stopping = asyncio.Event()
    async with (
        pointsman_up(folder, servers.addresses, model=servers.model, policy="joint") as up,
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session,
    ):
        await all_scraped(up)

        async def user() -> None:
            while not stopping.is_set():
                number = next(numbers)
                messages = [{"role": "user", "content": f"{salt} {number} " + "which line is free now? " * 30}]
                request = body_of(servers.model, messages, tokens=48, stream=number % 2 == 0)
                answer = await ask(session, up.gateway, request)
                answer.events.clear()
                drill.answers.append(answer)

        async with asyncio.TaskGroup() as group:
            for _ in range(users):
                group.create_task(user())
            await asyncio.sleep(before_s)
            drill.kill_at_s = time.perf_counter()
            await _shell(kill)
            await asyncio.sleep(after_s)
            stopping.set()
        if restart:
            await _restarted(servers, up, restart, drill, session)
    return drill


async def _restarted(servers: Servers, up: Up, restart: str, drill: Drill, session: aiohttp.ClientSession) -> None:
    began_s = time.perf_counter()
    await _shell(restart)
    async with asyncio.timeout(RESTART_TIMEOUT_S):
        while not (endpoint := _noticed(up)):  # noqa: ASYNC110 - another process is awaited
            await asyncio.sleep(0.5)
    drill.restart_noticed = f"{endpoint}, {time.perf_counter() - began_s:.0f} s after its start"
    upstream = next(upstream for upstream in servers.upstreams if upstream.key == endpoint)
    await asyncio.sleep(5)  # Envoy's health checks take it back
    before, _ = await scrape(session, [upstream])
    bodies = [
        body_of(servers.model, [{"role": "user", "content": f"again {i} {began_s} " * 20}], tokens=8, stream=True)
        for i in range(24)
    ]
    drill.answers += await asyncio.gather(*(ask(session, up.gateway, body) for body in bodies))
    after, _ = await scrape(session, [upstream])
    drill.served_after_restart = int(after[endpoint].since(before[endpoint]).query_tokens)


def _noticed(up: Up) -> str:
    """The endpoint that the picker's log calls restarted, "" as long as there is none."""
    lines = [json.loads(line) for line in up.log.read_text().splitlines() if "engine restarted" in line]
    return str(lines[0]["endpoint"]) if lines else ""


async def _shell(command: str) -> None:
    """Run a command of the user's; it may leave processes behind that go on."""
    process = await asyncio.create_subprocess_shell(command, start_new_session=True)
    if status := await process.wait():
        raise SystemExit(f"{command!r} ended with status {status}")
