"""A cluster outlives its last route for a while, for the requests that have already chosen it. Pure.

Envoy takes a request's cluster from the route when the headers are in, and looks for it when the body is in and the
pick is made, and again for each retry. A cluster that has left by then is a 503 (`cluster_not_found`).
"""

from __future__ import annotations

from collections.abc import Set
from typing import Final

LINGER_S: Final = 10.0
"""How long a cluster stays after no acknowledged route refers to it: 0.2 s for the pick and the rest for the upload, of
1 MB at 1 Mbit/s for example. Nothing new is sent there, so a longer time costs only the probes of its endpoints."""

CLUSTERS_KEPT: Final = 1_000
"""Clusters that may linger in one client: more than a fleet has pools. Past it those leave that are unused longest."""

NOTHING: Final[frozenset[str]] = frozenset()


class Linger:
    """Since when the clusters of one client are unused. Times are seconds of any clock that does not go back.

    `names` are those that stay for now.
    """

    def __init__(self, linger_s: float, most: int = CLUSTERS_KEPT) -> None:
        self.names: frozenset[str] = NOTHING
        self._linger_s = linger_s
        self._most = most
        self._until_s: dict[str, float] = {}  # in the order in which they became unused

    def check(self, unused: Set[str], now_s: float) -> bool:
        """`unused` are the clusters that the client has and nothing needs; one that is needed again is as good as new.

        Returns whether one more of them may leave now.
        """
        kept = {name: until_s for name, until_s in self._until_s.items() if name in unused}
        fresh = sorted(unused - kept.keys())
        self._until_s = kept | dict.fromkeys(fresh, now_s + self._linger_s)
        staying = [name for name, until_s in self._until_s.items() if until_s > now_s]
        before, self.names = self.names, frozenset(staying[-self._most :])
        return bool((before & unused) - self.names)

    def next_s(self) -> float | None:
        """When the next one may leave, None while there is none."""
        return min((self._until_s[name] for name in self.names), default=None)
