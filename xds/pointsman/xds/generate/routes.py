"""Route configurations: one per listener, its rules in the order that the Plan gives them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Final

from envoy.config.route.v3 import route_components_pb2, route_pb2
from envoy.extensions.filters.http.buffer.v3 import buffer_pb2
from envoy.extensions.filters.http.ext_proc.v3 import ext_proc_pb2, processing_mode_pb2
from envoy.extensions.retry.host.previous_hosts.v3 import previous_hosts_pb2
from envoy.extensions.retry.priority.previous_priorities.v3 import previous_priorities_config_pb2
from envoy.type.matcher.v3 import regex_pb2, string_pb2
from envoy.type.v3 import percent_pb2
from google.protobuf import any_pb2

from pointsman.core import wire
from pointsman.core.model import (
    FailureMode,
    Gateway,
    HeaderEdit,
    Listener,
    MatchType,
    Mirror,
    PickProfile,
    Pool,
    RouteMatch,
    Rule,
    StringMatch,
    VirtualHost,
    WeightedPool,
)
from pointsman.xds.generate.header_edits import collide, then
from pointsman.xds.generate.options import BuildOptions
from pointsman.xds.generate.pieces import GATEWAY_ERROR, any_of, embedded, header_options, ms, set_header, u32

EXT_PROC: Final = "envoy.filters.http.ext_proc"
EXT_PROC_CLOSED: Final = "pointsman.ext_proc_closed"
"""The same filter for pools that fail closed: see `listeners`."""

WHOLE_BODY: Final = "pointsman.whole_body"
BUFFER: Final = "envoy.filters.http.buffer"
"""Two buffer filters, before and behind ext_proc: see `listeners`."""

_CONFIG_HOSTS: Final = route_pb2.RouteConfiguration.VIRTUAL_HOSTS_FIELD_NUMBER

VARIANT_NAMESPACE: Final = "pointsman"
VARIANT_KEY: Final = "variant"
"""Route metadata of rules whose arms are variants: an answer that no endpoint could give says so."""

HEADERS_ONLY: Final = processing_mode_pb2.ProcessingMode(
    request_header_mode=processing_mode_pb2.ProcessingMode.SEND,
    response_header_mode=processing_mode_pb2.ProcessingMode.SKIP,
    request_body_mode=processing_mode_pb2.ProcessingMode.NONE,
    response_body_mode=processing_mode_pb2.ProcessingMode.NONE,
    request_trailer_mode=processing_mode_pb2.ProcessingMode.SKIP,
    response_trailer_mode=processing_mode_pb2.ProcessingMode.SKIP,
)
"""The headers profile of ADR 0002: for requests that have no JSON body or may not wait for its end."""


def route_config_name(gateway: Gateway, listener: Listener) -> str:
    """Name of a listener's route configuration; it depends on nothing that changes at run time."""
    return f"{gateway.name}/{listener.name}"


RouteParts = Mapping[str, tuple[object, bytes]]
"""Rule name → what its route was made from, and the route as a serialised `VirtualHost` that holds nothing else."""


def route_parts(listener: Listener, gateway: Gateway, options: BuildOptions, before: RouteParts) -> RouteParts:
    """The routes of a listener. What is the same in `before`, earlier parts of this listener, is taken from there: a
    changed weight costs one route, however many there are."""
    pools = {pool.name: pool for pool in gateway.pools}
    parts: dict[str, tuple[object, bytes]] = {}
    for rule in (rule for host in listener.hosts for rule in host.rules):
        used = [(pool.cluster_name, pool.failure_mode) for name in rule.pools() if (pool := pools.get(name))]
        inputs = (rule, options, used)
        known = before.get(rule.name)
        parts[rule.name] = known if known and known[0] == inputs else (inputs, _encode(rule, pools, options))
    return parts


