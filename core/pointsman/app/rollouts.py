"""Rollouts at work: the machine of `pointsman.rollout` fed with access logs, time and acknowledgements.

For every event the new state is saved first, then weights are changed: a process that is killed anywhere comes back
with the step it was in, and puts that step's weight in force again.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable
from typing import Final

import aiohttp
import structlog
from prometheus_client import CollectorRegistry

from pointsman.app.operations import Operations
from pointsman.app.outside_checks import ask
from pointsman.app.proxy_roster import Roster
from pointsman.app.rollout_files import RolloutFiles, SavedRollout
from pointsman.app.rollout_sight import Loads, ceilings, counts, sight
from pointsman.app.rollout_status import Json, RolloutMetrics, rollout_json
from pointsman.app.rollout_words import missing, owner_of, sample_of, signature, weight_change
from pointsman.core.change import ChangeError, WeightChange
from pointsman.core.clock import Clock
from pointsman.core.compile.assignments import UNASSIGNED
from pointsman.core.compile.residency import base_pool
from pointsman.core.config import Manifests
from pointsman.core.errors import PointsmanError
from pointsman.core.model import Plan
from pointsman.core.overlay import OPERATOR
from pointsman.core.store import StateError, StateFolder
from pointsman.extproc.feedback import Feedback
from pointsman.rollout import machine
from pointsman.rollout.analysis import CheckResult
from pointsman.rollout.evidence import Evidence
from pointsman.rollout.manifest import spec_of
from pointsman.rollout.spec import RolloutSpec, Source
from pointsman.rollout.state import (
    Command,
    Effect,
    Event,
    NewEvidence,
    Phase,
    Programmed,
    Report,
    RolloutError,
    SetWeight,
    SpecChanged,
    State,
)

log = structlog.get_logger()

ACK_ROUND_S: Final = 2.0
"""How long acknowledgements are awaited before the status says who is missing."""

LEFT_ALONE_S: Final = 30.0
"""A policy that is gone for less (a folder that is being rewritten) finds its rollout where it was."""

LEADER_RETRY_S: Final = 1.0


class _Run:
    """One rollout and what belongs to it."""

    def __init__(self, state: State, evidence: Evidence, roster: Roster | None = None) -> None:
        self.state = state
        self.evidence = evidence
        self.roster = roster or Roster()
        self.turn = asyncio.Lock()
        self.outside: dict[str, CheckResult] = {}
        self.asking: asyncio.Task[None] | None = None
        self.waiting: asyncio.Task[None] | None = None
        self.driver: asyncio.Task[None] | None = None
        self.problem = ""
        self.gone_s: float | None = None
        self.unset: int | None = None  # a weight that is saved and could not be put in force yet

    def saved(self) -> SavedRollout:
        return SavedRollout(state=self.state, evidence=self.evidence.record(), proxies=self.roster.names())

    def stop(self) -> list[asyncio.Task[None]]:
        tasks = [task for task in (self.asking, self.waiting, self.driver) if task is not None]
        for task in tasks:
            task.cancel()
        return tasks


class Rollouts:
    """All rollouts of a control plane; used from one event loop. `loads` tells what a pool carries now.

    Of several control planes on one state folder one leads; the others show what it saved, and take over when it ends.
    """

    def __init__(
        self,
        *,
        state: StateFolder,
        operations: Operations,
        clock: Clock,
        loads: Loads,
        registry: CollectorRegistry,
    ) -> None:
        self._files = RolloutFiles(state.path)
        self._operations = operations
        self._clock = clock
        self._loads = loads
        self._metrics = RolloutMetrics(registry)
        self._runs: dict[str, _Run] = {}
        self._specs: dict[str, RolloutSpec] = {}
        self._arms: dict[tuple[str, str], tuple[_Run, bool]] = {}
        self._sites: dict[str, str] = {}
        self._session: aiohttp.ClientSession | None = None
        self._changed = asyncio.Event()

    # What comes in.

    def configure(self, manifests: Manifests, plan: Plan) -> None:
        """Take over the policies of a configuration that is in force."""
        self._sites = {gateway.name: gateway.site for gateway in plan.gateways}
        specs = {policy.key: spec_of(policy, plan) for policy in manifests.rollout_policies}
        if specs != self._specs:
            self._specs = specs
            self._changed.set()

    def feedback(self, entry: Feedback) -> None:
        """Count an access log entry for the arm that it belongs to. Called for every request: it looks up and adds."""
        rule, _, match = entry.route.rpartition("/")
        found = self._arms.get((rule, base_pool(entry.cluster)))
        if found is None or UNASSIGNED in match:
            return
        run, canary = found
        if counts(run.state, self._sites.get(entry.gateway, "")):
            run.evidence.add(sample_of(entry, self._clock.monotonic_s()), canary=canary)

    async def command(self, name: str, command: Command) -> Json:
        """Do what a person wants.

        Raises:
            RolloutError: there is no such rollout, or the command makes no sense now.
            StateError: it could not be kept, so it was not done.
        """
        run = self._runs.get(name)
        if self._session is None:
            raise RolloutError("another control plane on this state folder leads the rollouts: ask that one")
        if run is None or run.gone_s is not None:
            known = ", ".join(sorted(self._runs)) or "there are none"
            raise RolloutError(f"no rollout {name} is led here: {known}")
        await self._happen(run, command)
        return self._json(run)

    def status(self) -> list[Json]:
        """All rollouts, sorted by name."""
        return [self._json(run) for _, run in sorted(self._runs.items())]

    def find(self, name: str) -> Json | None:
        """One rollout."""
        run = self._runs.get(name)
        return None if run is None else self._json(run)

    # The shell's loop.

    async def run(self) -> None:
        """Lead all rollouts until cancelled."""
        while not self._files.lead():
            self._show_saved()
            await asyncio.sleep(LEADER_RETRY_S)
        self._runs.clear()
        async with aiohttp.ClientSession() as session:
            self._session = session
            try:
                self._changed.set()
                while True:
                    await self._follow()
            finally:
                tasks = [task for run in self._runs.values() for task in run.stop()]
                await asyncio.gather(*tasks, return_exceptions=True)
                self._session = None
                self._files.resign()

    async def _follow(self) -> None:
        """Bring the rollouts in line with the policies; returns when there may be something to do again."""
        with contextlib.suppress(TimeoutError):
            # Not wait_for: in Python 3.11 it loses a cancellation that comes together with the event.
            async with asyncio.timeout(LEFT_ALONE_S / 4):
                await self._changed.wait()
        self._changed.clear()
        now_s = self._clock.monotonic_s()
        for name, run in self._runs.items():
            if run.driver is not None and run.driver.done() and not run.driver.cancelled():
                log.critical(
                    "a rollout's task ended and is started again", policy=name, error=repr(run.driver.exception())
                )
                run.driver = asyncio.create_task(self._drive(run), name=f"rollout {name}")
        for name, spec in self._specs.items():
            await self._adopt(name, spec)
        for name in {*self._runs, *self._files.names()} - self._specs.keys():
            await self._leave(name, now_s)
        self._arms = {
            (rule, pool): (run, pool == run.state.spec.canary)
            for run in self._runs.values()
            if run.gone_s is None
            for rule in run.state.spec.rules
            for pool in (run.state.spec.stable, run.state.spec.canary)
        }

    async def _adopt(self, name: str, spec: RolloutSpec) -> None:
        run = self._runs.get(name)
        now_s = self._clock.wall_s()
        if run is not None:
            run.gone_s = None
            await self._tried(run, SpecChanged(spec=spec))
            return
        try:
            saved = await asyncio.to_thread(self._files.read, name)
        except StateError as error:
            log.error("a rollout cannot go on, its weights stay as they are", policy=name, problem=str(error))
            return
        if saved is None:
            state, effects = machine.begin(spec, now_s)
            run = _Run(state, Evidence())
        else:
            roster = Roster(saved.proxies, self._clock.monotonic_s())
            run = _Run(saved.state, Evidence.restored(saved.evidence), roster)
            effects = machine.resume(run.state)
            log.info("a rollout goes on", policy=name, phase=run.state.phase.value, step=run.state.step + 1)
        self._runs[name] = run
        run.unset = next((effect.weight for effect in effects if isinstance(effect, SetWeight)), None)
        try:
            async with run.turn:
                await self._kept(run, run.state, effects)
        except (StateError, ChangeError) as error:  # the first tick tries again
            self._failed(run, error)
        await self._tried(run, SpecChanged(spec=spec))
        run.driver = asyncio.create_task(self._drive(run), name=f"rollout {name}")

    async def _leave(self, name: str, now_s: float) -> None:
        """A policy is gone: after a while its weights are the operator's, and stay what they are."""
        run = self._runs.get(name)
        if run is None:
            saved = self._files.peek(name)
            if saved is None:
                return
            run = self._runs[name] = _Run(saved.state, Evidence.restored(saved.evidence))
        if run.gone_s is None:
            run.gone_s = now_s
            tasks = run.stop()
            await asyncio.gather(*tasks, return_exceptions=True)
            log.warning("a RolloutPolicy is gone; its weights stay in force", policy=name)
        if now_s - run.gone_s < LEFT_ALONE_S:
            return
        try:
            await self._hand_over(run)
        except (ChangeError, StateError) as error:
            log.error("the weights of a rollout without a policy stay its own", policy=name, problem=str(error))
        await asyncio.to_thread(self._files.remove, name)
        self._operations.set_ceilings(name, {})
        del self._runs[name]

    async def _hand_over(self, run: _Run) -> None:
        owner = owner_of(run.state.spec)
        for rule, entry in self._operations.overlay:
            if entry.owner == owner:
                signed = signature(run.state, "the policy is gone, its weights stay")
                sites = {site: dict(weights) for site, weights in entry.sites}
                await self._operations.change(
                    WeightChange(
                        rule=rule, weights=entry.shares(), sites=sites, owner=OPERATOR, signature=signed, force=True
                    )
                )

    async def _drive(self, run: _Run) -> None:
        """Ticks of one rollout."""
        while True:
            await asyncio.sleep(run.state.spec.interval_s)
            if run.asking is None or run.asking.done():
                run.asking = asyncio.create_task(self._ask(run))
            await self._tried(run, None)

    async def _tried(self, run: _Run, event: Event | None) -> None:
        """An event that nobody waits for; what went wrong is shown and tried again with the next one."""
        try:
            await self._happen(run, event)
            run.problem = ""
        except (StateError, ChangeError, RolloutError) as error:
            self._failed(run, error)

    def _failed(self, run: _Run, error: PointsmanError) -> None:
        if run.problem != str(error):
            log.error("a rollout cannot go on", policy=run.state.spec.name, problem=str(error))
        run.problem = str(error)

    async def _happen(self, run: _Run, event: Event | None) -> None:
        """Let something happen to a rollout; None is a tick."""
        async with run.turn:
            if run.unset is not None and event is None:
                await self._kept(run, run.state, [SetWeight(weight=run.unset)])
            if event is None:
                await self._away(run)
                before = dict(self._operations.overlay.ceilings)
                most = ceilings(run.state, self._operations.plan(), self._loads, before)
                self._operations.set_ceilings(run.state.spec.name, most)
            happened = event if event is not None else sight(run.state, run.evidence, run.outside, self._loads)
            state, effects = machine.step(run.state, happened, self._clock.wall_s())
            if event is not None and state == run.state and not effects:
                return
            await self._kept(run, state, effects)

    async def _kept(self, run: _Run, state: State, effects: Iterable[Effect]) -> None:
        """Save the state, then act on the effects."""
        effects = list(effects)
        if any(isinstance(effect, NewEvidence) for effect in effects):
            run.evidence.restart(0.0, new_step=True)
        before, run.state = run.state, state
        try:
            await asyncio.to_thread(self._files.write, state.spec.name, run.saved())
        except StateError:
            run.state = before  # nothing happened: the next event decides again
            raise
        self._metrics.show(state)
        try:  # gateways first: a roll-back does not wait for the log
            for effect in effects:
                if isinstance(effect, SetWeight):
                    await self._set_weight(run, effect.weight)
        finally:
            for effect in effects:
                if isinstance(effect, Report):
                    await self._report(run, effect)

    # What goes out.

    async def _set_weight(self, run: _Run, weight: int) -> None:
        spec = run.state.spec
        run.unset = weight
        outcomes = []
        for rule in spec.rules:
            split = self._operations.plan().split(rule)
            if split is None:
                continue  # the rule is gone; the configuration that says so is on its way
            outcomes.append(await self._operations.change(weight_change(split, run.state)))
        run.unset = None
        if run.waiting is not None:
            run.waiting.cancel()

        aborting = run.state.phase is Phase.ABORTING
        round_s = min(ACK_ROUND_S, spec.abort_within_s) if aborting else ACK_ROUND_S

        async def programmed() -> None:
            while True:
                lacking: list[str] = []
                for outcome in outcomes:
                    acks = await self._operations.acks(outcome, round_s)
                    lacking += [missing(one) for one in acks if not one.done]
                lacking += await self._away(run)
                await self._tried(run, Programmed(weight=weight, missing=tuple(sorted(set(lacking)))))
                if not lacking:
                    return
                await asyncio.sleep(run.state.spec.interval_s)

        run.waiting = asyncio.create_task(programmed())

    async def _away(self, run: _Run) -> tuple[str, ...]:
        """Note which proxies are connected; who lately was and is not."""
        now_s = self._clock.monotonic_s()
        run.roster.note(await self._operations.connected(run.state.spec.rules), now_s)
        return run.roster.away(now_s)

    async def _report(self, run: _Run, report: Report) -> None:
        spec = run.state.spec
        log.info("rollout", policy=spec.name, what=report.what, why=report.why)
        self._metrics.count(spec.name, report.what)
        signed = signature(run.state, report.why, report.by)
        try:
            await self._operations.note(f"rollout: {report.what}", owner_of(spec), signed)
        except StateError as error:  # the decision stands; a full disk must not stop a roll-back
            log.error("the audit log lacks a decision of a rollout", policy=spec.name, problem=str(error))

    async def _ask(self, run: _Run) -> None:
        """Ask the outside checks, all at once."""
        checks = [check for check in run.state.spec.checks if check.source is not Source.REQUESTS]
        assert self._session is not None
        state = run.state
        if not checks or not state.active:
            return
        answers = await asyncio.gather(*(ask(self._session, check, state) for check in checks))
        run.outside = {answer.name: answer for answer in answers}

    def _show_saved(self) -> None:
        """While another control plane leads."""
        for name in self._files.names():
            saved = self._files.peek(name)
            if saved is not None:
                self._runs[name] = _Run(saved.state, Evidence.restored(saved.evidence))

    def _json(self, run: _Run) -> Json:
        return rollout_json(run.state, run.evidence, self._operations.plan(), problem=run.problem)
