"""The shell around the machine: what is kept, who leads, what reaches the overlay, what a failing disk does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import CollectorRegistry

from config.config_fixtures import FLEET, manifests
from config.plan_fixtures import endpoint_slice
from pointsman.app.commands.rollout import rollout_lines
from pointsman.app.operations import Operations
from pointsman.app.rollout_files import RolloutFiles
from pointsman.app.rollout_words import verb_of
from pointsman.app.rollouts import Rollouts
from pointsman.core.clock import SystemClock
from pointsman.core.compile import compile_plan
from pointsman.core.compile.assignments import UNASSIGNED
from pointsman.core.config import Manifests
from pointsman.core.model import Plan
from pointsman.core.store import StateError, StateFolder
from pointsman.extproc.feedback import Feedback
from pointsman.rollout.capacity import PoolLoad
from pointsman.rollout.state import Command, RolloutError, Verb
from pointsman.xds.convergence import Convergence
from support.waiting import eventually

RULE = "HTTPRoute/default/chat/split"
NAME = "default/chat"


class Acks:
    """An xDS server with the proxies in `connected`, which have acknowledged everything."""

    connected: frozenset[str] = frozenset()

    async def wait_acked(self, gateway: str, timeout_s: float) -> Convergence:
        return Convergence(acked=self.connected, rejected=frozenset(), pending=frozenset())

    def status(self) -> dict[str, Any]:
        return {"gateways": [], "nodes": []}


class Plane:
    """The parts of a control plane that rollouts need, on a state folder."""

    def __init__(self, state: Path) -> None:
        self.manifests = Manifests()
        self.plan = Plan()
        self.folder = StateFolder(state)
        self.in_flight: dict[str, int] = {}
        self.annotations = ""
        self.more = ""
        self.operations = Operations(
            state=self.folder,
            clock=SystemClock(),
            compile_with=lambda overlay: compile_plan(self.manifests, overlay),
            publish=self.publish,
            current=lambda: self.plan,
            xds=Acks,
        )
        self.rollouts = Rollouts(
            state=self.folder,
            operations=self.operations,
            clock=SystemClock(),
            loads=lambda pool: PoolLoad(endpoints=1, in_flight=self.in_flight.get(pool, 0)),
            registry=CollectorRegistry(),
        )
        self.task: asyncio.Task[None] | None = None

    def publish(self, plan: Plan) -> None:
        self.plan = plan

    def configure(self, *, steps: list[dict[str, Any]] | None, **spec: Any) -> None:
        """Put a policy in force; `steps` None: none."""
        text = FLEET.replace("  name: chat\n", f"  name: chat\n{self.annotations}", 1) + self.more
        if steps is not None:
            text += "---\n" + yaml.safe_dump(policy(steps, **spec))
        self.manifests = manifests(text)
        self.publish(compile_plan(self.manifests, self.operations.overlay))
        self.rollouts.configure(self.manifests, self.plan)

    async def start(self) -> None:
        self.operations.start()
        self.task = asyncio.create_task(self.rollouts.run())

    async def kill(self) -> None:
        """End without a chance to tidy up, but for the lock, which the kernel takes back."""
        assert self.task is not None
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)
        await self.operations.stop()

    async def phase(self, phase: str) -> dict[str, Any]:
        await eventually(lambda: (self.rollouts.find(NAME) or {}).get("phase") == phase, what=f"it is {phase}")
        found = self.rollouts.find(NAME)
        assert found is not None
        return found

    def canary(self) -> int:
        split = self.plan.split(RULE)
        assert split is not None
        return next(arm.effective for arm in split.arms if arm.pool == "default/canary")


def policy(steps: list[dict[str, Any]], **spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "pointsman.dev/v1alpha1",
        "kind": "RolloutPolicy",
        "metadata": {"name": "chat"},
        "spec": {
            "targetRefs": [{"group": "gateway.networking.k8s.io", "kind": "HTTPRoute", "name": "chat"}],
            "stable": {"name": "stable"},
            "canary": {"name": "canary"},
            "steps": steps,
            "analysis": {"interval": "200ms"},
            **spec,
        },
    }


@pytest.fixture
async def plane(tmp_path: Path) -> AsyncIterator[Plane]:
    found = Plane(tmp_path)
    await found.start()
    yield found
    await found.kill()


MANUAL = [{"weight": "10%", "pause": "Manual"}, {"weight": "100%"}]


async def test_the_route_is_not_changed_and_the_overlay_says_who(plane: Plane) -> None:
    plane.configure(steps=MANUAL)
    found = await plane.phase("Paused")
    assert plane.canary() == 1_000
    split = plane.plan.split(RULE)
    assert split is not None
    assert (split.owner, [arm.declared for arm in split.arms]) == ("RolloutPolicy/default/chat", [500, 9_500])
    assert found["rules"][0]["arms"][0]["effective"] == 0.1
    assert any("step 1 of 2: [10 %] → 100 %" in line for line in rollout_lines(found))


async def test_another_process_takes_over_where_it_was(plane: Plane, tmp_path: Path) -> None:
    plane.configure(steps=MANUAL)
    await plane.phase("Paused")
    other = Plane(tmp_path)
    await other.start()
    other.configure(steps=MANUAL)
    await other.phase("Paused")
    with pytest.raises(RolloutError, match="another control plane"):
        await other.rollouts.command(NAME, Command(verb=Verb.PROMOTE))
    await plane.kill()
    try:

        async def promoted() -> bool:
            try:
                await other.rollouts.command(NAME, Command(verb=Verb.PROMOTE))
            except RolloutError:
                return False
            return True

        await eventually(promoted, what="the other one leads")
        await other.phase("Completed")
        assert other.canary() == 10_000
    finally:
        await other.kill()
    await plane.start()


async def test_what_was_saved_and_not_done_is_done_after_a_restart(tmp_path: Path) -> None:
    """The overlay could not be written: the state says 10 %, gateways still have what they had."""
    plane = Plane(tmp_path)
    await plane.start()
    real = plane.operations.change

    async def full(*_: Any, **__: Any) -> Any:
        raise StateError("no space left on device")

    plane.operations.change = full  # type: ignore[method-assign]
    plane.configure(steps=MANUAL)
    await eventually(
        lambda: "no space" in (plane.rollouts.find(NAME) or {}).get("why", ""), what="the problem is shown"
    )
    assert plane.canary() == 500, "as the manifest says"
    plane.operations.change = real  # type: ignore[method-assign]
    await plane.phase("Paused")
    assert plane.canary() == 1_000
    await plane.kill()


async def test_a_state_that_cannot_be_read_is_not_begun_anew(tmp_path: Path) -> None:
    plane = Plane(tmp_path)
    plane.operations.start()
    place = tmp_path / "rollouts" / "default.chat.json"
    place.parent.mkdir()
    place.write_text('{"state": ')
    await plane.start()
    plane.configure(steps=MANUAL)
    await asyncio.sleep(0)
    await eventually(lambda: plane.rollouts._specs, what="the policy is known")
    assert plane.rollouts.find(NAME) is None
    assert place.read_text() == '{"state": '
    assert plane.canary() == 500
    await plane.kill()


async def test_requests_count_for_their_rule_and_arm(plane: Plane) -> None:
    plane.configure(steps=MANUAL)
    await plane.phase("Paused")
    for route, cluster in (
        (f"{RULE}/0", "default/canary"),
        (f"{RULE}/0", "default/canary"),
        (f"{RULE}/0", "default/stable"),
        ("HTTPRoute/default/other/0/0", "default/canary"),
        (f"{RULE}/0", "default/another"),
        (f"{RULE}/0{UNASSIGNED}", "default/stable"),
        ("", ""),
    ):
        plane.rollouts.feedback(Feedback(pick_id="", ended=True, status=200, route=route, cluster=cluster))
    found = plane.rollouts.find(NAME)
    assert found is not None
    assert found["outcomes"] == {"canary": {"ok": 2}, "stable": {"ok": 1}}


async def test_an_outage_gives_the_canary_what_it_can_carry(plane: Plane) -> None:
    plane.annotations = "  annotations: {pointsman.dev/on-unavailable: Redistribute}\n"
    plane.more = endpoint_slice("east", "10.0.1.1", pool="canary")
    plane.in_flight = {"default/canary": 1, "default/stable": 39}
    plane.configure(steps=MANUAL, gates={"capacity": {"canaryMinFree": "20%", "slotsPerEndpoint": 20}})
    await plane.phase("Paused")
    await eventually(lambda: plane.operations.overlay.ceilings, what="there is a ceiling")
    before = plane.canary()
    plane.operations.set_unavailable(frozenset({"default/stable"}))
    assert (before, plane.canary()) == (1_000, 4_000), "16 of 40 requests"
    plane.in_flight = {"default/canary": 5}  # two fifths of all: there are fewer than before
    await eventually(lambda: plane.canary() == 10_000, what="it can carry all")
    plane.operations.set_unavailable(frozenset())
    await eventually(lambda: plane.canary() == 1_000, what="stable serves again")


async def test_a_policy_that_is_gone_leaves_its_weights(plane: Plane) -> None:
    plane.configure(steps=MANUAL)
    await plane.phase("Paused")
    plane.configure(steps=None)
    await eventually(lambda: plane.canary() == 1_000, what="the weights stay")
    with pytest.raises(RolloutError):
        await _gone(plane)
    plane.configure(steps=MANUAL)
    assert (await plane.phase("Paused"))["attempt"] == 1


async def _gone(plane: Plane) -> None:
    async def refused() -> bool:
        await plane.rollouts.command(NAME, Command(verb=Verb.PAUSE))
        return False

    await eventually(refused, what="nobody leads it")


def test_verbs() -> None:
    assert verb_of("promote", full=False) is Verb.PROMOTE
    assert verb_of("promote", full=True) is Verb.PROMOTE_FULL
    assert verb_of("abort", full=True) is Verb.ABORT
    assert verb_of("promote-full", full=False) is None
    assert verb_of("destroy", full=False) is None


def test_files(tmp_path: Path) -> None:
    files, others = RolloutFiles(tmp_path), RolloutFiles(tmp_path)
    assert files.names() == []
    assert files.read("ns/a.b") is None
    assert files.lead()
    assert files.lead()
    assert not others.lead()
    files.resign()
    assert others.lead()
    others.resign()
