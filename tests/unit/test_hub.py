"""Data sets of the hub: their files, the commit that they stand for, and what is said where there are none."""

import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.hub import DATASET, TOKEN, Hub, hub

ROW = b'{"instruction": "1 + 1?", "output": "2"}\n'
FILES = {"README.md": b"# A card\n", ".gitattributes": b"", "data/a.jsonl": ROW * 3, "data/b.jsonl": ROW}
READ = """
import sys
from s2l_ray.errors import S2LError
from s2l_ray.inputs import find_inputs
from s2l_ray.raw_rows import read_rows
try:
    files = find_inputs(sys.argv[1], key="examples.path")
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


def read(server: Hub, uri: str, **environment: str) -> tuple[int, str]:
    """Find and read the files in a process of its own: the hub's library takes its address when it is imported."""
    path = {"PATH": "/usr/bin:/bin", "PYTHONPATH": ":".join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", READ, uri],
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
    second = server.commit({**FILES, "data/c.jsonl": ROW})
    root = f"hf://datasets/{DATASET}"
    assert read(server, root)[1].splitlines() == [
        f"data/a.jsonl {root}@{second}/data/a.jsonl 3",
        f"data/b.jsonl {root}@{second}/data/b.jsonl 1",
        f"data/c.jsonl {root}@{second}/data/c.jsonl 1",
    ]
    assert read(server, f"{root}@{first}/data/b.jsonl") == (0, f"b.jsonl {root}@{first}/data/b.jsonl 1")


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
