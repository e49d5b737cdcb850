"""Who a client certificate says its bearer is, and what that one may call.

| name in the certificate | identity |
|---|---|
| URI `spiffe://TRUST_DOMAIN/ns/NAMESPACE/gateway/NAME` | the Gateway NAMESPACE/NAME |
| DNS `NAME.NAMESPACE.gateway.pointsman` | the Gateway NAMESPACE/NAME |
| URI `spiffe://TRUST_DOMAIN/operator/NAME`, DNS `NAME.operator.pointsman` | an operator |
| DNS `pointsman` | another control plane |

A certificate may hold several names. The common name and wildcards count for nothing.
"""

from __future__ import annotations

import contextlib
import inspect
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any, Final, TypeAlias

import grpc
import structlog
from prometheus_client import CollectorRegistry, Counter

from pointsman.extproc.peers import GOSSIP_SERVICE

log = structlog.get_logger()

Context = grpc.aio.ServicerContext[Any, Any]
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"  # not subscriptable when it runs

_SPIFFE: Final = re.compile(r"spiffe://(?P<domain>[a-z0-9._-]+)/(?P<path>[A-Za-z0-9._/-]+)")
_GATEWAY_PATH: Final = re.compile(r"ns/(?P<namespace>[^/]+)/gateway/(?P<name>[^/]+)")
_OPERATOR_PATH: Final = re.compile(r"operator/(?P<name>[^/]+)")
# A namespace is one DNS label, the name of a Gateway may have several.
_GATEWAY_DNS: Final = re.compile(
    r"(?P<name>[a-z0-9-]+(?:\.[a-z0-9-]+)*)\.(?P<namespace>[a-z0-9-]+)\.gateway\.pointsman"
)
_OPERATOR_DNS: Final = re.compile(r"(?P<name>[a-z0-9-]+)\.operator\.pointsman")

