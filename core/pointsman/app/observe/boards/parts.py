"""What several dashboards share."""

from __future__ import annotations

from typing import Final

from pointsman.app.observe.grafana import Query, Variable

GATEWAY: Final = Variable(name="gateway", metric="pointsman_xds_nodes", label="gateway")
POOL: Final = Variable(name="pool", metric="pointsman_endpoints", label="pool")
SITE: Final = Variable(name="site", metric="pointsman_endpoints", label="site")

OF_POOL: Final = 'pool=~"$pool"'
OF_POOL_SITE: Final = 'pool=~"$pool",site=~"$site"'
OF_UPSTREAM: Final = 'gateway=~"$gateway",cluster=~"$pool",cluster!~"pointsman-.*",site=~"$site"'
"""Gateways report on all clusters that they know; those of the control plane itself are no pools."""

W: Final = "$__rate_interval"


def quantile(share: float, metric: str, by: str = "", where: str = "") -> str:
    """A quantile of a histogram over the rate window, by labels."""
    labels = f"{by}, le" if by else "le"
    return f"histogram_quantile({share:g}, sum by ({labels}) (rate({metric}_bucket{{{where}}}[{W}])))"


def quantiles(metric: str, shares: tuple[float, ...], by: str = "", where: str = "") -> tuple[Query, ...]:
    """One query for each quantile."""
    legend = " ".join(f"{{{{{label.strip()}}}}}" for label in by.split(",") if label)
    return tuple(
        Query(expr=quantile(share, metric, by, where), legend=f"{legend} p{share * 100:g}".strip()) for share in shares
    )


def rate(metric: str, by: str, where: str = "") -> str:
    """Per second, added up by labels."""
    return f"sum by ({by}) (rate({metric}{{{where}}}[{W}]))"


def ratio(part: str, whole: str) -> str:
    """A share, 0 where there is nothing to share."""
    return f"({part}) / ({whole} > 0)"
