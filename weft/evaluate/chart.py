"""Curves and intervals as inline SVG: axes, legend, light and dark by the page's own colours, no script.

Colours are CSS classes of report.css (`s1`, `s2`, ... for series), so one drawing serves both schemes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

Point = tuple[float, float]
MOST_POINTS = 240  # more than the picture has pixels for


@dataclass(frozen=True)
class Series:
    """One curve. `dots` marks each point (few, measured), a plain line does not (many, smoothed)."""

    name: str
    points: Sequence[Point]
    colour: int = 1
    dots: bool = False
    faint: bool = False


@dataclass(frozen=True)
class Frame:
    """Where the plot area lies in the picture, and which values its edges stand for."""

    width: float
    height: float
    x: tuple[float, float]
    y: tuple[float, float]
    left: float = 44
    right: float = 12
    top: float = 10
    bottom: float = 26

    def place(self, point: Point) -> Point:
        """Data -> pixels."""
        (x0, x1), (y0, y1) = self.x, self.y
        across = (point[0] - x0) / (x1 - x0 or 1)
        up = (point[1] - y0) / (y1 - y0 or 1)
        return (
            self.left + across * (self.width - self.left - self.right),
            self.height - self.bottom - up * (self.height - self.top - self.bottom),
        )


def ticks(low: float, high: float, about: int = 4) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten apart) within [low, high]."""
    if not high > low:
        return [low]
    raw = (high - low) / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(k * step, 12) for k in range(first, math.floor(high / step + 1e-9) + 1)]


def short(value: float) -> str:
    """12000 -> 12k, 0.0500 -> 0.05: a label that fits beside an axis."""
    size = abs(value)
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if size >= limit:
            scale = 1e3 if unit == "k" else limit
            return f"{value / scale:.3g}{unit}"
    if size and size < 1e-3:
        return f"{value:.0e}".replace("e-0", "e-")
    return f"{value:.4g}"


def thin(points: Sequence[Point], most: int = MOST_POINTS) -> list[Point]:
    """At most `most` points, each the mean of as many neighbours; points that are not finite are left out."""
    kept = [p for p in points if math.isfinite(p[0]) and math.isfinite(p[1])]
    size = math.ceil(len(kept) / most) if kept else 1
    groups = [kept[i : i + size] for i in range(0, len(kept), size)]
    return [(sum(x for x, _ in g) / len(g), sum(y for _, y in g) / len(g)) for g in groups]


def smooth(points: Sequence[Point], share: float = 0.015) -> list[Point]:
    """Exponential mean over about `share` of the curve, without the pull towards its first value."""
    keep = 1 - 1 / max(1.0, share * len(points))
    out, mean, weight = [], 0.0, 0.0
    for x, y in points:
        mean = keep * mean + (1 - keep) * y
        weight = keep * weight + (1 - keep)
        out.append((x, mean / weight))
    return out


def below(points: Sequence[Point], top: float) -> list[list[Point]]:
    """The parts of a curve that lie at or under `top`, each begun and ended where the curve crosses it."""
    parts: list[list[Point]] = []
    before: Point | None = None
    for point in points:
        inside = point[1] <= top
        if before is not None and inside != (before[1] <= top):
            share = (top - before[1]) / (point[1] - before[1])
            crossing = (before[0] + share * (point[0] - before[0]), top)
            parts.append([crossing]) if inside else parts[-1].append(crossing)
        elif before is None and inside:
            parts.append([])
        if inside:
            parts[-1].append(point)
        before = point
    return parts


