"""Routes to rules: weights, precedence, host names, filters."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from config.config_fixtures import FLEET, problems, spoiled
from config.plan_fixtures import backend, hosts_of, order_of, plan_of, route, rule, rules_of, without_routes
from pointsman.core.compile.weights import normalise
from pointsman.core.config.attachment import common_hosts, covers, specificity
from pointsman.core.model import TOTAL_WEIGHT, HeaderEdit, MatchType, PickProfile


class TestWeights:
    @given(st.lists(st.integers(0, 1_000_000), min_size=1, max_size=16))
    def test_shares_add_up_and_stay_close(self, weights: list[int]) -> None:
        shares, total = normalise(weights), sum(weights)
        assert sum(shares) == (TOTAL_WEIGHT if total else 0)
        for weight, share in zip(weights, shares, strict=True):
            assert share >= 0
            assert abs(share * total - weight * TOTAL_WEIGHT) < max(total, 1)
            assert weight or not share

    @pytest.mark.parametrize(
        ("weights", "shares"),
        [
            ([5, 95], (500, 9500)),
            ([1, 1, 1], (3334, 3333, 3333)),
            ([0, 7], (0, 10_000)),
            ([0, 0], (0, 0)),
            ([1, 9999], (1, 9999)),
            ([2, 1], (6667, 3333)),
            ([], ()),
        ],
    )
    def test_largest_remainder(self, weights: list[int], shares: tuple[int, ...]) -> None:
        assert normalise(weights) == shares

    @given(st.integers(0, 10_000), st.integers(0, 10_000))
    def test_a_growing_canary_never_loses_share(self, one: int, other: int) -> None:
        low, high = sorted((one, other))
        assert normalise([low, 10_000 - low])[0] <= normalise([high, 10_000 - high])[0]

    def test_arms_keep_the_order_they_are_written_in(self) -> None:
        (only,) = rules_of(FLEET)
        assert [(arm.pool, arm.weight) for arm in only.arms] == [("default/canary", 500), ("default/stable", 9500)]

    def test_an_arm_of_weight_zero_stays_and_its_pool_is_known_to_the_gateway(self) -> None:
        text = spoiled(("weight: 5\n", "weight: 0\n"))
        assert [arm.weight for arm in rules_of(text)[0].arms] == [0, 10_000]
        assert "default/canary" in [pool.name for pool in plan_of(text).gateways[0].pools]

    def test_no_weight_at_all_answers_503_and_no_backend_500(self) -> None:
        text = without_routes() + route("none", "rules: [{matches: [{path: {value: /a}}], backendRefs: []}]")
        text += route("zero", f"rules: [{{backendRefs: [{backend('stable', ', weight: 0')}]}}]")
        nothing, zero = rules_of(text)
        assert (nothing.direct_status, nothing.direct_reason, nothing.arms) == (500, "no-backend", ())
        assert (zero.direct_status, zero.direct_reason) == (503, "no-weight")
        assert [arm.weight for arm in zero.arms] == [0]
        assert nothing.profile is zero.profile is PickProfile.NONE


class TestPrecedence:
    @pytest.mark.parametrize(
        ("first", "second"),
        [
            ("{path: {type: Exact, value: /a}}", "{path: {type: PathPrefix, value: /a/b/c/d}}"),
            ("{path: {type: RegularExpression, value: /a}}", "{path: {type: PathPrefix, value: /a/b/c/d}}"),
            ("{path: {type: Exact, value: /a}}", "{path: {type: RegularExpression, value: /a/b/c/d}}"),
            ("{path: {value: /a/b}}", "{path: {value: /a}, method: GET, headers: [{name: x, value: y}]}"),
            ("{method: GET}", "{headers: [{name: x, value: y}, {name: z, value: y}]}"),
            ("{headers: [{name: x, value: y}, {name: z, value: y}]}", "{headers: [{name: a, value: y}]}"),
            ("{headers: [{name: x, value: y}]}", "{queryParams: [{name: a, value: y}, {name: b, value: y}]}"),
            ("{queryParams: [{name: a, value: y}, {name: b, value: y}]}", "{queryParams: [{name: a, value: y}]}"),
        ],
    )
    def test_the_more_specific_match_comes_first(self, first: str, second: str) -> None:
        for one, other in (("a", "b"), ("b", "a")):
            text = without_routes() + route(one, f"rules: [{rule(first)}]") + route(other, f"rules: [{rule(second)}]")
            assert order_of(text) == [f"{one}/0/0", f"{other}/0/0"]
        text = without_routes() + route("r", f"rules: [{rule(second)}, {rule(first)}]")
        assert order_of(text) == ["r/1/0", "r/0/0"]

    def test_ties_go_to_the_oldest_then_to_the_name_then_to_the_order_written(self) -> None:
        text = without_routes() + route("c", f"rules: [{rule()}]", created="2026-05-01T12:00:00+02:00")
        text += route("b", f"rules: [{rule()}]", created="2026-05-01T11:00:00Z")
        text += route("z", f"rules: [{rule('{}, {}')}, {rule()}]") + route("a", f"rules: [{rule()}]")
        assert order_of(text) == ["c/0/0", "b/0/0", "a/0/0", "z/0/0", "z/0/1", "z/1/0"]

    def test_several_matches_become_several_rules(self) -> None:
        text = without_routes() + route("r", f"rules: [{rule('{path: {value: /a}}, {path: {value: /bb}}')}]")
        assert order_of(text) == ["r/0/1", "r/0/0"]

    def test_a_rule_is_named_by_its_name_but_never_like_a_number(self) -> None:
        rules = rule(more=", name: main") + ", " + rule(more=", name: '0'")
        assert order_of(without_routes() + route("r", f"rules: [{rules}]")) == ["r/main/0", "r/1/0"]

    MATCHES = st.lists(
        st.tuples(
            st.sampled_from(["Exact", "PathPrefix", "RegularExpression"]),
            st.sampled_from(["/", "/a", "/a/b", "/c/d"]),
            st.booleans(),
            st.integers(0, 2),
            st.integers(0, 2),
        ),
        min_size=1,
        max_size=8,
    )

    @given(MATCHES, st.randoms(use_true_random=False))
    def test_the_order_is_total_and_does_not_depend_on_the_order_of_routes(self, matches: Any, shuffler: Any) -> None:
        routes = []
        for index, (kind, path, method, headers, query) in enumerate(matches):
            parts = [f"path: {{type: {kind}, value: {path}}}"] + ["method: POST"] * method
            parts.append("headers: [" + ", ".join(f"{{name: h{i}, value: a}}" for i in range(headers)) + "]")
            parts.append("queryParams: [" + ", ".join(f"{{name: q{i}, value: a}}" for i in range(query)) + "]")
            routes.append(route(f"r{index}", f"rules: [{rule('{' + ', '.join(parts) + '}')}]"))
        expected = order_of(without_routes() + "".join(routes))
        assert sorted(expected) == sorted(f"r{index}/0/0" for index in range(len(matches)))
        shuffler.shuffle(routes)
        assert order_of(without_routes() + "".join(routes)) == expected


class TestHosts:
    @pytest.mark.parametrize(
        ("listener", "hosts", "common"),
        [
            ("", (), ("*",)),
            ("", ("a.example",), ("a.example",)),
            ("a.example", (), ("a.example",)),
            ("*.example", ("a.example", "b.test"), ("a.example",)),
            ("a.example", ("*.example",), ("a.example",)),
            ("*.b.example", ("*.example",), ("*.b.example",)),
            ("*.example", ("*.b.example",), ("*.b.example",)),
            ("*.example", ("example",), ()),
            ("a.example", ("b.example",), ()),
        ],
    )
    def test_hosts_in_common(self, listener: str, hosts: tuple[str, ...], common: tuple[str, ...]) -> None:
        assert common_hosts(listener, hosts) == common

    def test_a_wildcard_covers_any_number_of_labels_but_not_none(self) -> None:
        assert covers("*.example", "a.b.example")
        assert covers("*.example", "*.b.example")
        assert not covers("*.example", "example")
        assert not covers("*.example", "aexample")
        assert not covers("*.example", "*")
        assert covers("*", "*.example")

    def test_names_are_more_specific_than_wildcards_however_long(self) -> None:
        ordered = ["a.example", "b.test", "*.long.long.example", "*.example", "*"]
        assert sorted(ordered, key=specificity, reverse=True) == ordered

    def test_the_closest_host_comes_first_and_falls_through_to_wider_routes(self) -> None:
        text = without_routes()
        text += route("any", f"rules: [{rule('{path: {type: Exact, value: /x}}')}]")
        text += route("wild", f"hostnames: ['*.example'], rules: [{rule('{path: {value: /long/prefix}}')}]")
        text += route("name", f"hostnames: [a.example], rules: [{rule()}]")
        found = {host.domains: [one.route.rpartition("/")[2] for one in host.rules] for host in hosts_of(plan_of(text))}
        assert found == {
            ("a.example",): ["name", "wild", "any"],
            ("*.example",): ["wild", "any"],
            ("*",): ["any"],
        }

    def test_of_the_hosts_of_a_route_the_closest_counts(self) -> None:
        text = without_routes() + route("z", f"hostnames: ['*.example', a.example], rules: [{rule()}]")
        text += route("a", f"hostnames: ['*.example'], rules: [{rule()}]")
        found = {host.domains: [one.route.rpartition("/")[2] for one in host.rules] for host in hosts_of(plan_of(text))}
        assert found == {("a.example",): ["z", "a"], ("*.example",): ["a", "z"]}

    def test_hosts_with_the_same_rules_share_a_virtual_host(self) -> None:
        text = without_routes() + route("r", f"hostnames: [b.example, a.example, long.example], rules: [{rule()}]")
        (host,) = hosts_of(plan_of(text))
        assert host.domains == ("long.example", "a.example", "b.example")
        assert host.name == "long.example"

    def test_listeners_of_one_port_are_isolated(self) -> None:
        more = "  - name: named\n    port: 8080\n    protocol: HTTP\n    hostname: '*.example'\n"
        text = without_routes(spoiled(("  - name: grpc\n", more + "  - name: grpc\n")))
        text += route("any", f"hostnames: [a.example, b.test], rules: [{rule()}]")
        hosts = {host.domains: [one.route for one in host.rules] for host in hosts_of(plan_of(text))}
        assert hosts == {("b.test",): ["HTTPRoute/default/any"], ("*.example",): []}
        text += route("named", f"hostnames: [a.example], rules: [{rule()}]").replace("sectionName: http", "port: 8080")
        hosts = {host.domains: [one.route for one in host.rules] for host in hosts_of(plan_of(text))}
        assert hosts[("a.example",)] == ["HTTPRoute/default/named"]

    def test_a_route_without_section_is_served_on_every_listener_that_takes_it(self) -> None:
        kinds = "    protocol: HTTP\n    allowedRoutes: {kinds: [{kind: GRPCRoute}]}\n---"
        text = spoiled(("    protocol: HTTP\n---", kinds), ("    sectionName: http\n", ""))
        plan = plan_of(text)
        assert [one.route for host in hosts_of(plan, 8080) for one in host.rules] == ["HTTPRoute/default/chat"]
        assert [one.route for host in hosts_of(plan, 8081) for one in host.rules] == ["GRPCRoute/default/generate"]

    def test_routes_of_other_namespaces_come_where_they_are_let_in(self) -> None:
        let_in = "protocol: HTTP\n    allowedRoutes: {namespaces: {from: All}}"
        grant = """---
