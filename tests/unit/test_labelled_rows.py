"""What the report and the table of arms say of rows by their labels, where not every row has one."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from numpy.typing import NDArray

from s2l_ray.stages import compare_arms, write_report

WRONG = [True, None, False, None, False]


def shares(composition) -> dict[str, tuple[float, float]]:
    return {group: (pool, taken) for group, pool, taken in composition.groups}


class Held:
    """An artifact whose files are tables."""

    def __init__(self, *tables: pa.Table) -> None:
        self._tables = tables

    def files(self, prefix: str) -> range:
        return range(len(self._tables))

    def read_rows(self, record: int, columns: list[str]) -> pa.Table:
        return self._tables[record].select(columns)

    def read_table(self, prefix: str, columns: list[str] | None = None) -> pa.Table:
        table = pa.concat_tables(self._tables)
        return table.select(columns or table.column_names)

    def read_examples(self, prefix: str, ids: NDArray[np.int64], columns: list[str]) -> pa.Table:
        table = self.read_table(prefix, columns)
        return table.filter(pc.is_in(table.column("example_id"), value_set=pa.array(ids)))


def compositions(taken: list[int]) -> dict[str, dict[str, tuple[float, float]]]:
    ids, lengths = [3, 0, 1, 2, 4, 7, 6], [0, 1, 2, 3, 4, 9, 100]
    examples = pa.table(
        {
            "example_id": pa.array([*range(5), 5, 6, 7]),
            "source": ["a", "b", "a", "b", "a", "lost", "a", "b"],
            "skill": pa.nulls(8, pa.string()),
            "is_wrong": [*WRONG, True, None, None],
        }
    )
    made = {
        "subset": Held(pa.table({"example_id": taken})),
        "examples": Held(examples[:3], examples[3:]),
        "target_tokens": Held(pa.table({"example_id": ids, "num_response_tokens": lengths})),
    }
    return {found.name: shares(found) for found in write_report._compositions(made)}


def test_rows_of_which_it_is_not_known_are_a_group_of_their_own_and_no_label_at_all_is_none():
    found = compositions([1, 0])
    assert list(found) == ["source", "labelled wrong", "response tokens"]
    assert found["source"] == {"a": (4 / 7, 0.5), "b": (3 / 7, 0.5)}  # the row that no model can read is not there
    assert found["labelled wrong"] == {"(none)": (4 / 7, 0.5), "right": (2 / 7, 0.0), "wrong": (1 / 7, 0.5)}


def test_lengths_are_told_by_powers_of_two_in_order():
    found = compositions([3, 6])["response tokens"]
    assert list(found) == ["1", "2 to 3", "4 to 7", "8 to 15", "64 to 127"]
    assert found["1"] == (2 / 7, 0.5)
    assert sum(pool for pool, _ in found.values()) == pytest.approx(1)


@pytest.mark.parametrize(("taken", "share"), [([0, 1, 2], 0.5), ([1, 3], None), ([0, 1, 2, 3, 4], 1 / 3)])
def test_share_of_wrong_rows_is_of_those_of_which_it_is_known(taken, share):
    columns = {"example_id": range(5), "source": ["a"] * 5, "skill": ["x", "x", "x", "y", "y"], "is_wrong": WRONG}
    examples = Held(pa.table(columns)[:2], pa.table(columns)[2:])
    score = {"metric": "loss", "group_by": "all", "group": "all", "value": 1.0, "rows": 5}
    score |= dict.fromkeys(("standard_error", "low", "high"))
    scores = Held(pa.Table.from_pylist([score]))
    subset = Held(pa.table({"example_id": taken}))
    subset.summary = {"rows": len(taken), "target_response_tokens": 9}
    found = {name: mean.value for name, mean in compare_arms._metrics(subset, scores, examples)}
    assert found.get("wrong_share") == share
    assert ("wrong_share" in found) == (share is not None)


def test_rows_without_labels_are_counted_by_nothing():
    columns = {"example_id": range(3), "source": ["a", "b", "b"], "skill": pa.nulls(3, pa.string())}
    bare = Held(pa.table(columns | {"is_wrong": pa.nulls(3, pa.bool_())}))
    assert compare_arms._counts(bare) == {}
