"""Failover at work: the machine of `pointsman.failover` fed with access logs, scrapes, commands and acknowledgements.

Ten times a second the detectors are asked what they see. What the machine decides goes to the gateways at once and is
saved then: a fail-over must not wait for a disk, nor fail because it is full. A restart goes on from what was saved.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final

import msgspec
import structlog
from prometheus_client import CollectorRegistry

from pointsman.app.failover_files import FailoverFiles
from pointsman.app.failover_runs import Run, concerns, decided, located, nothing, target
from pointsman.app.failover_samples import samples
from pointsman.app.failover_status import FailoverMetrics, Json, failover_json
from pointsman.app.failover_views import waiting_of
from pointsman.app.leadership import Leadership
from pointsman.app.operations import Operations, Sites
from pointsman.core.arm_names import whole_pool
from pointsman.core.attention import TICK_S, Attention
from pointsman.core.change import Signature
from pointsman.core.clock import Clock
from pointsman.core.config import Manifests
from pointsman.core.model import Plan
from pointsman.core.store import StateError, StateFolder
from pointsman.core.tasks import together
from pointsman.extproc import Feedback
from pointsman.extproc.inflight import Silent
from pointsman.failover import machine
from pointsman.failover.detect import Detector
from pointsman.failover.detect_triggers import Triggers
from pointsman.failover.handover import frozen_by_all, going_on, left_by, take_over
from pointsman.failover.manifest import closed_sites, leadable, policies_of
from pointsman.failover.model import EndpointView, Member
from pointsman.failover.spec import FailoverSpec
from pointsman.failover.state import (
    Action,
    Command,
    Directed,
    Effect,
    EndpointsChanged,
    Event,
    FailoverError,
    Observed,
    Programmed,
    RecordClosed,
    Report,
    Served,
    SpecChanged,
    State,
)

log = structlog.get_logger()

FOLLOW_S: Final = 0.25
"""How often a control plane that does not lead looks for what the leader decided."""

SAVE_S: Final = 10.0
"""How often a state in which nothing was decided is saved: what holds and ramps may lose of their time in a crash."""

SAVE_ROUND_S: Final = 1.0
"""How often it is looked whether a state has waited that long."""

ACK_ROUND_S: Final = 2.0
"""How long acknowledgements are awaited before the status says who is missing."""

TAKE_OUT: Final = frozenset({Action.DRAIN, Action.EVACUATE, Action.FAILOVER})
"""What must not be done by half."""

SYSTEM: Final = Signature(actor="pointsman", via="controller")


class Failover:
    """All policies of a control plane; used from one event loop.

    `silent` lists requests without a first byte, `views` what is known of endpoints (`ip:port`) by scrapes, given how
    much of the time we looked.
    """

    def __init__(
        self,
        *,
        state: StateFolder,
        operations: Operations,
        clock: Clock,
        silent: Callable[[], Iterable[Silent]],
        views: Callable[[Attention], Mapping[str, EndpointView]],
        registry: CollectorRegistry,
    ) -> None:
        self._files = FailoverFiles(state.path)
        self._leadership = Leadership(self._files.path, "failover")
        self._operations = operations
        self._clock = clock
        self._silent = silent
        self._views = views
        self.attention = Attention()
        self._metrics = FailoverMetrics(registry)
        self._runs: dict[str, Run] = {}
        self._policies: dict[str, tuple[FailoverSpec, Triggers]] = {}
        self._pools: dict[str, tuple[str, ...]] = {}
        self._closed: dict[str, str] = {}  # by their manifests: site → state
        self._members: dict[tuple[str, str], Member] = {}
        self._owner: dict[str, Run] = {}
        self._decided: asyncio.Queue[list[tuple[Run, Effect]]] = asyncio.Queue()
        self._over = False  # files of policies that are gone are there still
        self._leads = asyncio.Event()
        self._changed = asyncio.Event()

    # What comes in.

    def restore(self) -> tuple[Sites, frozenset[str]]:
        """What an earlier run decided of sites and endpoints; to be put in force before anything is served.

        Raises:
            StateError: it cannot be read. Then nothing starts: what has failed must not come back by an accident.
        """
        sites, drained = decided(self._files.read_all())
        if sites or drained:
            log.info("failover decisions of an earlier run are in force", sites=[site for (_, site), _ in sites])
        return sites, drained

    def configure(self, manifests: Manifests, plan: Plan) -> None:
        """Take over the policies of a configuration that is in force, and where its pools have endpoints."""
        self._policies = {spec.name: (spec, triggers) for spec, triggers in policies_of(manifests, plan)}
        self._pools = leadable(manifests, plan)
        self._closed = closed_sites(manifests)
        self._members = {
            (pool.name, endpoint.key): Member(pool=pool.name, site=group.site)
            for pool in plan.pools
            for group in pool.groups
            for endpoint in group.endpoints
        }
        self._changed.set()

    def feedback(self, entry: Feedback) -> None:
        """Take in an access log entry. Called for every request: it looks up and adds."""
        run = self._owner.get(whole_pool(entry.cluster))
        if run is None:
            return
        for member, sample in samples(entry, self._members, self._clock.monotonic_s()):
            run.detector.add(member, sample)
        run.seconds.add(entry)

    async def leading(self) -> None:
        """Wait until this process decides; before it follows another one on its state folder."""
        await self._leads.wait()

    async def command(
        self, command: Command, *, policy: str = "", dry_run: bool = False, wait_s: float = 0.0
    ) -> list[Json]:
        """Do what a person or an operation wants, for all policies that it is about (or `policy`); they are returned.

        What takes something out of service is done for all of them or none. `wait_s`: longest wait for gateways.

        Raises:
            FailoverError: it makes no sense now, or would leave too little; nothing was changed.
        """
        if not self._leads.is_set():
            raise FailoverError("another control plane on this state folder leads failover: ask that one")
        command = located(command, self._members, (run.state for run in self._runs.values()))
        about = [r for r in self._runs.values() if policy in {"", r.state.spec.name} and concerns(r.state, command)]
        if not about:
            raise FailoverError(nothing(command, self._runs.values()))
        now_s = self._clock.wall_s()
        steps: list[tuple[Run, State, tuple[Effect, ...]]] = []
        refused: list[FailoverError] = []
        for run in about:
            try:
                steps.append((run, *machine.step(run.state, command, now_s)))
            except FailoverError as error:
                refused.append(error)
        if refused and (not steps or command.action in TAKE_OUT):
            raise refused[0]
        if dry_run:
            return [failover_json(state, closed=self._closed) for _, state, _ in steps]
        for run, state, _ in steps:
            run.change(state, self._clock.monotonic_s(), command)
        effects = [(run, effect) for run, _, found in steps for effect in found]
        self._to_gateways(effects)
        await self._write_down(effects)
        waiting = [run.waiting for run, _, _ in steps if run.waiting is not None]
        if wait_s and waiting:
            await asyncio.wait(waiting, timeout=wait_s)
        return [self._told(run) for run, _, _ in steps]

    def status(self) -> list[Json]:
        """All policies, sorted by name."""
        return [self._told(run) for _, run in sorted(self._runs.items())]

    def _told(self, run: Run) -> Json:
        return failover_json(run.state, problem=run.problem, judged=run.judged, closed=self._closed)

    # The shell's loop.

    async def run(self) -> None:
        """Lead, or follow who leads, until cancelled."""
        await self._follow_leader()
        self._runs.clear()
        try:
            await together(self._watch(), self._keep())
        finally:
            self._leads.clear()
            tasks = [run.waiting for run in self._runs.values() if run.waiting is not None]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            while not self._decided.empty():
                await self._write_down(self._decided.get_nowait())
            for run in self._runs.values():
                self._save(run)
            self._leadership.resign()
            self.attention.pause()

    async def _watch(self) -> None:
        while True:
            if self._changed.is_set():
                self._changed.clear()
                await self._adopt()
            self._leads.set()  # with every policy at work: a command for a site is for all of them
            self._tick()
            await asyncio.sleep(TICK_S)

    async def _keep(self) -> None:
        """Save what the detectors decide, and tell of it: beside them, for a disk may hang."""
        while True:
            effects: list[tuple[Run, Effect]] = []
            with contextlib.suppress(TimeoutError):
                # Not wait_for: in Python 3.11 it loses a cancellation that comes together with what is waited for.
                async with asyncio.timeout(SAVE_ROUND_S):
                    effects = await self._decided.get()
            await self._write_down([(run, one) for run, one in effects if run in self._runs.values()])
            now_s, runs = self._clock.monotonic_s(), list(self._runs.values())
            for run in runs:
                if run.saved is not run.state and (self._over or now_s - run.saved_at_s >= SAVE_S):
                    await asyncio.to_thread(self._save, run)
            if self._over and not any(run.problem for run in runs):  # what was handed over is in its new place
                self._over = False
                await asyncio.to_thread(self._files.forget, [run.state.spec.name for run in runs])

    async def _follow_leader(self) -> None:
        """Do what another control plane on this state folder decides, until it ends."""
        stamp = None
        while not self._leadership.lead():
            if (now := self._files.stamp()) != stamp:
                stamp = now
                try:
                    states = await asyncio.to_thread(self._files.read_all)
                except StateError as error:
                    log.error("what another process decided cannot be read", problem=str(error))
                else:
                    self._runs = {state.spec.name: Run(state, Triggers()) for state in states}
                    self._direct(states)
            await asyncio.sleep(FOLLOW_S)

    async def _adopt(self) -> None:
        """Bring the runs in line with the policies; what one decided of a pool goes to the one that leads it now."""
        # As it is kept now: another process may have led since this one began.
        kept = [] if self._runs else await asyncio.to_thread(self._files.read_all)
        before = {state.spec.name: state for state in (*kept, *(run.state for run in self._runs.values()))}
        kept_on = going_on(before.values(), {name: spec for name, (spec, _) in self._policies.items()}, self._pools)
        policies = {**self._policies, **{name: (spec, Triggers()) for name, spec in kept_on.items()}}
        left = left_by(before.values(), {name: spec for name, (spec, _) in policies.items()})
        frozen = frozen_by_all(before.values())
        now_s = self._clock.wall_s()
        effects: list[tuple[Run, Effect]] = []
        for name in self._runs.keys() - policies.keys():
            log.info("a failover policy is gone", policy=name)
            run = self._runs.pop(name)
            if run.waiting is not None:
                run.waiting.cancel()
            self._metrics.forget(run.state)
        for name, (spec, triggers) in policies.items():
            found = self._runs.get(name)
            if found is None:
                new = msgspec.structs.replace(machine.begin(spec, now_s), frozen_by=frozen)
                found = self._runs[name] = Run(before.get(name) or new, triggers)
            elif found.detector.triggers != triggers:
                found.detector = Detector(triggers)
            found.state = take_over(found.state, spec.pools, left)
            endpoints = frozenset(key for pool, key in self._members if pool in spec.pools)
            for event in (SpecChanged(spec=spec), EndpointsChanged(endpoints=endpoints)):
                effects += self._step(found, event, now_s)
        self._owner = {pool: run for run in self._runs.values() for pool in run.state.spec.pools}
        self._direct(run.state for run in self._runs.values())
        self._over = True
        self._put_out(effects)
        for run in self._runs.values():  # new, or its process ended before the gateways had what it decided
            if run.waiting is None and run.state.programmed < run.state.change:
                self._await_gateways(run, run.state.change)

    def _tick(self) -> None:
        now_s, wall_s = self._clock.monotonic_s(), self._clock.wall_s()
        self._metrics.missed.inc(self.attention.look(now_s))
        views = self._views(self.attention)
        waiting = waiting_of(self._silent(), self._members, now_s)
        effects: list[tuple[Run, Effect]] = []
        seen: dict[Member, list[EndpointView]] = {}
        for (pool, key), member in self._members.items():
            if pool in self._owner and member.site not in self._closed:
                seen.setdefault(member, []).append(views.get(key) or EndpointView(endpoint=key))
        for run in self._runs.values():
            mine = {member: seen.get(member, []) for member in run.state.spec.members()}
            observations = run.detector.observe(now_s, waiting, mine, self.attention)
            run.judged = frozenset(one.member for one in observations if one.baseline)
            effects += self._step(run, Observed(observations=observations, at_s=now_s), wall_s)
            second = run.seconds.take(wall_s)
            if second is not None:
                effects += self._step(run, Served(second=second), wall_s)
            self._metrics.show(run.state, observations, functools.partial(run.detector.measured, observations, now_s))
        self._put_out(effects)

    def _step(self, run: Run, event: Event, now_s: float) -> list[tuple[Run, Effect]]:
        run.state, effects = machine.step(run.state, event, now_s)
        self._metrics.opened(run.state)
        return [(run, effect) for effect in effects]

    # What goes out.

    def _put_out(self, effects: list[tuple[Run, Effect]]) -> None:
        """To the gateways at once, and to `_keep`."""
        if effects:
            self._to_gateways(effects)
            self._decided.put_nowait(effects)

    def _to_gateways(self, effects: Sequence[tuple[Run, Effect]]) -> None:
        directed = {id(run): (run, effect.change) for run, effect in effects if isinstance(effect, Directed)}
        if directed:
            self._direct(run.state for run in self._runs.values())
        for run, change in directed.values():
            self._await_gateways(run, change)

    async def _write_down(self, effects: Sequence[tuple[Run, Effect]]) -> None:
        """The disk first, then those who want to know."""
        for run in {id(run): run for run, _ in effects}.values():
            await asyncio.to_thread(self._save, run)
        for run, effect in effects:
            if isinstance(effect, Report):
                await self._report(run, effect)
            elif isinstance(effect, RecordClosed):
                self._metrics.closed(run.state, effect.record)

    def _direct(self, states: Iterable[State]) -> None:
        """Put what the policies decided in force."""
        self._operations.set_sites(*decided(states))

    def _await_gateways(self, run: Run, change: int) -> None:
        if run.waiting is not None and run.waiting is not asyncio.current_task():
            run.waiting.cancel()

        async def programmed() -> None:
            while True:
                missing = await self._operations.lacking(run.state.spec.pools, ACK_ROUND_S)
                self._put_out(self._step(run, Programmed(change=change, missing=missing), self._clock.wall_s()))
                later = run.waiting is not asyncio.current_task()  # another change is awaited instead of this one
                if later or not missing:
                    return
                await asyncio.sleep(TICK_S)

        def ended(task: asyncio.Task[None]) -> None:
            if not task.cancelled() and (error := task.exception()) is not None:
                log.critical("acknowledgements are not followed any more", task=task.get_name(), exc_info=error)

        run.waiting = asyncio.create_task(programmed(), name=f"acks of {run.state.spec.name}")
        run.waiting.add_done_callback(ended)

    def _save(self, run: Run) -> None:
        with run.saving:
            run.saved_at_s = self._clock.monotonic_s()
            state = run.state
            try:
                self._files.write(state)
            except StateError as error:
                if run.problem != str(error):
                    log.error("failover is in force and not saved: a restart would not know of it", problem=str(error))
                run.problem = str(error)
            else:
                run.saved, run.problem = state, ""

    async def _report(self, run: Run, report: Report) -> None:
        name = run.state.spec.name
        tell = log.warning if report.level == "warning" else log.info
        tell("failover", policy=name, what=report.what, why=report.why, pool=report.pool, site=report.site)
        self._metrics.count(run.state, report)
        given = report.signature or SYSTEM
        signed = Signature(
            actor=given.actor, via=given.via, reason=given.reason or report.why, evidence=report.evidence or None
        )
        try:
            await self._operations.note(f"failover: {report.what}", target(name, report), signed)
        except StateError as error:  # the decision stands; a full disk must not stop a fail-over
            log.error("the audit log lacks a decision of failover", policy=name, problem=str(error))
