"""Shared fixtures. Real data is used where S2L_TEST_DATA names its folder."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.fs as pafs
import pytest
import yaml
from filelock import FileLock

from s2l_ray.artifacts import Artifact, find_artifact
from s2l_ray.storage import Storage
from s2l_ray.synthetic import SyntheticSpec, generate_rows
from tests.object_store import BUCKET, object_store
from tests.unit import tiny

# Tests say how Ray authenticates instead of taking what the machine happens to have; one test runs in token mode.
os.environ["RAY_AUTH_MODE"] = "disabled"
os.environ.pop("RAY_ADDRESS", None)
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
# Whoever computes on Ray asks for one: one that starts by itself stays until the interpreter ends.
os.environ["RAY_ENABLE_AUTO_CONNECT"] = "0"

TINY: dict[str, Any] = {
    "seed": 0,
    "examples": {"synthetic": {"rows": 600, "skills": 8}},
    "tokens": {"max_tokens": 32, "template": "plain", "tokenizer": "word_level"},
    "proxy": {
        "model": {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2},
        "steps": 30,
        "learning_rate": 2.0e-3,
        "global_batch_size": 16,
        "micro_batch_size": 16,
        "checkpoints": 6,
    },
    "score": {"shard_rows": 150},
    "cluster": {"n_clusters": 12},
    "select": {"budget": 0.2},
    "target": {
        "model": {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2},
        "zero_stage": 0,
        "steps": 20,
        "learning_rate": 2.0e-3,
        "global_batch_size": 16,
        "micro_batch_size": 8,
    },
    "evaluate": {
        "metrics": ["loss", "exact_match", "math_answer", "bleu", "rouge_l"],
        "max_new_tokens": 4,
        "max_rows": 40,
    },
}
"""The smallest config that runs through every stage."""

HELD_OUT = 0.1
"""Share of its rows that a finished run holds out."""

S2L = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="session")
def data_folder() -> Path:
    folder = os.environ.get("S2L_TEST_DATA")
    if not folder:
        pytest.skip("S2L_TEST_DATA is not set: it names a folder of real data")
    return Path(folder)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the file that makes the finished run, and put off the others that need it: they would wait for it."""
    needing = {item.path for item in items if "finished_run" in getattr(item, "fixturenames", ())}

    def place(item: pytest.Item) -> int:
        if item.path.parent.name == "unit":
            return 3
        return 0 if item.path.name == "test_finished_run.py" else 2 if item.path in needing else 1

    items.sort(key=place)


def write_config(folder: Path, **sections: Any) -> Path:
    """Write TINY with some sections replaced or extended; return the file."""
    data = {**TINY, "storage": str(folder / "storage")}
    for name, value in sections.items():
        data[name] = {**data[name], **value} if isinstance(value, dict) and name in TINY else value
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(data, sort_keys=False), encoding="utf-8")
    return path


def one_local_ray() -> Iterator[None]:
    """Start a Ray in this process, and stop it: the body of a fixture."""
    import ray

    from s2l_ray.stages.runtime import LOCAL_SETTINGS

    with pytest.MonkeyPatch.context() as patched:
        for name, value in LOCAL_SETTINGS.items():
            patched.setenv(name, value)
        # More logical CPUs than cores: two training workers and Ray Data's tasks must fit side by side.
        ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level="error")
        yield
        ray.shutdown()


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "s2l_ray", *arguments]


def run_s2l(*arguments: str, timeout: float = 500, **environment: str) -> "subprocess.CompletedProcess[str]":
    """Run the command in a process of its own."""
    return subprocess.run(
        command(*arguments),
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
        env={**os.environ, **environment},
    )


def artifacts_of(storage: Storage, name: str) -> list[Artifact]:
    """Return what a storage holds of one kind."""
    found = (find_artifact(storage, name, fingerprint) for fingerprint in storage.list_folders(name))
    return [artifact for artifact in found if artifact is not None]


@dataclass(frozen=True)
class FinishedRun:
    """A run of TINY on a file of its rows with ids, with an encoder to judge by, in a folder of its own.

    It wrote to an object store; what it left there has been copied into the folder.
    """

    folder: Path

    @property
    def rows(self) -> Path:
        return self.folder / "rows.jsonl"

    @property
    def examples(self) -> dict[str, Any]:
        return {"path": str(self.rows), "synthetic": None}

    @property
    def storage(self) -> Storage:
        return Storage.at(str(self.folder / "storage"))

    @property
    def ran(self) -> list[str]:
        """Stages that ran."""
        return list(json.loads((self.folder / "answer.json").read_text())["ran"])

    @property
    def config(self) -> Path:
        return self.folder / "tiny.yaml"

    def write_config(self, folder: Path) -> Path:
        """Write the same config for a storage in another folder; return the file."""
        data = yaml.safe_load(self.config.read_text(encoding="utf-8"))
        path = folder / self.config.name
        path.write_text(yaml.safe_dump({**data, "storage": str(folder / "storage")}, sort_keys=False), encoding="utf-8")
        return path

    def copied_to(self, folder: Path) -> "FinishedRun":
        shutil.copytree(self.folder / "storage", folder / "storage")
        self.write_config(folder)
        return FinishedRun(folder)

    def artifact(self, name: str) -> Artifact:
        (only,) = artifacts_of(self.storage, name)
        return only

    def table(self, name: str, prefix: str) -> Any:
        return self.artifact(name).read_table(prefix)


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> FinishedRun:
    """One run for the whole session, which nobody changes: who wants to takes a copy."""
    # Test processes side by side have folders of their own in one that is theirs.
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "finished_run"
    with FileLock(f"{folder}.lock"):
        if not (folder / "answer.json").exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            encoder = tiny.encoder(folder / "encoder", {f"w{number}" for number in range(9)})
            metrics = [*TINY["evaluate"]["metrics"], "bert_score"]
            rows = generate_rows(SyntheticSpec(**TINY["examples"]["synthetic"]), seed=TINY["seed"])
            lines = [json.dumps({**row, "id": f"row {number}"}) for number, row in enumerate(rows)]
            FinishedRun(folder).rows.write_text("\n".join(lines))
            config = write_config(
                folder,
                examples=FinishedRun(folder).examples,
                evaluate={"held_out": HELD_OUT, "metrics": metrics, "encoder": {"model": str(encoder)}},
            )
            with object_store(folder / "moto.log") as store:
                place = ("--storage", f"s3://{BUCKET}/runs/tiny")
                done = run_s2l("run", str(config), "--json", *place, RAY_ADDRESS="", **store.environment)
                assert done.returncode == 0, done.stderr
                storage = store.storage("runs/tiny")
                pafs.copy_files(storage.path(), str(folder / "storage"), source_filesystem=storage.filesystem)
            (folder / "answer.json").write_text(done.stdout)
    return FinishedRun(folder)


def may_unshare() -> bool:
    """Whether this user may give a process a view of its own of the file systems."""
    tool = shutil.which("unshare")
    return tool is not None and subprocess.run([tool, "-m", "true"], capture_output=True, check=False).returncode == 0
