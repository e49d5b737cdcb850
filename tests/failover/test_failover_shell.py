"""Failover with its files and its loop, and without gateways: who decides, and what is remembered by whom."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from prometheus_client import CollectorRegistry

from config.config_fixtures import FLEET, manifests
from pointsman.app.admin_failover import add_failover_routes
from pointsman.app.failover import Failover
from pointsman.app.failover_files import FailoverFiles
from pointsman.app.operations import Operations
from pointsman.app.traffic_operations import TrafficOperations
from pointsman.core.attention import Attention
from pointsman.core.change import Signature
from pointsman.core.clock import SystemClock
from pointsman.core.compile.plan import compile_plan
from pointsman.core.model import Plan
from pointsman.core.store import StateError, StateFolder
from pointsman.failover.model import EndpointView
from pointsman.failover.state import Action, Command, FailoverError, State
from pointsman.xds.convergence import Convergence
from support.waiting import eventually

POOL = "default/stable"


def slice_of(pool: str, site: str, address: str) -> str:
    """Where a pool is at a site."""
    return f"""\
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata:
  name: {pool}-{site}-more
  labels:
    pointsman.dev/pool: {pool}
    pointsman.dev/site: {site}
addressType: IPv4
ports: [{{port: 8000}}]
endpoints:
- addresses: [{address}]
"""


WEST = """\
---
apiVersion: pointsman.dev/v1alpha1
kind: Site
metadata:
  name: west
spec:
  state: Active
"""
TWO_SITES = (
    FLEET
    + WEST
    + slice_of("stable", "west", "10.0.1.1")
    + slice_of("canary", "east", "10.0.0.3")
    + slice_of("canary", "west", "10.0.1.3")
)


class NoGateways:
    """An xDS server that nobody is connected to."""

    async def wait_acked(self, gateway: str, timeout_s: float) -> Any:
        del gateway, timeout_s
        return Convergence(acked=frozenset(), rejected=frozenset(), pending=frozenset())

    def status(self) -> dict[str, Any]:
        return {"gateways": [], "nodes": []}


class Plane:
    """The part of a control plane that leads failover."""

    def __init__(self, state: Path, config: str = TWO_SITES) -> None:
        clock, folder = SystemClock(), StateFolder(state)
        self.manifests = manifests(config)
        self.plan: Plan
        self.looks = 0
        self.views: dict[str, EndpointView] = {}
        self.operations = Operations(
            state=folder,
            clock=clock,
            compile_with=lambda overlay: compile_plan(self.manifests, overlay),
            publish=self._publish,
            current=lambda: self.plan,
            xds=NoGateways,
        )
        self.failover = Failover(
            state=folder,
            operations=self.operations,
            clock=clock,
            silent=lambda: (),
            views=self._views,
            registry=CollectorRegistry(),
        )

    def start(self) -> None:
        self._publish(compile_plan(self.manifests, self.operations.start(*self.failover.restore())))

    def apply(self, config: str) -> None:
        """Put other manifests in force."""
        self.manifests = manifests(config)
        self._publish(compile_plan(self.manifests, self.operations.overlay))

    async def act(self, action: Action, **about: Any) -> None:
        await self.failover.command(Command(action=action, signature=Signature(actor="ann", via="test"), **about))

    def state(self, site: str = "east", pool: str = POOL) -> str:
        return next(
            (
                one["state"]
                for policy in self.failover.status()
                for one in policy["sites"]
                if (one["site"], one["pool"]) == (site, pool)
            ),
            "",
        )

    @property
    def out(self) -> set[tuple[str, str]]:
        """What gateways send nothing to."""
        return {place for place, over in self.operations.overlay.sites if not over.share}

    def _views(self, attention: Attention) -> dict[str, EndpointView]:
        del attention
        self.looks += 1
        return self.views

    def _publish(self, plan: Plan) -> None:
        self.plan = plan
        self.failover.configure(self.manifests, plan)


@asynccontextmanager
async def running(plane: Plane) -> AsyncIterator[Plane]:
    plane.start()
    task = asyncio.create_task(plane.failover.run())
    try:
        yield plane
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_who_takes_over_goes_on_from_what_the_leader_decided_last(tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        async with running(Plane(tmp_path)) as first:
            await first.failover.leading()
            await first.act(Action.EVACUATE, site="east")
            await first.act(Action.ACTIVATE, site="east", force=True)
            second = await stack.enter_async_context(running(Plane(tmp_path)))
            await first.act(Action.EVACUATE, site="east")
            await eventually(lambda: (POOL, "east") in second.out, what="the second follows")
        await second.failover.leading()
        await second.act(Action.FREEZE)  # answered once it leads with all policies
        assert second.state() == "Evacuated"
        assert (POOL, "east") in second.out


async def test_a_policy_that_comes_again_does_not_bring_back_what_was_decided_before(tmp_path: Path) -> None:
    other = TWO_SITES.replace("name: stable\n", "name: steady\n").replace("pool: stable\n", "pool: steady\n")
    async with running(Plane(tmp_path)) as plane:
        await plane.failover.leading()
        await plane.act(Action.EVACUATE, site="east", pool=POOL)
    async with running(Plane(tmp_path, other)) as plane:
        await eventually(lambda: plane.state(pool="default/steady"), what="another pool is led")
        plane.apply(TWO_SITES)
        await eventually(plane.state, what="the pool is led again")
        assert plane.state() == "Healthy"


async def test_a_policy_that_never_decided_anything_does_not_wait_for_gateways(tmp_path: Path) -> None:
    async with running(Plane(tmp_path)) as plane:
        await plane.failover.leading()
        assert plane.failover.status()
        await eventually(lambda: all(one["programmed"] for one in plane.failover.status()), what="nobody is waited for")


async def test_commands_wait_until_every_policy_is_at_work(tmp_path: Path) -> None:
    async with running(Plane(tmp_path)) as plane:
        await plane.failover.leading()
        await plane.act(Action.EVACUATE, site="east")
        assert {policy["name"] for policy in plane.failover.status()} >= {f"InferencePool/{POOL}"}
        assert (POOL, "east") in plane.out


@pytest.mark.parametrize("about", [{}, {"site": "east"}, {"site": "east", "pool": POOL}])
async def test_an_endpoint_that_nobody_knows_is_not_drained(tmp_path: Path, about: dict[str, str]) -> None:
    async with running(Plane(tmp_path)) as plane:
        await plane.failover.leading()
        with pytest.raises(FailoverError, match=r"10\.9\.9\.9:1: .*ip:port"):
            await plane.act(Action.DRAIN, endpoint="10.9.9.9:1", **about)
        assert all(not policy["endpoints"] for policy in plane.failover.status())
        known = plane.plan.pools[0].groups[0].endpoints[0].key
        await plane.act(Action.DRAIN, endpoint=known, force=True)
        await plane.act(Action.DRAIN, endpoint=known, force=True)


FLEET_OF_ALL = """\
---
apiVersion: pointsman.dev/v1alpha1
kind: InferenceFleet
metadata:
  name: all
