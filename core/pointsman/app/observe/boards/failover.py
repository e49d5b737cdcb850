"""Failover and disaster recovery: states, evidence, recovery times, and whether the rest could carry the load."""

from __future__ import annotations

from typing import Final

from pointsman.app.observe.boards.parts import GATEWAY, OF_POOL, OF_POOL_SITE, OF_UPSTREAM, POOL, SITE, W, rate, ratio
from pointsman.app.observe.grafana import Annotation, Dashboard, Panel, Query, Row, Step, Variable

_PS: Final = 'policy=~"$policy",site=~"$site"'
_P: Final = 'policy=~"$policy"'
_REQUESTS: Final = f"pointsman_upstream_requests_total{{{OF_UPSTREAM}}}"
_IN_PROGRESS: Final = f"sum(pointsman_upstream_requests_in_progress{{{OF_UPSTREAM}}})"
_CAPACITY: Final = "max by (site) (pointsman_site_capacity_requests)"
_SWITCHES: Final = f"sum by (policy, site, trigger) (pointsman_failover_switches_total{{{_P}}})"
_SWITCHES_BEFORE: Final = f"sum by (policy, site, trigger) (pointsman_failover_switches_total{{{_P}}} offset {W})"
"""The first switch makes the series: `changes` would not see it."""
_DRILL_STEPS: Final = (
    Step(colour="green"),
    Step(colour="yellow", value=5),
    Step(colour="orange", value=30),
    Step(colour="red", value=120),
)
"""What is promised of the slowest fault, what an alert allows, the objective."""
_RTO_STEPS: Final = (Step(colour="green"), Step(colour="orange", value=30), Step(colour="red", value=120))

_STATE: Final = Row(
    title="State",
    panels=(
        Panel(
            title="State of each site",
            kind="state-timeline",
            width=16,
            description="Which state each policy holds each site to be in.",
            queries=(
                Query(
                    expr=f"max by (policy, site, state) (pointsman_failover_site_state{{{_PS}}}) == 1",
                    legend="{{policy}} {{site}} {{state}}",
                ),
            ),
            mappings=(("1", "now", "blue"),),
        ),
        Panel(
            title="Hold-down left",
            kind="bargauge",
            unit="s",
            description="How long a site that is well again is still waited for, so that it does not flap.",
            queries=(
                Query(
                    expr=f"max by (policy, site) (pointsman_failover_hold_down_seconds{{{_PS}}})",
                    legend="{{policy}} {{site}}",
                ),
            ),
        ),
        Panel(
            title="Share of each site",
            unit="percentunit",
            stack=True,
            maximum=1.0,
            width=12,
            description="Where requests went, as gateways report it.",
            queries=(
                Query(
                    expr=(
                        f"sum by (site) (rate({_REQUESTS}[{W}])) / on () group_left () "
                        f"(sum by () (rate({_REQUESTS}[{W}])) > 0)"
                    ),
                    legend="{{site}}",
                ),
            ),
        ),
        Panel(
            title="Switches",
            width=12,
            description="Times a site was left since the control plane started, by what made it.",
            queries=(
                Query(
                    expr=f"sum by (policy, site, trigger) (pointsman_failover_switches_total{{{_PS}}})",
                    legend="{{policy}} left {{site}}: {{trigger}}",
                ),
            ),
        ),
    ),
)

_EVIDENCE: Final = Row(
    title="Evidence",
    panels=(
        Panel(
            title="Evidence over its threshold",
            width=12,
            description="At 1 a trigger holds. What is at 0.8 for long is a trigger set too tight.",
            queries=(
                Query(
                    expr=(
                        f"max by (policy, site, trigger) (pointsman_failover_evidence{{{_PS}}}) / "
                        "on (policy, trigger) group_left () "
                        f"(max by (policy, trigger) (pointsman_failover_threshold{{{_P}}}) > 0)"
                    ),
                    legend="{{policy}} {{site}} {{trigger}}",
                ),
            ),
            steps=(Step(colour="transparent"), Step(colour="red", value=1)),
        ),
        Panel(
            title="Evidence as measured",
            kind="table",
            width=12,
            description="In the unit of each trigger.",
            queries=(
                Query(
                    expr=f"max by (policy, site, trigger) (pointsman_failover_evidence{{{_PS}}})",
                    instant=True,
                    format="table",
                ),
            ),
        ),
    ),
)