def route_config(gateway: Gateway, listener: Listener, parts: RouteParts) -> bytes:
    """The serialised `RouteConfiguration` of a listener: all its virtual hosts.

    What depends on weights, matches or pools stands here and nowhere else.
    """
    config = route_pb2.RouteConfiguration(
        name=route_config_name(gateway, listener),
        ignore_port_in_host_matching=True,
    )
    hosts = [embedded(_CONFIG_HOSTS, _virtual_host(host, parts)) for host in listener.hosts]
    return b"".join([config.SerializeToString(deterministic=True), *hosts])


def clusters_of(listener: Listener) -> list[str]:
    """Names of the pools that the rules of a listener use."""
    return [pool for host in listener.hosts for rule in host.rules if _answer(rule) is None for pool in rule.pools()]


def _virtual_host(host: VirtualHost, parts: RouteParts) -> bytes:
    head = route_components_pb2.VirtualHost(name=host.name, domains=host.domains, include_request_attempt_count=True)
    return b"".join([head.SerializeToString(deterministic=True), *(parts[rule.name][1] for rule in host.rules)])


def _encode(rule: Rule, pools: Mapping[str, Pool], options: BuildOptions) -> bytes:
    host = route_components_pb2.VirtualHost()
    _fill_route(host.routes.add(), rule, pools, options)
    return host.SerializeToString(deterministic=True)


def _answer(rule: Rule) -> tuple[int, str] | None:
    """Status and reason when the rule answers by itself, None when it forwards."""
    if rule.direct_status or not rule.arms:
        return rule.direct_status or 500, rule.direct_reason or "no backend"
    if not any(arm.weight for arm in rule.arms):
        return 503, "all weights are zero"
    return None


def _fill_route(
    route: route_components_pb2.Route, rule: Rule, pools: Mapping[str, Pool], options: BuildOptions
) -> None:
    route.name = rule.name
    _fill_match(route.match, rule)
    rule = _arms_last(rule)
    route.request_headers_to_add.extend(header_options(rule.request_headers))
    route.request_headers_to_remove.extend(rule.request_headers.remove)
    route.response_headers_to_add.extend(header_options(rule.response_headers))
    route.response_headers_to_remove.extend(rule.response_headers.remove)
    answer = _answer(rule)
    if answer is not None:
        _fill_answer(route, *answer)
        return
    _fill_action(route.route, rule, pools, options)
    if rule.variant:
        route.metadata.filter_metadata[VARIANT_NAMESPACE].update({VARIANT_KEY: True})
    if rule.profile is PickProfile.BODY:
        # A retry replays the body from this buffer; without the limit Envoy gives up the retry past 1 MiB.
        route.request_body_buffer_limit.value = options.max_prompt_bytes
        return
    for name in (WHOLE_BODY, BUFFER):
        route.typed_per_filter_config[name].CopyFrom(any_of(buffer_pb2.BufferPerRoute(disabled=True)))
    if rule.profile is PickProfile.HEADERS:
        overrides = ext_proc_pb2.ExtProcOverrides(processing_mode=HEADERS_ONLY)
        route.typed_per_filter_config[EXT_PROC].CopyFrom(any_of(ext_proc_pb2.ExtProcPerRoute(overrides=overrides)))
    else:
        route.typed_per_filter_config[EXT_PROC].CopyFrom(any_of(ext_proc_pb2.ExtProcPerRoute(disabled=True)))


def _arms_last(rule: Rule) -> Rule:
    """The rule with its edits of the request given to its arms, where one of these touches the same header."""
    if not collide(rule.request_headers, (arm.request_headers for arm in rule.arms)):
        return rule
    arms = (replace(arm, request_headers=then(rule.request_headers, arm.request_headers)) for arm in rule.arms)
    return replace(rule, request_headers=HeaderEdit(), arms=tuple(arms))


