"""Manifests for single rules of Gateway API, and ways to look at the Plan they give."""

from __future__ import annotations

from config.config_fixtures import FLEET, manifests, problems
from pointsman.core.compile import compile_plan
from pointsman.core.model import Gateway, Plan, Pool, Rule, VirtualHost

POOL = "group: inference.networking.k8s.io, kind: InferencePool"


def plan_of(text: str) -> Plan:
    found = problems(text)
    assert found == []
    return compile_plan(manifests(text))


def route(name: str, spec: str, *, kind: str = "HTTPRoute", created: str = "") -> str:
    """A route to the gateway `main`; `spec` is what follows its parentRefs, in flow style."""
    stamp = f', creationTimestamp: "{created}"' if created else ""
    section = "http" if kind == "HTTPRoute" else "grpc"
    return (
        f"---\napiVersion: gateway.networking.k8s.io/v1\nkind: {kind}\nmetadata: {{name: {name}{stamp}}}\n"
        f"spec: {{parentRefs: [{{name: main, sectionName: {section}}}], {spec}}}\n"
    )


def backend(name: str, more: str = "") -> str:
    return f"{{{POOL}, name: {name}{more}}}"


def rule(matches: str = "", pool: str = "stable", more: str = "") -> str:
    return f"{{matches: [{matches}], backendRefs: [{backend(pool)}]{more}}}"


def without_routes(text: str = FLEET) -> str:
    """The fleet without its HTTPRoute."""
    return "---\n".join(part for part in text.split("---\n") if "kind: HTTPRoute" not in part)


def hosts_of(plan: Plan, port: int = 8080) -> tuple[VirtualHost, ...]:
    return next(listener.hosts for listener in plan.gateways[0].listeners if listener.port == port)


def rules_of(text: str) -> tuple[Rule, ...]:
    """The rules of the only virtual host of the HTTP port."""
    (host,) = hosts_of(plan_of(text))
    return host.rules


def order_of(text: str) -> list[str]:
    """Names of the rules without the kind and namespace: `a/0/0`."""
    return [one.name.removeprefix("HTTPRoute/default/") for one in rules_of(text)]


SITES = """---
apiVersion: pointsman.dev/v1alpha1
kind: Site
metadata: {name: north}
spec: {rttMs: {east: 20}}
---
apiVersion: pointsman.dev/v1alpha1
kind: Site
metadata: {name: far}
spec: {capacity: {weight: 7}}
---
apiVersion: pointsman.dev/v1alpha1
kind: Site
metadata: {name: again}
spec: {}
---
apiVersion: pointsman.dev/v1alpha1
kind: Site
metadata: {name: west}
spec: {}
"""


def endpoint_slice(site: str, address: str, more: str = "", pool: str = "stable") -> str:
    return f"""---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{name: {pool}-{site}, labels: {{pointsman.dev/pool: {pool}, pointsman.dev/site: {site}}}}}
addressType: IPv4
ports: [{{port: 8000}}]
endpoints: [{{addresses: [{address}]{more}}}]
"""


def pool_of(plan: Plan | Gateway, name: str = "default/stable") -> Pool:
    return next(pool for pool in plan.pools if pool.name == name)
