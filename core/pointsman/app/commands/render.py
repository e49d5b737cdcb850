"""`pointsman render`."""

from __future__ import annotations

import json
from pathlib import Path

import click

from pointsman.app.commands.shared import folder_argument, refuse
from pointsman.app.offline import read_plan, rendered
from pointsman.core.errors import ConfigError
from pointsman.core.model import Gateway, Plan


@click.command()
@folder_argument
@click.option("--gateway", default="", help="Which Gateway (namespace/name); not needed when there is one.")
@click.option(
    "--as",
    "form",
    type=click.Choice(["envoy", "xds"]),
    default="envoy",
    show_default=True,
    help="envoy: one static configuration, as `envoy --mode validate` takes it; xds: each resource with its version.",
)
def render(folder: Path, gateway: str, form: str) -> None:
    """Print the Envoy resources that a FOLDER compiles to, as JSON in stable order.

    \b
    Example:
      pointsman render examples/two-sites > /tmp/envoy.json && envoy --mode validate -c /tmp/envoy.json
    """

    try:
        _, plan = read_plan(folder)
    except ConfigError as error:
        refuse("render", error)
    click.echo(
        json.dumps(rendered(plan, _choose_gateway(plan, gateway), as_envoy=form == "envoy"), indent=2, sort_keys=True)
    )


def _choose_gateway(plan: Plan, name: str) -> Gateway:
    names = [gateway.name for gateway in plan.gateways]
    chosen = name or (names[0] if len(names) == 1 else "")
    gateway = plan.gateway(chosen)
    if gateway is None:
        have = f"this folder has {', '.join(names) or 'none'}"
        raise click.BadParameter(f"{name!r} is no Gateway here; {have}" if name else have, param_hint="--gateway")
    return gateway
