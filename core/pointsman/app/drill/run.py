"""One drill in the embedded set-up: wait for the steady state, make the fault, watch, heal."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import Any, Final

import aiohttp

from pointsman.app.drill.clients import Watch
from pointsman.app.drill.fleet import DrillError, DrillFleet
from pointsman.app.drill.kinds import Kind, Scene
from pointsman.failover import outcome
from pointsman.failover.outcome import WINDOW_S, Outcome, Seen
from pointsman.failover.report import Moment, Run
from pointsman.failover.timeline import timeline

BEFORE_S: Final = 2.0
"""How long everything must have gone well before the fault: what is usual is taken from this time."""
STEADY_TIMEOUT_S: Final = 120.0
"""A site that failed several times in a row is kept out for up to a minute."""
SETTLE_TIMEOUT_S: Final = 10.0
"""All requests of a drill have ended after their clients' patience of 4 s."""
POLL_S: Final = 0.1
HOME_SHARE: Final = 0.9
"""In the steady state so many answers come from the site of the gateway; now and then a pick crosses."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """When a drill ends by itself. `failed`: so many requests, None: no limit."""

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
        usual = [seen for seen in self._watch.seen if seen.start_s >= began_s - BEFORE_S]
        scene = Scene(fleet=self._fleet, site=site, number=number)
        reached: list[float] = []
        watching = asyncio.create_task(self._reached(scene, reached))
        try:
            aborted = await self._watched(kind, scene, began_s, reached)
            end_s = time.monotonic()
            records = await self._records(site)
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)
            await self._fleet.heal()
        await self._settled(end_s)
        return self._judge(kind, scene, began_s, end_s, usual, reached, aborted, records)

    async def _steady(self, site: str) -> None:
        """Wait until everything has gone well for `BEFORE_S` and each gateway uses its own site.

        Raises:
            DrillError: it does not within `STEADY_TIMEOUT_S`.
        """
        began_s = time.monotonic()
        why = ""
        while time.monotonic() < began_s + STEADY_TIMEOUT_S:
            why = await self._fleet.at_rest() or self._unrest(site)
            if not why:
                return
            await asyncio.sleep(POLL_S)
        raise DrillError(f"the set-up does not come to rest within {STEADY_TIMEOUT_S:g} s: {why}")

    def _unrest(self, site: str) -> str:
        since_s = time.monotonic() - BEFORE_S
        if self._watch.oldest_s < since_s:
            return "requests of before are still open"
        self._watch.forget_before(since_s - BEFORE_S)
        lately = [seen for seen in self._watch.seen if seen.start_s >= since_s]
        if bad := [seen for seen in lately if outcome.outcome(seen) is not Outcome.OK]:
            return f"{len(bad)} requests failed, such as: {bad[-1].error}"
        home = [self._fleet.site_of.get(seen.replica) == site for seen in lately if seen.gateway == site]
        if len(home) < 10:
            return f"the gateway of {site} answered {len(home)} requests"
        if sum(home) < HOME_SHARE * len(home):
            return f"{sum(home)} of {len(home)} requests at the gateway of {site} are served there"
        return ""

    async def _watched(self, kind: Kind, scene: Scene, began_s: float, reached: list[float]) -> str:
        """Make the fault and watch until it is over; why it was aborted, "" when it was not."""
        longest_s = self._limits.longest_s or kind.longest_s
        injecting = asyncio.create_task(kind.inject(scene))
        try:
            while True:
                await asyncio.sleep(POLL_S)
                now_s = time.monotonic()
                if injecting.done():
                    injecting.result()
                after = self._after(began_s)
                failed = sum(outcome.outcome(seen) is Outcome.FAILED for seen in after)
                if self._limits.failed is not None and failed > self._limits.failed:
                    return f"{failed} requests failed, more than {self._limits.failed}"
                if not injecting.done():
                    if self._limits.longest_s and now_s > began_s + self._limits.longest_s:
                        return f"it took longer than {self._limits.longest_s:g} s"
                    continue
                if now_s > scene.fault_s + longest_s:
                    over = self._limits.longest_s and kind.bars.rto_s
                    return f"it took longer than {longest_s:g} s" if over else ""
                if now_s >= scene.fault_s + kind.least_s and self._over(kind, scene, after, reached):
                    return ""
        finally:
            injecting.cancel()
            await asyncio.gather(injecting, return_exceptions=True)

    def _over(self, kind: Kind, scene: Scene, after: list[Seen], reached: list[float]) -> bool:
        """Whether a whole good window has been seen, with every request in it ended."""
        known_s = min(self._watch.oldest_s, time.monotonic() - POLL_S)
        bad = outcome.bad_times(self._judged(kind, scene, after), reached, fault_s=scene.fault_s, avoid=scene.avoid)
        found = outcome.recovery([at_s for at_s in bad if at_s < known_s], fault_s=scene.fault_s, end_s=known_s)
        return found.recovered_s is not None and not found.relapses

    def _after(self, began_s: float) -> list[Seen]:
        return [seen for seen in self._watch.seen if seen.end_s >= began_s]

    @staticmethod
    def _judged(kind: Kind, scene: Scene, requests: list[Seen]) -> list[Seen]:
        return [seen for seen in requests if not kind.others_only or seen.gateway != scene.site]

    async def _reached(self, scene: Scene, reached: list[float]) -> None:
        """Note when a replica that is to be avoided got a request; until cancelled."""
        before: dict[str, int] = {}
        while True:
            now = await self._fleet.received(scene.site)
            if scene.avoid and any(now.get(name, 0) > before.get(name, 0) for name in scene.avoid if name in before):
                reached.append(time.monotonic())
            before = now
            await asyncio.sleep(POLL_S)

    async def _settled(self, end_s: float) -> None:
        """Wait until every request that began before `end_s` has ended."""
        try:
            async with asyncio.timeout(SETTLE_TIMEOUT_S):
                while self._watch.oldest_s < end_s:
                    await self._watch.news()
        except TimeoutError as error:
            raise DrillError("the clients of the drill do not answer any more") from error

    async def _records(self, site: str) -> list[dict[str, Any]]:
        """What the control planes recorded about failovers, as far as one answers."""
        found: list[dict[str, Any]] = []
        timeout = aiohttp.ClientTimeout(total=1)
        for parts in self._fleet.sites.values():
            try:
                async with self._fleet.session.get(f"{parts.admin}/api/v1/status", timeout=timeout) as response:
                    status = await response.json(content_type=None)
            except (aiohttp.ClientError, OSError, TimeoutError, ValueError):
                continue
            policies = status.get("failover", [])
            found += [one for policy in policies for one in policy["records"] if one.get("site") == site]
        return found

    def _judge(
        self,
        kind: Kind,
        scene: Scene,
        began_s: float,
        end_s: float,
        usual: list[Seen],
        reached: list[float],
        aborted: str,
        records: list[dict[str, Any]],
    ) -> tuple[Run, str]:
        fault_s = scene.fault_s
        base = outcome.baseline(usual)
        after = [seen for seen in self._after(began_s) if seen.start_s < end_s]
        judged = self._judged(kind, scene, after)
        # The count of a replica tells that it got a request since the last look, not when it was sent.
        looks = [at_s for at_s in reached if fault_s + POLL_S < at_s < end_s]
        bad = outcome.bad_times(judged, looks, fault_s=fault_s, avoid=scene.avoid)
        found = outcome.recovery(bad, fault_s=fault_s, end_s=end_s)
        moments = [Moment(at_s=at_s - fault_s, what=what) for at_s, what in scene.said]
        if found.recovered_s is not None:
            moments.append(Moment(at_s=found.recovered_s - fault_s, what="recovered, as clients see it"))
        moments.sort(key=lambda moment: moment.at_s)
        run = Run(
            kind=kind.name,
            site=scene.site,
            number=scene.number,
            rto_s=None if found.recovered_s is None else found.recovered_s - fault_s,
            relapses=found.relapses,
            counts=outcome.count(judged, base),
            switches=outcome.switches(
                [seen for seen in after if seen.gateway == scene.site], self._fleet.site_of, fault_s=fault_s, end_s=end_s
            ),
            usual_ms=(base.streamed_p99_ms, base.plain_p99_ms),
            moments=tuple(moments),
            aborted=aborted,
        )
        title = f"{kind.name} at {scene.site}: requests by the site that answered, or by what went wrong"
        shown = [seen for seen in (*usual, *after)]
        return run, timeline(title, shown, moments, self._fleet.site_of, base, fault_s=fault_s)
