"""Plan → one snapshot per gateway, rebuilt only where the Plan changed; a bad one is refused, the last good stays."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from pointsman.core.model import Gateway, Locality, Plan, Site
from pointsman.xds.build import BuildCache, BuildOptions, build_resources
from pointsman.xds.check import check, check_gateway
from pointsman.xds.heartbeat import Lifetime, Lifetimes
from pointsman.xds.node_tls import NodeTls, tls_of
from pointsman.xds.resources import Resources
from pointsman.xds.session import Snapshot

NOBODY: Final = Snapshot()
"""What a gateway that nobody knows is to have: nothing."""

NOWHERE: Final = Locality()
"""The locality of a proxy, or of a gateway's site, that says nothing of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeIdentity:
    """Who a proxy says it is, as far as it matters for what it gets.

    `allowed`: the gateways that its certificate names; None where there are no certificates.
    """

    id: str
    cluster: str = ""
    locality: Locality = NOWHERE
    metadata: Mapping[str, str] = field(default_factory=dict)
    allowed: frozenset[str] | None = None

    def claims(self) -> tuple[str, ...]:
        """The gateways that this says it is, best guess first: metadata `gateway`, node cluster, node id."""
        found = (self.metadata.get("gateway", ""), self.cluster, self.id)
        return tuple(dict.fromkeys(name for name in found if name))

    def names(self) -> tuple[str, ...]:
        """The gateways that this may be: its claims, without those that its certificate does not bear out."""
        return tuple(name for name in self.claims() if self.allowed is None or name in self.allowed)

    def names_none(self) -> bool:
        """Whether nothing that it says has the form of a Gateway's name, "namespace/name"."""
        return not any("/" in claim for claim in self.claims())

    def proven(self) -> bool:
        """Whether its first claim is borne out by its certificate, or needs not to be."""
        return self.allowed is None or self.claims()[:1] == self.names()[:1]


@dataclass(slots=True, kw_only=True)
class _Built:
    gateway: Gateway
    sites: tuple[Site, ...]
    lifetimes: Lifetimes
    cache: BuildCache = field(default_factory=BuildCache)
    snapshot: Snapshot | None = None
    problems: tuple[str, ...] = ()

    def locality(self) -> Locality:
        """Where the gateway's site is."""
        return next((site.locality for site in self.sites if site.name == self.gateway.site), NOWHERE)


class Views:
    """The snapshots of all gateways of a Plan."""

    def __init__(self, options: BuildOptions, lifetimes: Sequence[Lifetime] = ()) -> None:
        self._options = options
        self._lifetimes = tuple(lifetimes)
        self._node_tls = NodeTls(options)
        self._built: dict[str, _Built] = {}
        self._generation = 0
        self.ready = False

    def update(self, plan: Plan) -> list[str]:
        """Take over a Plan; returns the names of the gateways whose snapshot or problems changed."""
        self.ready = True
        gone = self._built.keys() - {gateway.name for gateway in plan.gateways}
        for name in gone:
            del self._built[name]
        return sorted([*gone, *(g.name for g in plan.gateways if self._update(g, plan.sites))])

    def refused(self, plan: Plan) -> dict[str, tuple[str, ...]]:
        """The gateways for which `update` would refuse this Plan, and why. Changes nothing."""
        found = {}
        for gateway in plan.gateways:
            built = self._built.get(gateway.name)
            if built is not None and built.gateway == gateway and built.sites == plan.sites:
                problems = built.problems
            else:
                last = built.snapshot.resources if built is not None and built.snapshot else None
                resources = build_resources(gateway, self._options, sites=plan.sites, cache=BuildCache())
                problems = (*check_gateway(gateway), *check(resources, last))
            if problems:
                found[gateway.name] = problems
        return found

    def names(self) -> list[str]:
        """All gateways of the Plan."""
        return sorted(self._built)

    def find(self, identity: NodeIdentity) -> str | None:
        """The gateway of a proxy: the one that it names; if it names none, the only one at its locality."""
        named = next((name for name in identity.names() if name in self._built), None)
        if named is not None or not identity.names_none() or identity.locality == NOWHERE:
            return named
        here = [name for name, built in self._built.items() if built.locality() == identity.locality]
        proven = [name for name in here if identity.allowed is None or name in identity.allowed]
        return proven[0] if len(proven) == 1 else None

    def snapshot(self, gateway: str | None) -> Snapshot | None:
        """What a gateway is to have; None while there is nothing to be said (no Plan yet, or never a good one).

        A proxy that asks in that time keeps what it has.
        """
        if not self.ready:
            return None
        if gateway is None or gateway not in self._built:
            return NOBODY
        return self._built[gateway].snapshot

    def snapshot_for(self, gateway: str | None, identity: NodeIdentity) -> Snapshot | None:
        """The same for one process of the gateway."""
        snapshot = self.snapshot(gateway)
        if snapshot is None or gateway is None:
            return snapshot
        return self._node_tls.adapt(gateway, snapshot, tls_of(identity.metadata))

    def problems(self, gateway: str) -> tuple[str, ...]:
        """Why the present Plan of a gateway is not served."""
        return self._built[gateway].problems if gateway in self._built else ()

    def _update(self, gateway: Gateway, sites: Iterable[Site]) -> bool:
        mine = tuple(sites)
        built = self._built.get(gateway.name)
        if built is not None and built.gateway == gateway and built.sites == mine:
            return False
        if built is None:
            built = self._built[gateway.name] = _Built(
                gateway=gateway, sites=mine, lifetimes=Lifetimes(rules=self._lifetimes)
            )
        built.gateway, built.sites = gateway, mine
        resources = built.lifetimes.apply(build_resources(gateway, self._options, sites=mine, cache=built.cache))
        last = built.snapshot.resources if built.snapshot else None
        problems = (*check_gateway(gateway), *check(resources, last))
        changed = problems != built.problems
        built.problems = problems
        if problems or (last is not None and _equal(resources, last)):
            return changed
        self._generation += 1
        built.snapshot = Snapshot(generation=self._generation, resources=resources)
        return True


def _equal(left: Resources, right: Resources) -> bool:
    return left.keys() == right.keys() and all(left[kind] is right[kind] or left[kind] == right[kind] for kind in left)
