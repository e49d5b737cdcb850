"""RolloutPolicies against a real Envoy and simulated pools: good canaries arrive, bad ones are taken back.

Counts and phases are asserted, never times. Checks are wide (`mustCatch`), so that a test needs few requests.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from pointsman.app.demo_rollout import tell
from support.fleet import Fleet, Layout, Loopback, running_fleet
from support.load import Load
from support.rollouts import apply, by_arm, command, failed_within, faults, policy, reached, rollout, share
from support.waiting import eventually

pytestmark = [pytest.mark.e2e, pytest.mark.story, pytest.mark.timeout(180)]


@pytest.fixture
async def fleet(tmp_path: Path) -> AsyncIterator[Fleet]:
    async with running_fleet(tmp_path, Layout(stable={"us-east": 2}, canary={"us-east": 2})) as running:
        yield running


async def test_a_good_canary_gets_everything(fleet: Fleet) -> None:
    async with Load(fleet.url, workers=8) as load:
        apply(fleet, policy())
        await reached(fleet, "Completed")
        assert await share(fleet) == 1.0
        async with Load(fleet.url, workers=4, limit=100) as after:
            await after.progressed(100)
        assert by_arm(after) == (100, 0)
    assert load.outcomes.failed == 0, load.outcomes.failures


async def test_a_canary_that_answers_503_is_taken_back(fleet: Fleet) -> None:
    await faults(fleet, {"error": {"status": 503, "percent": 100}})
    async with Load(fleet.url, workers=8) as load:
        apply(fleet, policy())
        found = await reached(fleet, "Aborted")
    assert "errors" in found["why"]
    assert found["step"] == 1
    assert await share(fleet) == 0.0
    assert failed_within(load, 0.1), "some requests of the first step's share, and then none"
    async with Load(fleet.url, workers=4, limit=100) as after:
        await after.progressed(100)
    assert (by_arm(after), after.outcomes.failed) == ((0, 100), 0)


async def test_a_slow_canary_is_taken_back(fleet: Fleet) -> None:
    await faults(fleet, {"latency": {"ms": 800}})
    async with Load(fleet.url, workers=8) as load:
        apply(fleet, policy())
        found = await reached(fleet, "Aborted")
    assert "ttft" in found["why"], found
    assert await share(fleet) == 0.0
    assert load.outcomes.failed == 0, load.outcomes.failures


async def test_without_traffic_it_holds(fleet: Fleet) -> None:
    apply(fleet, policy())
    found = await reached(fleet, "Holding")
    assert "too little data" in found["why"]
    before = found["changed_at"]
    await eventually(_watched(fleet, 3.0), what="three seconds of the step were watched")
    found = await rollout(fleet)
    assert (found["phase"], found["step"], found["changed_at"]) == ("Holding", 1, before)
    async with Load(fleet.url, workers=8) as load:
        await reached(fleet, "Completed")
    assert load.outcomes.failed == 0


def _watched(fleet: Fleet, seconds: float) -> Any:
    async def enough() -> bool:
        return bool((await rollout(fleet)).get("observed_s", 0) >= seconds)

    return enough


async def test_killed_in_a_step_it_goes_on_from_there(fleet: Fleet) -> None:
    steps = [{"weight": "10%", "pause": "1s"}, {"weight": "50%", "pause": "Manual"}, {"weight": "100%"}]
    async with Load(fleet.url, workers=8) as load:
        apply(fleet, policy(steps=steps))
        await reached(fleet, "Paused")
        assert await share(fleet) == 0.5
        await fleet.kill_control_plane()
        await load.progressed(200)
        await fleet.restart_control_plane()
        found = await reached(fleet, "Paused")
        assert (found["step"], found["weight"], await share(fleet)) == (2, 0.5, 0.5)
        await load.progressed(200)
        await command(fleet, "promote")
        await reached(fleet, "Completed")
    assert load.outcomes.failed == 0, load.outcomes.failures


async def test_a_person_steers(fleet: Fleet) -> None:
    await faults(fleet, None)
    steps = [{"weight": "10%", "pause": "Manual"}, {"weight": "100%"}]
    apply(fleet, policy(steps=steps, analysis={"interval": "300ms"}))
    await reached(fleet, "Paused")
    await command(fleet, "retry", status=409)
    await command(fleet, "abort", reason="changed my mind")
    found = await reached(fleet, "Aborted")
    assert "alice" in found["why"]
    assert "changed my mind" in found["why"]
    assert await share(fleet) == 0.0
    await command(fleet, "retry")
    assert (await reached(fleet, "Paused"))["attempt"] == 2
    await command(fleet, "promote")
    await reached(fleet, "Completed")
    assert await share(fleet) == 1.0
    await command(fleet, "undo", reason="worse answers")
    await reached(fleet, "Aborted")
    assert await share(fleet) == 0.0
    records = (await fleet.get(f"{fleet.admin}/api/v1/audit"))["records"]
    assert any(record["actor"] == "alice" and "worse answers" in record.get("reason", "") for record in records)


async def test_a_policy_that_goes_leaves_the_weights(fleet: Fleet) -> None:
    apply(fleet, policy(steps=[{"weight": "10%", "pause": "Manual"}, {"weight": "100%"}]))
    await reached(fleet, "Paused")
    apply(fleet, None)

    async def gone() -> bool:
        return not (await fleet.status())["configuration"]["problems"] and await share(fleet) == 0.1

    await eventually(gone, what="the weights stay without their policy")


async def test_a_shadow_gets_copies_and_no_user_sees_it(fleet: Fleet) -> None:
    apply(
        fleet,
        policy(strategy="Shadow", steps=[{"weight": "50%", "pause": "Manual"}], analysis={"interval": "300ms"}),
    )
    await reached(fleet, "Paused")
    async with Load(fleet.url, workers=4, limit=100) as load:
        await load.progressed(100)
    assert (by_arm(load), load.outcomes.failed) == ((0, 100), 0)

    async def copied() -> int:
        found = await fleet.replicas()
        return sum(r["requests_received"] for name, r in found.items() if name.startswith("canary"))

    async def about_half() -> bool:
        return 25 <= await copied() <= 75  # five standard deviations

    await eventually(about_half, what="the canary got copies")
    await faults(fleet, {"error": {"status": 503, "percent": 100}})
    async with Load(fleet.url, workers=4, limit=60) as load:
        await load.progressed(60)
    assert (by_arm(load), load.outcomes.failed) == ((0, 60), 0)
    await command(fleet, "promote")
    assert (await reached(fleet, "Completed"))["weight"] == 0

    async def copies_of(count: int) -> int:
        before = await copied()
        async with Load(fleet.url, workers=4, limit=count) as load:
            await load.progressed(count)
        return await copied() - before

    async def over() -> bool:  # the gateway hears of it when the rollout has ended
        return await copies_of(20) == 0

    await eventually(over, what="the gateway mirrors no more")
    assert await copies_of(60) == 0, "nothing is mirrored any more"


async def test_the_demo_tells_its_story(tmp_path: Path) -> None:
    said: list[str] = []
    network = Loopback().address().rpartition(".")[0]
    assert await tell(tmp_path, said.append, network=network), said
    story = "\n".join(said)
    assert "Completed   v2 100 %" in story
    assert "Aborted     v3   0 %" in story
    assert "check errors failed" in story


async def test_a_canary_in_a_crash_loop_is_taken_back(fleet: Fleet) -> None:
    """Gone, back, gone: what its users get is 503 by Envoy, which is as bad as 503 by itself."""
    names = [name for name in await fleet.replicas() if name.startswith("canary")]

    async def crash() -> None:
        for turn in itertools.count():
            for name in names:
                await fleet.set_faults(name, {"exit": True} if turn % 2 == 0 else None)
            await asyncio.sleep(0.5)

    crashing = asyncio.create_task(crash())
    try:
        async with Load(fleet.url, workers=8) as load:
            apply(fleet, policy())
            found = await reached(fleet, "Aborted")
    finally:
        crashing.cancel()
    assert "errors" in found["why"]
    assert (found["step"], await share(fleet)) == (1, 0.0)
    assert failed_within(load, 0.1), load.outcomes


@pytest.mark.parametrize(
    ("on_no_data", "phase"), [("Hold", "Holding"), ("Abort", "Aborted"), ("Continue", "Completed")]
)
async def test_without_an_answer_from_outside_it_does_what_the_policy_says(
    fleet: Fleet, on_no_data: str, phase: str
) -> None:
    """A Prometheus and a judge that nobody can reach: no data is neither good nor bad."""
    nobody = f"http://127.0.0.1:{Loopback().free_port('127.0.0.1')}"
    checks = [
        {"name": "gpu", "prometheus": {"url": nobody, "query": "max(gpu_errors)", "max": 0, "timeout": "500ms"}},
        {"name": "judge", "webhook": {"url": nobody, "timeout": "500ms"}},
    ]
    steps = [{"weight": "10%", "pause": "1s"}, {"weight": "100%", "pause": "1s"}]
    apply(fleet, policy(steps=steps, analysis={"interval": "300ms", "onNoData": on_no_data, "checks": checks}))
    found = await reached(fleet, phase)
    if phase == "Completed":
        records = (await fleet.get(f"{fleet.admin}/api/v1/audit"))["records"]
        assert any("without enough data" in record.get("reason", "") for record in records), "and it says so"
    else:
        assert "too little data: gpu: " in found["why"]
        assert found["step"] == 1
