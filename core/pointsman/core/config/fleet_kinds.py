"""InferenceFleet (pointsman.dev): one model served from several sites, as a single backend of a route."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Annotated, ClassVar, Literal

import msgspec
from msgspec import Meta

from pointsman.core.config import meta, pool_annotations, syntax
from pointsman.core.config.document import Path, shown
from pointsman.core.config.failover_kinds import Residency
from pointsman.core.config.meta import Label, LabelValue, Name, Resource
from pointsman.core.config.schema import Complaint, Fields, rule

Found = Iterator[tuple[Path, str, str]]

_GLOB = re.compile(r"[-A-Za-z0-9_.*?]{1,63}\Z")


def glob(value: str) -> Complaint | None:
    """A label value in which * stands for any characters and ? for one."""
    if _GLOB.match(value):
        return None
    return f"{shown(value)} is no pattern", "expected a label value with * and ?, such as us-*"


class ClusterExpression(Fields, frozen=True, kw_only=True):
    """Kubernetes' operators, and `Glob`: the label's value fits one of the patterns."""

    key: Annotated[str, Meta(min_length=1, max_length=317)]
    operator: Literal["In", "NotIn", "Exists", "DoesNotExist", "Glob"]
    values: Annotated[tuple[Annotated[str, rule(glob)], ...], Meta(max_length=64)] = ()

    def complaints(self) -> Found:
        needs = self.operator in {"In", "NotIn", "Glob"}
        if needs and not self.values:
            yield ("values",), "is empty", f"expected values for {self.operator}"
        elif not needs and self.values:
            yield ("values",), f"do not belong to {self.operator}", "remove them"
        for index, value in enumerate(self.values):
            if self.operator in {"In", "NotIn"} and (complaint := syntax.label_value(value)):
                mend = "use operator: Glob" if set(value) & set("*?") else complaint[1]
                yield ("values", index), complaint[0], mend

    def holds(self, labels: Mapping[str, str]) -> bool:
        """Whether a site with these labels fits."""
        match self.operator:
            case "In":
                return labels.get(self.key) in self.values
            case "NotIn":
                return labels.get(self.key) not in self.values
            case "Exists":
                return self.key in labels
            case "DoesNotExist":
                return self.key not in labels
            case "Glob":
                return self.key in labels and any(_fits(labels[self.key], pattern) for pattern in self.values)


class ClusterSelector(Fields, frozen=True, kw_only=True):
    """Sites by their labels. All that is written must hold."""

    match_labels: dict[str, LabelValue] = msgspec.field(default_factory=dict)
    match_expressions: Annotated[tuple[ClusterExpression, ...], Meta(max_length=64)] = ()

    def complaints(self) -> Found:
        if not self.match_labels and not self.match_expressions:
            yield (), "selects nothing in particular", "write matchLabels or matchExpressions"

    def selects(self, labels: Mapping[str, str]) -> bool:
        """Whether a site with these labels is meant."""
        equal = all(labels.get(key) == value for key, value in self.match_labels.items())
        return equal and all(expression.holds(labels) for expression in self.match_expressions)


class MemberPool(Fields, frozen=True, kw_only=True):
    """A pool in the fleet's namespace, or an import of one."""

    not_yet: ClassVar[frozenset[str]] = frozenset({"namespace"})
    group: Literal["", "inference.networking.k8s.io", "inference.networking.x-k8s.io"] = ""
    kind: Literal["InferencePool", "InferencePoolImport"] = "InferencePool"
    name: Name

    def complaints(self) -> Found:
        home = f"inference.networking.{'x-' if self.kind == 'InferencePoolImport' else ''}k8s.io"
        if self.group not in {"", home}:
            yield ("group",), f"{self.kind} does not belong to {self.group}", f"expected {home}"


class FleetMember(Fields, frozen=True, kw_only=True):
    """A site of the fleet. `tier`: sites of a higher one serve when none of a lower one can. `weight` divides traffic
    between sites of one priority where Envoy balances by itself; 0: as many as the site's capacity or endpoints say."""

    site: Label
    pool_ref: MemberPool | None = None
    tier: Annotated[int, Meta(ge=0, le=31)] = 0
    weight: Annotated[int, Meta(ge=0, le=1_000_000)] = 0


class FleetPicker(Fields, frozen=True, kw_only=True):
    failure_mode: Literal["FailOpen", "FailClose"] = "FailOpen"


class InferenceFleetSpec(Fields, frozen=True, kw_only=True):
    """`poolRef` holds for selected sites and for members without their own; without any, the pools of the fleet's
    namespace that serve `model` are meant."""

    not_yet: ClassVar[frozenset[str]] = frozenset({"objective", "affinity", "spill"})
    model: str = ""
    pool_ref: MemberPool | None = None
    cluster_selector: ClusterSelector | None = None
    members: Annotated[tuple[FleetMember, ...], Meta(max_length=64)] = ()
    app_protocol: Literal["http", "kubernetes.io/h2c"] | None = None
    residency: Residency | None = None
    picker: FleetPicker = FleetPicker()

    def complaints(self) -> Found:
        if self.cluster_selector is None and not self.members:
            yield (), "has no sites", "write members, clusterSelector or both"
        seen: set[str] = set()
        for index, member in enumerate(self.members):
            if member.site in seen:
                yield ("members", index, "site"), f"{shown(member.site)} occurs twice", "remove one"
            seen.add(member.site)


class InferenceFleet(Resource, frozen=True, kw_only=True):
    """A backend of HTTPRoutes and GRPCRoutes that spans sites: one cluster in Envoy, one pool for the picker."""

    own_annotations: ClassVar[frozenset[str]] = frozenset(
        {meta.HEALTH_PATH, meta.FAILOVER, pool_annotations.SHED_AFTER}
    )
    spec: InferenceFleetSpec

    def complaints(self) -> Found:
        yield from pool_annotations.complaints(self.metadata.annotations)
        path = self.metadata.annotations.get(meta.HEALTH_PATH)
        if path is not None and (complaint := syntax.path(path)):
            yield ("metadata", "annotations", meta.HEALTH_PATH), *complaint
        if (choice := self.metadata.annotations.get(meta.FAILOVER, "Auto")) not in {"Auto", "Off"}:
            yield ("metadata", "annotations", meta.FAILOVER), f"found {shown(choice)}", "expected Auto or Off"

    @property
    def tiered(self) -> bool:
        """Whether its members are not all of one tier."""
        return len({member.tier for member in self.spec.members}) > 1 or any(m.tier for m in self.spec.members)


def _fits(value: str, pattern: str) -> bool:
    """Whether the whole value fits a pattern of * and ?. At worst it takes the product of their lengths."""
    v = p = 0
    star, after = -1, 0
    while v < len(value):
        if p < len(pattern) and (pattern[p] == "?" or pattern[p] == value[v]) and pattern[p] != "*":
            v, p = v + 1, p + 1
        elif p < len(pattern) and pattern[p] == "*":
            star, after, p = p, v, p + 1
        elif star >= 0:
            after += 1
            v, p = after, star + 1
        else:
            return False
    return all(rest == "*" for rest in pattern[p:])
