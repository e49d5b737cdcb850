"""What the loader lets through, a real Envoy takes: the rules here and Envoy's own don't contradict each other."""

from __future__ import annotations

from pathlib import Path

import pytest

from config.config_fixtures import EXAMPLE, spoiled
from config.plan_fixtures import SITES, backend, plan_of, route, rule, without_routes
from pointsman.app.envoy import validate_bootstrap
from pointsman.core.compile import compile_plan
from pointsman.core.config import load
from pointsman.core.model import Plan
from pointsman.xds import BuildOptions, build_resources, static_bootstrap

EDIT = """{set: [{name: X-A, value: '100 % "quoted" %REQ(x)%'}], add: [{name: x-b, value: b}], remove: [x-c]}"""
REQUEST = f"{{type: RequestHeaderModifier, requestHeaderModifier: {EDIT}}}"
RESPONSE = f"{{type: ResponseHeaderModifier, responseHeaderModifier: {EDIT}}}"


def rich_fleet() -> str:
    """Every part that a manifest may have, at its limits."""
    listeners = "".join(
        f"  - {{name: h{number}, port: 8080, protocol: HTTP, hostname: '{host}'}}\n"
        for number, host in enumerate(["*.example", "a.example", "*.b.example"])
    )
    text = without_routes(spoiled(("  listeners:\n", "  listeners:\n" + listeners)))
    long_path = "/" + "a%2D" * 200
    matches = [
        "{path: {type: Exact, value: /}}",
        "{path: {type: Exact, value: '/v1/?x'}}".replace("?", "%3f"),
        f"{{path: {{type: Exact, value: '{long_path}'}}}}",
        "{path: {value: '/v1/'}, method: OPTIONS}",
        "{path: {type: RegularExpression, value: '/v[0-9]+/(chat|completions).*'}}",
        "{headers: [{name: Host, value: x}, {name: X-Y, type: RegularExpression, value: '(?i)gpt-[0-9]{1,2}'}]}",
        "{queryParams: [{name: 'a b&', value: '&='}, {name: c, type: RegularExpression, value: '[^a]'}]}",
    ]
    rules = [rule(", ".join(matches), more=f", filters: [{REQUEST}, {RESPONSE}], timeouts: {{request: 0s}}")]
    rules += [
        f"{{backendRefs: [{backend('canary', ', weight: 1, filters: [' + REQUEST + ']')}, "
        f"{backend('stable', ', weight: 9999')}, {backend('stable', ', weight: 0, filters: [' + RESPONSE + ']')}]}}",
        f"{{backendRefs: [{backend('stable', ', weight: 0')}]}}",
        "{backendRefs: []}",
    ]
    hosts = "hostnames: ['*.example', c.example, x.b.example, other.test]"
    text += route("rich", f"{hosts}, rules: [{', '.join(rules)}]").replace("sectionName: http", "port: 8080")
    return text + route("any", f"rules: [{rule()}]").replace("sectionName: http", "port: 8080") + SITES


async def accepted(plan: Plan, folder: Path) -> None:
    """Raises EnvoyError with Envoy's words where it refuses the configuration of a gateway."""
    for gateway in plan.gateways:
        options = BuildOptions(picker_address="127.0.0.1", picker_port=9002)
        await validate_bootstrap(static_bootstrap(build_resources(gateway, options, sites=plan.sites)), folder)


@pytest.mark.e2e
async def test_the_example(tmp_path: Path) -> None:
    await accepted(compile_plan(load(EXAMPLE)), tmp_path)


@pytest.mark.e2e
async def test_everything_at_once(tmp_path: Path) -> None:
    plan = plan_of(rich_fleet())
    assert sum(len(host.rules) for found in plan.gateways[0].listeners for host in found.hosts) > 40
    await accepted(plan, tmp_path)