def curves(series: Sequence[Series], *, title: str, x_label: str = "step", from_zero: bool = True) -> str:
    """A `<figure>` with the curves of one quantity.

    The vertical axis starts at zero unless `from_zero` is off. Its top is set without the curve's first tenth, which
    alone would flatten the rest (a loss that falls from 6 to 0.1); a curve above it enters through the edge.
    """
    drawn = [(s, thin(s.points)) for s in series]
    drawn = [(s, points) for s, points in drawn if points]
    if not drawn:
        return ""
    xs = [x for one in series for x, _ in one.points]
    settled = [y for _, points in drawn for _, y in points[len(points) // 10 :]]
    low, high = (0.0 if from_zero and min(settled) >= 0 else min(settled)), max(settled)
    high += (high - low or abs(high) or 1) * 0.06
    frame = Frame(360, 190, (min(xs), max(xs)), (low, high))
    body = _axes(frame, x_label) + "".join(_line(frame, s, points) for s, points in drawn)
    name = escape(title)
    legend = _legend([s for s, _ in drawn if not s.faint])
    return (
        f'<figure class="chart"><figcaption>{name}{legend}</figcaption>'
        f'<svg viewBox="0 0 {frame.width:g} {frame.height:g}" role="img" aria-label="{name}">{body}</svg></figure>'
    )


def _axes(frame: Frame, x_label: str) -> str:
    parts = []
    right, bottom = frame.width - frame.right, frame.height - frame.bottom
    for value in ticks(*frame.y):
        _, y = frame.place((frame.x[0], value))
        parts.append(f'<line class="grid" x1="{frame.left:g}" x2="{right:g}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="tick end" x="{frame.left - 7:g}" y="{y + 3.5:.1f}">{short(value)}</text>')
    for value in ticks(*frame.x):
        x, _ = frame.place((value, frame.y[0]))
        if x < frame.left + 34:  # the axis' name stands there
            continue
        parts.append(f'<text class="tick mid" x="{x:.1f}" y="{bottom + 15:g}">{short(value)}</text>')
    parts.append(f'<line class="axis" x1="{frame.left:g}" x2="{right:g}" y1="{bottom:g}" y2="{bottom:g}"/>')
    parts.append(f'<text class="tick" x="{frame.left:g}" y="{bottom + 15:g}">{escape(x_label)}</text>')
    return "".join(parts)


def _line(frame: Frame, series: Series, points: Sequence[Point]) -> str:
    path = "".join(
        "M" + "L".join("{:.1f} {:.1f}".format(*frame.place(p)) for p in part) for part in below(points, frame.y[1])
    )
    kind = f"curve s{series.colour}" + (" faint" if series.faint else "")
    out = f'<path class="{kind}" d="{path}"/>'
    if series.dots:
        for step, value in points:
            x, y = frame.place((step, min(value, frame.y[1])))
            tip = f"<title>{escape(series.name)}, {short(step)}: {value:.4g}</title>"
            out += f'<circle class="dot s{series.colour}" cx="{x:.1f}" cy="{y:.1f}" r="2.6">{tip}</circle>'
    return out


def _legend(series: Sequence[Series]) -> str:
    if len(series) < 2:
        return ""
    keys = "".join(f'<span><i class="key s{s.colour}"></i>{escape(s.name)}</span>' for s in series)
    return f'<span class="legend">{keys}</span>'


def interval(
    value: float, low: float, high: float, marks: Sequence[tuple[str, float]] = (), *, top: float = 1.0
) -> str:
    """A value and its interval on a track from 0 to `top`; `marks` are baselines, drawn as hollow ticks.

    0 |-----|majority-------|blind-----[===●==]--| 1
    """
    width, middle = 240.0, 11.0
    at = lambda v: 4 + min(max(v / top, 0.0), 1.0) * (width - 8)
    parts = [f'<line class="track" x1="4" x2="{width - 4:g}" y1="{middle:g}" y2="{middle:g}"/>']
    for name, mark in marks:
        parts.append(
            f'<line class="mark" x1="{at(mark):.1f}" x2="{at(mark):.1f}" y1="{middle - 7:g}" y2="{middle + 7:g}">'
            f"<title>{escape(name)}: {mark:.3f}</title></line>"
        )
    wide = max(at(high) - at(low), 1)
    parts.append(
        f'<rect class="band" x="{at(low):.1f}" width="{wide:.1f}" y="{middle - 5:g}" height="10" rx="5"/>'
        f'<circle class="value" cx="{at(value):.1f}" cy="{middle:g}" r="4"/>'
    )
    label = f"{value:.3f}, 95 % interval {low:.3f} to {high:.3f}"
    return (
        f'<svg class="interval" viewBox="0 0 {width:g} 22" role="img" aria-label="{label}"><title>{label}</title>'
        f"{''.join(parts)}</svg>"
    )
