"""Chats from a file to tokens, with the chat template of a pretrained model."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from tokenizers import AddedToken
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PreTrainedTokenizerFast

from s2l_ray import schemas, tokens
from s2l_ray.answers import generate_greedily
from s2l_ray.artifacts import Artifact
from s2l_ray.config import ExamplesConfig, ResourcesConfig, SelectConfig, TargetConfig, TokensConfig
from s2l_ray.errors import DataError
from s2l_ray.input_files import InputFile
from s2l_ray.inputs import find_inputs
from s2l_ray.stage_settings import (
    PrepareSettings,
    SelectSettings,
    TargetSettings,
    TokenizerSettings,
    TokenizeSettings,
)
from s2l_ray.stages import finetune_target, prepare_examples, prepare_tokenizer, tokenize_examples
from s2l_ray.stages import select_subset as select
from tests.stages.conftest import Bench
from tests.unit import tiny

TEMPLATE = """\
{%- for message in messages -%}
{%- if message.role == 'system' %}{{ raise_exception('no system role here') }}{% endif -%}
{{ '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}
{%- endfor -%}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif -%}
"""
ASKED = {"from": "human", "value": "1 + 2?"}
ROWS = [
    {"conversations": [ASKED, {"from": "gpt", "value": "3"}]},
    {"conversations": [{"from": "system", "value": "Be kind."}, ASKED, {"from": "gpt", "value": "3"}]},
    {"conversations": [ASKED, {"from": "gpt", "value": "<|im_end|>"}]},
]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """Write a small model with a tokenizer that knows a chat template."""
    trained = tokens.train_tokenizer(["user assistant 1 + 2? 3"], "byte_bpe", 300)
    trained.add_special_tokens([AddedToken(token, special=True) for token in ("<|im_start|>", "<|im_end|>")])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=trained, eos_token=tokens.EOS, pad_token=tokens.PAD)
    tokenizer.chat_template = TEMPLATE
    folder = tmp_path / "model"
    tiny.model(vocab_size=len(tokenizer), max_position_embeddings=64).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


class Made(NamedTuple):
    files: tuple[InputFile, ...]
    examples: Artifact
    tokenizer: Artifact
    tokens: Artifact


def tokenized(bench: Bench, model: Path, data: Path, on_bad_row: str, rows: list[dict[str, Any]] = ROWS) -> Made:
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = ExamplesConfig.model_validate({"path": str(data), "on_bad_row": on_bad_row, "max_rejected": 0.5})
    files = find_inputs(str(data), key="examples.path")
    prepare = PrepareSettings(config, files, "all", 0.0, 0, "examples")
    examples = bench.run(prepare_examples.prepare_examples, prepare_examples.Inputs(), prepare)
    wanted = TokenizerSettings(TokensConfig(max_tokens=64), "chat", TargetConfig(model=str(model)), "target")
    tokenizer = bench.run(prepare_tokenizer.prepare_tokenizer, prepare_tokenizer.Inputs(), wanted)
    inputs = tokenize_examples.Inputs(examples, tokenizer)
    made = bench.run(tokenize_examples.tokenize_examples, inputs, TokenizeSettings(64, "chat", config))
    return Made(files, examples, tokenizer, made)


def test_chats_are_tokenized_by_their_template_and_what_it_refuses_is_set_aside(
    bench: Bench, model: Path, tmp_path: Path
) -> None:
    _, _, tokenizer, made = tokenized(bench, model, tmp_path / "rows.jsonl", "reject")
    assert (made.summary["rows_in"], made.summary["rows_kept"], made.summary["rows_refused"]) == (3, 2, 1)
    (refused,) = made.read_table("rejected.parquet").to_pylist()
    assert refused["input_row"] == 1
    assert refused["reason"].startswith("chat_template: ")
    assert "no system role here" in refused["reason"]
    opened = tokens.opened_tokenizer(tokenizer)
    turn_end = opened.token_id("<|im_end|>")
    assert tokenizer.summary["stop_ids"] == sorted([tokenizer.summary["eos_id"], turn_end])
    rows = made.read_table("tokens-").to_pylist()
    assert [row["input_ids"].count(turn_end) for row in rows] == [2, 2]
    assert [row["input_ids"][-1] for row in rows] == [turn_end, turn_end]


def test_chat_that_the_template_refuses_is_an_error_that_names_its_row(
    bench: Bench, model: Path, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=r"rows\.jsonl:2: chat_template: .*no system role here.*on_bad_row: reject"):
        tokenized(bench, model, tmp_path / "rows.jsonl", "error")


def test_exported_target_stops_by_itself_where_our_own_evaluation_stops(
    bench: Bench, model: Path, tmp_path: Path
) -> None:
    files, examples, tokenizer, made = tokenized(bench, model, tmp_path / "rows.jsonl", "error", [ROWS[0]] * 8)
    subset = bench.run(
        select.select_subset,
        select.Inputs(examples, made, made),
        SelectSettings(SelectConfig(method="full"), files),
    )
    settings = TargetConfig(
        model=str(model), engine="torch", steps=40, learning_rate=1e-2, global_batch_size=8, attention="eager"
    )
    target = bench.run(
        finetune_target.finetune_target,
        finetune_target.Inputs(subset, made, tokenizer),
        TargetSettings(settings, 64),
        ResourcesConfig.model_validate({"finetune_target": {"launcher": "task", "gradient_checkpointing": True}}),
    )
    assert target.summary["attention"] == "eager"
    stop_ids = tokenizer.summary["stop_ids"]
    with target.local_folder(schemas.MODEL_FOLDER) as folder:
        assert GenerationConfig.from_pretrained(folder).eos_token_id == stop_ids
        loaded, opened = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    prompt = [{"role": "user", "content": ASKED["value"]}]
    asked = opened.apply_chat_template(prompt, add_generation_prompt=True, return_dict=True, return_tensors="pt")
    (generated,) = loaded.generate(**asked, max_new_tokens=16, do_sample=False)
    answer = generated[asked["input_ids"].shape[1] :].tolist()
    assert opened.decode(answer) == "3<|im_end|>"
    assert answer[-1] in stop_ids
    prompts = [asked["input_ids"][0].numpy()]
    (ours,) = generate_greedily(
        loaded, prompts, max_new_tokens=16, batch_tokens=64, stop_ids=stop_ids, device=loaded.device
    )
    assert ours == answer[:-1]
