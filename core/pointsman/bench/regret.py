"""Where our picker chooses otherwise than the greedy oracle would in the same moment, and what that costs.

The run follows our own choices. At each of them the oracle prices every replica, with all it knows; the regret is its
price of our choice less its price of its own. So a regret is of one request alone: what a choice does to those after it
is in neither price, and a policy with more regret may do better in the end.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

import numpy as np

from pointsman.bench.joint import Joint
from pointsman.bench.oracle import Oracle
from pointsman.bench.policy import World
from pointsman.bench.workload import Arrival
from pointsman.replay.trace import BLOCK_TOKENS

WORST_SHARE = 0.01
"""The requests whose part of all regret is told."""


class Cause(Enum):
    """What told our picker otherwise; the first that holds."""

    CACHE = "believes otherwise of a cache than it is"
    WAIT = "waits for a replica that has more of the prompt"
    REGION = "takes another region"
    TIE = "a replica as good, or a queue believed otherwise"


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """One request: the regret in ms of the oracle's price, 0 where both choose the same. `cause` is None then."""

    at_ms: float
    regret_ms: float
    cause: Cause | None


class Judged(Joint):
    """Our policy, with the oracle looking on; `choices` in the order of the arrivals."""

    def bind(self, world: World) -> None:
        super().bind(world)
        self._oracle = Oracle()
        self._oracle.bind(world)
        self.choices: list[Choice] = []

    def choose(self, arrival: Arrival) -> int:
        ours = super().choose(arrival)
        prices = [self._oracle.price(arrival, replica) for replica in self._oracle.all]
        best = int(np.argmin(prices))
        cause = None if best == ours else self._cause(arrival, ours, best)
        self.choices.append(Choice(at_ms=arrival.at_ms, regret_ms=prices[ours] - prices[best], cause=cause))
        return ours

    def _cause(self, arrival: Arrival, ours: int, best: int) -> Cause:
        decision = self.asked(arrival.gateway).recent()[-1]
        assert decision.cached_tokens is not None
        believed = dict(zip(decision.pool_keys, decision.cached_tokens.tolist(), strict=True))
        held = {replica: arrival.input_tokens - self._oracle.uncached(arrival, replica) for replica in (ours, best)}
        if any(abs(believed[self.key(replica)] - held[replica]) >= BLOCK_TOKENS for replica in held):
            return Cause.CACHE
        if held[ours] - held[best] >= BLOCK_TOKENS:
            return Cause.WAIT
        return Cause.TIE if self._oracle.fleet.region_of[ours] == self._oracle.fleet.region_of[best] else Cause.REGION


@dataclass(frozen=True, slots=True, kw_only=True)
class Regrets:
    """Of the requests after the warm-up: share of equal choices, mean regret in ms, the part of all regret that the
    worst `WORST_SHARE` of the requests have, and the part of each cause."""

    requests: int
    agreed: float
    mean_ms: float
    worst: float
    parts: dict[Cause, float]


def regrets(choices: Sequence[Choice], warm_up_ms: float) -> Regrets:
    """Sum up; needs a choice after the warm-up."""
    counted = [choice for choice in choices if choice.at_ms >= warm_up_ms]
    each = sorted((choice.regret_ms for choice in counted), reverse=True)
    total = sum(each)
    scale = 1.0 / total if total > 0.0 else 0.0
    return Regrets(
        requests=len(counted),
        agreed=sum(choice.cause is None for choice in counted) / len(counted),
        mean_ms=total / len(counted),
        worst=sum(each[: max(1, int(WORST_SHARE * len(each)))]) * scale,
        parts={cause: sum(c.regret_ms for c in counted if c.cause is cause) * scale for cause in Cause},
    )
