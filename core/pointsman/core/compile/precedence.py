"""Which of several matching rules wins (Gateway API): the order in which Envoy has to try them."""

from __future__ import annotations

from dataclasses import dataclass

from pointsman.core.model import Rule

Rank = tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Where a match stands: the tie-breakers after what it says. A `twin` goes right before what it was made for."""

    created_us: int
    route: str  # "namespace/name"
    kind: str
    rule: int
    match: int
    twin: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class RankedRule:
    """A rule and what decides its place. Smaller keys come first; no two matches of a fleet have the same key.

    `specificity` is (kind of path match, -length, -second length, no method, -headers, -query parameters). Exact paths
    come before regular expressions (which Gateway API leaves open), those before prefixes, longer before shorter.
    """

    specificity: Rank
    origin: Origin
    rule: Rule

    def key(self, host: tuple[int, int]) -> tuple[Rank, Rank, int, str, str, int, int, bool]:
        """Sort key where the route's host name has that specificity: the host comes before everything else."""
        o = self.origin
        return (-host[0], -host[1]), self.specificity, o.created_us, o.route, o.kind, o.rule, o.match, not o.twin
