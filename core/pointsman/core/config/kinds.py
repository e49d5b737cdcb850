"""Which kinds there are: what a manifest's `apiVersion` and `kind` mean to us."""

from __future__ import annotations

import difflib
from dataclasses import dataclass

from pointsman.core.config.document import Document, shown
from pointsman.core.config.failover_kinds import FailoverPolicy
from pointsman.core.config.fleet_kinds import InferenceFleet
from pointsman.core.config.gateway_kinds import Gateway, GatewayClass, ReferenceGrant
from pointsman.core.config.import_kinds import InferencePoolImport
from pointsman.core.config.meta import Resource
from pointsman.core.config.objective_kinds import InferenceObjective
from pointsman.core.config.operation_kinds import TrafficOperation
from pointsman.core.config.policy_kinds import RolloutPolicy
from pointsman.core.config.pool_kinds import EndpointSlice, InferencePool, Site
from pointsman.core.config.rewrite_kinds import InferenceModelRewrite
from pointsman.core.config.route_kinds import GRPCRoute, HTTPRoute
from pointsman.core.config.schema import suggest
from pointsman.core.errors import Problem

GATEWAY_GROUP = "gateway.networking.k8s.io"
INFERENCE_GROUP = "inference.networking.k8s.io"
DISCOVERY_GROUP = "discovery.k8s.io"
OWN_GROUP = "pointsman.dev"


@dataclass(frozen=True, slots=True)
class Group:
    """An API group: the kinds we read with the versions we read, and the kinds that are to come."""

    kinds: dict[str, type[Resource]]
    versions: dict[str, tuple[str, ...]]
    not_yet: frozenset[str] = frozenset()


GROUPS: dict[str, Group] = {
    GATEWAY_GROUP: Group(
        {
            "GatewayClass": GatewayClass,
            "Gateway": Gateway,
            "HTTPRoute": HTTPRoute,
            "GRPCRoute": GRPCRoute,
            "ReferenceGrant": ReferenceGrant,
        },
        {
            "GatewayClass": ("v1", "v1beta1"),
            "Gateway": ("v1", "v1beta1"),
            "HTTPRoute": ("v1", "v1beta1"),
            "GRPCRoute": ("v1",),
            "ReferenceGrant": ("v1", "v1beta1"),
        },
        frozenset({"ListenerSet", "BackendTLSPolicy", "TLSRoute", "TCPRoute", "UDPRoute"}),
    ),
    INFERENCE_GROUP: Group({"InferencePool": InferencePool}, {"InferencePool": ("v1",)}),
    DISCOVERY_GROUP: Group({"EndpointSlice": EndpointSlice}, {"EndpointSlice": ("v1",)}),
    OWN_GROUP: Group(
        {
            "Site": Site,
            "RolloutPolicy": RolloutPolicy,
            "FailoverPolicy": FailoverPolicy,
            "TrafficOperation": TrafficOperation,
            "InferenceFleet": InferenceFleet,
        },
        dict.fromkeys(("Site", "RolloutPolicy", "FailoverPolicy", "TrafficOperation", "InferenceFleet"), ("v1alpha1",)),
    ),
    "gateway.networking.x-k8s.io": Group({}, {}, frozenset({"XListenerSet", "XBackendTrafficPolicy", "XMesh"})),
    "inference.networking.x-k8s.io": Group(
        {
            "InferenceObjective": InferenceObjective,
            "InferenceModelRewrite": InferenceModelRewrite,
            "InferencePoolImport": InferencePoolImport,
        },
        {
            "InferenceObjective": ("v1alpha2",),
            "InferenceModelRewrite": ("v1alpha2",),
            "InferencePoolImport": ("v1alpha1",),
        },
    ),
    "llm-d.ai": Group(
        {"InferenceObjective": InferenceObjective, "InferenceModelRewrite": InferenceModelRewrite},
        {"InferenceObjective": ("v1alpha2",), "InferenceModelRewrite": ("v1alpha2",)},
    ),
}
CLUSTER_SCOPED = frozenset(
    kind for group in GROUPS.values() for kind, struct in group.kinds.items() if struct.cluster_scoped
)
_HOME = {kind: (name, group.versions[kind][0]) for name, group in GROUPS.items() for kind in group.kinds}
_ALIKE = 0.9  # a slip of the pen in a group's name, not another group of Kubernetes


def struct_of(document: Document) -> type[Resource] | Problem | None:
    """The type to read the document as; None for a kind of a group that is not ours."""
    version, kind = document.data.get("apiVersion"), document.data.get("kind")
    for field, value in (("apiVersion", version), ("kind", kind)):
        if not isinstance(value, str) or not value:
            what = "is missing" if value is None else f"found {shown(value)}"
            return document.problem((field,), what, "expected a Kubernetes manifest with apiVersion and kind")
    assert isinstance(version, str) and isinstance(kind, str)
    name, _, number = version.rpartition("/")
    group = GROUPS.get(name)
    if group is None:
        return _foreign(document, name, kind)
    if kind in group.not_yet:
        return document.problem(("kind",), f"{kind} is not supported yet", "remove the manifest")
    if kind not in group.kinds:
        return document.problem(("kind",), f"{shown(kind)} is no kind of {name}", _kind_mend(group, kind))
    if number not in group.versions[kind]:
        newest = f"{name}/{group.versions[kind][0]}"
        return document.problem(("apiVersion",), f"{shown(version)} is not read", f"expected {newest} for {kind}")
    return group.kinds[kind]


def _kind_mend(group: Group, kind: str) -> str:
    if kind in _HOME:
        return f"{kind} belongs to {'/'.join(_HOME[kind])}"
    return suggest(kind, group.kinds.keys() | group.not_yet)


def _foreign(document: Document, name: str, kind: str) -> Problem | None:
    close = difflib.get_close_matches(name, GROUPS, n=1, cutoff=_ALIKE)
    if close:
        what = f"{shown(document.data['apiVersion'])} is no API that Pointsman knows"
        known = GROUPS[close[0]].versions.get(kind)
        return document.problem(("apiVersion",), what, f"did you mean {close[0]}/{known[0] if known else 'v1'}?")
    return None
