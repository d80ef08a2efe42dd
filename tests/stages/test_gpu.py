"""On a GPU: what a CPU computes, in fp32 closely and in bf16 roughly. `pytest -m gpu`."""

from typing import Any

import numpy as np
import pytest
import torch

from s2l_ray import schemas
from s2l_ray.artifacts import Artifact
from s2l_ray.config import Config, EvaluateConfig, ResourcesConfig
from s2l_ray.stage_settings import EvaluateSettings, PrepareSettings, ProxySettings, TargetSettings, TokenizeSettings
from s2l_ray.stages import (
    evaluate_target,
    finetune_target,
    prepare_examples,
    score_examples,
    tokenize_examples,
    train_proxy,
)
from tests.stages.conftest import Prepared, losses

HAS_GPU = torch.cuda.is_available()
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not HAS_GPU, reason="no CUDA device")]

IN_BF16 = 0.1
"""How far losses in bf16 may be from those in fp32 [nats/token]: 8 bits are left of 24."""


def resources(stage: str, on_gpu: bool, workers: int = 1) -> ResourcesConfig:
    """Two workers share the GPU, and speak through gloo; one has it to itself, and NCCL."""
    asked: dict[str, Any] = {"gpus": (1 if on_gpu else 0) / workers, "cpus": 0.5}
    asked |= {"actors": [workers, workers]} if stage in ("score_examples", "evaluate_target") else {"workers": workers}
    return ResourcesConfig.model_validate({stage: asked})


def proxy(prepared: Prepared, config: Config, on_gpu: bool, precision: str = "fp32", workers: int = 1) -> Artifact:
    inputs = train_proxy.Inputs(prepared.tokens, prepared.tokenizer)
    settings = ProxySettings(config.proxy.model_copy(update={"precision": precision}), config.tokens.max_tokens)
    asked = resources("train_proxy", on_gpu, workers)
    return prepared.bench.run(train_proxy.train_proxy, inputs, settings, asked)


@pytest.fixture(scope="module")
def cpu_proxy(prepared: Prepared, config: Config) -> Artifact:
    return proxy(prepared, config, on_gpu=False)


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize(("precision", "within"), [("fp32", 1e-3), ("bf16", IN_BF16)])
def test_proxy_has_the_losses_of_a_cpu(
    prepared: Prepared, config: Config, cpu_proxy: Artifact, precision: str, within: float, workers: int
) -> None:
    found = losses(proxy(prepared, config, HAS_GPU, precision, workers))
    np.testing.assert_allclose(found, losses(cpu_proxy), atol=within)


def trajectories(prepared: Prepared, config: Config, of: Artifact, on_gpu: bool, **settings: object) -> np.ndarray:
    inputs = score_examples.Inputs(prepared.tokens, prepared.tokenizer, of)
    asked = config.score.model_copy(update=settings)
    found = prepared.bench.run(score_examples.score_examples, inputs, asked, resources("score_examples", on_gpu))
    return schemas.matrix(found.read_in_order("trajectories-"), "loss")


@pytest.mark.parametrize(("precision", "within"), [("fp32", 1e-4), ("bf16", IN_BF16)])
@pytest.mark.parametrize("checkpoints_per_pass", [None, 2])
def test_trajectories_are_those_of_a_cpu(
    prepared: Prepared,
    config: Config,
    cpu_proxy: Artifact,
    precision: str,
    within: float,
    checkpoints_per_pass: int | None,
) -> None:
    expected_NT = trajectories(prepared, config, cpu_proxy, on_gpu=False)
    asked = {"precision": precision, "checkpoints_per_pass": checkpoints_per_pass}
    found_NT = trajectories(prepared, config, cpu_proxy, HAS_GPU, **asked)
    np.testing.assert_allclose(found_NT, expected_NT, atol=within)
    again_NT = trajectories(prepared, config, cpu_proxy, HAS_GPU, **asked)
    np.testing.assert_array_equal(again_NT, found_NT)


def target(prepared: Prepared, config: Config, on_gpu: bool, workers: int = 1, **settings: object) -> Artifact:
    inputs = finetune_target.Inputs(prepared.subset, prepared.tokens, prepared.tokenizer)
    asked = TargetSettings(config.target.model_copy(update=settings), config.tokens.max_tokens)
    pool = resources("finetune_target", on_gpu, workers)
    return prepared.bench.run(finetune_target.finetune_target, inputs, asked, pool)


@pytest.fixture(scope="module")
def cpu_target(prepared: Prepared, config: Config) -> Artifact:
    return target(prepared, config, on_gpu=False, engine="torch", precision="fp32")


ENGINES = [{"engine": "torch"}, *({"engine": "deepspeed", "zero_stage": stage} for stage in range(4))]


@pytest.mark.parametrize("engine", ENGINES, ids=lambda e: "-".join(str(value) for value in e.values()))
@pytest.mark.parametrize(("precision", "within"), [("fp32", 1e-3), ("bf16", IN_BF16)])
def test_target_has_the_losses_of_a_cpu(
    prepared: Prepared,
    config: Config,
    cpu_target: Artifact,
    engine: dict[str, object],
    precision: str,
    within: float,
) -> None:
    found = losses(target(prepared, config, HAS_GPU, precision=precision, **engine))
    np.testing.assert_allclose(found, losses(cpu_target), atol=within)


def test_answers_are_those_of_a_cpu(prepared: Prepared, config: Config, cpu_target: Artifact) -> None:
    held_out = PrepareSettings(config.examples, (), "eval", 0.3, 7, "evaluate")
    examples = prepared.bench.run(prepare_examples.prepare_examples, prepare_examples.Inputs(), held_out)
    wanted = TokenizeSettings(config.tokens.max_tokens, config.tokens.template, config.examples)
    inputs = tokenize_examples.Inputs(examples, prepared.tokenizer)
    tokens = prepared.bench.run(tokenize_examples.tokenize_examples, inputs, wanted)
    judged = evaluate_target.Inputs(cpu_target, tokens, examples, prepared.tokenizer)
    evaluate = EvaluateConfig(metrics=("loss", "exact_match"), max_new_tokens=4)
    predictions = []
    for on_gpu in (False, HAS_GPU):
        asked = EvaluateSettings(evaluate, "fp32", allow_code_execution=False)
        found = prepared.bench.run(evaluate_target.evaluate_target, judged, asked, resources("evaluate_target", on_gpu))
        predictions.append(found.read_in_order("predictions.parquet"))
    on_cpu, on_gpu = predictions
    assert len(on_cpu) > 20
    assert on_gpu.column("prediction").to_pylist() == on_cpu.column("prediction").to_pylist()
    np.testing.assert_allclose(on_gpu.column("loss").to_numpy(), on_cpu.column("loss").to_numpy(), atol=1e-4)
