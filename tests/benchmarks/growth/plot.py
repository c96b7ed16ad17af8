"""The curves as one SVG: a panel each, times what the least costs over the size."""

from __future__ import annotations

from typing import Final
from xml.sax.saxutils import escape

from benchmarks.growth.curves import GOAL, Curve, Point

WIDTH: Final = 300
HEIGHT: Final = 190
LEFT, RIGHT, TOP, BOTTOM = 40, 15, 30, 45
COLUMNS: Final = 3
#: What the vertical axis shows at least.
LOWEST, HIGHEST = 0.6, 1.6
_STYLE: Final = (
    "text{font:11px sans-serif;fill:#333}.title{font-weight:bold}.axis{stroke:#999}.goal{stroke:#c33;stroke-dasharray:4 3}"
    ".curve{fill:none;stroke:#247;stroke-width:2}.point{fill:#247}"
)


def svg(curves: list[tuple[Curve, list[Point]]]) -> str:
    """The whole picture."""
    rows = -(-len(curves) // COLUMNS)
    panels = [
        f'<g transform="translate({number % COLUMNS * WIDTH} {number // COLUMNS * HEIGHT})">{_panel(curve, points)}</g>'
        for number, (curve, points) in enumerate(curves)
    ]
    size = f'width="{COLUMNS * WIDTH}" height="{rows * HEIGHT}"'
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" {size}>',
            f"<style>{_STYLE}</style>",
            '<rect width="100%" height="100%" fill="#fff"/>',
            *panels,
            "</svg>\n",
        ]
    )


def _panel(curve: Curve, points: list[Point]) -> str:
    highest = max(HIGHEST, *(point.ratio for point in points)) + 0.05

    def across(number: int) -> float:
        return LEFT + number * (WIDTH - LEFT - RIGHT) / max(1, len(points) - 1)

    def up(ratio: float) -> float:
        return HEIGHT - BOTTOM - (ratio - LOWEST) / (highest - LOWEST) * (HEIGHT - TOP - BOTTOM)

    places = [(across(number), up(point.ratio)) for number, point in enumerate(points)]
    end, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM
    parts = [
        f'<text class="title" x="{LEFT}" y="18">{escape(curve.name)}</text>',
        f'<line class="axis" x1="{LEFT}" y1="{bottom}" x2="{end}" y2="{bottom}"/>',
        f'<line class="axis" x1="{LEFT}" y1="{TOP}" x2="{LEFT}" y2="{bottom}"/>',
        f'<line class="goal" x1="{LEFT}" y1="{up(GOAL):.1f}" x2="{end}" y2="{up(GOAL):.1f}"/>',
        f'<polyline class="curve" points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in places)}"/>',
        f'<text x="{(LEFT + end) / 2}" y="{HEIGHT - 10}" text-anchor="middle">{escape(curve.what)}</text>',
    ]
    parts.extend(
        f'<text x="{LEFT - 5}" y="{up(ratio) + 4:.1f}" text-anchor="end">{ratio:.1f}</text>'
        for ratio in (LOWEST, 1.0, GOAL, HIGHEST)
    )
    for (x, y), point in zip(places, points, strict=True):
        parts.append(f'<circle class="point" cx="{x:.1f}" cy="{y:.1f}" r="3"/>')
        parts.append(f'<text x="{x:.1f}" y="{bottom + 14}" text-anchor="middle">{point.size:,}</text>')
    return "".join(parts)
