"""The report as HTML: nothing that a page holds can act, nothing is fetched, what is missing is never a zero."""

import dataclasses
import math
import re
import typing
from html.parser import HTMLParser

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from s2l_ray.report import blocks as b
from s2l_ray.report.html import render

HOSTILE = {
    "script": "<script>document.title='acted'</script>",
    "end of style": "</style><script>acted()</script>",
    "end of title": "</title><script>acted()</script>",
    "end of svg": "</text></svg><img src=x onerror=acted()>",
    "cdata": "]]><!--<![CDATA[",
    "comment": "--><iframe src=//evil.example></iframe><!--",
    "double quote": '" onload="acted()',
    "single quote": "' onload='acted()",
    "link": "javascript:acted()",
    "stylesheet": '<link rel=stylesheet href="https://evil.example/a.css">',
    "NUL": "a\x00b\x1b[31m\x7f\x85",
    "bidi": "a\u202eb\u2066c",
    "half pairs": "a\ud800b\udfff",
    "braces": "{{ 7*7 }}{% raw %}{# x #}",
    "entity": "&lt;script&gt;&#x3c;b&#x3e;",
    "lines": "a\r\nb\rc\n\n\td",
    "long": "x" * 50_000,
    "long tags": "<b onclick=acted()>" * 2_000,
}


def page_of(word: str) -> b.Page:
    """Return a page with every kind of block and the word in every string."""
    lines = b.Lines(
        series=[b.Series(word, [1, 2, 3], [1.0, None, 2.0], [0.5, None, 1.5], [1.5, None, 2.5], weight=3)],
        x_label=word,
        y_label=word,
        marks=[b.Mark(2, 1.5, word)],
        weight_label=word,
        caption=word,
    )
    many = dataclasses.replace(lines, series=[b.Series(word, [1, 2], [i, i + 1], weight=i) for i in range(1, 12)])
    bars = b.Bars([word, word], [b.Bar(word, [1.0, -2.0]), b.Bar(word, [None, 0.0])], x_label=word, caption=word)
    rows = [b.Interval(word, 1.0, 0.5, 1.5), b.Interval(word, None)]
    blocks = [
        b.Text([word, word]),
        b.Facts([(word, word)]),
        b.Table([word, word], [[word, word], [word, word]], numeric=[word], caption=word, highlight=[1]),
        lines,
        many,
        bars,
        b.Intervals(rows, x_label=word, reference=0.0, reference_label=word, caption=word),
        b.Warnings([word]),
        b.ExampleRows([b.ExampleRow(word, [(word, word)])]),
        b.Code(word),
    ]
    return b.Page(word, word, [b.Section(word, word, blocks)])


def leaves_of(value: object) -> typing.Iterator[object]:
    if dataclasses.is_dataclass(value):
        yield type(value)
        for field in dataclasses.fields(value):
            yield from leaves_of(getattr(value, field.name))
    elif isinstance(value, list | tuple):
        for item in value:
            yield from leaves_of(item)
    else:
        yield value


class Reader(HTMLParser):
    """What a file holds: its elements in order, with their attributes, and the text of each kind of element."""

    def __init__(self, source: str):
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.texts: dict[str, list[str]] = {}
        self.others: list[str] = []
        self.feed(source)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag != "meta":
            self.open.append(tag)
            self.texts.setdefault(tag, []).append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        for tag in set(self.open):
            self.texts[tag][-1] += data

    def handle_decl(self, decl):
        self.others.append(decl)

    def handle_comment(self, data):
        self.others.append(data)

    unknown_decl = handle_pi = handle_comment

    @property
    def skeleton(self) -> list[tuple[str, tuple[str, ...]]]:
        return [(tag, tuple(attributes)) for tag, attributes in self.elements]


def test_sample_page_holds_every_block_and_the_word_in_every_string():
    leaves = list(leaves_of(page_of("word")))
    assert set(typing.get_args(b.Block)) <= set(leaves)
    assert {leaf for leaf in leaves if isinstance(leaf, str)} == {"word"}


# -------------------------------------------------------------------------------------------------------- nothing acts


@pytest.mark.parametrize("word", HOSTILE.values(), ids=HOSTILE)
def test_hostile_string_in_every_field_adds_no_element_and_no_attribute(word):
    source = render(page_of(word))
    reader, plain = Reader(source), Reader(render(page_of("word")))
    assert reader.skeleton == plain.skeleton
    assert reader.texts["style"] == plain.texts["style"]
    assert reader.others == ["doctype html"]
    assert reader.open == []


@settings(max_examples=25, deadline=None)
@given(st.text(st.characters(codec=None), min_size=1, max_size=40))
def test_any_string_in_every_field_adds_no_element_and_encodes(word):
    source = render(page_of(word))
    source.encode("utf-8")
    assert Reader(source).skeleton == Reader(render(page_of("word"))).skeleton


