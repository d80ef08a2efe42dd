"""The end of a run and `inspect`: what is shown, what is saved, and that no secret is in it."""

import json
import math
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pytest

from s2l_ray import schemas, summary
from s2l_ray.artifacts import find_artifact
from s2l_ray.attempts import begin
from s2l_ray.digests import DigestCache
from s2l_ray.errors import ArtifactError, ConfigError
from s2l_ray.experiment import experiment_of, parse_sparse
from s2l_ray.graph import examine
from s2l_ray.log import redacted
from s2l_ray.plan import build_pipeline
from s2l_ray.storage import Storage
from s2l_ray.summary import RunSummary, inspect_folder

MODEL = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
SECONDS = {"proxy": 10.0, "trajectories": 20.0, "clusters": 5.0, "subset": 1.0, "target": 100.0}
CANARY = "canary-hunter2"


@pytest.fixture
def storage(tmp_path) -> Storage:
    return Storage.at(str(tmp_path / "storage"))


def run_of(storage: Storage, **sections) -> RunSummary:
    data = {
        "examples": {"synthetic": {}},
        "proxy": {"model": MODEL},
        "target": {"model": MODEL},
        "arms": {"random": {"select.method": "random"}, "s2l": {"select.method": "paper"}},
    } | sections
    experiment = experiment_of(parse_sparse(data, [], origin="x", name="x"))
    pipeline = build_pipeline(experiment)
    made, missing = {}, True
    while missing:
        states = list(examine(pipeline, storage, DigestCache(storage)))
        made = {state.node.key: state.artifact for state in states if state.artifact}
        missing = [state for state in states if state.artifact is None]
        for state in (s for s in missing if s.fingerprint):
            if find_artifact(storage, state.node.artifact, state.fingerprint) is None:
                commit(storage, state)
    result = SimpleNamespace(artifacts=made, ran=["examples"], seconds=12.3456)
    return RunSummary(experiment, pipeline, result, storage)


def commit(storage: Storage, state) -> None:
    output = begin(storage, state.node.artifact, state.fingerprint)
    if state.node.artifact == "comparison":
        rows = [
            {"arm": arm, "metric": metric, "value": value, "low": low, "high": high}
            for arm in ("random", "s2l")
            for metric, value, low, high in (
                ("macro_loss", 0.5, 0.4, 0.6),
                ("micro_loss", math.nan, None, None),
                ("rows", 1200.0, None, None),
            )
        ]
        table = pa.Table.from_pylist(rows, schema=schemas.ARMS)
        gain = {"arm": "s2l", "baseline": "random", "metric": "macro_loss", "rows": 9}
        gains = [gain | {"gain": 0.25, "low": -0.5, "high": 1.0}, gain | {"metric": "micro_loss", "gain": math.nan}]
        files = [
            output.write_parquet("arms.parquet", [table], schemas.ARMS),
            output.write_parquet("gains.parquet", [pa.Table.from_pylist(gains, schema=schemas.GAINS)], schemas.GAINS),
        ]
    else:
        files = [output.write_bytes("a", state.node.artifact.encode(), rows=0)]
    run = {"seconds": SECONDS.get(state.node.artifact, 0.5), "finished": "2024-01-01T00:00:00Z", "versions": {}}
    output.commit(files, config={"k": 1}, inputs={}, summary={"rows": 3}, run=run)


# ---------------------------------------------------------------------------------------------------------- a run's end


def test_json_of_a_run_says_arms_costs_and_places(storage):
    data = run_of(storage).as_json()
    assert json.loads(json.dumps(data, allow_nan=False)) == data
    assert (data["storage"], data["ran"], data["seconds"]) == (storage.uri, ["examples"], 12.346)
    assert list(data["arms"]) == ["random", "s2l"]
    s2l, random = data["arms"]["s2l"], data["arms"]["random"]
    assert (s2l["macro_loss"], s2l["macro_loss_low"], s2l["macro_loss_high"]) == (0.5, 0.4, 0.6)
    assert "rows_low" not in s2l
    assert {"subset [s2l]", "target [random]", "comparison"} <= set(data["artifacts"])
    assert len(data["artifacts"]) == len(run_of(storage).pipeline.nodes)  # a label used twice would hide one
    assert all(Path(uri).is_dir() for uri in data["artifacts"].values())
    assert random["rows"] == 1200


