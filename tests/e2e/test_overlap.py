"""Held-out questions that stand in the training data: found before anything is trained, and left out on request."""

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from s2l_ray.artifacts import Artifact, find_artifact
from s2l_ray.storage import Storage
from tests.conftest import S2L, write_config

LONG = "how many apples does a farmer have who picks 12 in the morning and 30 in the evening of one day"


def written(path: Path, prompts: list[str]) -> str:
    rows = [{"instruction": prompt, "output": f"answer {i}"} for i, prompt in enumerate(prompts)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def only(storage: Path, name: str, rows: int | None = None) -> Artifact:
    found = [find_artifact(Storage.at(str(storage)), name, folder.name) for folder in (storage / name).iterdir()]
    return next(a for a in found if a is not None and (rows is None or a.summary["rows_in"] == rows))


@pytest.mark.parametrize("treatment", ["report", "drop"])
def test_rows_like_held_out_ones_are_named_and_left_out_where_asked(
    tmp_path: Path, treatment: str, run_here: S2L
) -> None:
    plain = [f"say the word number {'abcdefgh'[i]} twice" for i in range(8)]
    train = [*plain, "What is 2 + 2?", LONG.replace("12", "19") + " and why"]
    config = write_config(
        tmp_path, cluster={"n_clusters": 4}, tokens={"vocab_size": 400, "tokenizer": "byte_bpe", "max_tokens": 128}
    )
    text = config.read_text().replace("synthetic:\n    rows: 600\n    skills: 8", f"decontaminate: {treatment}")
    config.write_text(text)
    done = run_here(
        "run",
        str(config),
        "--until",
        "tokenize_examples",
        "--set",
        f"examples.path={written(tmp_path / 'train.jsonl', train)}",
        "--set",
        f"evaluate.path={written(tmp_path / 'eval.jsonl', ['what is 7 + 7?', LONG, 'Who are you?'])}",
        "--json",
    )
    assert done.returncode == 0, done.stderr
    storage = tmp_path / "storage"
    overlap = only(storage, "overlap")
    assert overlap.summary["held_out"] == {"exact": 0, "digit_blind": 1, "ngram": 2}
    assert overlap.summary["training"] == {"exact": 0, "digit_blind": 1, "ngram": 2}
    like = {row["example_id"]: row["grade"] for row in overlap.read_table("training-").to_pylist()}
    assert like == {8: "digit_blind", 9: "ngram"}
    tokens = only(storage, "tokens", rows=10)
    kept = pq.read_table(tokens.uri_of(tokens.files("tokens-")[0].path)).column("example_id").to_pylist()
    assert kept == list(range(8 if treatment == "drop" else 10))
    assert tokens.summary["rows_dropped"] == 10 - len(kept)
    assert ("left out" if treatment == "drop" else "decontaminate: drop") in done.stderr
