"""The picker's own HTTP/2 server with what the application knows: certificates that change, and who may call what."""

from __future__ import annotations

import ssl
import tempfile
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from enum import StrEnum
from typing import Any, Final

import structlog
from prometheus_client import CollectorRegistry

from pointsman.app.identity import SERVICES, Caller, identity
from pointsman.app.tls import Content
from pointsman.core.grpc_health import GrpcHealth
from pointsman.extproc import Feedback, Picker
from pointsman.extproc.metrics import PickerMetrics
from pointsman.extproc.pick_calls import PickCalls
from pointsman.extproc.pick_server import PickServer
from pointsman.extproc.server import READERS
from pointsman.extproc.tracing import PickTracer

log = structlog.get_logger()


class PickerShell(StrEnum):
    """What stands between the wire and the picker."""

    GRPC = "grpc"
    """`grpc.aio`: a general gRPC server."""
    NATIVE = "native"
    """`pointsman.extproc.http2`: our own, made for picks; a quarter to a third less CPU of picker and Envoy."""


def native_server(
    picker: Picker,
    registry: CollectorRegistry,
    health: GrpcHealth,
    *,
    default_pool: str = "",
    on_feedback: Callable[[Feedback], None] | None = None,
    tracer: PickTracer | None = None,
    tls: Callable[[], Content] | None = None,
    trust_domain: str = "",
) -> PickServer:
    """A server of picks that does not listen yet; its metrics are on `registry`.

    With `tls` clients need a certificate, by the files that it says at each new connection, and one that names a
    Gateway (`pointsman.app.identity`).
    """
    services = PickCalls(
        picker,
        PickerMetrics(registry, picker),
        health,
        readers=ThreadPoolExecutor(READERS, thread_name_prefix="pointsman-reader"),
        default_pool=default_pool,
        on_feedback=on_feedback,
        tracer=tracer,
    )
    if tls is None:
        return PickServer(services.methods())
    return PickServer(services.methods(), tls=_Contexts(tls), refusals=lambda names: refusals(names, trust_domain))


class _Contexts:
    """A TLS context for the files in force, made again when they change."""

    def __init__(self, current: Callable[[], Content]) -> None:
        self._current = current
        self._made: tuple[Content, ssl.SSLContext] | None = None

    def __call__(self) -> ssl.SSLContext:
        content = self._current()
        if self._made is None or self._made[0] != content:
            self._made = (content, _context(content))
        return self._made[1]


def _context(content: Content) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.verify_mode = ssl.CERT_REQUIRED
    context.set_alpn_protocols(["h2"])
    context.load_verify_locations(cadata=content.client_ca.decode("ascii"))
    # `ssl` reads keys from files only; this one is ours alone and has no name a moment later.
    with tempfile.NamedTemporaryFile() as pair:
        pair.write(content.key + b"\n" + content.certificate)
        pair.flush()
        context.load_cert_chain(pair.name, password=lambda: "")
    return context


_KINDS: Final = {"URI": "peer_uri", "DNS": "peer_dns"}


def refusals(certificate: Mapping[str, Any], trust_domain: str) -> Callable[[bytes], str]:
    """Says for a path why the bearer of a certificate may not call it, "" where it may. As `identity.Guard` does."""
    names: dict[str, list[bytes]] = {}
    for kind, name in certificate.get("subjectAltName", ()):
        if kind in _KINDS:
            names.setdefault(_KINDS[kind], []).append(name.encode())
    who = identity(names, trust_domain=trust_domain)

    def refuse(path: bytes) -> str:
        service = path.decode("utf-8", "replace").strip("/").rpartition("/")[0]
        needed = SERVICES.get(service, Caller.OPERATOR)
        if needed is Caller.ANYONE:
            return ""
        if {Caller.OPERATOR: who.operator, Caller.CONTROL_PLANE: who.control_plane}.get(needed, bool(who.gateways)):
            return ""
        called = [name.decode() for kind in names.values() for name in kind]
        log.warning("tls: call refused", service=service, names=called, needed=needed.name.lower())
        return f"{service} is for {needed.name.lower().replace('_', ' ')}s; this certificate names {called}"

    return refuse
