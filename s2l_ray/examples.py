"""Rows of any supported layout -> examples.

An example is a list of turns: who speaks, and what. `layouts` settles which columns hold them, `turns` takes them out
of a row; `read_examples` streams a file. A row that is no example becomes a `RejectedRow`, so that
rows in = examples + rejected rows. Texts are never changed: an example holds them to the byte.

Shape suffix: N examples.
"""

import hashlib
import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from s2l_ray import schemas
from s2l_ray.errors import DataError
from s2l_ray.evaluation_sets import SETS
from s2l_ray.formats.row import BadRow, Row, UnusableRowError, bad_type
from s2l_ray.input_files import InputFile, Warn, shown
from s2l_ray.layouts import REQUIRED, RESERVED, Layout, check_columns, check_reserved
from s2l_ray.raw_rows import columns_of, read_rows
from s2l_ray.turns import Turn, turns_of

_TRUTHS = {"true": True, "false": False, "": None}
_ROW_BITS = 40
_HELD_OUT_SALT = 0x5332_4C5F_4845_4C44  # any constant; it only has to stay as it is


@dataclass(frozen=True, slots=True)
class Example:
    """One usable row; the fields are the columns of `schemas.EXAMPLES`."""

    example_id: int
    user_id: str | None
    input_file: str
    input_row: int
    content_hash: int
    source: str | None
    skill: str | None
    is_wrong: bool | None
    turns: tuple[Turn, ...]


@dataclass(frozen=True, slots=True)
class RejectedRow:
    """A row that is no example; the fields are the columns of `schemas.REJECTED`.

    `reason` is a short code, a colon, and the details, e.g. `blank_output: column `output` has no text`.
    """

    input_file: str
    input_row: int
    reason: str


def read_examples(
    file: InputFile, layout: Layout, *, on_warning: Warn = lambda warning: None
) -> Iterator[Example | RejectedRow]:
    """Stream a file: one item for every row that is not blank, in the file's order.

    Args:
        file: from `find_inputs`.
        layout: from `detect_layout`.
        on_warning: is told, at the end of the file, what is odd but no error.

    Raises:
        DataError: the file cannot be read to its end (see `raw_rows.read_rows`), a column has a name of ours, a
            Parquet file lacks a column, or an id is null.
    """
    if found := columns_of(file):
        check_reserved(file, found)
        mapped = {our: column for our, column in layout.columns.items() if our != column}
        needed = {our: layout.columns[our] for our in (*REQUIRED[layout.name], "id") if our in layout.columns}
        check_columns(file, found, mapped | needed)
    for number, row in read_rows(file, set(layout.columns.values()), on_warning=on_warning):
        item: Example | RejectedRow
        if isinstance(row, BadRow):
            item = RejectedRow(file.name, number, row.reason)
        else:
            try:
                item = _example(file, layout, number, row)
            except UnusableRowError as error:
                item = RejectedRow(file.name, number, str(error))
        yield item


def bad_row_error(rejected: RejectedRow) -> DataError:
    """Return the error for a bad row where `on_bad_row` is `error`; rows are counted from 1 in its message."""
    return DataError(
        f"{shown(rejected.input_file)}:{rejected.input_row + 1}: {rejected.reason}. Mend that row, or set bad rows "
        "aside with `examples.on_bad_row: reject`."
    )


def examples_table(examples: Sequence[Example]) -> pa.Table:
    """Return examples as a table of schema `schemas.EXAMPLES`; their texts may have 2 GiB in total."""
    turns = [turn for example in examples for turn in example.turns]
    offsets = list(itertools.accumulate((len(example.turns) for example in examples), initial=0))
    roles = pa.array([turn.role for turn in turns], pa.string())
    contents = pa.array([turn.content for turn in turns], pa.string())
    arrays = [
        pa.array([getattr(example, field.name) for example in examples], field.type)
        for field in schemas.EXAMPLES
        if field.name != "turns"
    ]
    structs = pa.StructArray.from_arrays([roles, contents], fields=list(schemas.TURN))
    arrays.append(pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), structs))
    return pa.Table.from_arrays(arrays, schema=schemas.EXAMPLES)


def turn_pairs(turns: pa.ChunkedArray) -> Iterator[list[tuple[str, str]]]:
    """Yield the (role, content) of every example's turns, from the column `turns` of `schemas.EXAMPLES`."""
    for chunk in turns.chunks:
        flat = chunk.flatten()
        said = zip(flat.field("role").to_pylist(), flat.field("content").to_pylist(), strict=True)
        for length in chunk.value_lengths().to_pylist():
            yield list(itertools.islice(said, length))


def example_id(file_index: int, row: int) -> int:
    """Return the id of a row: `file_index << 40 | row`.

    Raises:
        ValueError: `file_index` is not below 2^23 or `row` not below 2^40.
    """
    if not (0 <= file_index < 2**23 and 0 <= row < 2**_ROW_BITS):
        raise ValueError(f"file index {file_index} and row {row} do not fit into an example_id.")
    return file_index << _ROW_BITS | row


