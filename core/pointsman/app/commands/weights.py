"""`pointsman weights`."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from decimal import Decimal
from typing import Any, Final
from urllib.parse import quote, urlencode

import click

from pointsman.app.client import ANSWER_TIMEOUT_S, EXIT_DEGRADED, Admin, admin_options, user_name
from pointsman.app.commands.shared import emit, have_it, output_option, refuse
from pointsman.core.errors import PointsmanError

Json = Any

_WEIGHT: Final = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,4})?)(%?)")


@click.group()
def weights() -> None:
    """See and change how requests are split between pools, while everything runs.

    A ROUTE is named as chat, default/chat or HTTPRoute/default/chat; its rule by name or number, where the route has
    several splits: chat/main, chat/0. Weights that were set hold until they are cleared, also over restarts; the
    manifests are not changed.

    \b
    Example:
      pointsman weights set chat stable=90 canary=10 --reason "first users" --wait
    """


@weights.command("get")
@click.argument("route", required=False, default="")
@output_option
@admin_options
def get(admin: Admin, *, route: str, output: str) -> None:
    """Show the weights of a ROUTE[/RULE], or of all, and how they came about.

    \b
    Example:
      pointsman weights get chat
    """
    path = f"/api/v1/weights/{quote(route)}" if route else "/api/v1/weights"
    answer = _ask("get", lambda: admin.ask("GET", path))
    emit(answer, output, lambda: _weights_lines(answer))


def _change_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """What setting and clearing have in common."""
    for option in (
        click.option("--reason", default="", help="Why; it goes into the audit log."),
        click.option("--wait", is_flag=True, help="Return when every connected gateway has the change."),
        click.option(
            "--timeout",
            "timeout_s",
            type=click.FloatRange(0, 600),
            default=10.0,
            show_default=True,
            metavar="SECONDS",
            help="How long --wait waits.",
        ),
        click.option("--dry-run", is_flag=True, help="Only show what would change."),
        click.option(
            "--if-version",
            type=click.IntRange(min=0),
            metavar="V",
            help="Only if the rule has this version (`weights get` shows it): nobody changed it in between.",
        ),
        click.option("--force", is_flag=True, help="Also if a controller, such as a RolloutPolicy, leads the rule."),
        output_option,
    ):
        command = option(command)
    return admin_options(command)


@weights.command("set")
@click.argument("route")
@click.argument("arms", nargs=-1, required=True, metavar="POOL=WEIGHT...")
@_change_options
def set_(admin: Admin, *, route: str, arms: tuple[str, ...], output: str, **asked: Any) -> None:
    """Set the weights of a ROUTE[/RULE]: every arm's pool and its part, in any unit or in %.

    \b
    Exit code: 0 done, 1 refused, 3 done, but with --wait some gateway has not got it.
    Examples:
      pointsman weights set chat stable=90 canary=10 --reason "first users" --wait
      pointsman weights set chat/main stable=99.5% canary=0.5%
    """
    body = {"weights": parse_weights(arms), "actor": user_name(), **asked}
    path = f"/api/v1/weights/{quote(route)}"
    _report(_ask("set", lambda: admin.ask("PUT", path, body, timeout_s=_timeout_s(asked))), output)


@weights.command("clear")
@click.argument("route")
@_change_options
def clear(admin: Admin, *, route: str, output: str, **asked: Any) -> None:
    """Forget the weights that were set for a ROUTE[/RULE]: its manifest holds again.

    \b
    Example:
      pointsman weights clear chat --reason "rollout is over"
    """
    query = {"actor": user_name(), **asked}
    words = {name: _word(value) for name, value in query.items() if value is not None}
    path = f"/api/v1/weights/{quote(route)}?{urlencode(words)}"
    _report(_ask("clear", lambda: admin.ask("DELETE", path, timeout_s=_timeout_s(asked))), output)


def parse_weights(arms: tuple[str, ...]) -> dict[str, int]:
    """`pool=weight` words as whole numbers in the same ratio; percentages must add up to 100.

    Raises:
        click.BadParameter: a word is none, or the percentages do not add up.
    """
    parsed: dict[str, tuple[Decimal, bool]] = {}
    for arm in arms:
        pool, _, text = arm.partition("=")
        match = _WEIGHT.fullmatch(text)
        if not pool or match is None:
            raise click.BadParameter(f"{arm!r} is not POOL=WEIGHT, such as canary=10 or canary=0.5%")
        if pool in parsed:
            raise click.BadParameter(f"{pool} is named twice")
        parsed[pool] = Decimal(match[1]), bool(match[2])
    units = {percent for _, percent in parsed.values()}
    total = sum(number for number, _ in parsed.values())
    if len(units) > 1:
        raise click.BadParameter("some weights are in %, others are not")
    if True in units and total != 100:
        raise click.BadParameter(f"the percentages add up to {total}, not to 100")
    digits = max(-int(number.as_tuple().exponent) for number, _ in parsed.values())
    return {pool: int(number.scaleb(digits)) for pool, (number, _) in parsed.items()}


def _report(answer: Json, output: str) -> None:
    """Print what became of a change, and end with its exit code."""
    emit(answer, output, lambda: _outcome_lines(answer))
    if not all(acks["done"] for acks in answer["acks"]):
        sys.exit(EXIT_DEGRADED)


def _timeout_s(asked: Json) -> float:
    return ANSWER_TIMEOUT_S + (float(asked["timeout_s"]) if asked["wait"] else 0.0)


def _ask(name: str, ask: Callable[[], Json]) -> Json:
    try:
        return ask()
    except PointsmanError as error:
        refuse(f"weights {name}", error)


def _weights_lines(answer: Json) -> Iterator[str]:
    rules = answer.get("rules", [answer])
    for rule in rules:
        yield from _rule_lines(rule)
    told = {note["rule"] for rule in rules for note in rule["notes"]}
    for note in answer["notes"]:
        if note["rule"] not in told:
            yield from (note["rule"], f"  note: {note['message']}")


def _rule_lines(rule: Json) -> list[str]:
    whose = rule["owner"] or f"the {rule['source']}"
    sticky = f", sticky by {rule['sticky']}" if rule["sticky"] else ""
    lines = [f"{rule['rule']}  (version {rule['version']}, weights of {whose}{sticky})"]
    for arm in rule["arms"]:
        more = [f"manifest {percent(arm['declared'])}"] if arm["declared"] != arm["decided"] else []
        more += [f"decided {percent(arm['decided'])}"] if arm["decided"] != arm["effective"] else []
        more += [arm["unavailable"]] if arm["unavailable"] else []
        lines.append(f"  {percent(arm['effective']):>8}  {arm['pool']}" + (f"  ({', '.join(more)})" if more else ""))
    return [*lines, *(f"  note: {note['message']}" for note in rule["notes"])]


def _outcome_lines(outcome: Json) -> list[str]:
    head = "would change" if outcome["dry_run"] else "changed" if outcome["changed"] else "is as it was"
    lines = [f"{outcome['rule']} {head} (version {outcome['version']})"]
    for pool in {**outcome["before"], **outcome["after"]}:
        before, after = outcome["before"].get(pool, 0), outcome["after"].get(pool, 0)
        lines.append(f"  {pool}: {percent(before)} → {percent(after)}")
    if outcome["before"] != outcome["after"]:
        lines.append(f"  {outcome['moved_percent']:g} % of the traffic goes elsewhere")
    for acks in outcome["acks"]:
        lines += _acks_lines(acks)
    if outcome["changed"] and not outcome["gateways"]:
        lines.append("  no gateway has this rule")
    return [*lines, *(f"  note: {note['message']}" for note in outcome["notes"])]


def _acks_lines(acks: Json) -> list[str]:
    gateway, nodes = acks["gateway"], acks["acked_ms"]
    lines = [f"  {gateway}: not served: {problem}" for problem in acks["problems"]]
    if nodes:
        lines.append(f"  {gateway}: {have_it(len(nodes))}, the last after {max(nodes.values()):g} ms")
    elif acks["done"]:
        lines.append(f"  {gateway}: no gateway is connected")
    lines += [f"  {gateway}: {node} has refused it: {message}" for node, message in acks["rejected"].items()]
    return lines + [f"  {gateway}: {node} has not answered" for node in acks["pending"]]


def percent(share: int) -> str:
    """A share in 1/10,000 as people read it."""
    return f"{share / 100:g} %"


def _word(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
