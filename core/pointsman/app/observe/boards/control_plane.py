"""The control plane and the pickers: what gateways have, how fast it gets there, and whether we are well."""

from __future__ import annotations

from typing import Final

from pointsman.app.observe.boards.parts import GATEWAY, POOL, W, quantiles, rate, ratio
from pointsman.app.observe.grafana import Dashboard, Panel, Query, Row, Step

_OF_GATEWAY: Final = 'gateway=~"$gateway"'
_GOOD_BAD: Final = (("0", "no", "red"), ("1", "yes", "green"))

_CONFIGURATION: Final = Row(
    title="Configuration",
    panels=(
        Panel(
            title="Files in force",
            kind="stat",
            width=4,
            height=6,
            description="Whether the files as they are now are in force. If not the last good ones are.",
            queries=(Query(expr="min by (instance) (pointsman_config_reload_success)", legend="{{instance}}"),),
            mappings=_GOOD_BAD,
        ),
        Panel(
            title="Age of the configuration",
            kind="stat",
            unit="s",
            width=4,
            height=6,
            description="Time since the files in force were read.",
            queries=(
                Query(
                    expr="time() - max by (instance) (pointsman_config_last_success_timestamp_seconds)",
                    legend="{{instance}}",
                ),
            ),
        ),
        Panel(
            title="Times read",
            width=8,
            height=6,
            description="How often the files were read, by outcome.",
            queries=(Query(expr="sum by (result) (pointsman_config_reloads_total)", legend="{{result}}"),),
        ),
        Panel(
            title="Certificates end in",
            kind="bargauge",
            unit="s",
            width=8,
            height=6,
            description="The first certificate of each TLS file that ends.",
            queries=(
                Query(
                    expr="min by (file) (pointsman_tls_certificate_expiry_timestamp_seconds) - time()",
                    legend="{{file}}",
                ),
            ),
            steps=(Step(colour="red"), Step(colour="orange", value=604_800), Step(colour="green", value=1_209_600)),
        ),
    ),
)

_GATEWAYS: Final = Row(
    title="Gateways",
    panels=(
        Panel(
            title="How they stand",
            stack=True,
            description="Connected proxies: have all, wait for an answer, or refused something.",
            queries=(
                Query(
                    expr=f"sum by (gateway, stand) (pointsman_xds_node_stands{{{_OF_GATEWAY}}})",
                    legend="{{gateway}} {{stand}}",
                ),
            ),
        ),
        Panel(
            title="ACK and NACK",
            unit="reqps",
            description="What proxies answered, by type of resource.",
            queries=(
                Query(
                    expr=f'sum by (type, kind) (rate(pointsman_xds_requests_total{{kind=~"ack|nack"}}[{W}]))',
                    legend="{{type}} {{kind}}",
                ),
            ),
        ),
        Panel(
            title="From push to ACK",
            unit="s",
            description="Time from sending a response to its acknowledgement. The bar for a weight change is 0.1 s.",
            queries=quantiles("pointsman_xds_push_duration_seconds", (0.5, 0.99), "type"),
        ),
        Panel(
            title="Rejected resources",
            description="That a connected proxy does not have because it refused them.",
            queries=(
                Query(expr=f"sum(pointsman_xds_rejected_resources{{{_OF_GATEWAY}}}) or vector(0)", legend="rejected"),
            ),
            steps=(Step(colour="transparent"), Step(colour="red", value=1)),
        ),
        Panel(
            title="Plans refused as inconsistent",
            description="1 while the last good state is served to a gateway.",
            queries=(
                Query(expr=f"max by (gateway) (pointsman_xds_snapshot_refused{{{_OF_GATEWAY}}})", legend="{{gateway}}"),
            ),
            maximum=1.0,
        ),
        Panel(
            title="Time to build",
            unit="s",
            description="Of all gateways that changed.",
            queries=quantiles("pointsman_xds_build_duration_seconds", (0.5, 0.99)),
        ),
        Panel(
            title="Streams",
            description="Open xDS streams, by protocol.",
            queries=(Query(expr="sum by (protocol) (pointsman_xds_streams)", legend="{{protocol}}"),),
        ),
        Panel(
            title="Bytes sent",
            unit="Bps",
            description="Of responses, by type of resource.",
            queries=(Query(expr=rate("pointsman_xds_response_bytes_total", "type"), legend="{{type}}"),),
        ),
        Panel(
            title="Strangers",
            description="Streams of proxies that belong to no gateway, or said they are one that they are not.",
            queries=(
                Query(expr="sum(pointsman_xds_unknown_nodes_total)", legend="unknown"),
                Query(expr="sum(pointsman_xds_denied_nodes_total)", legend="denied"),
            ),
        ),
    ),
)

