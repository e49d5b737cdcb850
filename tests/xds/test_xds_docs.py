"""`docs/xds.md` names tests and metrics that exist."""

from __future__ import annotations

import re
from pathlib import Path

from prometheus_client import CollectorRegistry

from pointsman.core.snapshot import PlanHolder
from pointsman.xds import BuildOptions, XdsServer

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs/xds.md").read_text(encoding="utf-8")


def test_all_18_outlines_have_a_test() -> None:
    rows = re.findall(r"^\| (delta|subscribing|unsubscribing) (\d) \|.*\| `(test_\w+)", TEXT, re.MULTILINE)
    assert [(feature, int(number)) for feature, number, _ in rows] == [
        *(("delta", number) for number in range(1, 7)),
        *(("subscribing", number) for number in range(1, 10)),
        *(("unsubscribing", number) for number in range(1, 4)),
    ]
    harness = (ROOT / "tests/xds/test_xds_harness.py").read_text(encoding="utf-8")
    assert {name for _, _, name in rows} <= set(re.findall(r"async def (test_\w+)", harness))


async def test_the_metrics_of_the_server_are_called_so() -> None:
    registry = CollectorRegistry()
    xds = XdsServer(PlanHolder(), BuildOptions(), registry)
    xds.close()
    families = list(registry.collect())
    known = {family.name for family in families} | {f"{family.name}_total" for family in families}
    named = set(re.findall(r"\bpointsman_xds_\w+", TEXT))
    assert named
    assert named <= known
