"""The fleet: where requests go, how fast they are, how full it is, and what it costs."""

from __future__ import annotations

from typing import Final

from pointsman.app.observe.boards.parts import (
    GATEWAY,
    OF_POOL,
    OF_POOL_SITE,
    OF_UPSTREAM,
    POOL,
    SITE,
    W,
    quantile,
    quantiles,
    rate,
    ratio,
)
from pointsman.app.observe.grafana import Dashboard, Panel, Query, Row, Step

_REQUESTS = f"pointsman_upstream_requests_total{{{OF_UPSTREAM}}}"
_ENDED = f'pointsman_arm_requests_total{{{OF_POOL},outcome!="none"}}'
_ERRORS = f'pointsman_arm_requests_total{{{OF_POOL},outcome="server_error"}}'
_IN_PROGRESS = f"sum by (site) (pointsman_upstream_requests_in_progress{{{OF_UPSTREAM}}})"
_CAPACITY = 'max by (site) (pointsman_site_capacity_requests{site=~"$site"})'
_SITE_SHARE = f"sum by (site) (rate({_REQUESTS}[{W}])) / on () group_left () (sum by () (rate({_REQUESTS}[{W}])) > 0)"
_HEALTH = f"max by (pool, site, health) (pointsman_endpoints{{{OF_POOL_SITE}}})"
_USABLE = f'sum(max by (pool, site, health) (pointsman_endpoints{{{OF_POOL_SITE},health!~"UNHEALTHY|DRAINING"}}))'

_NOW: Final = Row(
    title="Now",
    panels=(
        Panel(
            title="Requests",
            kind="stat",
            unit="reqps",
            width=4,
            height=5,
            description="Requests per second to pools, as gateways report them.",
            queries=(Query(expr=f"sum(rate({_REQUESTS}[{W}]))"),),
        ),
        Panel(
            title="Failed",
            kind="stat",
            unit="percentunit",
            width=4,
            height=5,
            description="Share of requests that ended with a server error, after retries: what clients see.",
            queries=(Query(expr=ratio(f"sum(rate({_ERRORS}[{W}])) or vector(0)", f"sum(rate({_ENDED}[{W}]))")),),
            steps=(Step(colour="green"), Step(colour="orange", value=0.001), Step(colour="red", value=0.01)),
        ),
        Panel(
            title="First token, p95",
            kind="stat",
            unit="s",
            width=4,
            height=5,
            description="From a request's first byte to the first body byte of its answer.",
            queries=(Query(expr=quantile(0.95, "pointsman_ttft_seconds", where=OF_POOL)),),
        ),
        Panel(
            title="In flight",
            kind="stat",
            width=4,
            height=5,
            description="Picked requests that have not ended.",
            queries=(Query(expr=f"sum(max by (pool, site) (pointsman_inflight_requests{{{OF_POOL_SITE}}}))"),),
        ),
        Panel(
            title="Endpoints in use",
            kind="stat",
            width=4,
            height=5,
            description="Endpoints that are neither unhealthy nor draining by what the control plane knows.",
            queries=(Query(expr=_USABLE),),
            steps=(Step(colour="red"), Step(colour="green", value=1)),
        ),
        Panel(
            title="Mean recovery time",
            kind="stat",
            unit="s",
            width=4,
            height=5,
            description="Of all failovers since the control plane started; the failover dashboard tells more.",
            queries=(
                Query(expr="sum(pointsman_failover_rto_seconds_sum) / (sum(pointsman_failover_rto_seconds_count) > 0)"),
            ),
            steps=(Step(colour="green"), Step(colour="orange", value=30), Step(colour="red", value=120)),
        ),
    ),
)

_TRAFFIC: Final = Row(
    title="Traffic",
    panels=(
        Panel(
            title="Share of each site",
            unit="percentunit",
            stack=True,
            maximum=1.0,
            description="Where requests went, as gateways report it.",
            queries=(Query(expr=_SITE_SHARE, legend="{{site}}"),),
        ),
        Panel(
            title="Requests by pool and outcome",
            unit="reqps",
            description="Requests that ended, after retries. `none`: the client left before there was an answer.",
            queries=(
                Query(
                    expr=rate("pointsman_arm_requests_total", "pool, outcome", OF_POOL), legend="{{pool}} {{outcome}}"
                ),
            ),
        ),
        Panel(
            title="Answers of the picker",
            unit="reqps",
            description="`picked`, or why there was no pick.",
            queries=(
                Query(expr=rate("pointsman_picks_total", "pool, outcome", OF_POOL), legend="{{pool}} {{outcome}}"),
            ),
        ),
    ),
)

_LATENCY: Final = Row(
    title="Latency",
    panels=(
        Panel(
            title="Time to first token",
            unit="s",
            description="Histogram quantiles by pool; as exact as the buckets are fine.",
            queries=quantiles("pointsman_ttft_seconds", (0.5, 0.95), "pool", OF_POOL),
        ),
        Panel(
            title="Whole request",
            unit="s",
            description="From a request's begin to its end; long answers take long.",
            queries=quantiles("pointsman_arm_duration_seconds", (0.5, 0.95), "pool", OF_POOL),
        ),
        Panel(
            title="Added by the pick",
            unit="s",
            description="From a request's last byte in to its first byte to the endpoint, at the gateway.",
            queries=quantiles("pointsman_added_latency_seconds", (0.5, 0.99)),
        ),
    ),
)

