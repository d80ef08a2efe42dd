"""Chats from a file to tokens, with the chat template of a pretrained model."""

import json
from pathlib import Path

import pytest
from tokenizers import AddedToken
from transformers import PreTrainedTokenizerFast

from s2l_ray import tokens
from s2l_ray.artifacts import Artifact
from s2l_ray.config import ExamplesConfig, TargetConfig, TokensConfig
from s2l_ray.errors import DataError
from s2l_ray.inputs import find_inputs
from s2l_ray.stage_settings import PrepareSettings, TokenizerSettings, TokenizeSettings
from s2l_ray.stages import prepare_examples, prepare_tokenizer, tokenize_examples
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


def tokenized(bench: Bench, model: Path, data: Path, on_bad_row: str) -> tuple[Artifact, Artifact]:
    data.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    config = ExamplesConfig.model_validate({"path": str(data), "on_bad_row": on_bad_row, "max_rejected": 0.5})
    files = find_inputs(str(data), key="examples.path")
    prepare = PrepareSettings(config, files, "all", 0.0, 0, "examples")
    examples = bench.run(prepare_examples.prepare_examples, prepare_examples.Inputs(), prepare)
    wanted = TokenizerSettings(TokensConfig(max_tokens=64), "chat", TargetConfig(model=str(model)), "target")
    tokenizer = bench.run(prepare_tokenizer.prepare_tokenizer, prepare_tokenizer.Inputs(), wanted)
    inputs = tokenize_examples.Inputs(examples, tokenizer)
    return tokenizer, bench.run(tokenize_examples.tokenize_examples, inputs, TokenizeSettings(64, "chat", config))


def test_chats_are_tokenized_by_their_template_and_what_it_refuses_is_set_aside(
    bench: Bench, model: Path, tmp_path: Path
) -> None:
    tokenizer, made = tokenized(bench, model, tmp_path / "rows.jsonl", "reject")
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
