"""`pointsman failover` and `pointsman site`."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Final

import click

from pointsman.app.client import Admin, admin_options, user_name
from pointsman.app.commands.shared import emit, output_option, reason_option, refuse
from pointsman.core.config.syntax import duration, duration_ms
from pointsman.core.errors import PointsmanError

Json = Any

_PATH: Final = "/api/v1/failover"

WAIT_S: Final = 10.0
"""How long --wait waits for gateways where nothing is said: they acknowledge within milliseconds, or are gone."""


class _Duration(click.ParamType[float]):
    """A duration such as 30s or 2m, in seconds."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, float):
            return value
        if complaint := duration(str(value)):
            self.fail(f"{complaint[0]}; {complaint[1]}", param, ctx)
        return duration_ms(str(value)) / 1_000


def _acting(command: Callable[..., Any], *, reason: bool, site: bool = True) -> Any:
    """The options of commands that change something."""
    found: Any = admin_options(command)
    found = output_option(found)
    found = click.option("--dry-run", is_flag=True, help="Show what would be decided, change nothing.")(found)
    found = click.option("--wait", is_flag=True, help="Return when every connected gateway has it.")(found)
    found = click.option(
        "--timeout", "timeout_s", type=_Duration(), default=f"{WAIT_S:g}s", show_default=True, help="Longest --wait."
    )(found)
    found = reason_option(found, required=reason)
    if site:
        found = click.option(
            "--pool", default="", metavar="NAMESPACE/NAME", help="Only this pool; all where left out."
        )(found)
        found = click.option("--force", is_flag=True, help="Beyond the safety rules, and back without the ramp.")(found)
    return found


@click.group()
def site() -> None:
    """See sites, and take them, one pool there or one endpoint in and out of service.

    \b
    Example:
      pointsman site evacuate eu-west --reason "fire drill"
    """


@click.group()
def failover() -> None:
    """See and steer failover between sites.

    \b
    Example:
      pointsman failover status
    """


def _act(
    group: click.Group, name: str, action: str, text: str, *, reason: bool = False, endpoint: bool = False
) -> click.Command:
    """A command that does `action` at a SITE."""

    def run(
        admin: Admin,
        *,
        site: str,
        pool: str,
        force: bool,
        reason: str,
        dry_run: bool,
        wait: bool,
        timeout_s: float,
        output: str,
        endpoint: str = "",
        deadline: float | None = None,
    ) -> None:
        if not site and not endpoint:
            raise click.UsageError("say a SITE, or --endpoint")
        body = {"site": site, "pool": pool, "endpoint": endpoint, "force": force, "deadline_s": deadline or 0.0}
        _post(admin, action, body, reason=reason, dry_run=dry_run, wait_s=timeout_s if wait else 0.0, output=output)

    run.__doc__ = text
    command = _acting(run, reason=reason)
    if endpoint:
        command = click.option("--endpoint", default="", metavar="IP:PORT", help="Only this endpoint.")(command)
    if endpoint and reason:
        command = click.option(
            "--deadline", type=_Duration(), help="When it will be gone, such as 120s after a reclaim notice."
        )(command)
    return group.command(name)(click.argument("site", required=not endpoint, default="")(command))


drain = _act(site, "drain", "drain", """Send no new requests to a site or endpoint; running ones finish.

    For planned work: freezes and the limits of the policy hold.

    \b
    Example:
      pointsman site drain eu-west --reason "kernel update"
      pointsman site drain --endpoint 10.0.0.5:8000 --deadline 120s --reason "spot reclaim"
    """, reason=True, endpoint=True)  # fmt: skip
evacuate = _act(site, "evacuate", "evacuate", """Leave a site or endpoint at once; running requests finish.

    For emergencies: freezes do not hold, only the minimum of active sites does.

    \b
    Example:
      pointsman site evacuate eu-west --reason "cooling failed"
    """, reason=True, endpoint=True)  # fmt: skip
activate = _act(site, "activate", "activate", """End a drain or an evacuation; the site comes back through the ramp.

    \b
    Example:
      pointsman site activate eu-west --wait
    """, endpoint=True)  # fmt: skip
now = _act(failover, "now", "failover", """Leave a site as if it had failed.

    It stays away until `failover failback`.

    \b
    Example:
      pointsman failover now eu-west --reason "users complain"
    """, reason=True)  # fmt: skip
failback = _act(failover, "failback", "failback", """Bring a site back now, through the ramp, before its hold-down ends.

    \b
    Example:
      pointsman failover failback eu-west --reason "root cause found"
    """)  # fmt: skip
