"""The manifests of the embedded set-up: two sites that can stand in for each other, a gateway at each."""

from __future__ import annotations

import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml

Json = dict[str, Any]

SITES: Final = ("us-east", "eu-west")
REPLICAS: Final = 4
"""Endpoints at each site: all of a site at once is the hard case, one of four the usual one."""
RTT_MS: Final = 30
"""Between the sites, as between neighbouring countries; probes of the far site have half a second left."""
MODEL: Final = "llama-3-8b"
POOL: Final = "llm"
STREAMED_RULE: Final = "streamed"
STREAMED: Final = ("accept", "text/event-stream")
"""The header by which the route tells streamed requests from others: limits on silence are for these only."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where one site listens: its gateway, its control plane with the picker, its replicas (name → ip, port)."""

    site: str
    gateway: tuple[str, int]
    control_plane: tuple[str, int]
    replicas: Mapping[str, tuple[str, int]]

    @property
    def url(self) -> str:
        """Of the gateway."""
        return f"http://{self.gateway[0]}:{self.gateway[1]}"


def places(network: str) -> tuple[Place, ...]:
    """Free ports on addresses of the /24 `network` (its first three numbers) of 127.0.0.0/8."""
    found = []
    for number, site in enumerate(SITES):
        first = 1 + 100 * number
        replicas = {f"{site}-{i}": _free(f"{network}.{first + 10 + i}") for i in range(REPLICAS)}
        found.append(
            Place(
                site=site,
                gateway=_free(f"{network}.{first}"),
                control_plane=_free(f"{network}.{first + 1}"),
                replicas=replicas,
            )
        )
    return tuple(found)


def _free(address: str) -> tuple[str, int]:
    with socket.socket() as probe:
        probe.bind((address, 0))
        port: int = probe.getsockname()[1]
        return address, port


@dataclass(frozen=True, slots=True, kw_only=True)
class WayBack:
    """How long a site must be well and wait before it serves again. A drill takes it back by command when it has seen
    enough, so that these only tell what the set-up does by itself: it holds a site down that flaps for 12 s."""

    healthy_for: str = "5s"
    hold_down: str = "30s"


def write(folder: Path, where: Sequence[Place], *, primary: str, way_back: WayBack) -> None:
    """All manifests in one file, whole or not at all. `primary` is the site that serves while it can."""
    policies = _policies(where, primary, way_back)
    documents = [*_sites(where), *_gateways(where), _route(where), *_pool(where), *policies]
    folder.mkdir(parents=True, exist_ok=True)
    draft = folder.parent / ".fleet.draft"
    draft.write_text(yaml.safe_dump_all(documents), encoding="utf-8")
    draft.replace(folder / "fleet.yaml")


def _sites(where: Sequence[Place]) -> list[Json]:
    return [
        {
            "apiVersion": "pointsman.dev/v1alpha1",
            "kind": "Site",
            "metadata": {"name": place.site},
            "spec": {
                "locality": {"region": place.site},
                "rttMs": {other.site: RTT_MS for other in where if other is not place},
            },
        }
        for place in where
    ]


def _gateways(where: Sequence[Place]) -> list[Json]:
    return [
        {
            "apiVersion": "gateway.networking.k8s.io/v1",
            "kind": "Gateway",
            "metadata": {"name": place.site, "annotations": {"pointsman.dev/site": place.site}},
            "spec": {
                "gatewayClassName": "pointsman",
                "addresses": [{"type": "IPAddress", "value": place.gateway[0]}],
                "listeners": [{"name": "http", "port": place.gateway[1], "protocol": "HTTP"}],
            },
        }
        for place in where
    ]


def _route(where: Sequence[Place]) -> Json:
    backend = {"group": "inference.networking.k8s.io", "kind": "InferencePool", "name": POOL}
    name, value = STREAMED
    return {
        "apiVersion": "gateway.networking.k8s.io/v1",
        "kind": "HTTPRoute",
        "metadata": {"name": "chat"},
        "spec": {
            "parentRefs": [{"name": place.site} for place in where],
            "rules": [
                {
                    "name": STREAMED_RULE,
                    "matches": [{"headers": [{"name": name, "value": value}]}],
                    "backendRefs": [backend],
                },
                {"name": "plain", "backendRefs": [backend]},
            ],
        },
    }


def _pool(where: Sequence[Place]) -> list[Json]:
    pool = {
        "apiVersion": "inference.networking.k8s.io/v1",
        "kind": "InferencePool",
        "metadata": {"name": POOL, "annotations": {"pointsman.dev/model": MODEL}},
        "spec": {"selector": {"matchLabels": {"app": POOL}}, "targetPorts": [{"number": 8000}]},
    }
    slices = [
        {
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {"name": name, "labels": {"pointsman.dev/pool": POOL, "pointsman.dev/site": place.site}},
            "addressType": "IPv4",
            "ports": [{"name": "http", "port": port}],
            "endpoints": [{"addresses": [address], "targetRef": {"kind": "Pod", "name": name}}],
        }
        for place in where
        for name, (address, port) in place.replicas.items()
    ]
    return [pool, *slices]


def _policies(where: Sequence[Place], primary: str, way_back: WayBack) -> list[Json]:
    """The primary serves, the others take over."""
    others = [place.site for place in where if place.site != primary]
    pool = {
        "targetRefs": [{"group": "inference.networking.k8s.io", "kind": "InferencePool", "name": POOL}],
        "tiers": [{"sites": [primary]}, {"sites": others}],
        "failback": {
            "healthyFor": way_back.healthy_for,
            "holdDown": way_back.hold_down,
            "ramp": ["100%"],
            "maxFlapsPerHour": 60,
        },
    }
    streams = {
        "targetRefs": [
            {"group": "gateway.networking.k8s.io", "kind": "HTTPRoute", "name": "chat", "sectionName": STREAMED_RULE}
        ],
        # Headers of a streamed answer come at once: a second without them is a black hole. Less would take a replica
        # on a busy machine for one, and the tries that follow would make it busier.
        "retry": {"firstByteTimeout": "1s"},
    }
    return [
        {
            "apiVersion": "pointsman.dev/v1alpha1",
            "kind": "FailoverPolicy",
            "metadata": {"name": name},
            "spec": spec,
        }
        for name, spec in (("pool", pool), ("streams", streams))
    ]
