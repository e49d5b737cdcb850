"""Who is let in when a pool is full: InferenceObjectives from manifests to the answer of a real Envoy."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
import yaml

from pointsman.core.wire import OBJECTIVE_HEADER, REASON_HEADER
from support.fleet import Fleet, Layout, running_fleet
from support.load import chat_body
from support.waiting import eventually

pytestmark = pytest.mark.e2e

LONG = "a word of a long story " * 8_000  # 46,000 tokens, three seconds of prefill on the modelled GPU


def objective(name: str, priority: int, *, group: str = "llm-d.ai", **annotations: str) -> dict[str, object]:
    return {
        "apiVersion": f"{group}/v1alpha2",
        "kind": "InferenceObjective",
        "metadata": {
            "name": name,
            "annotations": {f"pointsman.dev/{key}": value for key, value in annotations.items()},
        },
        "spec": {"priority": priority, "poolRef": {"name": "stable"}},
    }


OBJECTIVES = [
    objective("batch", -1),
    objective("critical", 10, group="inference.networking.x-k8s.io"),
    objective("prompt", 5, ttft="1s"),
]


async def ask(fleet: Fleet, text: str, name: str = "") -> tuple[int, str, str]:
    """Status, reason and Retry-After of one request."""
    headers = {OBJECTIVE_HEADER: name} if name else {}
    async with fleet.session.post(
        f"{fleet.url}/v1/chat/completions", json=chat_body(text, max_tokens=1), headers=headers
    ) as response:
        await response.read()
        return response.status, response.headers.get(REASON_HEADER, ""), response.headers.get("retry-after", "")


async def in_flight(fleet: Fleet) -> int:
    async with fleet.session.get(f"{fleet.admin}/metrics") as response:
        lines = (await response.text()).splitlines()
    return sum(int(float(line.split()[1])) for line in lines if line.startswith("pointsman_picker_inflight_requests "))


@pytest.mark.parametrize("workers", [0, 1])
async def test_a_full_pool_refuses_those_who_can_wait_and_serves_the_others(tmp_path: Path, workers: int) -> None:
    folder = tmp_path / "config"
    folder.mkdir()
    (folder / "objectives.yaml").write_text(yaml.safe_dump_all(OBJECTIVES), encoding="utf-8")
    layout = Layout(stable={"us-east": 1}, pool_annotations={"pointsman.dev/shed-after": "2s"})
    async with running_fleet(tmp_path, layout, speed=1, extra=("--picker-workers", str(workers))) as fleet:
        for name in ("batch", "prompt", "critical"):
            assert (await ask(fleet, "hello", name))[0] == 200, "an idle pool serves all"
        crowd = [asyncio.create_task(ask(fleet, f"{number} {LONG}")) for number in range(8)]
        await eventually(lambda: in_flight_is(fleet, len(crowd)))
        for name in ("batch", "prompt"):
            status, reason, retry_after = await ask(fleet, "hello", name)
            assert (status, reason) == (429, "over-objective")
            assert 1 <= int(retry_after) <= 60
        critical = asyncio.create_task(ask(fleet, "hello", "critical"))
        unnamed = asyncio.create_task(ask(fleet, "hello"))
        await eventually(lambda: in_flight_is(fleet, len(crowd) + 2))
        for task in crowd:
            task.cancel()
        assert ((await critical)[0], (await unnamed)[0]) == (200, 200)


async def in_flight_is(fleet: Fleet, count: int) -> bool:
    return await in_flight(fleet) >= count
