"""What the report and the table of arms say of rows by their labels, where not every row has one."""

from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from s2l_ray.stages import compare_arms, write_report

WRONG = [True, None, False, None, False]


def shares(composition) -> dict[str, tuple[float, float]]:
    return {group: (pool, taken) for group, pool, taken in composition.groups}


def test_rows_of_which_it_is_not_known_are_a_group_of_their_own():
    label = write_report._or_none(pc.if_else(pa.chunked_array([WRONG]), "wrong", "right"))
    is_taken = pa.array([True, True, False, False, False])
    found = shares(write_report._composition("labelled wrong", label, is_taken))
    assert found == {"(none)": (0.4, 0.5), "right": (0.4, 0.0), "wrong": (0.2, 0.5)}


def test_lengths_are_told_by_powers_of_two_in_order():
    label = write_report._length_classes(np.array([0, 1, 2, 3, 4, 9, 100]))
    found = write_report._composition("response tokens", label, pa.array([True] * 7))
    assert [group for group, *_ in found.groups] == ["1", "2 to 3", "4 to 7", "8 to 15", "64 to 127"]
    assert sum(pool for _, pool, _ in found.groups) == pytest.approx(1)


@pytest.mark.parametrize(("taken", "share"), [([0, 1, 2], 0.5), ([1, 3], None), ([0, 1, 2, 3, 4], 1 / 3)])
def test_share_of_wrong_rows_is_of_those_of_which_it_is_known(taken, share):
    labels = pa.table(
        {"example_id": range(5), "source": ["a"] * 5, "skill": ["x", "x", "x", "y", "y"], "is_wrong": WRONG}
    )
    scores = {"metric": "loss", "group_by": "all", "group": "all", "value": 1.0, "standard_error": None, "rows": 5}
    subset = SimpleNamespace(
        summary={"rows": len(taken), "target_response_tokens": 9},
        read_table=lambda *_: pa.table({"example_id": taken}),
    )
    made = SimpleNamespace(read_table=lambda *_: pa.Table.from_pylist([scores]))
    found = {name: mean.value for name, mean in compare_arms._metrics(subset, made, labels)}
    assert found.get("wrong_share") == share
    assert ("wrong_share" in found) == (share is not None)