def test_page_has_no_element_or_attribute_that_runs_or_fetches():
    for word in HOSTILE.values():
        for tag, attributes in Reader(render(page_of(word))).elements:
            assert tag not in {"script", "iframe", "object", "embed", "link", "img", "image", "use", "base", "form"}
            assert not [name for name in attributes if name.startswith("on") or name in {"src", "style", "srcset"}]
            assert re.fullmatch(r"#section-\d+", attributes.get("href", "#section-1"))


def test_page_names_nothing_outside_itself():
    source = render(page_of("word")).replace("http-equiv", "")
    assert not re.findall(r"(?i)https?|//|src\s*=|url\(|@import|@font-face|<link|data:", source)


def test_page_forbids_scripts_and_requests_before_anything_else_is_read():
    elements = Reader(render(page_of("word"))).elements
    policy = dict(elements[3][1])
    assert [tag for tag, _ in elements[:4]] == ["html", "head", "meta", "meta"]
    assert policy["http-equiv"] == "Content-Security-Policy"
    rules = dict(rule.strip().split(" ", 1) for rule in policy["content"].split(";"))
    assert rules == {
        "default-src": "'none'",
        "style-src": "'unsafe-inline'",
        "base-uri": "'none'",
        "form-action": "'none'",
    }


# ------------------------------------------------------------------------------------------------- strings as they are


@pytest.mark.parametrize("word", HOSTILE.values(), ids=HOSTILE)
def test_hostile_string_is_shown_as_it_is_outside_the_charts(word):
    reader, shown = Reader(render(page_of(word))), b.visible_text(word)
    for tag in ("title", "h1", "h2", "h3", "h4", "a", "dt", "dd", "caption", "figcaption", "code", "th", "td"):
        assert shown in reader.texts[tag][0], tag
    assert sum(shown in text for text in reader.texts["p"]) == 4  # subtitle, lead, two paragraphs
    assert sum(shown in text for text in reader.texts["div"]) >= 1


def test_template_braces_are_printed_and_not_evaluated():
    reader = Reader(render(page_of("{{ 7*7 }}")))
    assert reader.texts["code"] == ["{{ 7*7 }}"]
    assert "49" not in reader.texts["main"][0]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\x00b", "a\u2400b"),
        ("a\x1bb", "a\u241bb"),
        ("a\x7fb", "a\u2421b"),
        ("a\x85b", "a⟨U+0085⟩b"),
        ("a\u202eb", "a⟨U+202E⟩b"),
        ("a\ud800b", "a⟨U+D800⟩b"),
        ("a\ufffeb", "a⟨U+FFFE⟩b"),
        ("a\rb", "a\u240db"),
        ("a\r\nb\tc\n", "a\nb\tc\n"),
        ("é 漢字 \U0001f600 \u200d", "é 漢字 \U0001f600 \u200d"),
    ],
)
def test_character_that_would_act_is_shown_and_others_stay(text, shown):
    assert b.visible_text(text) == shown


# ----------------------------------------------------------------------------------------------------- what is missing


@pytest.mark.parametrize("value", [None, math.nan, np.float32("nan")], ids=str)
def test_missing_value_is_a_dash_in_facts_tables_and_rows(value):
    blocks = [
        b.Facts([("fact", value)]),
        b.Table(["name", "n", "plain"], [["a", value, value], ["b", 1.5, 2.5]], numeric=["n"]),
        b.ExampleRows([b.ExampleRow("row", [("field", value)])]),
    ]
    reader = Reader(render(b.Page("t", "s", [b.Section("t", "", blocks)])))
    assert reader.texts["dd"] == ["-"]
    assert reader.texts["td"] == ["-", "-", "1.500", "2.5"]
    assert '<div class="words" dir="auto" tabindex="0">-</div>' in render(b.Page("t", "", [b.Section("", "", blocks)]))


@pytest.mark.parametrize("value", [math.inf, -math.inf, 1e308, np.float32("inf"), np.float64("-inf")])
def test_value_beyond_any_axis_is_named_and_not_drawn_as_a_bar(value):
    page = b.Page("t", "s", [b.Section("t", "", [b.Bars(["n"], [b.Bar("a", [value]), b.Bar("b", [1.0])])])])
    reader = Reader(render(page))
    assert sum(tag == "rect" for tag, _ in reader.elements) == 2  # the one of `b`, for a screen and for a phone
    assert [t for t in reader.texts["text"] if t == b.number_text(value)] == [b.number_text(value)] * 2