CONTROL_PLANE: Final = "pointsman"
"""What its certificate calls a control plane, whatever its address."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """What one certificate allows: configurations of `gateways` ("namespace/name"), to read all, to share load."""

    gateways: frozenset[str] = frozenset()
    operator: bool = False
    control_plane: bool = False


class Caller(Enum):
    """Who may call a service."""

    ANYONE = auto()
    GATEWAY = auto()
    OPERATOR = auto()
    CONTROL_PLANE = auto()


SERVICES: Final = {
    "grpc.health.v1.Health": Caller.ANYONE,
    "envoy.service.discovery.v3.AggregatedDiscoveryService": Caller.GATEWAY,
    "envoy.service.cluster.v3.ClusterDiscoveryService": Caller.GATEWAY,
    "envoy.service.endpoint.v3.EndpointDiscoveryService": Caller.GATEWAY,
    "envoy.service.listener.v3.ListenerDiscoveryService": Caller.GATEWAY,
    "envoy.service.route.v3.RouteDiscoveryService": Caller.GATEWAY,
    "envoy.service.secret.v3.SecretDiscoveryService": Caller.GATEWAY,
    "envoy.service.runtime.v3.RuntimeDiscoveryService": Caller.GATEWAY,
    "envoy.service.load_stats.v3.LoadReportingService": Caller.GATEWAY,
    "envoy.service.ext_proc.v3.ExternalProcessor": Caller.GATEWAY,
    "envoy.service.accesslog.v3.AccessLogService": Caller.GATEWAY,
    GOSSIP_SERVICE: Caller.CONTROL_PLANE,
}
"""What is not listed (client status, reflection, whatever comes later) shows all gateways to its caller: operators."""


def identity(names: Mapping[str, Iterable[bytes]], *, trust_domain: str = "") -> Identity:
    """The identity of a gRPC peer from its `auth_context()`; with `trust_domain` no other SPIFFE id counts."""
    gateways: set[str] = set()
    dns = _dns(names)
    for gateway in (
        *(_GATEWAY_PATH.fullmatch(path) for path in _spiffe_paths(names, trust_domain)),
        *(_GATEWAY_DNS.fullmatch(name) for name in dns),
    ):
        if gateway is not None:
            gateways.add(f"{gateway['namespace']}/{gateway['name']}")
    return Identity(
        gateways=frozenset(gateways),
        operator=bool(operators(names, trust_domain=trust_domain)),
        control_plane=CONTROL_PLANE in dns,
    )


def operators(names: Mapping[str, Iterable[bytes]], *, trust_domain: str = "") -> tuple[str, ...]:
    """The operators that a certificate names, as `identity` reads it: the NAME of each."""
    found = (
        *(_OPERATOR_PATH.fullmatch(path) for path in _spiffe_paths(names, trust_domain)),
        *(_OPERATOR_DNS.fullmatch(name) for name in _dns(names)),
    )
    return tuple(one["name"] for one in found if one is not None)


def _spiffe_paths(names: Mapping[str, Iterable[bytes]], trust_domain: str) -> list[str]:
    """The paths of SPIFFE ids that count."""
    ids = (_SPIFFE.fullmatch(uri.decode("utf-8", "replace")) for uri in names.get("peer_uri", ()))
    return [one["path"] for one in ids if one is not None and (not trust_domain or one["domain"] == trust_domain)]


def _dns(names: Mapping[str, Iterable[bytes]]) -> list[str]:
    return [name.decode("utf-8", "replace").lower() for name in names.get("peer_dns", ())]


class Guard(grpc.aio.ServerInterceptor):
    """Lets each service be called only by whom `SERVICES` names; others get PERMISSION_DENIED and a log line."""

    def __init__(self, registry: CollectorRegistry, *, trust_domain: str = "") -> None:
        self._trust_domain = trust_domain
        self._guarded: dict[str, tuple[Handler, Handler]] = {}
        self._refused = Counter(
            "pointsman_tls_refused_calls",
            "Calls by clients whose certificate does not allow them.",
            ["service"],
            registry=registry,
        )

    def gateways(self, context: Context) -> frozenset[str]:
        """The gateways whose configuration the caller may have."""
        return self._identity(context).gateways

    async def intercept_service(
        self, continuation: Callable[[Any], Awaitable[Handler | None]], handler_call_details: Any
    ) -> Handler | None:
        """Wrap the method's handler; once, not for every call."""
        handler = await continuation(handler_call_details)
        if handler is None:
            return None
        method: str = handler_call_details.method
        known = self._guarded.get(method)
        if known is None or known[0] is not handler:
            known = self._guarded[method] = (handler, self._guard(method.strip("/").rpartition("/")[0], handler))
        return known[1]

    def _guard(self, service: str, handler: Handler) -> Handler:
        needed = SERVICES.get(service, Caller.OPERATOR)
        if needed is Caller.ANYONE:
            return handler

        async def check(context: Context) -> None:
            who = self._identity(context)
            if {Caller.OPERATOR: who.operator, Caller.CONTROL_PLANE: who.control_plane}.get(needed, who.gateways):
                return
            names = _names(context)
            self._refused.labels(service).inc()
            log.warning(
                "tls: call refused", service=service, peer=context.peer(), names=names, needed=needed.name.lower()
            )
            await context.abort(
                grpc.StatusCode.PERMISSION_DENIED,
                f"{service} is for {needed.name.lower().replace('_', ' ')}s; this certificate names {names}",
            )

        return checked(handler, check)

    def _identity(self, context: Context) -> Identity:
        return identity(context.auth_context(), trust_domain=self._trust_domain)


def _names(context: Context) -> list[str]:
    """The names in a client's certificate, for people."""
    found = context.auth_context()
    return [name.decode("utf-8", "replace") for key in ("peer_uri", "peer_dns") for name in found.get(key, ())]


def checked(handler: Handler, check: Callable[[Context], Awaitable[None]]) -> Handler:
    """The same method, after `check` let the caller pass (or raised)."""
    behaviour: Any = next(
        filter(None, (handler.unary_unary, handler.unary_stream, handler.stream_unary, handler.stream_stream))
    )
    if inspect.isasyncgenfunction(behaviour):

        async def generating(request: Any, context: Context) -> AsyncIterator[Any]:
            await check(context)
            async with contextlib.aclosing(behaviour(request, context)) as answers:
                async for answer in answers:
                    yield answer

        wrapped: Any = generating
    else:

        async def answering(request: Any, context: Context) -> Any:
            await check(context)
            return await behaviour(request, context)

        wrapped = answering
    return same_shape(handler, wrapped)


def same_shape(handler: Handler, behaviour: Any) -> Handler:
    """A handler for `behaviour` with the streaming and the encoding of another."""
    makers: dict[tuple[bool, bool], Any] = {
        (False, False): grpc.unary_unary_rpc_method_handler,
        (False, True): grpc.unary_stream_rpc_method_handler,
        (True, False): grpc.stream_unary_rpc_method_handler,
        (True, True): grpc.stream_stream_rpc_method_handler,
    }
    made: Handler = makers[handler.request_streaming, handler.response_streaming](
        behaviour,
        request_deserializer=handler.request_deserializer,
        response_serializer=handler.response_serializer,
    )
    return made
