"""Weights set at run time, through a real Envoy: exact, at once, without a lost request, and kept."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from pointsman.core.audit import verify_file
from pointsman.core.buckets import arm_of, bucket
from pointsman.sim.v1.generate_pb2 import ChatRequest, GenerateResponse
from support.fast import ask_all, counted, serve_names, users
from support.fleet import MODEL, POINTSMAN, Fleet, Layout, backend, running_fleet
from support.load import Load, chat_body
from support.waiting import eventually

pytestmark = pytest.mark.e2e

RULE = "HTTPRoute/default/chat/1"


async def pointsman(fleet: Fleet, *words: str, code: int = 0) -> str:
    """What a command prints (standard error where it fails)."""
    process = await asyncio.create_subprocess_exec(
        str(POINTSMAN), *words, "--admin", fleet.admin,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    output, said = await process.communicate()
    assert process.returncode == code, (process.returncode, output.decode(), said.decode())
    return (said if code == 1 else output).decode()


async def set_weights(fleet: Fleet, canary: int, stable: int, *, rule: str = "chat/1", **more: Any) -> dict[str, Any]:
    """Set the split of the route and wait for Envoy."""
    body = {"weights": {"canary": canary, "stable": stable}, "wait": True, **more}
    async with fleet.session.put(f"{fleet.admin}/api/v1/weights/{rule}", json=body) as response:
        answer: dict[str, Any] = await response.json()
        assert response.status == 200, answer
    assert [acks["done"] for acks in answer["acks"]] == [True], answer
    return answer


@pytest.fixture
async def fast(tmp_path: Path) -> AsyncIterator[Fleet]:
    async with running_fleet(tmp_path, serve=serve_names) as fleet:
        yield fleet


async def ask(fleet: Fleet, headers: list[str]) -> list[str]:
    return await ask_all(fleet.manifests.gateway_address, fleet.manifests.http_port, headers)


@pytest.mark.timeout(400)
@pytest.mark.parametrize(
    "steps",
    [[(5, 0.60)], pytest.param([(1, 0.27), (20, 1.10), (50, 1.38)], marks=pytest.mark.story)],
    ids=["one", "all"],
)
async def test_a_split_is_as_exact_as_chance_allows(fast: Fleet, steps: list[tuple[int, float]]) -> None:
    """20,000 requests at each step; the bounds are 3.89 standard deviations (design R1)."""
    saw = 0
    for percent, bound in steps:
        await set_weights(fast, percent, 100 - percent)
        counts = counted(await ask(fast, [""] * 20_000))
        assert set(counts) <= {"canary", "stable"}, counts
        assert abs(counts["canary"] / 200 - percent) <= bound, counts
        saw += counts["canary"]

    async def counted_by_the_control_plane() -> bool:
        return await exposure(fast, "canary") == saw

    await eventually(counted_by_the_control_plane, what="who saw the canary is counted")


async def exposure(fleet: Fleet, pool: str) -> float:
    """Good answers of an arm of the split, as the metrics tell."""
    async with fleet.session.get(f"{fleet.admin}/metrics") as response:
        text = await response.text()
    labels = f'outcome="ok",pool="default/{pool}",rule="{RULE}"'
    return sum(
        float(line.rpartition(" ")[2]) for line in text.splitlines() if f"_arm_requests_total{{{labels}}}" in line
    )


@pytest.mark.story
@pytest.mark.timeout(240)
async def test_users_stay_and_only_move_towards_the_canary(tmp_path: Path) -> None:
    """5,000 users, asked twice at each step; and each gets the arm that is computed for them."""
    layout = Layout(annotations={"pointsman.dev/sticky-header": "x-user-id", "pointsman.dev/sticky-salt": "chat-1"})
    async with running_fleet(tmp_path, layout, serve=serve_names) as fleet:
        before: set[int] = set()
        for percent in (1, 5, 20, 50, 100):
            await set_weights(fleet, percent, 100 - percent)
            first, second = [await ask(fleet, users(5_000)) for _ in range(2)]
            assert first == second, "nobody flips within a step"
            canary = {number for number, arm in enumerate(first) if arm == "canary"}
            assert set(first) <= {"canary", "stable"}
            assert before <= canary, "nobody moves back"
            weights = [percent * 100, 10_000 - percent * 100]
            assert canary == {n for n in range(5_000) if arm_of(bucket(f"user-{n}", "chat-1"), weights) == 0}
            before = canary
        assert len(before) == 5_000
        await set_weights(fleet, 0, 100)
        assert set(await ask(fleet, users(500))) == {"stable"}, "an abort takes everybody back"


@pytest.mark.story
@pytest.mark.timeout(240)
async def test_header_requests_are_right_while_weights_change(tmp_path: Path) -> None:
    """2,500 for each of two variants, 5,000 that name none, and every change moves half of the split.

    `bench/rollout/weight_churn.py` asks 20,000."""
    named = [{"headers": [{"name": "x-model-variant", "value": "stable"}]}]
    other = {"matches": named, "backendRefs": [backend("stable")]}
    async with running_fleet(tmp_path, Layout(rules=[other]), serve=serve_names) as fleet:
        stop = asyncio.Event()
        changes = 0

        async def churn() -> None:
            nonlocal changes
            while not stop.is_set():
                changes += 1
                answer = await set_weights(fleet, 25 + changes % 2 * 50, 75 - changes % 2 * 50, rule="chat/2")
                assert answer["changed"]
                await asyncio.sleep(0.05)  # twenty changes a second: the machine has requests to answer, too

        await set_weights(fleet, 25, 75, rule="chat/2")
        churning = asyncio.create_task(churn())
        kinds = ["x-model-variant: canary", "x-model-variant: stable", "", "x-model-variant: Canary"]
        asked = kinds * 2_500
        answers = await ask(fleet, asked)
        stop.set()
        await churning
    assert changes > 1
    pairs = list(zip(asked, answers, strict=True))
    assert counted(arm for kind, arm in pairs if kind == kinds[0]) == {"canary": 2_500}
    assert counted(arm for kind, arm in pairs if kind == kinds[1]) == {"stable": 2_500}
    neither = counted(arm for kind, arm in pairs if kind in kinds[2:])
    assert set(neither) == {"canary", "stable"}, neither


async def test_weights_change_under_load_without_a_lost_request_or_a_broken_stream(tmp_path: Path) -> None:
    """100 changes while requests run and SSE and gRPC streams are open."""
    layout = Layout(grpc={"us-east": 1})
    async with running_fleet(tmp_path, layout) as fleet:
        for replica in await fleet.replicas():
            if not replica.startswith("grpc"):
                await fleet.set_faults(replica, {"stall": {"where": "mid", "after_tokens": 3}})
        streams = [asyncio.create_task(read_stream(fleet)) for _ in range(6)]
        await streams_run(fleet, 6)
        for replica in await fleet.replicas():
            if not replica.startswith("grpc"):
                await fleet.set_faults(replica, None)
        async with grpc.aio.insecure_channel(fleet.grpc_target) as channel:
            chat = channel.stream_stream(
                "/pointsman.sim.v1.Generator/Chat",
                request_serializer=ChatRequest.SerializeToString,
                response_deserializer=GenerateResponse.FromString,
            )()
            before = await fleet.envoy_stats("listener_manager.")
            async with Load(fleet.url, workers=4) as load:
                for turn in range(100):
                    await set_weights(fleet, turn % 10, 10 - turn % 10)
                    if turn % 25 == 0:
                        await load.progressed(1)
                        await chat.write(ChatRequest(model=MODEL, text=f"turn {turn}", max_tokens=1))
                        assert isinstance(await chat.read(), GenerateResponse)
            await chat.done_writing()
            assert await chat.read() is grpc.aio.EOF
            assert await chat.code() is grpc.StatusCode.OK
        assert load.outcomes.failed == 0, load.outcomes.failures
        assert all(text.endswith("data: [DONE]") for text in await asyncio.gather(*streams))
        after = await fleet.envoy_stats("listener_manager.")
        assert after["listener_manager.listener_modified"] == before["listener_manager.listener_modified"]
        assert verify_file(tmp_path / "state" / "audit.jsonl").problem == ""


async def read_stream(fleet: Fleet) -> str:
    body = chat_body("a long story", stream=True, max_tokens=400)
    async with fleet.session.post(f"{fleet.url}/v1/chat/completions", json=body) as response:
        assert response.status == 200
        return (await response.text()).rstrip()


async def streams_run(fleet: Fleet, count: int) -> None:
    async def running() -> bool:
        replicas = (await fleet.replicas()).values()
        return sum(replica["requests_running"] for replica in replicas) >= count

    await eventually(running, what="the streams are open")


async def test_the_command_line_sets_shows_and_clears(fast: Fleet) -> None:
    told = await pointsman(fast, "weights", "set", "chat", "stable=90", "canary=10", "--wait", "--reason", "first")
    assert f"{RULE} changed (version 1)" in told
    assert "default/canary: 0 % → 10 %" in told
    assert re.search(r"default/main: 1 gateway has it, the last after [0-9.]+ ms", told)
    shown = await pointsman(fast, "weights", "get", "default/chat/1")
    assert "version 1, weights of the operator" in shown
    assert re.search(r"10 %  default/canary  \(manifest 0 %\)", shown)

    refused = await pointsman(fast, "weights", "set", "chat/1", "stable=1", "canary=1", "--if-version", "0", code=1)
    assert "has version 1, not 0" in refused
    assert "no weight for default/stable" in await pointsman(fast, "weights", "set", "chat", "canary=1", code=1)
    assert "no rule is called chatt" in await pointsman(fast, "weights", "get", "chatt", code=1)

    dry = await pointsman(fast, "weights", "set", "chat", "stable=50%", "canary=50%", "--dry-run")
    assert "would change" in dry and "40 % of the traffic goes elsewhere" in dry
    assert "10 % → 0 %" in await pointsman(fast, "weights", "clear", "chat", "--wait")
    everything = json.loads(await pointsman(fast, "weights", "get", "-o", "json"))
    rule = next(rule for rule in everything["rules"] if rule["rule"] == RULE)
    assert (rule["version"], rule["source"]) == (0, "manifest")

    async def acks_are_logged() -> bool:
        actions = [record["action"] for record in await records(fast)]
        return actions.count("weights.acked") == 2

    await eventually(acks_are_logged, what="both changes were acknowledged")
    found = await records(fast)
    changes = [record for record in found if record["action"] in {"weights.set", "weights.clear"}]
    assert [record["action"] for record in changes] == ["weights.set", "weights.clear"]
    assert changes[0]["reason"] == "first"
    assert changes[0]["after"]["weights"] == {"default/canary": 1_000, "default/stable": 9_000}
    assert changes[1]["before"]["weights"] == changes[0]["after"]["weights"]
    acked = next(record for record in found if record["action"] == "weights.acked")
    assert acked["evidence"]["default/main"]["done"] is True
    assert len(acked["evidence"]["default/main"]["acked_ms"]) == 1


async def records(fleet: Fleet) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = (await fleet.get(f"{fleet.admin}/api/v1/audit"))["records"]
    return found


async def test_weights_survive_a_killed_control_plane_and_an_edit_of_the_manifests(tmp_path: Path) -> None:
    async with running_fleet(tmp_path, serve=serve_names) as fleet:
        await set_weights(fleet, 100, 0)
        await fleet.kill_control_plane()
        assert set(await ask(fleet, [""] * 300)) == {"canary"}, "gateways keep what they have"
        asking = asyncio.create_task(ask(fleet, [""] * 4_000))
        await fleet.restart_control_plane()

        async def connected() -> bool:
            return bool((await fleet.status())["xds"]["nodes"])

        await eventually(connected, what="the gateway is back")
        assert set(await asking) == {"canary"}, "not one request saw the weights of the manifest"
        assert set(await ask(fleet, [""] * 1_000)) == {"canary"}
        fleet.manifests.write(Layout(stable_weight=55, canary_weight=45))

        async def read() -> bool:
            return weights_of(await fleet.get(f"{fleet.admin}/api/v1/weights/chat/1"), "declared") == [4_500, 5_500]

        await eventually(read, what="the edit was read")
        assert weights_of(await fleet.get(f"{fleet.admin}/api/v1/weights/chat/1"), "effective") == [10_000, 0]
        assert set(await ask(fleet, [""] * 300)) == {"canary"}


def weights_of(rule: dict[str, Any], which: str) -> list[int]:
    return [arm[which] for arm in rule["arms"]]


async def test_a_gateway_that_does_not_answer_is_named(fast: Fleet) -> None:
    """Envoy is stopped: the change is made, the command says which gateway has not got it, and ends with 3."""
    os.kill(fast.envoy.child.pid, signal.SIGSTOP)
    try:
        told = await pointsman(
            fast, "weights", "set", "chat", "stable=1", "canary=1", "--wait", "--timeout", "1", code=3
        )
    finally:
        os.kill(fast.envoy.child.pid, signal.SIGCONT)
    assert re.search(r"default/main: .* has not answered", told)
    await set_weights(fast, 1, 1)
    assert {"canary", "stable"} == set(await ask(fast, [""] * 200))
