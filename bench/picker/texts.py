"""The pool and the bodies that the benchmarks of the picker share."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from typing import Final

from pointsman.core.model import Endpoint, Plan, Pool, Site, SiteGroup

BODIES: Final = {"4 KB": 4_096, "32 KB": 32_768, "220 KB": 220_000, "1 MB": 1_000_000}
CONVERSATIONS: Final = 64


def plan_of(keys: Sequence[str], pool: str) -> Plan:
    """One pool at one site."""
    endpoints = tuple(
        Endpoint(name=key, address=key.rsplit(":", 1)[0], port=int(key.rsplit(":", 1)[1]), site="here") for key in keys
    )
    group = SiteGroup(site="here", priority=0, weight=1, endpoints=endpoints)
    return Plan(sites=(Site(name="here"),), pools=(Pool(name=pool, groups=(group,)),))


def bodies_of(size_bytes: int) -> list[bytes]:
    """Turns of `CONVERSATIONS` chats, half to wholly as long as `size_bytes`, with a system prompt that all share."""
    words = ["rail", "signal", "point", "train", "switch", "track", "yard", "lamp", "lever", "gauge"]
    made = []
    for number in range(CONVERSATIONS):
        rng = random.Random(number)
        text = " ".join(rng.choices(words, k=size_bytes // 5))
        messages = [{"role": "system", "content": "You set points. " * 16}]
        turn_bytes = max(1_000, size_bytes // 10)
        content_bytes = size_bytes - 450
        for turn, start in enumerate(range(0, content_bytes, turn_bytes)):
            part = text[start : min(content_bytes, start + turn_bytes)]
            messages.append({"role": ("user", "assistant")[turn % 2], "content": part})
        made.append(json.dumps({"model": "llama", "messages": messages, "stream": True}).encode())
    return made
