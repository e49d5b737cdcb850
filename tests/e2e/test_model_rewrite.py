"""Canaries between a model and its adapters in one pool, through a real Envoy: counted at the model servers."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from support.fleet import MODEL, Fleet, Layout, backend, running_fleet
from support.load import Load
from support.rollouts import apply, failed_within, policy, reached
from support.waiting import eventually

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(180)]

RULE = "HTTPRoute/default/chat/2"
OLD, NEW = "review-v1", "review-v2"


def rewrite(*targets: tuple[str, int]) -> dict[str, Any]:
    """Requests for `review` go to the targets; what names another model stays as it is."""
    rule = {
        "matches": [{"model": {"value": "review"}}],
        "targets": [{"modelRewrite": name, "weight": weight} for name, weight in targets],
    }
    return {
        "apiVersion": "llm-d.ai/v1alpha2",
        "kind": "InferenceModelRewrite",
        "metadata": {"name": "review"},
        "spec": {"poolRef": {"name": "stable"}, "rules": [rule]},
    }


def layout(*targets: tuple[str, int]) -> Layout:
    pin = {"set": [{"name": "x-gateway-model-name-rewrite", "value": NEW}]}
    chosen = backend("stable") | {"filters": [{"type": "RequestHeaderModifier", "requestHeaderModifier": pin}]}
    header = {"headers": [{"name": "x-model-variant", "value": NEW}]}
    return Layout(
        stable={"us-east": 2},
        rules=[{"matches": [header], "backendRefs": [chosen]}],
        documents=[rewrite(*targets)],
        failure_mode="FailClose",
    )


async def by_model(fleet: Fleet) -> Counter[str]:
    """Requests that the replicas of the pool got, by the model in their bodies."""
    found: Counter[str] = Counter()
    for name, replica in (await fleet.replicas()).items():
        if name.startswith("stable"):
            found.update(replica["requests_by_model"])
    return found


def only_late(load: Load) -> bool:
    """Whether nothing failed but picks that a busy machine made too late: the pool fails closed."""
    return all("ext_proc_error" in failure for failure in load.outcomes.failures)


async def sent(
    fleet: Fleet, count: int, *, model: str = "review", headers: dict[str, str] | None = None
) -> Counter[str]:
    """Which models so many requests got."""
    before = await by_model(fleet)
    async with Load(fleet.url, workers=4, limit=count, model=model, headers=headers) as load:
        await load.progressed(count)
    assert only_late(load), load.outcomes.failures
    found = await by_model(fleet) - before
    assert found.total() >= load.outcomes.ok > count / 2
    return found


async def put_weights(fleet: Fleet, **weights: int) -> None:
    body = {"weights": {name.replace("_", "-"): share for name, share in weights.items()}, "wait": True}
    async with fleet.session.put(f"{fleet.admin}/api/v1/weights/{RULE}", json=body) as response:
        assert response.status == 200, await response.text()


@pytest.mark.story
async def test_a_split_between_a_model_and_an_adapter(tmp_path: Path) -> None:
    """With picker workers, which have the whole of it by themselves."""
    async with running_fleet(tmp_path, layout((NEW, 10), (MODEL, 90)), extra=("--picker-workers", "1")) as fleet:
        found = await sent(fleet, 1_000)
        assert set(found) == {NEW, MODEL}
        assert abs(found[NEW] - found.total() / 10) < 48, found  # five standard deviations
        assert set(await sent(fleet, 30, headers={"x-model-variant": NEW})) == {NEW}
        assert set(await sent(fleet, 30, model=MODEL)) == {MODEL}

        # A large body goes back and forth in many frames; what the model server says to it is its own business.
        before = await by_model(fleet)
        large = {"prompt": "all work and no play " * 50_000, "max_tokens": 1, "model": "review"}

        async def served() -> bool:
            async with fleet.session.post(f"{fleet.url}/v1/completions", json=large) as response:
                await response.read()
            return bool(await by_model(fleet) - before)

        await eventually(served, what="a body of a megabyte reaches its model")
        assert set(await by_model(fleet) - before) <= {NEW, MODEL}

        # Weights that are set hold for models as they do for pools; a header still goes past them.
        await put_weights(fleet, review_v2=0, llama_3_8b=1, canary=0)
        assert set(await sent(fleet, 30)) == {MODEL}
        assert set(await sent(fleet, 30, headers={"x-model-variant": NEW})) == {NEW}
        await put_weights(fleet, review_v2=1, llama_3_8b=0, canary=0)
        assert set(await sent(fleet, 30)) == {NEW}

        status = await fleet.status()
        assert next(one for one in status["weights"] if one["rule"] == RULE)["effective"] == {
            "default/canary": 0, f"default/stable~{NEW}": 10_000, f"default/stable~{MODEL}": 0,
        }  # fmt: skip
        asked = {"headers": [["x-user-id", "u"]], "body": '{"model": "review", "prompt": "x"}'}
        async with fleet.session.post(f"{fleet.admin}/api/v1/explain", json=asked) as response:
            [pick] = (await response.json())["picks"]
        assert (pick["pool"], pick["asked_model"], pick["model"]) == (f"default/stable~{NEW}", "review", NEW)


@pytest.fixture
async def fleet(tmp_path: Path) -> AsyncIterator[Fleet]:
    async with running_fleet(tmp_path, layout((NEW, 1), (OLD, 99))) as running:
        yield running


def release() -> dict[str, Any]:
    stable, canary = ({"name": "stable", "model": model} for model in (OLD, NEW))
    return policy(stable=stable, canary=canary)


async def share_of_new(fleet: Fleet) -> float:
    async with fleet.session.get(f"{fleet.admin}/api/v1/weights/{RULE}") as response:
        arms = (await response.json())["arms"]
    return float(next(arm["effective"] for arm in arms if arm["pool"] == f"default/stable~{NEW}"))


@pytest.mark.story
async def test_a_rollout_from_one_adapter_to_another(fleet: Fleet) -> None:
    """A bad one is taken back, and its outage is not that of the other: both have the same endpoints."""
    names = [name for name in await fleet.replicas() if name.startswith("stable")]
    for name in names:
        await fleet.set_faults(name, {"error": {"status": 503}, "models": [NEW]})
    async with Load(fleet.url, workers=8, model="review") as load:
        apply(fleet, release())
        found = await reached(fleet, "Aborted")
    assert "errors" in found["why"]
    assert await share_of_new(fleet) == 0
    assert failed_within(load, 0.1), "some requests of the first step's share, and then none"
    assert set(await sent(fleet, 50)) == {OLD}

    for name in names:
        await fleet.set_faults(name, None)
    async with Load(fleet.url, workers=8, model="review") as load:
        async with fleet.session.post(
            f"{fleet.admin}/api/v1/rollouts/default/chat/retry", json={"actor": "a"}
        ) as answer:
            assert answer.status == 200, await answer.text()
        await reached(fleet, "Completed", timeout_s=90)
    assert only_late(load), load.outcomes.failures

    async def arrived() -> bool:
        return await share_of_new(fleet) == 10_000

    await eventually(arrived, what="the new adapter has everything")
    assert set(await sent(fleet, 50)) == {NEW}
