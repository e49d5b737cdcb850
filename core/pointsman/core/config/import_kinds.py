"""How other clusters are reached: InferencePoolImport (inference.networking.x-k8s.io), and the gateway of a Site."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Final
from urllib.parse import urlsplit

from msgspec import Meta

from pointsman.core.config import syntax
from pointsman.core.config.document import Path, shown
from pointsman.core.config.meta import Hostname, Port, Resource
from pointsman.core.config.schema import Complaint, Fields, rule

Found = Iterator[tuple[Path, str, str]]

IMPORT_MARK: Final = ":import"
"""Behind the name of an import in the name of its pool: the pool that it imports may be in the folder under the same
name (Gateway API Inference Extension, proposal 1374), and a colon is in no name."""


def gateway_address(value: str) -> Complaint | None:
    """The address of a gateway; Envoy takes endpoints of EDS by IP address only."""
    if syntax.canonical_ip(value) is not None:
        return None
    if syntax.hostname(value) is None:
        return f"{shown(value)} is a host name, which is not supported yet", "expected an IP address such as 192.0.2.10"
    return syntax.ip_address(value)


def file_path(value: str) -> Complaint | None:
    """A file on the gateways' machines."""
    if value.startswith("/") and "\0" not in value and len(value) <= 4096:
        return None
    return f"{shown(value)} is not a path", "expected an absolute path on the machines of the gateways"


def metrics_url(value: str) -> Complaint | None:
    """Where another control plane shows its metrics."""
    try:
        parts = urlsplit(value)
        good = parts.scheme in {"http", "https"} and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        good = False
    if good and not parts.username and not parts.fragment:
        return None
    return f"{shown(value)} is not an address to ask", "expected http://host[:port]/metrics, without user and password"


FilePath = Annotated[str, rule(file_path)]


class SiteGatewayTls(Fields, frozen=True, kw_only=True):
    """TLS to a site's gateway. Its certificate must be issued by `caFile` and name `sni`. With `certFile` and `keyFile`
    our gateways show a certificate of their own. All are files on the machines of our gateways."""

    sni: Hostname
    ca_file: FilePath
    cert_file: FilePath = ""
    key_file: FilePath = ""

    def complaints(self) -> Found:
        if self.sni.startswith("*."):
            yield ("sni",), f"{shown(self.sni)} names no single host", "expected the name in the gateway's certificate"
        if bool(self.cert_file) != bool(self.key_file):
            missing = "keyFile" if self.cert_file else "certFile"
            yield (missing,), "is missing", "expected both certFile and keyFile, or neither"


class SiteGateway(Fields, frozen=True, kw_only=True):
    """Where a site takes requests for all its endpoints. `probe: false`: Envoy does not probe it, for gateways that do
    not route the pool's health path."""

    address: Annotated[str, rule(gateway_address)]
    port: Port
    tls: SiteGatewayTls | None = None
    probe: bool = True


class SiteMetrics(Fields, frozen=True, kw_only=True):
    """The metrics page of the control plane at a site behind a gateway. `tokenFile`, on the machine of our control
    plane, holds its bearer token."""

    not_yet: ClassVar[frozenset[str]] = frozenset({"interval", "staleAfter"})
    url: Annotated[str, Meta(max_length=2048), rule(metrics_url)]
    token_file: FilePath = ""


class ExportingCluster(Fields, frozen=True, kw_only=True):
    """A cluster that exports the pool; its name is that of a Site."""

    name: Annotated[str, Meta(min_length=1, max_length=253)]


class ImportController(Fields, frozen=True, kw_only=True):
    name: str = ""
    exporting_clusters: Annotated[tuple[ExportingCluster, ...], Meta(max_length=128)] = ()
    parents: Any = None
    conditions: Any = None


class ImportStatus(Fields, frozen=True, kw_only=True):
    controllers: Annotated[tuple[ImportController, ...], Meta(max_length=8)] = ()


class InferencePoolImport(Resource, frozen=True, kw_only=True):
    """An InferencePool of the same name in other clusters. The API has nothing but a status, so that is read here: a
    multi-cluster controller writes which clusters export the pool; in a folder whoever writes the manifest does."""

    status: ImportStatus = ImportStatus()

    @property
    def pool(self) -> str:
        """Name of the pool that stands for the import in the Plan."""
        return f"{self.key}{IMPORT_MARK}"

    @property
    def clusters(self) -> tuple[str, ...]:
        """The exporting clusters, sorted."""
        found = {cluster.name for one in self.status.controllers for cluster in one.exporting_clusters}
        return tuple(sorted(found))
