"""`pointsman sim`."""

from __future__ import annotations

import asyncio
from pathlib import Path

import click

from pointsman.app.commands.shared import refuse
from pointsman.app.logs import configure_logs
from pointsman.core.errors import PointsmanError
from pointsman.sim.main import read_spec, run_until_signal
from pointsman.sim.spec import ReplicaSpec, SimSpec


@click.command()
@click.option(
    "--spec",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="JSON file with the replicas; see docs/simulator.md.",
)
@click.option("--replicas", type=click.IntRange(1, 500), default=1, show_default=True, help="Without --spec.")
@click.option("--port", type=click.IntRange(0, 65_535), default=8000, show_default=True, help="Of the first replica.")
@click.option("--model", default="sim-llama", show_default=True)
@click.option("--speed", type=click.FloatRange(min=0, min_open=True), default=1.0, show_default=True)
def sim(spec: Path | None, replicas: int, port: int, model: str, speed: float) -> None:
    """Run simulated vLLM replicas, with faults that are switched at run time.

    \b
    Prints one JSON line with all addresses when they listen.
    Example:
      pointsman sim --replicas 3 --port 8000 --model llama-3-8b
    """

    configure_logs()
    try:
        if spec is not None:
            wanted = read_spec(spec)
        else:
            wanted = SimSpec(
                speed=speed,
                replicas=tuple(
                    ReplicaSpec(name=f"sim-{i}", port=port + i if port else 0, model=model) for i in range(replicas)
                ),
            )
        asyncio.run(run_until_signal(wanted))
    except PointsmanError as error:
        refuse("sim", error)
