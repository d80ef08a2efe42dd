"""The list of all settings: a config file of nothing but defaults, which says what every key is."""

import re

import pytest
import yaml

from s2l_ray import cli
from s2l_ray.config import Config
from s2l_ray.errors import ConfigError
from s2l_ray.experiment import load_experiment
from s2l_ray.reference import WIDTH, as_yaml, settings
from s2l_ray.sweep import SweepConfig


def lines_of(path=None):
    return list(as_yaml(settings(path)))


def every():
    return {each.dotted: each for root in settings() for each in root.every()}


def test_all_settings_are_a_config_of_defaults(tmp_path):
    file = tmp_path / "x.yaml"
    file.write_text("\n".join(lines_of()))
    (found,) = load_experiment(file, ["examples.path=rows.jsonl"]).arms.values()
    assert found == Config.model_validate({"examples": {"path": "rows.jsonl"}})


def test_what_stands_in_comments_can_be_uncommented():
    lora = [line.removeprefix("# ") for line in lines_of("target.lora")]
    assert [line for line in lora if not re.match(r" *#", line)][2] == "    rank: 16  # int >= 1"
    assert yaml.safe_load("\n".join(lora).replace("lora: null", "lora:"))["target"]["lora"]["rank"] == 16
    sweep = yaml.safe_load("\n".join(line.removeprefix("# ") for line in lines_of("sweep")[1:]))
    assert SweepConfig.model_validate(sweep["sweep"]) == SweepConfig()


def test_every_key_of_the_config_is_listed_with_its_type_and_nearly_all_with_what_they_are():
    found = every()
    assert {name for name in found if "." not in name} == {*Config.model_fields, "arms", "sweep"}
    assert found["cluster.guard"].type == "number > 0 or null"
    assert found["tokens.template"].type == "alpaca, plain, chat"
    assert found["evaluate.path"].type == "text or list of mapping or null"
    assert found["evaluate.path.path"].type == "text, has to be set"
    assert found["resources.train_proxy.memory"].type == 'size such as "16GiB" or null'
    assert found["resources.score_examples.actors"].type == "list of 2: int"
    unexplained = {name.rpartition(".")[2] for name, setting in found.items() if not setting.text}
    assert unexplained <= {
        "hidden_size", "num_hidden_layers", "num_attention_heads", "weight_decay", "precision", "workers",
    }  # fmt: skip


@pytest.mark.parametrize("path", [None, "select", "resources.train_proxy", "proxy.model.hidden_size"])
def test_lines_are_short_and_a_part_stands_below_the_keys_it_belongs_to(path):
    lines = lines_of(path)
    assert max(map(len, lines)) <= WIDTH + len("#     ")
    if path:
        keys = [line.strip().partition(":")[0] for line in lines if not re.match(r" *#", line)]
        assert keys[: path.count(".") + 1] == path.split(".")


@pytest.mark.parametrize(
    ("path", "near"), [("n_clusters", "cluster.n_clusters?"), ("select.budgets", "select.budget"), ("?", "examples")]
)
def test_setting_that_is_not_there_is_refused_with_those_that_are_near(path, near):
    with pytest.raises(ConfigError, match="Did you mean") as caught:
        settings(path)
    assert near in str(caught.value)


def test_command_prints_a_file_or_one_json_object(capsys):
    assert cli.main(["settings", "select.budget"]) == 0
    assert yaml.safe_load(capsys.readouterr().out) == {"select": {"budget": 0.1}}
    assert cli.main(["settings", "select.budget", "--json"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["select.budget"]["type"] == "int or number or text"
