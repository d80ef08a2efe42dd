"""The config: what is refused and how, what is read, which seed follows from which."""

import json
import math
import os
from pathlib import Path

import pydantic
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from s2l_ray.config import Config, FreshModel, derive_seed
from s2l_ray.errors import ConfigError
from s2l_ray.experiment import Experiment, experiment_of, load_experiment, override, parse_override, parse_sparse
from s2l_ray.strict_yaml import parse_yaml

SYNTHETIC = "examples: {synthetic: {}}\n"
SECTIONS_WITH_SEED = ("proxy", "cluster", "select", "target")
ARMS = """
arms:
  random: {select.method: random}
  wide: {cluster.n_clusters: 300, target.model: {hidden_size: 8, num_hidden_layers: 1, num_attention_heads: 2}}
"""


def parse(text: str, *sets: str) -> Experiment:
    return experiment_of(parse_sparse(parse_yaml(text, origin="exp.yaml"), list(sets), origin="exp.yaml", name="exp"))


def config_of(text: str = "", *sets: str) -> Config:
    return parse(SYNTHETIC + text, *sets).shared


def refusal(text: str, *sets: str) -> str:
    with pytest.raises(ConfigError) as caught:
        parse(text, *sets)
    assert caught.value.exit_code == 2
    return str(caught.value)


def seeds_of(config: Config) -> dict[str, int]:
    return {name: getattr(config, name).seed for name in SECTIONS_WITH_SEED}


# --------------------------------------------------------------------------------------------------------------- keys


@pytest.mark.parametrize(
    ("text", "key", "meant"),
    [
        ("clustr: {}", "clustr", "cluster"),
        ("sed: 1", "sed", "seed"),
        ("cluster: {n_cluster: 5}", "cluster.n_cluster", "n_clusters"),
        ("proxy: {checkpoint: 5}", "proxy.checkpoint", "checkpoints"),
        (
            "proxy: {model: {hidden_size: 8, num_hidden_layers: 1, num_attention_heads: 1, model_typ: gpt2}}",
            "proxy.model.model_typ",
            "model_type",
        ),
        ("resources: {train_proxi: {}}", "resources.train_proxi", "train_proxy"),
        ("resources: {train_proxy: {worker: 2}}", "resources.train_proxy.worker", "workers"),
        ("resources: {score_examples: {actor: [1, 2]}}", "resources.score_examples.actor", "actors"),
        ("arm: {}", "arm", "arms"),
        ("arms: {one: {select.metod: random}}", "select.metod", "method"),
        ("arms: {one: {resorces.train_proxy.workers: 2}}", "resorces", "resources"),
    ],
)
def test_key_misspelt_says_which_was_meant(text, key, meant):
    message = refusal(SYNTHETIC + text)
    assert f"`{key}`" in message
    assert f"did you mean `{meant}`" in message


def test_key_misspelt_in_list_of_inputs_says_which_was_meant():
    message = refusal("examples: {path: [{path: a.jsonl, sorce: x}]}")
    assert "`examples.path.0.sorce`" in message
    assert "did you mean `source`" in message


def test_key_misspelt_in_set_says_which_was_meant():
    message = refusal(SYNTHETIC, "cluster.n_cluster=5")
    assert "cluster.n_cluster" in message
    assert "`n_clusters`" in message


def test_key_like_nothing_known_lists_what_is_known():
    message = refusal(SYNTHETIC + "report: {zzz: 1}")
    assert "report.zzz" in message
    assert "examples" in message.split("known here")[1]


def test_key_misspelt_in_one_arm_names_the_arm():
    message = refusal(SYNTHETIC + "arms: {good: {}, bad: {select.metod: random}}")
    assert "arm bad" in message


def test_all_mistakes_are_said_at_once():
    message = refusal(SYNTHETIC + "clustr: {}\nselect: {budget: 0}\nproxy: {epochs: -1}")
    assert all(key in message for key in ("clustr", "select.budget", "proxy.epochs"))