def _fill_match(match: route_components_pb2.RouteMatch, rule: Rule) -> None:
    parts: RouteMatch = rule.match
    path = parts.path
    if path.type is MatchType.EXACT:
        match.path = path.value
    elif path.type is MatchType.REGEX:
        match.safe_regex.regex = path.value
    elif stripped := path.value.rstrip("/"):
        match.path_separated_prefix = stripped
    else:
        match.prefix = "/"
    if parts.method:
        match.headers.add(name=":method", string_match=string_pb2.StringMatcher(exact=parts.method))
    for header in parts.headers:
        if header.type is MatchType.PRESENT:
            match.headers.add(name=header.name, present_match=True, invert_match=header.invert)
        else:
            match.headers.add(name=header.name, string_match=_string_match(header), invert_match=header.invert)
    for parameter in parts.query:
        match.query_parameters.add(name=parameter.name, string_match=_string_match(parameter))
    if is_grpc(rule):
        match.grpc.SetInParent()


def is_grpc(rule: Rule) -> bool:
    """Whether the rule comes from a GRPCRoute, which only speaks for gRPC requests."""
    return rule.route.startswith("GRPCRoute/")


def _string_match(match: StringMatch) -> string_pb2.StringMatcher:
    if match.type is MatchType.REGEX:
        return string_pb2.StringMatcher(safe_regex=regex_pb2.RegexMatcher(regex=match.value))
    if match.type is MatchType.PREFIX:
        return string_pb2.StringMatcher(prefix=match.value)
    return string_pb2.StringMatcher(exact=match.value)


def _fill_answer(route: route_components_pb2.Route, status: int, reason: str) -> None:
    body = {"error": {"message": reason, "type": GATEWAY_ERROR, "param": None, "code": status}}
    route.direct_response.status = status
    route.direct_response.body.inline_string = json.dumps(body)
    # Only headers that are not there yet are filled in by the local reply configuration of the listener.
    route.response_headers_to_add.append(set_header(wire.REASON_HEADER, reason))
    route.response_headers_to_add.append(set_header("content-type", "application/json"))


def _fill_action(
    action: route_components_pb2.RouteAction, rule: Rule, pools: Mapping[str, Pool], options: BuildOptions
) -> None:
    weighted = action.weighted_clusters
    for arm in rule.arms:
        _fill_arm(weighted.clusters.add(), arm, rule.profile, pools.get(arm.pool))
    if rule.hash_header or rule.hash_cookie:
        fill_hash_policy(action.hash_policy.add(), rule)
        weighted.use_hash_policy.value = True
    if rule.mirror is not None and rule.mirror.share:
        _fill_mirror(action.request_mirror_policies.add(), rule.mirror, pools)
    action.timeout.CopyFrom(ms(rule.timeout_ms))
    action.idle_timeout.CopyFrom(ms(rule.idle_timeout_ms))
    if is_grpc(rule):
        # 0: the client's grpc-timeout holds, whatever it is.
        action.max_stream_duration.grpc_timeout_header_max.CopyFrom(ms(0))
    action.retry_policy.CopyFrom(_retry_policy(rule, options))


def fill_hash_policy(policy: route_components_pb2.RouteAction.HashPolicy, rule: Rule) -> None:
    """What decides the arm of a sticky split: `pointsman.core.buckets` computes the same.

    Envoy hashes the value of a header with xxHash64 and takes it modulo the sum of the weights; without the header the
    arm is random. It knows no salt, but a header may be rewritten before it is hashed: the salt is put in front, and a
    cookie is cut out of its header. (Cookies that are hashed as such can't be rewritten.) A salted cookie split takes
    the whole cookie header of clients that have other cookies only.
    """
    if rule.hash_cookie and not rule.hash_salt:
        policy.cookie.name = rule.hash_cookie
        return
    policy.header.header_name = rule.hash_header or "cookie"
    if not rule.hash_salt:
        return
    rewrite = policy.header.regex_rewrite
    if rule.hash_cookie:
        rewrite.pattern.regex = rf"^(?:.*;\s*)?{re.escape(rule.hash_cookie)}=\"?([^;\"]*)\"?(?:;.*)?$"
        rewrite.substitution = rf"{rule.hash_salt}:\1"
    else:
        rewrite.pattern.regex = "^.*$"
        rewrite.substitution = rf"{rule.hash_salt}:\0"


