"""Charts: well-formed whatever the data, inside their box, with gaps where nothing is known."""

import math
import re
import xml.etree.ElementTree as ElementTree

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from s2l_ray.report import charts
from s2l_ray.report.blocks import Bar, Bars, Chart, Interval, Intervals, Lines, Mark, Number, Series

WIDTHS = (charts.SCREEN, charts.PHONE, 200)
DATA: dict[str, list[Number]] = {
    "empty": [],
    "one point": [1.0],
    "none": [None, None],
    "all NaN": [math.nan, math.nan],
    "infinite": [math.inf, -math.inf, 1.0],
    "constant": [3.0, 3.0, 3.0],
    "zero": [0.0, -0.0],
    "huge": [1e300, -1e300, 1e299],
    "beyond huge": [1e308, -1e308],
    "huge whole numbers": [10**299, 10**400, 123_456_789_012_345],
    "tiny": [5e-324, 1e-300],
    "negative": [-5.0, -2.5, -0.1],
    "wide and narrow": [123_456_789_012_345.6, 0.001],
    "far from zero": [1e12, 1e12 + 1e4, 1e12 + 2e4],
    "gaps": [1.0, None, 2.0, math.nan, 4.0, 5.0],
}
numbers = st.none() | st.floats() | st.integers(-(10**310), 10**310) | st.sampled_from([0.0, 1e-300, 1e300])


def charts_of(values: list[Number], label: str = "a <b> & 'c'") -> dict[str, Chart]:
    x = list(range(len(values)))
    series = Series(label, x, values, low=values, high=values[::-1], weight=2.0)
    many = [Series(label, values[::-1], values, weight=value) for value in [*values, *([1.0] * 9)]]
    marks = [Mark(1.0, value, label) for value in values if value is not None]
    rows = [Interval(label, value, value, other) for value, other in zip(values, values[::-1], strict=True)]
    return {
        "lines": Lines([series, Series(label, x, values)], label, label, marks=marks),
        "one value": Lines([Series(label, values, [1.0] * len(values))], label, label),
        "many lines": Lines(many, label, label, weight_label=label),
        "bars": Bars([label], [Bar(label, [value]) for value in values], x_label=label),
        "paired bars": Bars([label, label], [Bar(label, [value, None]) for value in values]),
        "intervals": Intervals(rows, label, reference=values[0] if values else None, reference_label=label),
        "intervals alone": Intervals(rows),
    }


def drawn(chart: Chart, width: int = charts.SCREEN) -> ElementTree.Element:
    return ElementTree.fromstring(charts.draw(chart, width))


def named(root: ElementTree.Element, tag: str, name: str = "") -> list[ElementTree.Element]:
    return [e for e in root.iter(tag) if name in f" {e.get('class', '')} ".split(" ") or not name]


def assert_inside_its_box(root: ElementTree.Element) -> None:
    _, _, width, height = map(float, root.attrib["viewBox"].split())
    assert width > 0
    assert height > 0
    for element in root.iter():
        at = {key: float(element.attrib[key]) for key in ("x", "x1", "x2", "cx") if key in element.attrib}
        up = {key: float(element.attrib[key]) for key in ("y", "y1", "y2", "cy") if key in element.attrib}
        points = [tuple(map(float, point.split())) for point in re.findall(r"[-\d.]+ [-\d.]+", element.get("d", ""))]
        assert all(0 <= value <= width for value in [*at.values(), *(x for x, _ in points)]), element.attrib
        assert all(0 <= value <= height for value in [*up.values(), *(y for _, y in points)]), element.attrib
        assert 0 <= float(element.get("width", 0)) <= width
        if element.tag == "text":
            length = charts._text_width(element.text or "")
            before = {"end": length, "middle": length / 2}.get((element.get("class") or "").split(" ")[-1], 0.0)
            left = at["x"] - before
            assert left >= -1, (element.text, element.attrib)
            assert left + length <= width + 1, (element.text, element.attrib)
    if width >= charts.PHONE:
        assert_ticks_stand_apart(root)


def assert_ticks_stand_apart(root: ElementTree.Element) -> None:
    below = [e for e in named(root, "text", "middle") if float(e.attrib["y"]) > 40]
    for before, after in zip(below, below[1:], strict=False):
        half = (charts._text_width(before.text or "") + charts._text_width(after.text or "")) / 2
        assert float(after.attrib["x"]) - float(before.attrib["x"]) >= half, (before.text, after.text)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("values", DATA.values(), ids=DATA)
def test_chart_of_any_data_is_well_formed_and_inside_its_box(values, width):
    for chart in charts_of(values).values():
        assert_inside_its_box(drawn(chart, width))


