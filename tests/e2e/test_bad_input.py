"""Bad input and bad numbers through the command: exit 2, one message, no traceback, before any training."""

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import ray
import yaml

from s2l_ray.config import ResourcesConfig
from s2l_ray.errors import ConfigError
from s2l_ray.stages.runtime import check_capacity
from tests.conftest import run_s2l, write_config

GOOD = [{"instruction": f"say {i}", "output": f"word {i}"} for i in range(40)]


def config_with_rows(folder: Path, lines: list[str], **examples: object) -> Path:
    (folder / "rows.jsonl").write_text("\n".join(lines) + "\n")
    path = write_config(folder)
    data = yaml.safe_load(path.read_text())
    data["examples"] = {"path": str(folder / "rows.jsonl"), **examples}
    path.write_text(yaml.safe_dump(data))
    return path


def refused(config: Path, *words: str, arguments: tuple[str, ...] = ()) -> None:
    done = run_s2l("run", str(config), *arguments)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in done.stderr
    assert not list((config.parent / "storage").glob("proxy/*"))


def test_malformed_line_stops_the_run_with_file_and_line(tmp_path: Path) -> None:
    lines = [json.dumps(row) for row in GOOD]
    lines[4] = '{"instruction": "cut of'
    refused(config_with_rows(tmp_path, lines), "rows.jsonl:5", "on_bad_row")


def test_rejected_rows_are_counted_and_the_run_goes_on(tmp_path: Path) -> None:
    # Also the one test in which Ray asks for its token, as it does by default.
    lines = [json.dumps(row) for row in GOOD]
    lines[4] = "[1, 2]"
    lines[9] = json.dumps({"instruction": "x", "output": "  "})
    config = config_with_rows(tmp_path, lines, on_bad_row="reject", max_rejected=0.1)
    done = run_s2l("run", str(config), "--until", "prepare_examples", "--json", RAY_AUTH_MODE="token")
    assert done.returncode == 0, done.stderr
    folder = Path(json.loads(done.stdout)["artifacts"]["examples"])
    rejected = pq.read_table(folder / "rejected.parquet").to_pylist()
    assert sorted(row["input_row"] for row in rejected) == [4, 9]


def test_too_many_rejected_rows_stop_the_run(tmp_path: Path) -> None:
    lines = [json.dumps(row) for row in GOOD]
    lines[3] = lines[4] = "7"
    refused(config_with_rows(tmp_path, lines, on_bad_row="reject"), "max_rejected")


def test_more_clusters_than_rows_are_refused_before_training(tmp_path: Path) -> None:
    config = config_with_rows(tmp_path, [json.dumps(row) for row in GOOD])
    refused(config, "cluster.n_clusters", "100", "Lower", arguments=("--set", "cluster.n_clusters=100"))


def test_ids_on_more_than_one_row_stop_the_run_and_are_named(tmp_path: Path) -> None:
    rows = [{**row, "id": f"row/{number}"} for number, row in enumerate(GOOD)]
    rows[7]["id"] = rows[30]["id"] = "../twice"
    refused(config_with_rows(tmp_path, [json.dumps(row) for row in rows]), "`../twice`", "unique", "rename the column")


def test_more_cpus_than_the_machine_has_are_refused_at_the_start(tmp_path: Path) -> None:
    config = write_config(tmp_path, resources={"train_proxy": {"workers": 4000}})
    refused(config, "resources.train_proxy", "4000 x 1 CPU")


@pytest.mark.parametrize(
    ("pool", "starves"),
    [
        ({"actors": [4, 8], "cpus": 1, "gpus": 1}, True),
        ({"actors": [4, 4], "cpus": 0.8, "gpus": 0.5}, True),
        ({"actors": [1, 1], "cpus": 3.5, "gpus": 1}, True),
        ({"actors": [3, 8], "cpus": 1, "gpus": 1}, False),
        ({"actors": [4, 4], "cpus": 0.75, "gpus": 1}, False),
        ({"actors": [4, 4], "cpus": 1, "gpus": 0}, False),
    ],
)
def test_gpu_actors_that_leave_no_cpu_to_read_with_are_refused(
    monkeypatch: pytest.MonkeyPatch, pool: dict[str, object], starves: bool
) -> None:
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 4.0, "GPU": 8.0})
    resources = ResourcesConfig.model_validate({"score_examples": pool})
    if not starves:
        check_capacity(resources)
        return
    with pytest.raises(
        ConfigError, match=r"resources\.score_examples asks for .* Lower resources\.score_examples\.cpus"
    ):
        check_capacity(resources)


@pytest.mark.parametrize(
    ("have", "resources", "mend"),
    [
        ({"CPU": 4.0}, {"score_examples": {"gpus": 1}}, r"Set resources\.score_examples\.gpus to 0"),
        ({"CPU": 4.0, "GPU": 1.0}, {"finetune_target": {"workers": 2, "gpus": 1}}, r"finetune_target\.workers"),
        ({"CPU": 4.0}, {"prepare_examples": {"actors": [5, 8]}}, r"prepare_examples\.actors"),
    ],
)
def test_resources_beyond_the_cluster_are_refused_with_the_key_to_change(
    monkeypatch: pytest.MonkeyPatch, have: dict[str, float], resources: dict[str, object], mend: str
) -> None:
    monkeypatch.setattr(ray, "cluster_resources", lambda: have)
    with pytest.raises(ConfigError, match=mend):
        check_capacity(ResourcesConfig.model_validate(resources))


def test_gang_on_every_cpu_is_no_starving_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 2.0, "GPU": 2.0})
    check_capacity(ResourcesConfig.model_validate({"train_proxy": {"workers": 2, "cpus": 1, "gpus": 1}}))
