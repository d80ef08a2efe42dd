"""The first config: what it says of the data, and that it is one."""

import json
import re
from pathlib import Path

import pytest
import yaml

from s2l_ray import cli
from s2l_ray.config import GPU_STAGES
from s2l_ray.experiment import load_experiment
from s2l_ray.layouts import detect_layout
from s2l_ray.plan import build_pipeline
from s2l_ray.starter import first_config, look_at

ALPACA = {"instruction": "1 + 1?", "output": "2", "source": "sums"}
CHAT = {"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "hello"}]}


@pytest.fixture
def put(tmp_path):
    def write(rows, name="rows.jsonl"):
        file = tmp_path / name
        file.write_text("".join(json.dumps(row) + "\n" if isinstance(row, dict) else row for row in rows))
        return str(file)

    return write


def init(capsys, *arguments) -> tuple[int, str]:
    code = cli.main(["init", *arguments])
    return code, capsys.readouterr().err


@pytest.mark.parametrize(
    ("rows", "arguments"),
    [
        ([ALPACA] * 300, []),
        ([ALPACA] * 3, ["--target", "owner/large"]),
        ([CHAT] * 30, ["--target", "owner/large"]),
        ([CHAT] * 30, ["--target", "owner/large", "--proxy", "owner/small"]),
        ([{"text": "a: b, #c\n" * 500}] * 20, []),
        ([{"question": "q", "answer": "a"}, "{broken\n"] * 20, []),
    ],
)
def test_first_config_is_a_config_that_plans(capsys, put, tmp_path, rows, arguments):
    path, output = put(rows, "rows with # signs.jsonl"), tmp_path / "first.yaml"
    code, said = init(capsys, path, "--output", str(output), *arguments)
    assert code == 0
    assert f"s2l plan {output}" in said.replace("\n", "")
    experiment = load_experiment(output, [f"storage={tmp_path}"])
    assert list(experiment.arms) == ["random", "s2l"]
    assert experiment.shared.examples.path == path
    pipeline = build_pipeline(experiment)
    assert "subset" in {node.artifact for node in pipeline.nodes}


def test_first_config_fits_the_data(put):
    look = look_at([put([ALPACA] * 90 + [ALPACA | {"output": "x" * 1000}] * 10)])
    text = first_config(look, proxy=None, target=None)
    assert look.is_all
    assert "n_clusters: 10}" in text
    assert "max_tokens: 320" in text
    assert "All 100 rows of 1 file were read: alpaca, by `instruction`, `output`." in text
    assert "sums 100" in text


def test_first_config_for_named_models_says_how_they_come_to_gpus(put):
    look = look_at([put([ALPACA] * 30)])
    text = first_config(look, proxy=None, target="some/model")
    head, key, tail = text.partition("# resources:")
    assert key
    uncommented = re.sub("^# ", "", key + tail, flags=re.MULTILINE)
    assert yaml.safe_load(head + uncommented)["resources"] == {name: {"gpus": 1} for name in GPU_STAGES}
    assert "resources" not in yaml.safe_load(text)
    assert "resources:" not in first_config(look, proxy=None, target=None)


def test_bad_rows_are_counted_and_the_first_is_named(put):
    look = look_at([put([ALPACA, {"instruction": "a", "output": " "}, ALPACA])])
    text = first_config(look, proxy=None, target=None)
    assert "1 bad rows among them, the first is rows.jsonl:2: blank_output" in text
    assert "on_bad_row: reject" in text


@pytest.mark.parametrize(("bad", "said"), [(1, None), (3, "max_rejected: 0.05")])
def test_more_bad_rows_than_a_run_allows_are_allowed_for(put, bad, said):
    rows = [{"instruction": "a", "output": " "}] * bad + [ALPACA] * (100 - bad)
    text = first_config(look_at([put(rows)]), proxy=None, target=None)
    assert ("max_rejected" in text) == (said is not None)
    assert said is None or said in text


def test_several_inputs_are_a_mixture_with_a_source_each(put):
    paths = [put([ALPACA | {"source": None}] * 20, "sums.jsonl"), put([ALPACA | {"source": None}] * 5, "more.jsonl")]
    look = look_at(paths)
    assert dict(look.sources) == {"sums": 20, "more": 5}
    assert 'source: "more"' in first_config(look, proxy=None, target=None)


OWN_NAMES = {"Task text": "1 + 1?", "Solution: text": "2", "where": "sums"}
NAMED = "{instruction: Task text, output: 'Solution: text', source: where}"


def test_names_of_columns_that_are_none_of_ours_are_asked_for_and_taken(capsys, put, tmp_path):
    path, output = put([OWN_NAMES] * 30), tmp_path / "first.yaml"
    code, said = init(capsys, path, "--output", str(output))
    assert (code, output.exists()) == (2, False)
    assert "`--columns {instruction: task, output: solution}`" in " ".join(said.split())
    code, said = init(capsys, path, "--output", str(output), "--columns", NAMED)
    assert code == 0
    assert "sums 30" in said
    experiment = load_experiment(output, [f"storage={tmp_path}"])
    assert experiment.shared.examples.columns == {
        "instruction": "Task text", "output": "Solution: text", "source": "where",
    }  # fmt: skip


@pytest.mark.parametrize("text", ["[a]", "instruction", "{instruction: 3}", "{instruction: {a: b}}"])
def test_names_of_columns_that_are_no_mapping_are_refused(capsys, put, text):
    code, said = init(capsys, put([OWN_NAMES]), "--columns", text)
    assert code == 2
    assert "--columns" in said


def test_inputs_of_a_mixture_may_each_be_laid_out_in_their_own_way(capsys, put, tmp_path):
    parts = {"sums": [ALPACA] * 20, "chats": [CHAT] * 9, "tasks": [OWN_NAMES] * 5}
    paths, output = [put(rows, f"{name}.jsonl") for name, rows in parts.items()], tmp_path / "first.yaml"
    code, said = init(capsys, *paths, "--output", str(output), "--columns", NAMED)
    assert code == 0
    assert "All 34 rows of 3 files were read" in said
    sums, chats, tasks = load_experiment(output, [f"storage={tmp_path}"]).shared.examples.path
    assert (sums.columns, chats.columns) == (None, None)
    assert tasks.columns == {"instruction": "Task text", "output": "Solution: text", "source": "where"}


def test_evaluation_set_is_read_where_it_is_named(capsys, put, tmp_path):
    path, output = put([{"sQuestion": "Find it .", "lSolutions": [2.5]}] * 9), tmp_path / "first.yaml"
    code, said = init(capsys, path, "--output", str(output))
    assert (code, "format: numglue" in said) == (2, True)
    code, said = init(capsys, path, "--output", str(output), "--format", "simuleq")
    assert code == 0
    assert "Rows per source: simuleq 9." in said
    (entry,) = load_experiment(output, [f"storage={tmp_path}"]).shared.examples.path
    assert (entry.path, entry.format) == (path, "simuleq")


def test_evaluation_set_may_be_part_of_a_mixture(capsys, put, tmp_path):
    sums, lines, output = put([ALPACA] * 20, "sums.jsonl"), tmp_path / "add.txt", tmp_path / "first.yaml"
    lines.write_text("1 + 1?\n2\n")
    code, said = init(capsys, sums, str(lines), "--output", str(output), "--format", "mathematics")
    assert (code, "sums 20, mathematics 1" in said) == (0, True)
    first, second = load_experiment(output, [f"storage={tmp_path}"]).shared.examples.path
    assert (first.format, first.source, second.format, second.source) == (None, "sums", "mathematics", None)


def test_evaluation_sets_of_a_mixture_are_read_as_named_though_their_columns_fit_another_layout(capsys, put, tmp_path):
    parts = [put([{"question": "1 + 1?", "answer": 2}] * 9, f"{name}.jsonl") for name in ("a", "b")]
    output = tmp_path / "first.yaml"
    code, said = init(capsys, *parts, "--output", str(output), "--format", "mathematics")
    assert (code, "Rows per source: mathematics 18." in said) == (0, True)


def test_set_that_its_columns_tell_needs_no_name(put):
    look = look_at([put([{"problem": "1?", "level": "1", "solution": "$\\boxed{1}$"}] * 20)])
    assert dict(look.sources) == {"math": 20}


def test_only_the_first_rows_of_long_data_are_read(put, monkeypatch):
    monkeypatch.setattr("s2l_ray.starter.SAMPLE_ROWS", 10)
    look = look_at([put([ALPACA] * 11)])
    assert (len(look.examples), look.is_all) == (10, False)
    assert "n_clusters: 100}" in first_config(look, proxy=None, target=None)
    assert {"rows.jsonl": detect_layout(look.files, "auto", {}, key="examples.path")} == look.layouts


def test_file_that_is_there_is_never_overwritten(capsys, put, tmp_path):
    (output := tmp_path / "first.yaml").write_text("mine")
    code, said = init(capsys, put([ALPACA]), "--output", str(output))
    assert (code, output.read_text()) == (2, "mine")
    assert "exists" in said


@pytest.mark.parametrize("data", ["nothing.jsonl", "folder"])
def test_data_that_cannot_be_read_is_one_message_and_no_file(capsys, tmp_path, data):
    (tmp_path / "folder").mkdir()
    output = tmp_path / "first.yaml"
    code, said = init(capsys, str(tmp_path / data), "--output", str(output))
    assert (code, output.exists()) == (2, False)
    assert said.startswith("error: examples.path: ")


def test_output_that_cannot_be_written_is_one_message(capsys, put, tmp_path):
    code, said = init(capsys, put([ALPACA]), "--output", str(Path(tmp_path) / "no" / "first.yaml"))
    assert code == 2
    assert "cannot be written" in said
