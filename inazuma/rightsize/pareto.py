"""Quality against cost: every rung a point with both of its intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from inazuma.report.charts import Scale, legend, picture
from inazuma.report.page import escape

_HEIGHT = 260


def pareto_chart(rungs: Sequence[Mapping[str, Any]], styles: Sequence[str]) -> str:
    """An SVG of the rungs: across, the median latency at the peak with its interval by ranks (logarithmic); up, the
    quality with its 95 % interval. Up and to the left is better."""
    spans = [(rung["latency_ms"]["p50"], *rung["latency_ms"]["p50_interval"]) for rung in rungs]
    spans = [tuple(max(value, 1e-3) for value in span) for span in spans]
    x = Scale(0.7 * min(map(min, spans)), 1.4 * max(map(max, spans)), logarithmic=True)
    low, high = min(r["quality"]["low"] for r in rungs), max(r["quality"]["high"] for r in rungs)
    y = Scale(low - 0.02, high + 0.02)

    def across(value: float) -> str:
        return f"{100 * x(value):.2f}%"

    def down(value: float) -> float:
        return round(_HEIGHT * (1 - y(value)), 1)

    parts = []
    for tick in y.ticks(5):
        parts.append(f'<line class="grid" x1="0" x2="100%" y1="{down(tick)}" y2="{down(tick)}"/>')
        parts.append(f'<text x="-8" y="{down(tick) + 4}" text-anchor="end">{tick:g}</text>')
    for tick in x.ticks(5):
        parts.append(f'<text x="{across(tick)}" y="{_HEIGHT + 18}" text-anchor="middle">{tick:g}</text>')
    parts.append(f'<text x="50%" y="{_HEIGHT + 37}" text-anchor="middle">median latency at the peak, ms</text>')
    for rung, (middle, left, right), style in zip(rungs, spans, styles, strict=False):
        quality = rung["quality"]
        row = down(quality["value"])
        hint = escape(f"{rung['name']}: quality {quality['value']:.3f}, {middle:.3g} ms")
        parts.append(
            f'<g class="{style}"><line class="span" x1="{across(left)}" x2="{across(right)}" y1="{row}" y2="{row}"/>'
            f'<line class="span" x1="{across(middle)}" x2="{across(middle)}" y1="{down(quality["low"])}" '
            f'y2="{down(quality["high"])}"/>'
            f'<circle class="dot" cx="{across(middle)}" cy="{row}" r="5"><title>{hint}</title></circle></g>'
        )
    label = "Quality of each rung against its median latency, both with intervals"
    names = legend([(rung["name"], style) for rung, style in zip(rungs, styles, strict=False)])
    return names + picture("".join(parts), height=_HEIGHT, label=label)
