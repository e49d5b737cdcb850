"""What needs no process: a folder of manifests read, compiled and rendered."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pointsman.core import defaults
from pointsman.core.compile import compile_plan
from pointsman.core.config import Manifests, load
from pointsman.core.model import Gateway, Plan
from pointsman.xds import BuildOptions, build_resources, render, static_bootstrap


def read_plan(folder: Path) -> tuple[Manifests, Plan]:
    """The folder's manifests and the Plan they make.

    Raises:
        ConfigError: with every problem.
    """
    manifests = load(folder)
    return manifests, compile_plan(manifests)


def rendered(plan: Plan, gateway: Gateway, *, as_envoy: bool) -> dict[str, Any]:
    """The resources of one gateway as JSON-able data.

    `as_envoy`: one static configuration that Envoy accepts; else each resource by type, with its version.
    """
    resources = build_resources(
        gateway,
        BuildOptions(picker_address=defaults.LOOPBACK, picker_port=defaults.GRPC_PORT),
        sites=plan.sites,
    )
    return static_bootstrap(resources, node_cluster=gateway.name) if as_envoy else render(resources)
