"""Charts as inline SVG that stretch with the page while their text keeps its size, in the page's own colours."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fmray.report.figures import number
from fmray.report.markup import Markup, el

LOG_SPAN = 30.0  # a ratio of largest to smallest from which a logarithmic axis reads better


@dataclass(frozen=True)
class Axis:
    """A linear or logarithmic axis over [low, high]; `at` gives a value's place from 0 to 1."""

    low: float
    high: float
    log: bool = False

    def at(self, value: float) -> float:
        """Where a value lies between the two ends, clipped to them."""
        low, high, x = (math.log10(v) for v in (self.low, self.high, max(value, self.low))) if self.log else (self.low, self.high, value)
        return min(1.0, max(0.0, (x - low) / (high - low))) if high > low else 0.5

    def ticks(self, wanted: int = 5) -> list[float]:
        """Round values inside the axis: powers of ten (with 2 and 5 when those are few), or multiples of 1, 2 or 5."""
        if self.log:
            return _log_ticks(self.low, self.high, wanted)
        step = _nice((self.high - self.low) / max(1, wanted))
        first = math.ceil(self.low / step - 1e-9)
        return [round(k * step, 12) for k in range(first, math.floor(self.high / step + 1e-9) + 1)]


def _nice(rough: float) -> float:
    power = 10.0 ** math.floor(math.log10(rough)) if rough > 0 else 1.0
    return next(m * power for m in (1, 2, 5, 10) if m * power >= rough * 0.999)


def _log_ticks(low: float, high: float, wanted: int) -> list[float]:
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for multiples in ((1,), (1, 3), (1, 2, 5), (1, 2, 3, 4, 5, 6, 7, 8, 9)):
        ticks = [m * 10.0**p for p in powers for m in multiples if low * 0.999 <= m * 10.0**p <= high * 1.001]
        if len(ticks) >= min(3, wanted):
            return ticks
    return ticks


def axis_for(values: Sequence[float], *, log: bool | None = None, zero: bool = False, margin: float = 0.06) -> Axis:
    """An axis that holds all values; logarithmic by itself when they are positive (no underflow) and span more than `LOG_SPAN`."""
    finite = [v for v in values if math.isfinite(v)] or [0.0, 1.0]
    low, high = min(finite), max(finite)
    use_log = low > 1e-300 and (high / low > LOG_SPAN if log is None else log)
    if use_log:
        pad = max((math.log10(high) - math.log10(low)) * margin, 0.02)
        return Axis(low / 10**pad, high * 10**pad, log=True)
    if zero:
        low, high = min(low, 0.0), max(high, 0.0) or (1.0 if low >= 0 else 0.0)
    # A margin of numbers too small to have one: the axis must still have two ends.
    pad = (high - low or abs(high) or 1.0) * margin or margin
    return Axis(low if zero and low == 0 else low - pad, high if zero and high == 0 else high + pad)


@dataclass(frozen=True)
class Series:
    """One line or one cloud of points: (x, y) pairs with a name; `mark` is its colour class, s1 to s6."""

    name: str
    points: Sequence[tuple[float, float]]
    mark: str = "s1"
    line: bool = True
    titles: Sequence[str] = ()


def percent(place: float) -> str:
    """A place from 0 to 1 as an SVG percentage."""
    return f"{100 * place:.2f}%"


def plot(
    series: Sequence[Series],
    *,
    title: str,
    x_label: str,
    y_label: str,
    height: int = 240,
    x_axis: Axis | None = None,
    y_axis: Axis | None = None,
    guides: Sequence[tuple[float, str]] = (),
    x_ticks: Sequence[tuple[float, str]] | None = None,
) -> Markup:
    """Lines and points over two labelled axes.

    Args:
        guides: horizontal lines (y, name) such as a baseline.
        x_ticks: (value, text) pairs that replace the ticks of the x axis, for categories.
    """
    xs = [x for s in series for x, _ in s.points]
    ys = [y for s in series for _, y in s.points] + [y for y, _ in guides]
    across, up = x_axis or axis_for(xs, margin=0.02), y_axis or axis_for(ys)
    ticks = x_ticks if x_ticks is not None else [(v, number(v)) for v in across.ticks()]
    drawn = [*_y_grid(up, height), *_x_ticks(across, ticks, height), *(_guide(up, height, y, name) for y, name in guides)]
    drawn += [_curve(s, across, up, height) for s in series if s.line and len(s.points) > 1]
    drawn += [dot for s in series if not s.line or len(s.points) <= 40 for dot in _dots(s, across, up, height)]
    scale = " (log)" if up.log else ""
    labels = [
        el("text", f"{y_label}{scale}", x="0", y="-10", class_="axis-name", style="transform: translateX(-44px)"),
        el("text", f"{x_label}{' (log)' if across.log else ''}", x="100%", y=height + 36, text_anchor="end", class_="axis-name"),
    ]
    svg = el("svg", el("title", title), drawn, labels, width="100%", height=height, role="img", aria_label=title)
    return el("div", el("div", svg, class_="plot"), _legend(series), class_="chart")


def _y_grid(axis: Axis, height: int) -> list[Markup]:
    def line(value: float) -> Markup:
        y = height * (1 - axis.at(value))
        return el("g", el("line", x1="0", x2="100%", y1=f"{y:.1f}", y2=f"{y:.1f}", class_="grid"), el("text", number(value), x="-8", y=f"{y + 4:.1f}", text_anchor="end", class_="tick"))

    return [line(value) for value in axis.ticks()]


