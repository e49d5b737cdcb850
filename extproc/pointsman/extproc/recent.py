"""The latest decisions, to be explained."""

from __future__ import annotations

from collections import OrderedDict

from pointsman.extproc.decision import Decision

RECENT_DECISIONS = 512
"""Decisions kept to be explained: seconds of a busy gateway."""

RECENT_CANDIDATES = 51_200
"""Candidates of all kept decisions, 140 bytes each: 512 decisions with 100 endpoints, 51 with 1,000."""


class RecentDecisions:
    """Decisions by pick id and by request id, oldest first."""

    def __init__(self, limit: int = RECENT_DECISIONS) -> None:
        self._limit = limit
        self._decisions: OrderedDict[str, Decision] = OrderedDict()
        self._by_request: dict[str, str] = {}

    def add(self, made: Decision, endpoints: int) -> None:
        """Keep one more; with many `endpoints` fewer are kept."""
        self._decisions[made.pick_id] = made
        if made.request_id:
            self._by_request[made.request_id] = made.pick_id
        limit = max(1, min(self._limit, RECENT_CANDIDATES // max(1, endpoints)))
        while len(self._decisions) > limit:
            _, oldest = self._decisions.popitem(last=False)
            if self._by_request.get(oldest.request_id) == oldest.pick_id:
                del self._by_request[oldest.request_id]

    def find(self, identity: str) -> Decision | None:
        """By pick id, or the latest one of a request id."""
        return self._decisions.get(identity) or self._decisions.get(self._by_request.get(identity, ""))

    def all(self) -> tuple[Decision, ...]:
        """Oldest first."""
        return tuple(self._decisions.values())
