"""Pictures for reports: SVG that stretches with the page while its letters keep their size.

Every picture is as wide as its place. Positions across are therefore percentages; only what a path draws lies in a
nested picture that is stretched. Heights are CSS pixels. What a picture says is also said by its `aria-label`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from inazuma.report.page import escape

Point = tuple[float, float]
_ACROSS = 1000
_PHONE = 270
"""The width in CSS pixels of a chart's inside on a narrow phone: labels that fit there fit everywhere."""


@dataclass(frozen=True)
class Series:
    """One curve: its name in the legend, its points (x, y) in ascending x, and the CSS class that colours it."""

    name: str
    points: Sequence[Point]
    style: str
    dots: bool = False


@dataclass(frozen=True)
class Axis:
    """The x axis: its name, how a value reads on it and in a dot's hint, and the ticks if not at round values.

    A logarithmic one begins at the lowest point, a linear one at 0.
    """

    name: str
    hint: str
    logarithmic: bool = False
    text: Callable[[float], str] = "{:g}".format
    ticks: Sequence[float] = ()


@dataclass(frozen=True)
class Band:
    """A stretch of the x axis that carries a name."""

    name: str
    start: float
    stop: float


@dataclass(frozen=True)
class Scale:
    """Maps [low, high] to [0, 1], linearly or by the logarithm."""

    low: float
    high: float
    logarithmic: bool = False

    def __call__(self, value: float) -> float:
        low, high, value = (math.log(x) if self.logarithmic else x for x in (self.low, self.high, value))
        return (value - low) / (high - low) if high > low else 0.5

    def ticks(self, count: int) -> list[float]:
        """About `count` round values inside the scale: 1, 2 or 5 times a power of ten, or steps of that size."""
        if self.logarithmic and self.high >= 10 * self.low:
            exponents = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            factors = (1,) if len(exponents) > count else (1, 2, 5) if len(exponents) <= 3 else (1, 3)
            values = [factor * 10.0**exponent for exponent in exponents for factor in factors]
            return [value for value in values if self.low <= value <= self.high]
        if self.high <= self.low:
            return [self.low]
        raw = (self.high - self.low) / count
        power = 10.0 ** math.floor(math.log10(raw))
        step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * (1 - 1e-9))
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [round(i * step, 12) for i in range(first, last + 1)]


def short(value: float) -> str:
    """A count as people say it: 850, 82k, 1.5M."""
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:g}"


def percent(value: float, digits: int = 0) -> str:
    """A share in [0, 1] as text, with a narrow space before the sign."""
    return f"{100 * value:.{digits}f}\u202f%"


TRAINING_TOKENS = Axis("training tokens", "after {} tokens", text=short)


def line_chart(
    series: Sequence[Series],
    *,
    label: str,
    x_axis: Axis = TRAINING_TOKENS,
    bands: Sequence[Band] = (),
    y_range: tuple[float, float] | None = None,
    logarithmic: bool = False,
    y_text: Callable[[float], str] = "{:g}".format,
    height: int = 240,
) -> str:
    """Curves over `x_axis`, with a legend.

    `label` says the picture in words; `y_range` fixes the y axis, which else holds all points; `logarithmic` is the y
    axis. Points that are not finite, or not above 0 on a logarithm, are left out.
    """
    drawn = [[point for point in one.points if _drawable(point, x_axis.logarithmic, logarithmic)] for one in series]
    points = [point for one in drawn for point in one]
    if not points:
        return '<p class="note">The run recorded nothing to draw here.</p>'
    start = min(x for x, _ in points) if x_axis.logarithmic else 0
    x = Scale(start, max([band.stop for band in bands] + [x for x, _ in points]), x_axis.logarithmic)
    y = Scale(*(y_range or (min(y for _, y in points), max(y for _, y in points))), logarithmic)
    # Where the axis ends at the data, the outermost points keep clear of its ends.
    margin = 0 if y_range else 8

    def down(value: float) -> float:
        return round(margin + (height - 2 * margin) * (1 - y(value)), 1)

    names, above = _bands(bands, x, height)
    parts = [names]
    for tick in y.ticks(4):
        parts.append(f'<line class="grid" x1="0" x2="100%" y1="{down(tick)}" y2="{down(tick)}"/>')
        parts.append(f'<text x="-8" y="{down(tick) + 4}" text-anchor="end">{escape(y_text(tick))}</text>')
    for tick in x_axis.ticks or x.ticks(4):
        text = escape(x_axis.text(tick))
        parts.append(f'<text x="{_across(x(tick))}" y="{height + 18}" text-anchor="middle">{text}</text>')
    parts.append(f'<text x="50%" y="{height + 37}" text-anchor="middle">{escape(x_axis.name)}</text>')
    curves, dots = "", ""
    # The first series is drawn last, and so on top.
    for one, found in reversed(list(zip(series, drawn, strict=True))):
        corners = " ".join(f"{_ACROSS * x(a):.1f},{down(b)}" for a, b in found)
        curves += f'<polyline class="curve {one.style}" points="{corners}"/>'
        # A curve of one point has no length: it is seen by its dot.
        if one.dots or len(found) == 1:
            for a, b in found:
                hint = f"{one.name}: {y_text(b)} {x_axis.hint.format(x_axis.text(a))}"
                dots += f'<circle class="dot {one.style}" cx="{_across(x(a))}" cy="{down(b)}" r="4">'
                dots += f"<title>{escape(hint)}</title></circle>"
    content = "".join(parts) + stretched(curves, height) + dots
    names_and_colours = legend([(one.name, one.style) for one in series])
    return names_and_colours + picture(content, height=height, label=label, above=above)


