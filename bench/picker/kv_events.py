"""Do KV events of a real vLLM tell our index what its prefix cache holds? `python bench/picker/kv_events.py --help`

Prompts of token ids go straight to the server, as from another gateway; this picker only hears the events. Then each
prompt, and longer and shorter ones, are looked up here and asked there: the server says in `cached_tokens` (start it
with `--enable-prompt-tokens-details`) what it really had.
"""

from __future__ import annotations

import argparse
import asyncio
import random
from typing import Any

import aiohttp
import numpy as np
from prometheus_client import CollectorRegistry

from pointsman.core.clock import SystemClock
from pointsman.core.model import Endpoint, Plan, Pool, Site, SiteGroup
from pointsman.core.snapshot import PlanHolder
from pointsman.extproc import Picker, PickRequest, Scraper
from pointsman.extproc.kv_events.reader import KvEventReader
from pointsman.extproc.prefix import BLOCK_TOKENS, block_hashes, chain_seed
from pointsman.extproc.request import Body
from pointsman.extproc.token_ids import render_ids

SHARED_TOKENS = 640
WAIT_S = 60.0
SETTLE_S = 2.0


def plan_of(address: str, port: int, events: int, replay: int) -> Plan:
    endpoint = Endpoint(
        name="vllm", address=address, port=port, site="here", kv_events_port=events, kv_replay_port=replay
    )
    group = SiteGroup(site="here", priority=0, weight=1, endpoints=(endpoint,))
    return Plan(sites=(Site(name="here"),), pools=(Pool(name="default/vllm", groups=(group,)),))


def prompts_of(count: int, seed: int) -> list[list[int]]:
    """Prompts that share a beginning, 700 to 2,500 tokens."""
    chance = random.Random(seed)
    shared = [chance.randrange(20, 250) for _ in range(SHARED_TOKENS)]
    return [shared + [chance.randrange(20, 250) for _ in range(chance.randrange(60, 1_900))] for _ in range(count)]


async def ask(session: aiohttp.ClientSession, url: str, model: str, ids: list[int]) -> int:
    """Let the server complete one token; returns the prompt tokens that it had cached."""
    body = {"model": model, "prompt": ids, "max_tokens": 1}
    async with session.post(f"{url}/v1/completions", json=body) as response:
        response.raise_for_status()
        answer: dict[str, Any] = await response.json()
    return int((answer["usage"]["prompt_tokens_details"] or {}).get("cached_tokens") or 0)


def cached_here(picker: Picker, model: str, ids: list[int]) -> int:
    """Tokens that a pick would count as cached, in whole blocks of the engine, without that of the last token."""
    row = picker.table.row(picker.table.keys()[0])
    assert row is not None
    (found,) = picker.index.match(block_hashes(render_ids(ids), chain_seed(model, "")), np.array([row]))
    block = max(BLOCK_TOKENS, int(np.nan_to_num(picker.table.block_tokens[row])))
    return min(int(found) * BLOCK_TOKENS, len(ids) - 1) // block * block


async def wait_for(condition: Any) -> None:
    async with asyncio.timeout(WAIT_S):
        while not condition():  # noqa: ASYNC110 - counters have no event
            await asyncio.sleep(0.05)


async def measure(options: argparse.Namespace) -> None:
    url = f"http://{options.address}:{options.port}"
    plan, holder, registry = (
        plan_of(options.address, options.port, options.events, options.replay),
        PlanHolder(),
        CollectorRegistry(),
    )
    picker = Picker(SystemClock())
    picker.apply(plan)
    holder.publish(plan)
    beside = [
        asyncio.create_task(Scraper(picker, holder).run()),
        asyncio.create_task(KvEventReader(picker, holder, registry).run()),
    ]
    key = plan.pools[0].endpoints()[0].key

    def events(kind: str) -> float:
        return registry.get_sample_value("pointsman_kv_events_total", {"kind": kind}) or 0.0

    async with aiohttp.ClientSession() as session:
        await wait_for(lambda: picker.base_models(key))
        (model,) = picker.base_models(key)
        row = picker.table.row(key)
        assert row is not None
        # A prompt of ids, too short to leave a block: from now on the hashes of events are kept.
        picker.pick(
            PickRequest(pool="default/vllm", body=Body(model=model, prompt=render_ids([1] * 8), token_ids=True))
        )
        prompts = prompts_of(options.prompts, options.seed)
        for ids in prompts:
            await ask(session, url, model, ids)
        await wait_for(lambda: events("stored"))
        await asyncio.sleep(SETTLE_S)
        block = int(np.nan_to_num(picker.table.block_tokens[row], nan=1.0))
        print(f"server {url}, model {model}, blocks of {block} tokens; seed {options.seed}")
        print(f"{options.prompts} prompts sent past the picker: {events('stored'):.0f} stored, ", end="")
        print(f"{events('removed'):.0f} removed; {picker.index.blocks(row)} blocks of 64 tokens in the index")
        variants = [v for ids in prompts for v in (ids, ids[: len(ids) // 2], [*ids[:900], 7, 7, 7, *ids[900:]])]
        rows = [(cached_here(picker, model, ids), await ask(session, url, model, ids), len(ids)) for ids in variants]
        same = sum(here == there for here, there, _ in rows)
        worst = max(abs(here - there) for here, there, _ in rows)
        mean = sum(there for _, there, _ in rows) / len(rows)
        print(f"{len(rows)} look-ups (same, cut, changed in the middle): {same} equal to the server's cached_tokens, ")
        print(
            f"largest difference {worst} tokens; the server had {mean:.0f} of {sum(r[2] for r in rows) / len(rows):.0f}"
        )
    for task in beside:
        task.cancel()
    await asyncio.gather(*beside, return_exceptions=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--address", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True, help="OpenAI API and /metrics of the server")
    parser.add_argument("--events", type=int, required=True, help="port of its KV event publisher")
    parser.add_argument("--replay", type=int, default=0, help="port of its replay socket")
    parser.add_argument("--prompts", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    asyncio.run(measure(parser.parse_args()))
