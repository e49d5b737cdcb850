"""From what clients saw of a drill to its figures and its picture. Pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from pointsman.failover import outcome
from pointsman.failover.outcome import Outcome, Seen
from pointsman.failover.report import Moment, Run
from pointsman.failover.timeline import timeline

LOOK_S: Final = 0.1
"""How often it is looked whether a replica still gets requests."""

ELSEWHERE: Final = "the first request after the fault is answered elsewhere"

RECORDED: Final = {
    "detected_at_s": "the control plane sees it",
    "decided_at_s": "it decides to leave the site",
    "programmed_at_s": "every gateway has acknowledged it",
}
"""Times of a record of the control plane, and what to call them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """Everything that is known of one drill; times are of the monotonic clock.

    `began_s`: the first thing that was done; `fault_s`: the fault that is timed. `before` are requests of the steady
    state, `after` those that ended after `began_s`. `looks`: when a replica of `avoid` was seen to get requests.
    `said`: what was done when. `record`: times of `RECORDED`, seconds after the fault. `others_only`: requests at the
    gateway of `site` are not judged.
    """

    kind: str
    site: str
    number: int
    began_s: float
    fault_s: float
    end_s: float
    before: Sequence[Seen] = ()
    after: Sequence[Seen] = ()
    looks: Sequence[float] = ()
    avoid: Collection[str] = ()
    said: Sequence[tuple[float, str]] = ()
    record: Mapping[str, float]
    site_of: Mapping[str, str]
    others_only: bool = False
    aborted: str = ""

    @property
    def judged(self) -> list[Seen]:
        """The requests that count."""
        return [seen for seen in self.after if not self.others_only or seen.gateway != self.site]

    @property
    def began(self) -> list[float]:
        """When they began, sorted."""
        return sorted(seen.start_s for seen in self.judged)


def bad_times(evidence: Evidence) -> list[float]:
    """When something still went wrong after the fault."""
    # A count tells that a request came since the look before: the first ones may be of the time before the fault.
    looks = [at_s for at_s in evidence.looks if evidence.fault_s + 2 * LOOK_S < at_s < evidence.end_s]
    return outcome.bad_times(evidence.judged, looks, fault_s=evidence.fault_s, avoid=evidence.avoid)


def over(evidence: Evidence) -> bool:
    """Whether a whole good window was seen until `end_s`, and nothing went wrong after it had begun."""
    bad = [at_s for at_s in bad_times(evidence) if at_s < evidence.end_s]
    found = outcome.recovery(bad, evidence.began, fault_s=evidence.fault_s, end_s=evidence.end_s)
    return found.recovered_s is not None and not found.relapses


def failed(evidence: Evidence) -> int:
    """Requests that count and failed so far."""
    return sum(outcome.outcome(seen) is Outcome.FAILED for seen in evidence.judged)


def _elsewhere(seen: Seen, evidence: Evidence) -> bool:
    return (
        bool(evidence.avoid)
        and seen.start_s >= evidence.fault_s
        and seen.replica not in evidence.avoid
        and outcome.outcome(seen) is Outcome.OK
    )


def judge(evidence: Evidence) -> tuple[Run, str]:
    """The figures of a drill, and its picture."""
    fault_s, end_s = evidence.fault_s, evidence.end_s
    base = outcome.baseline(evidence.before)
    judged = evidence.judged
    found = outcome.recovery(bad_times(evidence), evidence.began, fault_s=fault_s, end_s=end_s)
    rto_s = None if found.recovered_s is None else found.recovered_s - fault_s
    moments = [Moment(at_s=at_s - fault_s, what=what) for at_s, what in evidence.said]
    moments += [
        Moment(at_s=evidence.record[name], what=what) for name, what in RECORDED.items() if name in evidence.record
    ]
    first_s = min((seen.end_s for seen in judged if _elsewhere(seen, evidence)), default=None)
    if first_s is not None:
        moments.append(Moment(at_s=first_s - fault_s, what=ELSEWHERE))
    if rto_s is not None:
        moments.append(Moment(at_s=rto_s, what="recovered, as clients see it"))
    moments.sort(key=lambda moment: round(moment.at_s, 2))  # as shown: what was done stands before what it led to
    at_home = [seen for seen in (*evidence.before, *evidence.after) if seen.gateway == evidence.site]
    run = Run(
        kind=evidence.kind,
        site=evidence.site,
        number=evidence.number,
        rto_s=rto_s,
        relapses=found.relapses,
        counts=outcome.count(judged, base),
        switches=outcome.switches(at_home, evidence.site_of, fault_s=fault_s, end_s=end_s),
        detected_s=evidence.record.get("detected_at_s"),
        decided_s=evidence.record.get("decided_at_s"),
        programmed_s=evidence.record.get("programmed_at_s"),
        usual_ms=(base.streamed_p99_ms, base.plain_p99_ms),
        moments=tuple(moments),
        aborted=evidence.aborted,
    )
    title = f"{evidence.kind} at {evidence.site}: requests by the site that answered, or by what went wrong"
    shown = [*evidence.before, *evidence.after]
    return run, timeline(title, shown, moments, evidence.site_of, base, fault_s=fault_s)