def _fill_arm(
    cluster: route_components_pb2.WeightedCluster.ClusterWeight,
    arm: WeightedPool,
    profile: PickProfile,
    pool: Pool | None,
) -> None:
    cluster.name = pool.cluster_name if pool else arm.pool
    cluster.weight.CopyFrom(u32(arm.weight))
    _fill_edits(cluster, arm.request_headers, arm.response_headers)
    if pool is not None and pool.failure_mode is FailureMode.FAIL_CLOSE and profile is not PickProfile.NONE:
        off = ext_proc_pb2.ExtProcPerRoute(disabled=True)
        cluster.typed_per_filter_config[EXT_PROC].CopyFrom(any_of(off))
        on = ext_proc_pb2.ExtProcPerRoute(overrides=ext_proc_pb2.ExtProcOverrides())
        if profile is PickProfile.HEADERS:
            on.overrides.processing_mode.CopyFrom(HEADERS_ONLY)
        cluster.typed_per_filter_config[EXT_PROC_CLOSED].CopyFrom(any_of(on))


def _fill_mirror(
    policy: route_components_pb2.RouteAction.RequestMirrorPolicy, mirror: Mirror, pools: Mapping[str, Pool]
) -> None:
    """Envoy sends a copy and drops the answer; it asks no picker for it, so the pool's own balancing places it."""
    pool = pools.get(mirror.pool)
    policy.cluster = pool.cluster_name if pool else mirror.pool
    policy.runtime_fraction.default_value.numerator = mirror.share
    policy.runtime_fraction.default_value.denominator = percent_pb2.FractionalPercent.TEN_THOUSAND
    policy.disable_shadow_host_suffix_append = True


def _fill_edits(
    cluster: route_components_pb2.WeightedCluster.ClusterWeight, request: HeaderEdit, response: HeaderEdit
) -> None:
    cluster.request_headers_to_add.extend(header_options(request))
    cluster.request_headers_to_remove.extend(request.remove)
    cluster.response_headers_to_add.extend(header_options(response))
    cluster.response_headers_to_remove.extend(response.remove)


_PREVIOUS_HOSTS: Final[any_pb2.Any] = any_of(previous_hosts_pb2.PreviousHostsPredicate())
_PREVIOUS_PRIORITIES: Final[any_pb2.Any] = any_of(
    previous_priorities_config_pb2.PreviousPrioritiesConfig(update_frequency=1)
)


def _retry_policy(rule: Rule, options: BuildOptions) -> route_components_pb2.RetryPolicy:
    """Retries before the first byte of an answer, on another host, in another site if there is one (D7).

    A streamed request can't be replayed once it has begun, so only the body profile retries after a reset.
    """
    conditions = ["connect-failure", "refused-stream", "reset-before-request", "retriable-status-codes"]
    terms = rule.retry or options.retry()
    if terms.on_reset and rule.profile is PickProfile.BODY:
        conditions.append("reset")
    if is_grpc(rule):
        conditions.append("unavailable")
    policy = route_components_pb2.RetryPolicy(
        retry_on=",".join(conditions),
        retriable_status_codes=[503],
        num_retries=u32(terms.num_retries),
        # How often a host that was tried is drawn again before Envoy takes it after all.
        host_selection_retry_max_attempts=5,
        retry_back_off=route_components_pb2.RetryPolicy.RetryBackOff(base_interval=ms(25), max_interval=ms(250)),
    )
    if terms.first_byte_timeout_ms:
        # An answer that has begun is not cut by it: Envoy stops this clock at the headers (tried, 1.40).
        policy.per_try_timeout.CopyFrom(ms(terms.first_byte_timeout_ms))
    if terms.stall_timeout_ms:
        policy.per_try_idle_timeout.CopyFrom(ms(terms.stall_timeout_ms))
    policy.retry_host_predicate.add(name="envoy.retry_host_predicates.previous_hosts", typed_config=_PREVIOUS_HOSTS)
    policy.retry_priority.name = "envoy.retry_priorities.previous_priorities"
    policy.retry_priority.typed_config.CopyFrom(_PREVIOUS_PRIORITIES)
    return policy