approve = _act(failover, "approve", "approve", """Do what a policy in mode Recommend proposes for a site.

    \b
    Example:
      pointsman failover approve eu-west
    """)  # fmt: skip
reject = _act(failover, "reject", "reject", """Refuse what a policy in mode Recommend proposes for a site.

    \b
    Example:
      pointsman failover reject eu-west --reason "known, harmless"
    """)  # fmt: skip


def _freeze(name: str, text: str, *, reason: bool) -> click.Command:
    def run(admin: Admin, *, reason: str, dry_run: bool, wait: bool, timeout_s: float, output: str) -> None:
        _post(admin, name, {}, reason=reason, dry_run=dry_run, wait_s=timeout_s if wait else 0.0, output=output)

    run.__doc__ = text
    return failover.command(name)(_acting(run, reason=reason, site=False))


freeze = _freeze("freeze", """Let nothing be decided without a person, for all policies.

    What Envoy does by itself goes on: retries, ejections, health checks.

    \b
    Example:
      pointsman failover freeze --reason "network team works"
    """, reason=True)  # fmt: skip
unfreeze = _freeze("unfreeze", """End a freeze.

    \b
    Example:
      pointsman failover unfreeze
    """, reason=False)  # fmt: skip


@failover.command("status")
@output_option
@admin_options
def status(admin: Admin, *, output: str) -> None:
    """Show every policy: the state of each site and why, what is drained, and the last recoveries with their RTO.

    \b
    Example:
      pointsman failover status -o json
    """
    _show(_ask("failover status", lambda: admin.ask("GET", _PATH)), output)


@site.command("list")
@output_option
@admin_options
def sites(admin: Admin, *, output: str) -> None:
    """Show the sites with the state and the share of each pool there.

    \b
    Example:
      pointsman site list
    """
    answer = _ask("site list", lambda: admin.ask("GET", _PATH))
    found = [one for policy in answer["policies"] for one in policy["sites"]]
    emit(found, output, lambda: map(_site_line, sorted(found, key=lambda one: (one["site"], one["pool"]))))


def _post(admin: Admin, action: str, body: Json, *, reason: str, dry_run: bool, wait_s: float, output: str) -> None:
    asked = {**body, "actor": user_name(), "reason": reason, "dry_run": dry_run, "wait_s": wait_s}
    answer = _ask(action, lambda: admin.ask("POST", f"{_PATH}/{action}", asked, timeout_s=15.0 + wait_s))
    _show(answer, output)


def _ask(verb: str, ask: Callable[[], Json]) -> Json:
    try:
        return ask()
    except PointsmanError as error:
        refuse(verb, error)


def _show(answer: Json, output: str) -> None:
    lines = [line for policy in answer["policies"] for line in failover_lines(policy)]
    emit(answer, output, lambda: lines or ["no pool, so nothing to fail over"])


def failover_lines(policy: Json) -> list[str]:
    """A policy for a terminal."""
    told = "" if policy["programmed"] else ", gateways are not there yet"
    lines = [f"{policy['name']}  (mode {policy['mode']}{told})"]
    if policy["frozen_by"]:
        lines.append(f"  frozen by {policy['frozen_by']}")
    if policy["problem"]:
        lines.append(f"  NOT SAVED: {policy['problem']}")
    lines += [f"  {_site_line(one)}" for one in policy["sites"]]
    lines += [
        f"  {one['endpoint']}  drained{' by ' + one['by'] if one['by'] else ''}: {one['why']}"
        for one in policy["endpoints"]
    ]
    lines += [
        f"  PROPOSED: {one['action']} of {one['pool']} at {one['site']}: {one['why']}" for one in policy["proposals"]
    ]
    lines += [f"  {_record_line(one)}" for one in policy["records"][-3:]]
    return lines


def _site_line(one: Json) -> str:
    share = "" if one["share"] == 1 else f"  {one['share'] * 100:g} %"
    hold = f"  {one['hold_down_s']:g} s left" if one["hold_down_s"] else ""
    why = f"  {one['why']}" if one["why"] else ""
    return f"{one['site']:<16} {one['pool']:<28} tier {one['tier']}  {one['state']}{share}{hold}{why}"


def _record_line(one: Json) -> str:
    when = time.strftime("%H:%M:%S", time.localtime(one["decided_at_s"]))
    rto = f"RTO {one['rto_s']:.2f} s" if one["rto_s"] is not None else one["outcome"]
    cost = f"{one['failed']} failed, {one['truncated']} truncated of {one['requests']}"
    return f"{when} {one['site']} left for {one['trigger']}: {rto}, {cost}"
