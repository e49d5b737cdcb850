"""Drills against a real site: only what can be asked of it, by the admin API of its control plane.

Nothing is killed. What clients see is watched by a prober at a gateway, where its address is given.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from typing import Any, Final

from pointsman.app.client import Admin
from pointsman.app.drill import judge
from pointsman.app.drill.clients import Watch, clients
from pointsman.app.drill.judge import LOOK_S, RECORDED, Evidence
from pointsman.app.drill.kinds import Kind
from pointsman.app.drill.run import Limits
from pointsman.failover.report import Run

ASKABLE: Final = {
    "evacuate": ("evacuate", "activate", "the site is to be evacuated"),
    "control-plane": ("freeze", "unfreeze", "the control plane is to decide nothing"),
}
"""Kind of drill → what is asked for, what ends it, and in words. All else would harm real users."""

WATCH_S: Final = 10.0
BEFORE_S: Final = 3.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RealSite:
    """Who is asked, for what reason, and the gateways (site → URL) that are probed with `model`."""

    admin: Admin
    site: str
    reason: str
    gateways: Mapping[str, str]
    model: str
    limits: Limits


async def asked_drill(kind: Kind, real: RealSite, number: int) -> tuple[Run, str]:
    """Ask for the fault, watch, and end it in any case; figures and picture.

    Raises:
        AdminError: the control plane refuses or does not answer.
    """
    begin, end, words = ASKABLE[kind.name]
    longest_s = real.limits.longest_s or WATCH_S
    async with AsyncExitStack() as stack:
        watch = Watch()
        if real.gateways:
            watch = await stack.enter_async_context(clients(real.gateways, {}, model=real.model))
            await asyncio.sleep(BEFORE_S)
        began_s, began_at_s = time.monotonic(), time.time()
        said = [(began_s, f"{words}: {real.reason}")]
        aborted = ""
        await _ask(real, begin)
        try:
            while time.monotonic() < began_s + longest_s:
                await asyncio.sleep(LOOK_S)
                failed = judge.failed(_evidence(kind, real, watch, number, began_s))
                if real.limits.failed is not None and failed > real.limits.failed:
                    aborted = f"{failed} requests failed, more than {real.limits.failed}"
                    break
            record = await _record(real, began_at_s)
        finally:
            await _ask(real, end)
        evidence = _evidence(kind, real, watch, number, began_s)
    run, picture = judge.judge(replace(evidence, record=record, said=said, aborted=aborted))
    return replace(run, set_up="real", reason=real.reason), picture


def _evidence(kind: Kind, real: RealSite, watch: Watch, number: int, began_s: float) -> Evidence:
    now_s = time.monotonic()
    return Evidence(
        kind=kind.name,
        site=real.site,
        number=number,
        began_s=began_s,
        fault_s=began_s,
        end_s=min(watch.oldest_s, now_s) if real.gateways else now_s,
        before=[seen for seen in watch.seen if seen.end_s < began_s],
        after=[seen for seen in watch.seen if seen.end_s >= began_s],
        record={},
        site_of={},
    )


async def _ask(real: RealSite, action: str) -> None:
    site = "" if action in {"freeze", "unfreeze"} else real.site
    body = {"site": site, "actor": "drill", "reason": f"drill: {real.reason}"}
    await asyncio.to_thread(real.admin.ask, "POST", f"/api/v1/failover/{action}", body)


async def _record(real: RealSite, began_at_s: float) -> Mapping[str, float]:
    answer: Any = await asyncio.to_thread(real.admin.ask, "GET", "/api/v1/failover")
    for policy in answer["policies"]:
        for record in policy["records"]:
            if record["site"] == real.site and (record["decided_at_s"] or 0.0) >= began_at_s - 1:
                return {name: record[name] - began_at_s for name in RECORDED if record.get(name)}
    return {}
