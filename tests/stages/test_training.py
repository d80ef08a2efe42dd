"""Training under Ray Train: two workers give the losses of one, and DeepSpeed those of plain torch."""

import gc
import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from s2l_ray.artifacts import Artifact
from s2l_ray.config import Config, LoraConfig, ResourcesConfig
from s2l_ray.costs import count_parameters
from s2l_ray.errors import ConfigError, DataError
from s2l_ray.estimates import Estimate
from s2l_ray.experiment import experiment_of, parse_sparse
from s2l_ray.plan import build_pipeline
from s2l_ray.stage_settings import (
    ProxySettings,
    TargetSettings,
    TokenizerSettings,
)
from s2l_ray.stages import (
    finetune_target,
    prepare_tokenizer,
    probe,
    score_examples,
    train_proxy,
)
from s2l_ray.stages.shards import row_ranges
from tests.conftest import TINY
from tests.stages.conftest import Prepared, losses


def test_tokenizer_of_much_data_is_trained_on_a_part_drawn_by_content(
    prepared: Prepared, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[str]] = []
    real = prepare_tokenizer.train_tokenizer

    def noted(texts: Iterator[str], *settings: Any) -> Any:
        seen.append(list(texts))
        return real(seen[-1], *settings)

    monkeypatch.setattr(prepare_tokenizer, "train_tokenizer", noted)
    wanted = TokenizerSettings(config.tokens, config.tokens.template, None, "proxy")
    for most in (200, 50, 50):
        monkeypatch.setattr(prepare_tokenizer, "MOST_ROWS", most)
        prepared.bench.run(prepare_tokenizer.prepare_tokenizer, prepare_tokenizer.Inputs(prepared.examples), wanted)
    whole, part, again = seen
    assert len(whole) == 2 * 200  # a prompt and a response each
    assert len(part) == 2 * 50
    assert part == again
    assert set(part) <= set(whole)


def workers(stage: str, count: int, **more: object) -> ResourcesConfig:
    return ResourcesConfig.model_validate({stage: {"workers": count, "cpus": 0.5, **more}})


IN_A_TASK = workers("train_proxy", 1, launcher="task")
"""Quicker than a gang, where it is not the gang that is tested."""


def proxy(prepared: Prepared, config: Config, count: int, launcher: str = "gang") -> Artifact:
    inputs = train_proxy.Inputs(prepared.tokens, prepared.tokenizer)
    settings = ProxySettings(config.proxy, config.tokens.max_tokens)
    return prepared.bench.run(
        train_proxy.train_proxy, inputs, settings, workers("train_proxy", count, launcher=launcher)
    )


@pytest.fixture(scope="module")
def one_worker_proxy(prepared: Prepared, config: Config) -> Artifact:
    return proxy(prepared, config, 1, launcher="task")


def target(prepared: Prepared, config: Config, count: int, launcher: str = "gang", **engine: object) -> Artifact:
    inputs = finetune_target.Inputs(prepared.subset, prepared.tokens, prepared.tokenizer)
    settings = TargetSettings(config.target.model_copy(update=engine), config.tokens.max_tokens)
    asked = workers("finetune_target", count, launcher=launcher)
    return prepared.bench.run(finetune_target.finetune_target, inputs, settings, asked)


@pytest.fixture(scope="module")
def plain_target(prepared: Prepared, config: Config) -> Artifact:
    return target(prepared, config, 1, launcher="task", engine="torch")


def test_proxy_on_two_workers_has_the_losses_of_one(
    prepared: Prepared, config: Config, one_worker_proxy: Artifact
) -> None:
    np.testing.assert_allclose(losses(proxy(prepared, config, 2)), losses(one_worker_proxy), atol=1e-3)


def test_scores_do_not_depend_on_the_number_of_workers(
    prepared: Prepared, config: Config, one_worker_proxy: Artifact
) -> None:
    inputs = score_examples.Inputs(prepared.tokens, prepared.tokenizer, one_worker_proxy)
    settings = config.score.model_copy(update={"shard_rows": 40})
    digests = set()
    for actors in ([1, 1], [1, 4]):
        resources = ResourcesConfig.model_validate({"score_examples": {"actors": actors}})
        digests.add(prepared.bench.run(score_examples.score_examples, inputs, settings, resources).digest)
    in_passes = settings.model_copy(update={"checkpoints_per_pass": 2})
    digests.add(prepared.bench.run(score_examples.score_examples, inputs, in_passes).digest)
    assert len(digests) == 1


