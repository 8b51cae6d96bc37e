"""Charts: curves as inline SVG, for the report."""

import html
import math
from collections.abc import Mapping, Sequence
from typing import Any

Points = Sequence[tuple[float, float]]

_WIDTH, _HEIGHT = 380, 230
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 12, 12, 26
_POINTS = 300  # of a curve, at most
_DOTS = 30  # a curve of no more points shows each


def lines(curves: Mapping[str, Points], *, label: str) -> str:
    """Returns an SVG with one line a curve, on a logarithmic axis where the values ask for it.

    Args:
        curves: `(x, y)` pairs by name, in order of x; values that are not finite are left out.
        label: What x is.
    """
    curves = {name: _thinned(_finite(points)) for name, points in curves.items()}
    values = [y for points in curves.values() for _, y in points]
    if not values:
        return ""
    last = max(x for points in curves.values() for x, _ in points) or 1
    log = min(values) > 0 and max(values) > 50 * min(values)
    scale = math.log10 if log else float
    ticks = _decades(min(values), max(values)) if log else _ticks(min(values), max(values))
    low, high = scale(min(*ticks, *values)), scale(max(*ticks, *values))

    def place(x: float, y: float) -> tuple[float, float]:
        across = _LEFT + x / last * (_WIDTH - _LEFT - _RIGHT)
        up = (scale(y) - low) / ((high - low) or 1)
        return across, _HEIGHT - _BOTTOM - up * (_HEIGHT - _TOP - _BOTTOM)

    parts = []
    for tick in ticks:
        _, y = place(0, tick)
        parts.append(
            f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
            f'<text x="{_LEFT - 6}" y="{y + 3.5:.1f}" text-anchor="end">{_short(tick)}</text>'
        )
    for tick in (t for t in _ticks(0, last, 5) if t <= last):
        x, _ = place(tick, values[0])
        anchor = "end" if x > _WIDTH - 30 else "middle"
        parts.append(
            f'<text x="{x:.1f}" y="{_HEIGHT - 10}" text-anchor="{anchor}">{_short(tick)}</text>'
        )
    for name, points in curves.items():
        parts.append(_curve(name, points, place, label))
    title = html.escape(", ".join(curves))
    return (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{title}">'
        f"{''.join(parts)}</svg>"
    )


def _curve(name, points, place, label) -> str:
    places = [place(*point) for point in points]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    kind = html.escape(name, quote=True)
    dots = zip(points, places, strict=True) if len(points) <= _DOTS else ()
    dots = "".join(
        f'<circle cx="{px:.1f}" cy="{py:.1f}" r="2.6"><title>{kind} {number(y)} at {label} '
        f"{number(x)}</title></circle>"
        for (x, y), (px, py) in dots
    )
    return f'<g class="curve {kind}"><polyline points="{path}"/>{dots}</g>'


def value(name: str, value: Any) -> str:
    """Returns a metric's value as people write it: an accuracy as a percentage."""
    if not isinstance(value, int | float):
        return str(value)
    return f"{value:.2%}" if name.endswith("accuracy") else number(value)


def number(value: float) -> str:
    """Returns a number as people write it: `1,200`, `0.034`, `2.1e-07`."""
    size = abs(value)
    if size >= 1e7 or 0 < size < 1e-4:
        return f"{value:.3g}"
    if size >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4g}"


def _short(value: float) -> str:
    """Returns the number of a tick, for which there is little room: `2,000`, `20k`, `50M`."""
    if abs(value) < 1e4:
        return number(value)
    power = min(3, int(math.log10(abs(value)) / 3))
    return f"{value / 1000**power:.4g}{' kMG'[power]}"


def _finite(points: Points) -> list[tuple[float, float]]:
    return [(x, y) for x, y in points if math.isfinite(y)]


def _thinned(points: list) -> list:
    """Returns at most `_POINTS` of the points, each the mean of its neighbours, and the last."""
    stride = -(-len(points) // _POINTS)
    if stride <= 1:
        return points
    groups = [points[i : i + stride] for i in range(0, len(points) - 1, stride)]
    means = [tuple(sum(axis) / len(group) for axis in zip(*group, strict=True)) for group in groups]
    return [*means, points[-1]]


def _ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Returns round numbers, 1, 2 or 5 times a power of 10, around `low` to `high`."""
    if high - low <= 1e-9 * max(abs(low), abs(high)):
        low, high = (low - abs(low) / 2 or -1.0), (high + abs(high) / 2 or 1.0)
    power = 10 ** math.floor(math.log10((high - low) / most))
    step = next(k * power for k in (1, 2, 5, 10) if k * power * most >= high - low)
    return [i * step for i in range(math.floor(low / step), math.ceil(high / step) + 1)]


def _decades(low: float, high: float) -> list[float]:
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    stride = -(-(last - first) // 6)
    return [10.0**power for power in range(first, last + 1, stride)]
