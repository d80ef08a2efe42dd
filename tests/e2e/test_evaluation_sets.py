"""A target judged on several sets of mathematics, each from a file as its authors write it."""

import json
from pathlib import Path

from s2l_ray.artifacts import Artifact
from s2l_ray.storage import Storage
from s2l_ray.tokens import opened_tokenizer
from tests.conftest import S2L, artifacts_of, write_config

ROWS = 8


def put_sets(folder: Path) -> list[dict[str, str]]:
    """Write three sets, and return the entries that name them."""
    svamp = [{"Body": f"Bo has {i} pens.", "Question": "How many?", "Answer": float(i)} for i in range(ROWS)]
    (folder / "SVAMP.json").write_text(json.dumps(svamp))
    options = [f"{letter}){i}" for i, letter in enumerate("ABCDE")]
    aqua = [
        {"question": f"What is {i} - 1?", "options": options, "correct": "ABCDE"[i % 5], "rationale": ""}
        for i in range(ROWS)
    ]
    (folder / "AQuA.json").write_text("".join(json.dumps(row) + "\n" for row in aqua))
    for i in range(ROWS):
        file = folder / "MATH" / "algebra" / f"{i}.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        row = {"problem": f"Find $x + {i}$ at $x = 0$.", "level": "Level 1", "type": "Algebra"}
        file.write_text(json.dumps(row | {"solution": f"It is $\\boxed{{{i}}}$."}, indent=4))
    # Its last answer does not fit into max_tokens: what is left asks for the first.
    chat = [("user", "1 + 1?"), ("assistant", "2"), ("user", "and " * 300 + "4 + 1?"), ("assistant", "5")]
    messages = [{"role": role, "content": content} for role, content in chat]
    (folder / "chats.jsonl").write_text(json.dumps({"messages": messages}) + "\n")
    (folder / "add.txt").write_text("".join(f"Calculate {i} + 1.\n{i + 1}\n" for i in range(ROWS)))
    return [
        {"path": str(folder / "SVAMP.json"), "format": "svamp"},
        {"path": str(folder / "AQuA.json")},
        {"path": str(folder / "MATH"), "format": "math"},
        {"path": str(folder / "add.txt"), "format": "mathematics", "source": "deepmind"},
        {"path": str(folder / "chats.jsonl"), "source": "chats"},
    ]


def made(folder: Path, name: str) -> list[Artifact]:
    return artifacts_of(Storage.at(str(folder / "storage")), name)


def test_target_is_scored_on_each_set_by_its_name_and_asked_for_what_the_config_says(
    tmp_path: Path, run_here: S2L
) -> None:
    evaluate = {"metrics": ["math_answer"], "path": put_sets(tmp_path), "max_new_tokens": 4, "max_rows": None}
    tokens = {"tokenizer": "byte_bpe", "vocab_size": 300, "max_tokens": 256, "template": "alpaca"}
    config = write_config(
        tmp_path,
        evaluate={**evaluate, "prompt": "program"},
        tokens=tokens,
        select={"method": "random", "budget": 0.1},
        target={"engine": "torch", "steps": 2},
        resources={"finetune_target": {"launcher": "task"}},
    )
    done = run_here("run", str(config), "--until", "evaluate_target", "--json")
    assert done.returncode == 0, done.stderr
    (scores,) = made(tmp_path, "scores")
    rows = {(row["group_by"], row["group"]): row["rows"] for row in scores.read_table("scores.parquet").to_pylist()}
    sets = ("svamp", "aqua", "math", "deepmind")
    assert {name: rows["source", name] for name in sets} == dict.fromkeys(sets, ROWS)
    assert rows["all", "all"] == ROWS * len(sets)
    predictions = scores.read_table("predictions").to_pylist()
    assert [row["source"] for row in predictions if row["math_answer"] is None] == ["chats"]
    (examples,) = made(tmp_path, "eval_examples")
    (asked,) = {turns[0]["content"] for turns in examples.read_table("examples-", ["turns"]).column("turns").to_pylist()
                if turns[0]["content"].startswith("Bo has 3")}  # fmt: skip
    (tokenized,) = [found for found in made(tmp_path, "tokens") if found.summary["rows_in"] == ROWS * len(sets) + 1]
    (tokenizer,) = made(tmp_path, "tokenizer")
    opened = opened_tokenizer(tokenizer)
    texts = [opened.decode(ids) for ids in tokenized.read_table("tokens-").column("input_ids").to_pylist()]
    assert asked == "Bo has 3 pens. How many?"
    assert sum(f"### Instruction:\n{asked} Let's write a program.\n\n### Response:3" in text for text in texts) == 1
    assert sum(" Let's write a program.\n\n### Response:" in text for text in texts) == ROWS * len(sets)
