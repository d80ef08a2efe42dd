"""Charts as SVG text: lines with bands, bars, and intervals.

A chart is drawn for a width in CSS pixels, once for a screen and once for a phone, so that its text does not shrink
with the page. Colours are classes (`s0` to `s7` for series, `r0` to `r4` for weights, small to large) that `page.css`
fills in for each theme. The same chart gives the same bytes. A value that is None, NaN or infinite is a gap.
"""

import functools
import html
import itertools
import math
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction

from s2l_ray.report.blocks import (
    MISSING,
    Bars,
    Chart,
    Interval,
    Intervals,
    Lines,
    Mark,
    Number,
    Series,
    is_drawable,
    number_text,
    number_texts,
    visible_text,
)

SCREEN, PHONE = 720, 336
"""Widths [CSS pixels] that a chart is drawn for."""
N_COLOURS = 8
"""Lines that get a colour of their own."""
N_SIZES = 5

_STACKED_BELOW = 500  # a narrower chart puts the label of a row above it
_LEAST_AXIS = 200  # so does one whose words would leave its axis less [pixels]


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
    largest, step = max(map(abs, ticks)), ticks[1] - ticks[0]
    if not 1e-4 <= largest < 1e12:
        digits = max(6, math.floor(math.log10(largest / step)) + 2)
        return [f"{tick:.{digits}g}" for tick in ticks]
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
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
    points = [point for series in chart.series for point in _points(series.x, series.y, series.low, series.high)]
    points += [point for mark in chart.marks for point in _points([mark.x], [mark.y])]
    if not points:
        return _no_data(label, width)
    height = 330 if width >= _STACKED_BELOW else 280
    y_ticks = nice_ticks(min(y for _, y in points), max(y for _, y in points), 5)
    left = max(map(_text_width, tick_texts(y_ticks))) + 8
    x_ticks = _fitting_ticks(min(x for x, _ in points), max(x for x, _ in points), width - left)
    x_ends = tick_texts(x_ticks)
    left = max(left, _text_width(x_ends[0]) / 2)
    x = Scale(x_ticks, left, width - max(8.0, _text_width(x_ends[-1]) / 2))
    y = Scale(y_ticks, height - 44, 30)
    parts = [_text(0, 12, chart.y_label, width, "axis"), _text(x.stop, height - 4, chart.x_label, x.stop, "axis end")]
    for tick, text in zip(y_ticks, tick_texts(y_ticks), strict=True):
        parts += [
            _rule(x.start, y(tick), x.stop, y(tick), "grid"),
            _text(left - 8, y(tick) + 4, text, left, "tick end"),
        ]
    parts += _ticks_below(x, height - 44)
    classes, strokes = _line_classes(chart.series), _line_strokes(chart.series)
    wide_first = sorted(range(len(chart.series)), key=lambda i: (-strokes[i], i))
    parts += [part for i in wide_first for part in _band(chart.series[i], classes[i], x, y)]
    parts += [part for i in wide_first for part in _line(chart.series[i], classes[i], strokes[i], x, y)]
    if len(chart.series) <= N_COLOURS:
        parts += [dot for i in wide_first for dot in _dots(chart.series[i], classes[i], x, y)]
    parts += [part for mark in chart.marks if _points([mark.x], [mark.y]) for part in _mark(mark, x, y)]
    return _svg(width, height, label, parts)


def _points(x: Sequence[Number], *columns: Sequence[Number] | None) -> list[tuple[float, float]]:
    pairs = [(a, b) for column in columns if column is not None for a, b in zip(x, column, strict=True)]
    return [(a, b) for a, b in pairs if is_drawable(a) and is_drawable(b)]


def _runs(x: Sequence[Number], *columns: Sequence[Number]) -> list[list[int]]:
    """Return the positions of each unbroken stretch where all columns are drawable."""
    runs: list[list[int]] = [[]]
    for i, row in enumerate(zip(x, *columns, strict=True)):
        if all(map(is_drawable, row)):
            runs[-1].append(i)
        elif runs[-1]:
            runs.append([])
    return [run for run in runs if run]


