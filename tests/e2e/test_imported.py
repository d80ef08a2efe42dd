"""A run that goes by trajectories from elsewhere, and one that was given what the other had computed."""

import json
import subprocess
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from s2l_ray.artifacts import Artifact, find_artifact
from s2l_ray.schemas import matrix
from s2l_ray.storage import Storage
from s2l_ray.synthetic import SyntheticSpec, generate_rows
from tests.conftest import run_s2l, write_config

TASKS = {"train_proxy": {"launcher": "task"}, "finetune_target": {"launcher": "task"}}


def artifact(storage: Path, name: str) -> Artifact:
    kept = Storage.at(str(storage))
    (fingerprint,) = kept.list_folders(name)
    found = find_artifact(kept, name, fingerprint)
    assert found is not None
    return found


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A run up to the subset on a file of rows with ids, by a proxy; return its storage and its config."""
    folder = tmp_path_factory.mktemp("watched")
    rows = generate_rows(SyntheticSpec(rows=600, skills=8), seed=0)
    lines = [json.dumps({**row, "id": f"row {number}"}) for number, row in enumerate(rows)]
    (folder / "rows.jsonl").write_text("\n".join(lines))
    config = write_config(
        folder,
        resources=TASKS,
        target={"engine": "torch"},
        report={"sample": 20},
    )
    text = config.read_text().replace("synthetic:\n    rows: 600\n    skills: 8", f"path: {folder / 'rows.jsonl'}")
    config.write_text(text)
    done = run_s2l("run", str(config), "--until", "select_subset")
    assert done.returncode == 0, done.stderr
    return folder / "storage", config


def run(config: Path, storage: Path, trajectories: str | Path, *more: str) -> "subprocess.CompletedProcess[str]":
    sets = ("--set", f"trajectories.path={trajectories}")
    return run_s2l("run", str(config), "--storage", str(storage), *sets, "--json", *more)


def test_run_on_imported_trajectories_selects_what_the_proxy_would_have_and_goes_through(
    watched: tuple[Path, Path], tmp_path: Path
) -> None:
    storage, config = watched
    trajectories = artifact(storage, "trajectories")
    done = run(config, tmp_path, trajectories.uri_of("*.parquet"))
    assert done.returncode == 0, done.stderr
    assert "proxy" not in Storage.at(str(tmp_path)).list_folders()
    subset, imported = artifact(storage, "subset"), artifact(tmp_path, "subset")
    assert imported.read_table("subset.parquet").equals(subset.read_table("subset.parquet"))
    diagnostics = artifact(tmp_path, "diagnostics").summary
    assert {row["model"] for row in diagnostics["gradients"]} == {"target"}
    assert sum(diagnostics["health"].values()) == trajectories.summary["rows"]


def test_official_files_are_taken_by_row_and_say_what_they_lack(watched: tuple[Path, Path], tmp_path: Path) -> None:
    storage, config = watched
    table = artifact(storage, "trajectories").read_table("trajectories-").sort_by("example_id")
    loss_NT = matrix(table, "loss")
    all_rows = np.full((600, loss_NT.shape[1]), 9.0)
    all_rows[table.column("example_id").to_numpy()] = loss_NT  # one file: the row is the id
    for number, losses in enumerate(all_rows.T):
        (tmp_path / "in" / f"checkpoint-{100 * (number + 1)}").mkdir(parents=True)
        torch.save(losses.tolist(), tmp_path / "in" / f"checkpoint-{100 * (number + 1)}" / "losses.pt")
    done = run(config, tmp_path, tmp_path / "in", "--until", "import_trajectories")
    assert done.returncode == 0, done.stderr
    assert "the first checkpoint's stands in for it" in done.stderr
    imported = artifact(tmp_path, "trajectories")
    assert imported.summary["checkpoint_steps"][:2] == [100, 200]
    found = imported.read_table("trajectories-").sort_by("example_id")
    np.testing.assert_array_equal(matrix(found, "loss"), loss_NT)
    np.testing.assert_array_equal(found.column("loss_initial").to_numpy(), loss_NT[:, 0])


def test_trajectories_that_lack_examples_or_numbers_end_the_run_before_anything_is_trained(
    watched: tuple[Path, Path], tmp_path: Path
) -> None:
    storage, config = watched
    table = artifact(storage, "trajectories").read_table("trajectories-").sort_by("example_id")
    pq.write_table(table[5:], tmp_path / "short.parquet")
    done = run(config, storage, tmp_path / "short.parquet")
    assert done.returncode == 2
    assert "none for 5 of" in done.stderr
    broken = matrix(table, "loss").copy()
    broken[3, 1] = np.nan
    losses = table.set_column(table.column_names.index("loss"), "loss", [broken.tolist()])
    pq.write_table(losses, tmp_path / "nan.parquet")
    done = run(config, storage, tmp_path / "nan.parquet")
    assert done.returncode == 2
    assert "1 examples have a NaN or infinite loss" in done.stderr
