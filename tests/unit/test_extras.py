"""Packages that only some settings need are missed before anything runs, each with the line that installs it."""

import importlib.util

import pytest

from s2l_ray import cli
from s2l_ray.doctor import examine_experiment
from s2l_ray.errors import ConfigError
from s2l_ray.extras import check_packages, missing_packages
from tests.conftest import write_config
from tests.unit import tiny

FLASH = "resources={finetune_target: {gpus: 1}}", "target.attention=flash_attention_2"
CASES = {
    "peft": (("target.lora={}",), "target.lora is set", "pip install 's2l-ray[lora]'"),
    "mlflow": (("tracking.to=[tensorboard, mlflow]",), "tracking.to: found mlflow", "pip install 's2l-ray[mlflow]'"),
    "vllm": (("evaluate.engine=vllm",), "evaluate.engine is vllm", "pip install 's2l-ray[vllm]'"),
    "flash_attn": (FLASH, "target.attention is flash_attention_2", "pip install flash-attn"),
}


@pytest.fixture(params=CASES)
def package(request, monkeypatch):
    """The name of a package that is not here."""
    there = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == request.param else there(name, *a)
    )
    return request.param


def test_package_that_is_missing_is_named_with_what_asks_for_it_and_what_installs_it(package):
    sets, asked, install = CASES[package]
    with pytest.raises(ConfigError) as caught:
        check_packages(tiny.parse(tiny.SYNTHETIC, *sets))
    assert all(word in str(caught.value) for word in (package, asked, install))
    check_packages(tiny.parse(tiny.SYNTHETIC))


def test_doctor_calls_a_missing_package_a_problem_once_for_all_arms(package):
    sets, asked, install = CASES[package]
    arms = "arms: {a: {select.method: random}, b: {select.method: full}}\n"
    findings = [f for f in examine_experiment(tiny.parse(tiny.SYNTHETIC + arms, *sets)) if f.topic == "package"]
    assert [(f.state, asked in f.found, install in f.advice) for f in findings] == [("problem", True, True)]


@pytest.mark.parametrize("verb", ["plan", "run"])
def test_plan_and_run_refuse_a_missing_package_with_exit_2(package, tmp_path, capsys, verb):
    config = write_config(tmp_path)
    sets = [word for line in CASES[package][0] for word in ("--set", line)]
    assert cli.main([verb, str(config), *sets]) == 2
    assert CASES[package][2] in capsys.readouterr().err
    assert not (tmp_path / "storage").exists()


def test_what_only_workers_with_gpus_import_may_be_missing_where_a_cluster_has_them(package, monkeypatch, capsys):
    sets, asked, install = CASES[package]
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:6379")
    experiment = tiny.parse(tiny.SYNTHETIC, *sets)
    state = next(f.state for f in examine_experiment(experiment) if f.topic == "package")
    if package in ("vllm", "flash_attn"):
        check_packages(experiment)
        said = capsys.readouterr().err
        assert all(word in said for word in ("warning", package, asked, install))
        assert state == "note"
    else:
        with pytest.raises(ConfigError, match=package):
            check_packages(experiment)
        assert state == "problem"


def test_nothing_is_missing_where_nothing_is_asked_for():
    assert list(missing_packages(tiny.config_of())) == []
