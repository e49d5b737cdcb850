"""Manifests with an overlay and with arms that are down: what is in force, and what is told about it."""

from __future__ import annotations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from config.config_fixtures import manifests, problems, spoiled
from config.plan_fixtures import endpoint_slice, hosts_of, route
from pointsman.core.buckets import arm_of, bucket, moved, redrawn, shifted
from pointsman.core.compile import compile_plan
from pointsman.core.compile.arms import hand_over
from pointsman.core.compile.weights import normalise
from pointsman.core.model import TOTAL_WEIGHT, MatchType, Mirror, Plan, Rule
from pointsman.core.overlay import Overlay, RuleOverlay

RULE = "HTTPRoute/default/chat/split"
CANARY, STABLE = "default/canary", "default/stable"
SERVED = spoiled() + endpoint_slice("east", "10.0.2.1", pool="stream")
READY = SERVED + endpoint_slice("east", "10.0.1.1", pool="canary")
HALF_DOWN = SERVED + endpoint_slice("east", "10.0.1.1", ", conditions: {ready: false}", pool="canary")


def annotated(text: str, **annotations: str) -> str:
    lines = "".join(f"    pointsman.dev/{name.replace('_', '-')}: {value}\n" for name, value in annotations.items())
    return text.replace("  name: chat\n", f"  name: chat\n  annotations:\n{lines}", 1)


def laid_over(*rules: tuple[str, RuleOverlay], unavailable: frozenset[str] = frozenset()) -> Overlay:
    overlay = Overlay(unavailable=unavailable)
    for rule, entry in rules:
        overlay = overlay.with_rule(rule, entry)
    return overlay


def plan_with(text: str, overlay: Overlay) -> Plan:
    assert problems(text) == []
    return compile_plan(manifests(text), overlay)


def rule_of(plan: Plan, name: str = f"{RULE}/0") -> Rule:
    return next(rule for host in hosts_of(plan) for rule in host.rules if rule.name == name)


def weights(plan: Plan) -> list[tuple[str, int]]:
    return [(arm.pool, arm.weight) for arm in rule_of(plan).arms]


def told(plan: Plan) -> list[tuple[str, str]]:
    return [(note.rule, note.reason) for note in plan.notes]


