"""Small line charts as SVG text, readable in print and on a dark page, without anything to install. Pure.

Lines differ in their dashes as well as in their colours (Okabe and Ito's palette, made for the colour-blind), and every
picture says in words what it shows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

WIDTH, HEIGHT = 720, 360
LEFT, RIGHT, TOP, BOTTOM = 64, 168, 44, 48
COLOURS = ("#0072B2", "#D55E00", "#666666", "#009E73", "#CC79A7", "#E69F00")
DASHES = ("", "7 4", "2 3", "10 3 2 3", "4 2", "1 2")
STEPS = (1.0, 2.0, 2.5, 5.0, 10.0)


@dataclass(frozen=True, slots=True)
class Line:
    """A named line through (x, y) points in order of x. `stairs` keeps a value until the next point."""

    name: str
    points: Sequence[tuple[float, float]]
    stairs: bool = False


@dataclass(frozen=True, slots=True)
class Axis:
    """From `low` to `high`, with a name that holds the unit."""

    name: str
    low: float
    high: float

    @property
    def ticks(self) -> list[float]:
        """About five round numbers."""
        width = (self.high - self.low) or 1.0
        size = 10.0 ** math.floor(math.log10(width / 5))
        step = next(size * s for s in STEPS if size * s >= width / 6)
        first = math.ceil(self.low / step - 1e-9)
        last = math.floor(self.high / step + 1e-9)
        return [n * step for n in range(first, last + 1)]


def line_chart(
    title: str, x: Axis, y: Axis, lines: Sequence[Line], words: str, marker: float | None = None
) -> str:
    """The picture; `words` describes it, `marker` is an x to draw a dotted line at. Lines are cut at the frame."""

    def across(value: float) -> float:
        inside = min(max(value, x.low), x.high)
        return round(LEFT + (inside - x.low) / ((x.high - x.low) or 1.0) * (WIDTH - LEFT - RIGHT), 1)

    def up(value: float) -> float:
        inside = min(max(value, y.low), y.high)
        return round(TOP + (y.high - inside) / ((y.high - y.low) or 1.0) * (HEIGHT - TOP - BOTTOM), 1)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" '
        'role="img" font-family="system-ui, sans-serif" font-size="12">',
        f"<title>{escape(title)}</title>",
        f"<desc>{escape(words)}</desc>",
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>',
        f'<text x="{LEFT}" y="24" font-size="15" font-weight="600" fill="#222222">{escape(title)}</text>',
    ]
    for value in y.ticks:
        at = up(value)
        parts.append(f'<path d="M{LEFT} {at}H{WIDTH - RIGHT}" stroke="#dddddd"/>')
        parts.append(_text(LEFT - 8, at + 4, f"{value:.4g}", "end"))
    for value in x.ticks:
        at = across(value)
        parts.append(f'<path d="M{at} {HEIGHT - BOTTOM}v5" stroke="#222222"/>')
        parts.append(_text(at, HEIGHT - BOTTOM + 18, f"{value:.4g}", "middle"))
    if marker is not None:
        parts.append(
            f'<path d="M{across(marker)} {TOP}V{HEIGHT - BOTTOM}" stroke="#222222" stroke-dasharray="1 4"/>'
        )
    parts.append(f'<path d="M{LEFT} {TOP}V{HEIGHT - BOTTOM}H{WIDTH - RIGHT}" fill="none" stroke="#222222"/>')
    parts.append(_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 10, x.name, "middle"))
    parts.append(
        f'<text transform="translate(16 {(TOP + HEIGHT - BOTTOM) / 2}) rotate(-90)" text-anchor="middle" '
        f'fill="#222222">{escape(y.name)}</text>'
    )
    for number, line in enumerate(lines):
        colour, dash = COLOURS[number % len(COLOURS)], DASHES[number % len(DASHES)]
        look = f'fill="none" stroke="{colour}" stroke-width="2.2"' + (
            f' stroke-dasharray="{dash}"' if dash else ""
        )
        parts.append(f'<path d="{_path(line, across, up)}" {look}/>')
        at = TOP + 14 + 22 * number
        parts.append(f'<path d="M{WIDTH - RIGHT + 16} {at}h28" {look}/>')
        parts.append(_text(WIDTH - RIGHT + 50, at + 4, line.name, "start"))
    return "\n".join([*parts, "</svg>"]) + "\n"


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}" fill="#222222">{escape(text)}</text>'


def _path(line: Line, across: Callable[[float], float], up: Callable[[float], float]) -> str:
    commands: list[str] = []
    for px, py in line.points:
        x, y = across(px), up(py)
        if not commands:
            commands.append(f"M{x:g} {y:g}")
        else:
            commands.append(f"H{x:g}V{y:g}" if line.stairs else f"L{x:g} {y:g}")
    return "".join(commands)
