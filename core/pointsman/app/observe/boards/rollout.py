"""Rollouts: what is wanted, what is observed, and what the analysis says."""

from __future__ import annotations

from typing import Final

from pointsman.app.observe.boards.parts import W
from pointsman.app.observe.grafana import Annotation, Dashboard, Panel, Query, Row, Step, Variable

_P: Final = 'policy=~"$policy"'
_ARM: Final = (
    f"on (rule, pool) group_left (policy, arm) max by (rule, pool, policy, arm) (pointsman_rollout_arm{{{_P}}})"
)
_OBSERVED: Final = f"policy:pointsman_rollout_observed_weight:ratio5m{{{_P}}}"
_COUNT: Final = f"policy:pointsman_rollout_requests:increase5m{{{_P}}}"
_BAND: Final = f"1.96 * sqrt({_OBSERVED} * (1 - {_OBSERVED}) / ({_COUNT} > 0))"


def _by_arm(metric: str, where: str = "") -> str:
    return f"sum by (policy, arm) (rate({metric}{{{where}}}[{W}]) * {_ARM})"


def _quantile(share: float, metric: str) -> Query:
    expr = f"histogram_quantile({share:g}, sum by (policy, arm, le) (rate({metric}_bucket[{W}]) * {_ARM}))"
    return Query(expr=expr, legend=f"{{{{policy}}}} {{{{arm}}}} p{share * 100:g}")


_FAILED: Final = _by_arm("pointsman_arm_requests_total", 'outcome="server_error"')

_STATE: Final = Row(
    title="State",
    panels=(
        Panel(
            title="Phase",
            kind="state-timeline",
            width=16,
            height=7,
            description="Which phase each rollout was in. Holding: it would go on, but lacks data or capacity.",
            queries=(
                Query(expr=f"max by (policy, phase) (pointsman_rollout_phase{{{_P}}})", legend="{{policy}} {{phase}}"),
            ),
            mappings=(("0", " ", "transparent"), ("1", "now", "blue")),
        ),
        Panel(
            title="Step",
            width=4,
            height=7,
            kind="stat",
            minimum=None,
            description="Number of the step, from 1.",
            queries=(Query(expr=f"max by (policy) (pointsman_rollout_step{{{_P}}})", legend="{{policy}}"),),
        ),
        Panel(
            title="In this phase and step for",
            kind="stat",
            unit="s",
            width=4,
            height=7,
            description="Time since phase or step last changed.",
            queries=(
                Query(
                    expr=f"time() - max by (policy) (pointsman_rollout_changed_timestamp_seconds{{{_P}}})",
                    legend="{{policy}}",
                ),
            ),
        ),
    ),
)

_WEIGHT: Final = Row(
    title="Weight",
    panels=(
        Panel(
            title="Canary's share: wanted and observed",
            unit="percentunit",
            width=12,
            height=9,
            maximum=1.0,
            description=(
                "Observed over five minutes, with the band in which 95 % of such samples lie. While the weight changes "
                "the observed share follows late."
            ),
            queries=(
                Query(expr=f"max by (policy) (pointsman_rollout_weight_ratio{{{_P}}})", legend="{{policy}} wanted"),
                Query(expr=_OBSERVED, legend="{{policy}} observed"),
                Query(expr=f"clamp_min({_OBSERVED} - {_BAND}, 0)", legend="{{policy}} lower bound"),
                Query(expr=f"clamp_max({_OBSERVED} + {_BAND}, 1)", legend="{{policy}} upper bound"),
            ),
        ),
        Panel(
            title="Requests by arm",
            unit="reqps",
            width=6,
            height=9,
            description="Requests that ended.",
            queries=(Query(expr=_by_arm("pointsman_arm_requests_total"), legend="{{policy}} {{arm}}"),),
        ),
        Panel(
            title="Acknowledged by all gateways",
            kind="stat",
            width=6,
            height=9,
            description="Whether every connected gateway has the present weight.",
            queries=(Query(expr=f"max by (policy) (pointsman_rollout_programmed{{{_P}}})", legend="{{policy}}"),),
            mappings=(("0", "not yet", "orange"), ("1", "yes", "green")),
        ),
    ),
)

_COMPARISON: Final = Row(
    title="Canary and stable",
    panels=(
        Panel(
            title="Server errors",
            unit="percentunit",
            description="Share of requests that ended with a server error.",
            queries=(
                Query(
                    expr=(
                        f"({_FAILED} or "
                        f"0 * {_by_arm('pointsman_arm_requests_total')}) / "
                        f"({_by_arm('pointsman_arm_requests_total')} > 0)"
                    ),
                    legend="{{policy}} {{arm}}",
                ),
            ),
        ),
        Panel(
            title="Time to first token",
            unit="s",
            description="Histogram quantiles; the analysis itself compares single requests.",
            queries=(_quantile(0.5, "pointsman_arm_ttft_seconds"), _quantile(0.95, "pointsman_arm_ttft_seconds")),
        ),
        Panel(
            title="Whole request",
            unit="s",
            description="From begin to end.",
            queries=(
                _quantile(0.5, "pointsman_arm_duration_seconds"),
                _quantile(0.95, "pointsman_arm_duration_seconds"),
            ),
        ),
    ),
)

_ANALYSIS: Final = Row(
    title="Analysis",
    panels=(
        Panel(
            title="Verdicts",
            kind="state-timeline",
            minimum=None,
            description="Of each check: good, bad, or not yet known.",
            queries=(
                Query(expr=f"max by (policy, check) (pointsman_rollout_check{{{_P}}})", legend="{{policy}} {{check}}"),
            ),
            mappings=(("-1", "bad", "red"), ("0", "not known", "yellow"), ("1", "good", "green")),
        ),
        Panel(
            title="What the checks measure",
            kind="table",
            description="Fractions or milliseconds, as the check's metric is.",
            queries=(
                Query(
                    expr=f"max by (policy, check, arm) (pointsman_rollout_check_value{{{_P}}})",
                    instant=True,
                    format="table",
                ),
            ),
        ),
        Panel(
            title="Checks without data",
            description="1 while a check has nothing to judge by.",
            queries=(
                Query(
                    expr=f"max by (policy, check) (pointsman_rollout_check_no_data{{{_P}}})",
                    legend="{{policy}} {{check}}",
                ),
            ),
            maximum=1.0,
            steps=(Step(colour="transparent"), Step(colour="red", value=1)),
        ),
        Panel(
            title="Events",
            kind="table",
            width=24,
            height=6,
            description="What happened since the control plane started; the audit log says when, why and by whom.",
            queries=(
                Query(
                    expr=f"sum by (policy, event) (pointsman_rollout_events_total{{{_P}}}) > 0",
                    instant=True,
                    format="table",
                ),
            ),
        ),
    ),
)

ROLLOUT: Final = Dashboard(
    uid="pointsman-rollout",
    title="Pointsman: rollouts",
    description="Weights wanted and observed, canary against stable, verdicts.",
    variables=(Variable(name="policy", metric="pointsman_rollout_steps", label="policy"),),
    annotations=(
        Annotation(
            name="steps",
            expr=f"changes(pointsman_rollout_changed_timestamp_seconds{{{_P}}}[{W}]) > 0",
            title="{{policy}}: phase or step changed",
        ),
    ),
    rows=(_STATE, _WEIGHT, _COMPARISON, _ANALYSIS),
)
