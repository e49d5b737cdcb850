"""No request goes through two gateways after each other.

Where a site is reached through its gateway, that gateway may know us in the same way: when both are short of endpoints
a request could go to and fro for ever. So a request that is sent to a gateway carries the header `x-pointsman-hops`,
and one that comes with it gets a cluster of its own, "POOL@~local", which has only the endpoints that are reached
without a further gateway. The mechanism is that of residency: nothing that chooses an endpoint has another to choose.
Where none is left the answer is 508.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Final

from pointsman.core import wire
from pointsman.core.arm_names import whole_pool
from pointsman.core.compile.precedence import RankedRule
from pointsman.core.compile.residency import DIRECT, MARK, Places, narrowed, required_by
from pointsman.core.model import HeaderEdit, MatchType, PickProfile, Rule, StringMatch

STATUS: Final = 508
_TRAVELLED: Final = StringMatch(type=MatchType.PRESENT, name=wire.HOPS_HEADER, value="")


def guard(ranked: Iterable[RankedRule], places: Places) -> tuple[RankedRule, ...]:
    """The rules of a route; before each that may use a gateway stands one for the requests that came through one."""
    return tuple(replace(one, rule=rule) for one in ranked for rule in _guarded(one.rule, places))


def _guarded(rule: Rule, places: Places) -> Iterator[Rule]:
    works = any(arm.weight for arm in rule.arms)
    if not works or not any(places.has_gateway(whole_pool(pool), required_by(pool)) for pool in rule.pools()):
        yield rule
        return
    match = replace(rule.match, headers=(*rule.match.headers, _TRAVELLED))
    travelled = replace(rule, name=f"{rule.name}{MARK}{DIRECT}", match=match)
    yield narrowed(travelled, frozenset({DIRECT}), places) or Rule(
        name=travelled.name,
        route=rule.route,
        match=match,
        profile=PickProfile.NONE,
        direct_status=STATUS,
        direct_reason=wire.LOOP,
    )
    # Also where another arm is chosen: a mirrored request has the headers of its arm.
    yield replace(rule, arms=tuple(replace(arm, request_headers=_sent_on(arm.request_headers)) for arm in rule.arms))


def _sent_on(edit: HeaderEdit) -> HeaderEdit:
    kept = tuple(entry for entry in edit.set if entry[0] != wire.HOPS_HEADER)
    return replace(edit, set=(*kept, (wire.HOPS_HEADER, "1")))
