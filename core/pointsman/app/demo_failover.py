"""The story of a site that is lost and comes back, to be watched: a → b → a.

Everything is real but the model servers: two gateways, two control planes with their pickers, each a process of its
own, and clients in processes of theirs. It is the set-up of `pointsman drill`.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Final

from pointsman.app.drill import judge
from pointsman.app.drill.clients import Watch, clients
from pointsman.app.drill.fleet import DrillFleet, drill_fleet
from pointsman.app.drill.judge import ELSEWHERE, Evidence
from pointsman.app.drill.manifests import SITES, WayBack
from pointsman.core.errors import PointsmanError
from pointsman.failover.outcome import Outcome, Seen, outcome
from pointsman.failover.report import Run

LOAD_PER_S: Final = 60.0
SAY_S: Final = 0.5
HOME_S: Final = 1.0
"""It is at home again when for this long nine of ten answers come from there."""
LIMIT_S: Final = 60.0
WAY_BACK: Final = WayBack(healthy_for="1s", hold_down="2s")
"""Nobody wants to watch the minutes that a real site waits."""
GONE_S: Final = 2.0
"""The loss is watched for so long at least, and until a whole second has gone well, but not for longer than this."""
GONE_LIMIT_S: Final = 10.0


class DemoError(PointsmanError):
    """The story did not come to its end."""


async def tell(folder: Path, say: Callable[[str], None]) -> bool:
    """Tell the story with files in `folder`; True when no request failed and the traffic is back.

    Raises:
        PointsmanError: something could not be started, or the traffic does not come back.
    """
    a, b = SITES
    began_s = time.monotonic()
    say(f"Two sites, {a} and {b}: a gateway, a control plane with its picker and four replicas at each.")
    async with (
        drill_fleet(folder, primary=a, way_back=WAY_BACK) as fleet,
        clients(fleet.gateways, {a: LOAD_PER_S}) as watch,
    ):
        story = _Story(fleet, watch, say)
        await story.until_at(a)
        say(f"  everything is served at {a}; up after {time.monotonic() - began_s:.0f} s\n")

        say(f"All four replicas of {a} are killed:")
        run = await story.lose(a)
        say(_figures(run))

        say(f"The replicas of {a} start again. By its policy it must stay well and wait some seconds:")
        await asyncio.gather(fleet.heal(), story.until_at(a))
        failed = story.failed()
        say(f"  {a} serves again; {failed.total()} of {len(watch.seen)} requests failed in the whole story\n")
        for error, count in failed.most_common(3):
            say(f"  {count} times: {error}")
    say(f"{a} → {b} → {a}: {time.monotonic() - began_s:.0f} s.")
    return not run.counts.failed and not failed


class _Story:
    """What happens, told as it goes."""

    def __init__(self, fleet: DrillFleet, watch: Watch, say: Callable[[str], None]) -> None:
        self._fleet = fleet
        self._watch = watch
        self._say = say
        self._began_s = time.monotonic()

    def failed(self) -> Counter[str]:
        """Why requests failed, and how many."""
        return Counter(seen.error or "cut off" for seen in self._watch.seen if outcome(seen) is Outcome.FAILED)

    async def until_at(self, site: str) -> None:
        """Wait until `site` serves, and tell who serves in the meantime."""
        began_s = said_s = time.monotonic()
        while True:
            await asyncio.sleep(0.1)
            now_s = time.monotonic()
            lately = self._lately(max(began_s, now_s - HOME_S))
            if now_s > began_s + HOME_S and lately and lately[site] >= 0.9 * lately.total():
                return
            if now_s > began_s + LIMIT_S:
                raise DemoError(f"{site} does not serve again within {LIMIT_S:g} s")
            if now_s > said_s + SAY_S:
                said_s = now_s
                self._tell(began_s)

    async def lose(self, site: str) -> Run:
        """Kill all replicas of a site, watch what clients get, and judge it."""
        before = [seen for seen in self._watch.seen if seen.start_s > time.monotonic() - HOME_S]
        fault_s = said_s = time.monotonic()
        evidence = Evidence(
            kind="crash-all-primaries",
            site=site,
            number=1,
            began_s=fault_s,
            fault_s=fault_s,
            end_s=fault_s,
            before=before,
            avoid=tuple(self._fleet.sites[site].place.replicas),
            record={},
            site_of=self._fleet.site_of,
        )
        await self._fleet.kill_replicas(site)
        while True:
            await asyncio.sleep(0.1)
            now_s = time.monotonic()
            if now_s > said_s + SAY_S:
                said_s = now_s
                self._tell(fault_s)
            after = [seen for seen in self._watch.seen if seen.end_s >= fault_s]
            evidence = replace(evidence, after=after, end_s=min(self._watch.oldest_s, now_s))
            if now_s > fault_s + GONE_LIMIT_S or (now_s > fault_s + GONE_S and judge.over(evidence)):
                return judge.judge(evidence)[0]

    def _lately(self, since_s: float) -> Counter[str]:
        return Counter(self._name(seen) for seen in self._watch.seen if seen.end_s >= since_s)

    def _name(self, seen: Seen) -> str:
        what = outcome(seen)
        return self._fleet.site_of.get(seen.replica, "?") if what is Outcome.OK else what.value

    def _tell(self, since_s: float) -> None:
        now_s = time.monotonic()
        counts = self._lately(now_s - SAY_S)
        words = "  ".join(f"{name} {count:>3}" for name, count in sorted(counts.items()))
        self._say(f"  {now_s - since_s:>5.1f} s  {words or 'nothing was answered'}")


def _figures(run: Run) -> str:
    counts = run.counts
    rto = "it did not recover" if run.rto_s is None else f"RTO {run.rto_s:.2f} s"
    first = next(
        (f", first answer from elsewhere after {m.at_s:.2f} s" for m in run.moments if m.what == ELSEWHERE), ""
    )
    return (
        f"  {rto}{first}: {counts.requests} requests, {counts.failed} failed, {counts.slow} slow; "
        f"{counts.truncated} answers that had begun were cut, as their clients saw\n"
    )
