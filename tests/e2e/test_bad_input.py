"""Bad input and bad numbers through the command: exit 2, one message, no traceback, before any training."""

import json
from pathlib import Path

import pyarrow.parquet as pq
import yaml

from tests.conftest import S2L, run_s2l, write_config

GOOD = [{"instruction": f"say {i}", "output": f"word {i}"} for i in range(40)]


def config_with_rows(folder: Path, lines: list[str], **examples: object) -> Path:
    (folder / "rows.jsonl").write_text("\n".join(lines) + "\n")
    path = write_config(folder)
    data = yaml.safe_load(path.read_text())
    data["examples"] = {"path": str(folder / "rows.jsonl"), **examples}
    path.write_text(yaml.safe_dump(data))
    return path


def refused(run_here: S2L, config: Path, *words: str, arguments: tuple[str, ...] = ()) -> None:
    done = run_here("run", str(config), *arguments)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in done.stderr
    assert not list((config.parent / "storage").glob("proxy/*"))


def test_malformed_line_stops_the_run_with_file_and_line(tmp_path: Path, run_here: S2L) -> None:
    lines = [json.dumps(row) for row in GOOD]
    lines[4] = '{"instruction": "cut of'
    refused(run_here, config_with_rows(tmp_path, lines), "rows.jsonl:5", "on_bad_row")


def test_rejected_rows_are_counted_and_the_run_goes_on(tmp_path: Path) -> None:
    # Also the one test in which Ray asks for its token, as it does by default; so it has to be one of its own.
    lines = [json.dumps(row) for row in GOOD]
    lines[4] = "[1, 2]"
    lines[9] = json.dumps({"instruction": "x", "output": "  "})
    config = config_with_rows(tmp_path, lines, on_bad_row="reject", max_rejected=0.1)
    done = run_s2l("run", str(config), "--until", "prepare_examples", "--json", RAY_AUTH_MODE="token")
    assert done.returncode == 0, done.stderr
    folder = Path(json.loads(done.stdout)["artifacts"]["examples"])
    rejected = pq.read_table(folder / "rejected.parquet").to_pylist()
    assert sorted(row["input_row"] for row in rejected) == [4, 9]


def test_too_many_rejected_rows_stop_the_run(tmp_path: Path, run_here: S2L) -> None:
    lines = [json.dumps(row) for row in GOOD]
    lines[3] = lines[4] = "7"
    refused(run_here, config_with_rows(tmp_path, lines, on_bad_row="reject"), "max_rejected")


def test_more_clusters_than_rows_are_refused_before_training(tmp_path: Path, run_here: S2L) -> None:
    config = config_with_rows(tmp_path, [json.dumps(row) for row in GOOD])
    refused(run_here, config, "cluster.n_clusters", "100", "Lower", arguments=("--set", "cluster.n_clusters=100"))


def test_ids_on_more_than_one_row_stop_the_run_and_are_named(tmp_path: Path, run_here: S2L) -> None:
    rows = [{**row, "id": f"row/{number}"} for number, row in enumerate(GOOD)]
    rows[7]["id"] = rows[30]["id"] = "../twice"
    config = config_with_rows(tmp_path, [json.dumps(row) for row in rows])
    refused(run_here, config, "`../twice`", "unique", "columns: {id: null}")


def test_more_cpus_than_the_machine_has_are_refused_at_the_start(tmp_path: Path, run_here: S2L) -> None:
    config = write_config(tmp_path, resources={"train_proxy": {"workers": 4000}})
    refused(run_here, config, "resources.train_proxy", "4000 x 1 CPU")
