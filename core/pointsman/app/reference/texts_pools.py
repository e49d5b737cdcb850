"""What the fields of pools, endpoints, sites, fleets and objectives mean."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

TEXTS: Final[Mapping[str, Mapping[str, str]]] = {
    "pool_kinds.InferencePool": {"spec": "Which model servers belong to it and how they are reached."},
    "pool_kinds.InferencePoolSpec": {
        "selector": "Required by the API. In a folder the EndpointSlices that name the pool are its endpoints.",
        "targetPorts": "Ports of each address; each port is an endpoint of its own (data-parallel ranks). For slices "
        "without `ports`.",
        "appProtocol": "HTTP/1.1, or HTTP/2 without TLS (gRPC).",
        "endpointPickerRef": "Who picks; Pointsman does in any case.",
    },
    "pool_kinds.PoolSelector": {"matchLabels": "Labels of the pods; used in Kubernetes only."},
    "pool_kinds.PortNumber": {"number": "The port."},
    "pool_kinds.EndpointPickerRef": {
        "group": "Accepted, not read.",
        "kind": "Accepted, not read.",
        "name": "Accepted, not read.",
        "port": "Accepted, not read.",
        "failureMode": "What happens while no picker answers: `FailOpen`, Envoy balances by itself; `FailClose`, 503. "
        "Without `endpointPickerRef` it is FailOpen.",
    },
    "pool_kinds.EndpointSlice": {
        "addressType": "Of which kind the addresses are.",
        "endpoints": "Model servers.",
        "ports": "Their ports; those of the pool where they are left out.",
    },
    "pool_kinds.SliceEndpoint": {
        "addresses": "One IP address.",
        "conditions": "Whether it may be used.",
        "hostname": "Name of the endpoint where there is no `targetRef`.",
        "nodeName": "Accepted, not read.",
        "zone": "Accepted, not read.",
        "targetRef": "The pod; its name is shown.",
    },
    "pool_kinds.EndpointConditions": {
        "ready": "`false`: no new requests. Ready where it is left out, as Kubernetes says.",
        "serving": "`false` with `terminating`: gone.",
        "terminating": "`true`: no new requests, running ones finish.",
    },
    "pool_kinds.TargetRef": {"name": "Name of the endpoint in status and explanations."},
    "pool_kinds.SlicePort": {
        "name": "Accepted, not read.",
        "port": "The port.",
        "protocol": "TCP.",
        "appProtocol": "Accepted, not read: the pool's holds.",
    },
    "pool_kinds.Site": {"spec": "Where it is, what it carries and costs, whom it may serve."},
    "pool_kinds.SiteSpec": {
        "locality": "Its place, as Envoy's locality.",
        "jurisdictions": "Names for [residency](residency.md), such as `EU`.",
        "capacity": "What it carries.",
        "cost": "What it costs.",
        "state": "`Draining` and `Evacuated`: no new requests; running ones finish.",
        "rttMs": "Round-trip time to other sites in ms; it holds in both directions. The picker adds three of them to "
        "the cost of an endpoint there, and nearer sites take over first.",
        "gateway": "The site is reached through a gateway of its own instead of endpoint by endpoint.",
        "metrics": "Where the control plane of a site behind a gateway shows its load.",
    },
    "pool_kinds.SiteLocality": {
        "region": "Region.",
        "zone": "Zone.",
        "subZone": "Sub-zone of proxies that `pointsman up` starts there; that of endpoints is the site's name.",
        "geo": "Where on Earth; accepted, not read.",
    },
    "pool_kinds.Geo": {"lat": "Degrees north.", "lon": "Degrees east."},
    "pool_kinds.SiteCapacity": {
        "maxConcurrent": "Requests at a time that it carries, 0: not known. A standby never gets more; overflow, "
        "`safety.minFreeCapacity` and `pointsman plan --concurrent` go by it.",
        "gpus": "Number of GPUs; accepted, not read.",
        "weight": "Divides requests between sites of one priority where Envoy balances by itself. 0: by the number of "
        "endpoints.",
    },
    "pool_kinds.SiteCost": {"usdPerGpuHour": "Price of a GPU hour in USD; shown as a metric."},
    "import_kinds.SiteGateway": {
        "address": "Its IP address.",
        "port": "Its port.",
        "tls": "TLS to it; plaintext where it is left out.",
        "probe": "Whether Envoy probes it by the pool's health path.",
    },
    "import_kinds.SiteGatewayTls": {
        "sni": "The name in its certificate.",
        "caFile": "Who issued its certificate (PEM).",
        "certFile": "A certificate that our gateways show (PEM); with `keyFile`.",
        "keyFile": "Its private key (PEM).",
    },
    "import_kinds.SiteMetrics": {
        "url": "The metrics page of its control plane.",
        "tokenFile": "A file on the machine of our control plane with the bearer token of that page.",
    },
    "import_kinds.InferencePoolImport": {"status": "Which clusters export the pool; the API has no spec."},
    "import_kinds.ImportStatus": {"controllers": "Who found the exports."},
    "import_kinds.ImportController": {
        "name": "Name of the multi-cluster controller; not read.",
        "exportingClusters": "Clusters that have the pool.",
    },
    "import_kinds.ExportingCluster": {"name": "Name of the cluster: that of a Site."},
    "fleet_kinds.InferenceFleet": {"spec": "Which sites serve the model."},
    "fleet_kinds.InferenceFleetSpec": {
        "model": "The model; with no `poolRef` the pools of the namespace that serve it are meant.",
        "poolRef": "The pool at selected sites and of members without their own.",
        "clusterSelector": "Sites by their labels.",
        "members": "Sites by name.",
        "appProtocol": "Protocol of all its pools; theirs where it is left out.",
        "residency": "Jurisdictions that a site needs to be of the fleet.",
        "picker": "What happens without a picker.",
    },
    "fleet_kinds.MemberPool": {
        "group": "API group of the kind.",
        "kind": "A pool, or one that other clusters export.",
        "name": "Its name.",
    },
    "fleet_kinds.FleetMember": {
        "site": "Name of the Site.",
        "poolRef": "Its pool, where it is another one.",
        "tier": "Sites of a higher tier serve when none of a lower one can.",
        "weight": "Divides requests between sites of one priority where Envoy balances by itself. 0: by capacity or "
        "the number of endpoints.",
    },
    "fleet_kinds.ClusterSelector": {
        "matchLabels": "Labels that a Site must have.",
        "matchExpressions": "Further conditions, all of which must hold.",
    },
    "fleet_kinds.ClusterExpression": {
        "key": "Name of the label.",
        "operator": "Kubernetes' operators, and `Glob`.",
        "values": "For `In`, `NotIn` and `Glob`.",
    },
    "fleet_kinds.FleetPicker": {"failureMode": "`FailOpen`: Envoy balances by itself; `FailClose`: 503."},
    "failover_kinds.Residency": {"required": "Jurisdictions, all of which a site must have."},
    "objective_kinds.InferenceObjective": {"spec": "What requests that name it can bear."},
    "objective_kinds.InferenceObjectiveSpec": {
        "priority": "Negative: such requests are refused when the pool is full ([picker](picker.md)).",
        "poolRef": "The pool it is for.",
    },
    "objective_kinds.PoolRef": {
        "group": "`inference.networking.k8s.io`.",
        "kind": "`InferencePool`.",
        "name": "Name of a pool in the same namespace.",
    },
    "rewrite_kinds.InferenceModelRewrite": {"spec": "The pool, and what its requests are renamed to."},
    "rewrite_kinds.InferenceModelRewriteSpec": {
        "poolRef": "The pool or fleet whose requests are renamed.",
        "rules": "An exact match comes before a rule without matches, then the older manifest, then the first rule. "
        "One rule of all manifests of a pool may have several targets.",
    },
    "rewrite_kinds.RewritePoolRef": {
        "group": "`pointsman.dev` for an InferenceFleet.",
        "kind": "What it is.",
        "name": "Name in the same namespace. A fleet does not take over the rewrites of its pools.",
    },
    "rewrite_kinds.RewriteRule": {
        "matches": "Any of them may fit; without any the rule holds for every model that is not named elsewhere.",
        "targets": "Several: each is an arm of every HTTPRoute rule that names the pool, in this order (list the "
        "canary first).",
    },
    "rewrite_kinds.RewriteMatch": {"model": "The `model` of a request's body."},
    "rewrite_kinds.ModelMatch": {"type": "`Exact`.", "value": "The name that clients send."},
    "rewrite_kinds.TargetModel": {
        "modelRewrite": "The name that the model servers get.",
        "weight": "Share in relation to the other targets; for all targets of a rule or for none "
        "(then they are equal).",
    },
}
"""Struct → field → meaning."""
