"""Charts as inline SVG. The drawing stretches to the page's width; its numbers are HTML beside it, readable on a phone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from zerofleet.launch.report.markup import text
from zerofleet.launch.report.series import Point

WIDTH, HEIGHT = 1000, 240


@dataclass(frozen=True)
class Line:
    """`kind` is the CSS class of its colour; `has_dots` for few points that stand for themselves."""

    name: str
    points: Sequence[Point]
    kind: str = "c1"
    has_dots: bool = False


def chart(
    title: str, lines: Sequence[Line], marks: Sequence[float] = (), from_zero: bool = False, x_name: str = "step"
) -> str:
    """Lines with the band from least to most around them; `marks` are x values with a vertical line. Empty without points."""
    lines = [line for line in lines if line.points]
    if not lines:
        return ""
    xs = [point.x for line in lines for point in line.points]
    low = min(point.least for line in lines for point in line.points)
    high = max(point.most for line in lines for point in line.points)
    low = min(0.0, low) if from_zero else low
    scale = _Scale(min(xs), max(xs), low, high)
    drawn = "".join(f'<path class=mark d="M{scale.x(x)} 0V{HEIGHT}"/>' for x in marks if min(xs) <= x <= max(xs))
    drawn += "".join(_draw(line, scale) for line in lines)
    legend = "".join(f'<span class="key {line.kind}">{text(line.name)}</span>' for line in lines)
    last = ", ".join(f"{line.name} ends at {number(line.points[-1].mean)}" for line in lines)
    return (
        f"<figure><figcaption>{text(title)} {legend}</figcaption>"
        f"<div class=plot><div class=y><span>{number(high)}</span><span>{number(low)}</span></div>"
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" preserveAspectRatio="none" role="img" aria-label="{text(f"{title}: {last}")}">{drawn}</svg></div>'
        f"<div class=x><span>{number(min(xs))}</span><span>{text(x_name)}</span><span>{number(max(xs))}</span></div></figure>\n"
    )


@dataclass(frozen=True)
class _Scale:
    """From values to the drawing."""

    left: float
    right: float
    low: float
    high: float

    def x(self, value: float) -> str:
        return f"{WIDTH * (value - self.left) / ((self.right - self.left) or 1.0):.1f}".removesuffix(".0")

    def y(self, value: float) -> str:
        share = (value - self.low) / ((self.high - self.low) or 1.0)
        return f"{HEIGHT - 4 - (HEIGHT - 8) * share:.1f}".removesuffix(".0")


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


def number(value: float) -> str:
    """Four digits at most, with the usual signs for thousands."""
    if value == 0 or not math.isfinite(value):
        return "0" if value == 0 else str(value)
    if abs(value) >= 1e4:
        return f"{value:,.0f}"
    return f"{value:.4g}" if abs(value) >= 1e-3 else f"{value:.1e}"
