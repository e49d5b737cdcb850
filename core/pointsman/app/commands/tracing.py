"""Options about traces, in the words of OpenTelemetry: its environment variables hold where nothing else is said."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import urlsplit

import click

from pointsman.app.commands.shared import host_port
from pointsman.app.tracing_options import OTLP_PORT, SERVICE_NAME, TracingOptions

SAMPLERS: Final[Mapping[str, tuple[bool, float | None]]] = {
    "parentbased_traceidratio": (True, None),
    "parentbased_always_on": (True, 1.0),
    "parentbased_always_off": (True, 0.0),
    "traceidratio": (False, None),
    "always_on": (False, 1.0),
    "always_off": (False, 0.0),
}
"""Values of OTEL_TRACES_SAMPLER → whether the sender's decision holds, and the share; None: the share is an option."""


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
            f"http://127.0.0.1:{OTLP_PORT}, and let that one speak TLS"
        )
    if not host or parts.path.strip("/") or parts.query:
        raise click.BadParameter(f"{text!r} is not http://HOST:PORT; OTLP over gRPC has no path")
    return host, port or OTLP_PORT


def tracing_flags(command: Any) -> Any:
    """`--otlp-endpoint` and what belongs to it; `chosen_tracing` takes them."""
    for option in (
        click.option(
            "--otlp-ratio",
            type=click.FloatRange(0, 1),
            default=1.0,
            show_default=True,
            envvar="OTEL_TRACES_SAMPLER_ARG",
            show_envvar=True,
            help="Share of traces that are sampled, where the sampler is one by ratio.",
        ),
        click.option(
            "--otlp-sampler",
            type=click.Choice(list(SAMPLERS)),
            default="parentbased_traceidratio",
            show_default=True,
            envvar="OTEL_TRACES_SAMPLER",
            show_envvar=True,
            help="Which requests are traced; the parent-based ones leave it to clients that send a traceparent.",
        ),
        click.option(
            "--otlp-service-name",
            default=SERVICE_NAME,
            show_default=True,
            envvar="OTEL_SERVICE_NAME",
            show_envvar=True,
            metavar="NAME",
            help="Spans come from the services NAME-gateway, NAME-picker and NAME-control-plane.",
        ),
        click.option(
            "--otlp-endpoint",
            type=collector,
            envvar=["OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"],
            show_envvar=True,
            metavar="HOST:PORT",
            help="Collector that gateways and this process send traces to (OTLP over gRPC); none: nothing is traced.",
        ),
    ):
        command = option(command)
    return command


def chosen_tracing(
    *, otlp_endpoint: tuple[str, int] | None, otlp_service_name: str, otlp_sampler: str, otlp_ratio: float
) -> TracingOptions | None:
    """What the values of `tracing_flags` mean; None without a collector."""
    if otlp_endpoint is None:
        return None
    host, port = otlp_endpoint
    follow_parent, fixed = SAMPLERS[otlp_sampler]
    return TracingOptions(
        host=host,
        port=port,
        service_name=otlp_service_name,
        ratio=otlp_ratio if fixed is None else fixed,
        follow_parent=follow_parent,
    )