def locations(example_id_N: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return the file index and the row in its file of every `example_id`."""
    return example_id_N >> _ROW_BITS, example_id_N & (2**_ROW_BITS - 1)


def content_hash(turns: Iterable[tuple[str, str]]) -> int:
    """Return a signed 64-bit hash of roles and texts, the same on every platform.

    Every part is preceded by its length, so that no two lists of turns are hashed as the same bytes.

    Raises:
        UnicodeEncodeError: a text holds a lone surrogate.
    """
    parts = [part.encode() for turn in turns for part in turn]
    digest = hashlib.blake2b(b"".join([b"%d:%b" % (len(part), part) for part in parts]), digest_size=8)
    return int.from_bytes(digest.digest(), "big", signed=True)


def held_out(content_hash_N: npt.NDArray[np.int64], share: float) -> npt.NDArray[np.bool_]:
    """Decide which examples are held out, by their content alone.

    Equal contents fall on the same side, the order of files and rows is of no matter, and a larger share holds out
    all of a smaller one. Independent of the draw of `draws.draw_hash`.

    Args:
        content_hash_N: from `content_hash`.
        share: expected share of the distinct contents, 0 to 1.

    Returns:
        bool [N], true where held out.

    Source:
        The finaliser of MurmurHash3 (Appleby 2011); another one than the draw's, so that no seed makes them meet.
    """
    mixed_N = content_hash_N.astype(np.uint64) ^ np.uint64(_HELD_OUT_SALT)
    for factor in (0xFF51_AFD7_ED55_8CCD, 0xC4CE_B9FE_1A85_EC53):
        mixed_N = (mixed_N ^ (mixed_N >> np.uint64(33))) * np.uint64(factor)
    mixed_N ^= mixed_N >> np.uint64(33)
    uniform_N = (mixed_N >> np.uint64(11)).astype(np.float64) * 2.0**-53
    held_out_N: npt.NDArray[np.bool_] = uniform_N < share
    return held_out_N


def find_duplicate_user_ids(user_id_columns: Iterable[pa.ChunkedArray], limit: int = 5) -> list[str]:
    """Return the first ids, in the order of the data, that occur more than once; nulls are none.

    Args:
        user_id_columns: e.g. one column per Parquet file. All ids are held in memory.
        limit: return not more than these.
    """
    chunks = [chunk for column in user_id_columns for chunk in column.cast(pa.large_string()).chunks]
    counts = pc.value_counts(pa.chunked_array(chunks, pa.large_string()).drop_null())
    repeated = counts.filter(pc.greater(counts.field("counts"), 1)).field("values")
    ids: list[str] = repeated.slice(0, limit).to_pylist()
    return ids


def _example(file: InputFile, layout: Layout, number: int, row: Row) -> Example:
    columns = layout.columns
    if not RESERVED.isdisjoint(row):
        check_reserved(file, row)
    turns = turns_of(row, layout)
    try:
        hashed = content_hash(turns)
    except UnicodeEncodeError as error:
        raise UnusableRowError("lone_surrogate: a text holds half of a surrogate pair; it is no Unicode") from error
    user_id = _label(row, layout, "id")
    if user_id is None and "id" in columns:
        raise DataError(
            f"{shown(file.name)}:{number + 1}: the id in column `{shown(columns['id'])}` is null or missing. "
            "Give every row an id of its own, or say that the column holds no ids with `columns: {id: null}`."
        )
    return Example(
        example_id=example_id(file.index, number),
        user_id=user_id,
        input_file=file.name,
        input_row=number,
        content_hash=hashed,
        source=_label(row, layout, "source") or file.source or (layout.name if layout.name in SETS else None),
        skill=_label(row, layout, "skill"),
        is_wrong=_truth(row, layout),
        turns=turns,
    )


def _truth(row: Row, layout: Layout) -> bool | None:
    value = layout.value_in(row, "is_wrong")
    if isinstance(value, str) and value.casefold() in _TRUTHS:  # CSV knows only text
        return _TRUTHS[value.casefold()]
    if value is not None and not isinstance(value, bool):
        raise _bad_label(layout, "is_wrong", value, "true or false")
    return value


def _label(row: Row, layout: Layout, our: str) -> str | None:
    """Return an id or a label: text or a whole number; never looked into."""
    value = layout.value_in(row, our)
    if value is None:
        return None
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        raise _bad_label(layout, our, value, "text or a whole number")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise UnusableRowError(
                f"lone_surrogate: column `{shown(layout.columns[our])}` holds half of a surrogate pair"
            ) from error
    return value


def _bad_label(layout: Layout, our: str, value: object, expected: str) -> UnusableRowError:
    return bad_type(layout.columns[our], value, f"{expected} (or `columns: {{{our}: null}}`, which leaves it unread)")