class TestOverlay:
    def test_it_changes_numbers_and_nothing_else(self) -> None:
        bare = plan_with(READY, Overlay())
        plan = plan_with(READY, laid_over((RULE, RuleOverlay.of({STABLE: 2_500, CANARY: 7_500}))))
        assert weights(bare) == [(CANARY, 500), (STABLE, 9_500)]
        assert weights(plan) == [(CANARY, 7_500), (STABLE, 2_500)], "the order of the manifest"
        assert plan.notes == ()
        split = plan.split(RULE)
        assert split is not None
        assert (split.overlaid, split.version) == (True, 1)
        assert [(arm.declared, arm.decided, arm.effective) for arm in split.arms] == [
            (500, 7_500, 7_500),
            (9_500, 2_500, 2_500),
        ]
        assert rule_of(plan).request_headers == rule_of(bare).request_headers

    def test_all_zero_answers_503(self) -> None:
        plan = plan_with(READY, laid_over((RULE, RuleOverlay.of({STABLE: 0, CANARY: 0}))))
        assert (rule_of(plan).direct_status, rule_of(plan).direct_reason) == (503, "no-weight")

    def test_a_vanished_pool_is_dropped_and_told(self) -> None:
        entry = RuleOverlay.of({CANARY: 1_000, "default/old": 5_000, STABLE: 4_000})
        plan = plan_with(READY, laid_over((RULE, entry)))
        assert weights(plan) == [(CANARY, 2_000), (STABLE, 8_000)]
        assert told(plan) == [(RULE, "PoolVanished")]
        assert "default/old" in plan.notes[0].message

    def test_what_fits_no_arm_any_more_leaves_the_manifest(self) -> None:
        for entry in ({"default/old": TOTAL_WEIGHT}, {"default/old": TOTAL_WEIGHT, CANARY: 0}):
            plan = plan_with(READY, laid_over((RULE, RuleOverlay.of(entry))))
            assert weights(plan) == [(CANARY, 500), (STABLE, 9_500)]
            assert told(plan) == [(RULE, "PoolVanished"), (RULE, "OverlayDropped")]
            split = plan.split(RULE)
            assert split is not None and not split.overlaid and split.version == 1

    def test_a_new_arm_gets_nothing_until_it_is_named(self) -> None:
        plan = plan_with(READY, laid_over((RULE, RuleOverlay.of({STABLE: TOTAL_WEIGHT}))))
        assert weights(plan) == [(CANARY, 0), (STABLE, TOTAL_WEIGHT)]
        assert told(plan) == [(RULE, "ArmWithoutWeight")]

    def test_a_vanished_rule_is_told_and_comes_back_with_its_weights(self) -> None:
        gone = "HTTPRoute/default/chat/gone"
        overlay = laid_over((gone, RuleOverlay.of({CANARY: TOTAL_WEIGHT, STABLE: 0})))
        plan = plan_with(READY, overlay)
        assert weights(plan) == [(CANARY, 500), (STABLE, 9_500)]
        assert told(plan) == [(gone, "RuleVanished")]
        back = plan_with(READY.replace("name: split", "name: gone"), overlay)
        assert [arm.weight for arm in rule_of(back, f"{gone}/0").arms] == [TOTAL_WEIGHT, 0]

    def test_a_pool_that_is_two_arms_keeps_their_ratio(self) -> None:
        backend = "{group: inference.networking.k8s.io, kind: InferencePool, name: %s, weight: %d}"
        arms = ", ".join(backend % pair for pair in [("stable", 30), ("canary", 10), ("stable", 60)])
        text = READY + route("twice", f"hostnames: [twice.example], rules: [{{backendRefs: [{arms}]}}]")
        rule = "HTTPRoute/default/twice/0"
        plan = plan_with(text, laid_over((rule, RuleOverlay.of({STABLE: 3_001, CANARY: 6_999}))))
        split = plan.split(rule)
        assert split is not None
        assert [arm.effective for arm in split.arms] == [1_000, 6_999, 2_001]

    def test_mirrors(self) -> None:
        entry = RuleOverlay.of({}, mirror=Mirror(pool="default/stream", share=100))
        plan = plan_with(READY, laid_over((RULE, entry)))
        assert rule_of(plan).mirror == Mirror(pool="default/stream", share=100)
        assert weights(plan) == [(CANARY, 500), (STABLE, 9_500)]
        assert "default/stream" in {pool.name for pool in plan.gateways[0].pools}
        lost = RuleOverlay.of({}, mirror=Mirror(pool="default/nowhere", share=100))
        plan = plan_with(READY, laid_over((RULE, lost)))
        assert rule_of(plan).mirror is None
        assert told(plan) == [(RULE, "MirrorVanished")]

    @given(st.dictionaries(st.sampled_from([CANARY, STABLE, "default/old"]), st.integers(0, 50), max_size=3))
    def test_shares_always_add_up_and_the_order_holds(self, parts: dict[str, int]) -> None:
        total = sum(parts.values())
        assume(total)
        names = list(parts)
        shares = [part * TOTAL_WEIGHT // total for part in parts.values()]
        shares[0] += TOTAL_WEIGHT - sum(shares)
        entry = RuleOverlay.of(dict(zip(names, shares, strict=True)))
        found = weights(compile_plan(MANIFESTS, laid_over((RULE, entry))))
        assert [pool for pool, _ in found] == [CANARY, STABLE]
        assert sum(weight for _, weight in found) == TOTAL_WEIGHT


MANIFESTS = manifests(READY)


class TestArmsThatAreDown:
    def test_by_default_their_share_gets_503(self) -> None:
        plan = plan_with(HALF_DOWN, Overlay())
        assert weights(plan) == [(CANARY, 500), (STABLE, 9_500)]
        assert plan.notes[0].message == "default/canary: no ready endpoint; its 5 % get 503"

    @pytest.mark.parametrize("what", ["Redistribute", "Fallback"])
    def test_the_others_get_their_share(self, what: str) -> None:
        plan = plan_with(annotated(HALF_DOWN, on_unavailable=what), Overlay())
        assert weights(plan) == [(CANARY, 0), (STABLE, TOTAL_WEIGHT)]
        split = plan.split(RULE)
        assert split is not None
        assert [(arm.decided, arm.effective, arm.unavailable) for arm in split.arms] == [
            (500, 0, "no ready endpoint"),
            (9_500, TOTAL_WEIGHT, ""),
        ]

    def test_a_drained_site_and_a_controllers_finding_count(self) -> None:
        text = annotated(READY, on_unavailable="Redistribute")
        plan = plan_with(text, laid_over(unavailable=frozenset({CANARY})))
        assert weights(plan) == [(CANARY, 0), (STABLE, TOTAL_WEIGHT)]
        drained = text.replace("state: Active", "state: Draining")
        assert weights(plan_with(drained, Overlay())) == [(CANARY, 500), (STABLE, 9_500)], "nobody is left to take it"

    def test_an_arm_at_zero_takes_nothing_over(self) -> None:
        text = annotated(HALF_DOWN, on_unavailable="Redistribute")
        entry = RuleOverlay.of({CANARY: TOTAL_WEIGHT, STABLE: 0})
        assert weights(plan_with(text, laid_over((RULE, entry)))) == [(CANARY, TOTAL_WEIGHT), (STABLE, 0)]

    @given(st.lists(st.tuples(st.integers(0, 40), st.booleans()), min_size=1, max_size=5))
    def test_handing_over_keeps_the_sum_and_the_ratio(self, arms: list[tuple[int, bool]]) -> None:
        wanted = [weight for weight, _ in arms]
        reasons = ["down" if down else "" for _, down in arms]
        found = hand_over(wanted, reasons)
        if not any(weight for weight, down in arms if not down):
            assert found == wanted
        else:
            assert sum(found) == TOTAL_WEIGHT
            assert all(not given for given, (_, down) in zip(found, arms, strict=True) if down)

    @pytest.mark.parametrize(
        ("wanted", "down", "most", "expected"),
        [
            ([100, 9_900], [1], [3_000, TOTAL_WEIGHT], [3_000, 7_000]),  # the rest gets 503
            ([4_000, 6_000], [1], [3_000, TOTAL_WEIGHT], [4_000, 6_000]),  # what it has is not taken from it
            ([100, 9_900], [1], [TOTAL_WEIGHT, TOTAL_WEIGHT], [TOTAL_WEIGHT, 0]),
            ([100, 900, 9_000], [2], [500, TOTAL_WEIGHT, 0], [500, 9_500, 0]),  # others take what one cannot
            ([100, 900, 9_000], [2], [500, 2_500, 0], [500, 2_500, 7_000]),
            ([100, 9_900], [], [0, 0], [100, 9_900]),
        ],
    )
    def test_an_arm_inherits_up_to_its_ceiling(
        self, wanted: list[int], down: list[int], most: list[int], expected: list[int]
    ) -> None:
        reasons = ["down" if index in down else "" for index in range(len(wanted))]
        assert hand_over(wanted, reasons, most) == expected

    @given(st.lists(st.tuples(st.integers(1, 40), st.booleans(), st.integers(0, TOTAL_WEIGHT)), min_size=1, max_size=5))
    def test_ceilings_keep_the_sum(self, arms: list[tuple[int, bool, int]]) -> None:
        wanted = list(normalise([weight for weight, _, _ in arms]))
        most = [limit for _, _, limit in arms]
        found = hand_over(wanted, ["down" if down else "" for _, down, _ in arms], most)
        assert sum(found) == TOTAL_WEIGHT
        for given_, weight, (_, down, limit) in zip(found, wanted, arms, strict=True):
            assert given_ <= weight if down else weight <= given_ + 1 and given_ <= max(limit, weight)


BY_HEADER = (
    "rules: ["
    "{name: exp, matches: [{headers: [{name: x-variant, value: exp}]}, "
    "{path: {value: /v1}, headers: [{name: x-variant, value: exp}]}], backendRefs: "
    "[{group: inference.networking.k8s.io, kind: InferencePool, name: canary}]}, "
    "{name: main, backendRefs: [{group: inference.networking.k8s.io, kind: InferencePool, name: stable}]}]"
)


def experiment(text: str = HALF_DOWN, **annotations: str) -> Plan:
    bare = "---\n".join(part for part in text.split("---\n") if "kind: HTTPRoute" not in part)
    return plan_with(
        annotated(bare + route("chat", BY_HEADER).replace("{name: chat}", "\n  name: chat"), **annotations), Overlay()
    )


class TestExperiments:
    def test_a_variant_falls_back_to_the_next_wider_rule(self) -> None:
        for position in (0, 1):
            name = f"HTTPRoute/default/chat/exp/{position}"
            assert [arm.pool for arm in rule_of(experiment(), name).arms] == [CANARY]
            plan = experiment(on_unavailable="Fallback")
            assert [arm.pool for arm in rule_of(plan, name).arms] == [STABLE]
            assert rule_of(plan, name).match == rule_of(experiment(), name).match
        assert ("HTTPRoute/default/chat/exp", "FellBack") in told(plan)
        assert [arm.pool for arm in rule_of(experiment(READY, on_unavailable="Fallback"), name).arms] == [CANARY]

    def test_values_that_no_rule_knows_are_refused_right_before_the_rule_that_would_take_them(self) -> None:
        plan = experiment(READY, variant_header="X-Variant", on_unknown_variant="Reject")
        (host,) = hosts_of(plan)
        names = [rule.name.removeprefix("HTTPRoute/default/chat/") for rule in host.rules]
        assert names == ["exp/1", "exp/0", "main/0-unknown", "main/0"]
        unknown = host.rules[2]
        assert (unknown.direct_status, unknown.direct_reason, unknown.arms) == (400, "unknown-variant", ())
        assert [(match.type, match.value, match.invert) for match in unknown.match.headers] == [
            (MatchType.PRESENT, "", False),
            (MatchType.EXACT, "exp", True),
        ]

    def test_sticky(self) -> None:
        plan = experiment(READY, sticky_header="X-User-Id", sticky_salt="s1")
        rule = rule_of(plan, "HTTPRoute/default/chat/main/0")
        assert (rule.hash_header, rule.hash_salt, rule.hash_cookie) == ("x-user-id", "s1", "")
        split = plan.split("HTTPRoute/default/chat/main")
        assert split is not None and split.sticky == "header x-user-id, salt s1"


@pytest.mark.parametrize(
    ("annotations", "said"),
    [
        ({"sticky_header": '"a b"'}, 'found "a b"'.replace("found ", "")),
        ({"sticky_header": "x-user-id", "sticky_cookie": "u"}, "pointsman.dev/sticky-header is set, too"),
        ({"sticky_salt": "s"}, "nothing is sticky"),
        ({"sticky_header": "u", "sticky_salt": '"a b"'}, '"a b" is no salt'),
        ({"on_unavailable": "Falback"}, 'did you mean "Fallback"?'),
        ({"on_unknown_variant": "Reject"}, "there is no variant header"),
        ({"variant_header": "x-varient"}, 'did you mean "x-variant"?'),
        ({"variant_header": "x-variant", "on_unknown_variant": "Maybe"}, 'found "Maybe"'),
        ({"sticky_haeder": "u"}, 'did you mean "pointsman.dev/sticky-header"?'),
    ],
)
def test_wrong_annotations_are_told_with_a_mend(annotations: dict[str, str], said: str) -> None:
    found = problems(annotated(READY, **annotations))
    assert any(said in problem for problem in found), found
    assert all("metadata.annotations" in problem for problem in found)


class TestBuckets:
    def test_known_users(self) -> None:
        """Fixed for ever: whoever changes the hash moves every user of every sticky split."""
        assert [bucket(user) for user in ("", "a", "user-1", "x-y")] == [6_921, 2_955, 6_856, 5_502]
        assert bucket("b", "a") == bucket("a:b")

    def test_arms(self) -> None:
        assert [arm_of(place, [1, 0, 2]) for place in range(4)] == [0, 2, 2, None]

    shares = st.lists(st.integers(0, 30), min_size=2, max_size=2).filter(any)

    @given(st.integers(0, TOTAL_WEIGHT), st.integers(0, TOTAL_WEIGHT))
    def test_a_growing_canary_moves_exactly_the_difference(self, before: int, after: int) -> None:
        one, other = ([("c", share), ("s", TOTAL_WEIGHT - share)] for share in (before, after))
        assert moved(one, other) == shifted(one, other) == abs(after - before)

    @given(st.lists(st.integers(0, 9), min_size=3, max_size=3), st.lists(st.integers(0, 9), min_size=3, max_size=3))
    def test_moved_is_what_counting_finds(self, one: list[int], other: list[int]) -> None:
        before, after = ([("abc"[i], 100 * part) for i, part in enumerate(parts)] for parts in (one, other))
        counted = sum(_pool(place, before) != _pool(place, after) for place in range(0, TOTAL_WEIGHT, 100))
        assert moved(before, after) == counted * 100
        assert shifted(before, after) <= moved(before, after)

    def test_a_new_salt_draws_everybody_anew(self) -> None:
        half = [("c", 5_000), ("s", 5_000)]
        assert redrawn(half, half) == 5_000
        assert redrawn([("s", TOTAL_WEIGHT)], [("s", TOTAL_WEIGHT)]) == 0


def _pool(place: int, arms: list[tuple[str, int]]) -> str | None:
    index = arm_of(place, [weight for _, weight in arms])
    return None if index is None else arms[index][0]