spec:
  poolRef: {name: stable}
  members: [{site: east}, {site: west}]
---
apiVersion: pointsman.dev/v1alpha1
kind: FailoverPolicy
metadata:
  name: careful
spec:
  targetRefs: [{group: pointsman.dev, kind: InferenceFleet, name: all}]
  tiers: [{sites: [east, west]}]
"""
ALWAYS_FROZEN = """\
  safety:
    freeze: [{cron: "* * * * *", for: 1h}]
"""


@pytest.mark.parametrize("frozen", [True, False])
async def test_the_freeze_of_a_fleet_holds(tmp_path: Path, *, frozen: bool) -> None:
    """For what automation would do, for planned work, and not for the pools that the fleet is made of."""
    config = TWO_SITES + FLEET_OF_ALL + (ALWAYS_FROZEN if frozen else "")
    async with running(Plane(tmp_path, config)) as plane:
        await plane.failover.leading()
        assert plane.state(pool="default/all") == "Healthy"
        if frozen:
            with pytest.raises(FailoverError, match="freeze window"):
                await plane.act(Action.DRAIN, site="west", pool="default/all")
        gone = ("10.0.0.1:8000", "10.0.0.2:8000")
        plane.views = {key: EndpointView(endpoint=key, metrics_age_s=3.0, scrape_failing=True) for key in gone}
        plane.views["10.0.1.1:8000"] = EndpointView(endpoint="10.0.1.1:8000", metrics_age_s=0.1)
        await eventually(lambda: plane.state() == "Failed", what="the pool's own default policy leaves the site")
        left = "Suspect" if frozen else "Failed"
        await eventually(lambda: plane.state(pool="default/all") == left, what=f"the fleet's site is {left}")
        policy = next(one for one in plane.failover.status() if one["name"] == "FailoverPolicy/default/careful")
        assert [one["site"] for one in policy["proposals"]] == (["east"] if frozen else [])
        assert (("default/all", "east") in plane.out) is not frozen


async def test_a_slow_write_does_not_undo_a_later_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(Plane(tmp_path)) as plane:
        await plane.failover.leading()
        begun, go_on, write = threading.Event(), threading.Event(), FailoverFiles.write

        def slow(files: FailoverFiles, state: State) -> None:
            if state.spec.pools == (POOL,) and not begun.is_set():
                begun.set()
                assert go_on.wait(20)
            write(files, state)

        monkeypatch.setattr(FailoverFiles, "write", slow)
        first = asyncio.create_task(plane.act(Action.EVACUATE, site="east", pool=POOL))
        await eventually(begun.is_set, what="the first is being written")
        second = asyncio.create_task(plane.act(Action.FREEZE, pool=POOL))
        await asyncio.wait([second], timeout=0.3)  # all the time it needs to overtake
        go_on.set()
        await asyncio.gather(first, second)
        kept = {state.spec.name: state.frozen_by for state in FailoverFiles(tmp_path).read_all()}
        assert kept[f"InferencePool/{POOL}"] == "ann"


def policy(name: str) -> str:
    """A FailoverPolicy for the pool."""
    return f"""\
