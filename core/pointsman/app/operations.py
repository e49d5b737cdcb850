"""Changes at run time: checked, kept, audited, put in force, and awaited.

Every change goes the same way, whoever asks for it: under the lock of the state folder the overlay is read, the change
is decided on it, the audit line is written, then the overlay; only then gateways get it. So a process that is killed
at any moment comes back with what it told, and the log never lacks a change that was made.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, Protocol

import structlog

from pointsman.app.gateway_acks import GatewayAcks, acks_json, acks_of
from pointsman.core.arm_names import whole_pool
from pointsman.core.audit import AuditLog
from pointsman.core.change import Decided, Signature, WeightChange, decide
from pointsman.core.clock import Clock
from pointsman.core.model import Plan, Split
from pointsman.core.overlay import Overlay, RuleOverlay, SiteOverlay
from pointsman.core.store import OVERLAY_FILE, StateError, StateFolder, read_overlay, write_overlay

log = structlog.get_logger()

Json = dict[str, Any]
Sites = tuple[tuple[tuple[str, str], SiteOverlay], ...]
"""`Overlay.sites`."""

FOLLOW_INTERVAL_S: Final = 0.25
"""How often the overlay's file is looked at: another control plane on the same state folder may have changed it."""


ACKS_TIMEOUT_S: Final = 30.0
"""How long the audit log waits for gateways: a proxy that has not answered by then is told as pending."""


