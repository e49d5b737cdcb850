"""What the user chose about traces."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

OTLP_PORT: Final = 4317
"""Where collectors take OTLP over gRPC (OTLP specification)."""

SERVICE_NAME: Final = "pointsman"


@dataclass(frozen=True, slots=True, kw_only=True)
class TracingOptions:
    """A collector that takes OTLP over gRPC without TLS, and what it is sent.

    Spans come from the services `service_name` with `-gateway`, `-picker` or `-control-plane` behind it. `ratio` (0 to
    1) is the share of traces that are sampled; with `follow_parent` only of those that begin at a gateway, while a
    request that brings a `traceparent` keeps what its sender decided.
    """

    host: str
    port: int = OTLP_PORT
    service_name: str = SERVICE_NAME
    ratio: float = 1.0
    follow_parent: bool = True

    @property
    def target(self) -> str:
        """The collector's address as gRPC wants it."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"
