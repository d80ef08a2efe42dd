"""Exports: whole, the same every time, read by the tools they are for, and silent about the machine."""

import gzip
import html
import json
import random
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.feather
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from s2l_ray import cli
from s2l_ray.artifacts import Artifact
from s2l_ray.errors import ArtifactError, ConfigError
from s2l_ray.experiment import experiment_of, parse_sparse
from s2l_ray.input_files import shown
from s2l_ray.storage import Storage
from s2l_ray.strict_yaml import dump_yaml
from s2l_ray.subsets.arms import arms_of
from s2l_ray.subsets.dataset_card import escaped, size_category
from s2l_ray.subsets.export import Export, export_folder
from tests.subsets.selected import alpaca, experiment, make, subset_of, write_rows

CANARY = "canary-hunter2"
MARKDOWN = MarkdownIt("commonmark").enable("table")


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage.at(str(tmp_path / "storage"))


@pytest.fixture
def subset(tmp_path: Path, storage: Storage) -> Artifact:
    return subset_of(storage, examples={"path": str(write_rows(tmp_path / "rows.jsonl", alpaca(60)))})


def exported(subset: Artifact, tmp_path: Path, name: str = "out") -> Path:
    export_folder([subset], str(tmp_path / name))
    return tmp_path / name


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def selection_of(folder: Path) -> list[dict[str, Any]]:
    return pq.read_table(folder / "selection.parquet").to_pylist()


def front_matter(folder: Path) -> dict[str, Any]:
    card = (folder / "README.md").read_text(encoding="utf-8")
    return yaml.safe_load(card.split("---\n")[1])


def loaded(folder: Path, tmp_path: Path, name: str | None = None) -> list[dict[str, Any]]:
    import datasets

    datasets.disable_progress_bars()
    return datasets.load_dataset(str(folder), name, split="train", cache_dir=str(tmp_path / "cache")).to_list()


# ----------------------------------------------------------------------------------------------------------- the folder


def test_export_holds_rows_selection_card_and_entry_and_nothing_else(subset, tmp_path):
    folder = exported(subset, tmp_path)
    assert set(files_of(folder)) == {"README.md", "data/rows.jsonl", "dataset_info.json", "selection.parquet"}
    assert [p.name for p in tmp_path.iterdir() if "partial" in p.name] == []


def test_rows_are_those_of_the_subset_byte_for_byte(subset, tmp_path):
    with subset.local_folder("rows") as rows:
        assert (exported(subset, tmp_path) / "data/rows.jsonl").read_bytes() == (rows / "rows.jsonl").read_bytes()


def test_selection_says_of_every_row_in_order_where_it_stood_and_why_it_was_taken(subset, tmp_path):
    folder = exported(subset, tmp_path)
    rows = [json.loads(line) for line in (folder / "data/rows.jsonl").read_text().splitlines()]
    original = (tmp_path / "rows.jsonl").read_text().splitlines()
    selection = selection_of(folder)
    assert list(selection[0]) == [
        *("example_id", "user_id", "input_file", "input_row", "source"),
        *("stratum", "cluster_id", "rank", "reason"),
    ]
    assert [json.loads(original[row["input_row"]]) for row in selection] == rows
    assert sorted(row["rank"] for row in selection) == list(range(len(rows)))
    assert {row["input_file"] for row in selection} == {"rows.jsonl"}


def test_two_exports_of_one_subset_are_equal(subset, tmp_path):
    assert files_of(exported(subset, tmp_path, "one")) == files_of(exported(subset, tmp_path, "sp ace/two"))


def test_export_to_a_uri_is_that_to_a_path(subset, tmp_path):
    export_folder([subset], (tmp_path / "by-uri").as_uri())
    assert files_of(tmp_path / "by-uri") == files_of(exported(subset, tmp_path))


def test_export_into_a_folder_with_files_is_refused_and_into_an_empty_one_not(subset, tmp_path):
    (tmp_path / "out").mkdir()
    folder = exported(subset, tmp_path)
    before = files_of(folder)
    with pytest.raises(ConfigError, match="is not empty"):
        export_folder([subset], str(folder))
    assert files_of(folder) == before


def test_export_of_damaged_rows_is_refused_and_leaves_nothing(subset, tmp_path):
    with subset.local_folder("rows") as rows:
        path = rows / "rows.jsonl"
        path.write_bytes(path.read_bytes().replace(b"Say", b"Sai", 1))
    with pytest.raises(ArtifactError, match=r"rows\.jsonl is damaged"):
        exported(subset, tmp_path)
    assert not (tmp_path / "out").exists()


