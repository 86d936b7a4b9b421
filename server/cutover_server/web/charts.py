"""Numbers to the coordinates of a small line chart. Pure; the template draws them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

WIDTH, HEIGHT = 640, 160
LEFT, RIGHT, TOP, BOTTOM = 44, 8, 10, 20


@dataclass(frozen=True, slots=True)
class Line:
    name: str
    style: int
    """0, 1, 2 ...: the class `line-<style>` of the style sheet, which also differs in its dashes."""
    points: str
    dots: tuple[tuple[float, float], ...]


@dataclass(frozen=True, slots=True)
class Chart:
    title: str
    lines: tuple[Line, ...]
    grid: tuple[tuple[float, str], ...]
    """Height on the picture and text of each horizontal line."""
    first: str
    last: str
    summary: str
    """The chart in words, for those who do not see it."""


def line_chart(
    title: str,
    series: Mapping[str, Sequence[tuple[float, float]]],
    *,
    low: float,
    high: float,
    unit: str,
    label_x: Mapping[float, str],
) -> Chart | None:
    """A chart of x, y points per name; none when there is nothing to draw."""
    xs = sorted({x for points in series.values() for x, _ in points})
    if not xs:
        return None
    span_x, span_y = (xs[-1] - xs[0]) or 1.0, (high - low) or 1.0

    def at(x: float, y: float) -> tuple[float, float]:
        inside = min(max(y, low), high)
        return (
            round(LEFT + (x - xs[0]) / span_x * (WIDTH - LEFT - RIGHT), 1),
            round(TOP + (high - inside) / span_y * (HEIGHT - TOP - BOTTOM), 1),
        )

    lines = []
    for style, (name, points) in enumerate(sorted(series.items())):
        dots = tuple(at(x, y) for x, y in sorted(points))
        lines.append(Line(name, style % 4, " ".join(f"{x},{y}" for x, y in dots), dots))
    levels = [low, (low + high) / 2, high]
    newest = "; ".join(
        f"{name}: {sorted(points)[-1][1]:.4g}{unit}" for name, points in sorted(series.items())
    )
    return Chart(
        title=title,
        lines=tuple(lines),
        grid=tuple((at(xs[0], level)[1], f"{level:.3g}{unit}") for level in levels),
        first=label_x[xs[0]],
        last=label_x[xs[-1]],
        summary=f"{title}, {label_x[xs[0]]} to {label_x[xs[-1]]}. Newest: {newest}.",
    )
