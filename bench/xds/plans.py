"""Plans of any size for the benchmarks; every address is on loopback."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from pointsman.core.model import (
    Endpoint,
    Gateway,
    Listener,
    MatchType,
    PickProfile,
    Plan,
    Pool,
    RouteMatch,
    Rule,
    Site,
    SiteGroup,
    StringMatch,
    VirtualHost,
    WeightedPool,
)
from pointsman.xds import BuildOptions

GATEWAY = "bench/gw"
LISTENER = f"{GATEWAY}/http"
SITES = (Site(name="east"), Site(name="west"))

QUIET_MS = 3_600_000
OPTIONS = BuildOptions(picker_port=1, health_interval_ms=QUIET_MS)
"""No picker, and one probe per hour: ten thousand endpoints that do not exist shall cost Envoy nothing."""


def endpoints(count: int, site: str = "east", first: int = 0) -> tuple[Endpoint, ...]:
    """Endpoints on 127.x.y.z port 1, where nobody listens."""
    return tuple(
        Endpoint(name=f"{site}-{n}", address=f"127.{1 + (n >> 16)}.{n >> 8 & 255}.{n & 255}", port=1, site=site)
        for n in range(first, first + count)
    )


def pool(name: str, members: Sequence[Endpoint]) -> Pool:
    """One site, one priority."""
    return Pool(name=name, groups=(SiteGroup(site="east", priority=0, weight=1, endpoints=tuple(members)),))


def two_sites(name: str, near: Sequence[Endpoint], far: Sequence[Endpoint], *, swapped: bool = False) -> Pool:
    """The sites as priorities 0 and 1, or the other way round."""
    first, second = (1, 0) if swapped else (0, 1)
    groups = (
        SiteGroup(site="east", priority=first, weight=1, endpoints=tuple(near)),
        SiteGroup(site="west", priority=second, weight=1, endpoints=tuple(far)),
    )
    return Pool(name=name, groups=groups)


def rule(name: str, *arms: tuple[str, int], header: str = "") -> Rule:
    """A weighted split; with `header` only for requests whose `x-model` has that value."""
    matches = (StringMatch(type=MatchType.EXACT, name="x-model", value=header),) if header else ()
    return Rule(
        name=name,
        route=f"HTTPRoute/bench/{name}",
        match=RouteMatch(headers=matches),
        arms=tuple(WeightedPool(pool=target, weight=weight) for target, weight in arms),
        profile=PickProfile.NONE,
    )


def plan(pools: Sequence[Pool], rules: Sequence[Rule], *, gateways: Sequence[str] = (GATEWAY,)) -> Plan:
    """Gateways with one listener on a free port, all with the same rules and pools."""
    used = tuple(sorted(pools, key=lambda entry: entry.name))
    host = VirtualHost(name="any", domains=("*",), rules=tuple(rules))
    listener = Listener(name="http", address="127.0.0.1", port=0, hosts=(host,))
    made = tuple(Gateway(name=name, site="east", listeners=(listener,), pools=used) for name in gateways)
    return Plan(gateways=made, sites=SITES, pools=used)


def changed_endpoint(old: Plan, name: str, weight: int) -> Plan:
    """The Plan with another weight of the first endpoint of one pool; everything else is shared with the old one."""
    position = next(n for n, entry in enumerate(old.pools) if entry.name == name)
    target = old.pools[position]
    group = target.groups[0]
    member = replace(group.endpoints[0], weight=weight)
    other = replace(target, groups=(replace(group, endpoints=(member, *group.endpoints[1:])), *target.groups[1:]))
    pools = (*old.pools[:position], other, *old.pools[position + 1 :])
    return replace(old, pools=pools, gateways=tuple(replace(gateway, pools=pools) for gateway in old.gateways))


def changed_weight(old: Plan, weight: int, *, only: str = "") -> Plan:
    """The Plan with another split in its last rule, for all gateways or `only` one; the rest is shared."""

    def changed(gateway: Gateway) -> Gateway:
        if only not in {"", gateway.name}:
            return gateway
        listener = gateway.listeners[0]
        host = listener.hosts[0]
        last = host.rules[-1]
        first, second = last.arms
        arms = (replace(first, weight=weight), replace(second, weight=10_000 - weight))
        hosts = (replace(host, rules=(*host.rules[:-1], replace(last, arms=arms))),)
        return replace(gateway, listeners=(replace(listener, hosts=hosts),))

    return replace(old, gateways=tuple(changed(gateway) for gateway in old.gateways))
