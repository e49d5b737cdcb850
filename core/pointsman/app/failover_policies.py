"""Which policies lead which pools: those of the manifests, and the defaults for pools that none names."""

from __future__ import annotations

from collections.abc import Iterator

from pointsman.core.config import Manifests
from pointsman.core.model import Plan
from pointsman.failover.detect_triggers import Triggers
from pointsman.failover.spec import FailoverSpec


def policies_of(manifests: Manifests, plan: Plan) -> Iterator[tuple[FailoverSpec, Triggers]]:
    """Each policy with its triggers; a pool that no FailoverPolicy names is led by one of its own, by the defaults."""
    del manifests
    for pool in plan.pools:
        sites = tuple(group.site for group in pool.groups)
        if len(sites) > 1:
            yield _default(pool.name, sites), Triggers()


def _default(pool: str, sites: tuple[str, ...]) -> FailoverSpec:
    from pointsman.failover.spec import Tier

    return FailoverSpec(
        name=f"Default/{pool}", pools=(pool,), tiers=(Tier(sites=sites),), sites={pool: sites}, policy=False
    )
