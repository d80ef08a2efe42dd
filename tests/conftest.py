"""Shared fixtures. Real data is used where S2L_TEST_DATA names its folder."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

# Tests say how Ray authenticates instead of taking what the machine happens to have; one test runs in token mode.
os.environ["RAY_AUTH_MODE"] = "disabled"
os.environ.pop("RAY_ADDRESS", None)
os.environ["HF_HUB_OFFLINE"] = "1"

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

S2L = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="session")
def data_folder() -> Path:
    folder = os.environ.get("S2L_TEST_DATA")
    if not folder:
        pytest.skip("S2L_TEST_DATA is not set: it names a folder of real data")
    return Path(folder)


def write_config(folder: Path, **sections: Any) -> Path:
    """Write TINY with some sections replaced or extended; return the file."""
    data = {**TINY, "storage": str(folder / "storage")}
    for name, value in sections.items():
        data[name] = {**data[name], **value} if isinstance(value, dict) and name in TINY else value
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(data, sort_keys=False), encoding="utf-8")
    return path


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "s2l_ray", *arguments]


def run_s2l(*arguments: str, timeout: float = 280, **environment: str) -> "subprocess.CompletedProcess[str]":
    """Run the command in a process of its own."""
    return subprocess.run(
        command(*arguments),
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
        env={**os.environ, **environment},
    )


def may_unshare() -> bool:
    """Whether this user may give a process a view of its own of the file systems."""
    tool = shutil.which("unshare")
    return tool is not None and subprocess.run([tool, "-m", "true"], capture_output=True, check=False).returncode == 0
