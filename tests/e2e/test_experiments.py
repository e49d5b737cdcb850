"""A/B by header, cookie, query and gRPC metadata through a real Envoy; arms that are down; variants nobody knows."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import grpc
import pytest

from pointsman.sim.v1.generate_pb2 import GenerateRequest, GenerateResponse
from support.fast import ask_all, counted, serve_names
from support.fleet import MODEL, Fleet, Layout, backend, running_fleet
from support.load import Load, Outcomes, ask, chat_body
from support.waiting import eventually

pytestmark = [pytest.mark.e2e, pytest.mark.story]


def header(name: str, value: str, kind: str = "Exact") -> dict[str, str]:
    return {"type": kind, "name": name, "value": value}


def to(pool: str, *matches: dict[str, Any], name: str = "") -> dict[str, Any]:
    return {"matches": list(matches), "backendRefs": [backend(pool)]} | ({"name": name} if name else {})


async def lines(fleet: Fleet, *headers: str, path: str = "/v1/models") -> list[str]:
    manifests = fleet.manifests
    return await ask_all(manifests.gateway_address, manifests.http_port, headers, connections=1, path=path)


async def test_every_kind_of_match_chooses_its_arm_past_the_weights(tmp_path: Path) -> None:
    rules = [
        to("canary", {"headers": [header("x-variant", "exp-.*", "RegularExpression")]}),
        to("canary", {"headers": [header("x-tier", "gold"), header("x-region", "eu")]}),
        to("canary", {"headers": [header("cookie", "(?:.*; *)?variant=b(?:;.*)?", "RegularExpression")]}),
        to("canary", {"queryParams": [{"name": "variant", "value": "b"}]}),
        to("canary", {"headers": [header("x-a", "1")]}, {"headers": [header("x-b", "1")]}),
    ]
    async with running_fleet(tmp_path, Layout(rules=rules), serve=serve_names) as fleet:
        right = [
            "x-variant: exp-2",
            "x-tier: gold\r\nx-region: eu",
            "cookie: variant=b",
            "cookie: a=1; variant=b; c=2",
            "x-a: 1",
            "x-b: 1",
            "X-Model-Variant: canary",
        ]
        wrong = [
            "",
            "x-variant: EXP-2",
            "x-variant: my-exp-2",
            "x-tier: gold",
            "x-tier: gold\r\nx-region: us",
            "cookie: variant=bb",
            "cookie: xvariant=b",
            "x-a: 2",
            "x-model-variant: canar",
        ]
        for _ in range(20):
            assert counted(await lines(fleet, *right)) == {"canary": len(right)}
            assert counted(await lines(fleet, *wrong)) == {"stable": len(wrong)}
            assert await lines(fleet, "", path="/v1/models?variant=b&x=1") == ["canary"]
            assert await lines(fleet, "", path="/v1/models?variant=c") == ["stable"]


async def test_grpc_metadata_chooses_its_arm(tmp_path: Path) -> None:
    """A GRPCRoute with two splits of its own: metadata decides, and each call is picked."""
    rules = [{"matches": [{"headers": [header("x-variant", "nobody")]}], "backendRefs": [backend("idle")]}]
    layout = Layout(grpc={"us-east": 1}, idle={"us-east": 1}, grpc_rules=rules)
    async with running_fleet(tmp_path, layout) as fleet, grpc.aio.insecure_channel(fleet.grpc_target) as channel:
        call = channel.unary_unary(
            "/pointsman.sim.v1.Generator/Generate",
            request_serializer=GenerateRequest.SerializeToString,
            response_deserializer=GenerateResponse.FromString,
        )
        seen: Counter[tuple[str, str]] = Counter()
        for number in range(40):
            variant = ("nobody", "somebody")[number % 2]
            answer = await call(
                GenerateRequest(model=MODEL, prompt=f"{number}", max_tokens=1), metadata=(("x-variant", variant),)
            )
            seen[variant, answer.replica.partition("-")[0]] += 1
        assert seen == {("nobody", "idle"): 20, ("somebody", "grpc"): 20}


async def asked(fleet: Fleet, **headers: str) -> tuple[int, str]:
    """Status and reason of a chat request, which goes by the picker."""
    body = chat_body("which arm?")
    async with fleet.session.post(f"{fleet.url}/v1/chat/completions", json=body, headers=headers) as response:
        await response.read()
        return response.status, response.headers.get("x-pointsman-reason", "")


@pytest.mark.parametrize("how", ["crashed", "not ready"])
async def test_an_arm_that_is_down_answers_503_and_never_another_variant(tmp_path: Path, how: str) -> None:
    async with running_fleet(tmp_path) as fleet:
        if how == "crashed":
            await fleet.set_faults("canary-us-east-0", {"exit": True})
        else:
            fleet.manifests.write(Layout(not_ready=frozenset({"canary-us-east-0"})))

        async def unavailable() -> bool:
            return await asked(fleet, **{"x-model-variant": "canary"}) == (503, "variant-unavailable")

        await eventually(unavailable, what="the arm says that it is down")
        for _ in range(10):
            assert await unavailable()
            assert (await asked(fleet))[0] == 200
        async with fleet.session.get(f"{fleet.url}/v1/models", headers={"x-model-variant": "canary"}) as response:
            assert (response.status, response.headers["x-pointsman-reason"]) == (503, "variant-unavailable")


async def test_an_arm_that_is_down_falls_back_or_hands_over_its_share_where_the_route_says_so(tmp_path: Path) -> None:
    fallback = {"pointsman.dev/on-unavailable": "Fallback"}
    layout = Layout(annotations=fallback, canary_weight=50, stable_weight=50)
    async with running_fleet(tmp_path, layout, serve=serve_names) as fleet:
        assert await lines(fleet, *["x-model-variant: canary"] * 50) == ["canary"] * 50
        layout.not_ready = frozenset({"canary-us-east-0"})
        fleet.manifests.write(layout)

        async def fallen() -> bool:
            return await lines(fleet, *["x-model-variant: canary"] * 50) == ["stable"] * 50

        await eventually(fallen, what="the header's requests go to the split")
        assert set(await lines(fleet, *[""] * 200)) == {"stable"}, "and the split has handed the share over"
        rule = await fleet.get(f"{fleet.admin}/api/v1/weights/chat/1")
        arm = rule["arms"][0]
        assert (arm["decided"], arm["effective"], arm["unavailable"]) == (5_000, 0, "no ready endpoint")
        assert "the other arms get its 50 %" in rule["notes"][0]["message"]

        layout.annotations = {}
        fleet.manifests.write(layout)

        async def half() -> bool:
            counts = counted(await lines(fleet, *[""] * 200))
            return set(counts) == {"stable", "503 variant-unavailable"}

        await eventually(half, what="without the annotation the share gets 503")

        layout.not_ready = frozenset()
        fleet.manifests.write(layout)

        async def back() -> bool:
            return await lines(fleet, *["x-model-variant: canary"] * 20) == ["canary"] * 20

        await eventually(back, what="the arm is back")


async def test_an_unknown_variant_is_refused_where_the_route_says_so(tmp_path: Path) -> None:
    annotations = {"pointsman.dev/variant-header": "x-model-variant", "pointsman.dev/on-unknown-variant": "Reject"}
    async with running_fleet(tmp_path, Layout(annotations=annotations), serve=serve_names) as fleet:
        assert await lines(fleet, "x-model-variant: canary", "") == ["canary", "stable"]
        unknown = ["x-model-variant: experiment-v9", "x-model-variant: Canary", "x-model-variant:"]
        assert await lines(fleet, *unknown) == ["400 unknown-variant"] * 3
        async with fleet.session.get(f"{fleet.url}/v1/models", headers={"x-model-variant": "b"}) as response:
            assert (await response.json())["error"]["message"] == "unknown-variant"


async def test_a_user_stays_at_a_replica_as_long_as_it_serves(tmp_path: Path) -> None:
    """Soft affinity by x-user-id in the picker: without load and a common prefix, users go where they went before."""
    async with running_fleet(tmp_path, Layout(stable={"us-east": 4})) as fleet:

        async def idle() -> bool:  # by our own accounts, and by the last scrape, which counts as well
            pools = (await fleet.status())["pools"]
            endpoints = [e for pool in pools for site in pool["sites"] for e in site["endpoints"]]
            return not any(e["in_flight"] or e["running"] or e["waiting"] for e in endpoints)

        async def replica_of(number: int, text: str) -> str:
            await eventually(idle, what="nothing is in flight")
            outcomes = Outcomes()
            await ask(fleet.session, fleet.url, chat_body(text), outcomes, {"x-user-id": f"user-{number}"})
            (replica,) = outcomes.replicas
            return replica

        homes = {number: await replica_of(number, f"{number} says hello") for number in range(8)}
        assert len(set(homes.values())) > 1, "different users, different replicas"
        for number, home in homes.items():
            assert await replica_of(number, f"{number + 100} asks something else") == home
        gone = homes[0]
        await fleet.set_faults(gone, {"exit": True})
        for number in [number for number, home in homes.items() if home == gone]:
            assert await replica_of(number, "still there?") != gone


@pytest.mark.timeout(180)
async def test_an_arm_that_only_probes_find_dead_hands_its_share_over(tmp_path: Path) -> None:
    """The manifests say nothing: Envoy has no endpoint for the arm, and a few answers 503 tell us so. It comes back."""
    layout = Layout(
        stable={"us-east": 2},
        canary={"us-east": 2},
        canary_weight=50,
        stable_weight=50,
        annotations={"pointsman.dev/on-unavailable": "Redistribute"},
    )
    async with running_fleet(tmp_path, layout) as fleet:
        dead = [name for name in await fleet.replicas() if name.startswith("canary")]
        for name in dead:
            await fleet.set_faults(name, {"refuse": True})

        async def effective() -> list[float]:
            rule = await fleet.get(f"{fleet.admin}/api/v1/weights/chat/1")
            return [arm["effective"] for arm in rule["arms"]]

        async with Load(fleet.url, workers=4) as load:

            async def handed_over() -> bool:
                return await effective() == [0, 10_000]

            await eventually(handed_over, what="the others have its share", timeout_s=40)
            failed = load.outcomes.failed
            await load.progressed(100)
            # A trial may come while it is still gone; it costs a few answers and no more.
            assert load.outcomes.failed - failed <= 12, load.outcomes.failures
        for name in dead:
            await fleet.set_faults(name, None)

        async def back() -> bool:
            return await effective() == [5_000, 5_000]

        await eventually(back, what="it is tried again", timeout_s=40)
        async with Load(fleet.url, workers=4, limit=40) as after:
            await after.progressed(40)
        assert after.outcomes.failed == 0, after.outcomes.failures
        assert any(name.startswith("canary") for name in after.outcomes.replicas)
