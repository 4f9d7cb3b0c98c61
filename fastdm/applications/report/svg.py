"""Figures as inline SVG: text stays text, colours come from the page, so that they fit light, dark and paper."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

WIDTH, HEIGHT = 640, 320
LEFT, RIGHT, TOP, BOTTOM = 76, 14, 14, 56
ROW = 34
"""Height of a row of a chart of points."""


@dataclass(frozen=True)
class Line:
    """A curve with a band around it; all four of equal length. number: which of the page's colours and dashes."""

    name: str
    number: int
    x: Sequence[float]
    mean: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]


@dataclass(frozen=True)
class Point:
    """A value with its spread on a row; mark: which of the page's marks, see `_MARKS`; number: which colour."""

    name: str
    value: float
    spread: float | None
    mark: str
    number: int


@dataclass(frozen=True)
class _Axis:
    """Values from low to high, drawn from start to end."""

    low: float
    high: float
    start: float
    end: float

    @classmethod
    def around(cls, values: Sequence[float], start: float, end: float) -> "_Axis":
        low, high = min(values), max(values)
        margin = 0.04 * (high - low) or abs(high) or 1.0
        return cls(low - margin, high + margin, start, end)

    def __call__(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)

    def ticks(self, most: int = 5) -> list[float]:
        """Round values on the axis, 1, 2 or 5 times a power of ten apart."""
        raw = (self.high - self.low) / most
        power = 10 ** math.floor(math.log10(raw))
        step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= raw)
        first = math.ceil(self.low / step - 1e-9)
        return [step * number for number in range(first, math.floor(self.high / step + 1e-9) + 1)]


def line_chart(title: str, description: str, x_label: str, y_label: str, lines: Sequence[Line]) -> Markup:
    """Curves over a common axis, each with its band."""
    values = [value for line in lines for part in (line.mean, line.low, line.high) for value in part]
    across = _Axis.around([x for line in lines for x in line.x], LEFT, WIDTH - RIGHT)
    upward = _Axis.around(values, HEIGHT - BOTTOM, TOP)
    parts = [_horizontal_axis(across, x_label, HEIGHT), _vertical_axis(upward, y_label)]
    for line in lines:
        xs = [across(x) for x in line.x]
        top, bottom = ([upward(value) for value in side] for side in (line.high, line.low))
        band = [*zip(xs, top, strict=True), *reversed([*zip(xs, bottom, strict=True)])]
        parts.append(Markup('<polygon class="band c{}" points="{}"/>').format(line.number, _points(band)))
    for line in lines:
        curve = _points([(across(x), upward(mean)) for x, mean in zip(line.x, line.mean, strict=True)])
        parts.append(Markup('<polyline class="curve c{}" points="{}"/>').format(line.number, curve))
    return _figure(title, description, HEIGHT, parts)


def point_chart(title: str, description: str, x_label: str, rows: Sequence[tuple[str, Sequence[Point]]]) -> Markup:
    """One row for each name, with its points and their spreads."""
    height = TOP + ROW * len(rows) * 2 + BOTTOM
    ends = [end for _, points in rows for p in points for end in (p.value - (p.spread or 0), p.value + (p.spread or 0))]
    across = _Axis.around(ends, LEFT - 60, WIDTH - RIGHT)
    parts = [_horizontal_axis(across, x_label, height)]
    for number, (name, points) in enumerate(rows):
        y = TOP + ROW * (2 * number + 1.4)
        parts.append(Markup('<text x="{}" y="{}">{}</text>').format(LEFT - 60, _short(y - 20), name))
        parts.append(Markup('<path class="grid" d="M{} {}H{}"/>').format(LEFT - 60, _short(y), WIDTH - RIGHT))
        # A little apart, so that no spread hides another.
        parts.extend(_draw_point(point, across, y + 5 * (i - (len(points) - 1) / 2)) for i, point in enumerate(points))
    return _figure(title, description, height, parts)


def bar_chart(title: str, description: str, unit: str, bars: Sequence[tuple[str, float, int]]) -> Markup:
    """Horizontal bars from 0, each with its name and value above it: (name, value, colour)."""
    height = 4 + 46 * len(bars)
    most = max(value for _, value, _ in bars) or 1.0
    parts = []
    for number, (name, value, colour) in enumerate(bars):
        y = 4 + 46 * number
        length = _short(max(1.0, value / most * (WIDTH - 4)))
        parts.append(
            Markup(
                '<text x="2" y="{}">{}: {} {}</text><rect class="bar c{}" x="2" y="{}" width="{}" height="14" rx="3"/>'
            ).format(y + 16, name, number_text(value), unit, colour, y + 22, length)
        )
    return _figure(title, description, height, parts)


