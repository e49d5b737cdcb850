"""`pointsman status`."""

from __future__ import annotations

import contextlib
import json
import signal
import sys
import threading
import time
from collections.abc import Iterator
from types import FrameType
from typing import Any, Final

import click
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from pointsman.app.client import EXIT_DEGRADED, Admin, AdminError, admin_options
from pointsman.app.commands.shared import TABLE, emit, output_option, refuse
from pointsman.core.errors import PointsmanError

Json = Any

PATH: Final = "/api/v1/tree"

PIPE_COLUMNS: Final = 160
"""Width of a table in a pipe or file, which has none of its own."""

_COLOURS: Final = {
    "healthy": "green",
    "degraded": "yellow",
    "draining": "yellow",
    "unknown": "yellow",
    "down": "red",
    "silent": "red",
    "unhealthy": "red",
}


@click.command("status")
@click.option("--watch", is_flag=True, help="Show it again and again until Ctrl-C; in a pipe one JSON line each time.")
@click.option("--every", "every_s", type=click.FloatRange(0.2), default=1.0, show_default=True, metavar="SECONDS")
@click.option("--wait", is_flag=True, help="Return when the fleet is healthy.")
@click.option(
    "--timeout",
    "timeout_s",
    type=click.FloatRange(0),
    default=60.0,
    show_default=True,
    metavar="SECONDS",
    help="How long --wait waits.",
)
@output_option
@admin_options
def status(admin: Admin, *, watch: bool, every_s: float, wait: bool, timeout_s: float, output: str) -> None:
    """Show the fleet as a tree: sites, pools, endpoints, with share, health, load, rollout step, failover, RTO.

    Shares are those of the last seconds, as gateways report them.

    \b
    Exit code: 0 healthy, 1 no answer, 3 degraded.
    Examples:
      pointsman status
      pointsman status --watch
      pointsman status --wait --timeout 30 -o json
    """
    if watch:
        with contextlib.suppress(KeyboardInterrupt):  # that is how one stops looking
            _watch(admin, every_s, output)
        return
    deadline_s = time.monotonic() + (timeout_s if wait else 0.0)
    while True:
        tree = _ask(admin)
        if tree["health"] == "healthy" or time.monotonic() >= deadline_s:
            break
        threading.Event().wait(every_s)
    if output == TABLE:
        _console().print(tree_view(tree))
    else:
        emit(tree, output, list)
    if tree["health"] != "healthy":
        sys.exit(EXIT_DEGRADED)


def _ask(admin: Admin) -> Json:
    try:
        return admin.ask("GET", PATH)
    except PointsmanError as error:
        refuse("status", error)


def _console() -> Console:
    """Colours only on a terminal, and not with NO_COLOR."""
    return Console(highlight=False, width=None if sys.stdout.isatty() else PIPE_COLUMNS)


def _watch(admin: Admin, every_s: float, output: str) -> None:
    stop = threading.Event()

    def interrupted(number: int, frame: FrameType | None) -> None:
        stop.set()  # Python drops an interrupt that comes inside a destructor
        signal.default_int_handler(number, frame)

    before = signal.signal(signal.SIGINT, interrupted)
    try:
        _show_until(stop, admin, every_s, output)
    finally:
        signal.signal(signal.SIGINT, before)


def _show_until(stop: threading.Event, admin: Admin, every_s: float, output: str) -> None:
    console = _console()
    if output != TABLE or not console.is_terminal:
        while True:
            click.echo(json.dumps(_ask(admin), ensure_ascii=False))
            if stop.wait(every_s):
                return
    with Live(console=console, screen=True, auto_refresh=False) as live:
        seen: Json = None
        while True:
            try:
                seen, lost = admin.ask("GET", PATH), ""
            except AdminError as error:  # it may be restarted; gateways go on
                lost = str(error)
            body = tree_view(seen) if seen else Text("")
            live.update(Group(Text(lost, style="bold red"), body) if lost else body, refresh=True)
            if stop.wait(every_s):
                return


