"""The config: which values are refused and how, which seed follows from which."""

import json
import math
import os
from pathlib import Path

import pydantic
import pytest

from s2l_ray.config import Config, derive_seed
from tests.unit.tiny import SYNTHETIC, config_of, refusal

SECTIONS_WITH_SEED = ("proxy", "cluster", "select", "target")


def seeds_of(config: Config) -> dict[str, int]:
    return {name: getattr(config, name).seed for name in SECTIONS_WITH_SEED}


# --------------------------------------------------------------------------------------------------------------- values


@pytest.mark.parametrize(
    ("text", "key", "found"),
    [
        ("cluster: {n_clusters: 0}", "cluster.n_clusters", "0"),
        ("cluster: {n_clusters: -1}", "cluster.n_clusters", "-1"),
        ("cluster: {n_clusters: ten}", "cluster.n_clusters", "ten"),
        ("cluster: {n_clusters: 1.5}", "cluster.n_clusters", "1.5"),
        ("cluster: {n_clusters: true}", "cluster.n_clusters", "True"),
        ("cluster: {n_clusters: [5]}", "cluster.n_clusters", "[5]"),
        ("cluster: {stratify_by: skill}", "cluster.stratify_by", "skill"),
        ("cluster: 5", "cluster", "5"),
        ("cluster:", "cluster", "None"),
        ("proxy: {learning_rate: no}", "proxy.learning_rate", "no"),
        ("proxy: {learning_rate: true}", "proxy.learning_rate", "True"),
        ("proxy: {checkpoints: 0}", "proxy.checkpoints", "0"),
        ("proxy: {checkpoints: []}", "proxy.checkpoints", "[]"),
        ("proxy: {checkpoints: [5, 3]}", "proxy.checkpoints", "[5, 3]"),
        ("proxy: {checkpoints: [3, 3]}", "proxy.checkpoints", "[3, 3]"),
        ("proxy: {checkpoints: [0, 3]}", "proxy.checkpoints", "[0, 3]"),
        ("proxy: {checkpoints: [true, 3]}", "proxy.checkpoints", "True"),
        ("proxy: {steps: 0}", "proxy.steps", "0"),
        ("tokens: {max_tokens: 1}", "tokens.max_tokens", "1"),
        ("tokens: {template: jinja}", "tokens.template", "jinja"),
        ("target: {engine: fsdp}", "target.engine", "fsdp"),
        ("target: {zero_stage: 4}", "target.zero_stage", "4"),
        ("target: {trust_remote_code: maybe}", "target.trust_remote_code", "maybe"),
        ("evaluate: {held_out: 0}", "evaluate.held_out", "0"),
        ("evaluate: {held_out: 1}", "evaluate.held_out", "1"),
        ("evaluate: {metrics: []}", "evaluate.metrics", "[]"),
        ("evaluate: {metrics: [meteor]}", "evaluate.metrics", "meteor"),
        ("evaluate: {prompt: program}", "evaluate", "max_new_tokens is left at 64"),
        ("resources: {score_examples: {actors: [2, 1]}}", "resources.score_examples.actors", "[2, 1]"),
        ("resources: {score_examples: {actors: [0, 1]}}", "resources.score_examples.actors", "[0, 1]"),
        ("resources: {score_examples: {actors: 2}}", "resources.score_examples.actors", "2"),
        ("resources: {train_proxy: {workers: 0}}", "resources.train_proxy.workers", "0"),
        ("resources: {train_proxy: {gpus: -1}}", "resources.train_proxy.gpus", "-1"),
        ("resources: {train_proxy: {gpus: 2}}", "resources.train_proxy.gpus", "more `workers`"),
        ("resources: {score_examples: {gpus: 1.5}}", "resources.score_examples.gpus", "more `actors`"),
        ("seed: true", "seed", "True"),
        ("seed: -1", "seed", "-1"),
        ("seed: 1.5", "seed", "1.5"),
        ("proxy: {seed: -1}", "proxy.seed", "-1"),
        ("storage: 5", "storage", "5"),
    ],
)
def test_value_wrong_names_key_and_what_was_found(text, key, found):
    message = refusal(SYNTHETIC + text)
    assert f"`{key}" in message
    assert found in message
    assert "exp.yaml" in message


@pytest.mark.parametrize("value", [".nan", ".inf", "-.inf", "nan", "inf", "'-inf'", "1e999"])
@pytest.mark.parametrize(
    "key",
    [
        "examples.max_rejected",
        "examples.synthetic.zipf",
        "proxy.epochs",
        "proxy.learning_rate",
        "proxy.weight_decay",
        "target.gradient_clipping",
        "select.quota_exponent",
        "select.budget",
        "evaluate.held_out",
        "target.warmup",
        "resources.train_proxy.cpus",
        "resources.score_examples.gpus",
    ],
)
def test_number_not_finite_is_refused_everywhere(key, value):
    assert f"`{key}`" in refusal(SYNTHETIC, f"{key}={value}")


