"""A dashboard with its data as one SVG picture, laid out as Grafana lays it out: for documentation, without Grafana."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise
from typing import Final

from pointsman.app.observe.grafana import COLUMNS, Dashboard, Panel
from pointsman.bench.svg import LINES

WIDTH: Final = 1280
ROW_PX: Final = 26
HEAD_PX: Final = 40
LEGEND_LINES: Final = 5
"""More series than that share a picture of this size badly; the rest is counted."""
MORE_THAN_A_STEP: Final = 3.0
"""Gap, in sampling steps, over which no line is drawn."""

Points = Sequence[tuple[float, float]]
Events = Sequence[tuple[float, str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """One line: its legend, its labels, and (seconds since the epoch, value) without holes filled in."""

    legend: str
    labels: Mapping[str, str]
    points: Points


@dataclass(frozen=True, slots=True, kw_only=True)
class Box:
    """Where a panel draws, in pixels."""

    x: float
    y: float
    width: float
    height: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """The time that is shown."""

    begin_s: float
    end_s: float

    def at(self, box: Box, when_s: float) -> float:
        """The x of a time within a box."""
        return box.x + box.width * (when_s - self.begin_s) / max(1e-9, self.end_s - self.begin_s)


def picture(dashboard: Dashboard, data: Mapping[str, Sequence[Series]], span: Span, events: Events = ()) -> str:
    """The SVG text. `data`: the series of each panel, by its title. `events`: (time, words), marked on all lines."""
    unit = WIDTH / COLUMNS
    parts: list[str] = []
    y = float(HEAD_PX)
    for row in dashboard.rows:
        parts.append(_text(10, y + 17, row.title, size=14, weight="bold"))
        y += ROW_PX
        x = tallest = 0
        for panel in row.panels:
            if x + panel.width > COLUMNS:
                y, x, tallest = y + tallest * ROW_PX, 0, 0
            box = Box(x=x * unit + 4, y=y + 2, width=panel.width * unit - 8, height=panel.height * ROW_PX - 6)
            parts += _panel(panel, data.get(panel.title, ()), box, span, events)
            x, tallest = x + panel.width, max(tallest, panel.height)
        y += tallest * ROW_PX + 4
    height = y + 8
    seconds = f"{span.end_s - span.begin_s:.0f} s of a run on {time.strftime('%Y-%m-%d', time.gmtime(span.begin_s))}"
    marks = "; ".join(f"{number}: {words}" for number, (_, words) in enumerate(events, 1))
    head = [
        f'<rect width="{WIDTH}" height="{height:.0f}" fill="#f3f4f6"/>',
        _text(10, 20, dashboard.title, size=17, weight="bold"),
        _text(10, 35, f"{seconds}, simulated model servers. {marks}", size=10, colour="#555"),
    ]
    open_tag = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:.0f}" width="{WIDTH}" '
        f'height="{height:.0f}" font-family="system-ui, sans-serif">'
    )
    return "\n".join([open_tag, *head, *parts, "</svg>"]) + "\n"


def _panel(panel: Panel, series: Sequence[Series], box: Box, span: Span, events: Events) -> list[str]:
    parts = [
        f'<rect x="{box.x:.1f}" y="{box.y:.1f}" width="{box.width:.1f}" height="{box.height:.1f}" rx="3" '
        'fill="#fff" stroke="#d5d9de"/>',
        _text(box.x + 8, box.y + 16, panel.title, size=12, weight="bold"),
    ]
    inner = Box(x=box.x + 8, y=box.y + 24, width=box.width - 16, height=box.height - 30)
    draw = _KINDS.get(panel.kind, _lines)
    if not any(one.points for one in series):
        return [*parts, _text(inner.x, inner.y + 16, "no data", size=11, colour="#999")]
    return [*parts, *draw(panel, [one for one in series if one.points], inner, span, events)]


def _lines(panel: Panel, series: Sequence[Series], box: Box, span: Span, events: Events) -> list[str]:
    if len(series) > LEGEND_LINES:  # the largest are named
        series = sorted(series, key=lambda one: -one.points[-1][1])
    shown = series[:LEGEND_LINES]
    chart = Box(x=box.x + 46, y=box.y + 2, width=box.width - 50, height=box.height - 14 - 13 * len(shown) - 12)
    curves = _stacked(series) if panel.stack else [one.points for one in series]
    top = panel.maximum or max(value for points in curves for _, value in points) * 1.1 or 1.0
    low = min(0.0, *(value for points in curves for _, value in points))
    parts = []

    def height(value: float) -> float:
        share = (min(value, top) - low) / max(1e-12, top - low)
        return chart.y + chart.height * (1 - share)

    for tick in (low, (low + top) / 2, top):
        at = height(tick)
        parts.append(_rule(chart.x, at, chart.x + chart.width, at, "#e6e8eb"))
        parts.append(_text(chart.x - 4, at + 4, show(tick, panel.unit), size=9, anchor="end", colour="#666"))
    for number, (when_s, _) in enumerate(events, 1):
        if span.begin_s <= when_s <= span.end_s:
            at = span.at(chart, when_s)
            parts.append(_rule(at, chart.y, at, chart.y + chart.height, "#b69ad0"))
            parts.append(_text(at, chart.y + chart.height + 9, str(number), size=8, anchor="middle", colour="#7a5aa0"))
    for number, points in reversed(list(enumerate(curves))):
        colour = LINES[number % len(LINES)]
        for piece in _pieces(points):
            path = " ".join(f"{span.at(chart, when_s):.1f},{height(value):.1f}" for when_s, value in piece)
            if panel.stack:
                first, last = span.at(chart, piece[0][0]), span.at(chart, piece[-1][0])
                area = f"{first:.1f},{height(low):.1f} {path} {last:.1f},{height(low):.1f}"
                parts.append(f'<polygon points="{area}" fill="{colour}" fill-opacity="0.75"/>')
            else:
                parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.4"/>')
    y = chart.y + chart.height + 22
    for number, one in enumerate(shown):
        colour = LINES[number % len(LINES)]
        parts.append(f'<rect x="{box.x:.1f}" y="{y - 7:.1f}" width="9" height="3" fill="{colour}"/>')
        more = (
            f" (and {len(series) - len(shown)} more)" if number == len(shown) - 1 and len(series) > len(shown) else ""
        )
        value = show(one.points[-1][1], panel.unit)
        parts.append(_text(box.x + 14, y, f"{_cut(one.legend, box.width - 90)}{more}", size=9, colour="#333"))
        parts.append(_text(box.x + box.width, y, value, size=9, anchor="end", colour="#333"))
        y += 13
    return parts


def _stacked(series: Sequence[Series]) -> list[Points]:
    """Each line on top of those before it, at the times that it has."""
    below: dict[float, float] = {}
    curves: list[Points] = []
    for one in series:
        curve = []
        for when_s, value in one.points:
            below[when_s] = below.get(when_s, 0.0) + value
            curve.append((when_s, below[when_s]))
        curves.append(curve)
    return curves


def _pieces(points: Points) -> list[Points]:
    """The line, cut where samples are missing."""
    if len(points) < 2:
        return [points]
    step_s = min(later[0] - earlier[0] for earlier, later in pairwise(points))
    pieces: list[list[tuple[float, float]]] = [[points[0]]]
    for earlier, later in pairwise(points):
        if later[0] - earlier[0] > MORE_THAN_A_STEP * step_s:
            pieces.append([])
        pieces[-1].append(later)
    return list(pieces)


def _stat(panel: Panel, series: Sequence[Series], box: Box, _: Span, __: Events) -> list[str]:
    parts = []
    for number, one in enumerate(series[:3]):
        value = one.points[-1][1]
        words, colour = _word(panel, value) or (show(value, panel.unit), "#0b6e4f")
        y = box.y + 30 + number * 34
        parts.append(_text(box.x + box.width / 2, y, words, size=24, anchor="middle", colour=colour))
        if one.legend:
            parts.append(_text(box.x + box.width / 2, y + 12, one.legend, size=9, anchor="middle", colour="#666"))
    return parts


def _gauges(panel: Panel, series: Sequence[Series], box: Box, _: Span, __: Events) -> list[str]:
    top = panel.maximum or max(one.points[-1][1] for one in series) or 1.0
    parts = []
    for number, one in enumerate(series[: int(box.height // 26)]):
        y, value = box.y + number * 26, one.points[-1][1]
        width = box.width * min(1.0, max(0.0, value / top))
        parts.append(_text(box.x, y + 10, one.legend, size=9, colour="#333"))
        parts.append(_text(box.x + box.width, y + 10, show(value, panel.unit), size=9, anchor="end", colour="#333"))
        parts.append(f'<rect x="{box.x:.1f}" y="{y + 13:.1f}" width="{width:.1f}" height="8" fill="{LINES[0]}"/>')
    return parts


def _heat(panel: Panel, series: Sequence[Series], box: Box, _: Span, __: Events) -> list[str]:
    """The buckets of a histogram at the end: how many lie in each."""
    ends = sorted((float(one.labels.get("le", "inf")), one.points[-1][1]) for one in series)
    counts = [(le, count - before) for (le, count), before in zip(ends, [0.0, *(c for _, c in ends)], strict=False)]
    tall = box.height / len(counts)
    most = max(count for _, count in counts) or 1.0
    parts = []
    for number, (le, count) in enumerate(counts):
        y, words = box.y + number * tall, "more" if math.isinf(le) else f"≤ {show(le, panel.unit)}"
        width = (box.width - 90) * count / most
        parts.append(_text(box.x + 52, y + tall / 2 + 3, words, size=9, anchor="end", colour="#333"))
        parts.append(
            f'<rect x="{box.x + 58:.1f}" y="{y + 2:.1f}" width="{width:.1f}" height="{tall - 3:.1f}" fill="#c76b00"/>'
        )
        if count:
            parts.append(_text(box.x + 62 + width, y + tall / 2 + 3, f"{count:g}", size=9, colour="#333"))
    return parts


def _table(panel: Panel, series: Sequence[Series], box: Box, _: Span, __: Events) -> list[str]:
    columns = sorted({name for one in series for name in one.labels if name != "__name__"})
    wide = box.width / (len(columns) + 1)
    lines = [[*columns, "value"]]
    lines += [[*(one.labels.get(name, "") for name in columns), show(one.points[-1][1], panel.unit)] for one in series]
    parts = []
    for number, line in enumerate(lines[: int(box.height // 15)]):
        for column, words in enumerate(line):
            weight = "bold" if number == 0 else "normal"
            place = box.x + column * wide
            parts.append(_text(place, box.y + 11 + 15 * number, _cut(words, wide - 4), size=9, weight=weight))
    return parts


def _states(panel: Panel, series: Sequence[Series], box: Box, span: Span, _: Events) -> list[str]:
    parts = []
    tall = min(24.0, box.height / len(series))
    lane = Box(x=box.x + 0.36 * box.width, y=box.y, width=0.64 * box.width, height=box.height)
    for number, one in enumerate(series[: int(box.height // tall)]):
        y = box.y + number * tall
        parts.append(_text(lane.x - 6, y + tall / 2 + 3, _cut(one.legend, lane.x - box.x), size=9, anchor="end"))
        steps = [later[0] - earlier[0] for earlier, later in pairwise(one.points)]
        step_s = min(steps, default=1.0)
        for when_s, value in one.points:
            words, colour = _word(panel, value) or _step(panel, value) or ("", LINES[number % len(LINES)])
            if words.strip():
                x = span.at(lane, when_s)
                width = max(0.8, span.at(lane, when_s + step_s) - x + 0.2)
                parts.append(
                    f'<rect x="{x:.1f}" y="{y + 2:.1f}" width="{width:.1f}" height="{tall - 4:.1f}" fill="{colour}"/>'
                )
    return parts


def _step(panel: Panel, value: float) -> tuple[str, str] | None:
    """A value that no mapping names, and the colour of the last step that it has reached."""
    reached = [step.colour for step in panel.steps if step.value is None or step.value <= value]
    return (show(value, panel.unit), _COLOURS.get(reached[-1], "#999")) if reached else None


def _word(panel: Panel, value: float) -> tuple[str, str] | None:
    """What a value is called, and its colour."""
    for at, words, colour in panel.mappings:
        if math.isclose(float(at), value):
            return words, _COLOURS.get(colour, "#999")
    return None


def show(value: float, unit: str) -> str:
    """A value with its unit, short."""
    if unit == "percentunit":
        return f"{100 * value:.3g} %"
    if unit == "s":
        return _duration(value)
    if unit == "currencyUSD":
        return f"${value:.2f}"
    size, letter = next(((size, letter) for size, letter in _SIZES if abs(value) >= size), (1.0, ""))
    return f"{value / size:.3g} {letter}{_SUFFIX.get(unit, '')}".rstrip()


def _duration(value_s: float) -> str:
    for size_s, letter in ((172_800.0, "d"), (7_200.0, "h")):
        if value_s >= size_s:
            return f"{value_s / (86_400 if letter == 'd' else 3_600):.3g} {letter}"
    return f"{value_s:.3g} s" if value_s >= 1 or value_s == 0 else f"{1000 * value_s:.3g} ms"


_COLOURS: Final = {
    "green": "#0b6e4f",
    "red": "#b03a2e",
    "orange": "#c76b00",
    "yellow": "#b09a00",
    "blue": "#2e5cb0",
}
_SIZES: Final = ((1e9, "G"), (1e6, "M"), (1e3, "k"))
_SUFFIX: Final = {"bytes": "B", "Bps": "B/s", "reqps": "/s"}


def _cut(words: str, width: float) -> str:
    """As much as fits; a letter of size 9 is some 5 pixels wide."""
    letters = max(4, int(width / 4.9))
    return words if len(words) <= letters else words[: letters - 1] + "…"


def _rule(x1: float, y1: float, x2: float, y2: float, colour: str) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}" stroke-width="1"/>'


def _text(
    x: float, y: float, words: str, *, size: int, anchor: str = "start", weight: str = "normal", colour: str = "#111"
) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}" font-weight="{weight}" '
        f'fill="{colour}">{escape(words)}</text>'
    )


_Draw = Callable[[Panel, Sequence[Series], Box, Span, Events], list[str]]
_KINDS: Final[dict[str, _Draw]] = {
    "stat": _stat,
    "bargauge": _gauges,
    "heatmap": _heat,
    "table": _table,
    "state-timeline": _states,
    "status-history": _states,
}
