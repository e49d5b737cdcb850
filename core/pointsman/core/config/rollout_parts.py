"""Parts of a RolloutPolicy that say where it runs, whom it takes, and what an abort leaves behind."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Annotated, Literal

from msgspec import Meta

from pointsman.core.config import syntax
from pointsman.core.config.document import Path, shown
from pointsman.core.config.meta import Duration, LabelValue, Name
from pointsman.core.config.schema import Complaint, Fields, rule
from pointsman.core.config.syntax import duration_ms
from pointsman.core.model import TOTAL_WEIGHT

Found = Iterator[tuple[Path, str, str]]

MAX_SITES = 64
MIN_WITHIN_MS = 100
"""Acknowledgements take milliseconds; a shorter time would only measure the machine."""

_PERCENT = re.compile(r"([0-9]{1,3}(?:\.[0-9]{1,2})?)%\Z")


def percent(value: str) -> Complaint | None:
    """A share from 0 % to 100 % in steps of 0.01 %."""
    found = _PERCENT.match(value)
    if found and float(found[1]) <= 100:
        return None
    return f"{shown(value)} is not a share", "expected 0% to 100%, such as 5% or 0.25%"


def share_of(value: str) -> int:
    """A valid `percent` in 1/10,000."""
    return round(float(value.removesuffix("%")) * TOTAL_WEIGHT / 100)


Share = Annotated[str, rule(percent)]


class SiteOrder(Fields, frozen=True, kw_only=True):
    """One site after the other: all steps on the gateways of the first, then on those of the second, and so on.

    A site here is where a gateway stands, not where endpoints are. `bake`: how long the canary is watched with all
    requests of a site before the next site begins.
    """

    order: Annotated[tuple[Name, ...], Meta(min_length=1, max_length=MAX_SITES)]
    mode: Literal["Sequential"] = "Sequential"
    bake: Duration = "10m"

    def complaints(self) -> Found:
        for index, name in enumerate(self.order):
            if name in self.order[:index]:
                yield ("order", index), f"{shown(name)} is listed twice", "list each site once"


class AssignedBy(Fields, frozen=True, kw_only=True):
    """What identifies a user: one header or one cookie."""

    header: Annotated[str, rule(syntax.header_name)] = ""
    cookie: Annotated[str, rule(syntax.header_name)] = ""

    def complaints(self) -> Found:
        if bool(self.header) == bool(self.cookie):
            yield (), "needs either header or cookie", "name the one that identifies a user"


class Assignment(Fields, frozen=True, kw_only=True):
    """Users stay at their arm: the value of the header or cookie is hashed behind `salt`. Requests without it are
    assigned at random, each for itself, or (`fallback: Stable`) all are the stable pool's while that has a share."""

    by: AssignedBy
    salt: LabelValue = ""
    fallback: Literal["Random", "Stable"] = "Random"


class OnAbort(Fields, frozen=True, kw_only=True):
    """`weight`: what an aborted canary keeps, at most what it has. `sessions: Break`: users who were assigned to it are
    stable's with their next request; answers that run are not cut. `within`: a gateway that takes longer is told."""

    weight: Share = "0%"
    sessions: Literal["Break"] = "Break"
    within: Duration = "1s"

    def complaints(self) -> Found:
        if duration_ms(self.within) < MIN_WITHIN_MS:
            yield ("within",), f"{shown(self.within)} is too short", f"expected at least {MIN_WITHIN_MS}ms"
        if share_of(self.weight) == TOTAL_WEIGHT:
            yield ("weight",), "an abort that leaves everything is none", "expected less than 100%"