# ------------------------------------------------------------------------------------------------------------- values


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
        ("evaluate: {metrics: [bleu]}", "evaluate.metrics", "bleu"),
        ("resources: {score_examples: {actors: [2, 1]}}", "resources.score_examples.actors", "[2, 1]"),
        ("resources: {score_examples: {actors: [0, 1]}}", "resources.score_examples.actors", "[0, 1]"),
        ("resources: {score_examples: {actors: 2}}", "resources.score_examples.actors", "2"),
        ("resources: {train_proxy: {workers: 0}}", "resources.train_proxy.workers", "0"),
        ("resources: {train_proxy: {gpus: -1}}", "resources.train_proxy.gpus", "-1"),
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
        "resources.wait_seconds",
        "resources.train_proxy.cpus",
        "resources.score_examples.gpus",
    ],
)
def test_number_not_finite_is_refused_everywhere(key, value):
    assert f"`{key}`" in refusal(SYNTHETIC, f"{key}={value}")


def test_value_of_great_length_is_cut_in_the_message():
    assert len(refusal(SYNTHETIC, f"cluster.n_clusters={'x' * 100_000}")) < 1000


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


def test_examples_missing_says_how_to_set_it():
    message = refusal("seed: 1")
    assert "`examples` is missing" in message
    assert "--set examples" in message


def test_fresh_model_missing_a_size_names_it_and_nothing_else():
    message = refusal(SYNTHETIC + "proxy: {model: {hidden_size: 8, num_hidden_layers: 1}}")
    assert "`proxy.model.num_attention_heads` is missing" in message
    assert len(message.splitlines()) == 1


def test_sweep_that_would_not_run_is_refused_not_ignored():
    assert "sweep" in refusal(SYNTHETIC + "sweep: {cluster.n_clusters: [1, 2]}")
    assert config_of("sweep: {}") == config_of()


# --------------------------------------------------------------------------------------------------------------- YAML


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("2.0e-5", 2.0e-5),
        ("2E5", 2e5),
        (".5", 0.5),
        ("5.", 5.0),
        ("-1.5", -1.5),
        ("1_000", 1000),
        ("010", 10.0),
        ("1:30", "1:30"),
        ("0x10", "0x10"),
        ("no", "no"),
        ("yes", "yes"),
        ("off", "off"),
        ("true", True),
        ("False", False),
        ("null", None),
        ("~", None),
        ("", None),
        ("2024-01-01", "2024-01-01"),
        ("10%", "10%"),
        ("[1, a]", [1, "a"]),
        ("{a: 1}", {"a": 1}),
        ("'1'", "1"),
    ],
)
def test_yaml_scalar_means_what_it_says(text, value):
    parsed = parse_yaml(text, origin="x")
    assert parsed == value
    assert type(parsed) is type(value)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a: 1\nb: {c: 1, c: 2}", 2),
        ("a: 1\nb: 2\na: 1", 3),
        ("a: &x [1]\nb: *x", 1),
        ("a: &x 1", 1),
        ("a: *x", 1),
        ("a:\n  <<: {b: 1}", 2),
        ("a: !!python/object:os.system {}", 1),
        ("a: !!python/object/apply:os.system [ls]", 1),
        ("a: 1\nb: !!python/name:os.system", 2),
        ("a: !!int x", 1),
        ("a: !!map x", 1),
        ("a: !!bool x", 1),
        ("a: !!timestamp x", 1),
        ("a: !custom 1", 1),
        ("1: a", 1),
        ("[1]: a", 1),
        ("a: [1", 1),
        ("a: 1\n---\nb: 2", 2),
        ("a: b: c", 1),
    ],
)
def test_yaml_not_plain_is_refused_with_its_line(text, line):
    with pytest.raises(ConfigError, match=rf"exp\.yaml:[{line}{line + 1}]:"):
        parse_yaml(text, origin="exp.yaml")


