"""Rollouts and what is around them: several gateways, blue-green, and pools that are too small for the next step."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import aiohttp
import pytest

from pointsman.app.envoy import Envoy
from pointsman.core.buckets import arm_of, bucket
from support.fleet import Fleet, Layout, running_fleet
from support.load import Load, Outcomes, ask, chat_body
from support.planes import Plane, Rails, rails
from support.rollouts import apply, apply_in, by_arm, command, faults, policy, reached, rollout, share
from support.waiting import eventually

pytestmark = [pytest.mark.e2e, pytest.mark.story, pytest.mark.timeout(180)]

HALF = [{"weight": "50%", "pause": "Manual"}, {"weight": "100%"}]
CANARY = "cluster.default/canary.upstream_rq_total"


async def told(plane: Plane) -> dict[str, object]:
    async with plane.session.get(f"{plane.admin}/api/v1/rollouts/default/chat") as response:
        found: dict[str, object] = await response.json()
        return found if response.status == 200 else {}


async def to_canary(parts: Rails, envoys: list[Envoy]) -> list[int]:
    """Requests that each gateway has sent to the canary so far."""
    return [(await parts.stats(envoy)).get(CANARY, 0) for envoy in envoys]


async def test_an_abort_reaches_every_gateway(tmp_path: Path) -> None:
    """Three proxies of two Gateways, one of them frozen: aborted is what all have acknowledged, and then none sends the
    canary another request."""
    layout = Layout(stable={"us-east": 2}, canary={"us-east": 2}, edges={"west": "eu-west"})
    async with rails(tmp_path, layout) as parts:
        target = parts.reserve()
        plane = await parts.control_plane(target)
        envoys = []
        for node, gateway in (("one", "main"), ("two", "main"), ("far", "west")):
            config = await parts.bootstrap("--xds", target, "--node-id", node, gateway=f"default/{gateway}")
            envoys.append(await parts.gateway(config, ready=gateway == "main"))
        far_url = f"http://{parts.manifests.edge('west')}:{parts.manifests.http_port}"
        await envoys[2].wait_ready(30)

        async def connected() -> bool:
            nodes = (await plane.status())["xds"]["nodes"]
            return [node["node"] for node in nodes if node["settled"]] == ["far", "one", "two"]

        await eventually(connected, what="three proxies are settled")
        apply_in(parts.manifests.folder, policy(steps=HALF, analysis={"interval": "300ms"}))

        async def phase(*names: str) -> bool:
            return (await told(plane)).get("phase") in names

        await eventually(lambda: phase("Paused"), what="half of the traffic is the canary's")
        async with Load(parts.url, workers=16, limit=50_000) as near, Load(far_url, workers=2, limit=50_000) as far:

            async def all_send() -> bool:
                return min(await to_canary(parts, envoys)) > 0

            await eventually(all_send, what="every gateway sends some to the canary")
            os.kill(envoys[1].child.pid, signal.SIGSTOP)
            try:
                async with plane.session.post(
                    f"{plane.admin}/api/v1/rollouts/default/chat/abort", json={"reason": "test"}
                ) as response:
                    assert response.status == 200
                await eventually(_misses(plane, "two"), what="the frozen one is named")
                assert await phase("Aborting")
            finally:
                os.kill(envoys[1].child.pid, signal.SIGCONT)
            await eventually(lambda: phase("Aborted"), what="all have acknowledged")
            before = await to_canary(parts, envoys)
            await asyncio.gather(near.progressed(100), far.progressed(100))
            assert await to_canary(parts, envoys) == before, "nobody sends the canary another request"
        assert (near.outcomes.failed, far.outcomes.failed) == (0, 0), (near.outcomes.failures, far.outcomes.failures)
        await eventually(_acked_by(plane, {"default/main": {"one", "two"}, "default/west": {"far"}}), what="the record")


def _misses(plane: Plane, node: str) -> object:
    async def named() -> bool:
        records = (await plane.status())["xds"]["nodes"]
        return any(one["node"] == node and not one["settled"] for one in records)

    return named


def _acked_by(plane: Plane, wanted: dict[str, set[str]]) -> object:
    """Whether the audit log says that the abort was acknowledged by these proxies."""

    async def logged() -> bool:
        async with plane.session.get(f"{plane.admin}/api/v1/audit") as response:
            records = (await response.json())["records"]
        acked = [record for record in records if record["action"] == "weights.acked"]
        evidence = acked[-1]["evidence"] if acked else {}
        return {name: set(one["acked_ms"]) for name, one in evidence.items()} == wanted

    return logged


async def test_one_site_after_the_other(tmp_path: Path) -> None:
    """The second site's gateway sends the canary nothing until the first site is done; users stay all the while."""
    layout = Layout(stable={"us-east": 2}, canary={"us-east": 2}, edges={"west": "eu-west"})
    async with rails(tmp_path, layout) as parts:
        target = parts.reserve()
        plane = await parts.control_plane(target)
        envoys = [
            await parts.gateway(await parts.bootstrap("--xds", target, gateway=f"default/{name}"), ready=name == "main")
            for name in ("main", "west")
        ]
        urls = [parts.url, f"http://{parts.manifests.edge('west')}:{parts.manifests.http_port}"]
        await envoys[1].wait_ready(30)
        spec = {
            "sites": {"order": ["us-east", "eu-west"], "bake": "300ms"},
            "assignment": {"by": {"header": "x-user-id"}, "salt": "s", "fallback": "Stable"},
            "analysis": {"interval": "300ms"},
        }
        apply_in(parts.manifests.folder, policy(steps=HALF, **spec))

        async def canaries(site: str, weight: float) -> list[tuple[int, ...]]:
            """Per gateway, once the step at `site` is in force: users of 0 to 9 who got the canary."""

            async def there() -> bool:
                found = await told(plane)
                return (found.get("site"), found.get("weight")) == (site, weight) and bool(found["programmed"])

            await eventually(there, what=f"{weight:.0%} at {site}")
            return [await users_of_canary(url) for url in urls]

        half = tuple(n for n in range(10) if arm_of(bucket(f"user-{n}", "s"), [5_000, 5_000]) == 0)
        assert 0 < len(half) < 10
        assert await canaries("us-east", 0.5) == [half, ()]
        assert await users_of_canary(urls[0], "x-nobody") == (), "who says nothing is stable's"
        await promote(plane)
        everybody = tuple(range(10))
        assert await canaries("eu-west", 0.5) == [everybody, half]
        await promote(plane)
        assert await canaries("eu-west", 1.0) == [everybody, everybody]

        async def completed() -> bool:
            return (await told(plane)).get("phase") == "Completed"

        await eventually(completed, what="both sites have it")


