"""Data sets of the hub: their files, the commit that they stand for, what is said where there are none; and pushing."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from s2l_ray.artifacts import Artifact
from s2l_ray.errors import ConfigError
from s2l_ray.hub import check_may_push, repository_of
from s2l_ray.storage import Storage
from s2l_ray.subsets.export import export_folder
from tests.conftest import run_s2l
from tests.hub import DATASET, TOKEN, Hub, hub
from tests.subsets.selected import alpaca, subset_of, write_rows

ROW = b'{"instruction": "1 + 1?", "output": "2"}\n'
FILES = {"README.md": b"# A card\n", ".gitattributes": b"", "data/a.jsonl": ROW * 3, "data/b.jsonl": ROW}
READ = """
import sys
from s2l_ray.config import InputPath
from s2l_ray.errors import S2LError
from s2l_ray.inputs import find_inputs
from s2l_ray.raw_rows import read_rows
try:
    entry = InputPath(path=sys.argv[1], format=sys.argv[2])
    files = find_inputs(sys.argv[1] if entry.format == "auto" else (entry,), key="examples.path")
except S2LError as error:
    print(error)
    sys.exit(error.exit_code)
for file in files:
    print(file.name, file.path, sum(1 for _ in read_rows(file)))
"""


@pytest.fixture
def server() -> Iterator[Hub]:
    with hub() as found:
        found.commit(FILES)
        yield found


def read(server: Hub, uri: str, layout: str = "auto", **environment: str) -> tuple[int, str]:
    """Find and read the files in a process of its own: the hub's library takes its address when it is imported."""
    path = {"PATH": "/usr/bin:/bin", "PYTHONPATH": ":".join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", READ, uri, layout],
        env={**path, **server.environment, **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, done.stdout.strip()


def test_data_files_of_a_data_set_are_found_at_the_commit_of_its_revision(server: Hub) -> None:
    first = server.branches["main"]
    second = server.commit({**FILES, "data/c.jsonl": ROW, "data/lang=en/a b+c.jsonl": ROW})
    root = f"hf://datasets/{DATASET}"
    assert read(server, root)[1].splitlines() == [
        f"data/a.jsonl {root}@{second}/data/a.jsonl 3",
        f"data/b.jsonl {root}@{second}/data/b.jsonl 1",
        f"data/c.jsonl {root}@{second}/data/c.jsonl 1",
        f"data/lang=en/a b+c.jsonl {root}@{second}/data/lang=en/a b+c.jsonl 1",
    ]
    assert read(server, f"{root}@{first}/data/b.jsonl") == (0, f"b.jsonl {root}@{first}/data/b.jsonl 1")


def test_lines_by_turns_are_found_where_the_entry_names_their_set(server: Hub) -> None:
    commit = server.commit({"README.md": b"# A card\n", "easy/add.txt": b"1 + 1?\n2\n"})
    root = f"hf://datasets/{DATASET}"
    found = f"easy/add.txt {root}@{commit}/easy/add.txt 1"
    assert read(server, root, "mathematics") == (0, found)
    assert "holds no file" in read(server, root)[1]


@pytest.mark.parametrize(
    ("path", "environment", "words"),
    [
        (f"datasets/{DATASET}/nothing", {}, "does not exist"),
        (f"datasets/{DATASET}@v9", {}, "cannot be reached"),
        ("datasets/somebody/else", {}, "cannot be reached"),
        (f"datasets/{DATASET}", {"HF_TOKEN": "hf_wrong"}, "cannot be reached"),
        ("datasets/alone", {}, "Expected hf://datasets/owner/name"),
        (f"{DATASET}", {}, "cannot be reached"),
        (f"datasets/{DATASET}", {"HF_ENDPOINT": "http://127.0.0.1:9"}, "cannot be reached"),
        (f"datasets/{DATASET}", {"HF_HUB_OFFLINE": "1"}, "cannot be reached"),
    ],
)
def test_data_set_that_is_not_to_be_had_is_one_message(
    server: Hub, path: str, environment: dict[str, str], words: str
) -> None:
    code, said = read(server, f"hf://{path}", **environment)
    assert (code, len(said.splitlines())) == (2, 1)
    assert said.startswith("examples.path: ")
    assert words in said
    assert TOKEN not in said


# ---------------------------------------------------------------------------------------------------------------- push


@pytest.fixture
def empty() -> Iterator[Hub]:
    with hub() as found:
        yield found


@pytest.fixture(scope="module")
def subset(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    folder = tmp_path_factory.mktemp("push")
    rows = write_rows(folder / "rows.jsonl", alpaca(40))
    return subset_of(Storage.at(str(folder / "storage")), examples={"path": str(rows)})


def push(server: Hub, subset: Artifact, *options: str, to: str = DATASET, **environment: str) -> tuple[int, str]:
    given = {"HF_HUB_OFFLINE": "0", **server.environment, **environment}
    done = run_s2l("export", subset.uri, "--to", f"hf://datasets/{to}", *options, **given)
    assert "Traceback" not in done.stderr, done.stderr
    assert TOKEN not in done.stderr + done.stdout
    return done.returncode, done.stderr


def asks_for_private(asked: dict[str, object]) -> bool:
    """Whether a new data set is asked to be private, in the words of any version of the hub's library."""
    return asked.get("private") is True or asked.get("visibility") == "private"


def test_push_makes_a_private_data_set_of_exactly_the_exported_files(
    empty: Hub, subset: Artifact, tmp_path: Path
) -> None:
    assert push(empty, subset)[0] == 0
    (asked,) = empty.created
    assert asks_for_private(asked)
    assert (asked["organization"], asked["name"], asked["type"]) == ("somebody", "rows", "dataset")
    pushed = empty.files_at("main")
    assert pushed is not None
    export_folder([subset], str(tmp_path / "out"))
    entries = json.loads(pushed["dataset_info.json"])
    assert entries["rows"]["hf_hub_url"] == DATASET
    assert f'datasets.load_dataset("{DATASET}", split="train")' in pushed["README.md"].decode()
    for name in ("data/rows.jsonl", "selection.parquet"):
        assert pushed[name] == (tmp_path / "out" / name).read_bytes()
    assert set(pushed) == {".gitattributes", "README.md", "data/rows.jsonl", "dataset_info.json", "selection.parquet"}
    assert not [data for data in pushed.values() if TOKEN.encode() in data]


def test_push_of_a_public_data_set_has_to_be_asked_for(empty: Hub, subset: Artifact) -> None:
    assert push(empty, subset, "--public")[0] == 0
    assert not asks_for_private(empty.created[0])
    assert not empty.is_private
    code, said = push(empty, subset, "--replace")
    assert (code, len(said.splitlines())) == (2, 1)
    assert "is public already" in said


def test_push_over_other_files_is_refused_until_it_is_said_that_they_may_go(server: Hub, subset: Artifact) -> None:
    code, said = push(server, subset)
    assert (code, len(said.splitlines())) == (2, 1)
    assert "--replace" in said
    assert server.files_at("main") == FILES
    assert push(server, subset, "--replace")[0] == 0
    replaced = server.files_at("main")
    assert replaced is not None
    assert not {"data/a.jsonl", "data/b.jsonl"} & replaced.keys()
    assert replaced["README.md"] != FILES["README.md"]


def test_push_that_the_hub_refuses_is_one_message_without_the_token(empty: Hub, subset: Artifact) -> None:
    empty.refuses = True
    code, said = push(empty, subset)
    assert (code, len(said.splitlines())) == (2, 1)
    assert "[redacted] may not write" in said
    assert "HF_TOKEN" in said


def test_push_to_a_hub_that_does_not_answer_is_one_message(empty: Hub, subset: Artifact) -> None:
    code, said = push(empty, subset, HF_ENDPOINT="http://127.0.0.1:9")
    assert (code, len(said.splitlines())) == (2, 1)
    assert "cannot be written" in said


def test_push_without_a_token_in_the_environment_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    with pytest.raises(ConfigError, match="HF_TOKEN is not set"):
        check_may_push(DATASET, is_public=False, replaces=False)


@pytest.mark.parametrize("uri", ["hf://datasets/name", "hf://models/a/b", "hf://datasets/a/b@main", "hf://a/b"])
def test_what_names_no_data_set_to_be_made_is_refused(uri: str) -> None:
    with pytest.raises(ConfigError, match="expected hf://datasets/owner/name"):
        repository_of(uri)
