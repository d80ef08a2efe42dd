"""Turns a page of blocks into one HTML file that needs nothing else: no network, no script, no second file.

Pure: the same page gives the same bytes. Everything that a page holds is data and is escaped: the template escapes on
its own, and what is printed passes `_printed` first, so that no place can forget it. The file carries a content
security policy as a second wall. What it looks like is in `page.css`, its structure in `page.html.jinja`.
"""

import functools
import numbers
from importlib import resources
from typing import TYPE_CHECKING, Any, cast

from s2l_ray.report import charts
from s2l_ray.report.blocks import (
    Bars,
    Block,
    Chart,
    Code,
    ExampleRows,
    Facts,
    Intervals,
    Lines,
    Page,
    Table,
    Text,
    Value,
    Warnings,
    number_text,
    number_texts,
    visible_text,
)

if TYPE_CHECKING:
    from jinja2 import Template
    from markupsafe import Markup

_MACROS: dict[type[Block], str] = {
    Text: "text",
    Facts: "facts",
    Table: "table",
    Lines: "chart",
    Bars: "chart",
    Intervals: "chart",
    Warnings: "warnings",
    ExampleRows: "example_rows",
    Code: "code",
}


def render(page: Page) -> str:
    """Return the page as HTML.

    Args:
        page: what to show; its strings may hold anything.

    Returns:
        The text of the file. It always encodes as UTF-8, which is what its header announces.

    Raises:
        TypeError: a block of an unknown type, or a cell that is neither text nor a number nor None.
    """
    return _template().render(page=page)


@functools.cache
def _template() -> "Template":
    import jinja2
    from markupsafe import Markup

    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, finalize=_printed, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"macro": _macro, "cells": _cells, "drawings": _drawings, "legend": charts.legend}
    environment.globals["css"] = Markup(_packaged("page.css"))
    return environment.from_string(_packaged("page.html.jinja"))


def _packaged(name: str) -> str:
    return resources.files("s2l_ray.report").joinpath(name).read_text(encoding="utf-8")


def _printed(value: Any) -> "str | Markup":
    """Return what the template prints for a value; it escapes the result unless that is markup of its own."""
    from markupsafe import Markup

    if isinstance(value, Markup):
        return value
    if isinstance(value, str):
        return visible_text(value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None or isinstance(value, numbers.Real):
        return number_text(cast("float | None", value))  # numpy's numbers are none of Python's, but do
    raise TypeError(f"a report shows text, numbers and None; found a {type(value).__name__}.")


def _macro(block: Block) -> str:
    name = _MACROS.get(type(block))
    if name is None:
        raise TypeError(f"a {type(block).__name__} is no block of a report.")
    return name


def _cells(table: Table) -> list[list[Value]]:
    """Return the rows of a table, its numeric columns as text with equal decimals."""
    columns: list[list[Value]] = [list(column) for column in zip(*table.rows, strict=True)]
    for name, column in zip(table.columns, columns, strict=False):  # a table without rows has no column to write
        if name in table.numeric:
            found = [i for i, cell in enumerate(column) if not isinstance(cell, str)]
            texts = number_texts([cell for cell in column if not isinstance(cell, str)])
            for i, text in zip(found, texts, strict=True):
                column[i] = text
    return [list(row) for row in zip(*columns, strict=True)]


def _drawings(chart: Chart) -> list[tuple[str, "Markup"]]:
    """Return the chart for a screen and for a phone; the style sheet shows one of them."""
    from markupsafe import Markup

    widths = (("screen", charts.SCREEN), ("phone", charts.PHONE))
    return [(name, Markup(charts.draw(chart, width))) for name, width in widths]
