"""Overflow with a real Envoy: a full site sends a part to its standby before it fails, and takes it back."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from support.fleet import Fleet, Layout, running_fleet
from support.load import chat_body
from support.waiting import eventually

pytestmark = [pytest.mark.e2e, pytest.mark.story, pytest.mark.timeout(180)]

POOL = "default/stable"
MAX_SHARE = 0.1
ROOM = 4
"""Requests that the standby carries at once."""
QUEUE = 4
"""Waiting requests that make the primary full: it runs two at once, so that twelve clients leave ten waiting."""

LAYOUT = Layout(
    stable={"us-east": 1, "eu-west": 1},
    capacity={"eu-west": ROOM},
    documents=[
        {
            "apiVersion": "pointsman.dev/v1alpha1",
            "kind": "FailoverPolicy",
            "metadata": {"name": "stable"},
            "spec": {
                "targetRefs": [{"group": "inference.networking.k8s.io", "kind": "InferencePool", "name": "stable"}],
                "tiers": [{"sites": ["us-east"]}, {"sites": ["eu-west"], "role": "Standby", "warmUp": "500ms"}],
                "triggers": {"saturation": {"queue": QUEUE}},
                "spill": {"startAt": "80%", "stopAt": "60%", "maxShare": f"{MAX_SHARE:.0%}"},
            },
        }
    ],
)


class Crowd:
    """Clients that ask one request after the other, and come again when a refusal says so; counts of answers."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self.served: Counter[str] = Counter()
        self.refused: Counter[tuple[int, str, str]] = Counter()

    async def ask_forever(self, client: int) -> None:
        """Until cancelled."""
        turn = 0
        while True:
            turn += 1
            body = chat_body(f"client {client} asks for the {turn}th time", max_tokens=16)
            async with self._fleet.session.post(f"{self._fleet.url}/v1/chat/completions", json=body) as response:
                if response.status == 200:
                    self.served[(await response.json())["system_fingerprint"].rpartition("-")[0]] += 1
                    continue
                headers = response.headers
            self.refused[response.status, headers.get("x-pointsman-reason", ""), headers.get("retry-after", "")] += 1
            await asyncio.sleep(float(headers.get("retry-after", "0.1")))

    async def served_more(self, count: int) -> Counter[str]:
        """Wait for so many answers; where they came from."""
        before = Counter(self.served)
        await eventually(lambda: self.served.total() >= before.total() + count, what="answers", timeout_s=60)
        return self.served - before


@asynccontextmanager
async def crowd(fleet: Fleet, clients: int) -> AsyncIterator[Crowd]:
    """So many clients for the length of the block."""
    found = Crowd(fleet)
    tasks = [asyncio.create_task(found.ask_forever(client)) for client in range(clients)]
    try:
        yield found
    finally:
        for task in tasks:
            task.cancel()
        ends = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(isinstance(end, asyncio.CancelledError) for end in ends), ends


async def narrow(fleet: Fleet, folder: Path) -> None:
    """Let the primary run two requests at once."""
    replicas: list[dict[str, Any]] = json.loads((folder / "sim.json").read_text())["replicas"]
    for replica in replicas:
        if replica["name"] == "stable-us-east-0":
            replica["engine"] = {"max_num_seqs": 2}
    async with fleet.session.put(f"{fleet.simulator}/replicas", json=replicas) as response:
        assert response.status == 200, await response.text()


async def told(fleet: Fleet) -> dict[str, Any]:
    """What the control plane says of the policy."""
    policies = (await fleet.get(f"{fleet.admin}/api/v1/failover"))["policies"]
    found: dict[str, Any] = next(one for one in policies if POOL in one["pools"])
    return found


async def state(fleet: Fleet, site: str) -> str:
    return str(next(one for one in (await told(fleet))["sites"] if one["site"] == site)["state"])


async def sent(fleet: Fleet) -> tuple[int, int]:
    """Attempts and retries that Envoy counts at the pool."""
    stats = await fleet.envoy_stats(f"cluster.{POOL}.upstream_rq_")
    return stats[f"cluster.{POOL}.upstream_rq_total"], stats[f"cluster.{POOL}.upstream_rq_retry"]


async def test_a_full_site_overflows_and_its_standby_refuses_what_it_cannot_carry(tmp_path: Path) -> None:
    async with running_fleet(tmp_path, LAYOUT, speed=10) as fleet:
        await narrow(fleet, tmp_path)
        async with crowd(fleet, 1) as quiet:
            assert set(await quiet.served_more(40)) == {"stable-us-east"}
            assert (await told(fleet))["spill"] == {}

        async with crowd(fleet, 12) as busy:
            # Full: it overflows, up to the maximum and not beyond, and nobody is refused.
            async def at_most() -> bool:
                return bool((await told(fleet))["spill"].get(POOL) == MAX_SHARE)

            await eventually(at_most, what="it overflows by the largest share", timeout_s=60)
            assert await state(fleet, "us-east") == "Healthy"
            where = await busy.served_more(400)
            assert 0 < where["stable-eu-west"] / where.total() <= MAX_SHARE + 0.06, "four standard deviations"
            assert not busy.refused

            # Lost: the standby carries what it can, the rest is told when to come again; retries make no storm.
            before = await sent(fleet)
            await fleet.set_faults("stable-us-east-0", {"refuse": True})

            async def left() -> bool:
                return await state(fleet, "us-east") in {"Failed", "HoldDown"}

            await eventually(left, what="the site is left", timeout_s=60)
            in_the_loss = [now - then for now, then in zip(await sent(fleet), before, strict=True)]
            await eventually(lambda: busy.refused.total() >= 20, what="the standby refuses", timeout_s=60)
            assert set(await busy.served_more(100)) == {"stable-eu-west"}
            assert set(busy.refused) == {(429, "at-capacity", "1")}
            attempts, retries = (now - then for now, then in zip(await sent(fleet), before, strict=True))
            assert retries <= 0.2 * attempts, (in_the_loss, attempts, retries)
            assert (await told(fleet))["spill"] == {}, "there is no tier beyond it"

        await fleet.set_faults("stable-us-east-0", None)

        async def well() -> bool:
            return await state(fleet, "us-east") == "HoldDown"

        await eventually(well, what="the primary looks well again", timeout_s=60)
        async with fleet.session.post(
            f"{fleet.admin}/api/v1/failover/failback",
            json={"site": "us-east", "reason": "it is mended", "actor": "alice", "force": True, "wait_s": 10},
        ) as response:
            assert response.status == 200, await response.text()

        async with crowd(fleet, 12):
            await eventually(lambda: _overflows(fleet), what="it overflows again", timeout_s=60)
        async with crowd(fleet, 1) as quiet:

            async def over() -> bool:
                return not await _overflows(fleet) and await state(fleet, "eu-west") == "Standby"

            await eventually(over, what="the overflow ends with the load", timeout_s=60)
            assert set(await quiet.served_more(40)) == {"stable-us-east"}
            assert not quiet.refused


async def _overflows(fleet: Fleet) -> bool:
    return POOL in (await told(fleet))["spill"]
