"""Detection: samples of requests, waiting requests and scrapes of a policy's members become observations.

Pure: the caller has the clock and calls `observe` about ten times a second. What is judged by what:

- error rate: attempts that failed, at the endpoint where they did, over several windows up to the policy's (up to two
  minutes where requests are few), against chance. Not by refusals for load or clients that left, nor by a handful of
  requests unless they nearly all fail.
- latency: first bytes of streamed answers against what the picker expected and what is usual at this member; requests
  that still wait count as soon as they are late. Not by plain completions, whose first byte is their end, nor before
  there is a baseline, nor where the engines have queues: such a site is full, not slow.
- stall: late requests while no first byte comes at all.
- saturation: queues and KV caches of most endpoints, and refusals for load; stale scrapes say nothing.
- probe: scrapes that find nobody where no request is answered either. When scrapes fail everywhere at once, it is us.
- metrics absent: as probe, for long, and only where the policy says so; absence alone says nothing.

What has not come (a scrape, a first byte) counts by the time in which we looked for it (`attention`): a control plane
that gets no CPU calls nobody dead for it.

A site is bad when most of its endpoints are, or, for latency, when several are and none that is asked is well: a shared
prefix may keep the requests at a few. What is bad by itself is listed in `failing_endpoints`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from pointsman.core.attention import ATTENTIVE, Attention
from pointsman.failover.baseline import Baseline
from pointsman.failover.detect_rules import failing_endpoints, judge_errors, judge_latency, judge_stall
from pointsman.failover.detect_state import MemberState, Rings
from pointsman.failover.detect_triggers import Combine, Triggers
from pointsman.failover.detect_views import (
    DEFAULT_LIMITS,
    follow_rtt,
    is_down,
    judge_absence,
    judge_load,
    judge_probes,
    probes_say,
)
from pointsman.failover.measured import Measured, measured
from pointsman.failover.model import EndpointView, Finding, Member, Observation, Sample, Trigger, Waiting

CLEAR_REQUESTS: Final = 5
"""Requests of the last seconds from which they, and not the probes, tell that a site is well."""

JUDGED_S: Final = 5.0

BUSY_PART: Final = 0.25
"""Part of the saturation trigger's queue from which an engine is busy: late first bytes are its queue's doing then."""

SUSPICIOUS_SLOW: Final = 0.2
"""Share of slow requests from which nothing is learnt: on a usual day it is a few in a hundred."""

_COMBINED: Final = (Trigger.ERROR_RATE, Trigger.LATENCY, Trigger.STALL, Trigger.PROBE)


class Detector:
    """Watches the members of one policy. Times are of one monotonic clock, in seconds."""

    def __init__(self, triggers: Triggers | None = None) -> None:
        self.triggers = triggers or Triggers()
        self._members: dict[Member, MemberState] = {}

    def add(self, member: Member, sample: Sample) -> None:
        """Take in a sample; O(1). Samples come in the order of their `at_s`, give or take a second.

        Samples of an endpoint that the next `observe` does not know are dropped with it.
        """
        self._state(member).add(sample)

    def observe(
        self,
        now_s: float,
        waiting: Mapping[Member, Sequence[Waiting]],
        views: Mapping[Member, Sequence[EndpointView]],
        attention: Attention = ATTENTIVE,
    ) -> tuple[Observation, ...]:
        """What holds now, for each member in `views`, in that order. Members that are missing there are forgotten.

        `attention` has looked at `now_s` and knows how much of the time before it was missed: what has not come then is
        no evidence. `views` has every endpoint of a member, also one of which nothing is known. An observation is
        `clear` when the requests of the last five seconds are well; with fewer than five of them, when most endpoints
        answer their scrapes no later than usual: a site that was left has no traffic to judge by, and an engine that
        fails requests may well answer scrapes. So it is True before the first request of a failback, and the requests
        of the ramp tell the rest. None: there is neither.
        """
        for member in [member for member in self._members if member not in views]:
            self.forget(member)
        asked = [view for endpoints in views.values() for view in endpoints]
        several = sum(bool(endpoints) for endpoints in views.values()) > 1
        blind = several and all(view.scrape_failing for view in asked)
        return tuple(
            self._judge(member, self._at(member, attention), now_s, waiting.get(member, ()), endpoints, blind=blind)
            for member, endpoints in views.items()
        )

    def measured(self, observations: Iterable[Observation], now_s: float) -> list[tuple[Member, Measured]]:
        """What the triggers measure where `observe` has just made these observations. It takes longer than that."""
        return [(seen.member, one) for seen in observations for one in measured(self._state(seen.member), seen, now_s)]

    def pardon(self, member: Member, now_s: float) -> None:
        """A person brought it back: what was seen of its requests until now is void. The baseline stays."""
        if member in self._members:
            self._members[member].pardon(now_s)

    def forget(self, member: Member) -> None:
        """Drop what is known of a member, its baseline included: it is another one from now on."""
        self._members.pop(member, None)

    def _at(self, member: Member, attention: Attention) -> MemberState:
        state = self._state(member)
        state.attention = attention
        return state

    def _state(self, member: Member) -> MemberState:
        found = self._members.get(member)
        if found is None:
            latency = self.triggers.latency
            baseline = Baseline(normalised=latency is None or latency.normalised)
            found = MemberState(self.triggers, Rings(self.triggers), baseline)
            self._members[member] = found
        return found

    def _judge(
        self,
        member: Member,
        state: MemberState,
        now_s: float,
        waiting: Sequence[Waiting],
        views: Sequence[EndpointView],
        *,
        blind: bool,
    ) -> Observation:
        limits = self.triggers.saturation or DEFAULT_LIMITS
        state.advance(now_s, waiting, views, BUSY_PART * limits.queue)
        by_requests = [judge_errors(state, now_s), judge_stall(state, now_s), judge_latency(state, now_s)]
        probes = judge_probes(state, views, now_s, blind=blind)
        absence = judge_absence(state, views, now_s, blind=blind)
        load, saturation = judge_load(state, views, now_s)
        faults = [finding for finding in (*by_requests, probes, absence) if finding is not None]
        requests, failed = state.rings.errors.count(round(JUDGED_S / state.rings.errors.bucket_s))
        suspicious = bool(faults) or _is_suspicious(state, now_s)
        state.baseline.settle(now_s, suspicious=suspicious)
        follow_rtt(state, views, suspicious=suspicious)
        failing = failing_endpoints(state, now_s)
        up = [v for v in views if v.endpoint not in failing and not is_down(state, v, now_s, blind=blind)]
        held = self._combined(faults)
        return Observation(
            member=member,
            findings=(*held, saturation) if saturation is not None else held,
            clear=False if faults else self._is_clear(state, views, requests, failed, now_s),
            load=load,
            ready=len(up),
            endpoints=len(views),
            requests=requests,
            failing_endpoints=() if faults else failing,
            baseline=state.baseline.known,
        )

    def _combined(self, faults: list[Finding]) -> tuple[Finding, ...]:
        if self.triggers.combine is Combine.ANY:
            return tuple(faults)
        triggers = self.triggers
        switches = (triggers.error_rate, triggers.latency, triggers.stall, triggers.probe)
        wanted = {trigger for trigger, switch in zip(_COMBINED, switches, strict=True) if switch is not None}
        return tuple(faults) if wanted <= {finding.trigger for finding in faults} else ()

    def _is_clear(
        self, state: MemberState, views: Sequence[EndpointView], requests: int, failed: int, now_s: float
    ) -> bool | None:
        tolerated = self.triggers.error_rate.threshold / 2 if self.triggers.error_rate else 1.0
        if failed > max(1.0, tolerated * requests) or _is_suspicious(state, now_s):
            return False
        if requests >= CLEAR_REQUESTS:
            return True
        return probes_say(state, views)


def _is_suspicious(state: MemberState, now_s: float) -> bool:
    """Many of the last requests were slow, or wait for longer than they should.

    While we do not hear of all that came, who waits is no part of anything.
    """
    ring = state.rings.slow
    late = 0 if state.attention.missed_s(now_s - ring.size * ring.bucket_s) else len(state.late)
    slow = ring.bad + state.queued.bad + late
    return slow >= 2 and slow > SUSPICIOUS_SLOW * (ring.total + late)
