"""The bearer token of the admin API: a file that is read for every request, so that it can be replaced at any time."""

from __future__ import annotations

import hmac
from pathlib import Path
from typing import Final

import structlog

from pointsman.core.errors import PointsmanError

log = structlog.get_logger()

SHORTEST: Final = 16
"""Characters. A token is made by a machine (`openssl rand -hex 32`); a shorter one is somebody's password."""


class TokenError(PointsmanError):
    """The token file cannot be used."""


def read_token(path: Path, option: str = "--admin-token-file") -> str:
    """The token: the file's text without the white space around it. `option` is what named the file.

    Raises:
        TokenError: there is no such file, or no good token in it.
    """
    try:
        token = path.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise TokenError(f"{option} {path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise TokenError(f"{option} {path}: this is no text") from error
    if len(token) < SHORTEST:
        raise TokenError(f"{option} {path}: a token has at least {SHORTEST} characters")
    return token


class Token:
    """The token in force: while its file cannot be read, the last good one, and that is told once.

    Raises (when made):
        TokenError: the file cannot be used.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._token = read_token(path)
        self._problem = ""

    def is_in(self, authorization: str) -> bool:
        """Whether this `authorization` header bears the token."""
        self._read()
        given = authorization.encode("utf-8", "surrogateescape")
        return hmac.compare_digest(given, f"Bearer {self._token}".encode())

    def _read(self) -> None:
        try:
            self._token = read_token(self._path)
        except TokenError as error:
            if str(error) != self._problem:
                log.error("admin: the last good token stays in force", problem=str(error))
            self._problem = str(error)
            return
        if self._problem:
            log.info("admin: the token file can be read again", file=str(self._path))
        self._problem = ""
