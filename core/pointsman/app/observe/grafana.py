"""Dashboards as typed values, and the JSON that Grafana reads (classic model; newer versions migrate it on load).

Queries use Grafana's own variables: `$__rate_interval`, and `$gateway`, `$pool`, `$site`, `$policy` as regular
expressions. `concrete` replaces them, for tests and pictures.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

Json = dict[str, Any]

SCHEMA_VERSION: Final = 39
"""Of Grafana 10.4 and 11; older versions refuse what is newer than they are, newer ones migrate."""

DATASOURCE: Final = {"type": "prometheus", "uid": "${datasource}"}
COLUMNS: Final = 24
"""Grafana's grid."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """One PromQL expression. `instant`: only its value now, as tables and stats show it."""

    expr: str
    legend: str = ""
    instant: bool = False
    format: str = "time_series"


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """A colour from a value on; the first of a panel has no value."""

    colour: str
    value: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """A panel; `kind` is Grafana's panel type, `unit` one of its units. `width` of 24, `height` in rows of 30 pixels.

    `mappings` give values words. `quiet`: an empty answer is good news, shown as `none`, so that a panel of problems
    does not look broken while there are none.
    """

    title: str
    queries: tuple[Query, ...]
    description: str
    kind: str = "timeseries"
    unit: str = "short"
    width: int = 8
    height: int = 8
    stack: bool = False
    minimum: float | None = 0.0
    maximum: float | None = None
    steps: tuple[Step, ...] = ()
    mappings: tuple[tuple[str, str, str], ...] = ()  # value, text, colour
    quiet: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A heading and its panels, which are laid out from left to right."""

    title: str
    panels: tuple[Panel, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Variable:
    """A drop-down filled with the values of a label."""

    name: str
    metric: str
    label: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Annotation:
    """Vertical lines where the expression is not zero."""

    name: str
    expr: str
    title: str
    colour: str = "purple"


@dataclass(frozen=True, slots=True, kw_only=True)
class Dashboard:
    """A dashboard; `uid` is its identity in links and for provisioning."""

    uid: str
    title: str
    description: str
    rows: tuple[Row, ...]
    variables: tuple[Variable, ...] = ()
    annotations: tuple[Annotation, ...] = ()
    tags: tuple[str, ...] = field(default=("pointsman",))

    def panels(self) -> tuple[Panel, ...]:
        """All panels, in order."""
        return tuple(panel for row in self.rows for panel in row.panels)


def concrete(expr: str, *, window: str = "30s", span: str = "5m") -> str:
    """The expression as Grafana would send it with everything selected: all series, rates over `window`."""
    for name in ("gateway", "pool", "site", "policy"):
        expr = expr.replace(f'"${name}"', '".*"')
    return expr.replace("$__rate_interval", window).replace("$__range", span)


def dashboard_json(dashboard: Dashboard, others: Sequence[Dashboard] = ()) -> Json:
    """The dashboard for Grafana; `others` are linked at its top."""
    panels: list[Json] = []
    y = 0
    for row in dashboard.rows:
        panels.append(_row_json(row, len(panels) + 1, y))
        y += 1
        x = tallest = 0
        for panel in row.panels:
            if x + panel.width > COLUMNS:
                y, x, tallest = y + tallest, 0, 0
            panels.append(_panel_json(panel, len(panels) + 1, x, y))
            x, tallest = x + panel.width, max(tallest, panel.height)
        y += tallest
    return {
        "annotations": {"list": [_annotation_json(annotation) for annotation in dashboard.annotations]},
        "description": dashboard.description,
        "editable": True,
        "fiscalYearStartMonth": 0,
        "graphTooltip": 1,
        "id": None,
        "links": [_link_json(other) for other in others],
        "panels": panels,
        "refresh": "10s",
        "schemaVersion": SCHEMA_VERSION,
        "tags": list(dashboard.tags),
        "templating": {"list": [_datasource_json(), *(_variable_json(v) for v in dashboard.variables)]},
        "time": {"from": "now-1h", "to": "now"},
        "timepicker": {},
        "timezone": "browser",
        "title": dashboard.title,
        "uid": dashboard.uid,
        "version": 1,
        "weekStart": "",
    }


def _row_json(row: Row, number: int, y: int) -> Json:
    return {
        "collapsed": False,
        "gridPos": {"h": 1, "w": COLUMNS, "x": 0, "y": y},
        "id": number,
        "panels": [],
        "title": row.title,
        "type": "row",
    }


def _panel_json(panel: Panel, number: int, x: int, y: int) -> Json:
    return {
        "datasource": DATASOURCE,
        "description": panel.description,
        "fieldConfig": {"defaults": _defaults(panel), "overrides": []},
        "gridPos": {"h": panel.height, "w": panel.width, "x": x, "y": y},
        "id": number,
        "options": _options(panel),
        "targets": [_target(query, index) for index, query in enumerate(panel.queries)],
        "title": panel.title,
        "transformations": _transformations(panel),
        "type": panel.kind,
    }


def _defaults(panel: Panel) -> Json:
    steps = panel.steps or (Step(colour="green"),)
    found: Json = {
        "color": {"mode": "thresholds" if panel.steps and panel.kind != "timeseries" else "palette-classic"},
        "custom": _custom(panel),
        "mappings": [
            {"type": "value", "options": {value: {"text": text, "color": colour, "index": index}}}
            for index, (value, text, colour) in enumerate(panel.mappings)
        ],
        "thresholds": {
            "mode": "absolute",
            "steps": [{"color": step.colour, "value": step.value} for step in steps],
        },
        "unit": panel.unit,
    }
    if panel.minimum is not None and panel.kind != "table":
        found["min"] = panel.minimum
    if panel.maximum is not None:
        found["max"] = panel.maximum
    if panel.quiet:
        found["noValue"] = "none"
    return found


_LANES: Final[dict[str, Json]] = {
    "state-timeline": {"alignValue": "left", "mergeValues": True, "rowHeight": 0.8},
    "status-history": {"colWidth": 1.0, "rowHeight": 0.9},
}
"""Kinds with a lane for each series."""


def _custom(panel: Panel) -> Json:
    if panel.kind == "timeseries":
        return {
            "drawStyle": "line",
            "fillOpacity": 40 if panel.stack else 8,
            "lineInterpolation": "linear",
            "lineWidth": 1,
            "showPoints": "never",
            "spanNulls": False,
            "stacking": {"group": "A", "mode": "normal" if panel.stack else "none"},
            "thresholdsStyle": {"mode": "line" if panel.steps else "off"},
        }
    if panel.kind in _LANES:
        return {"fillOpacity": 80, "lineWidth": 0}
    return {}


def _options(panel: Panel) -> Json:
    if panel.kind == "timeseries":
        return {
            "legend": {
                "calcs": ["lastNotNull", "max"],
                "displayMode": "table",
                "placement": "bottom",
                "showLegend": True,
            },
            "tooltip": {"mode": "multi", "sort": "desc"},
        }
    if panel.kind == "stat":
        return {
            "colorMode": "value",
            "graphMode": "area",
            "justifyMode": "auto",
            "orientation": "auto",
            "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
            "textMode": "auto",
        }
    if panel.kind == "bargauge":
        return {
            "displayMode": "basic",
            "orientation": "horizontal",
            "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
            "showUnfilled": True,
        }
    if panel.kind in _LANES:
        return {
            "legend": {"calcs": [], "displayMode": "list", "placement": "bottom", "showLegend": True},
            "showValue": "auto",
            "tooltip": {"mode": "single", "sort": "none"},
            **_LANES[panel.kind],
        }
    if panel.kind == "heatmap":
        return {
            "calculate": False,
            "cellGap": 1,
            "color": {
                "exponent": 0.5,
                "fill": "dark-orange",
                "mode": "scheme",
                "reverse": False,
                "scheme": "Oranges",
                "steps": 64,
            },
            "tooltip": {"mode": "single", "yHistogram": True},
            "yAxis": {"axisPlacement": "left", "unit": panel.unit},
        }
    return {"cellHeight": "sm", "showHeader": True}


def _transformations(panel: Panel) -> list[Json]:
    """A table has one line for each set of labels, whatever query it came from."""
    if panel.kind != "table":
        return []
    return [{"id": "merge", "options": {}}, {"id": "organize", "options": {"excludeByName": {"Time": True}}}]


def _target(query: Query, index: int) -> Json:
    return {
        "datasource": DATASOURCE,
        "editorMode": "code",
        "expr": query.expr,
        "format": query.format,
        "instant": query.instant,
        "legendFormat": query.legend or "__auto",
        "range": not query.instant,
        "refId": chr(ord("A") + index),
    }


def _datasource_json() -> Json:
    return {
        "current": {"text": "", "value": ""},
        "hide": 0,
        "includeAll": False,
        "label": "Prometheus",
        "multi": False,
        "name": "datasource",
        "options": [],
        "query": "prometheus",
        "refresh": 1,
        "regex": "",
        "type": "datasource",
    }


def _variable_json(variable: Variable) -> Json:
    query = f"label_values({variable.metric}, {variable.label})"
    return {
        "allValue": ".*",
        "current": {"selected": True, "text": ["All"], "value": ["$__all"]},
        "datasource": DATASOURCE,
        "hide": 0,
        "includeAll": True,
        "label": variable.name.capitalize(),
        "multi": True,
        "name": variable.name,
        "options": [],
        "query": {"query": query, "refId": f"{variable.name}-variable"},
        "refresh": 2,
        "regex": "",
        "sort": 1,
        "type": "query",
    }


def _annotation_json(annotation: Annotation) -> Json:
    return {
        "datasource": DATASOURCE,
        "enable": True,
        "expr": annotation.expr,
        "iconColor": annotation.colour,
        "name": annotation.name,
        "step": "5s",
        "titleFormat": annotation.title,
        "useValueForTime": False,
    }


def _link_json(other: Dashboard) -> Json:
    return {
        "asDropdown": False,
        "icon": "dashboard",
        "includeVars": True,
        "keepTime": True,
        "tags": [],
        "targetBlank": False,
        "title": other.title,
        "tooltip": other.description,
        "type": "link",
        "url": f"/d/{other.uid}",
    }
