"""One real run of the whole pipeline, and what must be true of what it leaves behind."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from sacrebleu import corpus_bleu

from s2l_ray.artifacts import find_artifact
from s2l_ray.experiment import experiment_of, load_experiment, parse_sparse
from s2l_ray.subsets.arms import arms_of
from s2l_ray.subsets.explain import explain_example
from s2l_ray.subsets.export import export_folder
from tests.conftest import S2L, FinishedRun, run_s2l

POOL = 552
"""Rows that are not held out, of 600."""


@pytest.fixture(scope="module")
def run(finished_run: FinishedRun, tmp_path_factory: pytest.TempPathFactory) -> FinishedRun:
    return finished_run.copied_to(tmp_path_factory.mktemp("run"))


def test_export_of_the_subset_loads_and_its_card_leads_back_to_it(
    run: FinishedRun, finished_run: FinishedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    subset = run.artifact("subset")
    export_folder([subset], str(tmp_path / "out"))
    rows = datasets.load_dataset(str(tmp_path / "out"), split="train", cache_dir=str(tmp_path / "cache")).to_list()
    selection = pq.read_table(tmp_path / "out" / "selection.parquet").to_pylist()
    examples = {row["example_id"]: row for row in run.table("examples", "examples-").to_pylist()}
    answers = [examples[row["example_id"]]["turns"][-1]["content"] for row in selection]
    assert [row["output"] for row in rows] == answers
    (text,) = re.findall(r"```yaml\n(.*?)\n```", (tmp_path / "out" / "README.md").read_text(), re.DOTALL)
    monkeypatch.chdir(finished_run.rows.parent)  # it names the rows' file as who has it would
    again = experiment_of(parse_sparse(yaml.safe_load(text), [], origin="again.yaml", name="again"))
    assert arms_of(again, run.storage)["main"].need("subset") == subset


def test_every_taken_row_can_be_explained(run: FinishedRun) -> None:
    arms = arms_of(load_experiment(run.config), run.storage)
    for row in run.table("subset", "subset.parquet").to_pylist()[::40]:
        told = explain_example(arms, str(row["example_id"]))
        assert told["arms"]["main"]["rank"] == row["rank"]
        assert (told["clusterings"][0]["stratum"], told["clusterings"][0]["cluster_id"]) == (
            row["stratum"],
            row["cluster_id"],
        )


def test_examples_rows_in_are_kept_plus_rejected(run: FinishedRun) -> None:
    summary = run.artifact("examples").summary
    held_out = run.artifact("eval_examples").summary
    assert summary["rows_in"] == 600 == summary["rows_kept"] + held_out["rows_kept"] + summary["rows_rejected"]
    assert summary["rows_kept"] == POOL


def test_trajectories_have_one_row_per_kept_example(run: FinishedRun) -> None:
    examples = run.table("examples", "examples-").column("example_id").to_pylist()
    trajectories = run.table("trajectories", "trajectories-")
    assert sorted(trajectories.column("example_id").to_pylist()) == sorted(examples)
    assert len(trajectories.column("loss")[0]) == 6
    steps = json.loads(f"[{trajectories.schema.metadata[b'checkpoint_steps'].decode()}]")
    assert steps == [5, 10, 15, 20, 25, 30]


def test_trajectories_lie_on_the_loss_grid(run: FinishedRun) -> None:
    loss = np.stack(run.table("trajectories", "trajectories-").column("loss").to_numpy())
    scaled = loss.astype(np.float64) * 2**20
    assert np.array_equal(scaled, np.round(scaled))


def test_trajectories_equal_transformers_loss_at_batch_one(run: FinishedRun) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    proxy, trajectories = run.artifact("proxy"), run.table("trajectories", "trajectories-").to_pylist()
    by_id = {}
    for fingerprint in run.storage.list_folders("tokens"):
        found = find_artifact(run.storage, "tokens", fingerprint)
        assert found is not None
        if found.manifest.digest in proxy.manifest.inputs.values():
            by_id = {row["example_id"]: row for row in found.read_table("tokens-").to_pylist()}
    worst = 0.0
    for index, step in enumerate([0, 15, 30]):
        with proxy.local_folder(f"step={step:06d}") as folder:
            model = AutoModelForCausalLM.from_pretrained(folder).eval()
        for row in trajectories[::97]:
            example = by_id[row["example_id"]]
            ids = torch.tensor([example["input_ids"]])
            labels = torch.full_like(ids, -100)
            for start, stop in zip(example["response_start"], example["response_stop"], strict=True):
                labels[0, start:stop] = ids[0, start:stop]
            with torch.no_grad():
                expected = float(model(input_ids=ids, labels=labels).loss)
            found_loss = row["loss_initial"] if index == 0 else row["loss"][step // 5 - 1]
            worst = max(worst, abs(found_loss - expected))
    assert worst < 1e-4


@pytest.mark.parametrize("reader", ["pandas", "duckdb", "polars"])
def test_trajectories_are_plain_arrow_for(reader: str, run: FinishedRun) -> None:
    artifact = run.artifact("trajectories")
    path = artifact.path(artifact.files("trajectories-")[0].path)
    code = {
        "pandas": f"import pandas; t = pandas.read_parquet({path!r}); v = t.loss[0]",
        "duckdb": f"import duckdb; v = duckdb.sql('select loss from \"{path}\"').fetchall()[0][0]",
        "polars": f"import polars; v = polars.read_parquet({path!r})['loss'][0]",
    }[reader]
    check = f"{code}\nassert len(v) == 6 and float(v[0]) > 0\nimport sys; assert 'ray' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_clusters_cover_every_example_and_match_their_centroids(run: FinishedRun) -> None:
    assignments = run.table("clusters", "assignments-").to_pandas()
    centroids = run.table("clusters", "centroids").to_pandas()
    assert len(assignments) == POOL
    assert centroids["size"].sum() == POOL
    trajectories = run.table("trajectories", "trajectories-").to_pandas().set_index("example_id")
    loss = np.stack(trajectories.loc[assignments["example_id"], "loss"]).astype(np.float64)
    centre = np.stack(centroids.sort_values("cluster_id")["centroid"])
    distance = ((loss[:, None] - centre[None]) ** 2).sum(axis=2)
    np.testing.assert_allclose(distance.min(axis=1), assignments["distance"], atol=1e-9)
    chosen = distance[np.arange(len(loss)), assignments["cluster_id"]]
    np.testing.assert_allclose(chosen, distance.min(axis=1), atol=1e-9)


def test_subset_has_the_budget_and_the_raw_rows(run: FinishedRun, finished_run: FinishedRun) -> None:
    subset = run.artifact("subset")
    chosen = subset.read_table("subset.parquet")
    ids = chosen.column("example_id").to_pylist()
    assert len(ids) == len(set(ids)) == round(0.2 * POOL)
    assert sorted(chosen.column("rank").to_pylist()) == list(range(len(ids)))
    lines = finished_run.rows.read_bytes().splitlines()
    with open(subset.path("rows/rows.jsonl"), "rb") as stream:
        assert stream.read().splitlines() == [lines[i] for i in sorted(ids)]


def test_target_loads_as_a_hugging_face_folder(run: FinishedRun) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with run.artifact("target").local_folder("model") as folder:
        model = AutoModelForCausalLM.from_pretrained(folder)
        tokenizer = AutoTokenizer.from_pretrained(folder)
    assert model.config.hidden_size == 32
    assert len(tokenizer) <= model.get_input_embeddings().weight.shape[0]


def test_scores_are_means_of_the_predictions_per_skill_and_source(run: FinishedRun) -> None:
    predictions = run.table("scores", "predictions").to_pandas()
    scores = run.table("scores", "scores.parquet").to_pandas()
    assert len(predictions) == 40
    assert set(scores["group_by"]) == {"all", "skill", "source", "macro"}
    for group_by in ("skill", "source"):
        for metric in ("loss", "exact_match", "math_answer", "rouge_l", "bert_score"):
            expected = predictions[metric].astype(float).groupby(predictions[group_by])
            found = scores[(scores["group_by"] == group_by) & (scores["metric"] == metric)].set_index("group")
            np.testing.assert_allclose(found["value"], expected.mean().loc[found.index], rtol=1e-6)
            several = found["rows"] > 1
            np.testing.assert_allclose(
                found["standard_error"][several], expected.sem().loc[found.index][several], rtol=1e-6, atol=1e-12
            )
            macro = scores[(scores["group_by"] == "macro") & (scores["group"] == group_by)].set_index("metric")
            assert macro.loc[metric, "value"] == pytest.approx(expected.mean().mean())


def test_intervals_hold_the_score_and_are_never_of_one_point_for_shares(run: FinishedRun) -> None:
    scores = run.table("scores", "scores.parquet").to_pandas()
    shares = scores[scores["metric"].isin(["exact_match", "math_answer"])]
    assert (shares["standard_error"] == 0).any()
    assert ((shares["low"] <= shares["value"]) & (shares["value"] <= shares["high"])).all()
    assert (shares["high"] - shares["low"] > 0.01).all()
    arms = run.table("comparison", "arms.parquet").to_pandas().set_index("metric")
    macro = shares[(shares["group_by"] == "macro") & (shares["group"] == "skill")].set_index("metric")
    for name in macro.index:
        assert tuple(arms.loc[f"macro_{name}", ["value", "low", "high"]]) == pytest.approx(
            tuple(macro.loc[name, ["value", "low", "high"]])
        )


def test_bleu_is_that_of_all_rows_together(run: FinishedRun) -> None:
    predictions, scores = run.table("scores", "predictions").to_pandas(), run.table("scores", "scores.parquet")
    rows = run.table("eval_examples", "examples-").to_pandas().set_index("example_id").loc[predictions["example_id"]]
    references = [turns[-1]["content"] for turns in rows["turns"]]
    expected = corpus_bleu(predictions["prediction"].tolist(), [references]).score / 100
    (found,) = (row for row in scores.to_pylist() if row["metric"] == "bleu" and row["group_by"] == "all")
    assert (found["value"], found["rows"]) == (pytest.approx(expected, abs=1e-12), 40)


def test_truth_columns_reach_neither_tokens_nor_trajectories(run: FinishedRun) -> None:
    for name, prefix in (("trajectories", "trajectories-"),):
        assert not {"skill", "is_wrong"} & set(run.table(name, prefix).schema.names)


def test_manifests_describe_their_files(run: FinishedRun) -> None:
    for name in run.storage.list_folders():
        for fingerprint in run.storage.list_folders(name):
            found = find_artifact(run.storage, name, fingerprint)
            assert found is not None
            assert found.damaged_files() == []


def test_every_trajectory_has_a_health_and_the_theory_is_tried_on_both_models(run: FinishedRun) -> None:
    health = run.table("diagnostics", "health-")
    trajectories = run.table("trajectories", "trajectories-")
    assert sorted(health["example_id"].to_pylist()) == sorted(trajectories["example_id"].to_pylist())
    summary = run.artifact("diagnostics").summary
    assert sum(summary["health"].values()) == POOL
    checks = run.table("diagnostics", "gradients").to_pylist()
    assert [(check["model"], check["step"]) for check in checks] == [("proxy", 15), ("proxy", 30), ("target", 20)]
    assert all(check["pairs_within"] > 0 and check["exact"] for check in checks)
    assert len(run.table("diagnostics", "prefixes")) == 5


def test_losses_of_proxy_and_target_are_those_of_the_same_rows(run: FinishedRun) -> None:
    losses = run.table("diagnostics", "losses").to_pandas().set_index("example_id")
    trajectories = run.table("trajectories", "trajectories-").to_pandas().set_index("example_id")
    last = trajectories.loc[losses.index, "loss"].map(lambda loss: loss[-1])
    np.testing.assert_array_equal(losses["proxy_loss"], last)
    chosen = set(run.table("subset", "subset.parquet").column("example_id").to_pylist())
    assert [row in chosen for row in losses.index] == losses["in_subset"].tolist()


def test_report_shows_rows_unless_it_is_to_keep_them_out(run: FinishedRun) -> None:
    prompts = {row["turns"][0]["content"] for row in run.table("examples", "examples-").to_pylist()}
    shown = Path(run.artifact("report").path("report.html")).read_text(encoding="utf-8")
    assert sum(prompt in shown for prompt in prompts) >= 10
    # Nothing of it needs a Ray: one that does not answer is not missed.
    nobody = {"RAY_ADDRESS": "127.0.0.1:1"}
    done = run_s2l("report", str(run.config), "--json", "--set", "report.examples=0", **nobody)
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["ran"] == ["report"]
    bare = (Path(answer["artifacts"]["report"]) / "report.html").read_text(encoding="utf-8")
    assert "Outcome" in bare
    assert not any(prompt in bare for prompt in prompts)


def test_report_of_a_run_that_was_never_run_is_refused(run: FinishedRun) -> None:
    done = run_s2l("report", str(run.config), "--set", "proxy.steps=31")
    assert done.returncode == 2
    assert "s2l run" in done.stderr


def test_run_again_does_nothing(run: FinishedRun) -> None:
    done = run_s2l("run", str(run.config), "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["ran"] == []


def test_plan_after_a_changed_setting_names_exactly_what_depends_on_it(run: FinishedRun) -> None:
    done = run_s2l("plan", str(run.config), "--json", "--set", "cluster.n_clusters=9")
    states = {node["artifact"]: node["state"] for node in json.loads(done.stdout)["nodes"]}
    assert {name for name, state in states.items() if state == "will run"} == {
        "clusters", "subset", "target", "scores", "comparison", "diagnostics", "report"
    }  # fmt: skip


def test_plan_refuses_what_a_run_would_where_the_rows_are_there_to_tell(run: FinishedRun) -> None:
    done = run_s2l("plan", str(run.config), "--set", "cluster.n_clusters=601")
    assert done.returncode == 2
    assert "cluster.n_clusters" in done.stderr
    assert "will run" in done.stderr


def test_changed_resources_change_nothing(run: FinishedRun) -> None:
    done = run_s2l("plan", str(run.config), "--json", "--set", "resources.score_examples.actors=[1, 3]")
    assert {node["state"] for node in json.loads(done.stdout)["nodes"]} == {"cached"}


def test_budget_of_another_size_is_a_prefix_of_the_same_ranking(run: FinishedRun, run_here: S2L) -> None:
    done = run_here("stage", "select_subset", str(run.config), "--json", "--set", "select.budget=60")
    assert done.returncode == 0, done.stderr
    subset = Path(json.loads(done.stdout)["artifacts"]["subset"])
    small = pq.read_table(subset / "subset.parquet").column("example_id").to_pylist()
    large = run_here("plan", str(run.config), "--json")
    uri = next(n["why"] for n in json.loads(large.stdout)["nodes"] if n["artifact"] == "subset")
    table = pq.read_table(Path(uri) / "subset.parquet").to_pandas().sort_values("rank")
    assert sorted(small) == sorted(table["example_id"][:60].tolist())


@pytest.mark.faults
def test_damaged_input_is_found_set_aside_and_made_again(tmp_path: Path, run: FinishedRun, run_here: S2L) -> None:
    copy = run.copied_to(tmp_path)
    artifact = copy.artifact("trajectories")
    path = Path(artifact.path(artifact.files("trajectories-")[0].path))
    path.write_bytes(path.read_bytes()[:-7])
    overrides = ["--set", "cluster.n_clusters=7", "--until", "cluster_trajectories", "--json"]
    first = run_here("run", str(copy.config), *overrides)
    assert first.returncode == 1
    assert "checksum" in first.stderr
    second = run_here("run", str(copy.config), *overrides)
    assert second.returncode == 0, second.stderr
    assert set(json.loads(second.stdout)["ran"]) == {"trajectories", "clusters"}