@pytest.mark.parametrize("value", ["0", "-5", "0.0", "-0.1", ".nan", "1.5", "true", "ten", "[1]", "", "'0%'", "'110%'"])
def test_budget_senseless_is_refused(value):
    assert "select.budget" in refusal(SYNTHETIC, f"select.budget={value}")


@pytest.mark.parametrize(
    ("text", "value"),
    [("1", 1), ("1.0", 1.0), ("0.2", 0.2), ("10%", "10%"), ("5k", "5k"), ("2M tokens", "2M tokens"), ("1_000", 1000)],
)
def test_budget_keeps_its_type(text, value):
    budget = config_of("", f"select.budget={text}").select.budget
    assert budget == value
    assert type(budget) is type(value)


def test_checkpoints_rising_list_is_kept():
    assert config_of("proxy: {checkpoints: [1, 5, 9]}").proxy.checkpoints == (1, 5, 9)


@pytest.mark.parametrize("revision", [None, "main", "abc", "0" * 39, "0" * 41, "G" * 40, "A" * 40])
def test_remote_code_without_pinned_revision_is_refused(revision):
    message = refusal(SYNTHETIC, "target.trust_remote_code=true", f"target.revision={json.dumps(revision)}")
    assert "target" in message
    assert "revision" in message
    assert "40" in message


def test_remote_code_with_pinned_revision_is_allowed():
    revision = "0123456789abcdef0123456789abcdef01234567"
    target = config_of("", "target.trust_remote_code=true", f"target.revision={revision}").target
    assert target.trust_remote_code
    assert not Config(examples=config_of().examples).target.trust_remote_code


def test_heads_that_do_not_divide_the_width_are_refused():
    message = refusal(SYNTHETIC + "proxy: {model: {hidden_size: 10, num_hidden_layers: 1, num_attention_heads: 3}}")
    assert "proxy.model" in message
    assert "10" in message


@pytest.mark.parametrize(
    ("text", "found"), [("examples: {}", "neither"), ("examples: {path: a, synthetic: {}}", "both")]
)
def test_examples_with_two_origins_or_none_are_refused(text, found):
    message = refusal(text)
    assert "`examples`" in message
    assert found in message


def test_fresh_model_missing_a_size_names_it_and_nothing_else():
    message = refusal(SYNTHETIC + "proxy: {model: {hidden_size: 8, num_hidden_layers: 1}}")
    assert "`proxy.model.num_attention_heads` is missing" in message
    assert len(message.splitlines()) == 1


# ---------------------------------------------------------------------------------------------------------------- seeds


def test_seeds_derive_from_root_and_differ_by_section():
    seeds = seeds_of(config_of("seed: 5"))
    assert len(set(seeds.values())) == 4
    assert seeds == {name: derive_seed(5, name) for name in SECTIONS_WITH_SEED}
    assert all(0 <= seed < 2**31 for seed in seeds.values())


def test_seeds_other_root_changes_all():
    one, other = seeds_of(config_of("seed: 5")), seeds_of(config_of("seed: 6"))
    assert all(one[name] != other[name] for name in SECTIONS_WITH_SEED)


@pytest.mark.parametrize("section", SECTIONS_WITH_SEED)
def test_seed_set_explicitly_wins_and_changes_only_its_section(section):
    derived = seeds_of(config_of())
    assert seeds_of(config_of("", f"{section}.seed=42")) == derived | {section: 42}
    assert seeds_of(config_of("", f"{section}.seed=0")) == derived | {section: 0}
    assert seeds_of(config_of("", f"{section}.seed=null")) == derived


@pytest.mark.parametrize("text", ["7.0", "'7'"])
def test_seeds_derive_from_a_root_written_in_another_way(text):
    assert seeds_of(config_of(f"seed: {text}")) == seeds_of(config_of("seed: 7"))


def test_seeds_derive_for_sections_given_as_objects():
    config = config_of()
    again = Config(seed=3, examples=config.examples, proxy=type(config.proxy)())
    assert again.proxy.seed == derive_seed(3, "proxy")


def test_seeds_derived_are_pinned():
    # Other values would move every artifact of every user.
    assert list(seeds_of(config_of()).values()) == [1224070517, 1276560301, 1983318661, 1216873729]


# -------------------------------------------------------------------------------------------------------------- objects


def test_config_is_frozen():
    config = config_of()
    for section, key in ((config, "seed"), (config.cluster, "n_clusters"), (config.resources.train_proxy, "workers")):
        with pytest.raises(pydantic.ValidationError):
            setattr(section, key, 5)


