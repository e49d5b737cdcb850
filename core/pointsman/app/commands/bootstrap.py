"""`pointsman bootstrap`."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import click

from pointsman.app.commands.shared import host_port
from pointsman.app.trial_certificates import SERVER_NAME
from pointsman.core import defaults
from pointsman.core.model import Locality
from pointsman.xds import GatewayLimits, GatewayTls, gateway_secrets
from pointsman.xds import bootstrap as make_bootstrap
from pointsman.xds.limits import DEFAULT_LIMITS, MIB


@click.command()
@click.option("--gateway", required=True, metavar="NAMESPACE/NAME", help="The Gateway whose configuration it gets.")
@click.option("--node-id", default="", help="Unique name of this proxy; default: host name and gateway.")
@click.option(
    "--xds",
    "control_planes",
    multiple=True,
    type=host_port,
    metavar="HOST:PORT",
    default=[f"{defaults.LOOPBACK}:{defaults.GRPC_PORT}"],
    show_default=True,
    help="A control plane; repeat it for stand-bys, in order of preference.",
)
@click.option("--region", default="")
@click.option("--zone", default="")
@click.option("--admin-address", default=defaults.LOOPBACK, show_default=True, help="Envoy's own admin server.")
@click.option("--admin-port", type=click.IntRange(0, 65_535), default=19_000, show_default=True)
@click.option(
    "--max-heap-mib",
    type=click.IntRange(min=16),
    default=DEFAULT_LIMITS.max_heap_bytes // MIB,
    show_default=True,
    help="Memory past which it refuses requests; in a container 80 % of its limit.",
)
@click.option(
    "--max-connections",
    type=click.IntRange(min=1),
    default=DEFAULT_LIMITS.max_connections,
    show_default=True,
    help="Client connections at a time, over all listeners.",
)
@click.option("--xds-protocol", type=click.Choice(["delta", "sotw"]), default="delta", show_default=True)
@click.option("--tls-cert", default="", metavar="FILE", help="The gateway's certificate: control planes need TLS.")
@click.option("--tls-key", default="", metavar="FILE", help="Its private key.")
@click.option("--tls-ca", default="", metavar="FILE", help="Who signs the certificates of control planes.")
@click.option(
    "--server-name",
    default=SERVER_NAME,
    show_default=True,
    help="What control planes and pickers are called in their certificates: a DNS name or a SPIFFE id.",
)
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    help="Write bootstrap.json, and with TLS its secrets, into this folder instead of printing.",
)
@click.option(
    "--mounted-at", default="", metavar="FOLDER", help="Where the gateway will have that folder, if elsewhere."
)
def bootstrap(
    *,
    gateway: str,
    node_id: str,
    control_planes: tuple[tuple[str, int], ...],
    region: str,
    zone: str,
    admin_address: str,
    admin_port: int,
    max_heap_mib: int,
    max_connections: int,
    xds_protocol: str,
    tls_cert: str,
    tls_key: str,
    tls_ca: str,
    server_name: str,
    out: Path | None,
    mounted_at: str,
) -> None:
    """Print the bootstrap for an Envoy that runs elsewhere.

    With TLS it is written into a folder, together with two files that name the certificates: Envoy follows
    certificates only if they are named so.

    \b
    Example:
      pointsman bootstrap --gateway default/main --xds 10.0.0.5:18000 > bootstrap.json && envoy -c bootstrap.json
      pointsman bootstrap --gateway default/main --xds 10.0.0.5:18000 --xds 10.0.0.6:18000 \\
        --tls-cert gateway.pem --tls-key gateway.key --tls-ca ca.pem --out envoy && envoy -c envoy/bootstrap.json
    """

    if gateway.count("/") != 1 or not all(gateway.split("/")):
        raise click.BadParameter(f"{gateway!r} is not namespace/name, such as default/main", param_hint="--gateway")
    certificates = {"--tls-cert": tls_cert, "--tls-key": tls_key, "--tls-ca": tls_ca}
    tls: GatewayTls | None = None
    secrets: dict[str, dict[str, object]] = {}
    if any(certificates.values()):
        folder = _checked_folder(certificates, out=out, mounted_at=mounted_at)
        # A SPIFFE id is no host name, which SNI is.
        tls = GatewayTls(folder=folder, server_name="" if "://" in server_name else server_name)
        certificate, key, ca = (path if mounted_at else str(Path(path).absolute()) for path in certificates.values())
        secrets = gateway_secrets(certificate, key, ca, server_name)
    config = make_bootstrap(
        node_id or f"{socket.gethostname()}-{gateway.replace('/', '.')}",
        gateway,
        Locality(region=region, zone=zone),
        list(control_planes),
        admin_address,
        admin_port,
        delta=xds_protocol == "delta",
        lrs=True,
        tls=tls,
        limits=GatewayLimits(max_heap_bytes=max_heap_mib * MIB, max_connections=max_connections),
    )
    if out is None:
        click.echo(json.dumps(config, indent=2))
        return
    out.mkdir(parents=True, exist_ok=True)
    for name, content in {"bootstrap.json": config, **secrets}.items():
        (out / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _checked_folder(certificates: dict[str, str], *, out: Path | None, mounted_at: str) -> str:
    """The folder of the secrets on the gateway, once nothing is left that Envoy would stumble over later."""
    if missing := [option for option, path in certificates.items() if not path]:
        raise click.UsageError(f"TLS needs {' and '.join(missing)}, too")
    if out is None:
        raise click.UsageError("with TLS Envoy needs three files: say --out FOLDER")
    for option, path in certificates.items():
        if mounted_at and not path.startswith("/"):
            raise click.BadParameter(f"{path!r} is not an absolute path on the gateway", param_hint=option)
        if not mounted_at and not Path(path).is_file():
            raise click.BadParameter(f"{path!r}: no such file; for another machine say --mounted-at", param_hint=option)
    if mounted_at and not mounted_at.startswith("/"):
        raise click.BadParameter(f"{mounted_at!r} is not an absolute path", param_hint="--mounted-at")
    return mounted_at or str(out.absolute())
