"""The control plane against a real Envoy."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest

from pointsman.core.model import MatchType, RouteMatch, StringMatch
from pointsman.core.snapshot import PlanHolder
from support.envoy import running_envoy
from support.load import Load
from support.waiting import eventually

pytestmark = pytest.mark.e2e

BOTH = pytest.mark.parametrize("delta", [False, True], ids=["sotw", "delta"])


async def stats(envoy: Any) -> dict[str, int]:
    async with aiohttp.ClientSession() as session, session.get(f"{envoy.admin_url}/stats") as response:
        lines = (await response.text()).splitlines()
    return {name: int(value) for name, _, value in (line.partition(": ") for line in lines) if value.isdigit()}


async def base_url(envoy: Any, name: str = "default/gw/http") -> str:
    """The address of a listener once it is there."""

    async def find() -> dict[str, str]:
        async with aiohttp.ClientSession() as session, session.get(f"{envoy.admin_url}/listeners?format=json") as found:
            entries = (await found.json()).get("listener_statuses", [])
        return {e["name"]: "{address}:{port_value}".format(**e["local_address"]["socket_address"]) for e in entries}

    async def there() -> bool:
        return name in await find()

    await eventually(there, what=f"listener {name}")
    return f"http://{(await find())[name]}"


async def get(url: str, **headers: str) -> tuple[int, str]:
    """Status, and the serving replica or the reason."""
    async with aiohttp.ClientSession() as session, session.get(url, headers=headers) as response:
        reason = response.headers.get("x-pointsman-reason", "")
        return response.status, (await response.json()).get("system_fingerprint") or reason


@BOTH
async def test_a_gateway_is_configured_and_a_weight_change_touches_no_listener(kit, upstreams, delta) -> None:
    stable, canary = await upstreams.start("stable"), await upstreams.start("canary")
    pools = [kit.pool("default/stable", stable), kit.pool("default/canary", canary)]
    pin = RouteMatch(headers=(StringMatch(type=MatchType.EXACT, name="x-model-variant", value="canary"),))

    def plan(weight: int) -> Any:
        split = kit.rule("split", ("default/canary", weight), ("default/stable", 10_000 - weight))
        pinned = kit.rule("pin", ("default/canary", 10_000), match=pin)
        refused = kit.rule(
            "no", match=RouteMatch(path=StringMatch(type=MatchType.EXACT, value="/no")), direct_status=404
        )
        return kit.plan_of(pools, kit.listener("http", refused, pinned, split))

    holder = PlanHolder()
    holder.publish(plan(0))
    async with kit.ControlPlane(holder) as plane, running_envoy(plane.bootstrap(delta=delta)) as envoy:
        url = await base_url(envoy)
        await plane.acked()
        assert await get(f"{url}/v1/models") == (200, "stable")
        assert (await get(f"{url}/v1/models", **{"x-model-variant": "canary"}))[1] == "canary"
        assert await get(f"{url}/no") == (404, "no backend")
        before = await stats(envoy)
        holder.publish(plan(10_000))
        await plane.acked()
        assert await get(f"{url}/v1/models") == (200, "canary")
        after = await stats(envoy)
        for name in ("listener_added", "listener_modified", "listener_removed"):
            assert after[f"listener_manager.{name}"] == before[f"listener_manager.{name}"]
        assert after["cluster_manager.cds.update_rejected"] == 0
        assert plane.total("pointsman_xds_requests_total", kind="nack") == 0
        assert plane.total("pointsman_xds_responses_total", type="RDS") == 2
        assert plane.total("pointsman_xds_responses_total", type="LDS") == 1


@BOTH
async def test_pools_are_exchanged_under_load_without_a_failed_request(kit, upstreams, delta) -> None:
    """Each step removes the pool that serves and adds a new one: make before break, or requests fail.

    The time that an unused pool stays is much more than a request takes here, and much less than in real life.
    """
    endpoints = [await upstreams.start(f"replica-{i}") for i in range(4)]

    def plan(step: int) -> Any:
        name = f"default/pool-{step}"
        return kit.plan_of([kit.pool(name, endpoints[step])], kit.listener("http", kit.rule("all", (name, 10_000))))

    holder = PlanHolder()
    holder.publish(plan(0))
    async with kit.ControlPlane(holder, linger_s=3) as plane, running_envoy(plane.bootstrap(delta=delta)) as envoy:
        url = await base_url(envoy)
        await plane.acked()
        async with Load(url, workers=8) as load:
            for step in (1, 2, 3):
                await load.progressed(30)
                holder.publish(plan(step))
                await plane.acked()
            await load.progressed(30)
        assert load.outcomes.failed == 0, load.outcomes.failures
        assert load.outcomes.ok > 100
        assert set(load.outcomes.replicas) == {e.name for e in endpoints}

        async def nothing_is_left_behind() -> bool:
            found = await stats(envoy)
            return found["cluster_manager.active_clusters"] == 3  # the pool, the picker, the control plane

        await eventually(nothing_is_left_behind, what="the old pools left")


@BOTH
async def test_a_request_that_chose_a_pool_gets_it_although_no_route_names_it_any_more(kit, upstreams, delta) -> None:
    """Envoy looks for the cluster when the body is in: until then the pool stays."""
    endpoints = {name: await upstreams.start(name) for name in ("old", "new")}

    def plan(name: str) -> Any:
        pools = [kit.pool(f"default/{name}", endpoints[name])]
        return kit.plan_of(pools, kit.listener("http", kit.rule("all", (f"default/{name}", 10_000))))

    rest = asyncio.Event()

    async def upload() -> AsyncIterator[bytes]:
        yield b'{"model": "m", '
        await rest.wait()
        yield b'"prompt": "p"}'

    holder = PlanHolder()
    holder.publish(plan("old"))
    async with (
        kit.ControlPlane(holder, linger_s=30) as plane,
        running_envoy(plane.bootstrap(delta=delta)) as envoy,
        aiohttp.ClientSession() as session,
    ):
        url = await base_url(envoy)
        await plane.acked()
        request = asyncio.create_task(session.post(f"{url}/v1/completions", data=upload()))

        async def begun() -> bool:
            return (await stats(envoy))["http.http.downstream_rq_active"] == 1

        await eventually(begun, what="the request has its route")
        holder.publish(plan("new"))
        await plane.acked()
        assert (await get(f"{url}/v1/models"))[1] == "new"
        rest.set()
        async with await request as response:
            assert (response.status, (await response.json()).get("system_fingerprint")) == (200, "old")


@BOTH
async def test_what_envoy_rejects_is_kept_out_and_the_rest_arrives(kit, upstreams, delta) -> None:
    one, two = await upstreams.start("one"), await upstreams.start("two")
    bad_probe = "/health\nnot-a-header"  # a constraint of the protobuf message: Envoy drops the whole response
    bad_expression = RouteMatch(path=StringMatch(type=MatchType.REGEX, value="(?=lookahead)"))  # RE2 has none

    def plan(pools: Any, *rules_b: Any, served: str) -> Any:
        a = kit.listener("http", kit.rule("a", (served, 10_000)))
        b = kit.listener("other", *rules_b)
        return kit.plan_of(pools, a, b)

    good = kit.pool("default/one", one)
    rule_b = kit.rule("b", ("default/one", 10_000))
    holder = PlanHolder()
    holder.publish(plan([good], rule_b, served="default/one"))
    async with kit.ControlPlane(holder) as plane, running_envoy(plane.bootstrap(delta=delta)) as envoy:
        url, other = await base_url(envoy), await base_url(envoy, "default/gw/other")
        await plane.acked()
        broken = kit.pool("default/broken", two, health_path=bad_probe)
        new = kit.pool("default/new", two)
        bad_rule = kit.rule("bad", ("default/one", 10_000), match=bad_expression)
        holder.publish(plan([good, broken, new], bad_rule, rule_b, served="default/new"))
        state = await plane.xds.wait_acked("default/gw", 20, nodes=1)
        assert state.rejected == {"node-1"}
        (node,) = plane.xds.status()["nodes"]
        assert sorted((r["type"], r["name"]) for r in node["rejected"]) == [
            ("CDS", "default/broken"),
            ("RDS", "default/gw/other"),
        ]
        assert all(r["message"] for r in node["rejected"])
        assert (await get(f"{url}/v1/models"))[1] == "two"  # the sibling cluster and the other route configuration
        assert (await get(f"{other}/v1/models"))[1] == "one"  # last good
        assert plane.total("pointsman_xds_rejected_resources") == 2
        # Nothing is sent again until the content changes.
        sent = plane.total("pointsman_xds_responses_total")
        holder.publish(plan([good, broken, new], bad_rule, rule_b, served="default/one"))
        await plane.xds.wait_acked("default/gw", 20)
        assert (await get(f"{url}/v1/models"))[1] == "one"
        assert plane.total("pointsman_xds_responses_total") == sent + 1
        holder.publish(plan([good, new], rule_b, served="default/one"))
        await plane.acked()


async def test_a_restarted_control_plane_sends_nothing_to_a_gateway_that_has_everything(kit, upstreams) -> None:
    endpoint = await upstreams.start("one")
    holder = PlanHolder()
    route = kit.rule("all", ("default/one", 10_000))
    holder.publish(kit.plan_of([kit.pool("default/one", endpoint)], kit.listener("http", route)))
    async with kit.ControlPlane(holder) as first, running_envoy(first.bootstrap(delta=True)) as envoy:
        url = await base_url(envoy)
        await first.acked()
        await first.server.stop(None)
        async with kit.ControlPlane(holder, first.port) as second:
            await second.acked()
            assert second.total("pointsman_xds_responses_total") == 0
            assert await get(f"{url}/v1/models") == (200, "one")


@BOTH
async def test_the_second_control_plane_takes_over(kit, upstreams, delta) -> None:
    one, two = await upstreams.start("one"), await upstreams.start("two")

    def plan(name: str) -> Any:
        pools = [kit.pool("default/one", one), kit.pool("default/two", two)]
        return kit.plan_of(pools, kit.listener("http", kit.rule("all", (name, 10_000))))

    holder = PlanHolder()
    holder.publish(plan("default/one"))
    async with (
        kit.ControlPlane(holder) as first,
        kit.ControlPlane(holder) as second,
        running_envoy(first.bootstrap(second, delta=delta)) as envoy,
    ):
        url = await base_url(envoy)
        await first.acked()
        async with Load(url, workers=4) as load:
            await load.progressed(10)
            await first.server.stop(None)
            holder.publish(plan("default/two"))
            await second.acked()
            await load.progressed(20)
        assert load.outcomes.failed == 0, load.outcomes.failures
        assert (await get(f"{url}/v1/models"))[1] == "two"
        if delta:
            assert second.total("pointsman_xds_responses_total") == 1  # the change, and nothing else


async def test_a_proxy_of_no_gateway_gets_nothing_and_is_served_once_it_is_known(kit, upstreams) -> None:
    endpoint = await upstreams.start("one")
    holder = PlanHolder()
    route = kit.rule("all", ("default/one", 10_000))
    pools = [kit.pool("default/one", endpoint)]
    holder.publish(kit.plan_of(pools, kit.listener("http", route), gateway="default/another"))
    async with kit.ControlPlane(holder) as plane, running_envoy(plane.bootstrap(delta=True)) as envoy:
        assert plane.total("pointsman_xds_unknown_nodes_total") == 1
        holder.publish(kit.plan_of(pools, kit.listener("http", route)))
        url = await base_url(envoy)
        await plane.acked()
        assert await get(f"{url}/v1/models") == (200, "one")
