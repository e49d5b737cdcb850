"""The admin server: what runs, how it is, and the metrics. On loopback unless said otherwise.

What stands here only reads; `admin_write` and `admin_rollouts` add what changes something.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, Protocol

import msgspec
from aiohttp import web
from prometheus_client import CollectorRegistry, generate_latest

from pointsman.app.admin_access import Operators, admin_guard
from pointsman.app.admin_token import Token
from pointsman.app.openapi import describe, document
from pointsman.app.status_api import STATUS_PATHS, STATUS_SCHEMAS

Json = dict[str, Any]

OPEN_PATHS: Final = frozenset({"/healthz", "/readyz"})
"""What load balancers and kubelets ask; it tells nothing of the fleet."""

STOP_GRACE_S: Final = 1.0
"""For answers that are being written. Whoever waits longer (for ACKs: up to ten minutes) must not hold up the end."""


class StatusSource(Protocol):
    """Where the admin server reads from. Every value is JSON-able; reading changes nothing and takes microseconds."""

    def ready(self) -> bool:
        """Whether a configuration is in force."""

    def status(self) -> Json:
        """The tree gateway → pool → site → endpoint with health and load, and the state of the configuration."""

    def endpoints(self) -> list[Json]:
        """One object for each endpoint: `key` (`ip:port`), `name`, `site`, `pool`, `protocol`."""

    async def explain(self, pick_id: str) -> Json | None:
        """A recent pick with its candidates, terms and reasons; by our pick id or by the request id."""


def admin_application(
    source: StatusSource,
    registry: CollectorRegistry,
    *,
    token_file: Path | None = None,
    clients: Operators | None = None,
    open_paths: frozenset[str] = frozenset(),
) -> web.Application:
    """The routes of the admin server; with `token_file` every path but the first two needs its bearer token, with
    `clients` a certificate of an operator, with both one of them.

    `open_paths` are further ones that need nothing. Without either the server is on loopback, and a request must name
    it so: a page of somebody else, whose name leads here, gets nothing (see `admin_host`).

    | path | answer |
    |---|---|
    | `/healthz` | 200 while the process lives |
    | `/readyz` | 200 once a configuration is in force, else 503 |
    | `/metrics` | Prometheus text format |
    | `/api/v1/status` | see `StatusSource.status` |
    | `/api/v1/endpoints` | see `StatusSource.endpoints` |
    | `/api/v1/picks/{id}` | see `StatusSource.explain`, 404 when it is not remembered |
    | `/api/v1/openapi.json` | the description of all routes, also of those that others add |
    """

    async def healthz(_: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def readyz(_: web.Request) -> web.Response:
        return web.Response(text="ready\n") if source.ready() else web.Response(status=503, text="no configuration\n")

    async def metrics(_: web.Request) -> web.Response:
        return web.Response(
            body=generate_latest(registry), headers={"content-type": "text/plain; version=0.0.4; charset=utf-8"}
        )

    async def pick(request: web.Request) -> web.Response:
        found = await source.explain(request.match_info["id"])
        if found is None:
            return _json({"error": "this pick is not remembered: only recent ones are"}, status=404)
        return _json(found)

    async def openapi(_: web.Request) -> web.Response:
        return _json(document(application))

    def reading(read: Callable[[], Any]) -> Callable[[web.Request], Any]:
        async def handler(_: web.Request) -> web.Response:
            return _json(read())

        return handler

    guard = admin_guard(Token(token_file) if token_file else None, clients, OPEN_PATHS | open_paths)
    application = web.Application(middlewares=[guard])
    application.add_routes(
        [
            web.get("/healthz", healthz),
            web.get("/readyz", readyz),
            web.get("/metrics", metrics),
            web.get("/api/v1/status", reading(source.status)),
            web.get("/api/v1/endpoints", reading(source.endpoints)),
            web.get("/api/v1/picks/{id}", pick),
            web.get("/api/v1/openapi.json", openapi),
        ]
    )
    describe(application, STATUS_PATHS, STATUS_SCHEMAS)
    return application


class AdminServer:
    """The admin application on an address of its own; `url` is known after `start`."""

    def __init__(
        self, application: web.Application, *, address: str, port: int, tls: ssl.SSLContext | None = None
    ) -> None:
        self._runner = web.AppRunner(application, access_log=None, shutdown_timeout=STOP_GRACE_S)
        self._address = address
        self._port = port
        self._tls = tls
        self.url = ""

    async def start(self) -> None:
        """Listen.

        Raises:
            OSError: the address cannot be bound.
        """
        await self._runner.setup()
        await web.TCPSite(self._runner, self._address, self._port, ssl_context=self._tls).start()
        address, port = self._runner.addresses[0][:2]
        scheme = "https" if self._tls else "http"
        self.url = f"{scheme}://[{address}]:{port}" if ":" in address else f"{scheme}://{address}:{port}"

    async def stop(self) -> None:
        """Stop listening and close all connections."""
        await self._runner.cleanup()


def _json(value: Any, *, status: int = 200) -> web.Response:
    return web.Response(body=msgspec.json.encode(value), status=status, content_type="application/json")
