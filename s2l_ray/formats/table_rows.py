"""Tables of Arrow's: Parquet, and Arrow's own files and streams, as `datasets` keeps them. Rows are numbered from 0."""

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from s2l_ray.errors import DataError
from s2l_ray.formats import row as limits
from s2l_ray.formats.row import BadRow, NumberedRows, Row, check_names, too_large
from s2l_ray.input_files import ARROW_MAGIC, InputFile, is_remote, random_access, shown

_BUFFER_BYTES = 2**20
_BATCH_ROWS = 256
_COPY_GROUP_ROWS = 2**16


def read_parquet(file: InputFile, columns: Collection[str] | None) -> NumberedRows:
    """Yield every row with those of the columns that the file has; None takes all."""
    with _parquet_file(file) as parquet:
        names = [name for name in parquet.schema_arrow.names if columns is None or name in columns]
        use_threads = not is_remote(file.path)  # see `filesystems.reads_in_threads`
        yield from _rows(parquet.iter_batches(batch_size=_BATCH_ROWS, columns=names, use_threads=use_threads))


def read_arrow(file: InputFile, columns: Collection[str] | None) -> NumberedRows:
    """Yield every row with those of the columns that the file has; None takes all."""
    with _arrow_file(file) as source:
        names = [name for name in source.schema.names if columns is None or name in columns]
        yield from _rows(part.select(names) for batch in source.batches for part in _parts(batch))


def table_columns(file: InputFile) -> tuple[str, ...]:
    """Return the columns of a table.

    Raises:
        DataError: the file is corrupt or gone.
    """
    if file.file_format == "parquet":
        with _parquet_file(file) as parquet:
            return tuple(parquet.schema_arrow.names)
    with _arrow_file(file) as source:
        return tuple(source.schema.names)


def copy_parquet(file: InputFile, rows: Sequence[int], sink: BinaryIO) -> int:
    """Write the chosen rows with the same columns, types and metadata."""
    written = 0
    with _parquet_file(file) as parquet:
        schema = parquet.schema_arrow
    # The source is opened again below, so that an error of the sink is not taken for a corrupt source.
    with pq.ParquetWriter(sink, schema) as writer:
        for table in _chosen(file, np.asarray(rows, dtype=np.int64)):
            writer.write_table(table)
            written += table.num_rows
    return written


def copy_arrow(file: InputFile, rows: Sequence[int], sink: BinaryIO) -> int:
    """Write the chosen rows with the same columns, types and metadata, as a file or a stream like the source."""
    written = 0
    with _arrow_file(file) as source:
        schema, new = source.schema, source.new_writer
    with new(sink, schema) as writer:  # opened again below, as above
        for batch in _chosen_batches(file, np.asarray(rows, dtype=np.int64)):
            writer.write_batch(batch)
            written += batch.num_rows
    return written


def _rows(batches: Iterator[pa.RecordBatch]) -> NumberedRows:
    number = 0
    for batch in batches:
        if batch.nbytes <= limits.MAX_ROW_BYTES:
            yield from enumerate(_python_rows(batch), start=number)
        else:
            for i in range(batch.num_rows):
                row = batch.slice(i, 1)
                yield number + i, too_large() if row.nbytes > limits.MAX_ROW_BYTES else _python_rows(row)[0]
        number += batch.num_rows


def _parts(batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
    return (batch.slice(first, _BATCH_ROWS) for first in range(0, batch.num_rows, _BATCH_ROWS))


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
                batches += _taken(batch, first, row_N)
                first += batch.num_rows
                full = sum(b.num_rows for b in batches) >= _COPY_GROUP_ROWS
                if full or sum(b.nbytes for b in batches) >= limits.MAX_ROW_BYTES:
                    yield pa.Table.from_batches(batches, parquet.schema_arrow)
                    batches = []
        if batches:
            yield pa.Table.from_batches(batches, parquet.schema_arrow)


def _chosen_batches(file: InputFile, row_N: npt.NDArray[np.int64]) -> Iterator[pa.RecordBatch]:
    first = 0
    with _arrow_file(file) as source:
        for batch in source.batches:
            yield from _taken(batch, first, row_N)
            first += batch.num_rows


def _taken(batch: pa.RecordBatch, first: int, row_N: npt.NDArray[np.int64]) -> list[pa.RecordBatch]:
    """Return the chosen rows of a batch that begins with row `first`; nothing where there are none."""
    low, high = np.searchsorted(row_N, [first, first + batch.num_rows])
    return [batch.take(pa.array(row_N[low:high] - first))] if low < high else []


@contextmanager
def _parquet_file(file: InputFile) -> Iterator[Any]:
    """Open a Parquet file; what goes wrong in it until it is closed again is a `DataError`."""
    with random_access(file.path) as source, _corruption_told(file):
        parquet = pq.ParquetFile(source, buffer_size=_BUFFER_BYTES, pre_buffer=False, page_checksum_verification=True)
        check_names(file, parquet.schema_arrow.names)
        yield parquet


class _ArrowSource(NamedTuple):
    schema: pa.Schema
    batches: Iterator[pa.RecordBatch]
    new_writer: Callable[..., Any]
    """Opens a writer of the same kind, file or stream."""


@contextmanager
def _arrow_file(file: InputFile) -> Iterator[_ArrowSource]:
    """Open an Arrow file or stream; what goes wrong in it until it is closed again is a `DataError`."""
    with random_access(file.path) as source, _corruption_told(file):
        is_stream = source.read(len(ARROW_MAGIC)) != ARROW_MAGIC
        source.seek(0)
        reader = pa.ipc.open_stream(source) if is_stream else pa.ipc.open_file(source)
        check_names(file, reader.schema.names)
        if is_stream:
            yield _ArrowSource(reader.schema, iter(reader), pa.ipc.new_stream)
        else:
            batches = (reader.get_batch(i) for i in range(reader.num_record_batches))
            yield _ArrowSource(reader.schema, batches, pa.ipc.new_file)


@contextmanager
def _corruption_told(file: InputFile) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise _corrupt(file, error) from error
    except OSError as error:
        # Arrow reports corrupt pages as OSError, as it does a network that fails; the latter may be retried.
        if error.errno is not None or is_remote(file.path):
            raise
        raise _corrupt(file, error) from error


def _corrupt(file: InputFile, error: Exception) -> DataError:
    kind = file.file_format.capitalize()
    return DataError(
        f"{shown(file.name)}: the {kind} file is truncated or corrupt: {shown(str(error), 200)}. Write or download it "
        "again."
    )