def test_export_without_the_examples_says_that_they_are_missing(subset, storage, tmp_path):
    storage.delete_folder("examples")
    with pytest.raises(ArtifactError, match=r"examples that subset .* was made from"):
        exported(subset, tmp_path)


# -------------------------------------------------------------------------------------------------------- load_dataset


def write_input(folder: Path, name: str, rows: list[dict[str, Any]]) -> Path:
    folder.mkdir(exist_ok=True)
    path, table = folder / name, pa.Table.from_pylist(rows)
    lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
    match name.partition(".")[2]:
        case "jsonl" | "txt" | "ndjson":
            path.write_bytes(lines)
        case "jsonl.gz":
            path.write_bytes(gzip.compress(lines))
        case "json":
            path.write_text(json.dumps(rows))
        case "csv":
            pa.csv.write_csv(table, path)
        case "csv.gz":
            path.write_bytes(
                gzip.compress(("\n".join(f"{r['instruction']};{r['output']}" for r in [HEADER, *rows])).encode())
            )
        case "parquet":
            pq.write_table(table, path)
        case "arrow" | "feather":
            pa.feather.write_feather(table, path, compression="uncompressed")
    return path


HEADER = {"instruction": "instruction", "output": "output"}
FORMATS = ["jsonl", "txt", "json", "jsonl.gz", "csv", "csv.gz", "parquet", "arrow", "feather"]


@pytest.mark.parametrize("ending", FORMATS)
def test_load_dataset_gives_the_selected_rows(ending, storage, tmp_path):
    rows = [*alpaca(40), {"instruction": "Missing?", "output": "NA"}, {"instruction": "", "output": "null"}]
    path = write_input(tmp_path / "in", f"rows.{ending}", rows)
    subset = subset_of(storage, examples={"path": str(path)}, select={"budget": 1.0})
    folder = exported(subset, tmp_path)
    found = loaded(folder, tmp_path)
    kept = [row["input_row"] - ending.startswith("csv") for row in selection_of(folder)]
    assert found == [rows[row] for row in kept]


def test_load_dataset_takes_any_name_of_a_file_for_a_name(storage, tmp_path):
    folder = tmp_path / "in"
    for name in ("a [1]", "b*", "c{x,y}?", "ünï: #1", "-"):
        write_rows(folder / f"{name}.jsonl", alpaca(12, start=100 * len(name)))
    export = exported(subset_of(storage, examples={"path": str(folder)}), tmp_path)
    rows = [json.loads(line) for p in sorted(export.glob("data/*")) for line in p.read_text().splitlines()]
    assert loaded(export, tmp_path) == rows
    assert len(rows) == len(selection_of(export))


def test_chats_in_parquet_come_back_with_the_types_and_values_that_they_had(storage, tmp_path):
    call = pa.struct([("name", pa.string()), ("arguments", pa.string())])
    turn = pa.struct([("role", pa.string()), ("content", pa.large_string()), ("tool_calls", pa.list_(call))])
    schema = pa.schema(
        {"messages": pa.list_(turn), "tools": pa.string(), "topic": pa.dictionary(pa.int32(), pa.string())}
        | {"score": pa.float32(), "stamp": pa.timestamp("us", "UTC")},
        metadata={"made": "by hand"},
    )
    rows = [
        {"messages": [{"role": "system", "content": "Be brief."}] * (i % 3 == 0) + chat * (1 + i % 2)}
        | {"tools": None, "topic": "ab"[i % 2], "score": i / 3, "stamp": i}
        for i, chat in enumerate(chats("role", "content", "user", "assistant", 40))
    ]
    asked = {"role": "assistant", "content": None, "tool_calls": [{"name": "add", "arguments": "{}"}]}
    told = {"role": "tool", "content": "3", "tool_calls": None}
    rows[7]["messages"] = [rows[7]["messages"][0], asked, told, rows[7]["messages"][-1]]
    rows[7]["tools"] = '[{"type": "function", "function": {"name": "add"}}]'
    pq.write_table(pa.Table.from_pylist(rows, schema), tmp_path / "chats.parquet", row_group_size=9)
    table = pq.read_table(tmp_path / "chats.parquet")
    data = {"path": str(tmp_path / "chats.parquet")}
    judged_on = {"path": str(write_rows(tmp_path / "held_out.jsonl", alpaca(3, 900)))}
    draw = {"method": "random", "budget": 0.9, "seed": 1}
    folder = exported(subset_of(storage, examples=data, evaluate=judged_on, select=draw), tmp_path)
    found, places = pq.read_table(folder / "data/chats.parquet"), [row["input_row"] for row in selection_of(folder)]
    assert len(places) == 36
    assert 7 in places
    assert found.schema.equals(table.schema, check_metadata=True)
    assert found.to_pylist() == table.take(places).to_pylist()
    assert [row["messages"] for row in loaded(folder, tmp_path)] == found.column("messages").to_pylist()


