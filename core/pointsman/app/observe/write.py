"""The files that Grafana and Prometheus read, made from the typed dashboards and rules."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

import yaml

from pointsman.app.observe.boards import DASHBOARDS
from pointsman.app.observe.grafana import dashboard_json
from pointsman.app.observe.rules import RUNBOOKS, rule_files

_HEADER: Final = "# Written by `make dashboards` from core/pointsman/app/observe; edits here are lost.\n"


def files(runbooks: str = RUNBOOKS) -> dict[str, str]:
    """Path below the folder → content."""
    found = {}
    for name, dashboard in DASHBOARDS.items():
        others = [other for other in DASHBOARDS.values() if other is not dashboard]
        text = json.dumps(dashboard_json(dashboard, others), indent=2, ensure_ascii=False)
        found[f"grafana/dashboards/{name}.json"] = text + "\n"
    for name, content in rule_files(runbooks).items():
        text = yaml.safe_dump(content, sort_keys=False, width=110, allow_unicode=True)
        found[f"prometheus/rules/{name}"] = _HEADER + text
    return found


def write(folder: Path, runbooks: str = RUNBOOKS) -> list[Path]:
    """Write the files; returns their paths."""
    paths = []
    for name, content in files(runbooks).items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8")
        paths.append(path)
    return paths