def test_empty_blocks_say_that_they_are_empty():
    blocks = [b.Table(["a"], []), b.Warnings([]), b.ExampleRows([]), b.Lines([], "x", "y"), b.Bars(["n"], [])]
    reader = Reader(render(b.Page("t", "s", [b.Section("t", "", [*blocks, b.Intervals([])])])))
    assert reader.texts["td"] == ["No rows."]
    assert [p for p in reader.texts["p"] if p.startswith("No ")] == ["No warnings.", "No rows."]
    assert reader.texts["text"] == ["No data to draw."] * 6


def test_page_without_sections_renders():
    reader = Reader(render(b.Page("t", "", [])))
    assert reader.texts["h1"] == ["t"]


# ------------------------------------------------------------------------------------------------------------- refused


@pytest.mark.parametrize("cell", [[1], {"a": 1}, b"x", object(), 1j])
def test_cell_that_is_no_value_is_refused(cell):
    with pytest.raises(TypeError, match=type(cell).__name__):
        render(b.Page("t", "s", [b.Section("t", "", [b.Facts([("a", cell)])])]))


def test_block_of_an_unknown_type_is_refused():
    with pytest.raises(TypeError, match="Section is no block"):
        render(b.Page("t", "s", [b.Section("t", "", [b.Section("u", "", [])])]))


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: b.Table(["a", "b"], [["x"]]), "2 columns"),
        (lambda: b.Table(["a"], [["x"]], numeric=["b"]), "not all among"),
        (lambda: b.Series("s", [1, 2], [1]), "lengths"),
        (lambda: b.Series("s", [1], [1], low=[0]), "one side"),
        (lambda: b.Bars(["a", "b"], [b.Bar("r", [1.0])]), "one value for each"),
    ],
)
def test_block_whose_parts_do_not_fit_is_refused(make, match):
    with pytest.raises(ValueError, match=match):
        make()


# ------------------------------------------------------------------------------------------------------ determinism


def test_same_page_gives_the_same_bytes():
    assert render(page_of("a<b>é")).encode() == render(page_of("a<b>é")).encode()


def test_page_of_unordered_collections_gives_the_same_bytes_in_any_order():
    names = ["a", "b", "c", "d"]
    sources = {
        render(b.Page("t", "s", [b.Section("t", "", [b.Table(names, [[1.5, 2, 3, 4]], numeric=numeric)])]))
        for numeric in (names, names[::-1], frozenset(names))
    }
    assert len(sources) == 1


# ------------------------------------------------------------------------------------------------------------- numbers


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (0.0, "0"),
        (-0.0, "0"),
        (7, "7"),
        (1234567, "1,234,567"),
        (-1234567, "-1,234,567"),
        (np.int64(12345), "12,345"),
        (np.float32(0.5), "0.5"),
        (0.123456, "0.1235"),
        (-0.123456, "-0.1235"),
        (12.3456, "12.35"),
        (1234.56, "1,235"),
        (99999.6, "100,000"),
        (0.000123456, "0.0001235"),
        (0.000012345, "1.234e-05"),
        (1e15, "1e+15"),
        (5e-324, "4.941e-324"),
        (math.inf, "inf"),
        (math.nan, "-"),
        (None, "-"),
        (10**400, f"{10**400:,}"),
    ],
)
def test_number_is_written(value, text):
    assert b.number_text(value) == text


@pytest.mark.parametrize(
    ("values", "texts"),
    [
        ([], []),
        ([0.5, 0.25], ["0.500", "0.250"]),
        ([12.5, 3.25, None], ["12.50", "3.25", "-"]),
        ([1.0, 2.0], ["1", "2"]),
        ([1, 2.5], ["1", "2.500"]),
        ([1234.5, 0.01], ["1,234.50", "0.01"]),
        ([0.0, 0.5], ["0.000", "0.500"]),
        ([-0.0, 0.5], ["0.000", "0.500"]),
        ([math.nan, 0.5, math.inf], ["-", "0.500", "inf"]),
        ([1e-9, 2e-9], ["1e-09", "2e-09"]),
        ([None, None], ["-", "-"]),
        ([10**400, 0.5], [f"{10**400:,}", "0.500"]),
    ],
)
def test_column_of_numbers_is_written_with_equal_decimals(values, texts):
    assert b.number_texts(values) == texts


@given(st.lists(st.none() | st.integers() | st.floats()))
def test_column_of_numbers_writes_only_zero_as_zero_and_only_the_missing_as_a_dash(values):
    for value, text in zip(values, b.number_texts(values), strict=True):
        missing = value is None or (isinstance(value, float) and math.isnan(value))
        assert (text == b.MISSING) == missing
        if not missing:
            assert (float(text.replace(",", "")) == 0) == (value == 0)
            assert not re.fullmatch(r"-0(\.0*)?", text)
