"""A failover policy at work, and what follows from the states of several."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterable, Mapping
from dataclasses import replace

from pointsman.app.failover_samples import Seconds
from pointsman.app.operations import Sites
from pointsman.core.config.syntax import canonical_ip
from pointsman.core.overlay import SiteOverlay
from pointsman.failover.detect import Detector
from pointsman.failover.detect_triggers import Triggers
from pointsman.failover.directives import directives, drained_endpoints
from pointsman.failover.model import NOTHING_SPECIAL, Member
from pointsman.failover.state import Action, Command, FailoverError, Report, State, member_of


class Run:
    """A policy at work."""

    def __init__(self, state: State, triggers: Triggers) -> None:
        self.state = state
        self.detector = Detector(triggers)
        self.seconds = Seconds()
        self.saved: State | None = None
        self.saved_at_s = 0.0
        self.saving = threading.Lock()  # an older state must not be written over a newer one
        self.problem = ""
        self.judged: frozenset[Member] = frozenset()  # their usual time to first byte is known
        self.waiting: asyncio.Task[None] | None = None

    def change(self, state: State, now_s: float, command: Command) -> None:
        """Take over what a command made of the state; what it forced back is judged by what comes from now on."""
        before, self.state = self.state, state
        if command.force and command.action in {Action.FAILBACK, Action.ACTIVATE}:
            for key, found in state.members.items():
                if found != before.members.get(key):
                    self.detector.pardon(member_of(key), now_s)


def target(policy: str, report: Report) -> str:
    """What a decision is about, for the audit log."""
    return f"{policy} {report.pool}@{report.site}" if report.site else policy


def decided(states: Iterable[State]) -> tuple[Sites, frozenset[str]]:
    """What the policies decided of sites and endpoints, as the overlay has it."""
    sites: dict[tuple[str, str], SiteOverlay] = {}
    drained: set[str] = set()
    for state in states:
        drained |= drained_endpoints(state)
        for member, directive in directives(state).items():
            if directive != NOTHING_SPECIAL:
                sites[member.pool, member.site] = SiteOverlay(
                    share=directive.share,
                    spill=directive.spill,
                    max_concurrent=directive.max_concurrent,
                    last=directive.last,
                    draining=directive.draining,
                    owner=state.spec.name,
                    reason=directive.reason,
                )
    return tuple(sorted(sites.items(), key=lambda item: item[0])), frozenset(drained)


def spelled(endpoint: str) -> str:
    """An `ip:port` as Plans spell it: an IPv6 address may be written in many ways. Other words as they are."""
    host, _, port = endpoint.rpartition(":")
    address = canonical_ip(host.removeprefix("[").removesuffix("]"))
    if address is None:
        return endpoint
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def located(command: Command, members: Mapping[tuple[str, str], Member], states: Iterable[State]) -> Command:
    """The command with the site and the pool of the endpoint that it names. `members`: (pool, endpoint) → member.

    Raises:
        FailoverError: it names one that neither the Plan nor an earlier command knows.
    """
    if not command.endpoint:
        return command
    command = replace(command, endpoint=spelled(command.endpoint))
    found = [member for (_, key), member in members.items() if key == command.endpoint]
    if not found:
        if not any(command.endpoint in state.endpoints for state in states):
            raise FailoverError(f"no pool has the endpoint {command.endpoint}: expected ip:port as status shows it")
        return command
    return replace(command, site=found[0].site, pool=found[0].pool if len(found) == 1 else command.pool)


def concerns(state: State, command: Command) -> bool:
    """Whether a command is about a policy: it names a site or pool of it, or nothing at all."""
    pools = [pool for pool in state.spec.pools if command.pool in {"", pool}]
    if command.endpoint in state.endpoints:
        return True
    here = {member.site for member in directives(state) if member.pool in pools}  # also where no endpoint is left
    return bool(pools) and (not command.site or command.site in here)


def nothing(command: Command, runs: Iterable[Run]) -> str:
    """Why a command is about no policy."""
    what = command.endpoint or command.site or command.pool
    sites = sorted({site for run in runs for found in run.state.spec.sites.values() for site in found})
    return f"no failover policy knows {what}: the sites are {', '.join(sites) or 'none'}"
