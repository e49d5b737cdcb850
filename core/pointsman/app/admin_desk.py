"""The operator's desk: the live page, and the part of the admin API that it and the command line read.

The page is static and tells nothing; all it shows comes from the API, which asks for the token where one is set.
"""

from __future__ import annotations

from importlib.resources import files
from typing import Any, Final

import msgspec
from aiohttp import web

from pointsman.app.admin_write import LONGEST_LIMIT
from pointsman.app.desk import Desk
from pointsman.app.desk_api import DESK_PATHS, DESK_SCHEMAS
from pointsman.app.hypothetical import AskBody
from pointsman.app.openapi import describe
from pointsman.core.errors import PointsmanError
from pointsman.core.json_text import decode

Json = Any

_TYPES: Final = {
    "html": "text/html",
    "css": "text/css",
    "js": "text/javascript",
    "svg": "image/svg+xml",
}

INDEX: Final = "index.html"

PAGE_FILES: Final = (
    "page.css",
    "main.js",
    "api.js",
    "dom.js",
    "icon.svg",
    "picks.js",
    "shares.js",
    "timeline.js",
    "tree.js",
)
"""What the page loads; each is served below /page/ and nothing else is."""

PAGE_PATHS: Final = frozenset({"/", *(f"/page/{name}" for name in PAGE_FILES)})
"""Paths that need no token: they are the same on every control plane."""

SECURITY_HEADERS: Final = {
    # Only our own files run and are asked; with `require-trusted-types-for` the browser refuses to make HTML of text.
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-cache",
}

MAX_PICKS: Final = 200
"""Decisions in one answer: more than a person reads, 60 kB."""


def add_desk_routes(application: web.Application, desk: Desk) -> None:
    """Add the page and what it reads."""
    contents = _page_files()

    async def page(request: web.Request) -> web.Response:
        found = contents.get(request.match_info.get("name", INDEX))
        if found is None:
            return _answer({"error": "the page has no such file"}, 404)
        body, media_type = found
        return web.Response(body=body, content_type=media_type, charset="utf-8", headers=SECURITY_HEADERS)

    async def tree(_: web.Request) -> web.Response:
        return _answer(desk.tree())

    async def traffic(_: web.Request) -> web.Response:
        return _answer(desk.traffic())

    async def picks(request: web.Request) -> web.Response:
        text = request.query.get("limit", "20")
        if not text.isdecimal() or len(text) > LONGEST_LIMIT or not 0 < int(text) <= MAX_PICKS:
            return _answer({"error": f"limit: expected 1 to {MAX_PICKS}, not {text[:20]!r}"}, 400)
        return _answer(await desk.picks(int(text)))

    async def explain(request: web.Request) -> web.Response:
        if request.content_type != "application/json":
            return _answer({"error": "expected content-type: application/json"}, 415)
        try:
            return _answer(desk.explain(decode(await request.read(), AskBody)))
        except msgspec.MsgspecError as problem:
            return _answer({"error": f"the request does not fit: {problem}"}, 400)
        except PointsmanError as problem:
            return _answer({"error": str(problem)}, 422)

    async def resources(request: web.Request) -> web.Response:
        name = f"{request.match_info['namespace']}/{request.match_info['name']}"
        found = desk.resources(name)
        return _answer({"error": f"there is no gateway {name}"}, 404) if found is None else _answer(found)

    async def differences(_: web.Request) -> web.Response:
        return _answer({"nodes": desk.differences()})

    application.add_routes(
        [
            web.get("/", page),
            web.get("/page/{name}", page),
            web.get("/api/v1/tree", tree),
            web.get("/api/v1/traffic", traffic),
            web.get("/api/v1/picks", picks),
            web.post("/api/v1/explain", explain),
            web.get("/api/v1/xds/diff", differences),
            web.get("/api/v1/xds/resources/{namespace}/{name}", resources),
        ]
    )
    describe(application, DESK_PATHS, DESK_SCHEMAS)


def _page_files() -> dict[str, tuple[bytes, str]]:
    """Name → content and media type, read once."""
    folder = files("pointsman.app") / "page"
    return {name: ((folder / name).read_bytes(), _TYPES[name.rpartition(".")[2]]) for name in (INDEX, *PAGE_FILES)}


def _answer(value: Json, status: int = 200) -> web.Response:
    return web.Response(body=msgspec.json.encode(value), status=status, content_type="application/json")