@settings(max_examples=60, deadline=None)
@given(st.lists(numbers, max_size=6), st.text(max_size=30), st.sampled_from(WIDTHS))
def test_any_chart_is_well_formed_and_inside_its_box(values, label, width):
    for chart in charts_of(values, label).values():
        assert_inside_its_box(drawn(chart, width))


@pytest.mark.parametrize("label", ["<script>", '"><script>', "]]>", "\x00\ud800\ufffe", "&amp;", "x" * 50_000])
def test_chart_with_a_hostile_label_is_well_formed_and_escapes_it(label):
    for name, chart in charts_of([1.0, 2.0, None], label).items():
        root = drawn(chart)
        assert not {e.tag for e in root.iter()} - {"svg", "path", "circle", "line", "text", "title", "rect"}, name
        assert not [key for e in root.iter() for key in e.attrib if key.startswith("on")]


def test_same_chart_gives_the_same_text():
    for first, second in zip(charts_of([1.0, 2.0]).values(), charts_of([1.0, 2.0]).values(), strict=True):
        assert charts.draw(first, 720) == charts.draw(second, 720)


# ---------------------------------------------------------------------------------------------------------------- gaps


@pytest.mark.parametrize("missing", [None, math.nan, math.inf])
def test_line_breaks_where_a_value_is_missing(missing):
    root = drawn(Lines([Series("a", [1, 2, 3, 4, 5], [1.0, 2.0, missing, 4.0, 5.0])], "x", "y"))
    assert len(named(root, "path", "line")) == 2
    assert len(named(root, "circle", "dot")) == 4


def test_line_whose_neighbours_are_missing_is_a_dot():
    root = drawn(Lines([Series("a", [1, 2, 3], [None, 2.0, None])], "x", "y"))
    (path,) = named(root, "path", "line")
    start, stop = path.attrib["d"].removeprefix("M").split("L")
    assert start == stop


def test_band_breaks_where_one_side_is_missing():
    series = Series("a", [1, 2, 3], [1.0, 2.0, 3.0], low=[0.0, None, 2.0], high=[2.0, 3.0, 4.0])
    root = drawn(Lines([series], "x", "y"))
    assert len(named(root, "path", "band")) == 2
    assert len(named(root, "path", "line")) == 1


def test_bar_that_is_missing_is_a_dash_and_zero_is_a_zero():
    root = drawn(Bars(["n"], [Bar("a", [None]), Bar("b", [0.0]), Bar("c", [2.0])]))
    assert [e.text for e in named(root, "text", "value")] == ["-", "0", "2"]
    assert [float(e.attrib["width"]) > 0 for e in named(root, "rect")] == [False, True]


def test_interval_that_is_missing_draws_neither_point_nor_whisker():
    root = drawn(Intervals([Interval("a", 1.0, 0.5, 1.5), Interval("b", None), Interval("c", 2.0)]))
    assert len(named(root, "circle")) == 2
    assert len(named(root, "path", "whisker")) == 1
    assert [e.text for e in named(root, "text", "value")] == ["1.000 [0.500, 1.500]", "-", "2.000"]


def test_chart_without_a_drawable_value_says_so():
    for name in ("none", "all NaN", "beyond huge", "empty"):
        for chart in charts_of(DATA[name]).values():
            assert [e.text for e in drawn(chart).iter("text")] == ["No data to draw."]


# --------------------------------------------------------------------------------------------------------- what is seen


def test_longer_bar_is_a_larger_value_and_negative_ones_run_left():
    root = drawn(Bars(["n"], [Bar("a", [1.0]), Bar("b", [2.0]), Bar("c", [-1.0])]))
    one, two, minus = named(root, "rect")
    zero = float(named(root, "line", "zero")[0].attrib["x1"])
    assert float(two.attrib["width"]) == pytest.approx(2 * float(one.attrib["width"]), abs=0.02)
    assert float(minus.attrib["x"]) + float(minus.attrib["width"]) == pytest.approx(zero, abs=0.02)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("size", [1.0, 1e-9, 123_456_789_012.5, 1e14, 1e300])
