"""RolloutPolicies for a fleet: written, followed, steered; and a witness of every weight that gateways are sent."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import yaml
from envoy.config.route.v3 import route_pb2
from envoy.service.discovery.v3 import discovery_pb2

from pointsman.xds.resources import ROUTE
from support.fleet import Fleet
from support.load import Load
from support.waiting import eventually

CHECKS = [
    {"name": "errors", "metric": "errorRate", "max": "+5pp", "mustCatch": "+40pp"},
    {"name": "ttft", "metric": "ttft.p50", "max": "+150ms", "mustCatch": "+600ms"},
]
"""Wide, so that a test needs few requests."""
STEPS: list[dict[str, Any]] = [{"weight": "10%", "pause": "1s"}, {"weight": "50%", "pause": "1s"}, {"weight": "100%"}]
URL = "/api/v1/rollouts/default/chat"


def policy(**spec: Any) -> dict[str, Any]:
    """A RolloutPolicy for the route of the test's fleet."""
    return {
        "apiVersion": "pointsman.dev/v1alpha1",
        "kind": "RolloutPolicy",
        "metadata": {"name": "chat"},
        "spec": {
            "targetRefs": [{"group": "gateway.networking.k8s.io", "kind": "HTTPRoute", "name": "chat"}],
            "stable": {"name": "stable"},
            "canary": {"name": "canary"},
            "analysis": {"interval": "300ms", "checks": CHECKS},
            **({} if spec.get("strategy") == "BlueGreen" else {"steps": STEPS}),
            **spec,
        },
    }


def apply(fleet: Fleet, manifest: dict[str, Any] | None) -> None:
    """Put the policy into the configuration folder, or take it away."""
    apply_in(fleet.manifests.folder, manifest)


def apply_in(folder: Path, manifest: dict[str, Any] | None) -> None:
    """The same for any configuration folder."""
    place = folder / "rollout.yaml"
    if manifest is None:
        place.unlink()
        return
    draft = folder.parent / "rollout-draft.yaml"
    draft.write_text(yaml.safe_dump(manifest), encoding="utf-8")
    draft.replace(place)


async def rollout(fleet: Fleet) -> dict[str, Any]:
    """The rollout as the admin API tells it; empty while there is none."""
    async with fleet.session.get(f"{fleet.admin}{URL}") as response:
        return await response.json() if response.status == 200 else {}


async def reached(fleet: Fleet, *phases: str, timeout_s: float = 60, step: int = 0) -> dict[str, Any]:
    """Wait until the rollout is in one of these phases (and step); fail at once where another end was reached."""
    found: dict[str, Any] = {}

    async def there() -> bool:
        nonlocal found
        found = await rollout(fleet)
        ended = {"Completed", "Aborted"} - set(phases)
        assert found.get("phase") not in ended, found
        return found.get("phase") in phases and (not step or found["step"] == step)

    await eventually(there, timeout_s=timeout_s, what=f"the rollout is {' or '.join(phases)}")
    return found


async def command(fleet: Fleet, verb: str, status: int = 200, **body: Any) -> dict[str, Any]:
    """Steer the rollout."""
    async with fleet.session.post(f"{fleet.admin}{URL}/{verb}", json={"actor": "alice", **body}) as response:
        answer: dict[str, Any] = await response.json()
        assert response.status == status, answer
        return answer


async def share(fleet: Fleet) -> float:
    """The canary's effective share by the Plan."""
    split = (await rollout(fleet))["rules"][0]
    return next(float(arm["effective"]) for arm in split["arms"] if arm["pool"] == "default/canary")


def by_arm(load: Load) -> tuple[int, int]:
    """(canary, stable) answers."""
    canary = sum(n for name, n in load.outcomes.replicas.items() if name.startswith("canary"))
    return canary, load.outcomes.ok - canary


def failed_within(load: Load, share: float) -> bool:
    """Whether no more failed than a step with this share of the requests can hit: five standard deviations.

    How many requests there are until a rollout is taken back depends on the machine.
    """
    hit = load.outcomes.total * share
    return load.outcomes.failed <= hit + 5 * math.sqrt(hit * (1 - share))


async def faults(fleet: Fleet, what: dict[str, Any] | None) -> None:
    """Switch the faults of all replicas of the canary."""
    for name in await fleet.replicas():
        if name.startswith("canary"):
            await fleet.set_faults(name, what)


@dataclass
class Witness:
    """A proxy beside Envoy that only notes the canary's share (0 to 1) of each route configuration that it is sent.

    It connects again when the control plane is gone, and then gets what a gateway that starts there would get.
    """

    target: str
    gateway: str = "default/main"
    shares: list[float] = field(default_factory=list)
    streams: int = 0

    async def run(self) -> None:
        while True:
            with contextlib.suppress(grpc.RpcError, EOFError):
                await self._stream()
            await asyncio.sleep(0.02)

    async def _stream(self) -> None:
        async with grpc.aio.insecure_channel(self.target) as channel:
            stream = channel.stream_stream(
                "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources",
                request_serializer=discovery_pb2.DeltaDiscoveryRequest.SerializeToString,
                response_deserializer=discovery_pb2.DeltaDiscoveryResponse.FromString,
            )()
            first = discovery_pb2.DeltaDiscoveryRequest(type_url=ROUTE, resource_names_subscribe=["*"])
            first.node.id, first.node.cluster = "witness", self.gateway
            await stream.write(first)
            while True:
                response = await stream.read()
                if response is grpc.aio.EOF:
                    raise EOFError
                found = [share for one in response.resources for share in _shares(one.resource.value)]
                if found:
                    self.shares += found
                await stream.write(discovery_pb2.DeltaDiscoveryRequest(type_url=ROUTE, response_nonce=response.nonce))
                if found:
                    self.streams += 1


def _shares(body: bytes) -> list[float]:
    """The canary's share in the splits of a route configuration."""
    found = []
    for host in route_pb2.RouteConfiguration.FromString(body).virtual_hosts:
        for one in host.routes:
            arms = {arm.name: arm.weight.value for arm in one.route.weighted_clusters.clusters}
            if {"default/canary", "default/stable"} <= arms.keys():
                found.append(arms["default/canary"] / sum(arms.values()))
    return found


@contextlib.asynccontextmanager
async def witness(target: str) -> AsyncIterator[Witness]:
    """A witness at a control plane's gRPC address for as long as the block runs."""
    one = Witness(target)
    task = asyncio.create_task(one.run())
    try:
        yield one
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
