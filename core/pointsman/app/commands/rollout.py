"""`pointsman rollout`."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from typing import Any, Final
from urllib.parse import quote

import click

from pointsman.app.client import Admin, admin_options, user_name
from pointsman.app.commands.shared import emit, output_option, reason_option, refuse
from pointsman.core.errors import PointsmanError

Json = Any

EXIT_ABORTED: Final = 3
"""The rollout was rolled back, or did not get where --wait waited for."""

POLL_S: Final = 0.5

_BAD: Final = frozenset({"Aborting", "Aborted"})
_ENDS: Final = frozenset({"Completed", "Aborted"})
_PATH: Final = "/api/v1/rollouts"


@click.group()
def rollout() -> None:
    """See and steer rollouts: the RolloutPolicies that bring a canary in step by step.

    A POLICY is named as chat or default/chat.

    \b
    Example:
      pointsman rollout get chat
    """


@rollout.command("get")
@click.argument("policy", required=False, default="")
@click.option("--wait", is_flag=True, help="Return when it is completed or rolled back.")
@click.option("--timeout", "timeout_s", type=click.FloatRange(0), default=3600.0, show_default=True, metavar="SECONDS")
@output_option
@admin_options
def get(admin: Admin, *, policy: str, wait: bool, timeout_s: float, output: str) -> None:
    """Show one rollout or all: phase, step, effective weights, what the checks say and what they still need.

    \b
    Exit code: 0 fine, 1 refused, 3 rolled back (or with --wait not at its end in time).
    Example:
      pointsman rollout get chat
    """
    if wait and not policy:
        raise click.UsageError("--wait needs a POLICY")
    found = _read(admin, policy)
    deadline_s = time.monotonic() + timeout_s
    while wait and found[0]["phase"] not in _ENDS and time.monotonic() < deadline_s:
        threading.Event().wait(POLL_S)
        found = _read(admin, policy)
    _show(found[0] if policy else found, found, output)
    if policy and (found[0]["phase"] in _BAD or (wait and found[0]["phase"] != "Completed")):
        sys.exit(EXIT_ABORTED)


def _act(verb: str, text: str, *, needs_reason: bool = False, full: bool = False) -> click.Command:
    """One verb as a command."""

    def run(admin: Admin, *, policy: str, reason: str, output: str, full: bool = False) -> None:
        body = {"actor": user_name(), "reason": reason, "full": full}
        path = f"{_PATH}/{quote(_full_name(policy))}/{verb}"
        answer = _ask(verb, lambda: admin.ask("POST", path, body))
        _show(answer, [answer], output)

    run.__doc__ = text
    command: Any = admin_options(run)
    command = output_option(command)
    command = reason_option(command, required=needs_reason)
    if full:
        command = click.option("--full", is_flag=True, help="Straight to the last step, past checks and gates.")(
            command
        )
    return rollout.command(verb)(click.argument("policy")(command))


promote = _act("promote", """End the present step now; a failing check still rolls back.

    \b
    Example:
      pointsman rollout promote chat --reason "judged by hand"
    """, full=True)  # fmt: skip
pause = _act("pause", """Stay in the present step until `resume`; failing checks still roll back.

    \b
    Example:
      pointsman rollout pause chat --reason "freeze until Monday"
    """)  # fmt: skip
resume = _act("resume", """Go on after `pause`.

    \b
    Example:
      pointsman rollout resume chat
    """)  # fmt: skip
abort = _act("abort", """Take all requests away from the canary at once.

    \b
    Example:
      pointsman rollout abort chat --reason "support tickets"
    """, needs_reason=True)  # fmt: skip
undo = _act("undo", """Go back to the stable pool, also after the rollout was completed.

    \b
    Example:
      pointsman rollout undo chat --reason "worse answers"
    """, needs_reason=True)  # fmt: skip
retry = _act("retry", """Start a rollout that was rolled back again, at its first step.

    \b
    Example:
      pointsman rollout retry chat --reason "image rebuilt"
    """)  # fmt: skip


def _full_name(policy: str) -> str:
    return policy if "/" in policy else f"default/{policy}"


def _read(admin: Admin, policy: str) -> list[Json]:
    if policy:
        return [_ask("get", lambda: admin.ask("GET", f"{_PATH}/{quote(_full_name(policy))}"))]
    found: list[Json] = _ask("get", lambda: admin.ask("GET", _PATH))["rollouts"]
    return found


def _ask(verb: str, ask: Callable[[], Json]) -> Json:
    try:
        return ask()
    except PointsmanError as error:
        refuse(f"rollout {verb}", error)


def _show(answer: Json, rollouts: list[Json], output: str) -> None:
    if rollouts:
        emit(answer, output, lambda: ["\n\n".join("\n".join(rollout_lines(one)) for one in rollouts)])
    else:
        emit(answer, output, lambda: ["no RolloutPolicy is in force"])


def rollout_lines(found: Json) -> list[str]:
    """A rollout for a terminal."""
    mode = "" if found["mode"] == "Auto" else f", mode {found['mode']}"
    mirrored = "mirrored" if found["strategy"] == "Shadow" else "canary"
    lines = [
        f"{found['name']}  {found['phase']}  ({found['strategy']}{mode}, attempt {found['attempt']})",
        f"  {found['why']}",
        f"  step {found['step']} of {len(found['steps'])}: {_steps(found)}",
        f"  {mirrored} {_percent(found['weight'])}, {found['requests']} canary requests in this step"
        + ("" if found["programmed"] else ", gateways are not there yet"),
    ]
    if found["sites"]:
        at = ", ".join(f"{one['site']} {_percent(one['weight'])}" for one in found["sites"])
        lines.append(f"  gateways at {at}")
    for rule in found["rules"]:
        arms = "  ".join(f"{arm['pool']} {_percent(arm['effective'])}" for arm in rule["arms"])
        lines.append(f"  {rule['rule']}: {arms}")
    for check in found["checks"]:
        limit = f" ({check['metric']} {check['limit']})" if check["metric"] else ""
        passed = " ✓" if check["passed"] else ""
        lines.append(f"  {check['verdict']:>7}{passed}  {check['name']}{limit}: {check['why']}")
    return lines


def _steps(found: Json) -> str:
    shown, site = [], ""
    for number, step in enumerate(found["steps"], 1):
        text = _percent(step["weight"]) if step["site"] == site else f"{step['site']}: {_percent(step['weight'])}"
        site = step["site"]
        shown.append(f"[{text}]" if number == found["step"] else text)
    return " → ".join(shown)


def _percent(share: float) -> str:
    return f"{share * 100:g} %"
