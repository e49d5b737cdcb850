"""`pointsman xds`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import click

from pointsman.app.client import EXIT_DEGRADED, Admin, AdminError, admin_options
from pointsman.app.commands.shared import emit, output_option, refuse
from pointsman.core.errors import PointsmanError

Json = Any


@click.group()
def xds() -> None:
    """What gateways were sent, what they acknowledged, and what they refused.

    \b
    Example:
      pointsman xds acks
    """


@xds.command("acks")
@output_option
@admin_options
def acks(admin: Admin, *, output: str) -> None:
    """Show every connected proxy: what it has acknowledged, how long ago, and what it rejected in its own words.

    \b
    Exit code: 0 all have everything, 3 some have not.
    Example:
      pointsman xds acks -o json
    """
    found = _ask("acks", admin, "/api/v1/status")["xds"]
    emit(found, output, lambda: _ack_lines(found))
    if not all(node["settled"] and not node["rejected"] for node in found["nodes"]):
        sys.exit(EXIT_DEGRADED)


@xds.command("diff")
@output_option
@admin_options
def diff(admin: Admin, *, output: str) -> None:
    """Show the resources that a proxy does not have as they are wanted, with both versions.

    \b
    Exit code: 0 no difference, 3 some.
    Example:
      pointsman xds diff
    """
    found = _ask("diff", admin, "/api/v1/xds/diff")
    emit(found, output, lambda: _diff_lines(found["nodes"]))
    if any(node["resources"] for node in found["nodes"]):
        sys.exit(EXIT_DEGRADED)


@xds.command("dump")
@click.argument("gateway", required=False, default="")
@click.option("--type", "kind", type=click.Choice(["CDS", "EDS", "LDS", "RDS"]), help="Only this type.")
@output_option
@admin_options
def dump(admin: Admin, *, gateway: str, kind: str | None, output: str) -> None:
    """Print the resources that a GATEWAY is to have now; not needed when there is one.

    The table lists names and versions; `-o json` and `-o yaml` have the content.

    \b
    Examples:
      pointsman xds dump default/main
      pointsman xds dump --type RDS -o yaml
    """
    name = gateway or _only_gateway(admin)
    found = _ask("dump", admin, f"/api/v1/xds/resources/{quote(name if '/' in name else f'default/{name}')}")
    if kind:
        found["resources"] = {kind: found["resources"].get(kind, [])}
    emit(found, output, lambda: _resource_lines(found))


def _only_gateway(admin: Admin) -> str:
    names = [one["name"] for one in _ask("dump", admin, "/api/v1/status")["gateways"]]
    if len(names) != 1:
        refuse("xds dump", AdminError(f"say which GATEWAY: there is {', '.join(names) or 'none'}"))
    return str(names[0])


def _ask(verb: str, admin: Admin, path: str) -> Json:
    try:
        return admin.ask("GET", path)
    except PointsmanError as error:
        refuse(f"xds {verb}", error)


def _ack_lines(found: Json) -> Iterator[str]:
    for gateway in found["gateways"]:
        yield f"Gateway {gateway['name']}"
        for problem in gateway["problems"]:
            yield f"  not served: {problem}"
        nodes = [node for node in found["nodes"] if node["gateway"] == gateway["name"]]
        for node in nodes:
            state = "has everything" if node["settled"] else "is behind"
            yield f"  {node['node']} {state}  ({node['agent']}, {node['protocol']}, {node['peer']})"
            for one in node["types"]:
                ago = "never" if one["since_ack_s"] is None else f"{one['since_ack_s']:.0f} s ago"
                pending = f", waiting for {', '.join(one['pending'])}" if one["pending"] else ""
                yield f"    {one['type']:<4} {one['acked']:>5} acknowledged, last {ago}{pending}"
            for one in node["rejected"]:
                yield f"    rejected {one['type']} {one['name']}: {one['message']}"
        if not nodes:
            yield "  no gateway is connected"
    for node in found["nodes"]:
        if node["gateway"] is None:
            yield f"{node['node']} ({node['peer']}) belongs to no gateway and gets nothing"


def _diff_lines(nodes: Json) -> Iterator[str]:
    if not any(node["resources"] for node in nodes):
        yield "no difference: " + (
            "1 gateway has what it is to have"
            if len(nodes) == 1
            else f"{len(nodes)} gateways have what they are to have"
        )
    for node in nodes:
        for one in node["resources"]:
            has, wanted = one["has"] or "nothing", one["wanted"] or "nothing"
            yield f"{node['node']}  {one['type']} {one['name']}: has {has}, is to have {wanted}"


def _resource_lines(found: Json) -> Iterator[str]:
    yield f"Gateway {found['gateway']}, generation {found['generation']}"
    for kind, resources in found["resources"].items():
        for one in resources:
            yield f"  {kind:<4} {one['version']}  {one['name']}"
