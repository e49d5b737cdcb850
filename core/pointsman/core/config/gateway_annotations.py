"""Annotations of Gateways: how their proxies treat clients, which Gateway API has no field for.

| annotation | value | meaning |
|---|---|---|
| `pointsman.dev/receive-timeout` | duration, `0s` for no limit | how long a client may take to send a request |
| `pointsman.dev/trusted-hops` | number from 0 | proxies in front of the gateway whose `x-forwarded-for` is believed |
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

from pointsman.core.config import syntax
from pointsman.core.config.document import Path, shown
from pointsman.core.config.meta import OWN_PREFIX

RECEIVE_TIMEOUT: Final = f"{OWN_PREFIX}receive-timeout"
TRUSTED_HOPS: Final = f"{OWN_PREFIX}trusted-hops"

GATEWAY_ANNOTATIONS: Final = frozenset({RECEIVE_TIMEOUT, TRUSTED_HOPS})

MOST_HOPS: Final = 16
"""More proxies in a row than anybody has; a larger number is a mistake, and believes what clients invent."""


def complaints(annotations: Mapping[str, str]) -> Iterator[tuple[Path, str, str]]:
    """What is wrong with the values of these annotations."""
    place: Path = ("metadata", "annotations")
    if RECEIVE_TIMEOUT in annotations and (complaint := syntax.duration(annotations[RECEIVE_TIMEOUT])):
        yield (*place, RECEIVE_TIMEOUT), *complaint
    if TRUSTED_HOPS in annotations:
        value = annotations[TRUSTED_HOPS]
        if not (value.isascii() and value.isdigit() and len(value) <= 2 and int(value) <= MOST_HOPS):
            mend = f'expected a number from 0 to {MOST_HOPS}, such as "1"'
            yield (*place, TRUSTED_HOPS), f"{shown(value)} is no number of proxies", mend


def receive_timeout_ms(annotations: Mapping[str, str]) -> int | None:
    """Milliseconds, 0 for no limit, None where nothing is said."""
    return syntax.duration_ms(annotations[RECEIVE_TIMEOUT]) if RECEIVE_TIMEOUT in annotations else None


def trusted_hops(annotations: Mapping[str, str]) -> int:
    """How many proxies in front of the gateway are believed."""
    return int(annotations.get(TRUSTED_HOPS, "0"))
