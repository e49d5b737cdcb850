"""`python -m pointsman.app.observe [--runbooks URL] FOLDER`: writes dashboards and rules into FOLDER (`deploy`)."""

from __future__ import annotations

from pathlib import Path

import click

from pointsman.app.observe.rules import RUNBOOKS
from pointsman.app.observe.write import write


@click.command()
@click.option(
    "--runbooks",
    default=RUNBOOKS,
    show_default=True,
    help="Where the pages of docs/runbooks are: a path, or the address where you publish them.",
)
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
def main(folder: Path, runbooks: str) -> None:
    """Write grafana/*.json and prometheus/*.yaml below FOLDER."""
    for path in write(folder, runbooks):
        click.echo(path)


main()
