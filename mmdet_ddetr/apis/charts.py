"""Line charts as SVG inside a page; their colours are the page's own, in light and dark."""

import math
from collections.abc import Mapping, Sequence

from .page import text

WIDTH, HEIGHT = 560, 320
LEFT, RIGHT, TOP, BOTTOM = 46, 16, 10, 40  # around the plot
COLOURS = 8  # that page.css has for curves: c0 ... c7
MAX_POINTS = 400  # of a curve

Curve = tuple[Sequence[float], Sequence[float]]  # x, y


def line_chart(
    curves: Mapping[str, Curve],
    x_name: str,
    title: str,
    x_range: tuple[float, float] | None = None,
    y_range: tuple[float, float] | None = None,
    log: bool = False,
) -> str:
    """A chart with its legend below, as a figure.

    Args:
        curves: points by name, at most 8 curves; points that are not finite are left out, and on a logarithmic scale
            those that are not positive.
        x_name: of the horizontal axis.
        title: of the figure.
        x_range, y_range: of the axes; by default those of the points.
        log: the vertical axis is logarithmic.
    """
    drawn = {name: _sound(*curve, log) for name, curve in curves.items()}
    points = [point for curve in drawn.values() for point in curve]
    if not points:
        return f'<figure class="chart"><figcaption><b>{text(title)}</b>no points</figcaption></figure>'
    x_axis = _Axis(x_range or (0, max(x for x, _ in points)), LEFT, WIDTH - RIGHT)
    y_axis = _Axis(y_range or _span([y for _, y in points], log), HEIGHT - BOTTOM, TOP, log)
    parts = [_axes(x_axis, y_axis, x_name)]
    legend = []
    for i, (name, curve) in enumerate(drawn.items()):
        places = [(x_axis.place(x), y_axis.place(y)) for x, y in curve]
        path = 'M' + 'L'.join(f'{x:.1f} {y:.1f}' for x, y in places)
        title_of = f'<title>{text(name)}</title>'
        parts.append(f'<path class="curve c{i % COLOURS}" d="{path}">{title_of}</path>' if places else '')
        if len(places) <= 20:  # evaluations: each can be pointed at
            for (x, y), (x_value, y_value) in zip(places, curve):
                parts.append(
                    f'<circle class="c{i % COLOURS}" cx="{x:.1f}" cy="{y:.1f}" r="3">'
                    f'<title>{text(name)}, {_number(x_value)}: {y_value:.3g}</title></circle>'
                )
        legend.append(f'<span><i class="c{i % COLOURS}"></i>{text(name)}</span>')
    label = text(f'{title}: {", ".join(curves)}')
    svg = f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">{"".join(parts)}</svg>'
    caption = f'<figcaption><b>{text(title)}</b><span class="legend">{"".join(legend)}</span></figcaption>'
    return f'<figure class="chart">{svg}{caption}</figure>\n'


def sparkline(values: Sequence[float], label: str) -> str:
    """A curve of values in 0..1 over 0..1, small enough for a line of a table."""
    step = max(len(values) // 20, 1)
    ends = len(values) - 1
    places = [(50 * i / ends, 18 - 18 * values[i]) for i in range(0, len(values), step)]
    line = 'L'.join(f'{x:.1f} {y:.1f}' for x, y in places)
    return (
        f'<svg class="spark" viewBox="-1 -1 52 20" role="img" aria-label="{text(label)}"><path class="under" '
        f'd="M0 18L{line}L50 18Z"/><path class="curve c0" d="M{line}"/></svg>'
    )


class _Axis:
    """From values to places along a side of the plot, and the values to name there."""

    def __init__(self, span: tuple[float, float], first: float, last: float, log: bool = False):
        self.span, self.first, self.last, self.log = span, first, last, log

    def place(self, value: float) -> float:
        low, high, value = (math.log10(v) if self.log else v for v in (*self.span, value))
        share = (value - low) / (high - low) if high > low else 0.5
        return self.first + min(max(share, 0), 1) * (self.last - self.first)

    @property
    def ticks(self) -> list[float]:
        low, high = self.span
        if self.log:
            decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
            for steps in ((1,), (1, 2, 5), range(1, 10)):
                ticks = [m * 10**e for e in decades for m in steps if low <= m * 10**e <= high]
                if len(ticks) > 3:
                    break
            return ticks
        step = _nice((high - low) / 5) if high > low else 1
        return [n * step for n in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def _axes(x_axis: _Axis, y_axis: _Axis, x_name: str) -> str:
    parts = []
    for tick in y_axis.ticks:
        y = y_axis.place(tick)
        parts.append(f'<path class="grid" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>')
        parts.append(f'<text x="{LEFT - 7}" y="{y + 4:.1f}" text-anchor="end">{_number(tick)}</text>')
    for tick in x_axis.ticks:
        x = x_axis.place(tick)
        parts.append(f'<path class="grid" d="M{x:.1f} {TOP}V{HEIGHT - BOTTOM}"/>')
        parts.append(f'<text x="{x:.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{_number(tick)}</text>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text x="{middle}" y="{HEIGHT - 6}" text-anchor="middle">{text(x_name)}</text>')
    return ''.join(parts)


def _sound(xs: Sequence[float], ys: Sequence[float], log: bool) -> list[tuple[float, float]]:
    points = [(x, y) for x, y in zip(xs, ys) if math.isfinite(x) and math.isfinite(y) and (y > 0 or not log)]
    return points[:: -(-len(points) // MAX_POINTS) or 1]


def _span(values: Sequence[float], log: bool) -> tuple[float, float]:
    low, high = min(values), max(values)
    if log:
        return low / 1.1, high * 1.1
    return min(low, 0), high * 1.08 if high > 0 else 1


def _nice(step: float) -> float:
    """The next of 1, 2, 5 and their multiples by ten."""
    power = 10 ** math.floor(math.log10(step))
    return next(m * power for m in (1, 2, 5, 10) if m * power >= step * (1 - 1e-9))


def _number(value: float) -> str:
    return f'{value:g}' if abs(value) < 1e4 else f'{value / 1000:g}k'
