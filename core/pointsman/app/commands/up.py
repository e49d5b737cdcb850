"""`pointsman up`."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import click

from pointsman.app.banner import banner
from pointsman.app.commands.shared import refuse
from pointsman.app.control_plane import ControlPlaneOptions
from pointsman.app.logs import configure_logs
from pointsman.app.up import UpOptions, running, until_stopped
from pointsman.core import defaults
from pointsman.core.errors import PointsmanError
from pointsman.extproc import PickPolicy


@click.command()
@click.option(
    "--config",
    "config",
    required=True,
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Folder of manifests; edits take effect at once.",
)
@click.option("--simulate", is_flag=True, help="Serve a simulated vLLM replica at every endpoint.")
@click.option("--no-envoy", is_flag=True, help="Do not start Envoy: gateways run elsewhere (see `bootstrap`).")
@click.option("--grpc-address", default=defaults.LOOPBACK, show_default=True, help="xDS, picker and access logs.")
@click.option("--grpc-port", type=click.IntRange(0, 65_535), default=defaults.GRPC_PORT, show_default=True)
@click.option("--admin-address", default=defaults.LOOPBACK, show_default=True, help="Admin API.")
@click.option("--admin-port", type=click.IntRange(0, 65_535), default=defaults.ADMIN_PORT, show_default=True)
@click.option("--allow-plaintext", is_flag=True, help="Allow addresses other than loopback without TLS.")
@click.option(
    "--policy",
    type=click.Choice(["joint", "round-robin", "least-outstanding", "random"]),
    default="joint",
    show_default=True,
    help="How endpoints are picked; the others are for comparison.",
)
@click.option(
    "--state",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path(".pointsman"),
    show_default=True,
    help="Folder for logs and generated files.",
)
@click.option(
    "--speed",
    type=click.FloatRange(min=0, min_open=True),
    default=1.0,
    show_default=True,
    help="Simulated replicas run this many times faster than the modelled GPU.",
)
@click.option("--xds-protocol", type=click.Choice(["delta", "sotw"]), default="delta", show_default=True)
@click.option(
    "--ready-file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write the addresses here as JSON once everything is ready.",
)
@click.option("--log-level", type=click.Choice(["debug", "info", "warning", "error"]), default="info")
@click.option("--log-format", type=click.Choice(["auto", "console", "json"]), default="auto")
def up(*, config: Path, log_level: str, log_format: Any, **chosen: Any) -> None:
    """Run the control plane and the picker, with Envoy and simulated pools if wanted, until Ctrl-C.

    \b
    Example:
      pointsman up --config examples/two-sites --simulate
    """
    configure_logs(level=log_level, format_=log_format)
    try:
        asyncio.run(_up(config, **chosen))
    except PointsmanError as error:
        refuse("up", error)


async def _up(
    config: Path,
    *,
    simulate: bool,
    no_envoy: bool,
    grpc_address: str,
    grpc_port: int,
    admin_address: str,
    admin_port: int,
    allow_plaintext: bool,
    policy: str,
    state: Path,
    speed: float,
    xds_protocol: str,
    ready_file: Path | None,
) -> None:

    options = UpOptions(
        control_plane=ControlPlaneOptions(
            config=config,
            grpc_address=grpc_address,
            grpc_port=grpc_port,
            admin_address=admin_address,
            admin_port=admin_port,
            allow_plaintext=allow_plaintext,
            policy=PickPolicy(policy),
        ),
        state=state,
        simulate=simulate,
        envoy=not no_envoy,
        speed=speed,
        delta=xds_protocol == "delta",
        ready_file=ready_file,
    )

    async def serve() -> None:
        async with running(options) as addresses:
            click.echo(banner(addresses))
            await asyncio.Event().wait()

    await until_stopped(serve())