def _line_classes(series: Sequence[Series]) -> list[str]:
    """Return a colour per line: its own, or where there are too many one of `N_SIZES` by the weight's logarithm."""
    if len(series) <= N_COLOURS:
        return [f"s{i}" for i in range(len(series))]
    logs = [math.log(s.weight) if is_drawable(s.weight) and s.weight > 0 else None for s in series]
    known = [value for value in logs if value is not None]
    low, span = min(known, default=0.0), max(known, default=0.0) - min(known, default=0.0)
    middle = N_SIZES // 2
    return [
        f"r{middle if log is None or span == 0 else min(N_SIZES - 1, int((log - low) / span * N_SIZES))}"
        for log in logs
    ]


def _line_strokes(series: Sequence[Series]) -> list[float]:
    largest = max((s.weight for s in series if is_drawable(s.weight)), default=0.0)
    if largest <= 0:
        return [2.0 if len(series) <= N_COLOURS else 1.2] * len(series)
    return [1 + 3 * math.sqrt(max(0.0, s.weight) / largest) if is_drawable(s.weight) else 1.0 for s in series]


def _band(series: Series, name: str, x: Scale, y: Scale) -> Iterator[str]:
    if series.low is None or series.high is None:
        return
    for run in _runs(series.x, series.low, series.high):
        lower = [(x(series.x[i]), y(series.low[i] or 0.0)) for i in run]
        upper = [(x(series.x[i]), y(series.high[i] or 0.0)) for i in reversed(run)]
        yield _tag("path", class_=f"band {name}", d=_path(lower + upper) + "Z")


def _line(series: Series, name: str, stroke: float, x: Scale, y: Scale) -> Iterator[str]:
    weight = "" if series.weight is None else f", {number_text(series.weight)}"
    for run in _runs(series.x, series.y):
        d = _path([(x(series.x[i]), y(series.y[i] or 0.0)) for i in run])
        yield _tag("path", _title(series.name + weight), class_=f"line {name}", stroke_width=stroke, d=d)


def _dots(series: Series, name: str, x: Scale, y: Scale) -> Iterator[str]:
    for i, (a, b) in enumerate(zip(series.x, series.y, strict=True)):
        if is_drawable(a) and is_drawable(b):
            ends = (series.low[i], series.high[i]) if series.low is not None and series.high is not None else ()
            text = f"{series.name}: {number_text(a)}, {_with_interval(*number_texts([b, *ends]))}"
            yield _tag("circle", _title(text), class_=f"dot {name}", cx=x(a), cy=y(b), r=3)


def _mark(mark: Mark, x: Scale, y: Scale) -> Iterator[str]:
    at_x, at_y = x(mark.x), y(mark.y)
    before = at_x > (x.start + x.stop) / 2
    room = 0.9 * (at_x - x.start if before else x.stop - at_x) - 10  # its letters are bold, and it stands 10 off
    yield _rule(at_x, y.start, at_x, y.stop, "mark")
    yield _tag("circle", _title(mark.label), class_="mark", cx=at_x, cy=at_y, r=6)
    below = at_y < y.stop + 30
    side = -10 if before else 10
    yield _text(at_x + side, at_y + (24 if below else -14), mark.label, room, "mark end" if before else "mark")


