"""Labels in numbers: their order is that of the names, whatever chunks they come in."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from s2l_ray.labels import coded, labelled

LABELS = st.lists(st.lists(st.one_of(st.none(), st.text(max_size=2)), max_size=8), max_size=4)


@given(LABELS)
def test_numbers_stand_for_the_labels_in_their_order(chunks):
    column = pa.chunked_array(chunks, pa.string())
    names, code_N = coded(column)
    assert names == sorted({label for label in column.to_pylist() if label is not None})
    assert [None if code < 0 else names[code] for code in code_N] == column.to_pylist()
    assert labelled(code_N, names).to_pylist() == column.to_pylist()


def test_dictionaries_that_differ_between_chunks_are_one():
    chunks = [pa.array(["b", None]).dictionary_encode(), pa.array(["a", "b"]).dictionary_encode()]
    names, code_N = coded(pa.chunked_array(chunks).cast(pa.string()))
    assert (names, code_N.tolist()) == (["a", "b"], [1, -1, 0, 1])


@pytest.mark.parametrize("names", [[], ["a"]])
def test_rows_without_labels_stay_so(names):
    assert labelled(np.array([-1, -1], np.int32), names).to_pylist() == [None, None]
