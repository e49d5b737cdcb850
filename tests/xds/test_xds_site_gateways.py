"""A site behind its gateway in Envoy's configuration: TLS of its own, and probes that go no further."""

from __future__ import annotations

from envoy.config.endpoint.v3 import endpoint_components_pb2, endpoint_pb2
from envoy.extensions.transport_sockets.tls.v3 import tls_pb2

from pointsman.core.model import Endpoint, Hop, Pool, SiteGroup, UpstreamTls
from pointsman.xds.generate.clusters import pool_cluster
from pointsman.xds.generate.endpoints import GroupPart, group_part, load_assignment
from pointsman.xds.generate.options import BuildOptions

NEAR = SiteGroup(
    site="east", priority=0, weight=1, endpoints=(Endpoint(name="a", address="10.0.0.1", port=8000, site="east"),)
)
GATEWAY = Endpoint(name="gateway-west", address="192.0.2.9", port=443, site="west")
TLS = UpstreamTls(server_name="gw.west.example", ca_file="/etc/ca.pem")


def pool(hop: Hop | None) -> Pool:
    west = SiteGroup(site="west", priority=1, weight=1, endpoints=(GATEWAY,), hop=hop)
    return Pool(name="n/all:import", groups=(NEAR, west))


def test_only_the_gateway_speaks_tls_and_its_name_is_checked() -> None:
    cluster = pool_cluster(pool(Hop(tls=TLS)), BuildOptions())
    [match] = cluster.transport_socket_matches
    assert match.match.fields["site"].string_value == "west"
    context = tls_pb2.UpstreamTlsContext.FromString(match.transport_socket.typed_config.value)
    assert context.sni == "gw.west.example"
    validation = context.common_tls_context.validation_context
    assert validation.trusted_ca.filename == "/etc/ca.pem"
    assert [name.matcher.exact for name in validation.match_typed_subject_alt_names] == ["gw.west.example"]
    assert not pool_cluster(pool(Hop()), BuildOptions()).transport_socket_matches


def test_probes_of_a_pool_with_a_gateway_say_that_they_came_through_one() -> None:
    for hop, expected in ((Hop(), ["x-pointsman-hops"]), (None, [])):
        check = pool_cluster(pool(hop), BuildOptions()).health_checks[0].http_health_check
        assert [option.header.key for option in check.request_headers_to_add] == expected
        assert check.host == "all-import.n"


def test_a_changed_hop_makes_the_endpoints_anew() -> None:
    first = group_part(pool(Hop(tls=TLS)).groups[1], 0, {})
    host = _host(pool(Hop(tls=TLS, probed=False)), first)
    assert host.metadata.filter_metadata["envoy.transport_socket_match"].fields["site"].string_value == "west"
    assert host.endpoint.health_check_config.hostname == "gw.west.example"
    assert host.endpoint.health_check_config.disable_active_health_check
    plain = _host(pool(Hop()), first)
    assert "envoy.transport_socket_match" not in plain.metadata.filter_metadata


def _host(changed: Pool, before: GroupPart) -> endpoint_components_pb2.LbEndpoint:
    one = Pool(name=changed.name, groups=changed.groups[1:])
    body = load_assignment(one, lambda group, priority: group_part(group, priority, {}, before))
    return endpoint_pb2.ClusterLoadAssignment.FromString(body).endpoints[0].lb_endpoints[0]