def test_sources_of_one_layout_load_as_one_in_the_order_of_the_selection(storage, tmp_path):
    sources = {
        name: write_rows(tmp_path / name / "rows.jsonl", alpaca(30, s)) for s, name in ((0, "math"), (90, "code"))
    }
    mixture = [{"path": str(path), "source": name} for name, path in sources.items()]
    folder = exported(subset_of(storage, examples={"path": mixture}), tmp_path)
    numbers = [int(row["instruction"].split()[1]) for row in loaded(folder, tmp_path)]
    assert [n >= 90 for n in numbers] == [row["source"] == "code" for row in selection_of(folder)]
    assert len(numbers) == len(selection_of(folder))
    assert set(files_of(folder)) >= {"data/math/rows.jsonl", "data/code/rows.jsonl"}


def test_sources_of_different_columns_load_by_their_names(storage, tmp_path):
    write_rows(tmp_path / "math.jsonl", alpaca(30))
    write_rows(tmp_path / "code.jsonl", alpaca(30, 90, level=3))
    mixture = [{"path": str(tmp_path / f"{name}.jsonl"), "source": name} for name in ("math", "code")]
    folder = exported(subset_of(storage, examples={"path": mixture}), tmp_path)
    rows = {name: loaded(folder, tmp_path, name) for name in ("code", "math")}
    assert all(row["level"] == 3 for row in rows["code"])
    assert all("level" not in row for row in rows["math"])
    assert [len(rows["code"]), len(rows["math"])] == [
        sum(row["source"] == name for row in selection_of(folder)) for name in ("code", "math")
    ]


def test_files_of_two_kinds_are_both_loaded_by_what_the_card_says(storage, tmp_path, monkeypatch):
    import datasets

    one = write_input(tmp_path / "in", "a.csv", alpaca(20))
    other = write_input(tmp_path / "in", "b.parquet", alpaca(20, 50))
    mixture = [{"path": str(one), "source": "a"}, {"path": str(other), "source": "b"}]
    folder = exported(subset_of(storage, examples={"path": mixture}), tmp_path)
    lines = [line for line in (folder / "README.md").read_text().splitlines() if line.startswith("datasets.load")]
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    found = [eval(line.replace("FOLDER", str(folder)), {"datasets": datasets}) for line in lines]
    assert [len(part) for part in found] == [
        sum(row["source"] == name for row in selection_of(folder)) for name in ("a", "b")
    ]


# -------------------------------------------------------------------------------------------------------- LLaMA-Factory

ALPACA = {"columns": {"prompt": "instruction", "query": "input", "response": "output"}}
OPENAI_TAGS = {
    "role_tag": "role",
    "content_tag": "content",
    "user_tag": "user",
    "assistant_tag": "assistant",
    "system_tag": "system",
}
SHAREGPT_TAGS = {
    "role_tag": "from",
    "content_tag": "value",
    "user_tag": "human",
    "assistant_tag": "gpt",
    "observation_tag": "observation",
    "function_tag": "function_call",
    "system_tag": "system",
}


def chats(key: str, value: str, user: str, assistant: str, n: int = 30) -> list[list[dict[str, str]]]:
    return [[{key: user, value: f"Say {i}"}, {key: assistant, value: f"It is {i}."}] for i in range(n)]


def entry_of(rows: list[dict[str, Any]], storage: Storage, tmp_path: Path, **examples: Any) -> dict[str, Any]:
    path = write_rows(tmp_path / "rows.jsonl", rows)
    folder = exported(subset_of(storage, examples={"path": str(path), **examples}), tmp_path)
    ((name, entry),) = json.loads((folder / "dataset_info.json").read_text()).items()
    assert name == "rows_jsonl"
    found = [json.loads(line) for line in (folder / entry.pop("file_name")).read_text().splitlines()]
    assert all(set(entry["columns"].values()) <= row.keys() for row in found)
    assert f"`dataset: {name}`" in (folder / "README.md").read_text()
    return entry


