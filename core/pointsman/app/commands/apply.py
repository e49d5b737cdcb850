"""`pointsman apply`."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import click

from pointsman.app.client import EXIT_DEGRADED, Admin, admin_options
from pointsman.app.commands.plan import FOLDER, plan_lines, running_folder
from pointsman.app.commands.shared import emit, have_it, output_option, refuse
from pointsman.app.manifest_copy import copy_manifests, to_remove
from pointsman.app.planning import compare
from pointsman.core.compile import compile_plan
from pointsman.core.config import load
from pointsman.core.errors import ConfigError, PointsmanError
from pointsman.core.model import Plan
from pointsman.core.overlay import Overlay

Json = Any

POLL_S: Final = 0.2


@click.command("apply")
@click.option("-f", "--new", required=True, type=FOLDER, metavar="FOLDER", help="The configuration that is to come.")
@click.option(
    "--to",
    "target",
    type=FOLDER,
    metavar="FOLDER",
    help="The folder that is watched; default: that of the control plane that runs.",
)
@click.option("--prune", is_flag=True, help="Remove manifests of the watched folder that the new one does not have.")
@click.option("--dry-run", is_flag=True, help="Only check, and show what would change.")
@click.option("--wait", is_flag=True, help="Return when every connected gateway has it.")
@click.option(
    "--timeout",
    "timeout_s",
    type=click.FloatRange(0, 600),
    default=10.0,
    show_default=True,
    metavar="SECONDS",
    help="How long --wait waits.",
)
@output_option
@admin_options
def apply(
    admin: Admin,
    *,
    new: Path,
    target: Path | None,
    prune: bool,
    dry_run: bool,
    wait: bool,
    timeout_s: float,
    output: str,
) -> None:
    """Check a folder of manifests, show what it changes, and copy it into the folder that a control plane watches.

    Nothing is copied unless all of it is good. Files are staged beside their places and then moved in one go, so that
    a control plane sees the old files or the new ones.

    \b
    Exit code: 0 done, 1 refused, 3 copied, but with --wait some gateway has not got it.
    Examples:
      pointsman apply -f next --dry-run
      pointsman apply -f next --to examples/two-sites --prune --wait
    """
    before: Json = None
    try:
        folder, overlay = (target, Overlay()) if target else running_folder(admin)
        after = compile_plan(load(new), overlay)
        found = compare(_present(folder, overlay), after)
        removed = to_remove(new, folder)
        if wait and not dry_run:
            before = admin.ask("GET", "/api/v1/status")
        if removed and not (prune or dry_run):
            click.echo(
                f"pointsman apply: {folder} has files that {new} has not: {', '.join(map(str, removed))}; "
                "say --prune to remove them, or copy them",
                err=True,
            )
            sys.exit(1)
        if not dry_run:
            copy_manifests(new, folder, removed)
    except PointsmanError as error:
        refuse("apply", error)
    done = True
    acks: list[Json] = []
    if before is not None and found["changes"]:
        try:
            done, acks = _arrived(admin, before, found, timeout_s)
        except PointsmanError as error:
            refuse(f"apply: copied to {folder}, but", error)
    answer = {
        "folder": str(folder),
        "dry_run": dry_run,
        "removed": [str(one) for one in removed],
        "done": done,
        "acks": acks,
        **found,
    }
    head = "would be copied" if dry_run else "copied"
    emit(answer, output, lambda: [f"{new} {head} to {folder}", *plan_lines(found), *_acks_lines(acks)])
    if not done:
        click.echo("pointsman apply: some gateway has not got it; `pointsman xds diff` tells which", err=True)
        sys.exit(EXIT_DEGRADED)


def _present(folder: Path, overlay: Overlay) -> Plan:
    """The Plan of the watched folder; an empty one where its files are refused, which is what is to be mended."""
    try:
        return compile_plan(load(folder), overlay)
    except ConfigError as error:
        click.echo(f"pointsman apply: {folder} as it is now is refused: {error}", err=True)
        return Plan()


def _acks_lines(acks: list[Json]) -> Iterator[str]:
    for one in acks:
        if not one["have"] and not one["pending"]:
            yield f"{one['gateway']}: no gateway is connected"
            continue
        yield f"{one['gateway']}: {have_it(one['have'])}"
        yield from (f"{one['gateway']}: {node} has not got it" for node in one["pending"])


def _acks(gateway: str, nodes: list[Json], *, stale: bool) -> Json:
    """How many proxies of a Gateway have what is wanted, and which have not; `stale`: it is not even made yet."""
    mine = [node for node in nodes if node["gateway"] == gateway]
    pending = [node["node"] for node in mine if stale or not node["settled"]]
    return {"gateway": gateway, "have": len(mine) - len(pending), "pending": pending}


def _arrived(admin: Admin, before: Json, found: Json, timeout_s: float) -> tuple[bool, list[Json]]:
    """Whether what changed is in force and everything that is connected has it, in time; and who has, by Gateway.

    Raises:
        AdminError: the control plane does not answer any more.
    """
    changed = {one["gateway"] for one in found["gateways"] if one["state"] == "kept" and one["resources"]}
    old = {one["name"]: one["generation"] for one in before["xds"]["gateways"]}
    deadline_s = time.monotonic() + timeout_s
    while True:
        now = admin.ask("GET", "/api/v1/status")
        new = {one["name"]: one["generation"] for one in now["xds"]["gateways"]}
        stale = {name for name in changed if new.get(name, -1) <= old.get(name, -1)}
        settled = all(node["settled"] for node in now["xds"]["nodes"])
        arrived = bool(now["configuration"]["accepted"] and not stale and settled)
        if arrived or time.monotonic() >= deadline_s:
            names = [one["gateway"] for one in found["gateways"] if one["state"] != "removed"]
            return arrived, [_acks(name, now["xds"]["nodes"], stale=name in stale) for name in names]
        threading.Event().wait(POLL_S)
