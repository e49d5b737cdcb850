"""Residency with a real Envoy: no request that is bound to the EU ever reaches the other site, whatever is broken."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.fleet import Fleet, Layout, running_fleet
from support.load import Outcomes, ask, chat_body

pytestmark = pytest.mark.e2e

LAYOUT = Layout(
    stable={"us-east": 2, "eu-west": 2},
    canary={"us-east": 1},
    jurisdictions={"us-east": ["US"], "eu-west": ["EU"]},
    annotations={"pointsman.dev/residency-header": "x-tenant-region"},
)
EU = {"x-tenant-region": "EU"}
US_REPLICAS = ("stable-us-east-0", "stable-us-east-1", "canary-us-east-0")


async def served_in_us(fleet: Fleet) -> int:
    """Requests that the replicas there have got, by their own count."""
    found = await fleet.replicas()
    return sum(int(found[name]["requests_received"]) for name in US_REPLICAS)


async def some(fleet: Fleet, outcomes: Outcomes, headers: dict[str, str] | None, count: int = 20) -> None:
    for number in range(count):
        await ask(fleet.session, fleet.url, chat_body(f"{number} of {headers}"), outcomes, headers)


async def test_bound_requests_stay_inside_in_every_failure(tmp_path: Path) -> None:
    async with running_fleet(tmp_path, LAYOUT) as fleet:
        before = await served_in_us(fleet)
        outcomes = Outcomes()
        await some(fleet, outcomes, EU)
        assert outcomes.failed == 0, outcomes.failures
        await fleet.set_faults("stable-eu-west-0", {"refuse": True})  # retries find the other one there
        await some(fleet, outcomes, EU)
        assert outcomes.failed == 0, outcomes.failures
        await fleet.kill_control_plane()  # Envoy balances by itself
        await some(fleet, outcomes, EU)
        assert outcomes.failed == 0, outcomes.failures
        await fleet.set_faults("stable-eu-west-1", {"refuse": True})  # nobody is left
        lost = Outcomes()
        await some(fleet, lost, EU)
        assert lost.ok == 0
        assert {kind.split()[0] for kind in lost.failures} == {"503"}
        await fleet.restart_control_plane()
        await some(fleet, lost, EU)
        assert lost.ok == 0
        assert await served_in_us(fleet) == before
        free = Outcomes()
        await some(fleet, free, None)
        assert free.ok == 20
        assert all("us-east" in replica for replica in free.replicas), "who is not bound goes there"


async def test_what_is_forbidden_everywhere_is_451_with_a_reason(tmp_path: Path) -> None:
    async with running_fleet(tmp_path, LAYOUT) as fleet:
        for region, variant in (("MARS", ""), ("eu", ""), ("EU,US", ""), ("EU", "canary")):
            headers = {"x-tenant-region": region, **({"x-model-variant": variant} if variant else {})}
            async with fleet.session.post(
                f"{fleet.url}/v1/chat/completions", json=chat_body("where"), headers=headers
            ) as response:
                assert response.status == 451, region
                assert response.headers["x-pointsman-reason"] == "residency"
                assert (await response.json())["error"]["code"] == 451


async def test_explain_lists_what_was_forbidden(tmp_path: Path) -> None:
    async with running_fleet(tmp_path, LAYOUT) as fleet:
        outcomes = Outcomes()
        await ask(fleet.session, fleet.url, chat_body("explain me"), outcomes, EU)
        assert outcomes.ok == 1
        async with fleet.session.get(f"{fleet.admin}/api/v1/picks") as response:
            picks = (await response.json())["picks"]
        pick = next(one["pick"] for one in picks if one["pool"] == "default/stable@EU")
        async with fleet.session.get(f"{fleet.admin}/api/v1/picks/{pick}") as response:
            found = await response.json()
        assert sorted(found["filtered"].values()) == ["residency", "residency"]
