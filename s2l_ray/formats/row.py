"""A row as it stands in a file, and what makes it none."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from s2l_ray.errors import DataError
from s2l_ray.input_files import InputFile, listed, shown

MAX_ROW_BYTES = 64 * 2**20
"""A longer line or record of a table is set aside without being decoded; a longer array element is a `DataError`."""

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class BadRow:
    """Why a row is none. `reason` is a short code, a colon, and the details."""

    reason: str


class UnusableRowError(Exception):
    """A row that is no example; the text is the reason: a short code, a colon, and the details."""


NumberedRows = Iterator[tuple[int, Row | BadRow]]


def kind_of(value: Any) -> str:
    """Return what a value is, in the words of JSON."""
    if value is None:
        return "null"
    kinds = {bool: "true or false", int: "a number", float: "a number", str: "text", list: "a list", dict: "an object"}
    return kinds.get(type(value), f"a value of type {type(value).__name__}")


def bad_type(column: str, value: object, expected: str) -> UnusableRowError:
    """Return the error for a value of another type than its column holds."""
    return UnusableRowError(f"wrong_type: column `{shown(column)}` holds {kind_of(value)}, expected {expected}")


def missing_column(row: Row, column: str) -> UnusableRowError:
    """Return the error for a column that a row lacks."""
    return UnusableRowError(f"missing_column: `{shown(column)}` is not among {listed(list(row), 8)}")


def text_of(row: Row, column: str) -> str:
    """Return a column's text.

    Raises:
        UnusableRowError: there is none.
    """
    value = row.get(column)
    if isinstance(value, str):
        return value
    if column not in row:
        raise missing_column(row, column)
    raise bad_type(column, value, "text")


def too_large() -> BadRow:
    """Return what stands for a row above the limit."""
    return BadRow(f"row_too_large: longer than {MAX_ROW_BYTES} bytes")


def not_utf8(file: InputFile, line: int, offset: int, byte: int) -> DataError:
    """Return the error for a byte that no UTF-8 text has there; lines count from 1."""
    return DataError(
        f"{shown(file.name)}:{line}: byte 0x{byte:02X} at offset {offset} is not UTF-8; the text may be Windows-1252 "
        "or Latin-1. Expected UTF-8; convert the file, e.g. `iconv -f WINDOWS-1252 -t UTF-8`."
    )


def check_names(file: InputFile, names: Sequence[str]) -> None:
    """Raise `DataError` where two columns have one name."""
    if len(set(names)) != len(names):
        raise DataError(f"{shown(file.name)}: two columns have the same name; rename one of {listed(names)}.")