_LOAD: Final = Row(
    title="Load",
    panels=(
        Panel(
            title="Fill level of sites",
            unit="percentunit",
            description="Requests in progress over `spec.capacity.maxConcurrent` of the Site; no line without it.",
            queries=(Query(expr=f"{_IN_PROGRESS} / on (site) {_CAPACITY}", legend="{{site}}"),),
            steps=(Step(colour="transparent"), Step(colour="red", value=0.9)),
        ),
        Panel(
            title="In engines: running and waiting",
            description="By the engines' own count. A queue that grows is a pool that is too small.",
            queries=(
                Query(
                    expr=f"max by (pool, site) (pointsman_engine_running_requests{{{OF_POOL_SITE}}})",
                    legend="{{pool}} {{site}} running",
                ),
                Query(
                    expr=f"max by (pool, site) (pointsman_engine_waiting_requests{{{OF_POOL_SITE}}})",
                    legend="{{pool}} {{site}} waiting",
                ),
            ),
        ),
        Panel(
            title="KV cache in use",
            unit="percentunit",
            maximum=1.0,
            description="Mean over the endpoints of a pool at a site.",
            queries=(
                Query(
                    expr=f"max by (pool, site) (pointsman_engine_kv_usage_ratio{{{OF_POOL_SITE}}})",
                    legend="{{pool}} {{site}}",
                ),
            ),
        ),
    ),
)

_CACHE: Final = Row(
    title="Prefix cache and cost",
    panels=(
        Panel(
            title="Prefix hits: estimate and truth",
            unit="percentunit",
            maximum=1.0,
            description=(
                "Share of prompt tokens that the chosen endpoint should have cached by the picker's index, and that "
                "engines say they had. Far apart: the index is wrong, or others use the engines, too."
            ),
            queries=(
                Query(
                    expr=ratio(
                        rate("pointsman_pick_prefix_hit_tokens_total", "pool", OF_POOL),
                        rate("pointsman_pick_prompt_tokens_total", "pool", OF_POOL),
                    ),
                    legend="{{pool}} estimate",
                ),
                Query(
                    expr=ratio(
                        rate("pointsman_engine_prefix_hit_tokens_total", "pool", OF_POOL_SITE),
                        rate("pointsman_engine_prefix_lookup_tokens_total", "pool", OF_POOL_SITE),
                    ),
                    legend="{{pool}} engines",
                ),
            ),
        ),
        Panel(
            title="What picks are decided by",
            unit="percentunit",
            stack=True,
            maximum=1.0,
            description="Share of each term in the expected cost of the endpoints chosen.",
            queries=(
                Query(
                    expr=(
                        f"{rate('pointsman_pick_cost_seconds_total', 'term')} / on () group_left () "
                        f"(sum by () (rate(pointsman_pick_cost_seconds_total[{W}])) > 0)"
                    ),
                    legend="{{term}}",
                ),
            ),
        ),
        Panel(
            title="Price where requests land",
            unit="currencyUSD",
            description="Declared price of a GPU hour, weighted with the requests of each site that declares one.",
            queries=(
                Query(
                    expr=(
                        f"sum(sum by (site) (rate({_REQUESTS}[{W}])) * on (site) group_left () "
                        "max by (site) (pointsman_site_gpu_hour_usd)) / "
                        f"(sum(sum by (site) (rate({_REQUESTS}[{W}])) and on (site) pointsman_site_gpu_hour_usd) > 0)"
                    ),
                    legend="USD per GPU hour",
                ),
            ),
        ),
        Panel(
            title="Tokens generated",
            description="Per second, by the engines' own count.",
            queries=(
                Query(
                    expr=rate("pointsman_engine_generated_tokens_total", "pool, site", OF_POOL_SITE),
                    legend="{{pool}} {{site}}",
                ),
            ),
        ),
        Panel(
            title="Endpoints by health",
            kind="table",
            description="As the control plane has them; Envoy's own probes may keep out more.",
            queries=(Query(expr=f"{_HEALTH} > 0", instant=True, format="table"),),
        ),
        Panel(
            title="Age of signals",
            unit="s",
            description="Of the endpoint whose last good scrape is oldest. From 10 s on its queue counts as unknown.",
            queries=(
                Query(
                    expr=f"max by (pool, site) (pointsman_engine_signal_age_seconds{{{OF_POOL_SITE}}})",
                    legend="{{pool}} {{site}}",
                ),
            ),
            steps=(Step(colour="transparent"), Step(colour="red", value=10)),
        ),
    ),
)

FLEET: Final = Dashboard(
    uid="pointsman-fleet",
    title="Pointsman: fleet",
    description="Where requests go, how fast they are, how full the fleet is.",
    variables=(GATEWAY, POOL, SITE),
    rows=(_NOW, _TRAFFIC, _LATENCY, _LOAD, _CACHE),
)