def test_larger_value_of_an_interval_is_further_right_whatever_its_size(size, width):
    root = drawn(Intervals([Interval("a" * 80, 0.0, -0.123 * size, size), Interval("b", size)]), width)
    first, last = named(root, "circle")
    assert float(first.attrib["cx"]) + 20 < float(last.attrib["cx"])


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("value", [0.001, 99_999_999_999, 123_456_789_012_345.678, 10**14, 10**299])
def test_negative_bar_ends_left_of_a_positive_one_whatever_their_size(value, width):
    root = drawn(Bars(["n"], [Bar("a" * 80, [-value]), Bar("b", [value]), Bar("c", [0.001])]), width)
    minus, plus, _ = named(root, "rect")
    assert float(minus.attrib["width"]) == pytest.approx(float(plus.attrib["width"]), abs=0.02)
    assert float(minus.attrib["width"]) > 4
    assert float(minus.attrib["x"]) < float(plus.attrib["x"])


def test_larger_value_of_a_line_is_higher_and_further():
    root = drawn(Lines([Series("a", [0, 10], [0.0, 100.0])], "x", "y"))
    first, last = named(root, "circle", "dot")
    assert float(first.attrib["cx"]) < float(last.attrib["cx"])
    assert float(first.attrib["cy"]) > float(last.attrib["cy"])


def test_interval_is_filled_only_where_it_leaves_the_reference_out():
    rows = [Interval("over", 2.0, 1.0, 3.0), Interval("around", 0.5, -1.0, 2.0), Interval("touching", 1.0, 0.0, 2.0)]
    root = drawn(Intervals([*rows, Interval("alone", 1.0)], reference=0.0))
    assert [e.attrib["class"] for e in named(root, "circle")] == ["clear", "unclear", "unclear", "unclear"]


def test_few_lines_have_a_colour_each_and_many_are_coloured_by_weight():
    few = Lines([Series(f"s{i}", [1], [1.0]) for i in range(3)], "x", "y")
    many = Lines([Series(f"s{i}", [1], [1.0], weight=2**i) for i in range(10)], "x", "y", weight_label="rows")
    assert charts.legend(few) == [("s0", "s0"), ("s1", "s1"), ("s2", "s2")]
    assert [name for name, _ in charts.legend(many)] == ["r0", "r1", "r2", "r3", "r4"]
    assert charts.legend(many)[0][1] == "1 to 2 rows"
    assert charts.legend(many)[-1][1] == "256 to 512 rows"


def test_legend_names_only_what_needs_names():
    assert charts.legend(Bars(["only"], [])) == []
    assert charts.legend(Bars(["before", "after"], [])) == [("s0", "before"), ("s1", "after")]
    assert charts.legend(Intervals([])) == []


# --------------------------------------------------------------------------------------------------------------- ticks

ends = st.floats(-1e300, 1e300, allow_subnormal=True)


@given(ends, ends, st.integers(-3, 12))
@example(0.0, 0.0, 5)
@example(5e-324, 5e-324, 5)
@example(1e300, 1e300, 5)
@example(-1e300, 1e300, 5)
@example(0.1, 0.1 + 1e-12, 5)
def test_ticks_cover_the_range_and_rise_in_even_steps(low, high, count):
    low, high = sorted((low, high))
    ticks = charts.nice_ticks(low, high, count)
    assert ticks[0] <= low <= high <= ticks[-1]
    assert 2 <= len(ticks) <= max(1, count) + 2
    steps = [b - a for a, b in zip(ticks, ticks[1:], strict=False)]
    assert min(steps) > 0
    assert max(steps) == pytest.approx(min(steps), rel=1e-4)


@given(ends, ends, st.integers(1, 12))
@example(1e12, 1e12 + 1e4, 5)
@example(1e11, 1e11 + 200, 5)
@example(9.00001e-5, 9.00002e-5, 5)
def test_tick_texts_are_told_apart_and_say_the_tick(low, high, count):
    ticks = charts.nice_ticks(*sorted((low, high)), count)
    texts = charts.tick_texts(ticks)
    assert len(set(texts)) == len(ticks)
    step = ticks[1] - ticks[0]
    for tick, text in zip(ticks, texts, strict=True):
        assert abs(float(text.replace(",", "")) - tick) <= 0.01 * step


@pytest.mark.parametrize(
    ("low", "high", "count", "texts"),
    [
        (0, 1, 5, ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"]),
        (0.1, 0.3, 2, ["0.1", "0.2", "0.3"]),
        (0, 1000, 5, ["0", "200", "400", "600", "800", "1,000"]),
        (-3, 7, 5, ["-4", "-2", "0", "2", "4", "6", "8"]),
        (2, 2, 2, ["1.8", "2.0", "2.2"]),
        (0, 0, 2, ["-1", "0", "1"]),
        (0, 2e-6, 2, ["0", "1e-06", "2e-06"]),
    ],
)
def test_ticks_are_round_numbers(low, high, count, texts):
    assert charts.tick_texts(charts.nice_ticks(low, high, count)) == texts