class AckSource(Protocol):
    """Who knows which proxies have what: the xDS server."""

    async def wait_acked(self, gateway: str, timeout_s: float) -> Any: ...

    def status(self) -> Json: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of a change. `before` and `after` are the rule's split (None: the rule is not there any more).

    `gateways` are those whose configuration has the rule. `at_s`: when it was put in force, seconds since the epoch.
    """

    rule: str
    version: int
    changed: bool
    before: Split | None
    after: Split | None
    gateways: tuple[str, ...]
    at_s: float


class Operations:
    """The only writer of the overlay in this process; all methods are called from one event loop.

    `compile_with` makes a Plan of the present manifests and an overlay, `publish` puts it in force, `current` is the
    one in force, `xds` the server that gateways are connected to; all but the first are called after `start` only.
    """

    def __init__(
        self,
        *,
        state: StateFolder,
        clock: Clock,
        compile_with: Callable[[Overlay], Plan],
        publish: Callable[[Plan], object],
        current: Callable[[], Plan],
        xds: Callable[[], AckSource],
    ) -> None:
        self._state = state
        self._audit = AuditLog(state.path)
        self._clock = clock
        self._compile = compile_with
        self._publish = publish
        self._current = current
        self._xds = xds
        self._awaited: set[asyncio.Task[None]] = set()
        self._overlay = Overlay()
        self._ceilings: dict[str, dict[tuple[str, str], int]] = {}
        self._stamp: tuple[int, int] | None = None
        self._turn = asyncio.Lock()

    @property
    def overlay(self) -> Overlay:
        """What is laid over the manifests now."""
        return self._overlay

    @property
    def audit_head(self) -> str:
        """Hash of the last audit line: who notes it notices lines that are cut off."""
        return self._audit.head

    def start(self, sites: Sites = (), drained: frozenset[str] = frozenset()) -> Overlay:
        """Read what was kept, and lay over it what failover kept; to be called before anything is served.

        Raises:
            StateError: it cannot be read, or the folder cannot be written.
        """
        self._audit.open(self._clock.wall_s())
        self._stamp = self._stamp_now()
        self._overlay = replace(read_overlay(self._state), sites=sites, drained=drained)
        if self._overlay.rules:
            log.info("weights of an earlier run are in force", rules=[rule for rule, _ in self._overlay])
        return self._overlay

    def plan(self) -> Plan:
        """The Plan in force: its splits and notes tell how weights came about."""
        return self._current()

    async def change(self, change: WeightChange, *, dry_run: bool = False) -> Outcome:
        """Make a change, or (`dry_run`) only tell what it would do.

        Raises:
            ChangeError: it is refused.
            StateError: it could not be kept, so it was not made.
        """
        async with self._turn:
            plan = self._current()
            if dry_run:
                decided = decide(self._overlay, plan, change)
            else:
                decided = await asyncio.to_thread(self._keep, plan, change)
            overlay = self._with_controllers(decided.overlay)
            after = self._compile(overlay)
            now_s = self._clock.wall_s()
            if not dry_run:
                self._put_in_force(overlay, after)
        outcome = Outcome(
            rule=change.rule,
            version=overlay.version(change.rule),
            changed=decided.changed,
            before=plan.split(change.rule),
            after=after.split(change.rule),
            gateways=gateways_of(after, change.rule),
            at_s=now_s,
        )
        if decided.changed and not dry_run:
            signature = change.signature
            told = {"before": _told(decided.before), "after": _told(decided.after)}
            log.info("weights changed", rule=change.rule, actor=signature.actor, reason=signature.reason, **told)
            task = asyncio.create_task(self._audit_acks(outcome), name=f"acks of {change.rule}")
            self._awaited.add(task)
            task.add_done_callback(self._awaited.discard)
        return outcome

    def set_unavailable(self, pools: frozenset[str]) -> None:
        """Take over which pools controllers found unable to serve; it is not kept over a restart."""
        if pools != self._overlay.unavailable:
            overlay = replace(self._overlay, unavailable=pools)
            self._put_in_force(overlay, self._compile(overlay))

    def set_ceilings(self, owner: str, ceilings: Mapping[tuple[str, str], int]) -> None:
        """Take over how much arms may inherit, in the words of `Overlay.ceilings`; `owner` has no others."""
        self._ceilings[owner] = dict(ceilings)
        every = tuple(sorted({key: share for each in self._ceilings.values() for key, share in each.items()}.items()))
        if every != self._overlay.ceilings:
            overlay = replace(self._overlay, ceilings=every)
            self._put_in_force(overlay, self._compile(overlay))

    def set_sites(self, sites: Sites, drained: frozenset[str]) -> bool:
        """Take over what failover decided of sites and endpoints, which it keeps itself; True if that is new."""
        if (sites, drained) == (self._overlay.sites, self._overlay.drained):
            return False
        overlay = replace(self._overlay, sites=sites, drained=drained)
        self._put_in_force(overlay, self._compile(overlay))
        return True

    def _with_controllers(self, kept: Overlay) -> Overlay:
        """What is kept in the overlay's file, with what controllers decided and keep elsewhere."""
        now = self._overlay
        return replace(kept, unavailable=now.unavailable, sites=now.sites, drained=now.drained, ceilings=now.ceilings)

    async def acks(self, outcome: Outcome, timeout_s: float) -> tuple[GatewayAcks, ...]:
        """Wait until every connected proxy has answered for a change, at most `timeout_s`; how they stand then."""
        deadline_s = self._clock.monotonic_s() + timeout_s
        xds = self._xds()
        found = []
        for gateway in outcome.gateways:
            left_s = max(0.0, deadline_s - self._clock.monotonic_s())
            await xds.wait_acked(gateway, left_s)
            found.append(acks_of(gateway, xds.status(), outcome.at_s, self._clock.wall_s()))
        return tuple(found)

    async def connected(self, rules: Collection[str]) -> dict[str, frozenset[str]]:
        """Node ids of the proxies that are connected now, by those gateways that have one of the rules."""
        plan = self._current()
        gateways = {gateway for rule in rules for gateway in gateways_of(plan, rule)}
        stands = {gateway: await self._xds().wait_acked(gateway, 0) for gateway in sorted(gateways)}
        return {name: stand.acked | stand.rejected | stand.pending for name, stand in stands.items()}

    async def lacking(self, pools: Collection[str], timeout_s: float) -> tuple[str, ...]:
        """Proxies that have not acknowledged the present configuration of a gateway that uses one of these pools."""
        deadline_s = self._clock.monotonic_s() + timeout_s
        missing: set[str] = set()
        for gateway in self._current().gateways:
            if any(whole_pool(pool.name) in pools for pool in gateway.pools):
                stand = await self._xds().wait_acked(gateway.name, max(0.0, deadline_s - self._clock.monotonic_s()))
                missing |= stand.pending | stand.rejected
        return tuple(sorted(missing))

    async def note(
        self, action: str, target: str, signature: Signature, *, before: Any = None, after: Any = None
    ) -> None:
        """Write a decision into the audit log.

        Raises:
            StateError: it was not written.
        """
        await asyncio.to_thread(
            self._audit.append,
            time_s=self._clock.wall_s(),
            actor=signature.actor,
            via=signature.via,
            action=action,
            target=target,
            reason=signature.reason,
            before=before,
            after=after,
            evidence=signature.evidence,
        )

    def note_soon(self, action: str, target: str, *, after: Any) -> None:
        """Write what happened by the manifests into the audit log, beside whatever else goes on."""

        async def write() -> None:
            try:
                await self.note(action, target, Signature(actor="manifests", via="file"), after=after)
            except StateError as error:
                log.error("a change of the configuration is not in the audit log", problem=str(error))

        task = asyncio.create_task(write(), name=f"audit of {action}")
        self._awaited.add(task)
        task.add_done_callback(self._awaited.discard)

    async def records(self, limit: int) -> list[Any]:
        """The last records of the audit log.

        Raises:
            StateError: it cannot be read.
        """
        return list(await asyncio.to_thread(self._audit.records, limit))

    async def stop(self) -> None:
        """Wait no longer for acknowledgements."""
        for task in self._awaited:
            task.cancel()
        await asyncio.gather(*self._awaited, return_exceptions=True)

    async def _audit_acks(self, outcome: Outcome) -> None:
        """Wait for the gateways, and write into the audit log when each of them had the change."""
        acks = await self.acks(outcome, ACKS_TIMEOUT_S)
        signature = Signature(
            actor="pointsman",
            via="controller",
            evidence={one.gateway: acks_json(one) for one in acks},
        )
        try:
            await self.note("weights.acked", outcome.rule, signature, after={"version": outcome.version})
        except StateError as error:
            log.error("acknowledgements are not in the audit log", rule=outcome.rule, problem=str(error))

    async def follow(self) -> None:
        """Take over, for ever, what another control plane on the same state folder changes."""
        while True:
            await asyncio.sleep(FOLLOW_INTERVAL_S)
            async with self._turn:
                stamp = self._stamp_now()
                if stamp == self._stamp:
                    continue
                self._stamp = stamp
                try:
                    kept = await asyncio.to_thread(read_overlay, self._state)
                except StateError as error:
                    log.error("the overlay cannot be read, the last good one stays in force", problem=str(error))
                    continue
                if kept.rules != self._overlay.rules or kept.revision != self._overlay.revision:
                    log.info("another process changed the weights", revision=kept.revision)
                    overlay = self._with_controllers(kept)
                    self._put_in_force(overlay, self._compile(overlay))

    def _keep(self, plan: Plan, change: WeightChange) -> Decided:
        """Decide, audit and keep: in a thread, since it waits for locks and disks."""
        with self._state.locked():
            decided = decide(read_overlay(self._state), plan, change)
            if not decided.changed:
                return decided
            before, after = _told(decided.before), _told(decided.after)
            self._record("weights.clear" if change.weights is None else "weights.set", change, before, after)
            try:
                write_overlay(self._state, decided.overlay)
            except StateError:
                self._record("weights.failed", change, before, before)  # the line above tells what did not happen
                raise
            self._stamp = self._stamp_now()
        return decided

    def _record(self, action: str, change: WeightChange, before: Json | None, after: Json | None) -> None:
        signature = change.signature
        self._audit.append(
            time_s=self._clock.wall_s(),
            actor=signature.actor,
            via=signature.via,
            action=action,
            target=change.rule,
            reason=signature.reason,
            before=before,
            after=after,
            evidence=signature.evidence,
        )

    def _put_in_force(self, overlay: Overlay, plan: Plan) -> None:
        self._overlay = overlay
        self._publish(plan)

    def _stamp_now(self) -> tuple[int, int] | None:
        try:
            stat = (self._state.path / OVERLAY_FILE).stat()
        except OSError:
            return None
        return stat.st_mtime_ns, stat.st_ino


def gateways_of(plan: Plan, rule_id: str) -> tuple[str, ...]:
    """The gateways that have a rule."""
    start = f"{rule_id}/"
    return tuple(
        gateway.name
        for gateway in plan.gateways
        if any(
            rule.name.startswith(start)
            for listener in gateway.listeners
            for host in listener.hosts
            for rule in host.rules
        )
    )


def _told(entry: RuleOverlay | None) -> Json | None:
    if entry is None:
        return None
    mirror = entry.mirror
    told: Json = {"weights": entry.shares(), "owner": entry.owner, "version": entry.version}
    return told | ({"mirror": {"pool": mirror.pool, "share": mirror.share}} if mirror else {})
