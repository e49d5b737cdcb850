"""Small Plans for the picker's tests."""

from __future__ import annotations

from pointsman.core.model import Endpoint, Health, ModelRewrite, Plan, Pool, Site, SiteGroup

POOL = "default/llama"


def make_plan(
    endpoints: dict[str, list[str]],
    *,
    pool: str = POOL,
    health: dict[str, Health] | None = None,
    sites: tuple[Site, ...] = (),
    rewrites: tuple[ModelRewrite, ...] = (),
) -> Plan:
    """A Plan of one pool: site → endpoints (`ip:port`), the first site at priority 0."""

    def endpoint(site: str, key: str) -> Endpoint:
        host, port = key.rsplit(":", 1)
        state = (health or {}).get(key, Health.UNKNOWN)
        return Endpoint(name=key, address=host.strip("[]"), port=int(port), site=site, health=state)

    groups = tuple(
        SiteGroup(site=site, priority=priority, weight=1, endpoints=tuple(endpoint(site, key) for key in keys))
        for priority, (site, keys) in enumerate(endpoints.items())
    )
    known = {site.name for site in sites}
    return Plan(
        sites=tuple(sorted((*sites, *(Site(name=n) for n in endpoints if n not in known)), key=lambda s: s.name)),
        pools=(Pool(name=pool, groups=groups, rewrites=rewrites),),
    )