async def promote(plane: Plane) -> None:
    async with plane.session.post(f"{plane.admin}/api/v1/rollouts/default/chat/promote", json={}) as response:
        assert response.status == 200, await response.text()


async def users_of_canary(url: str, header: str = "x-user-id") -> tuple[int, ...]:
    """Which of ten users, who say it by a header, get the canary at a gateway."""
    found = []
    async with aiohttp.ClientSession() as session:
        for number in range(10):
            outcomes = Outcomes()
            await ask(session, url, chat_body("where am I?"), outcomes, {header: f"user-{number}"})
            assert not outcomes.failed, outcomes.failures
            found += [number] * any(name.startswith("canary") for name in outcomes.replicas)
    return tuple(found)


async def test_blue_green_switches_watches_and_goes_back(tmp_path: Path) -> None:
    checks = [{"name": "errors", "metric": "errorRate", "max": "5%", "mustCatch": "40%"}]
    spec = {
        "strategy": "BlueGreen",
        "blueGreen": {"preview": "Manual", "keepWarm": "1h"},
        "analysis": {"interval": "300ms", "checks": checks},
    }
    async with running_fleet(tmp_path, Layout(stable={"us-east": 2}, canary={"us-east": 2})) as fleet:
        apply(fleet, policy(**spec))
        await reached(fleet, "Paused")
        async with Load(fleet.url, workers=4, limit=60) as load:
            await load.progressed(60)
        assert by_arm(load) == (0, 60), "a preview gets no request of a user"
        async with Load(fleet.url, workers=2, limit=20, headers={"x-model-variant": "canary"}) as testers:
            await testers.progressed(20)
        assert by_arm(testers) == (20, 0), "but testers reach it"
        await command(fleet, "promote")
        assert (await reached(fleet, "Promoting"))["weight"] == 1
        await eventually(_programmed(fleet), what="the gateway has it")
        async with Load(fleet.url, workers=4, limit=40) as after:
            await after.progressed(40)
        assert (by_arm(after), after.outcomes.failed) == ((40, 0), 0), "everybody at once"
        await faults(fleet, {"error": {"status": 500}})
        async with Load(fleet.url, workers=4, limit=50_000):
            found = await reached(fleet, "Aborted")
        assert "errors" in found["why"]
        assert await share(fleet) == 0
        async with Load(fleet.url, workers=4, limit=100) as back:
            await back.progressed(100)
        assert (by_arm(back), back.outcomes.failed) == ((0, 100), 0), "the old one was kept warm"


def _programmed(fleet: Fleet) -> object:
    async def all_have_it() -> bool:
        return bool((await rollout(fleet))["programmed"])

    return all_have_it


async def test_a_canary_that_is_too_small_gets_no_more(tmp_path: Path) -> None:
    """One endpoint with four slots, twelve requests that hang: 10 % of them fit, 50 % would not leave a fifth free."""
    steps = [{"weight": "10%", "pause": "300ms"}, {"weight": "50%", "pause": "300ms"}, {"weight": "100%"}]
    gate = {"capacity": {"canaryMinFree": "20%", "slotsPerEndpoint": 4}}
    async with running_fleet(tmp_path, Layout(stable={"us-east": 2}, canary={"us-east": 1})) as fleet:
        for name in await fleet.replicas():
            await fleet.set_faults(name, {"stall": {"where": "before"}})
        async with Load(fleet.url, workers=12, timeout_s=60):
            await eventually(_received(fleet, 12), what="all of them wait")
            apply(fleet, policy(steps=steps, gates=gate, analysis={"interval": "300ms"}))
            found = await reached(fleet, "Holding")
            assert (found["step"], found["weight"]) == (1, 0.1)
            assert "no room for 50 %" in found["why"]
            for name in await fleet.replicas():
                await fleet.set_faults(name, None)
        await reached(fleet, "Completed")


def _received(fleet: Fleet, count: int) -> object:
    async def there() -> bool:
        return sum(replica["requests_received"] for replica in (await fleet.replicas()).values()) >= count

    return there