apiVersion: gateway.networking.k8s.io/v1beta1
kind: ReferenceGrant
metadata: {name: g}
spec:
  from: [{group: gateway.networking.k8s.io, kind: HTTPRoute, namespace: team}]
  to: [{group: inference.networking.k8s.io, kind: InferencePool}]
"""
        foreign = route("x", f"rules: [{rule()}]").replace("name: x", "name: x, namespace: team")
        foreign = foreign.replace("name: main", "name: main, namespace: default")
        foreign = foreign.replace("name: stable", "name: stable, namespace: default")
        assert problems(without_routes() + foreign + grant) == [
            "fleet.yaml:80: spec.parentRefs[0]: no listener of Gateway default/main takes this route "
            "(listener http: it allows routes of namespace default only)"
        ]
        text = without_routes(spoiled(("protocol: HTTP", let_in))) + foreign
        assert len(problems(text)) == 1
        (only,) = rules_of(text + grant)
        assert (only.route, only.arms[0].pool) == ("HTTPRoute/team/x", "default/stable")


class TestRules:
    def test_everything_a_rule_may_hold(self) -> None:
        match = (
            "{path: {type: Exact, value: /v1/x}, method: POST, "
            "headers: [{name: X-Variant, value: a}, {name: y, type: RegularExpression, value: b+}], "
            "queryParams: [{name: Q, value: c}]}"
        )
        edit = "{set: [{name: X-A, value: '1 %'}], add: [{name: X-B, value: '2'}], remove: [X-C]}"
        filters = f"filters: [{{type: RequestHeaderModifier, requestHeaderModifier: {edit}}}]"
        on_arm = f"filters: [{{type: ResponseHeaderModifier, responseHeaderModifier: {edit}}}]"
        text = without_routes() + route(
            "r",
            f"rules: [{{matches: [{match}], {filters}, timeouts: {{request: 1m30s500ms}}, "
            f"backendRefs: [{backend('stable', ', ' + on_arm)}]}}]",
        )
        (only,) = rules_of(text)
        edited = HeaderEdit(set=(("x-a", "1 %"),), add=(("x-b", "2"),), remove=("x-c",))
        assert only.match.path.value == "/v1/x"
        assert only.match.method == "POST"
        assert [(h.type, h.name, h.value) for h in only.match.headers] == [
            (MatchType.EXACT, "x-variant", "a"),
            (MatchType.REGEX, "y", "b+"),
        ]
        assert [(q.name, q.value) for q in only.match.query] == [("Q", "c")]
        assert (only.request_headers, only.response_headers) == (edited, HeaderEdit())
        assert (only.arms[0].request_headers, only.arms[0].response_headers) == (HeaderEdit(), edited)
        assert only.timeout_ms == 90_500

    @pytest.mark.parametrize(("written", "idle_ms"), [("10s", 300_000), ("0s", 0), ("30m", 1_800_000)])
    def test_a_long_time_for_a_request_is_not_cut_short_by_silence(self, written: str, idle_ms: int) -> None:
        text = without_routes() + route(
            "r", f"rules: [{{timeouts: {{request: {written}}}, backendRefs: [{backend('stable')}]}}]"
        )
        (only,) = rules_of(text)
        assert only.idle_timeout_ms == idle_ms

    @pytest.mark.parametrize(("written", "compiled"), [("/", "/"), ("/v1/", "/v1"), ("/v1", "/v1")])
    def test_prefixes_are_whole_segments(self, written: str, compiled: str) -> None:
        text = without_routes() + route("r", f"rules: [{rule(f'{{path: {{value: {written}}}}}')}]")
        assert rules_of(text)[0].match.path.value == compiled

    @pytest.mark.parametrize(
        ("method", "profile"),
        [("", "body"), ("POST", "body"), ("PUT", "body"), ("PATCH", "body"), ("GET", "none"), ("DELETE", "none")],
    )
    def test_only_requests_with_a_body_ask_the_picker_with_it(self, method: str, profile: str) -> None:
        match = f"{{method: {method}}}" if method else "{}"
        text = without_routes() + route("r", f"rules: [{rule(match)}]")
        assert rules_of(text)[0].profile is PickProfile(profile)

    @pytest.mark.parametrize(
        ("match", "kind", "path"),
        [
            ("{}", MatchType.PREFIX, "/"),
            ("{method: {service: a.B}}", MatchType.PREFIX, "/a.B"),
            ("{method: {service: a.B, method: C}}", MatchType.EXACT, "/a.B/C"),
            ("{method: {method: C}}", MatchType.REGEX, "/[^/]+/(?:C)"),
            ("{method: {type: RegularExpression, service: 'a|b'}}", MatchType.REGEX, "/(?:a|b)/[^/]+"),
            ("{method: {type: RegularExpression, service: a, method: b.}}", MatchType.REGEX, "/(?:a)/(?:b.)"),
        ],
    )
    def test_grpc_methods_are_paths_and_are_picked_by_their_headers(
        self, match: str, kind: MatchType, path: str
    ) -> None:
        text = FLEET.replace("    - method: {service: sim.v1.Generate}", f"    - {match}")
        (host,) = hosts_of(plan_of(text), 8081)
        assert (host.rules[0].match.path.type, host.rules[0].match.path.value) == (kind, path)
        assert host.rules[0].profile is PickProfile.HEADERS

    def test_grpc_precedence_is_service_then_method_then_headers(self) -> None:
        matches = [
            "{}",
            "{method: {method: LongMethodName}}",
            "{method: {service: a.B}, headers: [{name: x, value: y}]}",
            "{method: {service: a.B, method: C}}",
            "{method: {service: a.Longer}}",
        ]
        text = FLEET.replace("    - method: {service: sim.v1.Generate}", "".join(f"    - {m}\n" for m in matches)[:-1])
        (host,) = hosts_of(plan_of(text), 8081)
        assert [one.name[-1] for one in host.rules] == ["4", "3", "2", "1", "0"]
