"""The time line of a drill as a picture (SVG): what clients got, in steps of 0.1 s, and what happened when. Pure."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from html import escape
from typing import Final

from pointsman.failover.outcome import Baseline, Outcome, Seen, outcome
from pointsman.failover.report import Moment

STEP_S: Final = 0.1

_WIDTH: Final = 900
_LEFT: Final = 48
_TOP: Final = 56
_PLOT: Final = 170
_LINE: Final = 18
_SITES: Final = ("#2e5cb0", "#0b6e4f", "#7a3fa0", "#47717a")
_COLOURS: Final = {"slow": "#c98a00", "rejected": "#8a6d3b", "truncated": "#d0562c", "failed": "#b03a2e"}
_LAYERS: Final = tuple(_COLOURS)


def bins(
    requests: Sequence[Seen], site_of: Mapping[str, str], base: Baseline, *, fault_s: float
) -> dict[int, Counter[str]]:
    """Step (0 begins with the fault) → what the requests that began in it got: a site, or what went wrong."""
    found: dict[int, Counter[str]] = {}
    for seen in requests:
        step = math.floor((seen.start_s - fault_s) / STEP_S + 1e-9)
        found.setdefault(step, Counter())[_layer(seen, site_of, base)] += 1
    return found


def _layer(seen: Seen, site_of: Mapping[str, str], base: Baseline) -> str:
    what = outcome(seen)
    if what is not Outcome.OK:
        return str(what.value)
    return "slow" if base.slow(seen) else site_of.get(seen.replica, "?")


def timeline(
    title: str,
    requests: Sequence[Seen],
    moments: Sequence[Moment],
    site_of: Mapping[str, str],
    base: Baseline,
    *,
    fault_s: float,
) -> str:
    """The picture. A bar is one step, stacked by who answered or what went wrong; lines are `moments`."""
    steps = bins(requests, site_of, base, fault_s=fault_s)
    first, last = min(steps, default=0), max(steps, default=0) + 1
    tall = max((counts.total() for counts in steps.values()), default=1)
    sites = sorted(set(site_of.values()))
    colours = {**{site: _SITES[i % len(_SITES)] for i, site in enumerate(sites)}, **_COLOURS, "?": "#7d8793"}
    order = [*sites, "?", *_LAYERS]
    bottom = _TOP + _PLOT
    scale = (_WIDTH - _LEFT - 20) / max(1, last - first)
    height = bottom + 30 + _LINE * len(moments) + 10

    def x(at_s: float) -> float:
        return _LEFT + scale * (at_s / STEP_S - first)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}" height="{height}" '
        'font-family="system-ui, sans-serif">',
        f'<rect width="{_WIDTH}" height="{height}" fill="#fff"/>',
        _text(16, 22, title, 15),
    ]
    at = 16.0
    for name in [name for name in order if any(counts[name] for counts in steps.values())]:
        parts.append(f'<rect x="{at:.0f}" y="33" width="10" height="10" fill="{colours[name]}"/>')
        parts.append(_text(at + 14, 42, name, 11))
        at += 30 + 7 * len(name)
    for step, counts in sorted(steps.items()):
        y = float(bottom)
        for name in order:
            if counts[name]:
                rise = _PLOT * counts[name] / tall
                y -= rise
                parts.append(
                    f'<rect x="{x(step * STEP_S):.1f}" y="{y:.1f}" width="{max(scale - 0.5, 0.5):.1f}" '
                    f'height="{rise:.1f}" fill="{colours[name]}"/>'
                )
    seconds = range(math.ceil(first * STEP_S), math.floor(last * STEP_S) + 1)
    parts += [_text(x(second), bottom + 14, f"{second} s", 10, anchor="middle") for second in seconds]
    parts.append(_text(_LEFT - 6, _TOP + 10, f"{tall}", 10, anchor="end"))
    for number, moment in enumerate(moments):
        place, row = x(moment.at_s), bottom + 30 + _LINE * number
        parts.append(
            f'<line x1="{place:.1f}" y1="{_TOP}" x2="{place:.1f}" y2="{row}" stroke="#111" stroke-width="0.7"/>'
        )
        right = place < _WIDTH * 0.6
        parts.append(
            _text(place + (4 if right else -4), row + 2, f"{moment.at_s:+.2f} s {moment.what}", 11,
                  anchor="start" if right else "end")
        )  # fmt: skip
    return "\n".join([*parts, "</svg>"]) + "\n"


def _text(x: float, y: float, text: str, size: int, *, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}" fill="#111">{escape(text)}</text>'
