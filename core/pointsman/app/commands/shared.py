"""What several commands do alike."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Final, NoReturn

import click

from pointsman.core.errors import PointsmanError

EXIT_REFUSED: Final = 1
"""The input was refused or something could not be started; 2 is click's own code for a wrong command line."""

folder_argument = click.argument(
    "folder", type=click.Path(exists=True, file_okay=False, path_type=Path), metavar="FOLDER"
)


def host_port(text: str) -> tuple[str, int]:
    """The type of an option: `HOST:PORT` as (host, port); an IPv6 address stands in brackets."""
    host, _, port = text.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) <= 65_535:
        raise click.BadParameter(f"{text!r} is not HOST:PORT, such as 10.0.0.5:18000")
    return host.removeprefix("[").removesuffix("]"), int(port)


def refuse(command: str, error: PointsmanError) -> NoReturn:
    """End the command with the error on standard error."""
    click.echo(f"pointsman {command}: {error}", err=True)
    sys.exit(EXIT_REFUSED)
