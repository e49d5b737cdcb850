"""Prometheus rules as typed values: recordings that dashboards and alerts share, and the alerts.

`python -m pointsman.app.observe` writes them for Prometheus. Each alert has a page in docs/runbooks.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final

Json = dict[str, Any]

RUNBOOKS: Final = "docs/runbooks"
"""Where alerts say that their pages are, unless `--runbooks` says otherwise: in a clone of the repository. A link to
click on needs an address where they are published."""

_POOLS: Final = 'cluster!~"pointsman-.*"'
"""The clusters of gateways that are pools, not the control plane or the picker."""


class Severity(Enum):
    """How soon somebody has to look."""

    PAGE = "page"  # users are hit, or nothing stands between them and the next fault
    TICKET = "ticket"  # in working hours
    INFO = "info"  # worth knowing


@dataclass(frozen=True, slots=True, kw_only=True)
class Recording:
    """A series that Prometheus computes; the name says level:metric:operation."""

    name: str
    expr: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Alert:
    """An alert. `hold` is for how long `expr` must hold, in Prometheus' notation. Templates may stand in `summary`."""

    name: str
    expr: str
    severity: Severity
    summary: str
    hold: str = "0s"

    @property
    def runbook(self) -> str:
        """Name of its page."""
        return f"{self.name}.md"


_ROLLOUT_ARM: Final = (
    "on (rule, pool) group_left (policy, arm) max by (rule, pool, policy, arm) (pointsman_rollout_arm)"
)

RECORDINGS: Final = (
    Recording(
        name="site:pointsman_upstream_requests:rate1m",
        expr=f"sum by (site) (rate(pointsman_upstream_requests_total{{{_POOLS}}}[1m]))",
    ),
    Recording(
        name="pool:pointsman_requests:rate5m",
        expr='sum by (pool) (rate(pointsman_arm_requests_total{outcome!="none"}[5m]))',
    ),
    Recording(
        name="pool:pointsman_errors:ratio5m",
        expr=(
            '(sum by (pool) (rate(pointsman_arm_requests_total{outcome="server_error"}[5m])) or '
            "0 * pool:pointsman_requests:rate5m) / (pool:pointsman_requests:rate5m > 0)"
        ),
    ),
    Recording(
        name="pool:pointsman_ttft_seconds:p95_5m",
        expr="histogram_quantile(0.95, sum by (pool, le) (rate(pointsman_ttft_seconds_bucket[5m])))",
    ),
    Recording(
        name="pool:pointsman_retries:ratio5m",
        expr=(
            "(sum by (pool) (rate(pointsman_upstream_retries_total[5m])) or 0 * pool:pointsman_requests:rate5m) / "
            "(pool:pointsman_requests:rate5m > 0)"
        ),
    ),
    Recording(
        name="pointsman_added_latency_seconds:p99_5m",
        expr="histogram_quantile(0.99, sum by (le) (rate(pointsman_added_latency_seconds_bucket[5m])))",
    ),
    Recording(
        name="pointsman_unpicked:ratio5m",
        expr=(
            'sum(rate(pointsman_feedback_total{kind="unmatched"}[5m])) / '
            '(sum(rate(pointsman_feedback_total{kind!="progress"}[5m])) > 0)'
        ),
    ),
    Recording(
        name="policy_arm:pointsman_rollout_requests:increase5m",
        expr=(
            'sum by (policy, arm) (increase(pointsman_arm_requests_total{outcome!="none"}[5m]) * ' + _ROLLOUT_ARM + ")"
        ),
    ),
    Recording(
        name="policy:pointsman_rollout_requests:increase5m",
        expr="sum by (policy) (policy_arm:pointsman_rollout_requests:increase5m)",
    ),
    Recording(
        name="policy:pointsman_rollout_observed_weight:ratio5m",
        expr=(
            'sum by (policy) (policy_arm:pointsman_rollout_requests:increase5m{arm="canary"}) / '
            "(policy:pointsman_rollout_requests:increase5m > 0)"
        ),
    ),
)

