"""InferenceObjectives, and where engines publish their KV events: from manifests to the Plan."""

from __future__ import annotations

import pytest

from config.config_fixtures import FLEET, manifests, problems, spoiled
from pointsman.core.compile import compile_plan
from pointsman.core.model import Objective, Plan, Pool

OBJECTIVE = """\
---
apiVersion: {group}/v1alpha2
kind: InferenceObjective
metadata:
  name: {name}
  annotations: {{{annotations}}}
spec:
  priority: {priority}
  poolRef: {{name: {pool}}}
"""
STABLE = "metadata:\n  name: stable\nspec:"
SLICE = "metadata:\n  name: stable-east\n"


def objective(name: str, *, group: str = "llm-d.ai", priority: object = 0, pool: str = "stable", **notes: str) -> str:
    annotations = ", ".join(f"pointsman.dev/{key}: {value}" for key, value in notes.items())
    return OBJECTIVE.format(group=group, name=name, priority=priority, pool=pool, annotations=annotations)


def stable(plan: Plan) -> Pool:
    return next(pool for pool in plan.gateways[0].pools if pool.name == "default/stable")


def annotated(*edits: tuple[str, str]) -> str:
    """The fleet with annotations of the pool `stable` (first) and of its slice (second)."""
    pool, piece = edits[0][1], edits[1][1] if len(edits) > 1 else ""
    text = spoiled((STABLE, f"metadata:\n  name: stable\n  annotations: {{{pool}}}\nspec:"))
    return text.replace(SLICE, f"{SLICE}  annotations: {{{piece}}}\n", 1)


def test_objectives_of_both_groups_reach_their_pool() -> None:
    text = (
        FLEET
        + objective("batch", priority=-5)
        + objective("chat", group="inference.networking.x-k8s.io", priority=1, ttft="1s500ms")
        + objective("else", pool="canary")
    )
    plan = compile_plan(manifests(text))
    assert stable(plan).objectives == (
        Objective(name="batch", priority=-5),
        Objective(name="chat", priority=1, ttft_ms=1_500.0),
    )
    assert all(pool.objectives == () for pool in plan.pools if pool.name == "default/stream")


def test_a_pool_says_from_when_on_it_sheds() -> None:
    assert stable(compile_plan(manifests(FLEET))).shed_after_ms is None
    text = annotated(("pool", "pointsman.dev/shed-after: 4s"))
    assert stable(compile_plan(manifests(text))).shed_after_ms == 4_000.0


@pytest.mark.parametrize(
    ("pool", "piece", "ports"),
    [
        ("", "", [(0, 0)] * 4),
        ("pointsman.dev/kv-events-port: '5557'", "", [(5557, 0), (5558, 0)] * 2),
        (
            "pointsman.dev/kv-events-port: '5557', pointsman.dev/kv-replay-port: '6000'",
            "pointsman.dev/kv-events-port: '7000'",
            [(7000, 6000), (7001, 6001)] * 2,
        ),
        ("pointsman.dev/kv-events-port: '65535'", "", [(65535, 0), (0, 0)] * 2),
    ],
)
def test_engines_publish_where_pool_or_slice_say_and_ranks_one_port_further(
    pool: str, piece: str, ports: list[tuple[int, int]]
) -> None:
    text = annotated(("pool", pool), ("slice", piece)).replace(
        "ports: [{port: 8000}]", "ports: [{port: 8000}, {port: 8001}]"
    )
    found = stable(compile_plan(manifests(text))).endpoints()
    assert [(e.kv_events_port, e.kv_replay_port) for e in sorted(found, key=lambda e: (e.address, e.port))] == ports


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (FLEET + objective("a", pool="stabel"), 'no InferencePool "default/stabel" (did you mean "default/stable"?)'),
        (FLEET + objective("a", priority="high"), 'found "high" (expected a whole number'),
        (FLEET + objective("a", ttft="soon"), '"soon" is not a duration'),
        (FLEET + objective("a", ttft="0s"), "no time at all"),
        (FLEET + objective("a") + objective("a"), "InferenceObjective default/a exists twice"),
        (FLEET + objective("a").replace("name: stable}", "name: stable, kind: Service}"), "(expected InferencePool)"),
        (FLEET + objective("a").replace("v1alpha2", "v1"), "expected llm-d.ai/v1alpha2 for InferenceObjective"),
        (FLEET + objective("a", tftf="1s"), "InferenceObjective has no annotation of that name"),
        (annotated(("pool", "pointsman.dev/kv-events-port: '70000'")), "is not a port"),
        (annotated(("pool", ""), ("slice", "pointsman.dev/kv-replay-port: tcp")), '"tcp" is not a port'),
        (annotated(("pool", "pointsman.dev/shed-after: 3")), "put it in quotes"),
    ],
)
def test_what_is_wrong_is_named(text: str, problem: str) -> None:
    (found,) = problems(text)
    assert problem in found
