"""InferenceObjective (inference.networking.x-k8s.io before, llm-d.ai now): what requests that name it need."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, ClassVar

from msgspec import Meta

from pointsman.core.config import pool_annotations
from pointsman.core.config.document import Path
from pointsman.core.config.meta import Name, Resource
from pointsman.core.config.schema import Fields

INFERENCE_GROUP = "inference.networking.k8s.io"


class PoolRef(Fields, frozen=True, kw_only=True):
    """An InferencePool of the same namespace."""

    group: str = INFERENCE_GROUP
    kind: str = "InferencePool"
    name: Name


class InferenceObjectiveSpec(Fields, frozen=True, kw_only=True):
    """Negative `priority`: such requests may be refused when the pool is full; 0 where it is absent."""

    priority: Annotated[int, Meta(ge=-(2**31), le=2**31 - 1)] = 0
    pool_ref: PoolRef

    def complaints(self) -> Iterator[tuple[Path, str, str]]:
        if self.pool_ref.group != INFERENCE_GROUP:
            yield ("poolRef", "group"), "names no InferencePool", f"expected {INFERENCE_GROUP}"
        if self.pool_ref.kind != "InferencePool":
            yield ("poolRef", "kind"), "names no InferencePool", "expected InferencePool"


class InferenceObjective(Resource, frozen=True, kw_only=True):
    """A request names it in the header `x-gateway-inference-objective`."""

    own_annotations: ClassVar[frozenset[str]] = frozenset({pool_annotations.TTFT})
    spec: InferenceObjectiveSpec

    def complaints(self) -> Iterator[tuple[Path, str, str]]:
        yield from pool_annotations.complaints(self.metadata.annotations)

    @property
    def pool(self) -> str:
        """`namespace/name` of its pool."""
        return f"{self.namespace}/{self.spec.pool_ref.name}"