_RECOVERY: Final = Row(
    title="Recovery",
    panels=(
        Panel(
            title="Recovery times",
            kind="heatmap",
            unit="s",
            description="How many failovers took how long, since the control plane started. The objective is 120 s.",
            queries=(
                Query(
                    expr=f"sum by (le) (pointsman_failover_rto_seconds_bucket{{{_P}}})",
                    legend="{{le}}",
                    format="heatmap",
                ),
            ),
        ),
        Panel(
            title="Recovery time by trigger",
            kind="bargauge",
            unit="s",
            maximum=120.0,
            description="Mean since the control plane started, against the objective of 120 s.",
            queries=(
                Query(
                    expr=(
                        f"sum by (trigger) (pointsman_failover_rto_seconds_sum{{{_P}}}) / "
                        f"(sum by (trigger) (pointsman_failover_rto_seconds_count{{{_P}}}) > 0)"
                    ),
                    legend="{{trigger}}",
                ),
            ),
            steps=_RTO_STEPS,
        ),
        Panel(
            title="Requests that failed",
            description="While a failover was under way, since the control plane started.",
            queries=(
                Query(expr=f"sum by (policy) (pointsman_failover_requests_failed_total{{{_P}}})", legend="{{policy}}"),
            ),
            steps=(Step(colour="transparent"), Step(colour="red", value=1)),
        ),
        Panel(
            title="Drills",
            kind="status-history",
            unit="s",
            width=24,
            description=(
                "Recovery time of the last drill of each kind, as clients saw it, of the reports in the folder drills "
                "of the state folder (pointsman drill run KIND --report STATE/drills). Set-ups that drills start have "
                "simulated model servers."
            ),
            queries=(
                Query(
                    expr='max by (drill, site) (pointsman_drill_last_rto_seconds{site=~"$site"})',
                    legend="{{drill}} {{site}}",
                ),
            ),
            steps=_DRILL_STEPS,
        ),
        Panel(
            title="Retries",
            unit="percentunit",
            width=12,
            description="Further attempts over requests. Envoy's budget is 20 % of what runs.",
            queries=(
                Query(
                    expr=ratio(
                        f"{rate('pointsman_upstream_retries_total', 'pool', OF_POOL)} or "
                        f"0 * {rate('pointsman_arm_requests_total', 'pool', OF_POOL)}",
                        rate("pointsman_arm_requests_total", "pool", OF_POOL),
                    ),
                    legend="{{pool}}",
                ),
            ),
            steps=(Step(colour="transparent"), Step(colour="red", value=0.2)),
        ),
        Panel(
            title="Failed attempts by site",
            unit="reqps",
            width=12,
            description="As gateways count them, before retries.",
            queries=(
                Query(
                    expr=rate("pointsman_upstream_requests_total", "site", f'{OF_UPSTREAM},outcome="failed"'),
                    legend="{{site}}",
                ),
            ),
        ),
    ),
)

_READINESS: Final = Row(
    title="Ready for the next one?",
    panels=(
        Panel(
            title="Load over what is left without the largest site",
            unit="percentunit",
            width=6,
            description="Over 1: the others could not carry it. Sites need `spec.capacity.maxConcurrent`.",
            queries=(
                Query(
                    expr=f"{_IN_PROGRESS} / (sum({_CAPACITY}) - max({_CAPACITY}) > 0)",
                    legend="needed",
                ),
            ),
            steps=(Step(colour="transparent"), Step(colour="red", value=1)),
        ),
        Panel(
            title="Endpoints that take requests",
            width=6,
            description="By pool and site. A standby with none is no standby.",
            queries=(
                Query(
                    expr=(
                        "sum by (pool, site) (max by (pool, site, health) "
                        f'(pointsman_endpoints{{{OF_POOL_SITE},health!~"UNHEALTHY|DRAINING"}}))'
                    ),
                    legend="{{pool}} {{site}}",
                ),
            ),
        ),
        Panel(
            title="Since the last failover",
            kind="bargauge",
            width=6,
            unit="s",
            description="From each site, a real one or a drill; without a bar: never. Drill every 90 days.",
            queries=(
                Query(
                    expr=f"time() - (max by (policy, site) (pointsman_failover_last_timestamp_seconds{{{_PS}}}) > 0)",
                    legend="{{policy}} {{site}}",
                ),
            ),
            steps=(Step(colour="green"), Step(colour="red", value=7_776_000)),
        ),
        Panel(
            title="Draining",
            kind="stat",
            width=6,
            description="Sites that get no new requests because somebody said so.",
            queries=(Query(expr='max by (site) (pointsman_site_draining{site=~"$site"})', legend="{{site}}"),),
            mappings=(("0", "in use", "green"), ("1", "draining", "orange")),
        ),
    ),
)

FAILOVER: Final = Dashboard(
    uid="pointsman-failover",
    title="Pointsman: failover and disaster recovery",
    description="States of sites, evidence, recovery times, readiness.",
    variables=(
        GATEWAY,
        POOL,
        SITE,
        Variable(name="policy", metric="pointsman_failover_site_state", label="policy"),
    ),
    annotations=(
        Annotation(
            name="switches",
            expr=f"{_SWITCHES} - ({_SWITCHES_BEFORE} or 0 * {_SWITCHES}) > 0",
            title="{{policy}} left {{site}} ({{trigger}})",
            colour="red",
        ),
    ),
    rows=(_STATE, _EVIDENCE, _RECOVERY, _READINESS),
)
