"""`pointsman demo`."""

from __future__ import annotations

import asyncio
import sys
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path

import click

from pointsman.app import demo_failover, demo_rollout
from pointsman.app.commands.shared import EXIT_REFUSED, refuse
from pointsman.app.logs import configure_logs
from pointsman.app.up import until_stopped
from pointsman.core.errors import PointsmanError


@click.group()
def demo() -> None:
    """Stories to watch, with simulated model servers on this machine.

    \b
    Example:
      pointsman demo rollout
    """


@demo.command()
@click.option("--log-level", type=click.Choice(["info", "warning", "error"]), default="error", show_default=True)
def rollout(log_level: str) -> None:
    """A good canary is rolled out, then a bad one is taken back; under a minute.

    \b
    Exit code: 0 both ended as they should.
    Example:
      pointsman demo rollout
    """
    _tell("rollout", demo_rollout.tell, log_level)


@demo.command()
@click.option("--log-level", type=click.Choice(["info", "warning", "error"]), default="error", show_default=True)
def failover(log_level: str) -> None:
    """A site is lost, the other one serves, it comes back: half a minute.

    \b
    Exit code: 0 no request failed and the traffic is back.
    Example:
      pointsman demo failover
    """
    _tell("failover", demo_failover.tell, log_level)


def _tell(name: str, tell: Callable[[Path, Callable[[str], None]], Awaitable[bool]], log_level: str) -> None:
    """Tell a story in a folder of its own."""
    configure_logs(level=log_level)
    ended: list[bool] = []

    async def story(folder: Path) -> None:
        ended.append(await tell(folder, click.echo))

    try:
        with tempfile.TemporaryDirectory(prefix="pointsman-demo-") as folder:
            asyncio.run(until_stopped(story(Path(folder))))
    except PointsmanError as error:
        refuse(f"demo {name}", error)
    if ended != [True]:
        sys.exit(EXIT_REFUSED)
