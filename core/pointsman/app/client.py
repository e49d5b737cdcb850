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
from pointsman.app.client_words import no_answer
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
    """How a control plane is reached. `ca` verifies its certificate where the machine's own store does not.
    `client_certificate` and `client_key` are an operator's; the first may hold both."""

    url: str
    token_file: Path | None = None
    ca: Path | None = None
    client_certificate: Path | None = None
    client_key: Path | None = None

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
            headers = {"authorization": f"Bearer {read_token(self.token_file, '--token-file')}"}
        timeout = aiohttp.ClientTimeout(total=timeout_s)
        context = self._tls()
        try:
            async with (
                aiohttp.ClientSession(timeout=timeout, headers=headers) as session,
                session.request(method, f"{self.url.rstrip('/')}{path}", json=body, ssl=context) as response,
            ):
                answer = await _json(response)
                if response.status >= 400:
                    raise AdminError(_reason(answer, response), status=response.status)
                return answer
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            raise AdminError(no_answer(self.url, error, timeout_s)) from error

    def _tls(self) -> ssl.SSLContext | bool:
        """What to believe and what to show.

        Raises:
            AdminError: a file cannot be used.
        """
        if self.client_key and not self.client_certificate:
            raise AdminError("--client-key is the key of a certificate: say --client-cert, too")
        if not self.ca and not self.client_certificate:
            return True
        try:
            context = ssl.create_default_context(cafile=self.ca)
        except (OSError, ValueError) as error:
            raise AdminError(f"--admin-ca {self.ca}: {_file_problem(error, 'no certificate in it')}") from error
        if self.client_certificate:
            try:
                context.load_cert_chain(self.client_certificate, self.client_key, password=lambda: "")
            except (OSError, ValueError) as error:
                named = f"--client-cert {self.client_certificate}" + (
                    f", --client-key {self.client_key}" if self.client_key else ""
                )
                why = "no certificate with its key, or a key with a passphrase"
                raise AdminError(f"{named}: {_file_problem(error, why)}") from error
        return context


def _file_problem(error: Exception, otherwise: str) -> str:
    """Why a PEM file cannot be used."""
    if isinstance(error, ssl.SSLError):
        return "the key belongs to another certificate" if "KEY_VALUES_MISMATCH" in str(error) else otherwise
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


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
    def wrapped(
        admin_url: str,
        token_file: Path | None,
        admin_ca: Path | None,
        client_cert: Path | None,
        client_key: Path | None,
        **rest: Any,
    ) -> Any:
        admin = Admin(
            url=admin_url,
            token_file=token_file,
            ca=admin_ca,
            client_certificate=client_cert,
            client_key=client_key,
        )
        return command(admin=admin, **rest)

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
    with_key = click.option(
        "--client-key",
        type=file,
        envvar="POINTSMAN_CLIENT_KEY",
        help="Its private key (PEM), if it is in a file of its own.",
    )
    with_certificate = click.option(
        "--client-cert",
        type=file,
        envvar="POINTSMAN_CLIENT_CERT",
        help="Your certificate (PEM), in place of a token.",
    )
    return with_url(with_token(with_ca(with_certificate(with_key(wrapped)))))


def user_name() -> str:
    """Who runs the command, as the audit log is to call them."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "unknown"
