"""`pointsman demo`."""

from __future__ import annotations

import asyncio
import sys
import tempfile
from pathlib import Path

import click

from pointsman.app.commands.shared import EXIT_REFUSED, refuse
from pointsman.app.demo_rollout import tell
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
    configure_logs(level=log_level)
    ended: list[bool] = []

    async def story(folder: Path) -> None:
        ended.append(await tell(folder, click.echo))

    try:
        with tempfile.TemporaryDirectory(prefix="pointsman-demo-") as folder:
            asyncio.run(until_stopped(story(Path(folder))))
    except PointsmanError as error:
        refuse("demo rollout", error)
    if ended != [True]:
        sys.exit(EXIT_REFUSED)
