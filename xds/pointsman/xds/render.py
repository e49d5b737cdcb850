"""Resources as JSON, for people and for `envoy --mode validate`."""

from __future__ import annotations

from typing import Any, Final

from envoy.config.cluster.v3 import cluster_pb2
from envoy.config.endpoint.v3 import endpoint_pb2
from envoy.config.listener.v3 import listener_pb2
from envoy.config.route.v3 import route_pb2
from google.protobuf import json_format
from google.protobuf.message import Message

from pointsman.core import wire
from pointsman.xds.resources import (
    CLUSTER,
    EMPTY,
    ENDPOINT,
    LISTENER,
    PUSH_ORDER,
    ROUTE,
    SHORT_NAMES,
    Resource,
    Resources,
)

Json = dict[str, Any]

MESSAGES: Final[dict[str, type[Message]]] = {
    CLUSTER: cluster_pb2.Cluster,
    ENDPOINT: endpoint_pb2.ClusterLoadAssignment,
    LISTENER: listener_pb2.Listener,
    ROUTE: route_pb2.RouteConfiguration,
}

_OVERRIDE_HOST: Final = "/envoy.extensions.load_balancing_policies.override_host.v3.OverrideHost"
_HCM: Final = "/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"


def render(resources: Resources) -> Json:
    """All resources: `{"CDS": [{"name", "version", "resource"}, …], "EDS": …}`, in push order and sorted by name."""
    return {
        SHORT_NAMES[type_url]: [
            {"name": r.name, "version": r.version, "resource": render_resource(r)}
            for r in resources.get(type_url, EMPTY).values()
        ]
        for type_url in PUSH_ORDER
        if resources.get(type_url)
    }


def render_resource(resource: Resource) -> Json:
    """One resource in protobuf's JSON form, with the field names of the .proto files."""
    message = MESSAGES[resource.type_url].FromString(resource.body)
    return _complete(json_format.MessageToDict(message, preserving_proto_field_name=True))


def static_bootstrap(resources: Resources, node_id: str = "static", node_cluster: str = "static") -> Json:
    """A complete static Envoy configuration with the same content: routes inlined, assignments inside the clusters.

    For `envoy --mode validate` and for reading; a gateway that runs gets its resources over xDS.
    """
    routes = {name: render_resource(r) for name, r in resources.get(ROUTE, EMPTY).items()}
    assignments = {name: render_resource(r) for name, r in resources.get(ENDPOINT, EMPTY).items()}
    clusters = [_static_cluster(render_resource(r), assignments) for r in resources.get(CLUSTER, EMPTY).values()]
    listeners = [_static_listener(render_resource(r), routes) for r in resources.get(LISTENER, EMPTY).values()]
    return {
        "node": {"id": node_id, "cluster": node_cluster},
        "static_resources": {"listeners": listeners, "clusters": clusters},
    }


def _static_cluster(cluster: Json, assignments: dict[str, Json]) -> Json:
    if cluster.get("type") != "EDS":
        return cluster
    static = {key: value for key, value in cluster.items() if key != "eds_cluster_config"}
    name = cluster["name"]
    return static | {"type": "STATIC", "load_assignment": assignments.get(name, {"cluster_name": name})}


def _static_listener(listener: Json, routes: dict[str, Json]) -> Json:
    for chain in listener["filter_chains"]:
        for network_filter in chain["filters"]:
            config = network_filter["typed_config"]
            if config["@type"].endswith(_HCM) and "rds" in config:
                config["route_config"] = routes[config.pop("rds")["route_config_name"]]
    return listener


def _complete(value: Any) -> Any:
    """Put back the one field that protobuf's JSON leaves out because xds-protos does not know it (see `clusters`)."""
    if isinstance(value, dict):
        done = {key: _complete(item) for key, item in value.items()}
        if str(done.get("@type", "")).endswith(_OVERRIDE_HOST):
            done["selected_host_key"] = {"key": wire.LB_NAMESPACE, "path": [{"key": wire.SERVED_KEY}]}
        return done
    if isinstance(value, list):
        return [_complete(item) for item in value]
    return value