def test_cost_of_selecting_counts_what_the_arm_needed_and_nothing_else(storage):
    arms = run_of(storage).as_json()["arms"]
    assert arms["s2l"]["select_seconds"] == 10 + 20 + 5 + 1
    assert arms["random"]["select_seconds"] == 1
    assert arms["s2l"]["train_seconds"] == 100


def test_value_that_is_no_number_is_null_in_json_and_a_dash_on_screen(storage, monkeypatch):
    run = run_of(storage)
    assert run.as_json()["arms"]["s2l"]["micro_loss"] is None
    tables = []
    monkeypatch.setattr(summary.display, "table", lambda header, rows: tables.append((header, rows)))
    run.show()
    header, rows = tables[0]
    cells = {row[0]: row[1:] for row in rows}
    assert list(header) == ["", "random", "s2l"]
    assert cells["micro loss [nats/token]"] == ["-", "-"]
    assert cells["rows"] == ["1200", "1200"]
    assert not any("low" in name or "high" in name for name in cells)


def test_gains_are_shown_with_their_intervals(storage, monkeypatch):
    run = run_of(storage)
    tables = []
    monkeypatch.setattr(summary.display, "table", lambda header, rows: tables.append((header, rows)))
    run.show()
    header, rows = tables[1]
    assert header == ["gain over random [95 %]", "macro", "micro"]
    assert rows == [["s2l: loss [nats/token]", "+0.250 [-0.500, +1.000]", "-"]]
    gains = [
        {"arm": arm, "baseline": baseline, "metric": "macro_loss", "gain": 0.5, "low": None, "high": None}
        for arm, baseline in (("s2l_half", "half"), ("s2l_few", "few"))
    ]
    monkeypatch.setattr(summary.RunSummary, "_gains", lambda self: gains)
    run.show()
    header, rows = tables[3]
    assert header[0] == "gain [95 %]"
    labels = ["s2l_half over half: loss [nats/token]", "s2l_few over few: loss [nats/token]"]
    assert [row[0] for row in rows] == labels


def test_gains_are_said_in_json(storage):
    loss, unknown = run_of(storage).as_json()["gains"]
    assert (loss["arm"], loss["baseline"], loss["gain"], loss["low"], loss["high"]) == ("s2l", "random", 0.25, -0.5, 1)
    assert unknown["gain"] is None


def test_show_names_the_folders_of_subset_and_model_and_what_is_next(storage, monkeypatch):
    said = []
    monkeypatch.setattr(summary.display, "say", said.append)
    run = run_of(storage)
    run.show()
    text = "\n".join(said)
    folders = run.as_json()["artifacts"]
    assert f"{folders['subset [s2l]']}/rows" in text
    assert f"{folders['target [random]']}/model" in text
    assert "s2l inspect" in text


def test_run_until_a_stage_shows_without_a_comparison(storage, monkeypatch):
    said = []
    monkeypatch.setattr(summary.display, "say", said.append)
    whole = run_of(storage)
    part = whole.pipeline.until("prepare_examples")
    found = {node.key: whole.result.artifacts[node.key] for node in part.nodes}
    run = RunSummary(whole.experiment, part, SimpleNamespace(artifacts=found, ran=[], seconds=0.1), storage)
    run.save()
    run.show()
    assert run.as_json()["arms"] == {}
    assert any("nothing to do" in line for line in said)


def test_resolved_config_is_complete_and_lies_beside_the_comparison(storage):
    run = run_of(storage)
    run.save()
    [path] = Path(storage.uri).rglob("resolved.json")
    comparison = run.as_json()["artifacts"]["comparison"]
    assert path.parent == Path(comparison).parent
    resolved = json.loads(path.read_text())
    assert list(resolved) == ["random", "s2l"]
    assert resolved["s2l"]["cluster"]["n_clusters"] == 100
    assert resolved["s2l"]["tokens"]["tokenizer"] == "byte_bpe"
    assert resolved["s2l"]["proxy"]["seed"] == run.experiment.arms["s2l"].proxy.seed
    assert run.result.artifacts  # nothing above may have made the artifact look damaged
    assert inspect_folder(str(path.parent))["checksums"] == "good"


# -------------------------------------------------------------------------------------------------------------- secrets