def _drawable(point: Point, *logarithmic: bool) -> bool:
    return all(
        isinstance(value, int | float) and math.isfinite(value) and (value > 0 or not log)
        for value, log in zip(point, logarithmic, strict=True)
    )


def _bands(bands: Sequence[Band], x: Scale, height: int) -> tuple[str, int]:
    """Every second band shaded, and the names above in as many rows as a phone needs; also the rows' height."""
    parts: list[str] = []
    ends: list[float] = []
    for i, band in enumerate(bands):
        start, stop = x(band.start), x(band.stop)
        if i % 2:
            width = _across(stop - start)
            parts.append(f'<rect class="band" x="{_across(start)}" width="{width}" y="0" height="{height}"/>')
        width = 6.5 * len(band.name) + 10
        overhangs = start * _PHONE + width > _PHONE
        left = stop * _PHONE - width if overhangs else start * _PHONE
        row = next((i for i, end in enumerate(ends) if end <= left), len(ends))
        ends[row : row + 1] = [left + width]
        anchor, where = ("end", stop) if overhangs else ("start", start)
        level = -15 * row - 4
        name = escape(band.name)
        parts.append(f'<text x="{_across(where)}" y="{level - 2}" text-anchor="{anchor}">{name}</text>')
        if i:
            where = _across(start)
            parts.append(f'<line class="grid" x1="{where}" x2="{where}" y1="{level}" y2="{height}"/>')
    return "".join(parts), 15 * len(ends)


def bar(value: float, interval: Sequence[float], *, full: float, style: str) -> str:
    """A bar from 0 to `value` with its interval, in a picture that spans 0 to `full`; its row says the numbers."""
    low, high = (_across(end / full) for end in interval)
    ends = "".join(f'<line class="whisker" x1="{end}" x2="{end}" y1="6" y2="16"/>' for end in (low, high))
    return (
        '<svg aria-hidden="true" width="100%" height="22">'
        f'<rect class="bar {style}" width="{_across(value / full)}" y="4" height="14" rx="2"/>'
        f'<line class="whisker" x1="{low}" x2="{high}" y1="11" y2="11"/>{ends}</svg>'
    )


def dumbbell(before: float, after: float) -> str:
    """Two shares on a line from 0 to 1: a ring for `before`, a dot for `after`; its row says the numbers."""
    low, high = _across(before), _across(after)
    return (
        '<svg aria-hidden="true" width="100%" height="22">'
        '<line class="grid" x1="0" x2="100%" y1="11" y2="11"/>'
        f'<line class="span sparse" x1="{low}" x2="{high}" y1="11" y2="11"/>'
        f'<circle class="ring recent" cx="{low}" cy="11" r="4"/>'
        f'<circle class="dot sparse" cx="{high}" cy="11" r="5.5"/>'
        "</svg>"
    )


def interval_chart(value: float, interval: Sequence[float], *, limit: float, label: str) -> str:
    """A relative difference and its interval around 0, with a dashed line at `limit`."""
    reach = 1.25 * max(abs(value), *(abs(end) for end in interval), limit)
    scale = Scale(-reach, reach)
    zero, aim, low, high, middle = (_across(scale(at)) for at in (0, limit, *interval, value))
    content = (
        f'<line class="grid" x1="0" x2="100%" y1="34" y2="34"/>'
        f'<line class="axis" x1="{zero}" x2="{zero}" y1="18" y2="50"/>'
        f'<line class="axis" x1="{aim}" x2="{aim}" y1="18" y2="50" stroke-dasharray="3 3"/>'
        f'<text x="{zero}" y="66" text-anchor="middle">equal</text>'
        f'<text x="{aim}" y="66" text-anchor="middle">+{percent(limit)}</text>'
        '<text x="0" y="10">← sparse is better</text><text x="100%" y="10" text-anchor="end">dense is better →</text>'
        f'<line class="span sparse" x1="{low}" x2="{high}" y1="34" y2="34"/>'
        f'<line class="span sparse" x1="{low}" x2="{low}" y1="28" y2="40"/>'
        f'<line class="span sparse" x1="{high}" x2="{high}" y1="28" y2="40"/>'
        f'<circle class="dot sparse" cx="{middle}" cy="34" r="6"/>'
    )
    return f'<svg role="img" aria-label="{escape(label)}" width="100%" height="72">{content}</svg>'


def legend(entries: Sequence[tuple[str, str]]) -> str:
    """Names with their colours: (name, CSS class)."""
    items = "".join(f'<li class="{style}"><span>{escape(name)}</span></li>' for name, style in entries)
    return f'<ul class="legend">{items}</ul>'


def picture(content: str, *, height: int, label: str, above: int = 0) -> str:
    """A picture as wide as its place, with room for letters at its left and bottom, and `above` pixels of it on top."""
    start = f'<svg role="img" aria-label="{escape(label)}" width="100%" height="{height}">'
    return f'<div class="plot" style="padding-top:{above + 8}px">{start}{content}</svg></div>'


def stretched(content: str, height: int) -> str:
    """Shapes in coordinates of 1000 across and `height` down, stretched to the picture's width."""
    start = f'<svg viewBox="0 0 {_ACROSS} {height}" width="100%" height="{height}" preserveAspectRatio="none">'
    return f"{start}{content}</svg>"


def _across(share: float) -> str:
    return f"{100 * share:.2f}%"
