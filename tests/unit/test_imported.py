"""Trajectories from elsewhere: what is read, in which order, and what is refused."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from s2l_ray.errors import ConfigError, DataError, S2LError
from s2l_ray.imported import ImportedLosses, find_losses, place_of, read_losses

LOSS_NT = np.array([[3.0, 2.0, 1.0], [5.0, 4.0, 4.5]], np.float32)


def written(folder: Path, name: str = "losses.parquet", **columns: object) -> Path:
    folder.mkdir(exist_ok=True)
    pq.write_table(pa.table(columns), folder / name)
    return folder


def read(path: Path, **columns: str) -> ImportedLosses:
    return read_losses(find_losses(str(path)), columns)


def official(folder: Path, losses: dict[str, object]) -> Path:
    for name, value in losses.items():
        (folder / name).mkdir(parents=True)
        torch.save(value, folder / name / "losses.pt")
    return folder


@pytest.mark.parametrize("kind", [pa.list_(pa.float64()), pa.large_list(pa.float32()), pa.list_(pa.float32(), 3)])
def test_list_of_numbers_of_any_kind_is_a_trajectory(tmp_path, kind):
    found = read(written(tmp_path / "in", user_id=["a", "b"], loss=pa.array(LOSS_NT.tolist(), kind)))
    assert (found.identity, found.keys.to_pylist(), found.steps) == ("user_id", ["a", "b"], (1, 2, 3))
    np.testing.assert_array_equal(found.loss_NT, LOSS_NT)
    assert found.loss_initial_N is None


def test_columns_of_other_names_are_found_by_the_mapping(tmp_path):
    folder = written(tmp_path / "in", uid=[7, 8], curve=LOSS_NT.tolist(), before=[9.0, 8.0])
    found = read(folder, user_id="uid", loss="curve", loss_initial="before")
    assert found.keys.to_pylist() == ["7", "8"]
    assert found.loss_initial_N is not None
    assert found.loss_initial_N.tolist() == [9.0, 8.0]


def test_our_id_is_preferred_and_steps_come_from_the_metadata(tmp_path):
    table = pa.table({"example_id": [4, 5], "user_id": ["a", "b"], "loss": LOSS_NT.tolist()})
    pq.write_table(table.replace_schema_metadata({"checkpoint_steps": "10,20,30"}), tmp_path / "x.parquet")
    found = read(tmp_path / "x.parquet")
    assert (found.identity, found.keys.to_pylist(), found.steps) == ("example_id", [4, 5], (10, 20, 30))


def test_files_of_a_folder_are_one_after_the_other(tmp_path):
    folder = written(tmp_path / "in", "a.parquet", example_id=[1], loss=LOSS_NT[:1].tolist())
    written(folder, "b.parquet", example_id=[0], loss=LOSS_NT[1:].tolist())
    found = read(folder)
    assert found.keys.to_pylist() == [1, 0]
    np.testing.assert_array_equal(found.loss_NT, LOSS_NT)


def test_official_checkpoints_come_in_the_order_of_their_steps_not_of_their_names(tmp_path):
    folder = official(
        tmp_path, {"checkpoint-1000": [1.0, 4.5], "checkpoint-200": torch.tensor([2.0, 4.0]), "checkpoint-50": [3, 5]}
    )
    found = read(folder)
    assert (found.identity, found.keys.to_pylist(), found.steps) == ("row", [0, 1], (50, 200, 1000))
    np.testing.assert_array_equal(found.loss_NT, LOSS_NT)


class Hostile:
    """Would write a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_official_file_that_would_run_code_is_refused_and_runs_none(tmp_path):
    folder = official(tmp_path / "in", {"checkpoint-1": [Hostile(tmp_path / "ran")]})
    with pytest.raises(DataError, match=r"checkpoint-1/losses\.pt is no list of losses"):
        read(folder)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("losses", "words"),
    [
        ({"checkpoint-1": [1.0, 2.0], "checkpoint-2": [1.0]}, "have 1, 2 losses"),
        ({"checkpoint-1": torch.zeros(2, 2)}, r"has the shape \[2, 2\]"),
        ({"checkpoint-1": "text"}, "is no list of losses"),
        ({"last": [1.0]}, "'last' holds no step"),
    ],
)
def test_official_files_that_do_not_fit_are_refused(tmp_path, losses, words):
    with pytest.raises(S2LError, match=words):
        read(official(tmp_path, losses))


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"id": ["a"], "loss": [[1.0]]}, "has the columns id, loss"),
        ({"user_id": ["a"]}, "has the columns user_id"),
        ({"user_id": ["a", None], "loss": [[1.0], [2.0]]}, "1 rows have no `user_id`"),
        ({"user_id": ["a", "b"], "loss": [[1.0], [2.0, 3.0]]}, "different lengths: 1 rows of 1, 1 rows of 2"),
        ({"user_id": ["a"], "loss": pa.array([[]], pa.list_(pa.float32()))}, "different lengths: 1 rows of 0"),
        ({"user_id": ["a", "b"], "loss": [[1.0], None]}, "different lengths"),
        ({"user_id": ["a"], "loss": [[1.0, None]]}, "1 losses are null"),
        ({"user_id": ["a"], "loss": [["1.0"]]}, "the losses are list<.*string>"),
        ({"user_id": ["a"], "loss": [1.0]}, "the losses are double"),
        ({"example_id": ["x"], "loss": [[1.0]]}, "Expected int64"),
    ],
)
def test_parquet_that_does_not_fit_is_refused(tmp_path, columns, words):
    with pytest.raises(DataError, match=words):
        read(written(tmp_path / "in", **columns))


def test_mapping_to_a_column_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"Expected `example_id` \(ours\)"):
        read(written(tmp_path / "in", user_id=["a"], loss=[[1.0]]), loss_initial="first")


def test_files_that_disagree_are_refused(tmp_path):
    folder = written(tmp_path / "in", "a.parquet", example_id=[1], loss=[[1.0]])
    written(folder, "b.parquet", example_id=[2], loss=[[1.0, 2.0]])
    with pytest.raises(DataError, match="the same in all files"):
        read(folder)
    written(folder, "b.parquet", example_id=[2], loss=[[1.0]], loss_initial=[3.0])
    with pytest.raises(DataError, match="only some files"):
        read(folder)


def test_other_formats_are_refused(tmp_path):
    (tmp_path / "losses.jsonl").write_text('{"user_id": "a", "loss": [1.0]}\n')
    with pytest.raises(ConfigError, match=r"is jsonl\. Expected Parquet"):
        find_losses(str(tmp_path / "losses.jsonl"))


def test_place_of_finds_each_key_and_says_which_are_missing():
    place_N, missing_N = place_of(pa.array(["c", "a", "x"]), pa.array(["a", "b", "c"]))
    assert place_N[:2].tolist() == [2, 0]
    assert missing_N.tolist() == [False, False, True]
    with pytest.raises(DataError, match="1 ids stand more than once, first a"):
        place_of(pa.array(["a"]), pa.array(["a", "b", "a"]))
