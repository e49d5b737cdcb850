"""Rules of the routes of one port, by host name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pointsman.core.compile.precedence import RankedRule
from pointsman.core.config.attachment import ANY_HOST, common_hosts, covers, listeners_of, specificity
from pointsman.core.config.gateway_kinds import Gateway, GatewayListener
from pointsman.core.config.route_kinds import Route
from pointsman.core.model import Rule, VirtualHost


def virtual_hosts(
    gateway: Gateway, port: int, routes: Sequence[Route], ranked: Mapping[str, tuple[RankedRule, ...]]
) -> tuple[VirtualHost, ...]:
    """What a port serves: most specific hosts first, hosts with equal rules in one virtual host.

    `ranked` holds the rules by route name "kind/namespace/name". A host of a listener has the rules of all routes that
    mean it: those that name it most closely first, so that a request falls through to a route for `*.example.com`
    where the one for `api.example.com` does not match. Listeners are isolated: a host belongs to the listener whose
    host name fits it best, and gets nothing (404) from the others.
    """
    listeners = [listener for listener in gateway.spec.listeners if listener.port == port]
    by_rules: dict[tuple[str, tuple[Rule, ...]], list[str]] = {}
    for listener in listeners:
        attached = {
            f"{route.kind}/{route.key}": common_hosts(listener.hostname, route.spec.hostnames)
            for route in routes
            if listener in listeners_of(gateway, route)
        }
        for domain in sorted({host for hosts in attached.values() for host in hosts} | _own_host(listener, listeners)):
            if _owner(domain, listeners) is listener:
                rules = _rules(domain, attached, ranked)
                by_rules.setdefault((listener.name, rules), []).append(domain)
    hosts = []
    for (_, rules), domains in by_rules.items():
        ordered = tuple(sorted(domains, key=_order))
        hosts.append(VirtualHost(name=ordered[0], domains=ordered, rules=rules))
    return tuple(sorted(hosts, key=lambda host: _order(host.name)))


def _rules(
    domain: str, attached: Mapping[str, tuple[str, ...]], ranked: Mapping[str, tuple[RankedRule, ...]]
) -> tuple[Rule, ...]:
    candidates = []
    for name, hosts in attached.items():
        meant = [specificity(host) for host in hosts if covers(host, domain)]
        if meant:
            candidates += [(one.key(max(meant)), one.rule) for one in ranked[name]]
    return tuple(rule for _, rule in sorted(candidates, key=lambda c: c[0]))


def _own_host(listener: GatewayListener, listeners: Sequence[GatewayListener]) -> set[str]:
    """A listener's host is claimed even where no route serves it, lest a wider listener's routes answer for it."""
    wider = any(other is not listener and covers(_host(other), _host(listener)) for other in listeners)
    return {_host(listener)} if wider else set()


def _owner(domain: str, listeners: Sequence[GatewayListener]) -> GatewayListener:
    fitting = [listener for listener in listeners if covers(_host(listener), domain)]
    return max(fitting, key=lambda listener: specificity(_host(listener)))


def _host(listener: GatewayListener) -> str:
    return listener.hostname or ANY_HOST


def _order(host: str) -> tuple[tuple[int, int], str]:
    exact, length = specificity(host)
    return (-exact, -length), host
