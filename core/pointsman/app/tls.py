"""The control plane's certificates: read from files, checked, and taken over while everything runs when they change.

A change counts once it is good as a whole: the certificate belongs to the key, is valid now, and the file of the client
CA holds one. Until then the last good files stay in force and the problem is told. New connections get the new
certificate; those that exist go on, for as long as `stream_age` lets them.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import grpc
import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge

from pointsman.app.admin_tls import AdminTls, load_pair
from pointsman.app.certificate import certificates, validity
from pointsman.app.identity import CONTROL_PLANE
from pointsman.core.clock import Clock
from pointsman.core.errors import PointsmanError

log = structlog.get_logger()

Json = dict[str, Any]

ADMIN_CA: Final = "--admin-client-ca"

POLL_S: Final = 1.0
"""How often the files are read. They are small, and reading them works on every file system and through every kind of
link, which inotify does not."""

READ_ATTEMPTS: Final = 5
"""Files that were written while they were read are read again this often."""


class TlsError(PointsmanError):
    """The TLS files cannot be used; the message names the file and the option."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsFiles:
    """PEM files: our certificate with its chain, its key without a passphrase, and who may sign those of gateways, and
    those of operators for the admin API, if they may show one."""

    certificate: Path
    key: Path
    client_ca: Path
    admin_client_ca: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Content:
    """The bytes of the files."""

    certificate: bytes
    key: bytes
    client_ca: bytes
    admin_client_ca: bytes = b""


@dataclass(frozen=True, slots=True, kw_only=True)
class Material:
    """Checked files. `expires_s`: when the first certificate of a file ends, in seconds since the epoch, by file."""

    content: Content
    expires_s: dict[str, float]


def read_content(files: TlsFiles) -> Content:
    """Read the files.

    Raises:
        TlsError: one cannot be read.
    """

    def read(path: Path, option: str) -> bytes:
        try:
            return path.read_bytes()
        except OSError as error:
            raise TlsError(f"{option} {path}: {error.strerror or error}") from error

    return Content(
        certificate=read(files.certificate, "--tls-cert"),
        key=read(files.key, "--tls-key"),
        client_ca=read(files.client_ca, "--tls-client-ca"),
        admin_client_ca=read(files.admin_client_ca, ADMIN_CA) if files.admin_client_ca else b"",
    )


def read_material(files: TlsFiles, now_s: float) -> Material:
    """Read and check the files.

    Raises:
        TlsError: saying which file and why.
    """
    for _ in range(READ_ATTEMPTS):
        content = read_content(files)
        material = _check(files, content, now_s)
        if read_content(files) == content:  # `ssl` reads certificate and key itself: it must have seen the same
            return material
    raise TlsError(f"{files.certificate} and {files.key} keep changing while they are read")


def _check(files: TlsFiles, content: Content, now_s: float) -> Material:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        load_pair(context, files.certificate, files.key)
    except (ssl.SSLError, OSError, ValueError) as error:
        why = "the key belongs to another certificate" if "KEY_VALUES_MISMATCH" in str(error) else str(error)
        raise TlsError(f"--tls-cert {files.certificate}, --tls-key {files.key}: {why}") from error
    expires_s = {
        "server": _expiry(content.certificate, f"--tls-cert {files.certificate}", now_s, leaf_first=True),
        "client_ca": _ca_expiry(content.client_ca, f"--tls-client-ca {files.client_ca}", now_s),
    }
    if files.admin_client_ca:
        what = f"{ADMIN_CA} {files.admin_client_ca}"
        expires_s["admin_client_ca"] = _ca_expiry(content.admin_client_ca, what, now_s)
    return Material(content=content, expires_s=expires_s)