def tree_view(tree: Json) -> RenderableType:
    """The tree for a terminal."""
    head = Text.assemble(
        ("Fleet ", "bold"),
        (tree["health"], _COLOURS[tree["health"]]),
        f"  {tree['ready']} of {tree['endpoints']} endpoints ready, {tree['in_flight']:g} in flight",
        f", {tree['requests']} requests of late",
    )
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name, justify in (
        ("", "left"),
        ("state", "left"),
        ("share", "right"),
        ("in flight", "right"),
        ("waiting", "right"),
        ("KV", "right"),
        ("round trip", "right"),
        ("rollout, failover, weights", "left"),
    ):
        table.add_column(name, justify=justify, no_wrap=name != "rollout, failover, weights")  # type: ignore[arg-type]
    for row in _rows(tree):
        table.add_row(*row)
    reasons = [Text(f"! {reason}", style="yellow") for reason in tree["reasons"]]
    hints = [Text(f"→ {hint}", style="dim") for pool in tree["pools"] for hint in pool["placement_hints"]]
    return Group(head, *(Text(line) for line in _gateways(tree)), *reasons, *hints, table)


def _gateways(tree: Json) -> Iterator[str]:
    for gateway in tree["gateways"]:
        where = f" at {gateway['site']}" if gateway["site"] else ""
        behind = f", behind: {', '.join(gateway['behind'])}" if gateway["behind"] else ""
        yield f"Gateway {gateway['name']}{where}: {gateway['proxies']} connected{behind}"


def _rows(tree: Json) -> Iterator[tuple[RenderableType, ...]]:
    for site in tree["sites"]:
        yield _row(f"Site {site['name']}", site["health"], site, _failover(site), style="bold")
        for number, pool in enumerate(site["pools"], 1):
            last = number == len(site["pools"])
            name = f"{'└─' if last else '├─'} {pool['name']}"
            yield _row(name, pool["health"], pool, _pool_words(pool), count=f" {pool['ready']}/{pool['count']}")
            for place, endpoint in enumerate(pool["endpoints"], 1):
                stem = "   " if last else "│  "
                branch = "└─" if place == len(pool["endpoints"]) else "├─"
                words = endpoint["key"]
                yield _row(f"{stem}{branch} {endpoint['name']}", endpoint["state"], endpoint, words)


def _row(
    name: str, state: str, one: Json, words: str, *, count: str = "", style: str = ""
) -> tuple[RenderableType, ...]:
    kv, rtt = one.get("kv_usage"), one.get("rtt_ms")
    return (
        Text(name, style=style),
        Text.assemble((state, _COLOURS.get(state, "")), count),
        _percent(one["share"]),
        _number(one["in_flight"]),
        _number(one["waiting"]) if "waiting" in one else "",
        _percent(kv) if "kv_usage" in one else "",
        ("–" if rtt is None else f"{rtt:.1f} ms") if "rtt_ms" in one else "",
        Text(words, style="dim"),
    )


def _pool_words(pool: Json) -> str:
    words = []
    if rollout := pool["rollout"]:
        where = f"step {rollout['step']} of {rollout['steps']}, {rollout['weight'] * 100:g} %"
        words.append(f"{rollout['role']} of {rollout['name']}: {rollout['phase']}, {where}")
    words += [
        f"{one['weight'] / 100:g} % of {one['rule'].partition('/')[2]}{_models(one['models'])}"
        for one in pool["weights"]
    ]
    return "; ".join(words)


def _models(shares: Json) -> str:
    """The shares of a pool's models or LoRAs, where requests are renamed to them."""
    return f" ({', '.join(f'{model} {share / 100:g} %' for model, share in shares.items())})" if shares else ""


def _failover(site: Json) -> str:
    words = [
        f"{one['pool']} {one['state']}" + ("" if one["share"] == 1 else f" {one['share'] * 100:g} %")
        for one in site["failover"]
        if one["state"] != "Healthy"
    ]
    if site["rto_s"] is not None:
        words.append(f"last RTO {site['rto_s']:.2f} s")
    return "; ".join(words)


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{share * 100:.1f} %"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:g}"
