"""The command line: each command is loaded when it is asked for, so that a short one starts in a short time."""

from __future__ import annotations

from importlib import import_module
from typing import Final

import click

from pointsman.app.version import VERSION

COMMANDS: Final = {
    "apply": "pointsman.app.commands.apply:apply",
    "audit": "pointsman.app.commands.audit:audit",
    "bench": "pointsman.app.commands.bench:bench",
    "bootstrap": "pointsman.app.commands.bootstrap:bootstrap",
    "certs": "pointsman.app.commands.certs:certs",
    "completion": "pointsman.app.commands.completion:completion",
    "demo": "pointsman.app.commands.demo:demo",
    "dns": "pointsman.app.commands.dns:dns",
    "drill": "pointsman.app.commands.drill:drill",
    "explain": "pointsman.app.commands.explain:explain",
    "failover": "pointsman.app.commands.failover:failover",
    "plan": "pointsman.app.commands.plan:plan",
    "render": "pointsman.app.commands.render:render",
    "replay": "pointsman.replay.cli:replay_command",
    "rollout": "pointsman.app.commands.rollout:rollout",
    "sim": "pointsman.app.commands.sim:sim",
    "site": "pointsman.app.commands.failover:site",
    "status": "pointsman.app.commands.status:status",
    "trace": "pointsman.replay.cli:trace_group",
    "up": "pointsman.app.commands.up:up",
    "validate": "pointsman.app.commands.validate:validate",
    "weights": "pointsman.app.commands.weights:weights",
    "xds": "pointsman.app.commands.xds:xds",
}
"""Command → "module:attribute"."""


class LazyGroup(click.Group):
    """A group whose commands stand in `COMMANDS`."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        place = COMMANDS.get(cmd_name)
        if place is None:
            return None
        module, _, attribute = place.partition(":")
        command: click.Command = getattr(import_module(module), attribute)
        return command


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(VERSION, prog_name="pointsman")
def main() -> None:
    """Sends every LLM request to the right pool, in the right cluster, through Envoy."""
