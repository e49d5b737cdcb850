"""Who saw which variant: counted by our own names only, each request once."""

from __future__ import annotations

import pytest
from prometheus_client import CollectorRegistry

from pointsman.app.exposure import Exposure
from pointsman.core.model import Plan
from pointsman.extproc.feedback import Feedback
from weights.test_weight_changes import PLAN, RULE


@pytest.mark.parametrize(
    ("entry", "labels"),
    [
        ({"status": 200}, (RULE, "default/canary", "ok")),
        ({"status": 200, "grpc_status": 0}, (RULE, "default/canary", "ok")),
        ({"status": 200, "grpc_status": 14}, (RULE, "default/canary", "server_error")),
        ({"status": 200, "grpc_status": 5}, (RULE, "default/canary", "client_error")),
        ({"status": 200, "failed": True}, (RULE, "default/canary", "server_error")),
        ({"status": 429}, (RULE, "default/canary", "client_error")),
        ({"status": 503}, (RULE, "default/canary", "server_error")),
        ({"status": 0}, (RULE, "default/canary", "none")),
        ({"status": 200, "route": "HTTPRoute/default/evil/0/0"}, ("other", "other", "ok")),
        ({"status": 200, "cluster": "default/evil"}, ("other", "other", "ok")),
        ({"status": 200, "route": ""}, ("other", "other", "ok")),
    ],
)
def test_an_ended_request_is_counted_once(entry: dict[str, object], labels: tuple[str, str, str]) -> None:
    registry = CollectorRegistry()
    exposure = Exposure(registry)
    exposure.apply(PLAN)
    given = {"pick_id": "", "ended": True, "route": f"{RULE}/0", "cluster": "default/canary", **entry}
    exposure.feedback(Feedback(**given))  # type: ignore[arg-type]
    exposure.feedback(Feedback(**{**given, "ended": False}))  # type: ignore[arg-type]
    names = dict(zip(("rule", "pool", "outcome"), labels, strict=True))
    assert registry.get_sample_value("pointsman_arm_requests_total", names) == 1
    exposure.apply(Plan())
    exposure.feedback(Feedback(**given))  # type: ignore[arg-type]
    other = {"rule": "other", "pool": "other", "outcome": labels[2]}
    assert registry.get_sample_value("pointsman_arm_requests_total", other) == (2 if labels[0] == "other" else 1)