@pytest.mark.parametrize(
    "config",
    [
        {"hf_token": CANARY},
        {"HF_TOKEN": CANARY},
        {"aws_secret_access_key": CANARY},
        {"Password": CANARY},
        {"tokens": [CANARY]},
        {"nested": {"api_key": CANARY}},
        {"list": [{"password": CANARY}]},
        {"path": f"s3://user:{CANARY}@bucket/dir"},
        {"path": f"s3://{CANARY}@bucket"},
        {"path": f"https://user:p@{CANARY}@host/x"},
        {"paths": [f"gs://{CANARY}@b/c", "plain"]},
        {"inputs": ({"path": f"s3://{CANARY}@b"},)},
        {"arms": {"a": {"examples.api_key": CANARY}}},
        {"parameters": {"select.seed + x.password": [CANARY]}},
    ],
)
def test_secret_is_redacted(config):
    assert CANARY not in json.dumps(redacted(config))


def test_redaction_leaves_everything_else_alone():
    config = {
        "tokens": {"max_tokens": 512, "template": "alpaca", "tokenizer": "word_level"},
        "select": {"budget": "2M tokens", "method": "paper"},
        "target": {"match": "tokens", "model": "microsoft/phi-2"},
        "examples": {"path": "s3://bucket/dir", "columns": {"id": "key"}},
        "arms": {"a": {"tokens.template": "plain"}, "b": {"tokens.tokenizer": "word_level"}},
        "parameters": {"tokens.template + tokens.proxy_template": ["plain", "alpaca"]},
        "none": None,
        "list": [1, 2.5, True],
    }
    assert redacted(config) == config


def test_no_file_of_a_run_holds_a_secret_of_the_config(storage):
    run = run_of(storage, resources={"address": f"ray://user:{CANARY}@head:10001"})
    run.save()
    files = [path for path in Path(storage.uri).rglob("*") if path.is_file()]
    assert any(path.name == "resolved.json" for path in files)
    assert not [path for path in files if CANARY.encode() in path.read_bytes()]


# -------------------------------------------------------------------------------------------------------------- inspect


def folder_of(run: RunSummary, label: str) -> Path:
    return Path(run.as_json()["artifacts"][label]).parent


def test_inspect_of_an_artifact_says_what_it_is(storage):
    folder = folder_of(run_of(storage), "proxy [s2l]")
    data = inspect_folder(str(folder))
    assert (data["artifact"], data["fingerprint"]) == ("proxy", folder.name)
    assert data["checksums"] == "good"
    assert data["settings"] == {"k": 1}
    assert data["summary"] == {"rows": 3}
    assert data["files"] == {"a": "0 rows, 5 bytes"}
    assert Path(data["folder"]).parent == folder
    assert json.loads(json.dumps(data)) == data


@pytest.mark.parametrize("name", ["proxy", "a/proxy/b", "sp ace/ünï"])
def test_inspect_works_wherever_the_storage_lies(tmp_path, name):
    storage = Storage.at(str(tmp_path / name))
    folder = folder_of(run_of(storage), "proxy [s2l]")
    assert inspect_folder(f"{folder}/")["checksums"] == "good"


def test_inspect_says_which_file_is_damaged(storage):
    folder = folder_of(run_of(storage), "proxy [s2l]")
    next(folder.glob("attempt-*/a")).write_bytes(b"proxX")
    checksums = inspect_folder(str(folder))["checksums"]
    assert "DAMAGED" in checksums
    assert checksums.endswith("a")


def test_inspect_of_a_storage_lists_what_is_in_it(storage):
    run = run_of(storage)
    data = inspect_folder(storage.uri)
    assert data["storage"] == storage.uri
    assert set(data["artifacts"]) == {"/".join(Path(uri).parts[-3:-1]) for uri in run.as_json()["artifacts"].values()}


def test_inspect_of_a_folder_without_artifacts_is_refused(tmp_path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(ConfigError, match=str(folder)):
            inspect_folder(str(folder))


def test_inspect_of_a_file_is_refused(storage):
    folder = folder_of(run_of(storage), "proxy [s2l]")
    with pytest.raises(ConfigError, match="file"):
        inspect_folder(str(folder / "manifest.json"))


def test_inspect_of_a_manifest_carried_elsewhere_is_refused_not_called_damaged(storage, tmp_path):
    folder = folder_of(run_of(storage), "proxy [s2l]")
    folder.rename(tmp_path / "copy")
    with pytest.raises(ConfigError, match="lies elsewhere"):
        inspect_folder(str(tmp_path / "copy"))


def test_inspect_of_a_torn_manifest_is_an_artifact_error(storage):
    folder = folder_of(run_of(storage), "proxy [s2l]")
    (folder / "manifest.json").write_bytes(b"{")
    with pytest.raises(ArtifactError, match="Remove"):
        inspect_folder(str(folder))
