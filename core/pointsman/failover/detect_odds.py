"""How strongly counts speak against "this is as usual", and whether of a site or of some of its endpoints."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

FEW: Final = 3
"""Requests that are too few for odds."""

MANY: Final = 3
"""Bad endpoints that are no coincidence, however many there are."""


JOINT: Final = 2
"""Endpoints that are bad at the same time, where none that is asked is well: they have nothing in common but their
site."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Test:
    """Bad is a share of at least `share`, where up to `usual` is tolerated, with odds of `nats` against chance.

    Chance gives `bad` of `total` or more with a probability below exp(-evidence) (Chernoff's bound), while the true
    share is no more than `usual`; `nats` 20.7 is one in a billion for each look.
    """

    share: float
    usual: float
    nats: float

    def needs(self, *, strength: float = 1.0) -> int:
        """How many bad ones it takes at least, when there are no others."""
        return math.ceil(self.nats * strength / -math.log(self.usual))

    def holds(self, total: int, bad: int, *, strength: float = 1.0) -> bool:
        """Whether the counts are bad. `strength` scales the odds that are wanted."""
        return bad > 0 and bad >= self.share * total and evidence(total, bad, self.usual) >= self.nats * strength


def evidence(total: int, bad: int, usual: float) -> float:
    """The odds in nats: how much better the seen share explains the counts than `usual` does; 0 at or below it."""
    if bad <= usual * total:
        return 0.0
    share = bad / total
    odds = bad * math.log(share / usual)
    if bad < total:
        odds += (total - bad) * math.log((1.0 - share) / (1.0 - usual))
    return odds


def site_wide(test: Test, counts: Sequence[tuple[int, int]], endpoints: int) -> bool:
    """Whether counts (all, bad) of a site's endpoints, which are bad together, are so at most of the endpoints.

    More than half of them must have been asked (of many, `MANY`). The worst half of those, rounded down, is left out
    (of equals those with fewer requests), and the rest must be bad, too: half of the odds suffice, of a `FEW` requests
    all.
    """
    asked = sorted((count for count in counts if count[0]), key=lambda count: (-count[1] / count[0], count[0]))
    if len(asked) < min(endpoints // 2 + 1, MANY):
        return False
    rest = asked[len(asked) // 2 :]
    total, bad = sum(count[0] for count in rest), sum(count[1] for count in rest)
    return bad == total if total <= FEW else test.holds(total, bad, strength=0.5)


def joint(test: Test, calm: Sequence[tuple[int, int]], busy: Sequence[tuple[int, int]]) -> bool:
    """Whether counts (all, bad) of a few endpoints are bad together, so that it is their site, and not them.

    `site_wide` can't say it where a shared prefix keeps the requests at a few endpoints. Who got them was not chosen by
    the fault: when two of them are bad at once, and what the others got is bad, too, then most of those that were not
    asked would be as well. It takes all of the odds at one endpoint and half of them at the next; those that were taken
    out a moment ago count with what they gave. Endpoints that are `busy` may be bad for their queue's sake.
    """
    bad = [count for count in calm if test.holds(*count, strength=0.5)]
    if len(bad) < JOINT or not any(test.holds(*count) for count in bad):
        return False
    rest = [*(count for count in calm if count not in bad), *busy]
    return sum(count[1] for count in rest) >= test.share * sum(count[0] for count in rest)
