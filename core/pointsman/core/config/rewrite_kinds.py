"""InferenceModelRewrite (inference.networking.x-k8s.io before, llm-d.ai now): models that requests are renamed to."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Final, Literal

from msgspec import Meta

from pointsman.core.config.document import Path, shown
from pointsman.core.config.meta import Name, Resource
from pointsman.core.config.schema import Fields
from pointsman.core.model import TOTAL_WEIGHT

Found = Iterator[tuple[Path, str, str]]

MAX_RULES: Final = 128
MAX_MATCHES: Final = 256
MAX_TARGETS: Final = 16
"""Each target is a cluster of every gateway that names the pool, with probes of its own."""

ANY_MODEL: Final = ""

_HOMES: Final = {"InferencePool": "inference.networking.k8s.io", "InferenceFleet": "pointsman.dev"}

ModelName = Annotated[str, Meta(min_length=1, max_length=253)]


class RewritePoolRef(Fields, frozen=True, kw_only=True):
    """An InferencePool, or an InferenceFleet, of the same namespace."""

    group: Literal["inference.networking.k8s.io", "pointsman.dev"] = "inference.networking.k8s.io"
    kind: Literal["InferencePool", "InferenceFleet"] = "InferencePool"
    name: Name

    def complaints(self) -> Found:
        home = _HOMES[self.kind]
        if self.group != home:
            yield ("group",), f"{self.kind} does not belong to {self.group}", f"expected {home}"


class ModelMatch(Fields, frozen=True, kw_only=True):
    """The value of `model` in a request's body."""

    type: Literal["Exact"] = "Exact"
    value: ModelName


class RewriteMatch(Fields, frozen=True, kw_only=True):
    model: ModelMatch


class TargetModel(Fields, frozen=True, kw_only=True):
    """`weight` is needed by all targets of a rule or by none."""

    model_rewrite: ModelName
    weight: Annotated[int, Meta(ge=1, le=1_000_000)] | None = None


class RewriteRule(Fields, frozen=True, kw_only=True):
    """Requests that one of the `matches` fits (none: all) are renamed to one of the `targets`."""

    matches: Annotated[tuple[RewriteMatch, ...], Meta(max_length=MAX_MATCHES)] = ()
    targets: Annotated[tuple[TargetModel, ...], Meta(min_length=1, max_length=MAX_TARGETS)]

    @property
    def models(self) -> tuple[str, ...]:
        """The models that it is about; `ANY_MODEL` alone: all that no other rule names."""
        return tuple(match.model.value for match in self.matches) or (ANY_MODEL,)

    def complaints(self) -> Found:
        names = [target.model_rewrite for target in self.targets]
        for index, name in enumerate(names):
            if name in names[:index]:
                yield ("targets", index, "modelRewrite"), f"{shown(name)} is a target twice", "remove one"
        weights = [target.weight or 1 for target in self.targets]
        for index, weight in enumerate(weights):
            if weight * TOTAL_WEIGHT < sum(weights):
                what = f"{weight} of {sum(weights)} is less than 0.01 %, so no request would come"
                yield ("targets", index, "weight"), what, "give it more, or remove the target"
        weighted = [target.weight is not None for target in self.targets]
        if any(weighted) and not all(weighted):
            what = "is missing, and other targets of the rule have one"
            yield ("targets", weighted.index(False), "weight"), what, "give all targets a weight, or none"


class InferenceModelRewriteSpec(Fields, frozen=True, kw_only=True):
    """An exact match comes before a rule without matches, whatever the order of the rules."""

    pool_ref: RewritePoolRef
    rules: Annotated[tuple[RewriteRule, ...], Meta(min_length=1, max_length=MAX_RULES)]


class InferenceModelRewrite(Resource, frozen=True, kw_only=True):
    """Several targets of a rule are arms of every HTTPRoute rule that names the pool."""

    spec: InferenceModelRewriteSpec

    @property
    def pool(self) -> str:
        """`namespace/name` of its pool."""
        return f"{self.namespace}/{self.spec.pool_ref.name}"


def precedence(manifest: InferenceModelRewrite) -> tuple[int, str]:
    """Sorts manifests by whose rules hold where several match alike: the older one, by the specification."""
    return manifest.created_us, manifest.key
