"""The doctor: what it says of this machine, and of what is wrong with it."""

import importlib.metadata
import json
import shutil
from collections import namedtuple
from pathlib import Path

import pytest

from s2l_ray import cli, doctor
from s2l_ray.doctor import GIB, Finding, check, examine_experiment, examine_machine
from s2l_ray.errors import ConfigError
from s2l_ray.experiment import experiment_of, parse_sparse

Usage = namedtuple("Usage", "total used free")


@pytest.fixture(autouse=True)
def no_cluster(monkeypatch):
    for name in ("RAY_ADDRESS", "HF_HUB_OFFLINE", "RAY_TMPDIR", *doctor.TOKENS):
        monkeypatch.delenv(name, raising=False)


def by_topic(storage) -> dict[str, Finding]:
    return {finding.topic: finding for finding in examine_machine(str(storage))}


def experiment(data):
    return experiment_of(parse_sparse(data, [], origin="test", name="test"))


def test_machine_that_runs_these_tests_has_no_problem_and_keeps_no_trace(capsys, tmp_path):
    assert cli.main(["doctor", "--storage", str(tmp_path / "new")]) == 0
    said = capsys.readouterr().err
    assert "no problem found" in said
    assert "pyarrow: " in said
    assert list(tmp_path.iterdir()) == []


def test_findings_as_json_are_one_object(capsys, tmp_path):
    assert cli.main(["doctor", "--json", "--storage", str(tmp_path)]) == 0
    findings = json.loads(capsys.readouterr().out)["findings"]
    assert {"python", "ray", "memory", "GPUs", "storage"} <= {finding["topic"] for finding in findings} | {"GPUs"}
    assert all(set(finding) == {"topic", "state", "found", "advice"} for finding in findings)


def test_package_of_another_version_or_none_is_a_problem_with_the_line_that_mends_it(monkeypatch, tmp_path):
    asked = ["torch>=99", "no-such-package>=1", "mlflow-skinny>=99; extra == 'mlflow'"]
    monkeypatch.setattr("importlib.metadata.requires", lambda _: asked)
    found = by_topic(tmp_path)
    assert (found["torch"].state, found["torch"].advice) == ("problem", "pip install 'torch>=99'")
    assert (found["no-such-package"].state, found["no-such-package"].found) == ("problem", "not installed")
    assert "mlflow-skinny" not in found


def test_full_disk_is_a_problem_of_the_storage_and_the_temporary_folder(monkeypatch, tmp_path):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(100 * GIB, 99 * GIB, GIB // 2))
    found = by_topic(tmp_path)
    assert [found[topic].state for topic in ("storage", "temporary folder", "shared memory")] == [
        "problem",
        "problem",
        "note",
    ]
    assert "0.5 GiB free" in found["storage"].found


def test_storage_that_cannot_be_written_is_a_problem(tmp_path):
    (tmp_path / "file").write_text("")
    assert by_topic(tmp_path / "file")["storage"].state == "problem"


def test_long_temporary_folder_is_a_problem_for_sockets(monkeypatch, tmp_path):
    (folder := tmp_path / ("x" * 80)).mkdir()
    monkeypatch.setenv("RAY_TMPDIR", str(folder))
    assert by_topic(tmp_path)["temporary folder"].state == "problem"


def test_cluster_that_does_not_answer_is_a_problem(monkeypatch, tmp_path):
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:9")
    assert "nothing answers at 127.0.0.1:9" in by_topic(tmp_path)["cluster"].found


def test_tokens_are_named_and_not_shown(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_TOKEN", "canary")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    found = by_topic(tmp_path)
    assert "HF_TOKEN is set" in found["tokens"].found
    assert "canary" not in str(found)
    assert found["hub"].state == "note"


def test_experiment_whose_input_is_missing_is_a_problem():
    (found,) = examine_experiment(experiment({"examples": {"path": "nothing.jsonl"}}))
    assert found.state == "problem"
    assert "nothing.jsonl" in found.found


@pytest.mark.parametrize(
    ("demands", "found"),
    [
        ({}, "this machine has what every stage asks for"),
        ({"train_proxy": {"workers": 4000}}, "resources.train_proxy asks for 4000 CPU in all"),
        (
            {"finetune_target": {"workers": 50, "cpus": 0.01, "gpus": 1}},
            "resources.finetune_target asks for 50 GPU in all",
        ),
        ({"score_examples": {"custom": {"tpu": 2}}}, "resources.score_examples asks for 2 tpu in all"),
        ({"evaluate_target": {"market": "spot"}}, "resources.evaluate_target asks for nodes with labels"),
        ({"address": "10.0.0.1:6379", "train_proxy": {"workers": 4000}}, "cluster"),
    ],
)
def test_demands_are_compared_with_this_machine_where_ray_would_start_on_it(demands, found):
    data = {"examples": {"synthetic": {}}, "resources": demands}
    findings = [finding for finding in examine_experiment(experiment(data)) if finding.topic == "resources"]
    if found == "cluster":
        assert findings == []
    else:
        assert findings[0].state == ("problem" if demands else "ok")
        assert findings[0].found.startswith(found)


def test_models_are_looked_for(tmp_path: Path):
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    data = {"examples": {"synthetic": {}}, "proxy": {"model": "no-such-owner/no-such-model"}}
    found = list(examine_experiment(experiment({**data, "target": {"model": small}})))
    assert [finding.state for finding in found] == ["ok", "ok", "note"]
    assert "no-such-owner/no-such-model is not on this machine" in found[2].found


def test_any_problem_ends_the_command_with_2_and_its_name():
    check([Finding("memory", "ok", "plenty"), Finding("cores", "note", "few")])
    with pytest.raises(ConfigError, match="1 problem on this machine: memory"):
        check([Finding("memory", "problem", "none", "buy some")])


@pytest.mark.parametrize("installed", [True, False])
def test_machine_without_a_compiler_for_clustering_is_told_what_it_would_save(monkeypatch, tmp_path, installed):
    def version(name):
        if name == "numba" and not installed:
            raise importlib.metadata.PackageNotFoundError
        return real(name) if name != "numba" else "0.61"

    real = importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", version)
    found = by_topic(tmp_path)["numba"]
    assert (found.state, "s2l-ray[fast]" in found.advice) == (("ok", False) if installed else ("note", True))
