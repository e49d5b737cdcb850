"""Annotations of routes that say how their rules split: what Gateway API has no field for.

| annotation | value | meaning |
|---|---|---|
| `pointsman.dev/sticky-header` | header name | requests with equal values of it get the same arm |
| `pointsman.dev/sticky-cookie` | cookie name | the same, by a cookie |
| `pointsman.dev/sticky-salt` | label value | another salt draws other users |
| `pointsman.dev/on-unavailable` | `Fail` (default), `Redistribute`, `Fallback` | what for an arm that can't serve |
| `pointsman.dev/variant-header` | header name | the header by which clients choose a variant |
| `pointsman.dev/on-unknown-variant` | `Split` (default), `Reject` | what a value of it that no rule matches gets |
| `pointsman.dev/residency` | jurisdictions, `EU` or `EU,GDPR` | requests only go to sites that have all of them |
| `pointsman.dev/residency-header` | header name | requests only go to sites with the jurisdiction that it names |
| `pointsman.dev/residency-required` | `true`, `false` (default) | requests without that header are refused, too |
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Final

from pointsman.core.config import syntax
from pointsman.core.config.document import Path, shown
from pointsman.core.config.meta import OWN_PREFIX
from pointsman.core.config.schema import suggest

STICKY_HEADER: Final = f"{OWN_PREFIX}sticky-header"
STICKY_COOKIE: Final = f"{OWN_PREFIX}sticky-cookie"
STICKY_SALT: Final = f"{OWN_PREFIX}sticky-salt"
ON_UNAVAILABLE: Final = f"{OWN_PREFIX}on-unavailable"
VARIANT_HEADER: Final = f"{OWN_PREFIX}variant-header"
ON_UNKNOWN_VARIANT: Final = f"{OWN_PREFIX}on-unknown-variant"

RESIDENCY: Final = f"{OWN_PREFIX}residency"
RESIDENCY_HEADER: Final = f"{OWN_PREFIX}residency-header"
RESIDENCY_REQUIRED: Final = f"{OWN_PREFIX}residency-required"

ROUTE_ANNOTATIONS: Final = frozenset(
    {
        STICKY_HEADER,
        STICKY_COOKIE,
        STICKY_SALT,
        ON_UNAVAILABLE,
        VARIANT_HEADER,
        ON_UNKNOWN_VARIANT,
        RESIDENCY,
        RESIDENCY_HEADER,
        RESIDENCY_REQUIRED,
    }
)


class OnUnavailable(Enum):
    """What a rule does for an arm that has no ready endpoint."""

    FAIL = "Fail"  # its share gets 503 (Gateway API's rule)
    REDISTRIBUTE = "Redistribute"  # the others get its share
    FALLBACK = "Fallback"  # the same, and a rule without any other arm does what the next wider rule does


class OnUnknownVariant(Enum):
    """What a request gets that names a variant which no rule matches."""

    SPLIT = "Split"  # the rule that matches without the header
    REJECT = "Reject"  # 400


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteTerms:
    """The annotations of a route, read."""

    sticky_header: str = ""
    sticky_cookie: str = ""
    sticky_salt: str = ""
    on_unavailable: OnUnavailable = OnUnavailable.FAIL
    variant_header: str = ""
    on_unknown_variant: OnUnknownVariant = OnUnknownVariant.SPLIT
    residency: frozenset[str] = frozenset()
    residency_header: str = ""
    residency_required: bool = False


def route_terms(annotations: Mapping[str, str]) -> RouteTerms:
    """Read annotations that have no complaints."""
    return RouteTerms(
        sticky_header=annotations.get(STICKY_HEADER, "").lower(),
        sticky_cookie=annotations.get(STICKY_COOKIE, ""),
        sticky_salt=annotations.get(STICKY_SALT, ""),
        on_unavailable=OnUnavailable(annotations.get(ON_UNAVAILABLE, "Fail")),
        variant_header=annotations.get(VARIANT_HEADER, "").lower(),
        on_unknown_variant=OnUnknownVariant(annotations.get(ON_UNKNOWN_VARIANT, "Split")),
        residency=frozenset(_tags(annotations.get(RESIDENCY, ""))),
        residency_header=annotations.get(RESIDENCY_HEADER, "").lower(),
        residency_required=annotations.get(RESIDENCY_REQUIRED) == "true",
    )


def _tags(text: str) -> list[str]:
    return [tag.strip() for tag in text.split(",") if tag.strip()]


def complaints(annotations: Mapping[str, str], matched: Collection[str]) -> Iterator[tuple[Path, str, str]]:
    """What is wrong with the annotations of a route whose rules match these headers (lower-case)."""

    def at(name: str) -> Path:
        return "metadata", "annotations", name

    for name in (STICKY_HEADER, STICKY_COOKIE, VARIANT_HEADER, RESIDENCY_HEADER):
        if name in annotations and (complaint := syntax.header_name(annotations[name])):
            yield (
                at(name),
                complaint[0].replace("header", "cookie") if name == STICKY_COOKIE else complaint[0],
                complaint[1],
            )
    yield from _residency(annotations)
    salt = annotations.get(STICKY_SALT, "")
    if complaint := syntax.label_value(salt):
        yield at(STICKY_SALT), f"{shown(salt)} is no salt", complaint[1]
    sticky = [name for name in (STICKY_HEADER, STICKY_COOKIE) if name in annotations]
    if len(sticky) == 2:
        yield at(STICKY_COOKIE), f"{STICKY_HEADER} is set, too", "remove one: a split is sticky by one thing"
    if STICKY_SALT in annotations and not sticky:
        yield at(STICKY_SALT), "nothing is sticky", f"set {STICKY_HEADER} or {STICKY_COOKIE}, or remove it"
    for name, choices in ((ON_UNAVAILABLE, OnUnavailable), (ON_UNKNOWN_VARIANT, OnUnknownVariant)):
        known = [choice.value for choice in choices]
        if name in annotations and annotations[name] not in known:
            yield at(name), f"found {shown(annotations[name])}", suggest(annotations[name], known)
    header = annotations.get(VARIANT_HEADER, "").lower()
    if ON_UNKNOWN_VARIANT in annotations and not header:
        yield at(ON_UNKNOWN_VARIANT), "there is no variant header", f"set {VARIANT_HEADER}"
    if header and header not in matched:
        mend = suggest(header, matched) if matched else "match it in a rule, or remove the annotation"
        yield at(VARIANT_HEADER), f"no rule matches the header {header}", mend


def _residency(annotations: Mapping[str, str]) -> Iterator[tuple[Path, str, str]]:
    place = ("metadata", "annotations")
    if RESIDENCY in annotations:
        tags = _tags(annotations[RESIDENCY])
        if not tags:
            yield (*place, RESIDENCY), "is empty", "expected jurisdictions of Sites, such as EU, or remove it"
        for tag in tags:
            if syntax.label_value(tag):
                yield (*place, RESIDENCY), f"{shown(tag)} is no jurisdiction", "expected one such as EU"
    if RESIDENCY_REQUIRED in annotations:
        if annotations[RESIDENCY_REQUIRED] not in {"true", "false"}:
            yield (
                (*place, RESIDENCY_REQUIRED),
                f"found {shown(annotations[RESIDENCY_REQUIRED])}",
                "expected true or false",
            )
        elif RESIDENCY_HEADER not in annotations:
            yield (*place, RESIDENCY_REQUIRED), "there is no residency header", f"set {RESIDENCY_HEADER}"
