"""For each alert: series that make it fire and series that must not, for `promtool test rules`. One value each 15 s.

Counters grow as `0+6x80`: from 0 by 6, 80 times. What a case does not say is absent.
"""

from __future__ import annotations

from dataclasses import dataclass

Series = dict[str, str]


@dataclass(frozen=True, kw_only=True)
class Case:
    """`at`: when the alert must fire with `fire`, and must be silent with `silent`, in Prometheus' notation."""

    fire: Series
    silent: Series
    at: str = "20m"


def _site(state: str) -> str:
    return f'pointsman_failover_site_state{{policy="p",site="eu",state="{state}"}}'


def _phase(phase: str) -> str:
    return f'pointsman_rollout_phase{{policy="p",phase="{phase}"}}'


CHANGED = 'pointsman_rollout_changed_timestamp_seconds{policy="p"}'
PROGRAMMED = 'pointsman_rollout_programmed{policy="p"}'
WEIGHT = 'pointsman_rollout_weight_ratio{policy="p"}'
ARM = 'pointsman_rollout_arm{policy="p",rule="r",pool="%s",arm="%s"}'
NO_DATA = 'pointsman_rollout_check_no_data{policy="p",check="errors"}'
LAST = 'pointsman_failover_last_timestamp_seconds{policy="p",site="eu"}'
RTO = 'pointsman_failover_rto_seconds_%s{policy="p",trigger="errorRate"%s}'
RUNNING = 'pointsman_upstream_requests_in_progress{gateway="g",cluster="default/a",site="%s"}'
OWN = 'pointsman_upstream_requests_in_progress{gateway="g",cluster="pointsman-xds",site=""}'
CAPACITY = 'pointsman_site_capacity_requests{site="%s"}'
ENDED = 'pointsman_arm_requests_total{rule="r",pool="%s",outcome="%s"}'
PICKS = 'pointsman_picks_total{pool="a",outcome="%s"}'
STANDS = 'pointsman_xds_node_stands{gateway="g",stand="%s"}'
ENDPOINTS = 'pointsman_endpoints{pool="a",site="%s",health="%s"}'
FEEDBACK = 'pointsman_feedback_total{kind="%s"}'
ADDED = 'pointsman_added_latency_seconds_bucket{le="%s"}'
EXPIRY = 'pointsman_tls_certificate_expiry_timestamp_seconds{instance="i",file="server"}'


def _split(canary: str, stable: str, weight: str) -> Series:
    """A rollout with this many requests of each arm in 15 s."""
    return {
        ARM % ("new", "canary"): "1x400",
        ARM % ("old", "stable"): "1x400",
        ENDED % ("new", "ok"): f"0+{canary}x400",
        ENDED % ("old", "ok"): f"0+{stable}x400",
        WEIGHT: f"{weight}x400",
        CHANGED: "0x400",
    }


def _slow(le: str) -> Series:
    """Added latency of which everything lies below `le`."""
    bounds = ("0.05", "0.1", "0.2", "0.5", "+Inf")
    return {ADDED % bound: "0+10x80" if bound == "+Inf" or float(bound) >= float(le) else "0x80" for bound in bounds}


