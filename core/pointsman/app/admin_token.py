"""The bearer token of the admin API: a file that is read for every request, so that it can be replaced at any time."""

from __future__ import annotations

import hmac
from collections.abc import Awaitable, Callable, Collection
from pathlib import Path
from typing import Any, Final

import structlog
from aiohttp import web

from pointsman.core.errors import PointsmanError

log = structlog.get_logger()

SHORTEST: Final = 16
"""Characters. A token is made by a machine (`openssl rand -hex 32`); a shorter one is somebody's password."""

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class TokenError(PointsmanError):
    """The token file cannot be used."""


def read_token(path: Path) -> str:
    """The token: the file's text without the white space around it.

    Raises:
        TokenError: there is no such file, or no good token in it.
    """
    try:
        token = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise TokenError(f"--admin-token-file {path}: {error}") from error
    if len(token) < SHORTEST:
        raise TokenError(f"--admin-token-file {path}: a token has at least {SHORTEST} characters")
    return token


def bearer_token(path: Path, open_paths: Collection[str]) -> Any:
    """An aiohttp middleware that answers 401 to requests without the token, except on `open_paths`.

    While the file cannot be read its last good token counts.
    """
    token = read_token(path)

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        nonlocal token
        if request.path in open_paths:
            return await handler(request)
        try:
            token = read_token(path)
        except TokenError as error:
            log.error("admin: the last good token stays in force", problem=str(error))
        given = request.headers.get("authorization", "")
        if not hmac.compare_digest(given.encode("utf-8", "surrogateescape"), f"Bearer {token}".encode()):
            return web.json_response(
                {"error": "this needs the header authorization: Bearer TOKEN"},
                status=401,
                headers={"www-authenticate": "Bearer"},
            )
        return await handler(request)

    return middleware