@pytest.mark.parametrize("text", ["a: \x00", "a: " + "9" * 5000, "[" * 5000, "[" * 5000 + "]" * 5000, "a: =", "\t- x"])
def test_yaml_that_breaks_parsers_is_a_config_error(text):
    with pytest.raises(ConfigError, match=r"exp\.yaml"):
        parse_yaml(text, origin="exp.yaml")


def test_yaml_aliases_that_explode_are_refused_at_the_first():
    lines = ["a0: &a0 [x, x]"] + [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 30)]
    with pytest.raises(ConfigError):
        parse_yaml("\n".join(lines), origin="bomb")


@pytest.mark.parametrize("text", ["", "# only a comment", "[]", "5", "text", "null"])
def test_experiment_not_a_mapping_is_refused(text):
    assert "expected a mapping" in refusal(text)


def test_file_missing_names_it(tmp_path):
    with pytest.raises(ConfigError, match=r"nowhere\.yaml"):
        load_experiment(tmp_path / "nowhere.yaml")


def test_file_that_is_a_folder_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=str(tmp_path)):
        load_experiment(tmp_path)


@pytest.mark.parametrize("data", [b"seed: \xff\xfe", "seed: 1".encode("utf-16"), b"a: \xe9"])
def test_file_not_utf8_is_refused(tmp_path, data):
    path = tmp_path / "latin.yaml"
    path.write_bytes(data)
    with pytest.raises(ConfigError, match=r"latin\.yaml.*UTF-8"):
        load_experiment(path)


def test_file_with_byte_order_mark_and_windows_lines_is_read(tmp_path):
    path = tmp_path / "windows.yaml"
    path.write_bytes(b"\xef\xbb\xbfseed: 7\r\nexamples: {synthetic: {}}\r\n")
    experiment = load_experiment(path)
    assert experiment.shared.seed == 7
    assert experiment.name == "windows"


# -------------------------------------------------------------------------------------------------------------- --set


@pytest.mark.parametrize(
    ("line", "path", "value"),
    [
        ("select.budget=10%", "select.budget", "10%"),
        ("a.b=5", "a.b", 5),
        ("a=0.1", "a", 0.1),
        ("a=1e-4", "a", 1e-4),
        ("a=true", "a", True),
        ("a=[1, x]", "a", [1, "x"]),
        ("a={b: 1}", "a", {"b": 1}),
        ("a=", "a", None),
        ("a=b=c", "a", "b=c"),
        (" a =1", "a", 1),
    ],
)
def test_set_line_value_is_typed(line, path, value):
    assert parse_override(line) == (path, value)


@pytest.mark.parametrize("line", ["seed", "", "=1", "  =1", "seed=[1", "seed=a: b: c", "seed=!!python/object:x {}"])
def test_set_line_malformed_is_refused_and_shown(line):
    assert "--set" in refusal(SYNTHETIC, line)


@pytest.mark.parametrize("path", [".", ".a", "a.", "a..b", ".."])
def test_set_path_with_empty_name_is_refused(path):
    assert "override path" in refusal(SYNTHETIC, f"{path}=1")


@pytest.mark.parametrize("line", ["seed.x=1", "storage.x=1"])
def test_set_path_through_a_scalar_is_refused(line):
    message = refusal("seed: 3\nstorage: here\n" + SYNTHETIC, line)
    assert line.partition(".")[0] in message
    assert "section" in message


@pytest.mark.parametrize("line", ["arms=null", "arms.a={select.method: random}"])
def test_set_path_of_arms_is_refused_with_advice(line):
    assert "did you mean" not in refusal(SYNTHETIC, line)


def test_set_lines_apply_in_order():
    assert config_of("", "cluster.n_clusters=5", "cluster.n_clusters=7").cluster.n_clusters == 7


def test_set_leaves_file_values_of_the_section_alone():
    cluster = config_of("cluster: {n_clusters: 9, max_iter: 3}", "cluster.n_clusters=5").cluster
    assert (cluster.n_clusters, cluster.max_iter) == (5, 3)