_AWAY: Final = 'state=~"Failed|HoldDown|Ramping|Suspect|Drained|Evacuated"'
"""Not at work as the manifests mean it; a standby that waits is."""
_OBSERVED: Final = "policy:pointsman_rollout_observed_weight:ratio5m"
_WANTED: Final = "max by (policy) (pointsman_rollout_weight_ratio)"
_SETTLED: Final = "(time() - max by (policy) (pointsman_rollout_changed_timestamp_seconds) > 330)"
_RTO: Final = "pointsman_failover_rto_seconds"
_USABLE: Final = 'max by (pool, site, health) (pointsman_endpoints{health!~"UNHEALTHY|DRAINING"})'
_CAPACITY: Final = "max by (site) (pointsman_site_capacity_requests)"
_RUNNING: Final = f"sum(pointsman_upstream_requests_in_progress{{{_POOLS}}})"


def _appeared(series: str, window: str) -> str:
    """A counter grew in the window, also by being there for the first time, which `increase` does not see."""
    return f"(increase({series}[{window}]) > 0 or ({series} > 0 unless {series} offset {window}))"


ALERTS: Final = (
    Alert(
        name="PointsmanSiteFailed",
        expr='max by (policy, site) (pointsman_failover_site_state{state="Failed"}) == 1',
        hold="10s",
        severity=Severity.PAGE,
        summary="Site {{ $labels.site }} has failed; {{ $labels.policy }} sends its requests elsewhere.",
    ),
    Alert(
        name="PointsmanFailoverActive",
        expr=f"max by (policy, site) (pointsman_failover_site_state{{{_AWAY}}}) == 1",
        hold="1h",
        severity=Severity.TICKET,
        summary="Site {{ $labels.site }} has not been at work for {{ $labels.policy }} for an hour.",
    ),
    Alert(
        name="PointsmanFailoverFlapping",
        expr="sum by (policy, site) (increase(pointsman_failover_switches_total[1h])) > 2",
        severity=Severity.TICKET,
        summary="{{ $labels.policy }} left {{ $labels.site }} {{ $value | humanize }} times within an hour.",
    ),
    Alert(
        name="PointsmanRecoverySlow",
        expr=(
            f"sum by (policy) (increase({_RTO}_count[15m])) - "
            f'sum by (policy) (increase({_RTO}_bucket{{le=~"30|30[.]0"}}[15m])) > 0.5'
        ),
        severity=Severity.TICKET,
        summary="A failover of {{ $labels.policy }} took more than 30 s; the objective is 120 s.",
    ),
    Alert(
        name="PointsmanFailoverLostRequests",
        expr="sum by (policy) (increase(pointsman_failover_requests_failed_total[5m])) > 0",
        severity=Severity.TICKET,
        summary="{{ $value | humanize }} requests failed between a fault and the failover of {{ $labels.policy }}.",
    ),
    Alert(
        name="PointsmanStandbyNotReady",
        expr=(f"sum by (pool, site) ({_USABLE}) == 0 unless on (site) max by (site) (pointsman_site_draining) == 1"),
        hold="1m",
        severity=Severity.PAGE,
        summary="Pool {{ $labels.pool }} has no endpoint at {{ $labels.site }} that takes requests.",
    ),
    Alert(
        name="PointsmanStandbyUndersized",
        expr=f"{_RUNNING} > (sum({_CAPACITY}) - max({_CAPACITY})) and count({_CAPACITY}) > 1",
        hold="10m",
        severity=Severity.TICKET,
        summary="{{ $value | humanize }} requests run: without the largest site the others could not carry them.",
    ),
    Alert(
        name="PointsmanDrillOverdue",
        expr="time() - max by (policy, site) (pointsman_failover_last_timestamp_seconds) > 90 * 86400",
        hold="1h",
        severity=Severity.INFO,
        summary="No failover from site {{ $labels.site }} has been tried within 90 days ({{ $labels.policy }}).",
    ),
    Alert(
        name="PointsmanSiteFull",
        expr=(f"sum by (site) (pointsman_upstream_requests_in_progress{{{_POOLS}}}) / on (site) {_CAPACITY} > 0.9"),
        hold="5m",
        severity=Severity.TICKET,
        summary="Site {{ $labels.site }} runs at {{ $value | humanizePercentage }} of its declared capacity.",
    ),
    Alert(
        name="PointsmanErrors",
        expr="pool:pointsman_errors:ratio5m > 0.01 and pool:pointsman_requests:rate5m > 0.1",
        hold="1m",
        severity=Severity.PAGE,
        summary="{{ $value | humanizePercentage }} of the requests to {{ $labels.pool }} fail, after retries.",
    ),
    Alert(
        name="PointsmanRetries",
        expr="pool:pointsman_retries:ratio5m > 0.1",
        hold="2m",
        severity=Severity.TICKET,
        summary="Requests to {{ $labels.pool }} need {{ $value | humanizePercentage }} further attempts.",
    ),
    Alert(
        name="PointsmanNoEndpoint",
        expr='sum by (pool) (rate(pointsman_picks_total{outcome="no-ready-endpoint"}[1m])) > 0',
        hold="15s",
        severity=Severity.PAGE,
        summary="Requests to {{ $labels.pool }} are refused: no endpoint is ready.",
    ),
    Alert(
        name="PointsmanResidencyRejects",
        expr="sum by (pool) " + _appeared('pointsman_picks_total{outcome="residency"}', "5m"),
        severity=Severity.TICKET,
        summary="Requests to {{ $labels.pool }} were refused: no endpoint within their jurisdiction.",
    ),
    Alert(
        name="PointsmanRolloutStuck",
        expr=(
            'max by (policy) (pointsman_rollout_phase{phase=~"Holding|Progressing|Promoting|Aborting"}) == 1 and '
            "on (policy) time() - max by (policy) (pointsman_rollout_changed_timestamp_seconds) > 7200"
        ),
        severity=Severity.TICKET,
        summary="Rollout {{ $labels.policy }} has been in one step and phase for two hours.",
    ),
    Alert(
        name="PointsmanRolloutAborted",
        expr=(
            'max by (policy) (pointsman_rollout_phase{phase=~"Aborting|Aborted"}) == 1 and '
            "on (policy) time() - max by (policy) (pointsman_rollout_changed_timestamp_seconds) < 3600"
        ),
        severity=Severity.TICKET,
        summary="Rollout {{ $labels.policy }} was aborted within the last hour: the canary gets nothing.",
    ),
    Alert(
        name="PointsmanAbortLate",
        expr=(
            'max by (policy) (pointsman_rollout_phase{phase=~"Aborting|Aborted"}) == 1 and '
            "on (policy) min by (policy) (pointsman_rollout_programmed) == 0"
        ),
        hold="10s",
        severity=Severity.PAGE,
        summary="Rollout {{ $labels.policy }} was aborted, and some gateway still sends requests to the canary.",
    ),
    Alert(
        name="PointsmanAnalysisNoData",
        expr=(
            "max by (policy, check) (pointsman_rollout_check_no_data) == 1 and on (policy) "
            'max by (policy) (pointsman_rollout_phase{phase=~"Holding|Progressing|Promoting|Paused"}) == 1'
        ),
        hold="5m",
        severity=Severity.TICKET,
        summary="Check {{ $labels.check }} of {{ $labels.policy }} has had nothing to judge by for five minutes.",
    ),
    Alert(
        name="PointsmanWeightSkew",
        expr=(
            f"abs({_OBSERVED} - on (policy) {_WANTED}) > 0.002 + 3 * sqrt({_WANTED} * (1 - {_WANTED}) / "
            "on (policy) policy:pointsman_rollout_requests:increase5m) and on (policy) "
            f"policy:pointsman_rollout_requests:increase5m > 500 and on (policy) {_SETTLED}"
        ),
        hold="15m",
        severity=Severity.TICKET,
        summary="The canary's share of {{ $labels.policy }} is {{ $value | humanizePercentage }} off what is wanted.",
    ),
    Alert(
        name="PointsmanXdsNack",
        expr="sum by (gateway, type) (pointsman_xds_rejected_resources) > 0",
        hold="10s",
        severity=Severity.PAGE,
        summary="A proxy of {{ $labels.gateway }} refuses {{ $value }} resources ({{ $labels.type }}).",
    ),
    Alert(
        name="PointsmanGatewayStale",
        expr='sum by (gateway) (pointsman_xds_node_stands{stand="pending"}) > 0',
        hold="1m",
        severity=Severity.PAGE,
        summary="{{ $value }} proxies of {{ $labels.gateway }} have not acknowledged their configuration for a minute.",
    ),
    Alert(
        name="PointsmanGatewayGone",
        expr="sum by (gateway) (pointsman_xds_nodes) == 0",
        hold="1m",
        severity=Severity.PAGE,
        summary="No proxy of gateway {{ $labels.gateway }} is connected.",
    ),
    Alert(
        name="PointsmanPlanRefused",
        expr="max by (gateway) (pointsman_xds_snapshot_refused) == 1",
        severity=Severity.PAGE,
        summary="The configuration of {{ $labels.gateway }} is inconsistent; it is served the last good one.",
    ),
    Alert(
        name="PointsmanConfigRefused",
        expr="min by (instance) (pointsman_config_reload_success) == 0",
        hold="1m",
        severity=Severity.TICKET,
        summary="{{ $labels.instance }} refuses the configuration files as they are; the last good ones are in force.",
    ),
    Alert(
        name="PointsmanPickSlow",
        expr="pointsman_added_latency_seconds:p99_5m > 0.1",
        hold="5m",
        severity=Severity.TICKET,
        summary="Picks add {{ $value | humanizeDuration }} to one request in a hundred; past 0.2 s none is awaited.",
    ),
    Alert(
        name="PointsmanPickerBypassed",
        expr="pointsman_unpicked:ratio5m > 0.1",
        hold="2m",
        severity=Severity.TICKET,
        summary="{{ $value | humanizePercentage }} of the requests were served without a pick.",
    ),
    Alert(
        name="PointsmanMetricsStale",
        expr="max by (pool, site) (pointsman_engine_stale_endpoints) > 0",
        hold="1m",
        severity=Severity.TICKET,
        summary="{{ $value }} endpoints of {{ $labels.pool }} at {{ $labels.site }} cannot be scraped.",
    ),
    Alert(
        name="PointsmanCertificateExpiry",
        expr="min by (instance, file) (pointsman_tls_certificate_expiry_timestamp_seconds) - time() < 14 * 86400",
        severity=Severity.TICKET,
        summary="The {{ $labels.file }} certificate of {{ $labels.instance }} ends in {{ $value | humanizeDuration }}.",
    ),
    Alert(
        name="PointsmanCertificateRefused",
        expr="min by (instance) (pointsman_tls_reload_success) == 0",
        hold="1m",
        severity=Severity.TICKET,
        summary="{{ $labels.instance }} refuses the TLS files as they are; the last good ones are in force.",
    ),
    Alert(
        name="PointsmanPartEnded",
        expr="min by (instance, task) (pointsman_background_task_up) == 0",
        severity=Severity.PAGE,
        summary="The part '{{ $labels.task }}' of {{ $labels.instance }} has ended by an error.",
    ),
    Alert(
        name="PointsmanDown",
        expr="absent(pointsman_build_info)",
        hold="30s",
        severity=Severity.PAGE,
        summary="No control plane answers Prometheus. Gateways go on with what they have.",
    ),
)


def rule_files(runbooks: str = RUNBOOKS) -> dict[str, Json]:
    """File name → what Prometheus is to read."""
    return {
        "recordings.yaml": _group("pointsman-recordings", [{"record": r.name, "expr": r.expr} for r in RECORDINGS]),
        "alerts.yaml": _group("pointsman-alerts", [_alert_json(alert, runbooks) for alert in ALERTS]),
    }


def _group(name: str, rules: Iterable[Json]) -> Json:
    return {"groups": [{"name": name, "rules": list(rules)}]}


def _alert_json(alert: Alert, runbooks: str) -> Json:
    return {
        "alert": alert.name,
        "expr": alert.expr,
        "for": alert.hold,
        "labels": {"severity": alert.severity.value},
        "annotations": {"summary": alert.summary, "runbook_url": f"{runbooks.rstrip('/')}/{alert.runbook}"},
    }