---
apiVersion: pointsman.dev/v1alpha1
kind: FailoverPolicy
metadata:
  name: {name}
spec:
  targetRefs:
  - {{group: inference.networking.k8s.io, kind: InferencePool, name: stable}}
  tiers:
  - sites: [east]
  - sites: [west]
"""


@pytest.mark.parametrize("action", [Action.DRAIN, Action.EVACUATE, Action.FAILOVER])
async def test_a_policy_that_is_added_renamed_and_removed_brings_no_site_back(tmp_path: Path, action: Action) -> None:
    async with running(Plane(tmp_path)) as plane:
        await plane.failover.leading()
        await plane.act(action, site="east")
        endpoint = next(pool for pool in plane.plan.pools if pool.name == POOL).groups[0].endpoints[0].key
        await plane.act(Action.DRAIN, endpoint=endpoint, force=True)
        before = plane.state()
        for more in (policy("one"), policy("two"), ""):
            plane.apply(TWO_SITES + more)
            name = (
                f"FailoverPolicy/default/{more[more.index('name: ') :].split()[1]}" if more else f"InferencePool/{POOL}"
            )
            await eventually(lambda name=name: name in {one["name"] for one in plane.failover.status()}, what=name)
            assert plane.state() == before
            assert (POOL, "east") in plane.out
            assert endpoint in plane.operations.overlay.drained
            names = {one["name"] for one in plane.failover.status()}
            await eventually(
                lambda names=names: {state.spec.name for state in FailoverFiles(tmp_path).read_all()} == names,
                what="what is over is forgotten",
            )
    async with running(Plane(tmp_path, TWO_SITES + policy("three"))) as plane:  # renamed while nobody watched
        await plane.failover.leading()
        assert plane.state() == before
        await plane.act(Action.FAILBACK if action is Action.FAILOVER else Action.ACTIVATE, site="east", force=True)
        assert plane.state() == "Healthy"


async def test_an_evacuated_site_without_slices_is_out_when_they_come_back(tmp_path: Path) -> None:
    """A pool that is at one site only needs no failover. What was decided of the other must outlive that, and a
    restart meanwhile."""
    one_site = TWO_SITES.replace(slice_of("stable", "west", "10.0.1.1"), "")
    async with running(Plane(tmp_path)) as plane:
        await plane.failover.leading()
        await plane.act(Action.EVACUATE, site="west", pool=POOL)
        plane.apply(one_site)
        looks = plane.looks
        await eventually(lambda: plane.looks > looks + 2, what="the deletion is in force")
        assert plane.state("west") == "Evacuated"
    async with running(Plane(tmp_path, one_site)) as plane:
        await plane.failover.leading()
        plane.apply(TWO_SITES)
        assert (POOL, "west") in plane.out
        looks = plane.looks
        await eventually(lambda: plane.looks > looks + 2, what="the slice is back")
        assert (plane.state("west"), (POOL, "west") in plane.out) == ("Evacuated", True)
        await plane.act(Action.ACTIVATE, site="west", pool=POOL, force=True)
        plane.apply(one_site)
        await eventually(lambda: not plane.state("west"), what="nothing is left to remember")


async def test_a_pool_that_comes_while_all_is_frozen_is_frozen(tmp_path: Path) -> None:
    one_pool = TWO_SITES.replace(slice_of("canary", "west", "10.0.1.3"), "")
    async with running(Plane(tmp_path, one_pool)) as plane:
        await plane.failover.leading()
        await plane.act(Action.FREEZE)
        plane.apply(TWO_SITES)
        await eventually(lambda: plane.state(pool="default/canary"), what="the other pool is led")
        assert {policy["frozen_by"] for policy in plane.failover.status()} == {"ann"}


async def test_a_site_that_its_manifest_drains_is_shown_so_and_is_no_refuge(tmp_path: Path) -> None:
    async with running(Plane(tmp_path, TWO_SITES.replace("state: Active", "state: Draining"))) as plane:
        await plane.failover.leading()
        west = next(one for one in plane.failover.status()[0]["sites"] if one["site"] == "west")
        assert (west["state"], west["by"]) == ("Drained", "manifest")
        assert west["why"] == "its Site manifest says `state: Draining`"
        looks = plane.looks
        await eventually(lambda: plane.looks > looks + 2, what="it was looked")
        with pytest.raises(FailoverError, match="is not taken from east"):
            await plane.act(Action.EVACUATE, site="east")


async def test_policies_may_have_the_longest_names_that_there_are(tmp_path: Path) -> None:
    for _ in range(2):
        async with running(Plane(tmp_path, TWO_SITES + policy("x" * 253))) as plane:
            await plane.failover.leading()
            if plane.state() == "Healthy":
                await plane.act(Action.EVACUATE, site="east")
            assert plane.state() == "Evacuated"
            assert [one["problem"] for one in plane.failover.status()] == ["", ""]


async def test_a_disk_that_hangs_keeps_nobody_from_looking_and_deciding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(Plane(tmp_path)) as plane:
        await plane.failover.leading()
        hangs, write = threading.Event(), FailoverFiles.write
        goes_on = threading.Event()

        def hung(files: FailoverFiles, state: State) -> None:
            hangs.set()
            assert goes_on.wait(30)
            write(files, state)

        monkeypatch.setattr(FailoverFiles, "write", hung)
        plane.apply(TWO_SITES + policy("one"))
        await eventually(hangs.is_set, what="something is being saved")
        looks = plane.looks
        await eventually(lambda: plane.looks > looks + 3, what="it is still looked")
        evacuates = asyncio.create_task(plane.act(Action.EVACUATE, site="east"))
        await eventually(lambda: (POOL, "east") in plane.out, what="the site is left")
        goes_on.set()
        await evacuates


@pytest.mark.parametrize("place", [b"\xff", b'"\xff"', b'{"reason": "\xff"}', b'{"site": ' + b"[" * 100_000])
async def test_what_is_no_text_is_refused(tmp_path: Path, place: bytes) -> None:
    async with running(Plane(tmp_path)) as plane:
        application = web.Application()
        add_failover_routes(application, plane.failover, SystemClock())
        async with TestClient(TestServer(application)) as client:
            headers = {"content-type": "application/json"}
            async with client.post("/api/v1/failover/drain", data=place, headers=headers) as answer:
                assert answer.status == 400
                assert "does not fit" in (await answer.json())["error"]


@pytest.mark.parametrize("action", ["failover", "failback", "freeze", "unfreeze"])
async def test_a_site_is_not_left_because_of_one_endpoint(tmp_path: Path, action: str) -> None:
    async with running(Plane(tmp_path)) as plane:
        await plane.failover.leading()
        application = web.Application()
        add_failover_routes(application, plane.failover, SystemClock())
        async with TestClient(TestServer(application)) as client:
            body = {"endpoint": plane.plan.pools[0].groups[0].endpoints[0].key, "reason": "r"}
            async with client.post(f"/api/v1/failover/{action}", json=body) as answer:
                assert answer.status == 400
        assert not plane.out


@pytest.mark.parametrize("content", [b"", b"\xff", b'{"version": 1, "spec": "\xff"}', b'{"version": 2}', b"{}"])
def test_a_damaged_file_starts_nothing_and_says_what_to_do(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "failover").mkdir()
    (tmp_path / "failover" / "InferencePool_default_stable.json").write_bytes(content)
    with pytest.raises(StateError, match=r"InferencePool_default_stable\.json"):
        Plane(tmp_path).start()


@pytest.mark.parametrize("written", ["[fd00::7]:8000", "[FD00:0:0::7]:8000", "fd00::7:8000"])
async def test_an_ipv6_endpoint_may_be_written_in_any_way(tmp_path: Path, written: str) -> None:
    config = TWO_SITES + slice_of("stable", "west", "fd00::7").replace("IPv4", "IPv6").replace("west-more", "west-six")
    async with running(Plane(tmp_path, config.replace("[fd00::7]", "['fd00::7']"))) as plane:
        await plane.failover.leading()
        for _ in range(2):
            await plane.act(Action.DRAIN, endpoint=written)
            assert plane.operations.overlay.drained == {"[fd00::7]:8000"}
        await plane.act(Action.ACTIVATE, endpoint=written)
        assert not plane.operations.overlay.drained


@pytest.mark.parametrize("content", [b'{"version": 1, "runs": []}', b'{"version": 9}', b"", b"\xff"])
def test_damaged_operations_start_nothing_and_are_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "operations.json").write_bytes(content)
    plane = Plane(tmp_path)
    with pytest.raises(StateError, match=r"operations\.json"):
        TrafficOperations(state=tmp_path, failover=plane.failover, clock=SystemClock())
