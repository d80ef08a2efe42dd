"""Labels of rows, such as sources and strata, in numbers: ten million rows name a handful of them.

Shape suffix: N rows.
"""

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

NONE = -1
"""Stands for no label."""


def coded(column: pa.ChunkedArray) -> tuple[list[str], npt.NDArray[np.int32]]:
    """Number the labels of a column of strings.

    Returns:
        The labels that occur, in order, and int32 [N]: the place of each row's label among them, `NONE` for null.
    """
    encoded = column.dictionary_encode().unify_dictionaries()
    if not encoded.num_chunks:
        return [], np.empty(0, np.int32)
    found: list[str] = encoded.chunk(0).dictionary.to_pylist()
    names = sorted(found)
    places = {name: place for place, name in enumerate(names)}
    place_of = np.array([*(places[name] for name in found), NONE], np.int32)
    code_N = np.concatenate([chunk.indices.fill_null(len(found)).to_numpy() for chunk in encoded.chunks])
    return names, place_of[code_N]


def counted(column: pa.ChunkedArray) -> dict[str | None, int]:
    """Return the rows of each label, and of none."""
    return {row["values"]: row["counts"] for row in pc.value_counts(column).to_pylist()}


def labelled(code_N: npt.NDArray[np.int32], names: list[str]) -> pa.Array:
    """Return the labels as strings again, null for `NONE`."""
    indices = pa.array(code_N, pa.int32(), mask=code_N == NONE)
    return pa.DictionaryArray.from_arrays(indices, pa.array(names, pa.string())).cast(pa.string())
