"""The rows of an input file as they stand in it: read one after the other, and copied out untouched.

A row is a mapping from column to value, or a `BadRow` that says why it is none. Rows are numbered from 0: by physical
line in JSON Lines and CSV (blank lines count and are no rows), by that of the question in pairs of lines, by element in
a JSON array, by row in a table.

What makes one row unusable is told for that row. What makes a file unreadable from some point on (bytes that are not
UTF-8, a broken array, a corrupt page, a quotation without end) is a `DataError`, since nothing behind it can be
trusted. Memory is bounded by a few times `MAX_ROW_BYTES`.
"""

import io
import itertools
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, BinaryIO, cast

import pyarrow as pa

from s2l_ray.errors import DataError
from s2l_ray.formats import csv_rows, json_rows, pair_rows, table_rows
from s2l_ray.formats.row import NumberedRows
from s2l_ray.input_files import InputFile, Warn, shown


def read_rows(
    file: InputFile, columns: Collection[str] | None = None, *, on_warning: Warn = lambda warning: None
) -> NumberedRows:
    """Yield every row that is not blank, with its number.

    Args:
        file: from `find_inputs`.
        columns: read only these where the format allows it (tables); those that the file lacks are left out.
        on_warning: is told, at the end of the file, of rows that repeat a key and of a file without rows.

    Raises:
        DataError: not UTF-8, an array, a table or compressed data that are broken or cut off, or the file is gone.
    """
    number = -1
    if file.bytes > 0:
        for number, row in _read(file, columns, on_warning):
            yield number, row
    if number < 0:
        on_warning(f"{shown(file.name)}: holds no row.")


def _read(file: InputFile, columns: Collection[str] | None, on_warning: Warn) -> NumberedRows:
    match file.file_format:
        case "jsonl":
            return json_rows.read_lines(file, on_warning)
        case "json":
            return json_rows.read_array(file, on_warning)
        case "csv":
            return csv_rows.read_csv(file)
        case "pairs":
            return pair_rows.read_pairs(file)
        case "parquet":
            return table_rows.read_parquet(file, columns)
        case "arrow":
            return table_rows.read_arrow(file, columns)


def columns_of(file: InputFile) -> tuple[str, ...] | None:
    """Return the columns that every row of a file has; None where each row has its own.

    Raises:
        DataError: the file is corrupt or gone.
    """
    if file.bytes == 0 or file.file_format in ("jsonl", "json"):
        return None
    if file.file_format == "pairs":
        return pair_rows.COLUMNS
    return csv_rows.csv_columns(file) if file.file_format == "csv" else table_rows.table_columns(file)


def copy_rows(file: InputFile, rows: Sequence[int], sink: BinaryIO) -> int:
    """Write the chosen rows in the file's own format and compression, their fields untouched.

    JSON Lines, CSV, pairs of lines: the bytes of each row. A JSON array or object: the text of each element, in a new
    array. Tables: the same columns, types and metadata. One call writes one whole file.

    Args:
        file: from `find_inputs`.
        rows: their numbers, rising.
        sink: open for writing bytes.

    Returns:
        The number of rows written.

    Raises:
        DataError: the file has changed since the rows were numbered, or can no longer be read.
        ValueError: `rows` does not rise.
    """
    if any(one >= other for one, other in itertools.pairwise(rows)) or (rows and rows[0] < 0):
        raise ValueError("rows must be rising numbers from 0.")
    copy = {
        "jsonl": json_rows.copy_lines,
        "json": json_rows.copy_elements,
        "csv": csv_rows.copy_csv,
        "pairs": pair_rows.copy_pairs,
        "parquet": table_rows.copy_parquet,
        "arrow": table_rows.copy_arrow,
    }[file.file_format]
    with _compressed(sink, file) as packed:
        written = copy(file, rows, packed)
    if written != len(rows):
        raise DataError(
            f"{shown(file.name)}: only {written} of {len(rows)} chosen rows are there. The file has changed since it "
            "was read; put the old one back, or run again from the start."
        )
    return written


@contextmanager
def _compressed(sink: BinaryIO, file: InputFile) -> Iterator[BinaryIO]:
    if file.compression is None:
        yield sink
        return
    with pa.CompressedOutputStream(pa.PythonFile(_LeftOpen(sink), "w"), file.compression) as packed:
        yield cast(BinaryIO, packed)


class _LeftOpen(io.RawIOBase):
    """A sink that is not closed with what writes to it."""

    def __init__(self, sink: BinaryIO) -> None:
        self._sink = sink

    def writable(self) -> bool:
        """Yes."""
        return True

    def write(self, data: Any) -> int:
        """Write to the sink."""
        return self._sink.write(data)
