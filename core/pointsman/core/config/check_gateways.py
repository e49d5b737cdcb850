"""Rules across Gateways: classes, sites, listeners that would want the same port."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator

from pointsman.core.config import meta
from pointsman.core.config.document import Path, shown
from pointsman.core.config.gateway_kinds import Gateway
from pointsman.core.config.index import Index, Item, suggest_key
from pointsman.core.errors import Problem


def drop_foreign_gateways(index: Index) -> list[Item[Gateway]]:
    """Take the gateways of other controllers out of the index and return them."""
    foreign = []
    for key, item in list(index.gateways.items()):
        named = index.classes.get(item.object.spec.gateway_class_name)
        if named is not None and named.object.spec.controller_name != meta.CONTROLLER:
            foreign.append(index.gateways.pop(key))
            index.foreign_gateways.add(key)
    return foreign


def check_gateways(index: Index) -> Iterator[Problem]:
    """Everything that is wrong with or between gateways."""
    for item in index.gateways.values():
        yield from _class_and_site(index, item)
        yield from _listeners(item)
    yield from _shared_ports(index)


def _class_and_site(index: Index, item: Item[Gateway]) -> Iterator[Problem]:
    name = item.object.spec.gateway_class_name
    if name != meta.DEFAULT_CLASS and name not in index.classes and not index.is_broken("GatewayClass", name):
        mend = f"expected {meta.DEFAULT_CLASS}, or a GatewayClass manifest with controllerName {meta.CONTROLLER}"
        yield item.problem(("spec", "gatewayClassName"), f"no GatewayClass {shown(name)}", mend)
    site = item.object.site
    if site and site not in index.sites and not index.is_broken("Site", site):
        path = ("metadata", "annotations", meta.SITE)
        yield item.problem(path, f"no Site {shown(site)}", suggest_key(site, index.sites, "Site"))


def _listeners(item: Item[Gateway]) -> Iterator[Problem]:
    names: dict[str, int] = {}
    hosts: dict[tuple[int, str], int] = {}
    for position, listener in enumerate(item.object.spec.listeners):
        path: Path = ("spec", "listeners", position)
        if listener.name in names:
            what = f"{shown(listener.name)} is the name of two listeners"
            yield item.problem((*path, "name"), what, "expected unique names")
        names[listener.name] = position
        served = (listener.port, listener.hostname)
        if served in hosts:
            whom = f"host {listener.hostname}" if listener.hostname else "every host"
            other = item.object.spec.listeners[hosts[served]].name
            what = f"listeners {shown(other)} and {shown(listener.name)} both want {whom} on port {listener.port}"
            yield item.problem((*path, "port"), what, "give one another port or hostname")
        hosts[served] = position


def _shared_ports(index: Index) -> Iterator[Problem]:
    """Two gateways that would bind the same port on one machine.

    Gateways of different sites run on different machines, unless they bind loopback addresses: then somebody tries
    out several sites on one.
    """
    bound: dict[int, list[tuple[str, Item[Gateway], str]]] = {}
    for item in index.gateways.values():
        seen: set[int] = set()
        for position, listener in enumerate(item.object.spec.listeners):
            if listener.port in seen:
                continue
            seen.add(listener.port)
            for address in item.object.addresses:
                for other_address, other, other_name in bound.get(listener.port, []):
                    if other is not item and _clash(address, item.object, other_address, other.object):
                        taken = f"{address} port {listener.port} is taken by listener {shown(other_name)}"
                        what = f"{taken} of Gateway {other.object.key}"
                        mend = f"see {other.place()}; choose another port or address"
                        yield item.problem(("spec", "listeners", position, "port"), what, mend)
                bound.setdefault(listener.port, []).append((address, item, listener.name))


def _clash(one_address: str, one: Gateway, other_address: str, other: Gateway) -> bool:
    a, b = ipaddress.ip_address(one_address), ipaddress.ip_address(other_address)
    same = a == b or a.is_unspecified or b.is_unspecified
    return same and (one.site == other.site or a.is_loopback or b.is_loopback)