def test_entry_of_alpaca_rows_has_the_documented_keys(storage, tmp_path):
    assert entry_of(alpaca(30, input=""), storage, tmp_path) == ALPACA


def test_entry_names_the_columns_of_the_data_and_only_those_it_has(storage, tmp_path):
    rows = [{"task": r["instruction"], "solution": r["output"], "system": "Be brief."} for r in alpaca(30)]
    entry = entry_of(rows, storage, tmp_path, columns={"instruction": "task", "output": "solution"})
    assert entry == {"columns": {"prompt": "task", "response": "solution", "system": "system"}}


def test_entry_of_messages_has_the_documented_tags(storage, tmp_path):
    rows = [{"messages": chat} for chat in chats("role", "content", "user", "assistant")]
    entry = entry_of(rows, storage, tmp_path)
    assert (entry["formatting"], entry["columns"]) == ("sharegpt", {"messages": "messages"})
    assert OPENAI_TAGS.items() <= entry["tags"].items()


def test_entry_of_sharegpt_rows_has_the_documented_tags(storage, tmp_path):
    rows = [{"conversations": chat, "system": "s", "tools": "[]"} for chat in chats("from", "value", "human", "gpt")]
    entry = entry_of(rows, storage, tmp_path)
    assert entry["columns"] == {"messages": "conversations", "system": "system", "tools": "tools"}
    assert entry["tags"] == SHAREGPT_TAGS


def test_entry_of_sharegpt_rows_with_the_roles_of_openai_names_those(storage, tmp_path):
    rows = [{"conversations": chat} for chat in chats("from", "value", "user", "assistant")]
    tags = entry_of(rows, storage, tmp_path)["tags"]
    assert (tags["role_tag"], tags["user_tag"], tags["assistant_tag"]) == ("from", "user", "assistant")


def test_chats_that_call_one_role_by_two_names_have_no_entry(storage, tmp_path):
    both = chats("from", "value", "human", "gpt") + chats("from", "value", "user", "assistant")
    path = write_rows(tmp_path / "rows.jsonl", [{"conversations": chat} for chat in both])
    folder = exported(subset_of(storage, examples={"path": str(path)}), tmp_path)
    assert "dataset_info.json" not in files_of(folder)
    assert "LLaMA-Factory" not in (folder / "README.md").read_text()


def test_a_folder_of_files_is_one_entry_and_a_compressed_file_none(storage, tmp_path):
    for number in range(3):
        write_rows(tmp_path / "in" / f"{number}.jsonl", alpaca(10, 10 * number))
    folder = exported(subset_of(storage, examples={"path": str(tmp_path / "in")}), tmp_path)
    assert [e["file_name"] for e in json.loads((folder / "dataset_info.json").read_text()).values()] == ["data"]
    packed = write_input(tmp_path, "rows.jsonl.gz", alpaca(30))
    packed_folder = exported(subset_of(storage, examples={"path": str(packed)}), tmp_path, "packed")
    assert "dataset_info.json" not in files_of(packed_folder)


def test_entries_of_evaluation_sets_are_those_whose_prompt_and_answer_are_a_column_each(storage, tmp_path):
    rows = {
        "gsm8k": [{"question": f"{i}?", "answer": f"#### {i}"} for i in range(20)],
        "math": [{"problem": f"{i}?", "solution": f"\\boxed{{{i}}}"} for i in range(20)],
        "svamp": [{"Body": f"{i}.", "Question": "?", "Answer": i} for i in range(20)],
        "mathematics": [{"question": f"-{i}?", "answer": -i} for i in range(20)],
    }
    paths = {name: str(write_rows(tmp_path / f"{name}.jsonl", found)) for name, found in rows.items()}
    mixture = [{"path": path, "format": name} for name, path in paths.items()]
    folder = exported(subset_of(storage, examples={"path": mixture}, select={"method": "full"}), tmp_path)
    info = json.loads((folder / "dataset_info.json").read_text())
    assert {name: entry["columns"] for name, entry in info.items()} == {
        "gsm8k_jsonl": {"prompt": "question", "response": "answer"},
        "math_jsonl": {"prompt": "problem", "response": "solution"},
    }
    assert set(loaded(folder, tmp_path, "svamp")[0]) == {"Body", "Question", "Answer"}


