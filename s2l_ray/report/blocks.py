"""What a report is made of, and how its words and numbers are written.

A page has sections, a section has blocks: text, facts, tables, charts, warnings, rows of data, code. They hold plain
data and know nothing of HTML; `html.render` turns a page into a file. Strings may come from anywhere, they are shown
as they are and never act. A number is written by `number_text`, in columns by `number_texts`; what is None or NaN is a
dash, never a 0. A caller that wants other decimals passes text.
"""

import math
import numbers
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TypeGuard

Number = float | None
Value = str | float | None
"""What a cell may hold."""

MISSING = "-"

_LARGEST = 1e300  # beyond it the ends of an axis overflow
_HIDDEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]")


@dataclass(frozen=True)
class Text:
    """Paragraphs."""

    paragraphs: Sequence[str]


@dataclass(frozen=True)
class Facts:
    """Labels and their values."""

    rows: Sequence[tuple[str, Value]]


@dataclass(frozen=True)
class Table:
    """A table; the first column names the row.

    Attributes:
        numeric: names of the columns that are aligned to the right and written with equal decimals.
        highlight: positions of the rows that matter most.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[Value]]
    numeric: Collection[str] = ()
    caption: str = ""
    highlight: Collection[int] = ()

    def __post_init__(self) -> None:
        """Refuse rows of another length than the columns, and numeric columns that do not exist."""
        lengths = {len(row) for row in self.rows} - {len(self.columns)}
        if lengths:
            raise ValueError(f"a table of {len(self.columns)} columns has rows of {sorted(lengths)} cells.")
        if not set(self.numeric) <= set(self.columns):
            raise ValueError(f"numeric columns {sorted(self.numeric)} are not all among {list(self.columns)}.")


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
    """Lines over common axes. With more than eight of them colours stand for weights instead of names."""

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


@dataclass(frozen=True)
class Warnings:
    """What the reader should know before believing the rest; an empty one says that there is nothing."""

    items: Sequence[str]


@dataclass(frozen=True)
class ExampleRow:
    """One row of the data, field by field."""

    title: str
    fields: Sequence[tuple[str, Value]]


@dataclass(frozen=True)
class ExampleRows:
    """Rows of the data, in full."""

    items: Sequence[ExampleRow]


@dataclass(frozen=True)
class Code:
    """Text of a program, a config or a command line."""

    text: str


Chart = Lines | Bars | Intervals
Block = Text | Facts | Table | Chart | Warnings | ExampleRows | Code


@dataclass(frozen=True)
class Section:
    """A part of the page: a heading, one sentence that says what it shows, and the evidence."""

    title: str
    lead: str
    blocks: Sequence[Block]


@dataclass(frozen=True)
class Page:
    """A report."""

    title: str
    subtitle: str
    sections: Sequence[Section]


def visible_text(text: str) -> str:
    """Return the text with every character shown that would otherwise act: controls, bidi overrides, half pairs."""
    return _HIDDEN.sub(_shown, text.replace("\r\n", "\n"))


def _shown(match: re.Match[str]) -> str:
    code = ord(match[0])
    return chr(0x2400 + code) if code < 32 else "\u2421" if code == 127 else f"\u27e8U+{code:04X}\u27e9"


def number_text(value: Number) -> str:
    """Write one number: integers in full, others with four significant digits, what is missing as a dash."""
    if isinstance(value, numbers.Integral):
        return f"{int(value):,}"
    if value is None or math.isnan(value):
        return MISSING
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
                f"{v + 0.0:,.{decimals}f}" if is_drawable(v) and not isinstance(v, numbers.Integral) else number_text(v)
                for v in values
            ]
    return [number_text(value) for value in values]


def is_drawable(value: Number) -> TypeGuard[float]:
    """Return whether the value has a place on an axis."""
    if value is None:
        return False
    exact = value if isinstance(value, numbers.Integral) else float(value)  # float32 would round the bound to infinity
    return abs(exact) <= _LARGEST  # NaN is not
