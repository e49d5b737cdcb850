"""Who may use the admin API, and how it is known who that is.

On loopback everybody may, unless something is asked for: a token (`admin_token`), or a client certificate that names an
operator (`identity`). Either will do where both are. What a token's or loopback's bearer calls himself is not proven;
the name in a certificate is, and the audit log has it.
"""

from __future__ import annotations

import ssl
import time
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass
from typing import Any, Final

from aiohttp import web

from pointsman.app.admin_host import loopback_host
from pointsman.app.admin_tls import AdminTls
from pointsman.app.admin_token import Token
from pointsman.app.identity import operators
from pointsman.core.change import Signature

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """How a request got in. `name` is that of the operator in a certificate, "" where none was shown."""

    via: str
    name: str = ""


LOOPBACK: Final = Access(via="loopback")
_ACCESS: Final = web.RequestKey("pointsman_access", Access)


def signature(request: web.Request, *, actor: str, reason: str) -> Signature:
    """For the audit log: who asks, `actor` by their own account, and how that is known."""
    access = request.get(_ACCESS, LOOPBACK)
    return Signature(actor=access.name or actor or "unknown", via=access.via, reason=reason)


@dataclass(frozen=True, slots=True, kw_only=True)
class Operators:
    """Client certificates; with `trust_domain` SPIFFE ids of others count for nothing."""

    tls: AdminTls
    trust_domain: str = ""

    def shown(self, request: web.Request) -> tuple[str, ...] | None:
        """The operators that a request's certificate names; None where there is no certificate that counts."""
        transport = request.transport
        if transport is None:
            return None
        found = transport.get_extra_info("peercert")
        if not found or not self.tls.verified(transport.get_extra_info("ssl_object")):
            return None
        if ssl.cert_time_to_seconds(found["notAfter"]) < time.time():  # a connection may outlive a certificate
            return None
        return operators(_names(found), trust_domain=self.trust_domain)


def admin_guard(token: Token | None, clients: Operators | None, open_paths: Collection[str]) -> Any:
    """An aiohttp middleware: 401 for those who prove nothing, 403 for certificates that name no operator."""
    if token is None and clients is None:
        return loopback_host
    wanted = " or ".join(
        words
        for words, there in (
            ("the header authorization: Bearer TOKEN", token),
            ("a client certificate that names an operator", clients),
        )
        if there
    )

    @web.middleware
    async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.path in open_paths:
            return await handler(request)
        if token is not None and token.is_in(request.headers.get("authorization", "")):
            request[_ACCESS] = Access(via="token")
            return await handler(request)
        names = clients.shown(request) if clients else None
        if names:
            request[_ACCESS] = Access(via="certificate", name=names[0])
            return await handler(request)
        if names is not None:
            told = "this certificate names no operator: spiffe://TRUST_DOMAIN/operator/NAME or NAME.operator.pointsman"
            return web.json_response({"error": told}, status=403)
        headers = {"www-authenticate": "Bearer"} if token else {}
        return web.json_response({"error": f"this needs {wanted}"}, status=401, headers=headers)

    return guard


def _names(certificate: dict[str, Any]) -> dict[str, list[bytes]]:
    """The names in what `ssl` tells of a certificate, as gRPC tells them."""
    found: dict[str, list[bytes]] = {"peer_uri": [], "peer_dns": []}
    for kind, name in certificate.get("subjectAltName", ()):
        if kind in {"URI", "DNS"}:
            found[f"peer_{kind.lower()}"].append(name.encode("utf-8", "surrogateescape"))
    return found
