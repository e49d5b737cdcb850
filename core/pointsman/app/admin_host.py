"""Who asks a server on loopback: requests must name it as what it is.

A page in a browser on the same machine may make its own name lead to 127.0.0.1 (DNS rebinding); the browser then takes
our answers for that page's own. Such a request has the page's name in its `Host`, and gets nothing.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from aiohttp import web

from pointsman.app.ports import is_loopback

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@web.middleware
async def loopback_host(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Answer 403 to requests for another host than this machine's loopback. Browsers always say one."""
    host = request.headers.get("host", "")
    if host and not is_loopback(host_name(host)):
        told = "this control plane is on loopback: ask for 127.0.0.1, [::1] or localhost, or give it a token"
        return web.json_response({"error": told}, status=403)
    return await handler(request)


def host_name(host: str) -> str:
    """A `Host` header without port and brackets."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0].lower()
