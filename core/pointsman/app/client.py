"""Commands that ask a running control plane: its address, its token, and its answers as exit codes."""

from __future__ import annotations

import asyncio
import functools
import getpass
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import aiohttp
import click

from pointsman.app.admin_token import read_token
from pointsman.core import defaults
from pointsman.core.errors import PointsmanError

Json = Any

EXIT_DEGRADED: Final = 3
"""It was done, but not everywhere: some gateway has not got it, or has refused it."""

ANSWER_TIMEOUT_S: Final = 15.0
"""The admin API answers at once; what waits for gateways adds its own time to this."""


class AdminError(PointsmanError):
    """The control plane cannot be asked, or refused. `status` is the HTTP status, 0 when there was no answer."""

    def __init__(self, message: str, *, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True, slots=True, kw_only=True)
class Admin:
    """How a control plane is reached. `ca` verifies its certificate where the machine's own store does not."""

    url: str
    token_file: Path | None = None
    ca: Path | None = None

    def ask(self, method: str, path: str, body: Json = None, *, timeout_s: float = ANSWER_TIMEOUT_S) -> Json:
        """The JSON answer to one request.

        Raises:
            AdminError: no answer, or one that is no success.
            TokenError: the token file cannot be used.
        """
        return asyncio.run(self._ask(method, path, body, timeout_s))

    async def _ask(self, method: str, path: str, body: Json, timeout_s: float) -> Json:
        headers: Mapping[str, str] = {}
        if self.token_file is not None:
            headers = {"authorization": f"Bearer {read_token(self.token_file)}"}
        timeout = aiohttp.ClientTimeout(total=timeout_s)
        try:
            context = ssl.create_default_context(cafile=self.ca) if self.ca else True
            async with (
                aiohttp.ClientSession(timeout=timeout, headers=headers) as session,
                session.request(method, f"{self.url.rstrip('/')}{path}", json=body, ssl=context) as response,
            ):
                answer = await _json(response)
                if response.status >= 400:
                    raise AdminError(_reason(answer, response), status=response.status)
                return answer
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            what = str(error) or type(error).__name__
            raise AdminError(f"no answer from the control plane at {self.url}: {what}") from error


async def _json(response: aiohttp.ClientResponse) -> Json:
    try:
        return await response.json(content_type=None)
    except ValueError:
        return None


def _reason(answer: Json, response: aiohttp.ClientResponse) -> str:
    if isinstance(answer, dict) and isinstance(answer.get("error"), str):
        return str(answer["error"])
    return f"the control plane answered {response.status} {response.reason}"


def admin_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options of commands that ask a control plane; they arrive as `admin`, an `Admin`."""

    @functools.wraps(command)
    def wrapped(admin_url: str, token_file: Path | None, admin_ca: Path | None, **rest: Any) -> Any:
        return command(admin=Admin(url=admin_url, token_file=token_file, ca=admin_ca), **rest)

    file = click.Path(dir_okay=False, path_type=Path)
    with_ca = click.option(
        "--admin-ca", type=file, envvar="POINTSMAN_ADMIN_CA", help="Who signed its certificate (PEM)."
    )
    with_token = click.option(
        "--token-file", type=file, envvar="POINTSMAN_TOKEN_FILE", help="The token that it demands."
    )
    with_url = click.option(
        "--admin",
        "admin_url",
        default=f"http://{defaults.LOOPBACK}:{defaults.ADMIN_PORT}",
        envvar="POINTSMAN_ADMIN",
        show_default=True,
        metavar="URL",
        help="The admin API of the control plane.",
    )
    return with_url(with_token(with_ca(wrapped)))


def user_name() -> str:
    """Who runs the command, as the audit log is to call them."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "unknown"