def test_fewer_checkpoints_at_once_are_no_more_in_memory(
    prepared: Prepared, config: Config, one_worker_proxy: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    there: weakref.WeakSet[Any] = weakref.WeakSet()
    most = 0
    load = score_examples.load_model

    def counted(*arguments: Any) -> Any:
        nonlocal most
        gc.collect()  # a model is in cycles with its own modules
        model = load(*arguments)
        there.add(model)
        most = max(most, len(there))
        return model

    monkeypatch.setattr(score_examples, "load_model", counted)
    inputs = score_examples.Inputs(prepared.tokens, prepared.tokenizer, one_worker_proxy)
    settings = config.score.model_copy(update={"checkpoints_per_pass": 2})
    pool = ResourcesConfig().score_examples
    work = score_examples.ScoreShard(inputs, settings, pool, prepared.bench.output("score_examples"))
    work(row_ranges(prepared.tokens, "tokens-", 40)[0])
    assert most == 2


# Both are also tried as two bare processes, with ZeRO 1 and 2, where engines are tested.
@pytest.mark.parametrize("zero_stage", [pytest.param(0, marks=pytest.mark.slow), 3])
def test_deepspeed_on_two_workers_has_the_losses_of_plain_torch(
    prepared: Prepared, config: Config, plain_target: Artifact, zero_stage: int
) -> None:
    found = target(prepared, config, 2, engine="deepspeed", zero_stage=zero_stage)
    np.testing.assert_allclose(losses(found), losses(plain_target), atol=1e-3)


@pytest.fixture(scope="module")
def adapted_target(prepared: Prepared, config: Config) -> Artifact:
    return target(prepared, config, 1, launcher="task", engine="torch", lora=LoraConfig(rank=4))


def test_adapter_is_exported_by_itself_and_in_the_weights_of_a_plain_model(adapted_target: Artifact) -> None:
    from transformers import AutoModelForCausalLM

    assert {record.path for record in adapted_target.files("adapter/")} == {
        "adapter/adapter_config.json",
        "adapter/adapter_model.safetensors",
    }
    with adapted_target.local_folder("model") as folder:
        loaded = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)[1]
    assert not loaded["missing_keys"]
    assert not loaded["unexpected_keys"]


@pytest.mark.slow
def test_adapter_under_zero_3_on_two_workers_has_the_losses_of_plain_torch(
    prepared: Prepared, config: Config, adapted_target: Artifact
) -> None:
    shared = target(prepared, config, 2, engine="deepspeed", zero_stage=3, lora=LoraConfig(rank=4))
    np.testing.assert_allclose(losses(shared), losses(adapted_target), atol=1e-3)


def test_bad_listed_checkpoint_is_refused_and_not_retried(prepared: Prepared, config: Config) -> None:
    inputs = train_proxy.Inputs(prepared.tokens, prepared.tokenizer)
    settings = ProxySettings(config.proxy.model_copy(update={"checkpoints": (10, 999)}), config.tokens.max_tokens)
    with pytest.raises(ConfigError, match="999"):
        prepared.bench.run(train_proxy.train_proxy, inputs, settings)


def test_diverging_training_is_an_error_of_the_data_with_advice(prepared: Prepared, config: Config) -> None:
    inputs = train_proxy.Inputs(prepared.tokens, prepared.tokenizer)
    wild = config.proxy.model_copy(update={"learning_rate": 1e30, "warmup": 0.0})
    with pytest.raises(DataError, match="learning rate"):
        prepared.bench.run(train_proxy.train_proxy, inputs, ProxySettings(wild, config.tokens.max_tokens), IN_A_TASK)


def test_fewer_steps_than_checkpoints_shorten_the_trajectory(prepared: Prepared, config: Config) -> None:
    inputs = train_proxy.Inputs(prepared.tokens, prepared.tokenizer)
    short = config.proxy.model_copy(update={"steps": 3})
    settings = ProxySettings(short, config.tokens.max_tokens)
    found = prepared.bench.run(train_proxy.train_proxy, inputs, settings, IN_A_TASK)
    assert found.summary["checkpoint_steps"] == [1, 2, 3]


# --------------------------------------------------------------------------------------------------------- the probe


def probed(prepared: Prepared) -> dict[str, Estimate]:
    experiment = experiment_of(parse_sparse(dict(TINY), [], origin="tiny", name="tiny"))
    pipeline = build_pipeline(experiment)
    made = {"tokens": prepared.tokens, "tokenizer": prepared.tokenizer}
    artifacts = {node.key: made[node.artifact] for node in pipeline.nodes if node.artifact in made}
    found = probe.probe(pipeline, pipeline.nodes, artifacts, experiment.shared.resources, seconds=0.2)
    return {estimate.label: estimate for estimate in found}


def test_probe_times_every_model_and_counts_its_tokens(prepared: Prepared, one_worker_proxy: Artifact) -> None:
    found = probed(prepared)
    assert list(found) == ["proxy", "trajectories", "target"]
    assert all(each.is_measured and (each.seconds or 0) > 0 and each.memory > 2**28 for each in found.values())
    summary = prepared.tokens.summary
    assert found["proxy"].tokens == pytest.approx(30 * 16 * summary["tokens"] / summary["rows_kept"])
    assert found["trajectories"].tokens == 7 * summary["tokens"]
    parameters = count_parameters(one_worker_proxy, "step=000000/")
    assert found["proxy"].flops == pytest.approx(6 * parameters * found["proxy"].tokens)


def test_probe_does_not_build_what_has_no_room(prepared: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "_free_bytes", lambda device: 0)
    monkeypatch.setattr(probe, "build_trainable", lambda *_, **__: pytest.fail("it was built"))
    monkeypatch.setattr(probe, "_measured_on_cluster", lambda each, label, resources: probe.measured(each))
    found = probed(prepared)
    assert not any(each.is_measured for each in found.values())
    assert found["target"].seconds is None