names = st.text("abc", min_size=1, max_size=2)
values = st.one_of(st.none(), st.integers(), st.text(max_size=3))
trees = st.recursive(st.dictionaries(names, values, max_size=3), lambda t: st.dictionaries(names, t, max_size=3))


def paths_of(tree, above=()):
    for key, value in tree.items():
        yield (*above, key), value
        if isinstance(value, dict):
            yield from paths_of(value, (*above, key))


@given(tree=trees, path=st.lists(names, min_size=1, max_size=4), value=values)
@settings(deadline=None)
def test_override_sets_one_path_and_leaves_all_others_alone(tree, path, value):
    before = repr(tree)
    try:
        changed = override(tree, ".".join(path), value)
    except ConfigError:
        scalars = {p for p, v in paths_of(tree) if v is not None and not isinstance(v, dict)}
        assert any(tuple(path[:n]) in scalars for n in range(1, len(path)))
        return
    finally:
        assert repr(tree) == before
    assert dict(paths_of(changed))[tuple(path)] == value

    def others(data):
        chain = {tuple(path[:n]) for n in range(1, len(path) + 1)}
        return {p: v for p, v in paths_of(data) if p not in chain and p[: len(path)] != tuple(path)}

    assert others(changed) == others(tree)


# --------------------------------------------------------------------------------------------------------------- arms


def test_arms_none_given_is_one_arm_main():
    assert list(parse(SYNTHETIC).arms) == ["main"]
    assert list(parse(SYNTHETIC + "arms: {}").arms) == ["main"]


def test_arms_override_the_file_each_on_its_own():
    arms = parse(SYNTHETIC + "select: {budget: 0.3}" + ARMS).arms
    assert list(arms) == ["random", "wide"]
    assert (arms["random"].select.method, arms["wide"].select.method) == ("random", "paper")
    assert (arms["random"].cluster.n_clusters, arms["wide"].cluster.n_clusters) == (100, 300)
    assert all(arm.select.budget == 0.3 for arm in arms.values())
    assert isinstance(arms["wide"].target.model, FreshModel)


@pytest.mark.parametrize(
    ("line", "collapses"),
    [
        ("select.method=full", True),
        ("select={method: full}", True),
        ("target.model.hidden_size=16", True),
        ("cluster.n_clusters=7", True),
        ("select.budget=0.5", False),
        ("cluster.max_iter=3", False),
        ("seed=3", False),
        ("target.epochs=1", False),
    ],
)
def test_set_on_a_path_of_an_arm_collapses_the_arms(line, collapses):
    target = "target: {model: {hidden_size: 8, num_hidden_layers: 1, num_attention_heads: 2}}\n"
    experiment = parse(SYNTHETIC + target + ARMS, line)
    assert list(experiment.arms) == (["main"] if collapses else ["random", "wide"])
    if line == "select.method=full":
        assert experiment.shared.select.method == "full"
        assert experiment.shared.cluster.n_clusters == 100
    if line == "select.budget=0.5":
        assert [arm.select.budget for arm in experiment.arms.values()] == [0.5, 0.5]


@pytest.mark.parametrize(
    "arms", ["[a]", "5", "{a: 5}", "{a: [select.method]}", "{a: }", "{'a/b': {}}", "{'': {}}", "{'a b': {}}"]
)
def test_arms_malformed_are_refused(arms):
    assert "arm" in refusal(SYNTHETIC + f"arms: {arms}")


@pytest.mark.parametrize("path", ["storage", "resources.train_proxy.workers", "resources"])
def test_arm_that_overrides_what_all_share_is_refused_not_ignored(path):
    message = refusal(SYNTHETIC + f"arms: {{one: {{}}, two: {{{path}: 5}}}}")
    assert path in message
    assert "two" in message


def test_arm_that_replaces_a_section_is_refused_since_it_would_drop_the_rest():
    message = refusal(SYNTHETIC + "select: {budget: 0.5}\narms: {one: {select: {method: random}}}")
    assert "`select.method" in message


# -------------------------------------------------------------------------------------------------------------- seeds


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


# ------------------------------------------------------------------------------------------------------------ objects


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
