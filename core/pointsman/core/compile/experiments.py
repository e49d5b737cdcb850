"""Rules that clients choose by a header or a query parameter: fall-backs, and values that no rule knows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Final

from pointsman.core.compile.precedence import RankedRule
from pointsman.core.config.route_annotations import OnUnavailable, OnUnknownVariant, RouteTerms
from pointsman.core.model import MatchType, Note, PickProfile, RouteMatch, Rule, StringMatch

UNKNOWN_VARIANT: Final = "unknown-variant"
"""Reason of the 400 for a variant that no rule matches."""

_HOST: Final = (0, 0)


def fall_back(
    ranked: Sequence[RankedRule], terms: RouteTerms, unavailable: Mapping[str, str]
) -> tuple[tuple[RankedRule, ...], tuple[Note, ...]]:
    """Give rules that only have unavailable arms those of the rule that would match without them.

    That is the first rule of the same route whose match is wider and that can serve; where there is none the rule
    stays as it is, and answers 503.
    """
    if terms.on_unavailable is not OnUnavailable.FALLBACK:
        return tuple(ranked), ()
    order = sorted(ranked, key=lambda one: one.key(_HOST))
    found, notes = [], []
    for one in ranked:
        if _serves(one.rule, unavailable) or not one.rule.arms:
            found.append(one)
            continue
        later = order[order.index(one) + 1 :]
        wider = next(
            (o.rule for o in later if _covers(o.rule.match, one.rule.match) and _serves(o.rule, unavailable)), None
        )
        if wider is None:
            found.append(one)
            continue
        found.append(replace(one, rule=_like(one.rule, wider)))
        message = f"no arm can serve: requests go where {wider.name.rpartition('/')[0]} sends them"
        note = Note(rule=one.rule.name.rpartition("/")[0], reason="FellBack", message=message)
        if note not in notes:
            notes.append(note)
    return tuple(found), tuple(notes)


def reject_unknown(ranked: Sequence[RankedRule], terms: RouteTerms) -> Iterator[RankedRule]:
    """The rules, each one that does not ask for the variant header behind a twin that answers 400 to values of it
    which no rule of the route asks for."""
    header = terms.variant_header
    if terms.on_unknown_variant is not OnUnknownVariant.REJECT:
        yield from ranked
        return
    known = {m for one in ranked for m in one.rule.match.headers if m.name == header}
    conditions = (
        StringMatch(type=MatchType.PRESENT, name=header, value=""),
        *(replace(match, invert=True) for match in sorted(known, key=lambda m: (m.type.value, m.value))),
    )
    for one in ranked:
        rule = one.rule
        if not any(match.name == header for match in rule.match.headers):
            twin = Rule(
                name=f"{rule.name}-unknown",
                route=rule.route,
                match=replace(rule.match, headers=(*rule.match.headers, *conditions)),
                profile=PickProfile.NONE,
                direct_status=400,
                direct_reason=UNKNOWN_VARIANT,
            )
            yield replace(one, origin=replace(one.origin, twin=True), rule=twin)
        yield one


def _serves(rule: Rule, unavailable: Mapping[str, str]) -> bool:
    return any(arm.weight and arm.pool not in unavailable for arm in rule.arms)


def _like(rule: Rule, other: Rule) -> Rule:
    """`rule` with the destination of `other`."""
    return replace(
        rule,
        arms=other.arms,
        profile=other.profile,
        hash_header=other.hash_header,
        hash_cookie=other.hash_cookie,
        hash_salt=other.hash_salt,
        mirror=other.mirror,
        direct_status=0,
        direct_reason="",
    )


def _covers(wide: RouteMatch, narrow: RouteMatch) -> bool:
    """Whether every request that `narrow` matches is one that `wide` matches, as far as can be told from the text."""
    return (
        _covers_path(wide.path, narrow.path)
        and wide.method in {"", narrow.method}
        and set(wide.headers) <= set(narrow.headers)
        and set(wide.query) <= set(narrow.query)
    )


def _covers_path(wide: StringMatch, narrow: StringMatch) -> bool:
    if wide == narrow:
        return True
    if wide.type is not MatchType.PREFIX or (narrow.type is MatchType.REGEX and wide.value != "/"):
        return False
    return wide.value in {"/", narrow.value} or narrow.value.startswith(f"{wide.value}/")