def number_text(value: float) -> str:
    """A number with three significant digits, without an exponent where people would not use one."""
    if value and not 1e-4 <= abs(value) < 1e7:
        return f"{value:.2g}"
    digits = 0 if value == 0 else max(0, 2 - math.floor(math.log10(abs(value))))
    text = f"{value:,.{digits}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def _figure(title: str, description: str, height: int, parts: Sequence[Markup]) -> Markup:
    return Markup('<svg viewBox="0 0 {} {}" role="img" aria-label="{}. {}">{}</svg>').format(
        WIDTH, height, title, description, Markup("").join(parts)
    )


def _horizontal_axis(axis: _Axis, label: str, height: int) -> Markup:
    base = height - BOTTOM
    parts = [Markup('<path class="axis" d="M{} {}H{}"/>').format(_short(axis.start), base, _short(axis.end))]
    for tick in axis.ticks():
        x = _short(axis(tick))
        parts.append(Markup('<path class="grid" d="M{} {}V{}"/>').format(x, TOP, base))
        parts.append(Markup('<text class="middle" x="{}" y="{}">{}</text>').format(x, base + 20, number_text(tick)))
    middle = _short((axis.start + axis.end) / 2)
    parts.append(Markup('<text class="middle" x="{}" y="{}">{}</text>').format(middle, base + 44, label))
    return Markup("").join(parts)


def _vertical_axis(axis: _Axis, label: str) -> Markup:
    parts = [Markup('<path class="axis" d="M{} {}V{}"/>').format(LEFT, _short(axis.start), _short(axis.end))]
    for tick in axis.ticks():
        y = axis(tick)
        parts.append(Markup('<path class="grid" d="M{} {}H{}"/>').format(LEFT, _short(y), WIDTH - RIGHT))
        parts.append(
            Markup('<text class="end" x="{}" y="{}">{}</text>').format(LEFT - 8, _short(y + 5), number_text(tick))
        )
    middle = _short((axis.start + axis.end) / 2)
    parts.append(
        Markup('<text class="middle" transform="translate(16 {}) rotate(-90)">{}</text>').format(middle, label)
    )
    return Markup("").join(parts)


_MARKS: dict[str, Callable[[float, float], str]] = {
    "circle": lambda x, y: f"M{_short(x - 7)} {_short(y)}a7 7 0 1 0 14 0a7 7 0 1 0 -14 0z",
    "square": lambda x, y: f"M{_short(x - 6)} {_short(y - 6)}h12v12h-12z",
    "diamond": lambda x, y: f"M{_short(x)} {_short(y - 9)}l8 9l-8 9l-8 -9z",
    "triangle": lambda x, y: f"M{_short(x)} {_short(y - 8)}l8 15h-16z",
}


def _draw_point(point: Point, across: _Axis, y: float) -> Markup:
    x = across(point.value)
    spread = Markup("")
    if point.spread:
        low, high = (across(point.value + sign * point.spread) for sign in (-1, 1))
        spread = Markup('<path class="spread c{}" d="M{} {}H{}"/>').format(
            point.number, _short(low), _short(y), _short(high)
        )
    path = _MARKS[point.mark](x, y)
    text = f"{point.name}: {point.value:.1f}"
    return spread + Markup('<path class="mark c{}" d="{}"><title>{}</title></path>').format(point.number, path, text)


def legend_mark(mark: str, number: int) -> Markup:
    """A mark as it is in a chart, for its legend."""
    return Markup(
        '<svg class="key" viewBox="0 0 20 20" aria-hidden="true"><path class="mark c{}" d="{}"/></svg>'
    ).format(number, _MARKS[mark](10, 10))


def legend_line(number: int) -> Markup:
    """A piece of a curve as it is in a chart, for its legend."""
    return Markup(
        '<svg class="key wide" viewBox="0 0 36 20" aria-hidden="true"><path class="curve c{}" d="M2 10H34"/></svg>'
    ).format(escape(number))


def _points(points: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{_short(x)},{_short(y)}" for x, y in points)


def _short(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")