_PICKER: Final = Row(
    title="Picker",
    panels=(
        Panel(
            title="Time for a pick",
            unit="s",
            description="From a request's arrival at the picker to its answer.",
            queries=quantiles("pointsman_pick_duration_seconds", (0.5, 0.99)),
        ),
        Panel(
            title="Added at the gateway",
            unit="s",
            description="From a request's last byte in to its first one to the endpoint. Past 0.2 s Envoy goes on.",
            queries=quantiles("pointsman_added_latency_seconds", (0.5, 0.99)),
            steps=(Step(colour="transparent"), Step(colour="red", value=0.2)),
        ),
        Panel(
            title="Requests without a pick",
            unit="percentunit",
            maximum=1.0,
            description="Access log entries that belong to no pick: failed open, or without a body to read.",
            queries=(
                Query(
                    expr=ratio(
                        f'sum(rate(pointsman_feedback_total{{kind="unmatched"}}[{W}]))',
                        f'sum(rate(pointsman_feedback_total{{kind!="progress"}}[{W}]))',
                    ),
                    legend="without",
                ),
            ),
        ),
        Panel(
            title="Prefix index",
            description="Entries.",
            queries=(Query(expr="sum(pointsman_picker_prefix_blocks)", legend="blocks"),),
        ),
        Panel(
            title="Trouble",
            description=(
                "Per second: streams that broke the protocol, bodies without a readable prompt, picks whose end was "
                "never heard."
            ),
            queries=(
                Query(expr=f"sum(rate(pointsman_extproc_stream_errors_total[{W}]))", legend="stream errors"),
                Query(expr=f"sum(rate(pointsman_unreadable_bodies_total[{W}]))", legend="unreadable bodies"),
                Query(expr=f"sum(rate(pointsman_picker_expired_accounts_total[{W}]))", legend="never ended"),
            ),
        ),
        Panel(
            title="Endpoints without a fresh scrape",
            description="Their queue counts as unknown, not as empty.",
            queries=(
                Query(
                    expr='sum by (pool) (max by (pool, site) (pointsman_engine_stale_endpoints{pool=~"$pool"}))',
                    legend="{{pool}}",
                ),
            ),
            steps=(Step(colour="transparent"), Step(colour="red", value=1)),
        ),
    ),
)

_PROCESS: Final = Row(
    title="Process",
    panels=(
        Panel(
            title="CPU",
            unit="percentunit",
            description="Cores in use by the control plane's process; picker workers are processes of their own.",
            queries=(
                Query(
                    expr=(
                        f"sum by (instance) (rate(process_cpu_seconds_total[{W}]) and on (instance) "
                        "pointsman_build_info)"
                    ),
                    legend="{{instance}}",
                ),
            ),
        ),
        Panel(
            title="Memory",
            unit="bytes",
            description="Resident.",
            queries=(
                Query(
                    expr="max by (instance) (process_resident_memory_bytes and on (instance) pointsman_build_info)",
                    legend="{{instance}}",
                ),
            ),
        ),
        Panel(
            title="Parts that run",
            kind="table",
            description="Each has to run for as long as the process does: 0 is a defect.",
            queries=(
                Query(expr="min by (instance, task) (pointsman_background_task_up)", instant=True, format="table"),
            ),
        ),
        Panel(
            title="Versions",
            kind="table",
            width=24,
            height=5,
            description="Of the control planes that answer.",
            queries=(Query(expr="max by (instance, version) (pointsman_build_info)", instant=True, format="table"),),
        ),
    ),
)

CONTROL_PLANE: Final = Dashboard(
    uid="pointsman-control-plane",
    title="Pointsman: control plane",
    description="What gateways have, how fast it gets there, whether we are well.",
    variables=(GATEWAY, POOL),
    rows=(_CONFIGURATION, _GATEWAYS, _PICKER, _PROCESS),
)
