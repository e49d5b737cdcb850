"""Detection: samples of requests, waiting requests and scrapes of a policy's members become observations.

Pure: the caller has the clock and calls `observe` about ten times a second.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pointsman.failover.detect_triggers import Triggers
from pointsman.failover.model import EndpointView, Member, Observation, Sample, Waiting


class Detector:
    """Watches the members of one policy. Times are of one monotonic clock, in seconds."""

    def __init__(self, triggers: Triggers | None = None) -> None:
        self.triggers = triggers or Triggers()

    def add(self, member: Member, sample: Sample) -> None:
        """Take in a sample; O(1). Samples come in the order of their `at_s`, give or take a bucket of 0.1 s."""

    def observe(
        self,
        now_s: float,
        waiting: Mapping[Member, Sequence[Waiting]],
        views: Mapping[Member, Sequence[EndpointView]],
    ) -> tuple[Observation, ...]:
        """What holds now, for each member in `views`, in that order. Members that are missing there are forgotten."""
        return tuple(
            Observation(member=member, ready=len(endpoints), endpoints=len(endpoints))
            for member, endpoints in views.items()
        )

    def forget(self, member: Member) -> None:
        """Drop what is known of a member, its baseline included: it is another one from now on."""
