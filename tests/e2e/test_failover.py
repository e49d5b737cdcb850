"""Failover with a real Envoy: a person evacuates a site, and what Envoy cannot see makes the controller leave one."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from support.fleet import Fleet, Layout, running_fleet
from support.load import Load
from support.waiting import eventually

pytestmark = pytest.mark.e2e

SITES = {"us-east": 2, "eu-west": 2}
LAYOUT = Layout(stable=SITES, canary={"us-east": 1})


async def policy(fleet: Fleet, pool: str = "default/stable") -> dict[str, Any]:
    async with fleet.session.get(f"{fleet.admin}/api/v1/failover") as response:
        found: list[dict[str, Any]] = (await response.json())["policies"]
    return next(one for one in found if pool in one["pools"])


async def site(fleet: Fleet, name: str) -> dict[str, Any]:
    found = await policy(fleet)
    return next(one for one in found["sites"] if one["site"] == name)


async def act(fleet: Fleet, action: str, **body: Any) -> tuple[int, Any]:
    async with fleet.session.post(f"{fleet.admin}/api/v1/failover/{action}", json=body) as response:
        return response.status, await response.json()


async def sites_served(load: Load, count: int) -> set[str]:
    load.outcomes.replicas.clear()
    await load.progressed(count)
    return {"us-east" if "us-east" in replica else "eu-west" for replica in load.outcomes.replicas}


async def test_an_evacuated_site_gets_nothing_and_nobody_fails(tmp_path: Path) -> None:
    async with running_fleet(tmp_path, LAYOUT) as fleet, Load(fleet.url, workers=8, stream=True) as load:
        await load.progressed(100)
        status, told = await act(fleet, "evacuate", site="us-east", reason="fire drill", actor="alice", wait_s=10)
        assert status == 200
        assert all(one["programmed"] for one in told["policies"])
        await load.progressed(16)  # what was on its way there
        assert await sites_served(load, 100) == {"eu-west"}
        assert (await site(fleet, "us-east"))["state"] == "Evacuated"

        async def recovered() -> bool:
            last = (await policy(fleet))["last"]
            return bool(last) and last["outcome"] == "recovered" and last["rto_s"] is not None

        await eventually(recovered, what="the record is closed")
        record = (await policy(fleet))["last"]
        assert (record["trigger"], record["site"], record["failed"], record["by"]) == (
            "operator",
            "us-east",
            0,
            "alice",
        )
        assert record["programmed_at_s"] >= record["decided_at_s"]

        status, _ = await act(fleet, "activate", site="us-east", force=True, wait_s=10)
        assert status == 200
        assert "us-east" in await sites_served(load, 200)
        assert load.outcomes.failed == 0, load.outcomes.failures
        async with fleet.session.get(f"{fleet.admin}/api/v1/audit") as response:
            records = (await response.json())["records"]
        acts = [one for one in records if one["action"] == "failover: evacuated"]
        assert {(one["actor"], one["reason"]) for one in acts} == {("alice", "fire drill")}


async def test_the_last_site_is_not_evacuated(tmp_path: Path) -> None:
    async with running_fleet(tmp_path, LAYOUT) as fleet:
        assert (await act(fleet, "evacuate", site="us-east", reason="first"))[0] == 200
        status, told = await act(fleet, "evacuate", site="eu-west", reason="second")
        assert status == 409
        assert "eu-west" in told["error"]
        assert (await act(fleet, "evacuate", site="eu-west"))[0] == 400, "without a reason"
        assert (await act(fleet, "evacuate", site="mars", reason="wrong"))[0] == 409


@pytest.mark.parametrize("fault", [{"latency": {"ms": 900}}, {"stall": {"where": "before"}}], ids=["latency", "stall"])
async def test_a_site_that_only_answers_slowly_is_left(tmp_path: Path, fault: dict[str, Any]) -> None:
    """Envoy sees no error: only the controller can tell. Late requests are served; of those that stalled after their
    headers each client has lost at most one."""
    workers = 8
    async with (
        running_fleet(tmp_path, LAYOUT) as fleet,
        Load(fleet.url, workers=workers, stream=True, timeout_s=20) as load,
    ):
        await load.progressed(400)  # a baseline
        for index in range(2):
            await fleet.set_faults(f"stable-us-east-{index}", fault)

        async def left() -> bool:
            return (await site(fleet, "us-east"))["state"] in {"Failed", "HoldDown"}

        await eventually(left, what="us-east is left", timeout_s=30)
        for index in range(2):
            await fleet.set_faults(f"stable-us-east-{index}", None)
        await load.progressed(30)
        assert await sites_served(load, 100) == {"eu-west"}
        last = (await policy(fleet))["last"]
        assert last["trigger"] in {"latency", "stall"}
        assert last["evidence"]
        if "latency" in fault:
            assert load.outcomes.failed == 0, load.outcomes.failures
        else:
            assert load.outcomes.failures.keys() <= {"TimeoutError"}
            assert load.outcomes.failed <= workers


async def test_what_was_decided_outlives_kill_9(tmp_path: Path) -> None:
    """Nobody sees the site come back for a moment when the control plane starts again."""
    async with running_fleet(tmp_path, LAYOUT) as fleet, Load(fleet.url, workers=4) as load:
        await load.progressed(20)
        assert (await act(fleet, "drain", site="us-east", reason="kernel update", wait_s=10))[0] == 200
        await load.progressed(10)
        load.outcomes.replicas.clear()
        await load.progressed(20)
        await fleet.kill_control_plane()
        await load.progressed(40)
        await fleet.restart_control_plane()
        await load.progressed(100)
        assert all("eu-west" in replica for replica in load.outcomes.replicas)
        assert (await site(fleet, "us-east"))["state"] == "Drained"
        assert load.outcomes.failed == 0, load.outcomes.failures


async def test_a_reclaimed_endpoint_gets_nothing_new_and_its_stream_ends(tmp_path: Path) -> None:
    async with running_fleet(tmp_path, LAYOUT) as fleet, Load(fleet.url, workers=4) as load:
        await load.progressed(50)
        victim = load.outcomes.replicas.most_common(1)[0][0]
        address, port = fleet.manifests.endpoint(victim)
        body = {
            "model": "llama-3-8b",
            "messages": [{"role": "user", "content": "long"}],
            "stream": True,
            "max_tokens": 300,
        }
        status, _ = await act(
            fleet, "drain", endpoint=f"{address}:{port}", reason="spot reclaim", deadline_s=120, wait_s=10
        )
        assert status == 200
        await load.progressed(8)
        load.outcomes.replicas.clear()
        await load.progressed(80)
        assert victim not in load.outcomes.replicas
        assert load.outcomes.failed == 0, load.outcomes.failures
        async with fleet.session.post(f"{fleet.url}/v1/chat/completions", json=body) as response:
            lines = [line async for line in response.content if line.startswith(b"data: ")]
        assert lines[-1] == b"data: [DONE]\n"
        assert victim not in json.loads(lines[0].removeprefix(b"data: "))["system_fingerprint"]


async def test_a_state_folder_that_cannot_be_written_stops_no_failover(tmp_path: Path) -> None:
    """As with a full disk: what is decided holds, and the status says that it is not kept."""
    async with running_fleet(tmp_path, LAYOUT) as fleet, Load(fleet.url, workers=4) as load:
        await load.progressed(20)
        folder = tmp_path / "state" / "failover"
        folder.rename(tmp_path / "away")
        folder.write_text("no folder")
        status, told = await act(fleet, "evacuate", site="us-east", reason="the disk is full, too", wait_s=10)
        assert status == 200
        await load.progressed(8)
        assert await sites_served(load, 60) == {"eu-west"}
        assert load.outcomes.failed == 0, load.outcomes.failures
        assert any("failover" in one["problem"] for one in told["policies"])


def failover_policy(**spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "pointsman.dev/v1alpha1",
        "kind": "FailoverPolicy",
        "metadata": {"name": "stable"},
        "spec": {
            "targetRefs": [{"group": "inference.networking.k8s.io", "kind": "InferencePool", "name": "stable"}],
            **spec,
        },
    }


STANDBY = Layout(
    stable={"us-east": 2, "eu-west": 1},
    canary={"us-east": 1},
    capacity={"eu-west": 4},
    documents=[
        failover_policy(tiers=[{"sites": ["us-east"]}, {"sites": ["eu-west"], "role": "Standby", "warmUp": "1s"}])
    ],
)


async def test_a_standby_takes_over_and_is_not_melted(tmp_path: Path) -> None:
    """It serves nothing before. After the loss of the primary it carries its four requests at once, the rest gets 429
    with Retry-After: nobody sees a 5xx."""
    async with running_fleet(tmp_path, STANDBY) as fleet:
        # As long as real ones: what ended is counted as running until the access log tells, some 50 ms later.
        await fleet.set_faults("stable-eu-west-0", {"latency": {"ms": 300}})
        async with Load(fleet.url, workers=2) as load:
            await load.progressed(100)
            assert await sites_served(load, 60) == {"us-east"}
            for index in range(2):
                await fleet.set_faults(f"stable-us-east-{index}", {"refuse": True})
            await eventually(lambda: _state_is(fleet, "us-east", "Failed"), what="us-east is known to be down")
            await eventually(lambda: _carries(fleet, 4), what="eu-west is warm")
            assert load.outcomes.failures.keys() <= {"429 at-capacity"}, "while it warms up it carries less"
            load.outcomes.failures.clear()
            await load.progressed(2)
            assert await sites_served(load, 40) == {"eu-west"}
            assert load.outcomes.failed == 0, load.outcomes.failures
        async with Load(fleet.url, workers=16) as load:
            seen = 0.0
            # Until answers came: hundreds are refused in the time that one takes.
            while load.outcomes.ok < 12:
                await load.progressed(1)
                seen = max(seen, await _in_flight(fleet, "eu-west"))
            assert 0 < seen <= 4
            kinds = {kind.split()[0] for kind in load.outcomes.failures}
            assert kinds <= {"429"}, load.outcomes.failures
            assert load.outcomes.failures["429 at-capacity"] > 0


async def _in_flight(fleet: Fleet, where: str) -> float:
    """Requests that pickers count at a site of the pool."""
    pools = (await fleet.status())["pools"]
    groups = next(pool["sites"] for pool in pools if pool["name"] == "default/stable")
    return float(sum(one["in_flight"] for group in groups if group["site"] == where for one in group["endpoints"]))


async def _state_is(fleet: Fleet, name: str, state: str) -> bool:
    return bool((await site(fleet, name))["state"] == state)


async def _carries(fleet: Fleet, count: int) -> bool:
    return bool((await site(fleet, "eu-west"))["max_concurrent"] == count)


def operation(name: str, action: str, **spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "pointsman.dev/v1alpha1",
        "kind": "TrafficOperation",
        "metadata": {"name": name},
        "spec": {"action": action, "reason": "quarterly test", "requestedBy": "bob", **spec},
    }


async def test_a_traffic_operation_is_done_once_and_ends_by_itself(tmp_path: Path) -> None:
    """A manifest drains a site for some seconds. A restart does not repeat it."""
    async with running_fleet(tmp_path, LAYOUT) as fleet, Load(fleet.url, workers=4) as load:
        await load.progressed(20)
        target = {"kind": "Site", "name": "us-east"}
        fleet.manifests.write(replace(LAYOUT, documents=[operation("test", "Drain", target=target, ttl="8s")]))
        await eventually(lambda: _state_is(fleet, "us-east", "Drained"), what="us-east is drained")
        await load.progressed(4)
        assert await sites_served(load, 40) == {"eu-west"}

        async def over() -> bool:
            found = (await fleet.status())["operations"]
            return [(one["name"], one["status"], one["by"]) for one in found] == [("default/test", "Ended", "bob")]

        await eventually(over, what="its time is up")
        assert (await site(fleet, "us-east"))["state"] in {"Ramping", "Healthy"}
        await fleet.kill_control_plane()
        await fleet.restart_control_plane()
        await eventually(over, what="it is remembered")
        assert (await site(fleet, "us-east"))["state"] in {"Ramping", "Healthy"}
        assert load.outcomes.failed == 0, load.outcomes.failures
