"""What all manifests have in common, and the names that are ours."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Final

import msgspec
from msgspec import Meta

from pointsman.core.config import syntax
from pointsman.core.config.schema import Fields, rule

SITE: Final = "pointsman.dev/site"
"""Gateway annotation: the Site its proxies stand at. EndpointSlice label: the Site its endpoints stand at."""
BIND_ADDRESS: Final = "pointsman.dev/bind-address"
"""Gateway annotation: the IP address its listeners bind, before `spec.addresses`."""
POOL: Final = "pointsman.dev/pool"
"""EndpointSlice label: the InferencePool, in the same namespace, that its endpoints belong to."""
MODEL: Final = "pointsman.dev/model"
"""InferencePool annotation: the model that its endpoints serve."""
HEALTH_PATH: Final = "pointsman.dev/health-path"
"""InferencePool annotation: path of the active health check; `/health` where it is absent."""
FAILOVER: Final = "pointsman.dev/failover"
"""InferencePool annotation: `Off`, and the pool is not led by failover where no FailoverPolicy names it."""

OWN_PREFIX: Final = "pointsman.dev/"
CONTROLLER: Final = "pointsman.dev/gateway-controller"
"""`spec.controllerName` of the GatewayClasses that are ours."""
DEFAULT_CLASS: Final = "pointsman"
"""The gateway class that needs no GatewayClass manifest."""
DEFAULT_NAMESPACE: Final = "default"

Name = Annotated[str, rule(syntax.dns_subdomain)]
Label = Annotated[str, rule(syntax.dns_label)]
LabelValue = Annotated[str, rule(syntax.label_value)]
Hostname = Annotated[str, rule(syntax.hostname)]
IpAddress = Annotated[str, rule(syntax.ip_address)]
Duration = Annotated[str, rule(syntax.duration)]
Port = Annotated[int, Meta(ge=1, le=65535)]


class ObjectMeta(Fields, frozen=True, kw_only=True):
    """`metadata` of a Kubernetes object; what only the API server uses is accepted as it is."""

    name: Name
    namespace: Label = ""
    labels: dict[str, LabelValue] = msgspec.field(default_factory=dict)
    annotations: dict[str, str] = msgspec.field(default_factory=dict)
    creation_timestamp: Annotated[str, rule(syntax.timestamp)] = ""
    generate_name: Any = None
    uid: Any = None
    resource_version: Any = None
    generation: Any = None
    managed_fields: Any = None
    owner_references: Any = None
    finalizers: Any = None
    deletion_timestamp: Any = None
    deletion_grace_period_seconds: Any = None
    self_link: Any = None


class Resource(Fields, frozen=True, kw_only=True):
    """A manifest. `status` belongs to whoever wrote it and is not read."""

    cluster_scoped: ClassVar[bool] = False
    own_annotations: ClassVar[frozenset[str]] = frozenset()
    own_labels: ClassVar[frozenset[str]] = frozenset()

    api_version: str
    kind: str
    metadata: ObjectMeta
    status: Any = None

    @property
    def namespace(self) -> str:
        """The namespace, `default` where none is written; empty for cluster-scoped kinds."""
        return "" if self.cluster_scoped else self.metadata.namespace or DEFAULT_NAMESPACE

    @property
    def name(self) -> str:
        """`metadata.name`."""
        return self.metadata.name

    @property
    def key(self) -> str:
        """`namespace/name`, for cluster-scoped kinds the name."""
        return self.name if self.cluster_scoped else f"{self.namespace}/{self.name}"

    @property
    def created_us(self) -> int:
        """Time of creation for "the oldest wins"; objects without one come after those that have it."""
        return syntax.timestamp_us(self.metadata.creation_timestamp) or 1 << 62
