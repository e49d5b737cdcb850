"""The admin endpoint of a simulation: its replicas, what they did, and their faults, over HTTP.

`GET|PUT /replicas`, `GET /replicas/{name}`, `GET|PUT|DELETE /replicas/{name}/faults`. A PUT of `/replicas` takes the
list of all replicas that are wanted, as in the specification: others end, new ones start, the rest goes on. A PUT of
faults replaces all faults of the replica by those of the JSON body (see `pointsman.sim.faults.Faults`), a DELETE ends
them. What was asked for has taken effect when it is answered. Errors: `{"error": TEXT, "problems": [{"field", "what",
"mend"}]}` with status 400 or 404.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import msgspec
from aiohttp import web

from pointsman.core.errors import ConfigError
from pointsman.sim.faults import HEALTHY, parse_faults
from pointsman.sim.fleet import Entry, Fleet
from pointsman.sim.spec import parse_replicas

MAX_BODY_BYTES = 1024 * 1024
"""The list of some thousand replicas."""
_JSON = "application/json"


def admin_app(replicas: Fleet) -> web.Application:
    """The application that serves the admin endpoint over `replicas`."""

    def find(request: web.Request) -> Entry:
        name = request.match_info["name"]
        entry = replicas.get(name)
        if entry is None:
            raise web.HTTPNotFound(text=f"no replica {name!r}; there are: {', '.join(sorted(replicas))}")
        return entry

    async def show_all(_request: web.Request) -> web.StreamResponse:
        return _answer([replica.status(shell.port) for replica, shell in replicas.values()])

    async def put_all(request: web.Request) -> web.StreamResponse:
        await replicas.apply(parse_replicas(await request.read()))
        return await show_all(request)

    async def show(request: web.Request) -> web.StreamResponse:
        replica, shell = find(request)
        return _answer(replica.status(shell.port))

    async def show_faults(request: web.Request) -> web.StreamResponse:
        return _answer(find(request)[0].faults)

    async def put_faults(request: web.Request) -> web.StreamResponse:
        replica, shell = find(request)
        faults = parse_faults(await request.read(), protocol=replica.spec.protocol)
        await replica.set_faults(faults, shell)
        return _answer(replica.faults)

    async def delete_faults(request: web.Request) -> web.StreamResponse:
        replica, shell = find(request)
        await replica.set_faults(HEALTHY, shell)
        return _answer(replica.faults)

    async def health(_request: web.Request) -> web.StreamResponse:
        return web.Response()

    app = web.Application(client_max_size=MAX_BODY_BYTES, middlewares=[_errors])
    app.router.add_get("/health", health)
    app.router.add_get("/replicas", show_all)
    app.router.add_put("/replicas", put_all)
    app.router.add_get("/replicas/{name}", show)
    app.router.add_get("/replicas/{name}/faults", show_faults)
    app.router.add_put("/replicas/{name}/faults", put_faults)
    app.router.add_delete("/replicas/{name}/faults", delete_faults)
    return app


def _answer(value: object, status: int = 200) -> web.Response:
    return web.Response(body=msgspec.json.encode(value), status=status, content_type=_JSON)


@web.middleware
async def _errors(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    try:
        return await handler(request)
    except ConfigError as error:
        problems = [{"field": p.field, "what": p.what, "mend": p.mend} for p in error.problems]
        return _answer({"error": str(error), "problems": problems}, status=400)
    except web.HTTPException as error:
        return _answer({"error": error.text or error.reason, "problems": []}, status=error.status)
