"""Names of clusters that are made of a pool: "POOL~TARGET" for a model that its requests are renamed to.

POOL is "namespace/name". What restricts such a cluster to sites stands behind it: "POOL~TARGET@TAG+TAG"
(`pointsman.core.compile.residency`). Names of models may hold any character; what a name of ours gives a meaning to is
percent-encoded, so a name can always be taken apart.
"""

from __future__ import annotations

from typing import Final
from urllib.parse import quote, unquote

TARGET_MARK: Final = "~"
"""Between a pool and a model: in neither a namespace nor the name of a Kubernetes object."""
NARROWED_MARK: Final = "@"
"""Between a pool, or a pool and a model, and the sites that it is narrowed to."""

_PLAIN: Final = "/:+,="
"""Kept as they are, with letters, digits and -._~: most names of models stay readable."""


def target_arm(pool: str, target: str) -> str:
    """The arm of `pool` whose requests are renamed to `target`; the pool itself where that is empty."""
    return f"{pool}{TARGET_MARK}{quote(target, safe=_PLAIN)}" if target else pool


def whole_pool(name: str) -> str:
    """The pool whose endpoints a cluster has, whatever was made of it."""
    return name.partition(TARGET_MARK)[0].partition(NARROWED_MARK)[0]


def target_of(name: str) -> str:
    """The model that requests of a cluster are renamed to, empty where it has none."""
    return unquote(_without_sites(name).partition(TARGET_MARK)[2])


def short_names(name: str) -> frozenset[str]:
    """What people may call an arm: without its namespace, and a model by its name alone."""
    return frozenset({name.partition("/")[2], target_of(name)} - {""})


def _without_sites(name: str) -> str:
    """Without what narrows it; "~local" there is no model."""
    return name.partition(NARROWED_MARK)[0]
