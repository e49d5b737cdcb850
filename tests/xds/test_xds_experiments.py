"""Sticky splits, variants and values that no rule knows, in a real Envoy with tiny upstreams."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest

from pointsman.core.buckets import arm_of, bucket
from pointsman.core.model import Endpoint, Listener, MatchType, Plan, RouteMatch, StringMatch
from pointsman.core.snapshot import PlanHolder
from support.envoy import running_envoy
from support.waiting import eventually

pytestmark = pytest.mark.e2e

DEAD = Endpoint(name="dead", address="127.0.0.1", port=1, site="here")
USERS = [f"user-{number}" for number in range(400)]


def path(value: str, *headers: StringMatch) -> RouteMatch:
    return RouteMatch(path=StringMatch(type=MatchType.PREFIX, value=value), headers=headers)


class Gate:
    def __init__(self, holder: PlanHolder, plane: Any, session: aiohttp.ClientSession, url: str) -> None:
        self.holder, self.plane, self.session, self.url = holder, plane, session, url

    async def publish(self, plan: Plan) -> None:
        self.holder.publish(plan)
        await self.plane.acked()

    async def ask(self, target: str = "/v1/x", **headers: str) -> tuple[int, str, str]:
        """Status, who answered, reason."""
        async with self.session.post(self.url + target, data=b"x", headers=headers) as response:
            body = await response.json()
            return response.status, body.get("system_fingerprint", ""), response.headers.get("x-pointsman-reason", "")


@asynccontextmanager
async def gateway(kit: Any, plan: Plan) -> AsyncIterator[Gate]:
    holder = PlanHolder()
    holder.publish(plan)
    async with kit.ControlPlane(holder) as plane, running_envoy(plane.bootstrap(delta=True)) as envoy:

        async def listening() -> str:
            return dict(await envoy.listener_addresses()).get("default/gw/http", "")

        await eventually(listening, what="the listener")
        await plane.acked()
        async with aiohttp.ClientSession() as session:
            yield Gate(holder, plane, session, f"http://{await listening()}")


async def pools(kit: Any, upstreams: Any) -> list[Any]:
    return [kit.pool(f"default/{name}", await upstreams.start(name)) for name in ("canary", "stable")]


def split(kit: Any, pools: list[Any], canary: int, **sticky: str) -> Plan:
    arms = (("default/canary", canary), ("default/stable", 10_000 - canary))
    return kit.plan_of(pools, listener(kit, kit.rule("r", *arms, variant=True, **sticky)))


def listener(kit: Any, *rules: Any) -> Listener:
    found: Listener = kit.listener("http", *rules)
    return found


@pytest.mark.parametrize("salt", ["", "chat-2026.11_x"])
@pytest.mark.parametrize("by", ["header", "cookie"])
async def test_a_users_arm_is_the_one_that_is_computed(kit: Any, upstreams: Any, by: str, salt: str) -> None:
    """Bucket for bucket: so it is the same on every gateway, after a restart, and at every weight."""
    sticky = {"hash_header": "x-user-id"} if by == "header" else {"hash_cookie": "uid"}
    both = await pools(kit, upstreams)
    async with gateway(kit, split(kit, both, 500, hash_salt=salt, **sticky)) as gate:
        for canary in (500, 5_000):
            await gate.publish(split(kit, both, canary, hash_salt=salt, **sticky))
            for user in USERS:
                headers = {"x-user-id": user} if by == "header" else {"cookie": f'a=b; uid={user}; uidx="z"'}
                expected = ("canary", "stable")[arm_of(bucket(user, salt), [canary, 10_000 - canary]) or 0]
                assert (await gate.ask(**headers))[:2] == (200, expected), (user, canary)


async def test_requests_without_a_user_are_split_at_random(kit: Any, upstreams: Any) -> None:
    for salt in ("", "s"):
        async with gateway(
            kit, split(kit, await pools(kit, upstreams), 5_000, hash_header="u", hash_salt=salt)
        ) as gate:
            answers = [(await gate.ask())[1] for _ in range(100)]
            assert 20 < answers.count("canary") < 80, "half of 100, six standard deviations wide"


async def test_salts_draw_different_users(kit: Any) -> None:
    drawn = {salt: {user for user in USERS if bucket(user, salt) < 2_000} for salt in ("", "a", "b")}
    for one, other in (("", "a"), ("a", "b")):
        assert drawn[one] != drawn[other]
        assert len(drawn[one] & drawn[other]) < 45, "a fifth of a fifth of 400 is 16"


async def test_a_variant_without_an_endpoint_says_so_and_nothing_else_does(kit: Any, upstreams: Any) -> None:
    canary, stable = await pools(kit, upstreams)
    asked = StringMatch(type=MatchType.EXACT, name="x-variant", value="exp")
    rules = (
        kit.rule("empty", ("default/empty", 10_000), match=path("/v1", asked), variant=True),
        kit.rule("refusing", ("default/refusing", 10_000), match=path("/refusing"), variant=True),
        kit.rule("plain", ("default/empty", 10_000), match=path("/plain")),
        kit.rule("r", ("default/canary", 5_000), ("default/stable", 5_000), variant=True),
    )
    dead = [kit.pool("default/empty"), kit.pool("default/refusing", DEAD)]
    async with gateway(kit, kit.plan_of([canary, stable, *dead], listener(kit, *rules))) as gate:
        for _ in range(5):
            assert await gate.ask(**{"x-variant": "exp"}) == (503, "", "variant-unavailable")
            assert await gate.ask("/refusing") == (503, "", "variant-unavailable")
            assert await gate.ask("/plain") == (503, "", "no_healthy_upstream")
            assert (await gate.ask())[0] == 200
        headers = {"content-type": "application/grpc", "te": "trailers", "x-variant": "exp"}
        async with gate.session.post(f"{gate.url}/v1/x", data=b"x", headers=headers) as response:
            assert response.headers["x-pointsman-reason"] == "variant-unavailable"


async def test_headers_that_are_there_with_another_value(kit: Any, upstreams: Any) -> None:
    both = await pools(kit, upstreams)
    there = StringMatch(type=MatchType.PRESENT, name="x-variant", value="")
    known = (
        StringMatch(type=MatchType.EXACT, name="x-variant", value="a", invert=True),
        StringMatch(type=MatchType.REGEX, name="x-variant", value="exp-[0-9]+", invert=True),
    )
    rules = (
        kit.rule("u", match=path("/", there, *known), direct_status=400, direct_reason="unknown-variant"),
        kit.rule("r", ("default/stable", 10_000)),
    )
    async with gateway(kit, kit.plan_of(both, listener(kit, *rules))) as gate:
        assert await gate.ask() == (200, "stable", "")
        for value in ("a", "exp-7"):
            assert await gate.ask(**{"x-variant": value}) == (200, "stable", "")
        for value in ("b", "A", "exp-", "exp-7x", ""):
            assert await gate.ask(**{"x-variant": value}) == (400, "", "unknown-variant")
