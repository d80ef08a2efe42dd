"""Sweeps through the command: shared parts once, trials under Tune, failures, and going on."""

import json
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.conftest import HELD_OUT, S2L, FinishedRun, run_s2l, write_config

QUICK = {"engine": "torch", "steps": 5}
TASK = {stage: {"launcher": "task"} for stage in ("train_proxy", "finetune_target")}


def swept(config: Path, *arguments: str, run: S2L = run_s2l) -> dict:
    done = run("sweep", str(config), "--json", *arguments)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def made(folder: Path, artifact: str) -> int:
    return len(list((folder / "storage" / artifact).glob("*/manifest.json")))


def test_sweep_shares_what_trials_have_in_common_and_a_failed_trial_does_not_sink_the_rest(
    tmp_path: Path, finished_run: FinishedRun, run_here: S2L
) -> None:
    # What a run has left in the storage serves a sweep as well.
    for name in ("examples", "tokenizer", "tokens", "proxy", "trajectories"):
        shutil.copytree(finished_run.folder / "storage" / name, tmp_path / "storage" / name)
    config = write_config(
        tmp_path,
        examples=finished_run.examples,
        target=QUICK,
        evaluate={"held_out": HELD_OUT, "metrics": ["loss"]},
        resources=TASK,
        arms={
            "s2l": {"select.method": "paper"},
            "random": {"select.method": "random"},
            "wild": {"select.method": "random", "target.learning_rate": 1.0e30},  # no loss is finite after its step
        },
        sweep={
            "baseline": {"arm": "random"},
            "parameters": {"select.budget": [60, 120], "select.seed + target.seed": [0, 1]},
        },
    )
    answer = swept(config, run=run_here)
    table = pq.read_table(Path(answer["artifact"]) / "trials.parquet").to_pylist()
    assert len(table) == 12
    failed = [row for row in table if row["status"] == "failed"]
    assert [row["arm"] for row in failed] == ["wild"] * 4
    assert all("learning rate" in row["error"] for row in failed)
    finished = [row for row in table if row["status"] == "finished"]
    assert len(finished) == 8
    assert all(row["macro_loss"] > 0 and row["train_seconds"] > 0 for row in finished)
    assert (made(tmp_path, "proxy"), made(tmp_path, "trajectories"), made(tmp_path, "clusters")) == (1, 1, 1)
    assert made(tmp_path, "target") == len(finished)
    assert {"arm=s2l", "arm=random"} <= set(answer["recommended_budget"])
    assert any("arm=random" in sentence for sentence in answer["comparisons"])

    page = Path(answer["report"]).read_text(encoding="utf-8")
    assert "Against arm=random" in page
    assert "recommended: " in page

    again = swept(config, run=run_here)
    assert again["ran"] == len(failed)  # what cannot be done is tried again, what is done is not
    assert made(tmp_path, "target") == len(finished)


@pytest.mark.slow
@pytest.mark.usefixtures("joined")
def test_sweep_with_asha_gives_every_setting_a_seed_and_the_best_all_of_them(tmp_path: Path) -> None:
    config = write_config(
        tmp_path,
        target=QUICK,
        evaluate={"metrics": ["loss"]},
        resources=TASK,
        sweep={
            "search": "asha",
            "samples": 6,
            "max_concurrent": 1,
            "parameters": {"target.learning_rate": {"low": 1e-5, "high": 1e-2, "scale": "log"}, "target.seed": [0, 1]},
        },
    )
    answer = swept(config, "--set", "select.method=random")
    status = [trial["status"] for trial in answer["trials"]]
    assert len(status) == 12
    assert "failed" not in status
    assert 6 <= status.count("finished") <= 12
    by_rate: dict[float, list[str]] = {}
    for trial in answer["trials"]:
        by_rate.setdefault(trial["target.learning_rate"], []).append(trial["status"])
    assert all(found[0] == "finished" for found in by_rate.values())
    assert any(found == ["finished", "finished"] for found in by_rate.values())
    again = swept(config, "--set", "select.method=random")
    assert again["ran"] == 0  # what was stopped stays so
    assert [trial["status"] for trial in again["trials"]] == status


@pytest.mark.slow
@pytest.mark.usefixtures("joined")
def test_sweep_runs_trials_that_start_ray_train_with_deepspeed(tmp_path: Path) -> None:
    config = write_config(
        tmp_path,
        target={"steps": 4},
        evaluate={"metrics": ["loss"]},
        select={"method": "random"},
        sweep={"parameters": {"select.budget": [50], "target.seed": [0, 1]}},
    )
    answer = swept(config)
    assert [trial["status"] for trial in answer["trials"]] == ["finished", "finished"]


@pytest.mark.parametrize("verb", ["run", "sweep"])
def test_the_wrong_verb_is_refused_with_the_right_one(tmp_path: Path, verb: str) -> None:
    sweep = {"parameters": {"select.budget": [5]}}
    config = write_config(tmp_path, **({"sweep": sweep} if verb == "run" else {}))
    done = run_s2l(verb, str(config))
    assert done.returncode == 2
    assert f"s2l {'sweep' if verb == 'run' else 'run'}" in done.stderr
