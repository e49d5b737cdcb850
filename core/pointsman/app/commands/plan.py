"""`pointsman plan`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from pointsman.app.client import Admin, AdminError, admin_options
from pointsman.app.commands.shared import emit, output_option, refuse
from pointsman.app.commands.weights import percent
from pointsman.app.planning import compare
from pointsman.core.compile import compile_plan
from pointsman.core.config import load
from pointsman.core.errors import PointsmanError
from pointsman.core.overlay import Overlay
from pointsman.core.store import StateFolder, read_overlay

Json = Any
FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)


@click.command("plan")
@click.option("-f", "--new", required=True, type=FOLDER, metavar="FOLDER", help="The configuration that is to come.")
@click.option(
    "--config",
    "old",
    type=FOLDER,
    metavar="FOLDER",
    help="The configuration that is in force; default: the folder of the control plane that runs.",
)
@click.option(
    "--state",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path(".pointsman"),
    show_default=True,
    help="With --config: the state folder, for weights set at run time.",
)
@click.option(
    "--concurrent",
    type=click.IntRange(min=0),
    default=0,
    metavar="N",
    help="Requests in flight in the whole fleet: to be compared with what sites say they carry.",
)
@output_option
@admin_options
def plan(admin: Admin, *, new: Path, old: Path | None, state: Path, concurrent: int, output: str) -> None:
    """Show what a configuration would change: weights, users that move, pools, and what gateways would be sent.

    Weights set at run time hold for both. Nothing is changed.

    \b
    Exit code: 0 shown, 1 the new configuration is refused.
    Example:
      pointsman plan -f next --config examples/two-sites
    """
    try:
        folder, overlay = (old, read_overlay(StateFolder(state))) if old else running_folder(admin)
        found = compare(compile_plan(load(folder), overlay), compile_plan(load(new), overlay), concurrent=concurrent)
    except PointsmanError as error:
        refuse("plan", error)
    emit(found, output, lambda: plan_lines(found))


def running_folder(admin: Admin) -> tuple[Path, Overlay]:
    """Folder and overlay of the control plane that runs on this machine."""
    configuration = admin.ask("GET", "/api/v1/status")["configuration"]
    folder = Path(configuration["folder"])
    if not folder.is_dir():
        raise AdminError(f"the control plane's folder {folder} is not on this machine: say --config")
    return folder, read_overlay(StateFolder(Path(configuration["state"])))


def plan_lines(found: Json) -> list[str]:
    """What would change, for a terminal."""
    if not found["changes"]:
        return ["Nothing changes."]
    lines = [line for gateway in found["gateways"] for line in _gateway_lines(gateway)]
    for pool in found["pools"]:
        state = "" if pool["state"] == "kept" else f" is {pool['state']}"
        lines.append(f"Pool {pool['pool']}{state}")
        for sign, key in (("+", "endpoints_added"), ("-", "endpoints_removed"), ("~", "endpoints_changed")):
            lines += [f"  {sign} {name}" for name in pool[key]]
    if not lines:
        lines = ["Gateways get nothing new: what changes is overlaid by weights that were set at run time."]
    lines += [f"note: {note['rule']}: {note['message']}" for note in found["notes"]]
    return lines + [f"warning: {warning}" for warning in found["warnings"]]


def _gateway_lines(gateway: Json) -> list[str]:
    state = "" if gateway["state"] == "kept" else f" is {gateway['state']}"
    lines = [f"Gateway {gateway['gateway']}{state}"]
    for rule in gateway["rules"]:
        who = "of the users move" if rule["sticky"] else "of the requests go elsewhere"
        lines.append(f"  {rule['rule']}: {rule['moved_percent']:g} % {who}")
        arms = {arm["pool"]: arm for arm in rule["arms"]}
        for pool in {**rule["before"], **rule["after"]}:
            ready = f"  ({arms[pool]['ready_endpoints']} ready endpoints)" if pool in arms else ""
            before, after = rule["before"].get(pool, 0), rule["after"].get(pool, 0)
            lines.append(f"    {pool}: {percent(before)} → {percent(after)}{ready}")
    for kind, changes in gateway["resources"].items():
        for what, names in changes.items():
            lines.append(f"  {kind} {what}: {', '.join(names)}")
    return lines
