"""The faults that drills make: what is done, who is to be avoided afterwards, and what must be reached."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Final

from pointsman.app.drill.fleet import DrillFleet
from pointsman.failover.report import Bars


@dataclass
class Scene:
    """One drill while it runs: what the fault does to the fleet, and what it tells about it.

    `fault_s`: when the fault (the last of several) was made. `avoid`: replicas that should get nothing more.
    """

    fleet: DrillFleet
    site: str
    number: int
    fault_s: float = 0.0
    avoid: frozenset[str] = frozenset()
    said: list[tuple[float, str]] = field(default_factory=list)

    @property
    def replicas(self) -> tuple[str, ...]:
        """Those of the site."""
        return tuple(self.fleet.sites[self.site].place.replicas)

    @property
    def one(self) -> str:
        """One of them, another one in each run: what failed lately is not fresh."""
        return self.replicas[(self.number - 1) % len(self.replicas)]

    def fault(self, what: str, avoid: tuple[str, ...] = ()) -> None:
        """The fault begins now."""
        self.fault_s = time.monotonic()
        self.avoid = frozenset(avoid)
        self.say(what)

    def say(self, what: str) -> None:
        """Something happens now."""
        self.said.append((time.monotonic(), what))


Inject = Callable[[Scene], Coroutine[None, None, None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """A drill. `longest_s`: how long it is watched at most; `least_s`: at least, so that a relapse is seen.

    `others_only`: only clients of the other site's gateway are judged, because those of this one are gone with it.
    `askable`: it can be asked of a real site, because it harms nobody.
    """

    name: str
    what: str
    inject: Inject
    bars: Bars
    least_s: float = 2.5
    longest_s: float = 9.0
    others_only: bool = False
    askable: bool = False


async def _crash(scene: Scene) -> None:
    scene.fault(f"{scene.one} is killed", (scene.one,))
    await scene.fleet.set_faults([scene.one], {"exit": True})


async def _crash_all(scene: Scene) -> None:
    scene.fault(f"all replicas of {scene.site} are killed", scene.replicas)
    await scene.fleet.kill_replicas(scene.site)


async def _errors(scene: Scene) -> None:
    scene.fault(f"all replicas of {scene.site} answer 503", scene.replicas)
    await scene.fleet.set_faults(scene.replicas, {"error": {"status": 503}})


async def _some_errors(scene: Scene) -> None:
    scene.fault(f"all replicas of {scene.site} answer 30 % with 503", scene.replicas)
    await scene.fleet.set_faults(scene.replicas, {"error": {"status": 503, "percent": 30}})


async def _blackhole(scene: Scene) -> None:
    scene.fault(f"all replicas of {scene.site} answer nothing any more", scene.replicas)
    scene.fleet.freeze_replicas(scene.site)


async def _latency(scene: Scene) -> None:
    scene.fault(f"first tokens of {scene.site} come 500 ms later", scene.replicas)
    await scene.fleet.set_faults(scene.replicas, {"latency": {"ms": 500}})


async def _stall(scene: Scene) -> None:
    scene.fault(f"all replicas of {scene.site} accept requests and send no token", scene.replicas)
    await scene.fleet.set_faults(scene.replicas, {"stall": {"where": "before"}})


async def _partition(scene: Scene) -> None:
    scene.say(f"the gateway of {scene.site} loses every control plane")
    scene.fleet.cut(scene.site)
    await asyncio.sleep(1)
    await _crash_all(scene)


async def _picker_killed(scene: Scene) -> None:
    scene.fault(f"the picker of {scene.site} is killed")
    await scene.fleet.kill_control_plane(scene.site)


async def _picker_frozen(scene: Scene) -> None:
    scene.fault(f"the picker of {scene.site} freezes")
    scene.fleet.freeze_control_plane(scene.site)


async def _control_planes_killed(scene: Scene) -> None:
    scene.say("all control planes and pickers are killed")
    await asyncio.gather(*(scene.fleet.kill_control_plane(site) for site in scene.fleet.sites))
    await asyncio.sleep(1)
    await _crash_all(scene)


async def _control_planes_frozen(scene: Scene) -> None:
    scene.say("all control planes and pickers freeze")
    for site in scene.fleet.sites:
        scene.fleet.freeze_control_plane(site)
    await asyncio.sleep(1)
    await _crash_all(scene)


async def _site(scene: Scene) -> None:
    scene.fault(f"{scene.site} is gone: gateway, control plane, picker, replicas", scene.replicas)
    await scene.fleet.kill_site(scene.site)


async def _evacuate(scene: Scene) -> None:
    scene.fault(f"{scene.site} is to be evacuated", scene.replicas)
    await scene.fleet.evacuate(scene.site)


async def _flapping(scene: Scene) -> None:
    scene.fault(f"{scene.site} flaps: five times 1 s away, 1.5 s back")
    for turn in range(5):
        await scene.fleet.set_faults(scene.replicas, {"exit": True})
        scene.say("away")
        await asyncio.sleep(1)
        await scene.fleet.set_faults(scene.replicas, None)
        scene.say("back")
        if turn < 4:
            await asyncio.sleep(1.5)


async def _disk_full(scene: Scene) -> None:
    scene.say("no control plane can write to its state folder any more")
    for site in scene.fleet.sites:
        scene.fleet.fill_disk(site)
    await asyncio.sleep(1)
    await _crash_all(scene)


async def _mid_stream(scene: Scene) -> None:
    scene.fault(f"{scene.one} resets every connection once five tokens are out", (scene.one,))
    await scene.fleet.set_faults([scene.one], {"reset": {"after_tokens": 5}})


NOTHING_FAILS: Final = Bars(failed=0)

_KINDS: Final = (
    Kind(name="crash", what="one replica is killed", inject=_crash, bars=Bars(rto_s=1, failed=0)),
    Kind(
        name="crash-all-primaries",
        what="all replicas of the site are killed at once",
        inject=_crash_all,
        bars=Bars(rto_s=1, failed=0),
    ),
    Kind(name="errors", what="all replicas of the site answer 503", inject=_errors, bars=Bars(rto_s=1, failed=0)),
    Kind(
        name="errors-30",
        what="all replicas of the site answer 30 % of the requests with 503",
        inject=_some_errors,
        bars=Bars(rto_s=5),
    ),
    Kind(
        name="blackhole",
        what="all replicas of the site accept connections and answer nothing, not even probes",
        inject=_blackhole,
        bars=Bars(rto_s=2, failed_streamed=0),
    ),
    Kind(
        name="latency",
        what="500 ms are added to each first token at the site",
        inject=_latency,
        bars=Bars(rto_s=5),
    ),
    Kind(
        name="stall",
        what="the site takes requests and gives no token, while its probes are fine",
        inject=_stall,
        bars=Bars(rto_s=2),
    ),
    Kind(
        name="partition",
        what="the site's gateway loses every control plane, then all its replicas are killed",
        inject=_partition,
        bars=Bars(rto_s=1, failed=0),
    ),
    Kind(
        name="picker",
        what="the site's picker (one process with its control plane) is killed",
        inject=_picker_killed,
        bars=NOTHING_FAILS,
    ),
    Kind(
        name="picker-frozen",
        what="the site's picker (one process with its control plane) is frozen",
        inject=_picker_frozen,
        bars=NOTHING_FAILS,
    ),
    Kind(
        name="control-plane",
        what="all control planes and pickers are killed, then all replicas of the site",
        inject=_control_planes_killed,
        bars=Bars(rto_s=1, failed=0),
    ),
    Kind(
        name="control-plane-frozen",
        what="all control planes and pickers are frozen, then all replicas of the site are killed",
        inject=_control_planes_frozen,
        bars=Bars(rto_s=1, failed=0),
    ),
    Kind(
        name="site",
        what="the whole site is gone: gateway, control plane, picker and replicas are killed",
        inject=_site,
        bars=Bars(rto_s=3, failed=0),
        others_only=True,
    ),
    Kind(
        name="evacuate",
        what="the site is told to take no new requests",
        inject=_evacuate,
        bars=Bars(rto_s=1, failed=0, truncated=0),
        askable=True,
    ),
    Kind(
        name="flapping",
        what="all replicas of the site go and come back five times",
        inject=_flapping,
        bars=Bars(failed=0, switches=2),
        least_s=12.5,
        longest_s=20,
    ),
    Kind(
        name="disk-full",
        what="no state folder can be written to, then all replicas of the site are killed",
        inject=_disk_full,
        bars=Bars(rto_s=1, failed=0),
    ),
    Kind(
        name="mid-stream",
        what="one replica resets its connections in the middle of answers",
        inject=_mid_stream,
        bars=NOTHING_FAILS,
    ),
)

KINDS: Final = {kind.name: kind for kind in _KINDS}
"""Name → drill, in the order of the table."""
