"""`pointsman bootstrap`."""

from __future__ import annotations

import json
import socket

import click

from pointsman.core import defaults
from pointsman.core.model import Locality
from pointsman.xds import bootstrap as make_bootstrap


@click.command()
@click.option("--gateway", required=True, metavar="NAMESPACE/NAME", help="The Gateway whose configuration it gets.")
@click.option("--node-id", default="", help="Unique name of this proxy; default: host name and gateway.")
@click.option(
    "--xds",
    "control_planes",
    multiple=True,
    metavar="HOST:PORT",
    default=[f"{defaults.LOOPBACK}:{defaults.GRPC_PORT}"],
    show_default=True,
    help="A control plane; repeat it for stand-bys, in order of preference.",
)
@click.option("--region", default="")
@click.option("--zone", default="")
@click.option("--admin-address", default=defaults.LOOPBACK, show_default=True, help="Envoy's own admin server.")
@click.option("--admin-port", type=click.IntRange(0, 65_535), default=19_000, show_default=True)
@click.option("--xds-protocol", type=click.Choice(["delta", "sotw"]), default="delta", show_default=True)
def bootstrap(
    *,
    gateway: str,
    node_id: str,
    control_planes: tuple[str, ...],
    region: str,
    zone: str,
    admin_address: str,
    admin_port: int,
    xds_protocol: str,
) -> None:
    """Print the bootstrap for an Envoy that runs elsewhere.

    \b
    Example:
      pointsman bootstrap --gateway default/main --xds 10.0.0.5:18000 > bootstrap.json && envoy -c bootstrap.json
    """

    if gateway.count("/") != 1 or not all(gateway.split("/")):
        raise click.BadParameter(f"{gateway!r} is not namespace/name, such as default/main", param_hint="--gateway")
    config = make_bootstrap(
        node_id or f"{socket.gethostname()}-{gateway.replace('/', '.')}",
        gateway,
        Locality(region=region, zone=zone),
        [_host_port(address) for address in control_planes],
        admin_address,
        admin_port,
        delta=xds_protocol == "delta",
    )
    click.echo(json.dumps(config, indent=2))


def _host_port(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) <= 65_535:
        raise click.BadParameter(f"{text!r} is not HOST:PORT, such as 10.0.0.5:18000", param_hint="--xds")
    return host.removeprefix("[").removesuffix("]"), int(port)