def _x_ticks(axis: Axis, ticks: Sequence[tuple[float, str]], height: int) -> list[Markup]:
    def tick(value: float, label: str) -> Markup:
        x = percent(axis.at(value))
        return el("g", el("line", x1=x, x2=x, y1=height, y2=height + 5, class_="grid"), el("text", label, x=x, y=height + 18, text_anchor="middle", class_="tick"))

    base = el("line", x1="0", x2="100%", y1=height, y2=height, class_="axis")
    return [base, *(tick(value, label) for value, label in ticks)]


def _guide(axis: Axis, height: int, value: float, name: str) -> Markup:
    y = height * (1 - axis.at(value))
    # A loss falls from the upper left to the lower right: names stand where the curve is not.
    low = axis.at(value) < 0.5
    label = el("text", name, x="4" if low else "100%", y=f"{y - 5:.1f}", text_anchor="start" if low else "end", class_="guide-name")
    return el("g", el("line", x1="0", x2="100%", y1=f"{y:.1f}", y2=f"{y:.1f}", class_="guide"), label)


def _curve(series: Series, across: Axis, up: Axis, height: int) -> Markup:
    """The line in a nested view that stretches sideways only; its stroke keeps its width."""
    path = " ".join(f"{1000 * across.at(x):.1f},{height * (1 - up.at(y)):.1f}" for x, y in series.points if math.isfinite(y))
    line = el("polyline", points=path, class_=f"line {series.mark}", vector_effect="non-scaling-stroke")
    return el("svg", line, width="100%", height=height, viewBox=f"0 0 1000 {height}", preserveAspectRatio="none", overflow="visible")


def _dots(series: Series, across: Axis, up: Axis, height: int) -> list[Markup]:
    titles = series.titles or [f"{series.name}: {number(x)}, {number(y)}" for x, y in series.points]
    return [
        el("circle", el("title", title), cx=percent(across.at(x)), cy=f"{height * (1 - up.at(y)):.1f}", r=3 if series.line else 5, class_=f"dot {series.mark}")
        for (x, y), title in zip(series.points, titles, strict=True)
        if math.isfinite(y)
    ]


def _legend(series: Sequence[Series]) -> Markup | None:
    if len(series) < 2:
        return None
    return el("ul", [el("li", el("span", class_=f"key {s.mark}", aria_hidden="true"), s.name) for s in series], class_="legend")


@dataclass(frozen=True)
class Row:
    """One figure on a shared axis: its value, its interval and the value of its control, each None when unknown."""

    label: Markup
    value: float | None
    shown: str
    lower: float | None = None
    upper: float | None = None
    control: float | None = None
    mark: str = "s1"
    note: str = ""


def rows_chart(rows: Sequence[Row], *, title: str, unit: str, bars: bool) -> Markup:
    """Figures under one another on one axis, as bars from zero or as dots, with interval and control marks."""
    values = [v for r in rows for v in (r.value, r.lower, r.upper, r.control) if v is not None and math.isfinite(v)]
    axis = axis_for(values, log=False, zero=bars)
    drawn = [_row(row, axis, bars) for row in rows]
    ticks = [el("text", number(v), x=percent(axis.at(v)), y="14", text_anchor="middle", class_="tick") for v in axis.ticks(4)]
    scale = el("div", el("span", unit, class_="unit"), el("svg", ticks, width="100%", height=20, aria_hidden="true"), el("span"), class_="row scale")
    return el("div", drawn, scale, class_="rows", role="group", aria_label=title)


def _row(row: Row, axis: Axis, bars: bool) -> Markup:
    say: Callable[[str, float | None], str] = lambda word, value: f", {word} {number(value)}" if value is not None else ""  # noqa: E731
    spoken = f"{row.shown}{say('from', row.lower)}{say('to', row.upper)}{say('control', row.control)}"
    svg = el("svg", el("title", spoken), _row_marks(row, axis, bars), width="100%", height=26, role="img", aria_label=spoken)
    return el("div", el("div", row.label, class_="row-label"), svg, el("div", row.shown, el("small", row.note) if row.note else None, class_="row-value"), class_="row")


def _row_marks(row: Row, axis: Axis, bars: bool) -> list[Markup]:
    marks = [el("line", x1=percent(axis.at(v)), x2=percent(axis.at(v)), y1="0", y2="26", class_="grid") for v in axis.ticks(4)]
    if axis.low <= 0 <= axis.high:
        marks.append(el("line", x1=percent(axis.at(0)), x2=percent(axis.at(0)), y1="0", y2="26", class_="axis"))
    if row.value is not None and bars:
        left, right = sorted((axis.at(0), axis.at(row.value)))
        marks.append(el("rect", x=percent(left), y="5", width=percent(right - left), height="16", class_=f"bar {row.mark}"))
    if row.lower is not None and row.upper is not None:
        low, high = axis.at(row.lower), axis.at(row.upper)
        marks.append(el("line", x1=percent(low), x2=percent(high), y1="13", y2="13", class_="interval"))
        marks += [el("line", x1=percent(end), x2=percent(end), y1="8", y2="18", class_="interval") for end in (low, high)]
    if row.value is not None and not bars:
        marks.append(el("circle", cx=percent(axis.at(row.value)), cy="13", r="5.5", class_=f"dot {row.mark}"))
    if row.control is not None:
        marks.append(el("svg", el("path", d="M0,-6 L6,0 L0,6 L-6,0 Z", class_="control"), x=percent(axis.at(row.control)), y="13", overflow="visible"))
    return marks
