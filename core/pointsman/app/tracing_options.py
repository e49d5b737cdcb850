"""What the user chose about traces, in the words of OpenTelemetry's own environment variables."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

import click

from pointsman.app.commands.shared import host_port
from pointsman.xds import GatewayTracing

OTLP_PORT: Final = 4317
"""Where collectors take OTLP over gRPC (OTLP specification)."""

SERVICE_NAME: Final = "pointsman"

SAMPLERS: Final[Mapping[str, tuple[bool, float | None]]] = {
    "parentbased_traceidratio": (True, None),
    "parentbased_always_on": (True, 1.0),
    "parentbased_always_off": (True, 0.0),
    "traceidratio": (False, None),
    "always_on": (False, 1.0),
    "always_off": (False, 0.0),
}
"""Names of OTEL_TRACES_SAMPLER → whether the sender's decision holds, and the share; None: the share is an option."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TracingOptions:
    """A collector that takes OTLP over gRPC without TLS, and what it is sent.

    Spans name their service `service_name` and what they come from: `-gateway`, `-picker`, `-control-plane`. `ratio`
    (0 to 1) and `follow_parent`: see `GatewayTracing`.
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

    def gateways(self) -> GatewayTracing:
        """What holds for gateways."""
        return GatewayTracing(
            collector_address=self.host,
            collector_port=self.port,
            service_name=f"{self.service_name}-gateway",
            ratio=self.ratio,
            follow_parent=self.follow_parent,
        )


def collector(text: str) -> tuple[str, int]:
    """The type of an option: `HOST:PORT` or `http://HOST:PORT`, as OTEL_EXPORTER_OTLP_ENDPOINT has it."""
    if "://" not in text:
        return host_port(text)
    try:
        parts = urlsplit(text)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise click.BadParameter(f"{text!r} is not http://HOST:PORT: {error}") from error
    if parts.scheme != "http":
        raise click.BadParameter(
            f"{text!r}: spans are sent without TLS; name a collector beside the gateways, such as "
            "http://127.0.0.1:4317, and let that one speak TLS"
        )
    if not host or parts.path.strip("/") or parts.query:
        raise click.BadParameter(f"{text!r} is not http://HOST:PORT; OTLP over gRPC has no path")
    return host, port or OTLP_PORT


def tracing_options(
    endpoint: tuple[str, int] | None, service_name: str, sampler: str, ratio: float
) -> TracingOptions | None:
    """The options that the words of the command line mean; None without a collector."""
    if endpoint is None:
        return None
    follow_parent, fixed = SAMPLERS[sampler]
    return TracingOptions(
        host=endpoint[0],
        port=endpoint[1],
        service_name=service_name,
        ratio=ratio if fixed is None else fixed,
        follow_parent=follow_parent,
    )