CASES: dict[str, Case] = {
    "PointsmanSiteFailed": Case(
        fire={_site("Failed"): "0x10 1x20", _site("Healthy"): "1x10 0x20"},
        silent={_site("Failed"): "0x40", _site("Suspect"): "1x40"},
        at="5m",
    ),
    "PointsmanFailoverActive": Case(
        fire={_site("HoldDown"): "1x300", _site("Healthy"): "0x300"},
        # Well again in between: it begins to count anew.
        silent={_site("HoldDown"): "1x200 0x4 1x100", _site("Standby"): "0x200 1x4 0x100"},
        at="65m",
    ),
    "PointsmanFailoverFlapping": Case(
        fire={'pointsman_failover_switches_total{policy="p",site="eu",trigger="latency"}': "0+1x5 5x200"},
        silent={'pointsman_failover_switches_total{policy="p",site="eu",trigger="latency"}': "0x8 1x200"},
    ),
    "PointsmanRecoverySlow": Case(
        fire={
            RTO % ("count", ""): "1x8 2x80",
            RTO % ("bucket", ',le="30.0"'): "1x80",
            RTO % ("bucket", ',le="+Inf"'): "1x8 2x80",
        },
        silent={
            RTO % ("count", ""): "1x8 2x80",
            RTO % ("bucket", ',le="30.0"'): "1x8 2x80",
            RTO % ("bucket", ',le="+Inf"'): "1x8 2x80",
        },
        at="10m",
    ),
    "PointsmanFailoverLostRequests": Case(
        fire={'pointsman_failover_requests_failed_total{policy="p"}': "0x20 3x80"},
        silent={'pointsman_failover_requests_failed_total{policy="p"}': "3x80"},
        at="7m",
    ),
    "PointsmanStandbyNotReady": Case(
        fire={ENDPOINTS % ("eu", "HEALTHY"): "2x8 0x80", ENDPOINTS % ("eu", "UNHEALTHY"): "0x8 2x80"},
        silent={
            ENDPOINTS % ("eu", "HEALTHY"): "1x80",
            ENDPOINTS % ("eu", "UNHEALTHY"): "1x80",
            ENDPOINTS % ("us", "HEALTHY"): "0x80",
            ENDPOINTS % ("us", "DRAINING"): "2x80",
            'pointsman_site_draining{site="us"}': "1x80",
        },
    ),
    "PointsmanStandbyUndersized": Case(
        fire={CAPACITY % "eu": "100x80", CAPACITY % "us": "50x80", RUNNING % "eu": "60x80", RUNNING % "us": "1x80"},
        # One site alone has no standby at all; that is another matter.
        silent={CAPACITY % "eu": "100x80", CAPACITY % "us": "80x80", RUNNING % "eu": "60x80", OWN: "500x80"},
    ),
    "PointsmanDrillOverdue": Case(
        # The test's time begins at 0, so the last failover lies before it.
        fire={LAST: f"-{91 * 86_400}x300"},
        silent={LAST: f"-{89 * 86_400}x300"},
        at="65m",
    ),
    "PointsmanSiteFull": Case(
        fire={CAPACITY % "eu": "100x80", RUNNING % "eu": "95x80"},
        silent={CAPACITY % "eu": "100x80", RUNNING % "eu": "80x80", RUNNING % "us": "900x80"},
    ),
    "PointsmanErrors": Case(
        fire={ENDED % ("a", "ok"): "0+90x80", ENDED % ("a", "server_error"): "0+5x80"},
        silent={
            ENDED % ("a", "ok"): "0+990x80",
            ENDED % ("a", "server_error"): "0+5x80",
            ENDED % ("a", "client_error"): "0+100x80",
        },
    ),
    "PointsmanRetries": Case(
        fire={ENDED % ("a", "ok"): "0+100x80", 'pointsman_upstream_retries_total{pool="a"}': "0+20x80"},
        silent={ENDED % ("a", "ok"): "0+100x80", 'pointsman_upstream_retries_total{pool="a"}': "0+5x80"},
    ),
    "PointsmanNoEndpoint": Case(
        fire={PICKS % "no-ready-endpoint": "0+1x80"},
        silent={PICKS % "no-ready-endpoint": "7x80", PICKS % "picked": "0+50x80"},
    ),
    "PointsmanResidencyRejects": Case(
        fire={PICKS % "residency": "_x76 1x4"},  # the first one ever
        silent={PICKS % "residency": "4x80", PICKS % "picked": "0+50x80"},
    ),
    "PointsmanRolloutStuck": Case(
        fire={_phase("Holding"): "1x600", CHANGED: "0x600"},
        silent={_phase("Completed"): "1x600", _phase("Progressing"): "0x600", CHANGED: "0x600"},
        at="125m",
    ),
    "PointsmanRolloutAborted": Case(
        fire={_phase("Aborted"): "1x80", CHANGED: "600x80"},
        silent={_phase("Aborted"): "0x80", _phase("Paused"): "1x80", CHANGED: "600x80"},
    ),
    "PointsmanAbortLate": Case(
        fire={_phase("Aborted"): "1x80", PROGRAMMED: "1x8 0x80"},
        silent={_phase("Aborted"): "1x80", _phase("Progressing"): "0x80", PROGRAMMED: "0x74 1x8"},
    ),
    "PointsmanAnalysisNoData": Case(
        fire={NO_DATA: "1x80", _phase("Progressing"): "1x80"},
        silent={NO_DATA: "1x80", _phase("Completed"): "1x80"},
    ),
    "PointsmanWeightSkew": Case(
        fire=_split("30", "70", "0.2"),
        silent=_split("21", "79", "0.2"),
        at="40m",
    ),
    "PointsmanXdsNack": Case(
        fire={'pointsman_xds_rejected_resources{gateway="g",type="LDS"}': "_x8 1x80"},
        silent={'pointsman_xds_nodes{gateway="g"}': "1x80"},
    ),
    "PointsmanGatewayStale": Case(
        fire={STANDS % "acked": "1x80", STANDS % "pending": "0x8 1x80"},
        silent={STANDS % "acked": "1x80", STANDS % "pending": "0x74 1x1 0x1 1x1 0x1 1x1"},  # each time but for moments
    ),
    "PointsmanGatewayGone": Case(
        fire={'pointsman_xds_nodes{gateway="g"}': "1x8 0x80"},
        silent={
            'pointsman_xds_nodes{gateway="g",instance="a"}': "0x80",
            'pointsman_xds_nodes{gateway="g",instance="b"}': "1x80",
        },
    ),
    "PointsmanPlanRefused": Case(
        fire={'pointsman_xds_snapshot_refused{gateway="g"}': "0x8 1x80"},
        silent={'pointsman_xds_snapshot_refused{gateway="g"}': "1x8 0x80"},
    ),
    "PointsmanConfigRefused": Case(
        fire={'pointsman_config_reload_success{instance="i"}': "1x8 0x80"},
        silent={'pointsman_config_reload_success{instance="i"}': "0x8 1x80"},
    ),
    "PointsmanPickSlow": Case(fire=_slow("0.2"), silent=_slow("0.05")),
    "PointsmanPickerBypassed": Case(
        fire={FEEDBACK % "end": "0+80x80", FEEDBACK % "unmatched": "0+20x80", FEEDBACK % "progress": "0+900x80"},
        silent={FEEDBACK % "end": "0+80x80", FEEDBACK % "unmatched": "0+1x80", FEEDBACK % "progress": "0x80"},
    ),
    "PointsmanMetricsStale": Case(
        fire={'pointsman_engine_stale_endpoints{pool="a",site="eu"}': "0x8 1x80"},
        silent={'pointsman_engine_stale_endpoints{pool="a",site="eu"}': "1x8 0x80"},
    ),
    "PointsmanCertificateExpiry": Case(
        fire={EXPIRY: f"{13 * 86_400}x80"},
        silent={EXPIRY: f"{30 * 86_400}x80"},
    ),
    "PointsmanCertificateRefused": Case(
        fire={'pointsman_tls_reload_success{instance="i"}': "1x8 0x80"},
        silent={'pointsman_tls_reload_success{instance="i"}': "0x8 1x80"},
    ),
    "PointsmanPartEnded": Case(
        fire={'pointsman_background_task_up{instance="i",task="scraper"}': "1x8 0x80"},
        silent={'pointsman_background_task_up{instance="i",task="scraper"}': "1x80"},
    ),
    "PointsmanDown": Case(
        fire={'pointsman_build_info{instance="i",version="1"}': "1x8 stale _x80"},
        silent={'pointsman_build_info{instance="i",version="1"}': "1x80"},
    ),
}
