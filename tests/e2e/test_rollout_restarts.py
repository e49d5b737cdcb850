"""The control plane is killed in every phase of a rollout: it goes on, and no gateway sees another weight."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from support.fleet import Fleet, Layout, running_fleet
from support.load import Load
from support.rollouts import Witness, apply, by_arm, command, faults, policy, reached, rollout, share, witness
from support.waiting import eventually

pytestmark = [pytest.mark.e2e, pytest.mark.story, pytest.mark.timeout(180)]

STEPS = [
    {"weight": "10%", "pause": "1h"},
    {"weight": "50%", "pause": "Manual"},
    {"weight": "100%", "pause": "1h"},
]


async def survives(fleet: Fleet, seen: Witness, phase: str, weight: float) -> None:
    """Kill it, start it again: the same phase, and whatever gateways are sent is the same weight."""
    await eventually(lambda: seen.shares[-1:] == [weight], what="gateways have the weight")
    streams, sent = seen.streams, len(seen.shares)
    before = await rollout(fleet)
    assert (before["phase"], before["weight"]) == (phase, weight)
    await fleet.kill_control_plane()
    await fleet.restart_control_plane()
    await eventually(lambda: seen.streams > streams, what="the witness is back")
    await eventually(_envoy_is_back(fleet), what="Envoy is back")
    after = await reached(fleet, phase)
    await eventually(_watched(fleet, after["observed_s"]), what="the rollout is led again")
    assert set(seen.shares[sent:]) == {weight}, "a weight jumped"
    assert await share(fleet) == weight
    # Not changed_at: killed between the end of a step and its file, the end is found anew.
    kept = ("step", "weight", "attempt", "started_at")
    assert [(await rollout(fleet))[name] for name in kept] == [before[name] for name in kept]


def _led(fleet: Fleet) -> object:
    async def led() -> bool:
        return bool(await rollout(fleet))

    return led


def _watched(fleet: Fleet, seconds: float) -> object:
    async def more() -> bool:
        found = await rollout(fleet)
        return found["phase"] in {"Completed", "Aborted"} or bool(found["observed_s"] > seconds)

    return more


async def test_killed_in_every_phase(tmp_path: Path) -> None:
    async with (
        running_fleet(tmp_path, Layout(stable={"us-east": 2}, canary={"us-east": 2})) as fleet,
        witness(fleet.control_plane_target) as seen,
        Load(fleet.url, workers=4, limit=50_000, timeout_s=30) as load,
    ):
        apply(fleet, policy(steps=STEPS))
        await reached(fleet, "Progressing")
        await eventually(lambda: 0.1 in seen.shares, what="the first step")
        await survives(fleet, seen, "Progressing", 0.1)
        await command(fleet, "promote")
        await reached(fleet, "Paused")
        await survives(fleet, seen, "Paused", 0.5)
        await command(fleet, "promote")
        await reached(fleet, "Promoting")
        await survives(fleet, seen, "Promoting", 1.0)
        await command(fleet, "promote")
        await reached(fleet, "Completed")
        await survives(fleet, seen, "Completed", 1.0)
        # An undo right after a restart: the gateways that are not back yet still have the old weights.
        await fleet.kill_control_plane()
        await fleet.restart_control_plane()
        await eventually(_led(fleet), what="the rollout is led")
        await command(fleet, "undo", reason="worse answers")
        await reached(fleet, "Aborted")
        load.outcomes.replicas.clear()
        await load.progressed(40)
        assert all(name.startswith("stable") for name in load.outcomes.replicas), load.outcomes.replicas
        await survives(fleet, seen, "Aborted", 0.0)
        await load.progressed(40)
        assert set(seen.shares) == {0.0, 0.1, 0.5, 1.0}
        assert load.outcomes.failed == 0, load.outcomes.failures
    assert all(name.startswith("stable") for name in load.outcomes.replicas), load.outcomes.replicas


async def test_killed_while_a_check_fails_and_while_it_rolls_back(tmp_path: Path) -> None:
    """A bad canary whose check is forgiven for a while; then an abort that a frozen gateway has not acknowledged."""
    checks = [{"name": "errors", "metric": "errorRate", "max": "+5pp", "mustCatch": "+40pp", "failureLimit": 1_000}]
    async with (
        running_fleet(tmp_path, Layout(stable={"us-east": 2}, canary={"us-east": 2})) as fleet,
        witness(fleet.control_plane_target) as seen,
    ):
        await faults(fleet, {"error": {"status": 500}})
        apply(fleet, policy(steps=STEPS[1:], analysis={"interval": "300ms", "checks": checks}))
        async with Load(fleet.url, workers=4, limit=50_000) as load:
            await reached(fleet, "Paused")
            await eventually(_verdict(fleet, "Bad"), what="the check fails")
            await survives(fleet, seen, "Paused", 0.5)
            await eventually(_verdict(fleet, "Bad"), what="the check still fails: its evidence was kept")
        os.kill(fleet.envoy.child.pid, signal.SIGSTOP)
        try:
            await command(fleet, "abort", reason="it fails")
            assert (await reached(fleet, "Aborting"))["weight"] == 0
            sent = len(seen.shares)
            await fleet.kill_control_plane()
            await fleet.restart_control_plane()
            found = await reached(fleet, "Aborting", "Aborted")
            assert (found["weight"], await share(fleet)) == (0, 0)
        finally:
            os.kill(fleet.envoy.child.pid, signal.SIGCONT)
        found = await reached(fleet, "Aborted")
        assert "it fails" in found["why"]
        assert set(seen.shares[sent:]) <= {0.0}
        await eventually(_envoy_is_back(fleet), what="the gateway that was frozen follows")
        async with Load(fleet.url, workers=4, limit=100) as load:
            await load.progressed(100)
        assert (by_arm(load), load.outcomes.failed) == ((0, 100), 0)


def _verdict(fleet: Fleet, verdict: str) -> object:
    async def said() -> bool:
        return any(check["verdict"] == verdict for check in (await rollout(fleet))["checks"])

    return said


def _envoy_is_back(fleet: Fleet) -> object:
    async def back() -> bool:
        nodes = (await fleet.status())["xds"]["nodes"]
        return any(node["node"] != "witness" and node["settled"] for node in nodes)

    return back
