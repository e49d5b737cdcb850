"""What several commands do alike: exit codes, options, output."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Final, NoReturn

import click
import yaml

from pointsman.core.errors import PointsmanError

EXIT_REFUSED: Final = 1
"""The input was refused or something could not be started; 2 is click's own code for a wrong command line."""

EXIT_CODES: Final = (
    (0, "done; for `status`: healthy"),
    (1, "refused or failed, nothing was changed; standard error says why and what to do"),
    (2, "the command line is wrong (for `replay`: some requests failed; for `drill`: a bar was missed)"),
    (3, "done, but not as one would wish: degraded, not everywhere yet, rolled back, or aborted"),
    (130, "`replay` was stopped by Ctrl-C"),
)
"""What the shell learns; docs/cli.md shows this table."""

TABLE: Final = "table"

output_option = click.option(
    "-o",
    "--output",
    type=click.Choice([TABLE, "json", "yaml"]),
    default=TABLE,
    show_default=True,
    help="For people, or for scripts.",
)


def reason_option(command: Any, *, required: bool) -> Any:
    """`--reason`. Where it is required there is no default: click takes even an empty one for an answer."""
    told = "Why; it goes into the audit log."
    if required:
        return click.option("--reason", required=True, help=told)(command)
    return click.option("--reason", default="", help=told)(command)


folder_argument = click.argument(
    "folder", type=click.Path(exists=True, file_okay=False, path_type=Path), metavar="FOLDER"
)


def emit(value: Any, output: str, lines: Callable[[], Iterable[str]]) -> None:
    """Print a value as it was asked for; `lines` are for people and made only where they are wanted."""
    if output == "json":
        click.echo(json.dumps(value, indent=1, ensure_ascii=False))
    elif output == "yaml":
        click.echo(yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=120), nl=False)
    else:
        for line in lines():
            click.echo(line)


def have_it(gateways: int) -> str:
    """How many gateways have acknowledged something."""
    return "1 gateway has it" if gateways == 1 else f"{gateways} gateways have it"


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
