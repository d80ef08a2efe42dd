"""Losses in the order of a file's rows reach the rows they belong to, whatever lines the file has between them."""

import json
from pathlib import Path

import pytest
import torch

from s2l_ray.errors import DataError
from s2l_ray.schemas import matrix
from s2l_ray.storage import Storage
from tests.conftest import artifacts_of
from tests.subsets.selected import experiment, make

ROWS = 30
BAD = {4, ROWS - 1}
"""Rows without an answer: one in the middle, and the last."""


def write_csv(path: Path) -> Path:
    lines = [f'"what is {row}?","{"" if row in BAD else row}"' for row in range(ROWS)]
    path.write_text("\n".join(["instruction,output", *lines]) + "\n")
    return path


def write_jsonl(path: Path) -> Path:
    rows = [
        json.dumps({"instruction": f"what is {row}?", "output": "" if row in BAD else str(row)}) for row in range(ROWS)
    ]
    path.write_text("\n\n".join(["", *rows]) + "\n")
    return path


def imported(folder: Path, rows: Path, count: int) -> dict[str, float]:
    """Import losses that are the numbers of the rows; return the first of each example by its answer."""
    for step in (10, 20):
        (folder / "in" / f"checkpoint-{step}").mkdir(parents=True)
        torch.save([float(row) for row in range(count)], folder / "in" / f"checkpoint-{step}" / "losses.pt")
    examples = {"path": str(rows), "on_bad_row": "reject", "max_rejected": 0.5}
    storage = Storage.at(str(folder / "storage"))
    of = experiment(examples=examples, trajectories={"path": str(folder / "in")}, storage=storage.uri)
    make(storage, of, until="import_trajectories")
    (trajectories,), (found, *_) = artifacts_of(storage, "trajectories"), artifacts_of(storage, "examples")
    answers = {row["example_id"]: row["turns"][-1]["content"] for row in found.read_table("examples-").to_pylist()}
    table = trajectories.read_table("trajectories-")
    losses = matrix(table, "loss")[:, 0].tolist()
    return {answers[i]: loss for i, loss in zip(table.column("example_id").to_pylist(), losses, strict=True)}


@pytest.mark.parametrize("write", [write_csv, write_jsonl])
def test_each_row_has_the_losses_of_its_place_among_the_rows(write, tmp_path):
    found = imported(tmp_path, write(tmp_path / f"rows.{write.__name__.removeprefix('write_')}"), ROWS)
    assert len(found) > ROWS / 2
    assert all(loss == float(answer) for answer, loss in found.items())


@pytest.mark.parametrize("count", [ROWS - 1, ROWS + 1, ROWS - len(BAD)])
def test_losses_of_another_number_of_rows_are_refused(count, tmp_path):
    with pytest.raises(DataError, match=f"{count} losses per checkpoint.*the examples are {ROWS} rows of 1 file"):
        imported(tmp_path, write_csv(tmp_path / "rows.csv"), count)
