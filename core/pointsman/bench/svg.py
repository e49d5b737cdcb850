"""Plots as SVG, written by hand: bars with ranges, and lines over the load. Light and dark readers get readable ones.

Colours: one for our policy, one for the oracle, grey for the others, so that a plot does not need a legend of 25.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

WIDTH = 860
LABEL_WIDTH = 250
BAR_HEIGHT = 18
TOP = 64
BOTTOM = 36
COLOURS = {"ours": "#0b6e4f", "oracle": "#8a5a00", "other": "#7d8793"}
LINES = ("#0b6e4f", "#8a5a00", "#b03a2e", "#2e5cb0", "#7a3fa0", "#47717a", "#8c8c2b", "#555555")


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """A value with its range over the seeds; `kind` is a key of `COLOURS`."""

    label: str
    value: float
    low: float
    high: float
    kind: str = "other"


def bars(title: str, unit: str, rows: Sequence[Bar]) -> str:
    """Horizontal bars on a logarithmic scale: policies differ by factors."""
    height = TOP + BAR_HEIGHT * len(rows) + BOTTOM
    low = min(row.low for row in rows) / 1.5
    high = max(row.high for row in rows) * 1.15
    width = WIDTH - LABEL_WIDTH - 90
    scale = width / math.log(high / low)

    def at(value: float) -> float:
        return LABEL_WIDTH + scale * math.log(max(value, low) / low)

    parts = _head(title, f"{unit}, logarithmic; line: lowest and highest of the seeds", height)
    for tick in _ticks(low, high):
        x = at(tick)
        parts.append(f'<line x1="{x:.1f}" y1="{TOP - 6}" x2="{x:.1f}" y2="{height - BOTTOM}" stroke="#8883"/>')
        parts.append(_text(x, height - BOTTOM + 14, f"{tick:,g}", "middle", 11))
    for number, row in enumerate(rows):
        y = TOP + number * BAR_HEIGHT
        parts.append(_text(LABEL_WIDTH - 8, y + 12, row.label, "end", 12))
        parts.append(
            f'<rect x="{LABEL_WIDTH}" y="{y + 2}" width="{at(row.value) - LABEL_WIDTH:.1f}" height="{BAR_HEIGHT - 5}" '
            f'fill="{COLOURS[row.kind]}"/>'
        )
        middle = y + BAR_HEIGHT / 2 - 0.5
        parts.append(
            f'<line x1="{at(row.low):.1f}" y1="{middle}" x2="{at(row.high):.1f}" y2="{middle}" stroke="#000"/>'
        )
        parts.append(_text(at(row.high) + 5, y + 12, f"{row.value:,.0f}", "start", 11))
    return _svg(parts, height)


def lines(title: str, x_label: str, unit: str, series: Mapping[str, Sequence[tuple[float, float]]]) -> str:
    """Lines over a number, the values on a logarithmic scale. Series need at least one point each."""
    height = 440
    left, right, bottom = 70, WIDTH - 230, height - 50
    xs = [x for points in series.values() for x, _ in points]
    ys = [y for points in series.values() for _, y in points]
    x_low, x_high = min(xs), max(xs) if max(xs) > min(xs) else min(xs) + 1.0
    y_low, y_high = min(ys) / 1.2, max(ys) * 1.2

    def place(x: float, y: float) -> tuple[float, float]:
        across = left + (right - left) * (x - x_low) / (x_high - x_low)
        return across, bottom - (bottom - TOP) * math.log(y / y_low) / math.log(y_high / y_low)

    parts = _head(title, f"{unit}, logarithmic, over {x_label}", height)
    for tick in _ticks(y_low, y_high):
        _, y = place(x_low, tick)
        parts.append(f'<line x1="{left}" y1="{y:.1f}" x2="{right}" y2="{y:.1f}" stroke="#8883"/>')
        parts.append(_text(left - 6, y + 4, f"{tick:,g}", "end", 11))
    for x in sorted(set(xs)):
        parts.append(_text(place(x, y_low)[0], bottom + 16, f"{x:g}", "middle", 11))
    parts.append(_text((left + right) / 2, bottom + 34, x_label, "middle", 12))
    label_y = 0.0
    ends = sorted(series.items(), key=lambda entry: place(*entry[1][-1])[1])
    for name, points in ends:
        colour = LINES[list(series).index(name) % len(LINES)]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in (place(*point) for point in points))
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        label_y = max(place(*points[-1])[1] + 4, label_y + 14)
        parts.append(_text(right + 8, label_y, name, "start", 12, colour=colour))
    return _svg(parts, height)


def _ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 of each power of ten within the range."""
    first = math.floor(math.log10(low))
    last = math.ceil(math.log10(high))
    found = [m * 10.0**n for n in range(first, last + 1) for m in (1, 2, 5)]
    return [tick for tick in found if low <= tick <= high]


def _head(title: str, note: str, height: int) -> list[str]:
    return [
        f'<rect width="{WIDTH}" height="{height}" fill="#fff"/>',
        _text(16, 24, f"{title} (simulated)", "start", 15),
        _text(16, 42, note, "start", 11, colour="#555"),
    ]


def _text(x: float, y: float, text: str, anchor: str, size: int, *, colour: str = "#111") -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}" fill="{colour}">{escape(text)}</text>'
    )


def _svg(parts: Sequence[str], height: int) -> str:
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
        'font-family="system-ui, sans-serif">'
    )
    return "\n".join([head, *parts, "</svg>"]) + "\n"
