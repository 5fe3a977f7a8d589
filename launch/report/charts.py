"""Charts as inline SVG. The drawing stretches to the page's width; its numbers are HTML beside it, readable on a phone."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from zerofleet.launch.report import ticks
from zerofleet.launch.report.markup import text
from zerofleet.launch.report.series import Point

WIDTH, HEIGHT = 1000, 240
_MARGIN = 4
"""Above and below, so that a line at the edge is drawn whole."""
_NEAR = 0.06
"""A number so near to an end of the axis, as a share of it, is set inwards."""


@dataclass(frozen=True)
class Line:
    """`kind` is the CSS class of its colour; `has_dots` for few points that stand for themselves."""

    name: str
    points: Sequence[Point]
    kind: str = "c1"
    has_dots: bool = False


def number(value: float) -> str:
    """Four digits at most, with the usual signs for thousands."""
    if value == 0 or not math.isfinite(value):
        return "0" if value == 0 else str(value)
    if abs(value) >= 1e4:
        return f"{value:,.0f}"
    return f"{value:.4g}" if abs(value) >= 1e-4 else f"{value:.1e}"


def share(value: float) -> str:
    """`42.5 %`."""
    return f"{number(100 * value)} %"


def seconds(value: float) -> str:
    """`250 ms`, `1.5 s`."""
    return "0" if value == 0 else f"{1e3 * value:.3g} ms" if value < 1 else f"{value:.4g} s"


def chart(
    title: str,
    lines: Sequence[Line],
    marks: Sequence[float] = (),
    from_zero: bool = False,
    unit: str = "",
    shown: Callable[[float], str] = number,
) -> str:
    """Lines over steps, with the band from least to most around them; `marks` are steps with a vertical line. Empty without points."""
    lines = [line for line in lines if line.points]
    if not lines:
        return ""
    xs = [point.x for line in lines for point in line.points]
    low = min(point.least for line in lines for point in line.points)
    high = max(point.most for line in lines for point in line.points)
    levels = ticks.around(min(0.0, low) if from_zero else low, high)
    scale = _Scale(min(xs), max(xs), levels[0], levels[-1])
    drawn = f'<path class=grid d="{"".join(f"M0 {scale.y(level)}H{WIDTH}" for level in levels)}"/>'
    drawn += "".join(f'<path class=mark d="M{scale.x(x)} 0V{HEIGHT}"/>' for x in marks if min(xs) <= x <= max(xs))
    drawn += "".join(_draw(line, scale) for line in lines)
    legend = "".join(f'<span class="key {line.kind}">{text(line.name)}</span>' for line in lines) if lines[1:] else ""
    last = ", ".join(f"{line.name} ends at {shown(line.points[-1].mean)}" for line in lines)
    y = "".join(f'<span style="top:{scale.percent_down(level):.4g}%">{shown(level)}</span>' for level in levels)
    return (
        f"<figure><figcaption><b>{text(title)}</b><span class=unit>{text(unit)}</span>{legend}<b>{shown(lines[0].points[-1].mean)}</b></figcaption>"
        f"<div class=plot><div class=y>{y}</div>"
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" preserveAspectRatio="none" role="img" aria-label="{text(f"{title}: {last}")}">{drawn}</svg></div>'
        f"<div class=x>{_steps(scale)}</div></figure>\n"
    )


def axis(places: Sequence[tuple[float, str]]) -> str:
    """Numbers below a drawing, each at its share of the width."""
    kinds = (" class=first" if place < _NEAR else " class=last" if place > 1 - _NEAR else "" for place, _ in places)
    return "".join(
        f'<span{kind} style="left:{100 * place:.4g}%">{text(name)}</span>'
        for (place, name), kind in zip(places, kinds, strict=True)
    )


@dataclass(frozen=True)
class _Scale:
    """From values to the drawing."""

    left: float
    right: float
    low: float
    high: float

    def x_share(self, value: float) -> float:
        return (value - self.left) / ((self.right - self.left) or 1.0)

    def x(self, value: float) -> str:
        return f"{WIDTH * self.x_share(value):.1f}".removesuffix(".0")

    def _down(self, value: float) -> float:
        return HEIGHT - _MARGIN - (HEIGHT - 2 * _MARGIN) * (value - self.low) / ((self.high - self.low) or 1.0)

    def y(self, value: float) -> str:
        return f"{self._down(value):.1f}".removesuffix(".0")

    def percent_down(self, value: float) -> float:
        return 100 * self._down(value) / HEIGHT


def _steps(scale: _Scale) -> str:
    return axis([(scale.x_share(step), f"{step:,.0f}") for step in ticks.within(scale.left, scale.right)])


def _draw(line: Line, scale: _Scale) -> str:
    if line.has_dots or len(line.points) == 1:
        dots = "".join(f"M{scale.x(p.x)} {scale.y(p.mean)}h0" for p in line.points)
        return f'<path class="dots {line.kind}" d="{dots}"/>'
    means = "L".join(f"{scale.x(p.x)} {scale.y(p.mean)}" for p in line.points)
    drawn = f'<path class="line {line.kind}" d="M{means}"/>'
    if all(p.least == p.most for p in line.points):
        return drawn
    upper = [f"{scale.x(p.x)} {scale.y(p.most)}" for p in line.points]
    lower = [f"{scale.x(p.x)} {scale.y(p.least)}" for p in reversed(line.points)]
    return f'<path class="band {line.kind}" d="M{"L".join(upper + lower)}Z"/>{drawn}'
