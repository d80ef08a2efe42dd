"""The charts of a report as SVG text: lines with bands, bars, and intervals.

A chart is drawn for a width in CSS pixels, once for a screen and once for a phone, so that its text never shrinks with
the page. Colours are classes (`s0`..`s7` for series, `r0`..`r4` for sizes, small to large) that a style sheet fills in
for each theme. The same chart gives the same bytes, and every word of the data goes through `visible_text` and an
escape. A value that is None, NaN or infinite is a gap: it is never drawn as 0.

To see one: `draw(Bars(("rows",), (Bar("algebra", (120,)),)), PHONE)`.
"""

import html
import math
import numbers
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction

SCREEN, PHONE = 720, 336
"""Widths [CSS pixels] that a chart is drawn for."""
N_COLOURS = 8
N_SIZES = 5
MISSING = "-"

Number = float | None

_STACKED_BELOW = 500  # a narrower chart puts the label of a row above it
_FONT = 12
_HALO = 4
_LARGEST = 1e300  # beyond it the ends of an axis overflow
_HIDDEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]")


@dataclass(frozen=True)
class Series:
    """One line.

    Attributes:
        x, y: the points, in the order of the line.
        low, high: a band around `y`; both or none.
        weight: draws the line thicker, such as the rows of a cluster.
    """

    name: str
    x: Sequence[float]
    y: Sequence[Number]
    low: Sequence[Number] | None = None
    high: Sequence[Number] | None = None
    weight: Number = None

    def __post_init__(self) -> None:
        """Refuse columns of different lengths."""
        if (self.low is None) != (self.high is None):
            raise ValueError(f"series {self.name!r} has one side of a band; expected both or none.")
        lengths = {len(column) for column in (self.x, self.y, self.low, self.high) if column is not None}
        if len(lengths) != 1:
            raise ValueError(f"series {self.name!r} has columns of lengths {sorted(lengths)}; expected equal ones.")


@dataclass(frozen=True)
class Mark:
    """A point that is pointed out, with its label."""

    x: float
    y: float
    label: str


@dataclass(frozen=True)
class Lines:
    """Lines over common axes. With more than `N_COLOURS` of them colours stand for weights instead of names."""

    series: Sequence[Series]
    x_label: str
    y_label: str
    marks: Sequence[Mark] = ()
    weight_label: str = ""
    caption: str = ""


@dataclass(frozen=True)
class Bar:
    """A row of bars; one value per name of `Bars.names`."""

    label: str
    values: Sequence[Number]


@dataclass(frozen=True)
class Bars:
    """Horizontal bars from zero: single values, or several side by side such as before and after."""

    names: Sequence[str]
    rows: Sequence[Bar]
    x_label: str = ""
    caption: str = ""

    def __post_init__(self) -> None:
        """Refuse a row with another number of values than there are names."""
        wrong = [row.label for row in self.rows if len(row.values) != len(self.names)]
        if wrong or not self.names:
            raise ValueError(f"bars {wrong[:3]!r} do not have one value for each of {tuple(self.names)!r}.")


@dataclass(frozen=True)
class Interval:
    """A value with its interval, each None where it is not known."""

    label: str
    value: Number
    low: Number = None
    high: Number = None


@dataclass(frozen=True)
class Intervals:
    """A forest plot. A row is filled where its interval leaves `reference` out, and hollow where it does not."""

    rows: Sequence[Interval]
    x_label: str = ""
    reference: Number = None
    reference_label: str = ""
    caption: str = ""


Chart = Lines | Bars | Intervals


def visible_text(text: str) -> str:
    """Return the text with every character shown that would otherwise act: controls, bidi overrides, half pairs."""
    return _HIDDEN.sub(_shown, text.replace("\r\n", "\n"))


def _shown(match: re.Match[str]) -> str:
    code = ord(match[0])
    return chr(0x2400 + code) if code < 32 else "\u2421" if code == 127 else f"\u27e8U+{code:04X}\u27e9"


def number_text(value: Number) -> str:
    """Write one number: integers in full, others with four significant digits, what is missing as a dash."""
    if value is None or math.isnan(value):
        return MISSING
    if isinstance(value, numbers.Integral):
        return f"{int(value):,}"
    size = abs(value)
    if size == 0:
        return "0"
    if not 1e-4 <= size < 1e15:
        return f"{float(value):.4g}"
    text = f"{float(value):,.{max(0, 3 - math.floor(math.log10(size)))}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def number_texts(values: Sequence[Number]) -> list[str]:
    """Write a column of numbers with equal decimals, as many as leave no number other than zero at zero."""
    inexact = [float(v) for v in values if is_drawable(v) and not isinstance(v, numbers.Integral)]
    largest = max(map(abs, inexact), default=0.0)
    if not 1e-4 <= largest < 1e15:
        return [number_text(value) for value in values]
    power = math.floor(math.log10(largest))
    wanted = 0 if all(v.is_integer() for v in inexact) else max(0, 3 - power) if power >= 0 else 2 - power
    for decimals in range(wanted, wanted + 4):
        if all(v == 0 or round(v, decimals) != 0 for v in inexact):
            return [
                f"{v:,.{decimals}f}" if is_drawable(v) and not isinstance(v, numbers.Integral) else number_text(v)
                for v in values
            ]
    return [number_text(value) for value in values]


def is_drawable(value: Number) -> bool:
    """Return whether the value has a place on an axis."""
    return value is not None and math.isfinite(value) and abs(value) <= _LARGEST


