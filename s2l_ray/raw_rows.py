"""The rows of an input file as they stand in it: read one after the other, and copied out untouched.

A row is a mapping from column to value, or a `BadRow` that says why it is none. Rows are numbered from 0: by physical
line in JSON Lines (blank lines count and are no rows), by element in a JSON array, by row in Parquet.

What makes one row unusable is told for that row. What makes a file unreadable from some point on (bytes that are not
UTF-8, a broken array, a corrupt Parquet page) is a `DataError`, since nothing behind it can be trusted. Memory is
bounded by a few times `MAX_ROW_BYTES`, for arrays too: their elements are decoded one by one.
"""

import codecs
import itertools
import json
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from s2l_ray.errors import DataError
from s2l_ray.inputs import BYTE_ORDER_MARK, InputFile, Warn, is_remote, listed, open_input, random_access, shown

MAX_ROW_BYTES = 64 * 2**20
"""A longer line or Parquet row is set aside without being decoded; a longer array element is a `DataError`."""

_CHUNK_BYTES = 2**20
_BATCH_ROWS = 256
_COPY_GROUP_ROWS = 2**16
_LONGEST_TOKEN = 16
"""An error this close to the end of a window [characters] may only mean that the window ends inside a token."""
_BEHIND_ELEMENT = frozenset(", ]\t\n\r")
_JSON_SPACE = re.compile(r"[ \t\n\r]*")

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class BadRow:
    """Why a row is none. `reason` is a short code, a colon, and the details."""

    reason: str


def read_rows(
    file: InputFile, columns: Collection[str] | None = None, *, on_warning: Warn | None = None
) -> Iterator[tuple[int, Row | BadRow]]:
    """Yield every row that is not blank, with its number.

    Args:
        file: from `find_inputs`.
        columns: read only these where the format allows it (Parquet); those that the file lacks are left out.
        on_warning: is told, at the end of the file, of rows that repeat a key and of a file without rows.

    Raises:
        DataError: not UTF-8, an array or a Parquet file that is broken or cut off, or the file is gone.
    """
    decoder = _RowDecoder()
    number = -1
    if file.bytes > 0:
        read = {"jsonl": _line_rows, "json": _array_rows, "parquet": _parquet_rows}[file.file_format]
        for number, row in read(file, decoder, columns):
            yield number, row
    if on_warning and number < 0:
        on_warning(f"{shown(file.name)}: holds no row.")
    if on_warning and decoder.first_repeat is not None:
        row_number, key = decoder.first_repeat
        on_warning(
            f"{shown(file.name)}: {decoder.repeats} rows repeat a key, the first at line {row_number + 1} "
            f"(`{shown(key)}`); the last value of a key counts."
        )


def parquet_columns(file: InputFile) -> tuple[str, ...]:
    """Return the columns of a Parquet file.

    Raises:
        DataError: the file is corrupt or gone.
    """
    with _parquet_file(file) as parquet:
        return tuple(parquet.schema_arrow.names)