def _draw_bars(chart: Bars, width: int) -> str:
    label = f"Bar chart: {chart.x_label or ', '.join(chart.names)}; {', '.join(row.label for row in chart.rows)}"
    values = [value for row in chart.rows for value in row.values]
    known = [value for value in values if is_drawable(value)]
    if not known:
        return _no_data(label, width)
    stacked = width < _STACKED_BELOW
    texts = _value_texts(values, min(15, width // 22))
    room = max(map(_text_width, texts)) + 8
    left = 0.0 if stacked else _label_column([row.label for row in chart.rows], width)
    low, high = min(0.0, *known), max(0.0, *known)
    scale = Scale((low, high if high > low else 1.0), left + (room if low < 0 else 0), width - room)
    top, head = (26.0 if chart.x_label else 4.0), (18 if stacked else 0)
    step = head + 14 * len(chart.names) + 10
    parts = [_text(0 if stacked else left, 12, chart.x_label, width - left, "axis")] if chart.x_label else []
    for i, row in enumerate(chart.rows):
        y = top + i * step
        middle = y + 12 if stacked else y + 7 * len(chart.names) + 4
        free = width if stacked else left - 10
        parts.append(_text(0 if stacked else free, middle, row.label, free, "" if stacked else "end"))
        for j, value in enumerate(row.values):
            title = f"{row.label}, {chart.names[j]}: {number_text(value)}"
            parts += _bar(value, texts[i * len(chart.names) + j], title, f"bar s{j}", scale, y + head + 14 * j)
    height = top + step * len(chart.rows)
    return _svg(width, height, label, [*parts, _rule(scale(0), top - 4, scale(0), height - 6, "zero")])


def _bar(value: Number, text: str, title: str, name: str, scale: Scale, y: float) -> Iterator[str]:
    if not is_drawable(value):
        yield _text(scale(0) + 5, y + 10, text, scale.stop, "value")
        return
    start, stop = sorted((scale(0), scale(value)))
    length = max(1.0, stop - start) if value else 0.0
    yield _tag("rect", _title(title), class_=name, x=start, y=y, width=length, height=12, rx=2)
    yield _text(start - 5 if value < 0 else stop + 5, y + 10, text, scale.stop, "value end" if value < 0 else "value")


def _draw_intervals(chart: Intervals, width: int) -> str:
    label = f"Intervals: {chart.x_label}; {', '.join(row.label for row in chart.rows)}"
    values = [value for row in chart.rows for value in (row.value, row.low, row.high)]
    known = [value for value in values if is_drawable(value)]
    if not known:
        return _no_data(label, width)
    known += [chart.reference] if is_drawable(chart.reference) else []
    columns = iter(_value_texts(values, min(12, width // 28)))
    texts = [_with_interval(*three) for three in zip(columns, columns, columns, strict=True)]
    left = _label_column([row.label for row in chart.rows], width)
    right = width - max(map(_text_width, texts)) - 12
    stacked = width < _STACKED_BELOW or right - left < _LEAST_AXIS
    left, right = (0.0, float(width)) if stacked else (left, right)
    ticks = _fitting_ticks(min(known), max(known), right - left)
    ends = tick_texts(ticks)
    scale = Scale(ticks, left + _text_width(ends[0]) / 2 + 4, right - _text_width(ends[-1]) / 2 - 4)
    top, step = 30.0, 42 if stacked else 28
    bottom = top + step * len(chart.rows)
    parts = [_rule(scale(tick), top - 8, scale(tick), bottom, "grid") for tick in ticks]
    parts += [*_ticks_below(scale, bottom), _text(scale.stop, bottom + 38, chart.x_label, scale.stop, "axis end")]
    if is_drawable(chart.reference):
        parts += _reference(chart.reference, chart.reference_label, scale, top - 8, bottom)
    for i, (row, text) in enumerate(zip(chart.rows, texts, strict=True)):
        y = top + i * step + (30 if stacked else 12)
        base, free = (y - 16, width - _text_width(text) - 10) if stacked else (y + 4, left - 10)
        parts += [_text(0, base, row.label, free), _text(width, base, text, width, "value end")]
        parts += _interval(row, f"{row.label}: {text}", chart.reference, scale, y)
    return _svg(width, bottom + 44, label, parts)


def _interval(row: Interval, title: str, reference: Number, scale: Scale, y: float) -> Iterator[str]:
    clear = reference is None
    if is_drawable(row.low) and is_drawable(row.high):
        low, high = scale(row.low), scale(row.high)
        clear = not is_drawable(reference) or row.low > reference or row.high < reference
        yield _tag("path", _title(title), class_="whisker", d=_path([(low, y), (high, y)]))
        yield from (_rule(end, y - 4, end, y + 4, "whisker") for end in (low, high))
    if is_drawable(row.value):
        name = "clear" if clear else "unclear"
        yield _tag("circle", _title(title), class_=name, cx=scale(row.value), cy=y, r=5)


def _reference(value: float, label: str, scale: Scale, top: float, bottom: float) -> Iterator[str]:
    at = scale(value)
    yield _rule(at, top, at, bottom, "reference")
    room = 2 * min(at, scale.stop - at)
    if room > _text_width(visible_text(label[:400])):
        yield _text(at, top - 6, label, room, "tick middle")
    else:
        before = at > (scale.start + scale.stop) / 2
        yield _text(at, top - 6, label, at if before else scale.stop - at, "tick end" if before else "tick")


def _ticks_below(x: Scale, y: float) -> list[str]:
    texts = zip(x.ticks, tick_texts(x.ticks), strict=True)
    return [_text(x(tick), y + 18, text, x.stop, "tick middle") for tick, text in texts]


def _fitting_ticks(low: float, high: float, room: float) -> tuple[float, ...]:
    """Return the most ticks whose texts stand beside each other; at least the two ends."""
    for count in range(max(1, int(room // 80)), 0, -1):
        ticks = nice_ticks(low, high, count)
        if (max(map(_text_width, tick_texts(ticks))) + 10) * len(ticks) <= room:
            return ticks
    return ticks[0], ticks[-1]


def _value_texts(values: Sequence[Number], longest: int) -> list[str]:
    """Write a column of numbers that has to fit beside a drawing; what is longer is written by its power of ten."""
    texts = zip(values, number_texts(values), strict=True)
    return [text if len(text) <= longest else f"{Decimal(str(value)):.4g}" for value, text in texts]


def _with_interval(value: str, low: str = MISSING, high: str = MISSING) -> str:
    return value if MISSING in (low, high) else f"{value} [{low}, {high}]"


def _label_column(labels: Sequence[str], width: int) -> float:
    return min(0.34 * width, max(_text_width(visible_text(label[:100])) for label in labels) + 11)


def _text_width(text: str) -> float:
    """Estimate the width [pixels] in DejaVu Sans, the widest of the usual fonts, so that it is rather too large."""
    return sum(map(_letter_width, text))


@functools.cache
def _letter_width(letter: str) -> float:
    if letter in " !'(),-./:;I[]fijlrt|":
        return 5.0
    if letter in "%@MWm\u2026" or unicodedata.east_asian_width(letter) in "WF":
        return 13.0
    return 7.7 if letter.isascii() and (letter.isdigit() or letter.islower()) and letter != "w" else 10.2


def _shortened(text: str, room: float) -> str:
    words = " ".join(visible_text(text[:400]).split())
    if _text_width(words) <= room:
        return words
    ends = itertools.accumulate(map(_text_width, words), initial=_text_width("\u2026"))
    kept = sum(end <= room for end in ends) - 1
    return words[: max(0, kept)].rstrip() + "\u2026"


def _text(x: float, y: float, text: str, room: float, name: str = "") -> str:
    return _tag("text", html.escape(_shortened(text, room)), class_=name, x=x, y=y)


def _title(text: str) -> str:
    return _tag("title", html.escape(_shortened(text, 1400)))


def _rule(x1: float, y1: float, x2: float, y2: float, name: str) -> str:
    return _tag("line", class_=name, x1=x1, y1=y1, x2=x2, y2=y2)


def _path(points: Sequence[tuple[float, float]]) -> str:
    if len(points) == 1:  # a line of no length, which round caps make a dot
        points = [points[0], points[0]]
    return "M" + "L".join(f"{_pixels(x)} {_pixels(y)}" for x, y in points)


def _pixels(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".")


def _no_data(label: str, width: int) -> str:
    return _svg(width, 48, label, [_text(0, 28, "No data to draw.", width, "tick")])


def _svg(width: int, height: float, label: str, parts: Iterable[str]) -> str:
    box = f"0 0 {width} {_pixels(height)}"
    return _tag("svg", *parts, viewBox=box, role="img", aria_label=_shortened(label, 2100))


def _tag(name: str, *children: str, **attributes: str | float) -> str:
    pairs = ((key.rstrip("_"), value) for key, value in attributes.items() if value != "")
    texts = ((key, value if isinstance(value, str) else _pixels(value)) for key, value in pairs)
    named = "".join(f' {k if k == "viewBox" else k.replace("_", "-")}="{html.escape(v)}"' for k, v in texts)
    return f"<{name}{named}>{''.join(children)}</{name}>"
