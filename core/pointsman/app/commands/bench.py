"""`pointsman bench`."""

from __future__ import annotations

import click

from pointsman.bench.cli import fit_command, floor_command, policy_command, regret_command


@click.group()
def bench() -> None:
    """Compare ways to pick, in a simulation in virtual time: figures of a model, not of hardware.

    \b
    Example:
      pointsman bench policy --help
    """


bench.add_command(policy_command, "policy")
bench.add_command(fit_command, "fit")
bench.add_command(regret_command, "regret")
bench.add_command(floor_command, "floor")