def test_questions_and_answers_by_turns_are_exported_as_they_are_and_made_again(storage, tmp_path, monkeypatch):
    lines = "".join(f"What is {i} + 1?\n{i + 1}\n" for i in range(30))
    (tmp_path / "add.txt").write_text(lines)
    subset = subset_of(storage, examples={"path": [{"path": str(tmp_path / "add.txt"), "format": "mathematics"}]})
    folder = exported(subset, tmp_path)
    text = (folder / "data" / "add.txt").read_text()
    questions = text.splitlines()[::2]
    assert len(questions) == subset.summary["rows"]
    assert all(f"{question}\n" in lines for question in questions)
    assert [row["text"] for row in loaded(folder, tmp_path)] == text.splitlines()
    assert "a question and its answer by turns" in (folder / "README.md").read_text()
    assert "dataset_info.json" not in files_of(folder)
    monkeypatch.chdir(tmp_path)
    assert subset_again(config_in(folder), storage) == subset


def test_lines_by_turns_beside_rows_of_questions_and_answers_are_no_entry_of_the_hub_either(storage, tmp_path):
    (tmp_path / "turns.txt").write_text("".join(f"What is {i} + 1?\n{i + 1}\n" for i in range(30)))
    rows = write_rows(
        tmp_path / "ask.jsonl", [{"question": f"Who is {i}?", "answer": f"He is {i}."} for i in range(30)]
    )
    by_turns = {"path": str(tmp_path / "turns.txt"), "format": "mathematics", "source": "turns"}
    subset = subset_of(storage, examples={"path": [by_turns, {"path": str(rows), "source": "rows"}]})
    out = Storage.at(str(tmp_path / "out"))
    Export.of(subset).write(out, repository="somebody/rows")
    entries = json.loads((tmp_path / "out" / "dataset_info.json").read_text())
    assert [(entry["subset"], entry["columns"]) for entry in entries.values()] == [
        ("rows", {"prompt": "question", "response": "answer"})
    ]


def test_files_of_another_kind_are_no_entry_of_the_hub_where_they_are_no_part_of_the_data_set(storage, tmp_path):
    web = write_rows(tmp_path / "a.jsonl", alpaca(30))
    lines = ["instruction,output", *(f"ask {i},answer {i}" for i in range(30))]
    (tmp_path / "b.csv").write_text("\n".join(lines))
    entries = [{"path": str(web), "source": "web"}, {"path": str(tmp_path / "b.csv"), "source": "forum"}]
    Export.of(subset_of(storage, examples={"path": entries})).write(
        Storage.at(str(tmp_path / "out")), repository="somebody/rows"
    )
    named = json.loads((tmp_path / "out" / "dataset_info.json").read_text())
    assert [entry["subset"] for entry in named.values()] == ["web"]
    card = (tmp_path / "out" / "README.md").read_text()
    assert "config_name: web" in card
    assert "config_name: forum" not in card


# ------------------------------------------------------------------------------------------------------------- the card


