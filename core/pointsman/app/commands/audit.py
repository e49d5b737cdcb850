"""`pointsman audit`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from pointsman.app.client import Admin, admin_options
from pointsman.app.commands.shared import EXIT_REFUSED, emit, output_option, refuse
from pointsman.core.audit import AUDIT_FILE, verify_file
from pointsman.core.errors import PointsmanError


@click.group()
def audit() -> None:
    """Who changed traffic, when, why, and when gateways had it: a log whose lines hold the hash of the one before.

    \b
    Example:
      pointsman audit log --limit 5
    """


@audit.command("log")
@click.option("--limit", type=click.IntRange(1, 1_000), default=20, show_default=True)
@output_option
@admin_options
def log(admin: Admin, *, limit: int, output: str) -> None:
    """Show the last records.

    \b
    Example:
      pointsman audit log --limit 5
    """
    try:
        answer = admin.ask("GET", f"/api/v1/audit?limit={limit}")
    except PointsmanError as error:
        refuse("audit log", error)
    emit(answer, output, lambda: [_line(record) for record in answer["records"]])


@audit.command("verify")
@click.option(
    "--state",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path(".pointsman"),
    show_default=True,
    help="The state folder of the control plane.",
)
@click.option("--head", default="", metavar="HASH", help="The head that was noted before: it must still be in the log.")
@output_option
def verify(*, state: Path, head: str, output: str) -> None:
    """Check the chain of the log, and that nothing was cut off after a HASH that was noted before.

    \b
    Exit code: 0 in order, 1 not.
    Example:
      pointsman audit verify --state .pointsman
    """
    try:
        verdict = verify_file(state / AUDIT_FILE, noted=head)
    except PointsmanError as error:
        refuse("audit verify", error)
    found = {"ok": not verdict.problem, "lines": verdict.lines, "head": verdict.head, "problem": verdict.problem}
    emit(found, output, lambda: [f"{verdict.lines} lines are in order, head {verdict.head}"])
    if verdict.problem:
        click.echo(f"pointsman audit verify: {verdict.problem}", err=True)
        sys.exit(EXIT_REFUSED)


def _line(record: dict[str, Any]) -> str:
    who = f"{record['actor']} ({record['via']})"
    why = f": {record['reason']}" if record.get("reason") else ""
    change = ""
    if record["action"].startswith("weights.") and record["action"] != "weights.acked":
        change = f" {_weights(record.get('before'))} → {_weights(record.get('after'))}"
    return f"{record['seq']:>6} {record['time']} {record['action']} {record['target']}{change} by {who}{why}"


def _weights(entry: dict[str, Any] | None) -> str:
    if entry is None:
        return "manifest"
    return " ".join(f"{pool}={share / 100:g}%" for pool, share in entry["weights"].items())
