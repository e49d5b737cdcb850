"""Make before break: what may be sent of each type, given what the client has acknowledged.

    new clusters ─▶ their endpoints ─▶ ACK, warm ─▶ listeners ─▶ routes ─▶ ACK ─▶ a while ─▶ unused clusters leave

Nothing here is a sequence of steps. Each type has a target that depends on the acknowledged state of the others; every
ACK moves the targets on, until they are what is desired. Envoy accepts a route to a cluster that does not exist and
drops a cluster that is in use, both with failed requests, so this is the control plane's work (design D10).

Rules, for clients that take all clusters (Envoy):

- a listener or route configuration is sent once its clusters are acknowledged, their endpoints too, and the clusters
  had time to warm; until then the client keeps the version it has;
- a cluster, an assignment or a route configuration stays while something that the client has, or that is on its way to
  it, refers to it; a cluster stays for a while after that (`linger`);
- a listener stays while another one, on another port, is not acknowledged: one that moves to a port that is taken
  must not end what it serves.

Clients that name their clusters (gRPC) learn the names from the routes and get everything at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass
from typing import Final

from pointsman.xds.channel import Channel, Target
from pointsman.xds.resources import CLUSTER, EMPTY, ENDPOINT, LISTENER, ROUTE, SHORT_NAMES, Resource, Resources

NOTHING: Final[frozenset[str]] = frozenset()

USERS: Final = {CLUSTER: (ROUTE, LISTENER), ENDPOINT: (CLUSTER,), ROUTE: (LISTENER,)}
"""Who refers to a type."""

ANY: Final = "*"


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting:
    """A resource that is held back, and the one that it waits for."""

    type_url: str
    name: str
    for_type: str
    for_name: str

    def __str__(self) -> str:
        return f"{SHORT_NAMES[self.type_url]} {self.name} waits for {SHORT_NAMES[self.for_type]} {self.for_name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """One client as ordering sees it.

    `desired` is where everything ends (last good versions instead of what the client rejected), `withheld` the names
    per type that have no good version. `since` is the generation in which a listener or route got its desired version.
    `warming` are clusters that are acknowledged and may not be in use yet. `patient` is False once waiting took too
    long: then only the existence of clusters is insisted on. `resumed` says that the client came with state.
    `lingering` are clusters that nothing uses any more and that stay for now.
    """

    desired: Resources
    withheld: Mapping[str, Set[str]]
    channels: Mapping[str, Channel]
    since: Mapping[tuple[str, str], int]
    warming: Set[str]
    patient: bool
    resumed: bool
    lingering: Set[str] = NOTHING


def target(view: View, type_url: str) -> tuple[Target, list[Waiting]]:
    """The target of a type now, and what is held back for which reason."""
    desired = view.desired.get(type_url, EMPTY)
    withheld = view.withheld.get(type_url, NOTHING)
    clusters = view.channels.get(CLUSTER)
    if clusters is None or not clusters.subscription.wildcard:
        return Target(resources=desired, desired=desired, withheld=withheld), []
    kept = _kept(view, type_url, desired.keys())
    waiting: list[Waiting] = []
    if kept and _routes_unheard(view):
        waiting = [Waiting(type_url=type_url, name=name, for_type=ROUTE, for_name=ANY) for name in sorted(kept)]
    if type_url in {LISTENER, ROUTE}:
        waiting = list(_waiting(view, type_url, desired.values()))
    if not kept and not waiting:
        return Target(resources=desired, desired=desired, withheld=withheld), []
    held_back = {entry.name for entry in waiting}
    known = view.channels[type_url].known if type_url in view.channels else {}
    resources = {name: resource for name, resource in desired.items() if name not in held_back}
    resources |= {name: known[name] for name in kept | held_back if name in known}
    return (
        Target(
            resources=dict(sorted(resources.items())),
            desired=desired,
            withheld=withheld | {name for name in held_back if name not in known},
        ),
        waiting,
    )


def _kept(view: View, type_url: str, desired: Set[str]) -> set[str]:
    """Names that the client has, that are not desired, and that must stay for now."""
    channel = view.channels.get(type_url)
    if type_url == LISTENER and channel is not None:
        return _old_listeners(view, channel, desired)
    if channel is None or type_url not in USERS:
        return set()
    extra = channel.known.keys() - desired
    if not extra:
        return set()
    used = _used(view, type_url, extra)
    return used | (extra & view.lingering) if type_url == CLUSTER else used


def unused(view: View) -> set[str]:
    """Clusters that the client has, that are not desired, and that nothing it has refers to."""
    clusters = view.channels.get(CLUSTER)
    if clusters is None or not clusters.subscription.wildcard:
        return set()
    extra = clusters.known.keys() - view.desired.get(CLUSTER, EMPTY).keys()
    return extra - _used(view, CLUSTER, extra) if extra else set()


def _used(view: View, type_url: str, names: set[str]) -> set[str]:
    """The part of `names` that something refers to which the client has or is being sent."""
    if type_url == CLUSTER and _routes_unheard(view):
        return names
    used = {
        name
        for user in USERS[type_url]
        if user in view.channels
        for resource in view.channels[user].held()
        for kind, name in resource.references
        if kind in {type_url, ANY}
    }
    return names if ANY in used else names & used


def _old_listeners(view: View, channel: Channel, desired: Set[str]) -> set[str]:
    """Listeners that stay until those that may replace them are there.

    Where the ports are the same, as after a change of the bind address, the old one may be what is in the way.
    """
    coming = {name for name in desired | view.withheld.get(LISTENER, NOTHING) if not channel.firm(name)}
    ports = {_port(name) for name in coming}
    return {name for name in channel.known.keys() - desired if coming and _port(name) not in ports}


def _port(listener: str) -> str:
    return listener.rpartition(":")[2]


def _routes_unheard(view: View) -> bool:
    """Whether a client that came back has routes that it has not told us of yet."""
    return view.resumed and view.patient and ROUTE not in view.channels


def _waiting(view: View, type_url: str, resources: Iterable[Resource]) -> Iterable[Waiting]:
    channel = view.channels.get(type_url)
    for resource in resources:
        held = channel.known.get(resource.name) if channel is not None else None
        if held is not None and held.version == resource.version:
            continue
        missing = _missing(view, resource)
        if missing is not None:
            yield Waiting(type_url=type_url, name=resource.name, for_type=missing[0], for_name=missing[1])


def _missing(view: View, resource: Resource) -> tuple[str, str] | None:
    """The first thing that must be acknowledged before `resource` is sent."""
    clusters = view.channels[CLUSTER]
    since = view.since.get((resource.type_url, resource.name), 0)
    for kind, name in resource.references:
        if kind != CLUSTER:
            continue
        if not clusters.firm(name):
            return CLUSTER, name
        assignments = [below for kind_below, below in clusters.known[name].references if kind_below == ENDPOINT]
        for assignment in assignments:
            if assignment in view.withheld.get(ENDPOINT, NOTHING):
                return ENDPOINT, assignment
        if not view.patient:
            continue
        if name in view.warming or not _settled(view, CLUSTER, name, since):
            return CLUSTER, name
        for assignment in assignments:
            if not _settled(view, ENDPOINT, assignment, since):
                return ENDPOINT, assignment
    return None


def _settled(view: View, type_url: str, name: str, since: int) -> bool:
    """Whether the client acknowledged the desired version, or at least one as new as generation `since`.

    The second half keeps routes from starving when endpoints change faster than they are acknowledged.
    """
    channel = view.channels.get(type_url)
    wanted = view.desired.get(type_url, EMPTY).get(name)
    held = channel.known.get(name) if channel is not None else None
    if channel is None or held is None:
        return wanted is None
    return wanted is None or wanted.version == held.version or channel.generations.get(name, -1) >= since