def copy_rows(file: InputFile, rows: Sequence[int], sink: BinaryIO) -> int:
    """Write the chosen rows in the file's own format, their fields untouched.

    JSON Lines: the bytes of each line, and a newline. A JSON array: the text of each element, in a new array.
    Parquet: the same columns, types and metadata. One call writes one whole file.

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
    copy = {"jsonl": _copy_lines, "json": _copy_elements, "parquet": _copy_parquet}[file.file_format]
    written = copy(file, rows, sink)
    if written != len(rows):
        raise DataError(
            f"{shown(file.name)}: only {written} of {len(rows)} chosen rows are there. The file has changed since it "
            "was read; put the old one back, or run again from the start."
        )
    return written


class _RowDecoder:
    """Decodes JSON strictly, and tells what the json module lets pass: NaN literals, rows that are no object."""

    def __init__(self) -> None:
        self.repeats = 0
        self.first_repeat: tuple[int, str] | None = None
        self._literal: str | None = None
        self._repeated: str | None = None
        json_decoder = json.JSONDecoder(object_pairs_hook=self._object, parse_constant=self._constant)
        self._decode: Callable[[str], Any] = json_decoder.decode
        self._raw_decode: Callable[[str, int], tuple[Any, int]] = json_decoder.raw_decode

    def decode(self, text: str) -> Any:
        self._literal = self._repeated = None
        return self._decode(text)

    def raw_decode(self, text: str, start: int) -> tuple[Any, int]:
        self._literal = self._repeated = None
        return self._raw_decode(text, start)

    def check(self, number: int, value: Any) -> Row | BadRow:
        """Return the value decoded last as a row."""
        if self._repeated is not None:
            self.repeats += 1
            self.first_repeat = self.first_repeat or (number, self._repeated)
        if self._literal is not None:
            return BadRow(f"nan_literal: {self._literal} is no JSON; write a number or null")
        if not isinstance(value, dict):
            return BadRow(f"not_an_object: found {kind_of(value)}, expected an object of columns")
        return value

    def _object(self, pairs: list[tuple[str, Any]]) -> Row:
        row = dict(pairs)
        if len(row) != len(pairs):
            names = [name for name, _ in pairs]
            self._repeated = next(name for i, name in enumerate(names) if name in names[:i])
        return row

    def _constant(self, literal: str) -> None:
        self._literal = literal


def kind_of(value: Any) -> str:
    """Return what a value is, in the words of JSON."""
    if value is None:
        return "null"
    kinds = {bool: "true or false", int: "a number", float: "a number", str: "text", list: "a list", dict: "an object"}
    return kinds.get(type(value), f"a value of type {type(value).__name__}")


def _line_rows(
    file: InputFile, decoder: _RowDecoder, _columns: Collection[str] | None
) -> Iterator[tuple[int, Row | BadRow]]:
    for number, offset, line in _lines(file):
        if line is None:
            yield number, _too_large()
            continue
        try:
            text = line.decode()
        except UnicodeDecodeError as error:
            if error.reason == "unexpected end of data" and not line.endswith(b"\n"):
                yield number, BadRow("malformed_json: the file ends within a character; it is truncated")
                continue
            raise _not_utf8(file, number + 1, offset + error.start, line[error.start]) from error
        try:
            value = decoder.decode(text)
        except json.JSONDecodeError as error:
            yield number, BadRow(f"malformed_json: {error.msg} at column {error.colno}")
        except (ValueError, RecursionError) as error:
            yield number, BadRow(f"malformed_json: {_beyond_limits(error)}")
        else:
            yield number, decoder.check(number, value)


def _lines(file: InputFile) -> Iterator[tuple[int, int, bytes | None]]:
    """Yield (number, byte offset, line with its newline) of lines that are not blank; None in place of a huge line."""
    offset = 0
    with open_input(file.path) as stream:
        for number in itertools.count():
            line = stream.readline(MAX_ROW_BYTES + 1)
            if not line:
                return
            start, offset = offset, offset + len(line)
            if number == 0 and line.startswith(BYTE_ORDER_MARK):
                start, line = start + len(BYTE_ORDER_MARK), line.removeprefix(BYTE_ORDER_MARK)
            if len(line) > MAX_ROW_BYTES and not line.endswith(b"\n"):
                offset += _skip_line(stream)
                yield number, start, None
            elif not line.isspace() and line:
                yield number, start, line


def _skip_line(stream: BinaryIO) -> int:
    skipped = 0
    while part := stream.readline(_CHUNK_BYTES):
        skipped += len(part)
        if part.endswith(b"\n"):
            break
    return skipped


def _copy_lines(file: InputFile, rows: Sequence[int], sink: BinaryIO) -> int:
    wanted = iter(rows)
    next_row = next(wanted, None)
    written = 0
    for number, _, line in _lines(file):
        if next_row is None:
            break
        if number == next_row and line is not None:
            sink.write(line.removesuffix(b"\n") + b"\n")
            written += 1
            next_row = next(wanted, None)
    return written


def _array_rows(
    file: InputFile, decoder: _RowDecoder, _columns: Collection[str] | None
) -> Iterator[tuple[int, Row | BadRow]]:
    for number, value, _ in _elements(file, decoder):
        yield number, decoder.check(number, value)


def _elements(file: InputFile, decoder: _RowDecoder) -> Iterator[tuple[int, Any, str]]:
    """Yield (number, value, text) of every element of a JSON array."""
    with open_input(file.path) as stream:
        window = _Window(file, stream)
        window.take("[", "the array")
        number = 0
        if window.peek() == "]":
            window.take("]", "the array")
        else:
            while True:
                value, text = window.element(decoder, number)
                yield number, value, text
                number += 1
                if window.peek() == "]":
                    window.take("]", "the array")
                    break
                window.take(",", f"row {number}, counted from 0,")
        if window.peek():
            raise window.error("found text after the end of the array")


class _Window:
    """The part of a JSON text that is in memory, and how far it has been read."""

    def __init__(self, file: InputFile, stream: BinaryIO) -> None:
        self._file = file
        self._stream = stream
        self._utf8 = codecs.getincrementaldecoder("utf-8")("strict")
        self._text = ""
        self._at = 0
        self._line = 1
        self._bytes_read = 0

    def peek(self) -> str:
        """Return the next character that is not white space; empty at the end of the file."""
        while True:
            space = _JSON_SPACE.match(self._text, self._at)
            self._at = space.end() if space else self._at
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._more():
                return ""

    def take(self, expected: str, before: str) -> None:
        found = self.peek()
        if found != expected:
            what = f"found {found!r}" if found else "the file ends"
            raise self.error(f"{what} where {before} needs {expected!r}")
        self._at += 1

    def element(self, decoder: _RowDecoder, number: int) -> tuple[Any, str]:
        """Decode the next element; read on as long as it may just not be in the window yet."""
        self.peek()
        while True:
            problem = "the file ends in it or behind it"
            try:
                value, end = decoder.raw_decode(self._text, self._at)
            except json.JSONDecodeError as error:
                problem = f"{error.msg} after {error.pos - self._at} characters"
                near_end = error.pos >= len(self._text) - _LONGEST_TOKEN
                whole = not near_end and not error.msg.startswith("Unterminated string")
            except (ValueError, RecursionError) as error:
                problem, whole = _beyond_limits(error), True
            else:
                # At the end of the window, `0` or `0.` may be the beginning of `0.5`.
                behind = self._text[end : end + 1]
                whole = end + _LONGEST_TOKEN < len(self._text) or behind in _BEHIND_ELEMENT
                problem = f"found {behind!r} behind it" if behind else problem
                if whole:
                    text, self._at = self._text[self._at : end], end
                    return value, text
            if len(self._text) - self._at > MAX_ROW_BYTES:
                raise self.error(f"row {number}, counted from 0, is longer than {MAX_ROW_BYTES} characters")
            if whole or not self._more():
                raise self.error(f"row {number}, counted from 0, is malformed: {problem}")

    def error(self, what: str) -> DataError:
        line = self._line + self._text.count("\n", 0, self._at)
        return DataError(
            f"{shown(self._file.name)}:{line}: {what}. Expected one JSON array of rows; mend it there, or write one "
            "row per line (.jsonl), where single bad rows can be set aside."
        )

    def _more(self) -> bool:
        chunk = self._stream.read(max(_CHUNK_BYTES, len(self._text) - self._at))
        pending = len(self._utf8.getstate()[0])
        first = self._bytes_read == 0
        skipped = len(BYTE_ORDER_MARK) if first and chunk.startswith(BYTE_ORDER_MARK) else 0
        try:
            text = self._utf8.decode(chunk[skipped:], final=not chunk)
        except UnicodeDecodeError as error:
            offset = self._bytes_read + skipped - pending + error.start
            line = self._line + self._text.count("\n") + error.object.count(b"\n", 0, error.start)
            raise _not_utf8(self._file, line, offset, error.object[error.start]) from error
        self._bytes_read += len(chunk)
        self._line += self._text.count("\n", 0, self._at)
        self._text = self._text[self._at :] + text
        self._at = 0
        return bool(chunk)


def _copy_elements(file: InputFile, rows: Sequence[int], sink: BinaryIO) -> int:
    wanted = set(rows)
    written = 0
    sink.write(b"[")
    for number, _, text in _elements(file, _RowDecoder()) if rows else ():
        if number in wanted:
            sink.write((b",\n" if written else b"\n") + text.encode())
            written += 1
        if number == rows[-1]:
            break
    sink.write(b"\n]\n")
    return written


def _parquet_rows(
    file: InputFile, _decoder: _RowDecoder, columns: Collection[str] | None
) -> Iterator[tuple[int, Row | BadRow]]:
    with _parquet_file(file) as parquet:
        names = [name for name in parquet.schema_arrow.names if columns is None or name in columns]
        number = 0
        use_threads = not is_remote(file.path)  # see `storage.reads_in_threads`
        for batch in parquet.iter_batches(batch_size=_BATCH_ROWS, columns=names, use_threads=use_threads):
            if batch.nbytes <= MAX_ROW_BYTES:
                yield from enumerate(_python_rows(batch), start=number)
            else:
                for i in range(batch.num_rows):
                    row = batch.slice(i, 1)
                    too_large = row.nbytes > MAX_ROW_BYTES
                    yield number + i, _too_large() if too_large else _python_rows(row)[0]
            number += batch.num_rows


def _python_rows(batch: pa.RecordBatch) -> list[Row | BadRow]:
    try:
        rows: list[Row | BadRow] = batch.to_pylist()
    except UnicodeDecodeError:
        raise
    except (OverflowError, ValueError):  # a date after the year 9999, a time to the nanosecond
        rows = [_python_row(batch.slice(i, 1)) for i in range(batch.num_rows)]
    return rows


def _python_row(batch: pa.RecordBatch) -> Row | BadRow:
    row: Row = {}
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        try:
            row[name] = column[0].as_py()
        except (OverflowError, ValueError) as error:
            what = f"column `{shown(name)}` holds a {column.type} that cannot be read"
            return BadRow(f"unreadable_value: {what}: {shown(str(error).rstrip('.'), 200)}")
    return row


def _copy_parquet(file: InputFile, rows: Sequence[int], sink: BinaryIO) -> int:
    written = 0
    with _parquet_file(file) as parquet:
        schema = parquet.schema_arrow
    # The source is opened again below, so that an error of the sink is not taken for a corrupt source.
    with pq.ParquetWriter(sink, schema) as writer:
        for table in _chosen(file, np.asarray(rows, dtype=np.int64)):
            writer.write_table(table)
            written += table.num_rows
    return written


def _chosen(file: InputFile, row_N: npt.NDArray[np.int64]) -> Iterator[pa.Table]:
    """Yield the chosen rows in tables large enough for a row group each; row groups without one are not read."""
    batches: list[pa.RecordBatch] = []
    first = 0
    with _parquet_file(file) as parquet:
        for group in range(parquet.num_row_groups):
            stop = first + parquet.metadata.row_group(group).num_rows
            if np.searchsorted(row_N, first) == np.searchsorted(row_N, stop):
                first = stop
                continue
            for batch in parquet.iter_batches(
                batch_size=_BATCH_ROWS, row_groups=[group], use_threads=not is_remote(file.path)
            ):
                low, high = np.searchsorted(row_N, [first, first + batch.num_rows])
                if low < high:
                    batches.append(batch.take(pa.array(row_N[low:high] - first)))
                first += batch.num_rows
                full = sum(b.num_rows for b in batches) >= _COPY_GROUP_ROWS
                if full or sum(b.nbytes for b in batches) >= MAX_ROW_BYTES:
                    yield pa.Table.from_batches(batches, parquet.schema_arrow)
                    batches = []
        if batches:
            yield pa.Table.from_batches(batches, parquet.schema_arrow)


@contextmanager
def _parquet_file(file: InputFile) -> Iterator[Any]:
    """Open a Parquet file; what goes wrong in it until it is closed again is a `DataError`."""
    with random_access(file.path) as source:
        try:
            parquet = pq.ParquetFile(
                source, buffer_size=_CHUNK_BYTES, pre_buffer=False, page_checksum_verification=True
            )
            names = parquet.schema_arrow.names
            if len(set(names)) != len(names):
                raise DataError(f"{shown(file.name)}: two columns have the same name; rename one of {listed(names)}.")
            yield parquet
        except (pa.ArrowException, UnicodeDecodeError) as error:
            raise _corrupt(file, error) from error
        except OSError as error:
            # Arrow reports corrupt pages as OSError, as it does a network that fails; the latter may be retried.
            if error.errno is not None or is_remote(file.path):
                raise
            raise _corrupt(file, error) from error


def _corrupt(file: InputFile, error: Exception) -> DataError:
    return DataError(
        f"{shown(file.name)}: the Parquet file is truncated or corrupt: {shown(str(error), 200)}. Write or download it "
        "again."
    )


def _too_large() -> BadRow:
    return BadRow(f"row_too_large: longer than {MAX_ROW_BYTES} bytes")


def _beyond_limits(error: Exception) -> str:
    return "nested too deeply" if isinstance(error, RecursionError) else "a number has too many digits"


def _not_utf8(file: InputFile, line: int, offset: int, byte: int) -> DataError:
    return DataError(
        f"{shown(file.name)}:{line}: byte 0x{byte:02X} at offset {offset} is not UTF-8; the text may be Windows-1252 "
        "or Latin-1. Expected UTF-8; convert the file, e.g. `iconv -f WINDOWS-1252 -t UTF-8`."
    )
