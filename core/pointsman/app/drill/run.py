"""One drill in the embedded set-up: wait for the steady state, make the fault, watch, heal."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final

from pointsman.app.drill import judge
from pointsman.app.drill.clients import Watch
from pointsman.app.drill.fleet import DrillError, DrillFleet
from pointsman.app.drill.judge import LOOK_S, RECORDED, Evidence
from pointsman.app.drill.kinds import Kind, Scene
from pointsman.failover.outcome import Outcome, Seen, outcome
from pointsman.failover.report import Run

BEFORE_S: Final = 2.0
"""How long everything must have gone well before the fault: what is usual is taken from this time."""
STEADY_TIMEOUT_S: Final = 120.0
"""A replica that failed several times in a row is kept out for up to a minute."""
SETTLE_TIMEOUT_S: Final = 10.0
"""All requests of a drill have ended after their clients' patience of 4 s."""
HOME_SHARE: Final = 0.9
"""In the steady state so many answers come from the site that is to fail; now and then a pick crosses."""
EARLY_S: Final = 0.2
"""Clocks are read one after the other: a decision this much before the fault is of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """When a drill ends by itself: after so many failed requests, after so long. None: no limit but the kind's."""

    failed: int | None = None
    longest_s: float | None = None


class Drill:
    """Runs drills on one set-up, one after the other."""

    def __init__(self, fleet: DrillFleet, watch: Watch, limits: Limits) -> None:
        self._fleet = fleet
        self._watch = watch
        self._limits = limits

    async def run(self, kind: Kind, site: str, number: int) -> tuple[Run, str]:
        """One run; its figures and its picture. Whatever happens, the fault is ended.

        Raises:
            DrillError: the set-up does not come to rest before it, or a fault cannot be made.
        """
        await self._steady(site)
        began_s = time.monotonic()
        before = [seen for seen in self._watch.seen if seen.start_s >= began_s - BEFORE_S]
        scene = Scene(fleet=self._fleet, site=site, number=number)
        looks: list[float] = []
        looking = asyncio.create_task(self._look(scene, looks))
        try:
            aborted = await self._watched(kind, scene, began_s, looks)
            end_s = time.monotonic()
            record = await self._record(site, scene.fault_s)
        finally:
            looking.cancel()
            await asyncio.gather(looking, return_exceptions=True)
            await self._fleet.heal()
        await self._settled(end_s)
        evidence = self._evidence(kind, scene, began_s, looks, end_s)
        evidence = replace(evidence, before=before, record=record, said=scene.said, aborted=aborted)
        return judge.judge(evidence)

    async def _steady(self, site: str) -> None:
        """Wait until everything has gone well for `BEFORE_S` and `site` serves.

        Raises:
            DrillError: it does not within `STEADY_TIMEOUT_S`.
        """
        began_s = time.monotonic()
        why = ""
        while time.monotonic() < began_s + STEADY_TIMEOUT_S:
            why = await self._fleet.at_rest() or self._unrest(site)
            if not why:
                return
            await asyncio.sleep(LOOK_S)
        raise DrillError(f"the set-up does not come to rest within {STEADY_TIMEOUT_S:g} s: {why}")

    def _unrest(self, site: str) -> str:
        since_s = time.monotonic() - BEFORE_S
        if self._watch.oldest_s < since_s:
            return "requests of before are still open"
        self._watch.forget_before(since_s - BEFORE_S)
        lately = [seen for seen in self._watch.seen if seen.start_s >= since_s]
        if bad := [seen for seen in lately if outcome(seen) is not Outcome.OK]:
            return f"{len(bad)} requests failed, such as: {bad[-1].error}"
        home = [self._fleet.site_of.get(seen.replica) == site for seen in lately if seen.gateway == site]
        if len(home) < 10:
            return f"the gateway of {site} answered {len(home)} requests"
        if sum(home) < HOME_SHARE * len(home):
            return f"{sum(home)} of {len(home)} requests at the gateway of {site} are served there"
        return ""

    async def _watched(self, kind: Kind, scene: Scene, began_s: float, looks: list[float]) -> str:
        """Make the fault and watch until it is over; why it was aborted, "" when it was not."""
        limits = self._limits
        injecting = asyncio.create_task(kind.inject(scene))
        try:
            while True:
                await asyncio.sleep(LOOK_S)
                now_s = time.monotonic()
                if injecting.done():
                    injecting.result()
                # Everything that began before this has ended, so that nothing that is still open is taken for good.
                known_s = min(self._watch.oldest_s, now_s - LOOK_S)
                evidence = self._evidence(kind, scene, began_s, looks, known_s)
                if limits.failed is not None and (failed := judge.failed(evidence)) > limits.failed:
                    return f"{failed} requests failed, more than {limits.failed}"
                if limits.longest_s is not None and now_s > began_s + limits.longest_s:
                    return f"it took longer than {limits.longest_s:g} s"
                if not injecting.done():
                    continue
                if now_s > scene.fault_s + kind.longest_s:
                    return ""
                if now_s > scene.fault_s + kind.least_s and judge.over(evidence):
                    return ""
        finally:
            injecting.cancel()
            await asyncio.gather(injecting, return_exceptions=True)

    def _evidence(self, kind: Kind, scene: Scene, began_s: float, looks: list[float], end_s: float) -> Evidence:
        """What is known until `end_s`."""
        after: list[Seen] = [seen for seen in self._watch.seen if seen.end_s >= began_s and seen.start_s < end_s]
        return Evidence(
            kind=kind.name,
            site=scene.site,
            number=scene.number,
            began_s=began_s,
            fault_s=scene.fault_s or began_s,
            end_s=end_s,
            after=after,
            looks=looks,
            avoid=scene.avoid,
            record={},
            site_of=self._fleet.site_of,
            others_only=kind.others_only,
        )

    async def _look(self, scene: Scene, looks: list[float]) -> None:
        """Note when a replica that is to be avoided got a request; until cancelled."""
        before: dict[str, int] = {}
        while True:
            now = await self._fleet.received(scene.site)
            if any(now.get(name, 0) > before[name] for name in scene.avoid if name in before):
                looks.append(time.monotonic())
            before = now
            await asyncio.sleep(LOOK_S)

    async def _settled(self, end_s: float) -> None:
        """Wait until every request that began before `end_s` has ended."""
        try:
            async with asyncio.timeout(SETTLE_TIMEOUT_S):
                while self._watch.oldest_s < end_s:
                    await self._watch.news()
        except TimeoutError as error:
            raise DrillError("the clients of the drill do not answer any more") from error

    async def _record(self, site: str, fault_s: float) -> Mapping[str, float]:
        """Times of the record that a control plane made of leaving `site` after the fault; that of the site first."""
        fault_at_s = fault_s + time.time() - time.monotonic()
        for asked in (site, self._fleet.other(site)):
            for policy in await self._fleet.policies(asked):
                for record in policy["records"]:
                    if record["site"] == site and (record["decided_at_s"] or 0.0) >= fault_at_s - EARLY_S:
                        return {name: record[name] - fault_at_s for name in RECORDED if record.get(name)}
        return {}
