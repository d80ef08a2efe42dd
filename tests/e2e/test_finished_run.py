"""A finished run is of use: its trajectories in another one, its proxy and clusters for rows that come later."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from s2l_ray.artifacts import Artifact
from s2l_ray.schemas import matrix
from s2l_ray.storage import Storage
from s2l_ray.synthetic import SyntheticSpec, generate_rows
from tests.conftest import S2L, FinishedRun, artifacts_of


def artifact(storage: Path, name: str) -> Artifact:
    (found,) = every(storage, name)
    return found


def every(storage: Path, name: str) -> list[Artifact]:
    return artifacts_of(Storage.at(str(storage)), name)


@pytest.fixture
def watched(finished_run: FinishedRun) -> tuple[Path, Path]:
    """The storage of a run on a file of rows with ids, by a proxy, and its config."""
    return finished_run.folder / "storage", finished_run.config


@pytest.fixture
def run(run_here: S2L) -> S2L:
    def on(config: Path, storage: Path, trajectories: str | Path, *more: str) -> "subprocess.CompletedProcess[str]":
        sets = ("--set", f"trajectories.path={trajectories}")
        return run_here("run", str(config), "--storage", str(storage), *sets, "--json", *more)

    return on


@pytest.fixture
def extend(run_here: S2L) -> S2L:
    def by(config: Path, storage: Path, rows: Path, *more: str) -> "subprocess.CompletedProcess[str]":
        return run_here("extend", str(config), "--storage", str(storage), "--rows", str(rows), "--json", *more)

    return by


def test_imported_trajectories_select_what_the_proxy_would_have(
    watched: tuple[Path, Path], tmp_path: Path, run: S2L
) -> None:
    storage, config = watched
    trajectories = artifact(storage, "trajectories")
    done = run(config, tmp_path, trajectories.uri_of("*.parquet"), "--until", "select_subset")
    assert done.returncode == 0, done.stderr
    assert "proxy" not in Storage.at(str(tmp_path)).list_folders()
    subset, imported = artifact(storage, "subset"), artifact(tmp_path, "subset")
    assert imported.read_table("subset.parquet").equals(subset.read_table("subset.parquet"))


@pytest.mark.slow
def test_run_on_imported_trajectories_goes_through_and_judges_what_it_can(
    watched: tuple[Path, Path], tmp_path: Path, run: S2L
) -> None:
    storage, config = watched
    trajectories = artifact(storage, "trajectories")
    done = run(config, tmp_path, trajectories.uri_of("*.parquet"))
    assert done.returncode == 0, done.stderr
    diagnostics = artifact(tmp_path, "diagnostics").summary
    assert {row["model"] for row in diagnostics["gradients"]} == {"target"}
    assert sum(diagnostics["health"].values()) == trajectories.summary["rows"]


def test_official_files_are_taken_by_row_and_say_what_they_lack(
    watched: tuple[Path, Path], tmp_path: Path, run: S2L
) -> None:
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
    watched: tuple[Path, Path], tmp_path: Path, run: S2L
) -> None:
    finished, config = watched
    storage = shutil.copytree(finished, tmp_path / "storage")
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


def test_new_rows_join_the_subset_where_its_clusters_fall_short_and_nothing_is_trained(
    watched: tuple[Path, Path], tmp_path: Path, extend: S2L
) -> None:
    finished, config = watched
    storage = shutil.copytree(finished, tmp_path / "storage")
    (first,) = every(storage, "trajectories")
    pool = artifact(storage, "examples").read_table("examples-", ["example_id"]).column(0).to_pylist()
    known = (config.parent / "rows.jsonl").read_text().splitlines()
    new = [json.dumps(row) for row in generate_rows(SyntheticSpec(rows=90, skills=8), seed=1)]
    (tmp_path / "later.jsonl").write_text("\n".join([*new, *known[:10]]))
    done = extend(config, storage, tmp_path / "later.jsonl")
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert len(Storage.at(str(storage)).list_folders("proxy")) == 1
    assert len(Storage.at(str(storage)).list_folders("subset")) == 1
    assert said["rows_set_aside"] == {"in the first pool": len({*range(10)} & {*pool})}
    held_out = artifact(storage, "eval_examples").read_table("examples-", ["example_id"]).column(0).to_pylist()
    assert {*range(10)} & {*held_out}
    assert re.search(r"of \d+ held-out prompts \d+ stand in the training data word for word", done.stderr)
    table = artifact(storage, "extension").read_table("subset.parquet")
    assert len(table) == said["rows"] == 20
    rows = Path(storage, artifact(storage, "extension").path("rows/later.jsonl")).read_text().splitlines()
    given = (tmp_path / "later.jsonl").read_text().splitlines()
    assert rows == [given[i] for i in sorted(table.column("example_id").to_pylist())]
    (later,) = (found for found in every(storage, "trajectories") if found.digest != first.digest)
    losses = later.read_table("trajectories-").sort_by("example_id")
    centroids = matrix(artifact(storage, "clusters").read_table("centroids.parquet"), "centroid")
    nearest = ((matrix(losses, "loss")[:, None, :].astype(float) - centroids) ** 2).sum(axis=2).argmin(axis=1)
    by_id = dict(zip(losses.column("example_id").to_pylist(), nearest.tolist(), strict=True))
    assigned = artifact(storage, "assignments").read_table("assignments-").to_pylist()
    assert [row["cluster_id"] for row in assigned] == [by_id[row["example_id"]] for row in assigned]


def test_extension_of_a_run_that_is_not_there_is_refused_before_anything_runs(
    watched: tuple[Path, Path], tmp_path: Path, extend: S2L
) -> None:
    _, config = watched
    done = extend(config, tmp_path, config.parent / "rows.jsonl")
    assert done.returncode == 2
    assert "holds no subset of this experiment" in done.stderr
    assert Storage.at(str(tmp_path)).list_folders() == []
