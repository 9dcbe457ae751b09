"""The curve of a run as SVG, drawn by hand: no plotting library comes with divserve."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

from divserve.distill.state import Point

__all__ = ["drawing"]

LEFT, WIDTH, HEIGHT, GAP, TOP = 60, 460, 150, 50, 40
_FONT = 'font-family="sans-serif" font-size="12"'
_LINES: tuple[tuple[str, str, int, Callable[[Point], float | None]], ...] = (
    ("held-out KL", "#2563a8", 0, lambda point: point.figures.kl),
    ("training loss", "#888888", 0, lambda point: point.loss),
    ("acceptance", "#5a9e6f", 1, lambda point: point.figures.acceptance),
    ("agreement", "#d08a2e", 1, lambda point: point.figures.agreement),
)
"""Name, colour, panel and value of each line."""


def drawing(title: str, curve: Sequence[Point]) -> str:
    """Returns the picture: nats above, shares below, over the tokens trained on."""
    right = max(curve[-1].tokens, 1)
    tops = [_top(curve, panel) for panel in (0, 1)]
    right_edge, height = LEFT + WIDTH + 110, TOP + 2 * (HEIGHT + GAP)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {right_edge} {height}" {_FONT}>',
        '<rect width="100%" height="100%" fill="white"/>',
        f'<text x="{LEFT}" y="20" font-size="14">{_escaped(title)}</text>',
        *_grid(0, tops[0], "{:g}"),
        *_grid(1, tops[1], "{:.0%}"),
        *_ticks(right),
    ]
    lowest: dict[int, list[float]] = {0: [], 1: []}
    for name, colour, panel, value in _LINES:
        spots = [
            (LEFT + WIDTH * point.tokens / right, _y(panel, y / tops[panel]))
            for point in curve
            if (y := value(point)) is not None
        ]
        if spots:
            parts += _line(name, colour, spots, lowest[panel])
    return "\n".join([*parts, "</svg>", ""])


def _top(curve: Sequence[Point], panel: int) -> float:
    """A round number above everything that `panel` shows."""
    shown = [value(point) or 0.0 for _, _, where, value in _LINES for point in curve
             if where == panel]  # fmt: skip
    highest = max(*shown, 1e-6)
    unit = 10.0 ** math.floor(math.log10(highest))
    top = next(step * unit for step in (1, 2, 5, 10) if step * unit >= highest)
    return min(top, 1.0) if panel else top


def _y(panel: int, share: float) -> float:
    return TOP + panel * (HEIGHT + GAP) + HEIGHT * (1 - share)


def _grid(panel: int, top: float, form: str) -> Iterable[str]:
    for fifth in range(6):
        y = _y(panel, fifth / 5)
        yield (
            f'<line x1="{LEFT}" x2="{LEFT + WIDTH}" y1="{y:.1f}" y2="{y:.1f}" stroke="#ddd"/>'
            f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">'
            f"{form.format(top * fifth / 5)}</text>"
        )
    unit = "share of tokens" if panel else "nats a token"
    y = _y(panel, 1) - 8
    yield f'<text x="{LEFT}" y="{y:.1f}" font-size="11" fill="#555">{unit}</text>'


def _ticks(right: int) -> Iterable[str]:
    y = _y(1, 0) + 18
    for quarter in range(5):
        x = LEFT + WIDTH * quarter / 4
        tokens = f"{right * quarter / 4:,.0f}"
        yield f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="middle">{tokens}</text>'
    x = LEFT + WIDTH / 2
    yield f'<text x="{x:.1f}" y="{y + 18:.1f}" text-anchor="middle">tokens trained on</text>'


def _line(
    name: str, colour: str, spots: Sequence[tuple[float, float]], labels: list[float]
) -> Iterable[str]:
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in spots)
    yield f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>'
    for x, y in spots:
        yield f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>'
    x, y = spots[-1]
    # Lines may end in one place; their names must not lie on each other.
    while any(abs(y - other) < 14 for other in labels):
        y -= 14
    labels.append(y)
    yield f'<text x="{x + 8:.1f}" y="{y + 4:.1f}" fill="{colour}">{name}</text>'


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