def _ca_expiry(pem: bytes, what: str, now_s: float) -> float:
    """When the first CA certificate of a file that must hold one ends."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_verify_locations(cadata=pem.decode("ascii"))
    except (ssl.SSLError, ValueError) as error:
        raise TlsError(f"{what}: {error}") from error
    if not context.get_ca_certs():
        raise TlsError(f"{what}: holds no CA certificate")
    return _expiry(pem, what, now_s)


def _expiry(pem: bytes, what: str, now_s: float, *, leaf_first: bool = False) -> float:
    """When the first certificate that is valid now ends. Chains and bundles may hold old ones; a leaf must be valid."""
    try:
        periods = [validity(der) for der in certificates(pem)]
    except ValueError as error:
        raise TlsError(f"{what}: {error}") from error
    valid = [end for begin, end in periods if begin <= now_s < end]
    if not valid or (leaf_first and not periods[0][0] <= now_s < periods[0][1]):
        raise TlsError(f"{what}: expired or not yet valid")
    return min(valid)


class Certificates:
    """The files in force, for gRPC and the admin server.

    Raises (when made):
        TlsError: the files cannot be used.
    """

    def __init__(self, files: TlsFiles, registry: CollectorRegistry, clock: Clock, *, poll_s: float = POLL_S) -> None:
        self._files = files
        self._clock = clock
        self._poll_s = poll_s
        self._expiry = Gauge(
            "pointsman_tls_certificate_expiry_timestamp_seconds",
            "When the first certificate of a TLS file in force ends.",
            ["file"],
            registry=registry,
        )
        self._good = Gauge(
            "pointsman_tls_reload_success", "1 if the TLS files as they are now are in force.", registry=registry
        )
        self._reloads = Counter(
            "pointsman_tls_reloads",
            "Times that changed TLS files were read, by outcome.",
            ["result"],
            registry=registry,
        )
        self._material = read_material(files, clock.wall_s())
        self._loaded_at_s = clock.wall_s()
        self._problem = ""
        self._doubt: Content | str | None = None
        self._listeners: list[Callable[[Content], None]] = []
        self._admin: AdminTls | None = None
        self._note_expiry()
        self._good.set(1)

    @property
    def content(self) -> Content:
        """The files in force."""
        return self._material.content

    def on_change(self, listener: Callable[[Content], None]) -> None:
        """Call `listener` with other files whenever they come into force."""
        self._listeners.append(listener)

    def grpc_credentials(self) -> grpc.ServerCredentials:
        """Credentials that demand a client certificate and follow the files."""
        return following_credentials(lambda: self._material.content)

    def peer_channel(self, target: str) -> grpc.aio.Channel:
        """A channel to another control plane, with the files in force: who we are, and whom we believe."""
        content = self._material.content
        credentials = grpc.ssl_channel_credentials(content.client_ca, content.key, content.certificate)
        return grpc.aio.secure_channel(target, credentials, [("grpc.ssl_target_name_override", CONTROL_PLANE)])

    def admin(self, *, open_to_others: bool) -> AdminTls | None:
        """HTTPS of the admin server, which follows the files: where others reach it, or operators have certificates."""
        if not open_to_others and self._files.admin_client_ca is None:
            return None
        if self._admin is None:
            self._admin = AdminTls(self._files.certificate, self._files.key, self.content.admin_client_ca)
        return self._admin

    def status(self) -> Json:
        """What is in force, and what is wrong with the files as they are now."""
        return {
            "accepted": not self._problem,
            "problem": self._problem,
            "loaded_at_s": self._loaded_at_s,
            "expires_at_s": dict(self._material.expires_s),
        }

    async def run(self) -> None:
        """Follow the files until cancelled."""
        while True:
            await asyncio.sleep(self._poll_s)
            await self.look()

    async def look(self) -> None:
        """Compare the files with what is in force, and take over what is new and good.

        What is new and bad is told at the second look that finds it so: certificate and key are two files, and a look
        in between of their writing is no problem.
        """
        try:
            content: Content | str = await asyncio.to_thread(read_content, self._files)
            if content == self._material.content:
                self._settle()
                return
            material = await asyncio.to_thread(read_material, self._files, self._clock.wall_s())
        except TlsError as error:
            self._refuse(str(error))
            return
        self._take(material)

    def _take(self, material: Material) -> None:
        if self._admin is not None:
            try:
                self._admin.renew(material.content.admin_client_ca)
            except (ssl.SSLError, OSError) as error:  # changed again in this moment
                self._refuse(str(error))
                return
        self._material = material
        self._loaded_at_s = self._clock.wall_s()
        self._note_expiry()
        self._reloads.labels("ok").inc()
        self._settle()
        for listener in self._listeners:
            listener(material.content)
        log.info("tls: new certificates in force", expires_at_s=material.expires_s)

    def _settle(self) -> None:
        """The files are what is in force."""
        self._problem, self._doubt = "", None
        self._good.set(1)

    def _refuse(self, problem: str) -> None:
        if problem != self._doubt:
            self._doubt = problem
            return
        if problem != self._problem:
            self._problem = problem
            self._reloads.labels("refused").inc()
            self._good.set(0)
            log.error("tls: files refused, the last good ones stay in force", problem=problem)

    def _note_expiry(self) -> None:
        for purpose, at_s in self._material.expires_s.items():
            self._expiry.labels(purpose).set(at_s)


def following_credentials(current: Callable[[], Content]) -> grpc.ServerCredentials:
    """Credentials that demand a client certificate, from what `current` says; gRPC asks at every new connection."""
    given = current()

    def newer() -> Any:
        nonlocal given
        content = current()
        if content is given:
            return None
        given = content
        return _grpc_configuration(content)

    return grpc.dynamic_ssl_server_credentials(_grpc_configuration(given), newer, require_client_authentication=True)


def _grpc_configuration(content: Content) -> Any:
    return grpc.ssl_server_certificate_configuration(
        [(content.key, content.certificate)], root_certificates=content.client_ca
    )