def config_in(folder: Path) -> dict[str, Any]:
    (text,) = re.findall(r"```yaml\n(.*?)\n```", (folder / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    return yaml.safe_load(text)


def subset_again(data: dict[str, Any], storage: Storage) -> Artifact:
    again = experiment_of(parse_sparse(data, [], origin="again.yaml", name="again"))
    return arms_of(again, storage)["main"].need("subset")


@pytest.mark.parametrize(
    "sections",
    [
        {"select": {"method": "guarded", "budget": 12}, "proxy": {"seed": 7}, "tokens": {"max_tokens": 99}, "seed": 5},
        {"select": {"method": "guarded", "quota_exponent": 0}, "cluster": {"n_clusters_per": "stratum"}},
        {"proxy": {"epochs": 3, "checkpoints": [1, 2, 5]}, "score": {"shard_rows": 100}},
        {"select": {"method": "random"}},
        {"select": {"method": "official"}},
        {"select": {"method": "high_learnability"}},
    ],
)
def test_config_of_the_card_makes_the_same_subset(sections, storage, tmp_path, monkeypatch):
    path = write_rows(tmp_path / "rows.jsonl", alpaca(60, source="a"))
    subset = subset_of(storage, examples={"path": str(path)}, **sections)
    monkeypatch.chdir(tmp_path)
    assert subset_again(config_in(exported(subset, tmp_path)), storage) == subset


def test_config_of_the_card_names_files_that_no_row_was_chosen_from(storage, tmp_path, monkeypatch):
    for name, count in (("a", 40), ("b", 2), ("c", 40)):
        write_rows(tmp_path / "rows" / f"{name}.jsonl", alpaca(count, source=name))
    files = [{"path": f"rows/{name}.jsonl", "source": name} for name in "abc"]
    monkeypatch.chdir(tmp_path)
    subset = subset_of(storage, examples={"path": files}, select={"method": "random", "budget": 3})
    folder = exported(subset, tmp_path)
    assert "b" not in pq.read_table(folder / "selection.parquet").column("source").to_pylist()
    data = config_in(folder)
    assert [entry["path"] for entry in data["examples"]["path"]] == ["a.jsonl", "b.jsonl", "c.jsonl"]
    monkeypatch.chdir(tmp_path / "rows")
    assert subset_again(data, storage) == subset


def test_config_of_the_card_leaves_room_for_trajectories_from_elsewhere(storage, tmp_path, monkeypatch):
    path = write_rows(tmp_path / "rows.jsonl", [{**row, "id": f"r{i}"} for i, row in enumerate(alpaca(60))])
    losses = [{"name": f"r{i}", "loss": [4.0, 3.5, 3.0, 2.0 + i / 100]} for i in range(60)]
    pq.write_table(pa.Table.from_pylist(losses), tmp_path / "losses.parquet")
    trajectories = {"path": str(tmp_path / "losses.parquet"), "columns": {"user_id": "name"}}
    subset = subset_of(storage, examples={"path": str(path)}, trajectories=trajectories)
    folder = exported(subset, tmp_path)
    data = config_in(folder)
    assert "computed elsewhere" in (folder / "README.md").read_text()
    assert data["trajectories"].pop("path") == "your-trajectories"
    monkeypatch.chdir(tmp_path)
    data["trajectories"]["path"] = "losses.parquet"
    assert subset_again(data, storage) == subset


def test_mixture_of_layouts_loads_is_described_and_made_again_from_its_card(storage, tmp_path, monkeypatch):
    sharegpt = [{"conversations": turns} for turns in chats("from", "value", "human", "gpt")]
    own = [{"Task": f"Do {i}", "Answer": f"Done {i}."} for i in range(30)]
    columns = {"question": "Task", "answer": "Answer"}
    mixture = [
        {"path": str(write_rows(tmp_path / "sums.jsonl", alpaca(30))), "source": "sums"},
        {"path": str(write_rows(tmp_path / "chats.jsonl", sharegpt)), "source": "chats"},
        {"path": str(write_input(tmp_path, "tasks.csv", own)), "source": "tasks", "columns": columns},
    ]
    drawn = {"method": "random", "budget": 0.9}
    subset = subset_of(storage, examples={"path": mixture}, select=drawn)
    folder = exported(subset, tmp_path)
    for name, kept in (("sums", alpaca(30)), ("chats", sharegpt)):
        found = loaded(folder, tmp_path, name)
        assert found
        assert all(row in kept for row in found)
    found = pa.csv.read_csv(folder / "data" / "tasks.csv").to_pylist()
    assert found
    assert all(row in own for row in found)
    info = json.loads((folder / "dataset_info.json").read_text())
    assert {name: entry["columns"] for name, entry in info.items()} == {
        "sums_jsonl": {"prompt": "instruction", "response": "output"},
        "chats_jsonl": {"messages": "conversations"},
        "tasks_csv": {"prompt": "Task", "response": "Answer"},
    }
    monkeypatch.chdir(tmp_path)
    assert subset_again(config_in(folder), storage) == subset


def test_card_names_no_licence_in_front_and_says_whose_it_is_to_name_one(subset, tmp_path):
    folder = exported(subset, tmp_path)
    assert set(front_matter(folder)) == {"pretty_name", "size_categories", "tags", "configs"}
    assert "## Licence" in (folder / "README.md").read_text()


def test_card_has_the_checksum_of_every_file(subset, tmp_path):
    import hashlib

    files = files_of(exported(subset, tmp_path))
    card = files.pop("README.md").decode()
    assert all(hashlib.sha256(data).hexdigest() in card for data in files.values())


def test_export_says_no_path_of_the_machine_and_no_secret(storage, tmp_path, monkeypatch):
    path = write_rows(tmp_path / "private" / "rows.jsonl", alpaca(40))
    monkeypatch.setenv("HF_TOKEN", CANARY)
    proxy = {"model": str(tmp_path / "secret-home" / "tiny-model"), "seed": 1}
    (tmp_path / "secret-home" / "tiny-model").mkdir(parents=True)
    subset = subset_of(
        storage, examples={"path": str(path)}, proxy=proxy, resources={"address": f"ray://u:{CANARY}@h:1"}
    )
    files = files_of(exported(subset, tmp_path))
    text = b"".join(files.values())
    assert b"tiny-model" in text
    assert str(tmp_path).encode() not in text
    assert not [word for word in ("private", "secret-home", CANARY) if word.encode() in text]


def test_names_from_the_data_are_text_in_the_card(storage, tmp_path):
    source = "<img src=x>[a](http://evil)|`b`\n# c www.evil.com"
    path = write_rows(tmp_path / "r_o_w <s>.jsonl", alpaca(40, source=source))
    folder = exported(subset_of(storage, examples={"path": str(path)}), tmp_path)
    card = (folder / "README.md").read_text().split("---\n", 2)[2]
    page = MARKDOWN.render(card)
    assert html.escape(shown(source)) in page
    assert "r_o_w &lt;s&gt;.jsonl</h1>" in page
    assert "<img" not in page
    assert 'href="http://evil' not in page


@given(st.text())
def test_escaped_text_is_read_as_itself(text):
    rendered = MARKDOWN.renderInline(f"x{escaped(text)}x")
    assert html.unescape(rendered) == f"x{shown(text, 200)}x"


@pytest.mark.parametrize(
    ("rows", "words"),
    [(1, "n<1K"), (999, "n<1K"), (1000, "1K<n<10K"), (10**6, "1M<n<10M"), (5 * 10**9, "1B<n<10B")],
)
def test_size_category_is_the_hubs_word(rows, words):
    assert size_category(rows) == words


# ---------------------------------------------------------------------------------------------------------- the command


def config_of(tmp_path: Path, storage: Storage, **sections: Any) -> Path:
    of = experiment(storage=storage.uri, **sections)
    path = tmp_path / "x.yaml"
    path.write_text(dump_yaml(dict(of.sparse)))
    make(storage, of)
    return path


def test_command_takes_a_config_and_an_arm_or_the_folder_that_a_run_names(storage, tmp_path, capsys):
    rows = write_rows(tmp_path / "rows.jsonl", alpaca(40))
    arms = {"s2l": {"select.method": "paper"}, "random": {"select.method": "random"}}
    config = config_of(tmp_path, storage, examples={"path": str(rows)}, arms=arms)
    assert cli.main(["export", str(config), "--to", str(tmp_path / "a")]) == 2
    assert "--arm with one of s2l, random" in capsys.readouterr().err
    assert cli.main(["export", str(config), "--arm", "random", "--to", str(tmp_path / "a"), "--json"]) == 0
    subset = json.loads(capsys.readouterr().out)["subset"]
    assert cli.main(["export", f"{subset}/rows", "--to", str(tmp_path / "b")]) == 0
    assert files_of(tmp_path / "a") == files_of(tmp_path / "b")


@pytest.mark.parametrize("of", ["examples", "", "nowhere"])
def test_command_for_what_is_no_subset_is_one_message(of, subset, storage, tmp_path, capsys):
    fingerprint = storage.list_folders("examples")[0]
    folder = storage.uri_of("examples", fingerprint) if of == "examples" else storage.uri_of(of)
    assert cli.main(["export", folder, "--to", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert "expected the folder of a subset" in said
    assert len(said.splitlines()) == 1


def test_export_does_not_depend_on_the_order_that_a_storage_was_filled_in(storage, tmp_path):
    rows = write_rows(tmp_path / "rows.jsonl", alpaca(60))
    settings = [{"cluster": {"n_clusters": k}} for k in (2, 3, 4)]
    first = exported(subset_of(storage, examples={"path": str(rows)}, **settings[1]), tmp_path, "first")
    other = Storage.at(str(tmp_path / "other"))
    random.Random(0).shuffle(settings)
    subsets = {str(s): subset_of(other, examples={"path": str(rows)}, **s) for s in settings}
    second = exported(subsets[str({"cluster": {"n_clusters": 3}})], tmp_path, "second")
    assert files_of(first) == files_of(second)