def test_official_implies_strata_by_source():
    assert config_of("select: {method: official}").cluster.stratify_by == "source"
    assert config_of("select: {method: paper}").cluster.stratify_by is None


def test_config_survives_a_round_trip_through_json():
    config = config_of("select: {budget: '2M tokens'}\nproxy: {checkpoints: [1, 2]}")
    assert Config.model_validate_json(config.model_dump_json()) == config


def test_numbers_written_in_two_ways_are_one_config():
    assert config_of("proxy: {epochs: 3, learning_rate: 2e-5}") == config_of(
        "proxy: {epochs: 3.0, learning_rate: 0.00002}"
    )
    assert math.isfinite(config_of().proxy.learning_rate)


def test_environment_does_not_reach_the_config(monkeypatch):
    before = config_of()
    monkeypatch.setenv("SEED", "5")
    monkeypatch.setitem(os.environ, "STORAGE", str(Path.cwd()))
    assert config_of() == before


@pytest.mark.parametrize(
    ("stage", "more", "found", "change"),
    [
        ("train_proxy", "workers: 2", "workers: 2", "workers: 1"),
        ("finetune_target", "workers: 1", "target.engine: deepspeed", "target.engine: torch"),
    ],
)
def test_task_that_cannot_train_so_is_refused_with_what_to_change(stage, more, found, change):
    text = refusal(f"{SYNTHETIC}\nresources: {{{stage}: {{launcher: task, {more}}}}}")
    assert "``" not in text
    assert f": resources.{stage}.launcher: task trains with one worker" in text
    assert f"found {found}; set {change}, or launcher: gang." in text


@pytest.mark.parametrize("checkpoints", ["1", "[20]"])
def test_guard_with_one_checkpoint_is_refused_and_trajectories_from_elsewhere_are_looked_at_later(checkpoints):
    text = f"proxy: {{checkpoints: {checkpoints}}}\nselect: {{method: guarded}}"
    assert "cluster.guard compares a row's last loss with its first" in refusal(f"{SYNTHETIC}\n{text}")
    config_of(f"{text}\ntrajectories: {{path: losses.parquet}}")
    config_of(text.replace("guarded", "paper"))


def test_workers_of_deepspeed_that_share_a_gpu_are_refused():
    asked = "resources={finetune_target: {workers: 2, gpus: 0.5}}"
    assert "target.engine: torch" in refusal(SYNTHETIC, "target.engine=deepspeed", asked)
    for sets in (("target.engine=torch", asked), ("resources={finetune_target: {workers: 2, gpus: 1}}",)):
        assert config_of("", *sets).resources.finetune_target.workers == 2


@pytest.mark.parametrize(("key", "stage"), [("proxy", "train_proxy"), ("target", "finetune_target")])
def test_flash_attention_without_a_gpu_or_in_fp32_is_refused(key, stage):
    flash, gpus = f"{key}.attention=flash_attention_2", f"resources={{{stage}: {{gpus: 1}}}}"
    for sets in ((flash,), (flash, gpus, f"{key}.precision=fp32")):
        message = refusal(SYNTHETIC, *sets)
        assert f"{key}.attention" in message
        assert "sdpa" in message
    assert getattr(config_of("", flash, gpus), key).attention == "flash_attention_2"


def test_vllm_on_part_of_a_gpu_is_refused():
    message = refusal(SYNTHETIC, "evaluate.engine=vllm", "resources.evaluate_target.gpus=0.5")
    assert "resources.evaluate_target.gpus: 0.5" in message
    assert "actors" in message
    assert config_of("", "resources.evaluate_target.gpus=0.5").evaluate.engine == "transformers"


def test_vllm_with_an_object_store_is_refused_and_with_a_folder_taken():
    assert "`storage`" in refusal(SYNTHETIC, "evaluate.engine=vllm", "storage=s3://bucket/runs")
    for storage in ("/shared/runs", "file:///shared/runs"):
        found = config_of("", "evaluate.engine=vllm", f"storage={storage}", "resources.evaluate_target.gpus=1")
        assert found.evaluate.engine == "vllm"


@pytest.mark.parametrize(
    "value", ["{rank: 0}", "{alpha: 0}", "{dropout: 1}", "{target_modules: []}", "{target_modules: some}", "{r: 4}"]
)
def test_adapter_that_makes_no_sense_is_refused(value):
    assert "target.lora" in refusal(SYNTHETIC, f"target.lora={value}")


def test_adapter_without_settings_has_all_defaults():
    lora = config_of("", "target.lora={}").target.lora
    assert (lora.rank, lora.alpha, lora.dropout, lora.target_modules) == (16, 32, 0, "all-linear")