@dataclass(frozen=True)
class Scale:
    """Where a value lies [pixels]: `low` at `start`, `high` at `stop`; `ticks` run from `low` to `high`."""

    ticks: tuple[float, ...]
    start: float
    stop: float

    def __call__(self, value: float) -> float:
        """Return the position of the value."""
        low, high = self.ticks[0], self.ticks[-1]
        return self.start + (value - low) / (high - low) * (self.stop - self.start)


def nice_ticks(low: float, high: float, count: int) -> tuple[float, ...]:
    """Return about `count` + 1 round numbers that cover low to high; at least two.

    The arithmetic is exact on the numbers as they are written in decimals, so that 0.3 is a tick and not 0.1 * 3.
    """
    if high - low <= 1e-9 * max(abs(low), abs(high)) or high - low < 1e-280:
        pad = 0.1 * max(abs(low), abs(high)) if max(abs(low), abs(high)) > 1e-280 else 1.0
        low, high = low - pad, high + pad
    first, last = Fraction(repr(float(low))), Fraction(repr(float(high)))
    rough = (last - first) / max(1, count)
    power = Fraction(10) ** math.floor(math.log10(float(rough)))
    step = next(multiple * power for multiple in (1, 2, 5, 10, 20) if multiple * power >= rough)
    return tuple(float(i * step) for i in range(math.floor(first / step), math.ceil(last / step) + 1))


def tick_texts(ticks: Sequence[float]) -> list[str]:
    """Write ticks with the decimals that tell them apart."""
    largest = max(map(abs, ticks))
    if not 1e-4 <= largest < 1e12:
        return [f"{tick:.6g}" for tick in ticks]
    decimals = max(0, -math.floor(math.log10(ticks[1] - ticks[0]) + 1e-9))
    return [f"{tick:,.{decimals}f}" for tick in ticks]


def legend(chart: Chart) -> list[tuple[str, str]]:
    """Return what the colours mean: class and name."""
    if isinstance(chart, Intervals):
        return []
    if isinstance(chart, Bars):
        return [(f"s{i}", name) for i, name in enumerate(chart.names)] if len(chart.names) > 1 else []
    if len(chart.series) <= N_COLOURS:
        return [(f"s{i}", series.name) for i, series in enumerate(chart.series)]
    binned: dict[str, list[float]] = {}
    for series, name in zip(chart.series, _line_classes(chart.series), strict=True):
        if series.weight is not None and is_drawable(series.weight):
            binned.setdefault(name, []).append(series.weight)
    ends = [(name, *number_texts([min(weights), max(weights)])) for name, weights in sorted(binned.items())]
    return [(name, f"{low if low == high else f'{low} to {high}'} {chart.weight_label}") for name, low, high in ends]


def draw(chart: Chart, width: int) -> str:
    """Draw the chart.

    Args:
        chart: what to draw; without a drawable value there is a line that says so.
        width: `SCREEN`, `PHONE` or another number of CSS pixels from 200 on.

    Returns:
        One `<svg>` element, well-formed XML without a namespace, as it stands in an HTML page.
    """
    if isinstance(chart, Lines):
        return _draw_lines(chart, width)
    return _draw_bars(chart, width) if isinstance(chart, Bars) else _draw_intervals(chart, width)


def _draw_lines(chart: Lines, width: int) -> str:
    label = f"Line chart: {chart.y_label} over {chart.x_label}; {', '.join(s.name for s in chart.series)}"
    points = [point for series in chart.series for point in _points(series)]
    points += [(mark.x, y) for mark in chart.marks for y in (mark.y,) if is_drawable(mark.x) and is_drawable(y)]
    if not points:
        return _no_data(label, width)
    height = 320 if width >= _STACKED_BELOW else 270
    y_ticks = nice_ticks(min(y for _, y in points), max(y for _, y in points), 5)
    left = max(map(_text_width, tick_texts(y_ticks))) + 10
    x_ticks = nice_ticks(min(x for x, _ in points), max(x for x, _ in points), int((width - left) // 80))
    last = _text_width(tick_texts(x_ticks)[-1]) / 2
    x, y = Scale(x_ticks, left, width - max(8.0, last)), Scale(y_ticks, height - 44, 28)
    parts = [*_grid_y(y, x.start, x.stop), *_ticks_x(x, height - 44)]
    parts += [_text(0, 12, chart.y_label, "title", width), _text(x.stop, height - 6, chart.x_label, "title end", width)]
    classes, widths = _line_classes(chart.series), _line_widths(chart.series)
    heavy_first = sorted(range(len(chart.series)), key=lambda i: (-widths[i], i))
    parts += [part for i in heavy_first for part in _band(chart.series[i], classes[i], x, y)]
    parts += [part for i in heavy_first for part in _line(chart.series[i], classes[i], widths[i], x, y)]
    if len(chart.series) <= N_COLOURS:
        parts += [part for i in heavy_first for part in _dots(chart.series[i], classes[i], x, y)]
    parts += [part for mark in chart.marks for part in _mark(mark, x, y)]
    return _svg(width, height, label, parts)


def _points(series: Series) -> Iterator[tuple[float, float]]:
    for column in (series.y, series.low or (), series.high or ()):
        yield from ((x, y) for x, y in zip(series.x, column, strict=False) if is_drawable(x) and _is_number(y))


def _runs(drawable: Iterable[bool]) -> list[list[int]]:
    """Return the positions of each unbroken stretch of True."""
    runs: list[list[int]] = [[]]
    for i, good in enumerate(drawable):
        if good:
            runs[-1].append(i)
        elif runs[-1]:
            runs.append([])
    return [run for run in runs if run]
