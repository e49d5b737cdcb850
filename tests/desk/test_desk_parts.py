"""Parts of the desk without processes: the guard of loopback, the tree, traffic in slots, copying manifests."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from pointsman.app.admin_host import host_name, loopback_host
from pointsman.app.manifest_copy import CopyError, copy_manifests, to_remove
from pointsman.app.traffic import MOST_KEYS, MOST_SERIES, SLOT_S, SLOTS, Traffic
from pointsman.app.tree import SILENT_S, fleet_tree
from pointsman.core.clock import ManualClock
from pointsman.core.model import Endpoint, Plan, Pool, SiteGroup
from pointsman.extproc import Feedback

Client = TestClient[web.Request, web.Application]


@pytest.fixture
async def guarded() -> AsyncIterator[Client]:
    async def answer(_: web.Request) -> web.Response:
        return web.Response(text="secret")

    application = web.Application(middlewares=[loopback_host])
    application.router.add_get("/api/v1/status", answer)
    async with TestClient(TestServer(application)) as client:
        yield client


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:18001", 200),
        ("127.9.9.9", 200),
        ("localhost:18001", 200),
        ("LOCALHOST", 200),
        ("[::1]:18001", 200),
        ("evil.example:18001", 403),
        ("127.0.0.1.evil.example", 403),
        ("localhost.evil.example", 403),
        ("10.0.0.5:18001", 403),
        ("[::ffff:10.0.0.1]", 403),
        ("0.0.0.0", 403),
        ("localhost@evil.example", 403),
    ],
)
async def test_a_page_cannot_read_loopback_under_a_name_of_its_own(guarded: Client, host: str, status: int) -> None:
    async with guarded.get("/api/v1/status", headers={"host": host}) as response:
        assert response.status == status
        assert ("secret" in await response.text()) is (status == 200)


def test_host_names_are_read() -> None:
    assert [host_name(host) for host in ("a:1", "[::1]:2", "[::1]", "A")] == ["a", "::1", "::1", "a"]


def plan() -> Plan:
    def endpoint(name: str, site: str, number: int) -> Endpoint:
        return Endpoint(name=name, address=f"10.0.0.{number}", port=80, site=site)

    near, far = endpoint("e1", "near", 1), endpoint("e2", "far", 2)
    groups = (
        SiteGroup(site="near", priority=0, weight=1, endpoints=(near,)),
        SiteGroup(site="far", priority=1, weight=1, endpoints=(far,)),
    )
    return Plan(pools=(Pool(name="default/llama", groups=groups),))


def entry(upstream: str, *, status: int = 200, ended: bool = True, cluster: str = "default/llama") -> Feedback:
    return Feedback(pick_id="", ended=ended, cluster=cluster, upstream=upstream, status=status)


def test_traffic_is_counted_in_slots_and_forgotten() -> None:
    clock = ManualClock(monotonic_s=1_000.0)
    found = plan()
    traffic = Traffic(clock, lambda: found)
    for _ in range(3):
        traffic.feedback(entry("10.0.0.1:80"))
    traffic.feedback(entry("10.0.0.1:80", ended=False))
    clock.advance(SLOT_S)
    traffic.feedback(entry("10.0.0.2:80", status=503))
    traffic.feedback(entry("10.9.9.9:1"))
    traffic.feedback(entry("", status=503))
    status = traffic.status()
    assert status["requests"][-2:] == [3, 3]
    assert status["failed"][-2:] == [0, 2]
    assert {name: counts[-2:] for name, counts in status["sites"].items()} == {
        "near": [3, 0],
        "far": [0, 1],
        "other": [0, 2],
    }
    assert status["endpoints"]["default/llama e1"][-2] == 3
    assert all(len(counts) == SLOTS for counts in status["pools"].values())
    assert traffic.recent()["default/llama", "10.0.0.1:80"] == 3
    clock.advance(SLOT_S * 3)
    assert not traffic.recent()
    clock.advance(SLOT_S * SLOTS)
    assert traffic.status()["requests"] == [0] * SLOTS
    assert traffic.status()["pools"] == {}


def test_traffic_is_bounded_whatever_gateways_say() -> None:
    traffic = Traffic(ManualClock(), plan)
    for number in range(MOST_KEYS + 500):
        traffic.feedback(entry(f"10.{number >> 8}.{number & 255}.1:1"))
    assert len(traffic.recent()) <= MOST_KEYS + 1
    assert traffic.status()["pools"]["other"][-1] == MOST_KEYS + 500


def test_the_largest_series_are_told_and_the_rest_as_one() -> None:
    endpoints = tuple(
        Endpoint(name=f"e{number}", address=f"10.0.1.{number}", port=80, site="near") for number in range(1, 101)
    )
    pool = Pool(name="default/llama", groups=(SiteGroup(site="near", priority=0, weight=1, endpoints=endpoints),))
    found = Plan(pools=(pool,))
    traffic = Traffic(ManualClock(), lambda: found)
    for number in range(1, 101):
        for _ in range(number):
            traffic.feedback(entry(f"10.0.1.{number}:80"))
    series = traffic.status()["endpoints"]
    assert len(series) == MOST_SERIES
    assert {name for name in series if name != "other"} == {
        f"default/llama e{n}" for n in range(101 - MOST_SERIES + 1, 101)
    }
    assert sum(counts[-1] for counts in series.values()) == sum(range(1, 101))


def status_of(*endpoints: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {
        "version": "1",
        "configuration": {"accepted": True, "problems": []},
        "sites": [{"name": "near", "draining": False}],
        "gateways": [{"name": "default/main", "site": "near"}],
        "xds": {
            "gateways": [{"name": "default/main", "problems": [], "rejected": []}],
            "nodes": [{"node": "n1", "gateway": "default/main", "settled": True}],
        },
        "pools": [
            {
                "name": "default/llama",
                "model": "m",
                "protocol": "http",
                "sites": [{"site": "near", "endpoints": list(endpoints)}],
            }
        ],
        "weights": [{"rule": "HTTPRoute/default/chat/0", "set_by": "", "effective": {"default/llama": 10_000}}],
        "rollouts": [],
        "failover": [],
        "notes": [],
        **more,
    }


def endpoint_of(name: str, *, health: str = "UNKNOWN", age_s: float | None = 0.1) -> dict[str, Any]:
    return {"name": name, "key": f"{name}:80", "health": health, "in_flight": 2, "signal_age_s": age_s}


@pytest.mark.parametrize(
    ("health", "age_s", "state"),
    [
        ("UNKNOWN", 0.1, "healthy"),
        ("UNKNOWN", None, "unknown"),
        ("UNKNOWN", SILENT_S + 1, "silent"),
        ("HEALTHY", SILENT_S + 1, "silent"),
        ("DEGRADED", 0.1, "degraded"),
        ("DRAINING", 99.0, "draining"),
        ("UNHEALTHY", 0.1, "unhealthy"),
    ],
)
def test_the_state_of_an_endpoint(health: str, age_s: float | None, state: str) -> None:
    tree = fleet_tree(status_of(endpoint_of("a", health=health, age_s=age_s)), {})
    assert tree["sites"][0]["pools"][0]["endpoints"][0]["state"] == state


def test_health_and_reasons_add_up() -> None:
    served = {("default/llama", "a:80"): 3, ("default/llama", "b:80"): 1}
    tree = fleet_tree(status_of(endpoint_of("a"), endpoint_of("b")), served)
    assert (tree["health"], tree["reasons"], tree["ready"], tree["in_flight"]) == ("healthy", [], 2, 4)
    assert [one["share"] for one in tree["sites"][0]["pools"][0]["endpoints"]] == [0.75, 0.25]
    assert tree["sites"][0]["share"] == 1.0

    tree = fleet_tree(status_of(endpoint_of("a"), endpoint_of("b", health="UNHEALTHY")), {})
    assert tree["health"] == tree["sites"][0]["health"] == "degraded"
    assert tree["reasons"] == ["1 of 2 endpoints of default/llama at near: b (unhealthy)"]
    assert tree["sites"][0]["share"] is None

    tree = fleet_tree(status_of(endpoint_of("a", health="UNHEALTHY")), {})
    assert (tree["health"], tree["sites"][0]["health"]) == ("down", "down")

    lonely = status_of(endpoint_of("a"))
    lonely["xds"]["nodes"] = []
    assert fleet_tree(lonely, {})["reasons"] == ["no proxy of gateway default/main is connected"]


def test_a_pool_is_told_by_its_sites_and_where_it_wants_more() -> None:
    full = [endpoint_of(name) | {"waiting": 48.0, "kv_usage": 0.5} for name in ("a", "b")]
    (pool,) = fleet_tree(status_of(*full), {("default/llama", "a:80"): 1})["pools"]
    (member,) = pool["members"]
    assert (pool["name"], member["site"], member["share"], member["ready"]) == ("default/llama", "near", 1.0, 2)
    assert (member["saturation"], member["waiting"], member["in_flight"]) == (1.5, 96.0, 4)
    assert pool["placement_hints"] == [
        "default/llama at near is full (150%, 96 requests wait): 2 more endpoints would bring it to 80%"
    ]
    calm = endpoint_of("a") | {"waiting": 0.0, "kv_usage": 0.475}
    (pool,) = fleet_tree(status_of(calm, endpoint_of("b")), {})["pools"]
    assert (pool["members"][0]["saturation"], pool["placement_hints"]) == (0.5, []), "of those that tell"
    (pool,) = fleet_tree(status_of(endpoint_of("a")), {})["pools"]
    assert (pool["members"][0]["saturation"], pool["placement_hints"]) == (None, []), "nobody knows"


def test_a_refused_folder_is_told_with_its_lines() -> None:
    found = [
        {"file": "routes.yaml", "line": line, "field": "spec.wieght", "what": "unknown field", "mend": ""}
        for line in (7, 8, 9)
    ]
    refused = status_of(endpoint_of("a"), configuration={"accepted": False, "problems": found})
    (reason,) = fleet_tree(refused, {})["reasons"]
    assert "routes.yaml:7: spec.wieght: unknown field; routes.yaml:8" in reason
    assert reason.endswith("and 1 more")


def test_a_site_that_its_manifest_drains_is_told() -> None:
    drained = status_of(endpoint_of("a", health="DRAINING"), sites=[{"name": "near", "draining": True}])
    reasons = fleet_tree(drained, {})["reasons"]
    assert reasons[0] == "site near is Draining in its manifest (spec.state)"


def test_failover_and_rollouts_are_shown_where_they_belong() -> None:
    policy = {
        "name": "FailoverPolicy/default/p",
        "sites": [{"site": "near", "pool": "default/llama", "state": "HoldDown", "share": 0.0, "why": "stall"}],
        "records": [
            {"site": "near", "decided_at_s": 2.0, "rto_s": 0.7},
            {"site": "near", "decided_at_s": 1.0, "rto_s": 9.0},
            {"site": "near", "decided_at_s": 3.0, "rto_s": None},
        ],
    }
    rollout = {"name": "default/chat", "phase": "Progressing", "why": "", "canary": "default/llama", "stable": "x",
               "step": 2, "steps": [{}, {}, {}], "weight": 0.05}  # fmt: skip
    tree = fleet_tree(status_of(endpoint_of("a"), failover=[policy], rollouts=[rollout]), {})
    site = tree["sites"][0]
    assert (site["rto_s"], site["health"]) == (0.7, "degraded")
    assert site["failover"][0]["state"] == "HoldDown"
    assert site["pools"][0]["rollout"] | {"role": "canary", "step": 2, "steps": 3} == site["pools"][0]["rollout"]
    assert tree["reasons"] == ["default/llama at near is HoldDown: stall"]
    policy["sites"][0]["state"] = "Evacuated"  # type: ignore[index]
    assert fleet_tree(status_of(endpoint_of("a"), failover=[policy]), {})["sites"][0]["health"] == "draining"


def test_manifests_are_copied_whole_or_not_at_all(tmp_path: Path) -> None:
    new, old = tmp_path / "new", tmp_path / "old"
    for folder in (new / "sub", old):
        folder.mkdir(parents=True)
    (new / "a.yaml").write_text("a")
    (new / "sub" / "b.yaml").write_text("b")
    (new / "notes.txt").write_text("no manifest")
    (old / "a.yaml").write_text("old")
    (old / "gone.yaml").write_text("gone")
    assert to_remove(new, old) == [Path("gone.yaml")]
    copy_manifests(new, old, to_remove(new, old))
    held = {str(path.relative_to(old)): path.read_text() for path in old.rglob("*") if path.is_file()}
    assert held == {"a.yaml": "a", "sub/b.yaml": "b"}
    with pytest.raises(CopyError, match="in force already"):
        copy_manifests(old, old, [])
    (new / "a.yaml").write_text("newer")
    (new / "sub" / "b.yaml").unlink()
    (new / "sub" / "b.yaml").symlink_to(new / "nowhere")
    with pytest.raises(CopyError, match="nothing was changed"):
        copy_manifests(new, old, [])
    held_now = {str(path.relative_to(old)): path.read_text() for path in old.rglob("*") if path.is_file()}
    assert held_now == held, "no draft is left, and nothing was moved"
